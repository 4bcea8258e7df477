"""The command line."""

from geoflow.cli.parser import main

__all__ = ["main"]
