"""From trajectories in older versions of the schema to the current one.

A version that changes the schema adds a function here that turns a dataset of the version before
into one of its own, and a file of the version before to ``tests/data``. What is opened passes
through all of them in turn; files are never rewritten.
"""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr

from geoflow.trajectories import schema

# By the version that they read. There is only one version so far.
MIGRATIONS: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {}


def upgrade(ds: xr.Dataset) -> xr.Dataset:
    """Bring a dataset to the current version, step by step, as far as there are steps."""
    while (version := ds.attrs.get("geoflow_schema")) != schema.SCHEMA_VERSION:
        if version not in MIGRATIONS:
            return ds
        before = ds
        ds = MIGRATIONS[version](before)
        # The file stays open until the new dataset is closed.
        ds.set_close(before.close)
    return ds
