"""From trajectories in versions of the schema that are no longer read to one that is.

Those of :data:`geoflow.trajectories.schema.VERSIONS` are read as they are. A version that changes
what an older one means, instead of adding to it, takes that one from there and adds a function here
that turns a dataset of it into one of the next. What is opened passes through all of them in turn;
files are never rewritten.
"""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr

# By the version that they read. So far every version has only added to those before.
MIGRATIONS: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {}


def upgrade(ds: xr.Dataset) -> xr.Dataset:
    """Bring a dataset to a version that is read, step by step, as far as there are steps."""
    while (version := str(ds.attrs.get("geoflow_schema"))) in MIGRATIONS:
        before = ds
        ds = MIGRATIONS[version](before)
        # The file stays open until the new dataset is closed.
        ds.set_close(before.close)
    return ds
