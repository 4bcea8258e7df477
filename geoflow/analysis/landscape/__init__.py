"""The landscape about a walk, on planes through it."""

from __future__ import annotations

from geoflow.analysis.landscape.slices import on_plane

__all__ = ["on_plane"]
