"""Trajectories as netCDF-4 files: written whole or not at all, checked when read."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import xarray as xr

from geoflow.archive import netcdf, seal
from geoflow.archive.checkpoint import CARRIED, STATE, Checkpoint
from geoflow.archive.parts import check_free
from geoflow.errors import ArchiveError
from geoflow.system import kinds, locks, scheduling, translation
from geoflow.system.messages import note
from geoflow.trajectories import consistency, migrations, path_schema, schema, storable

CHECKPOINT_GROUP = "checkpoint"

# Chosen by studies/archive_compression.py: θ compresses by a tenth, for some twenty times the time
# of writing it, and pieces of this many values can be read along both axes.
THETA_CHUNK = 16_384
STEP_CHUNK = 65_536
SCALAR_DIMENSIONS = ("step", "snapshot", "level", "tensor")
COMPRESSED = {"zlib": True, "complevel": 1, "shuffle": True}


def save_trajectory(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a trajectory to a netCDF-4 file, under a temporary name first.

    What does not fit together in it, so that :func:`geoflow.validate` will find it, is said on
    standard error: θ that is not finite, or in another dtype than the walk kept it in.

    Raises
    ------
    InputError
        See :func:`geoflow.archive.parts.check_free`.
    ArchiveError
        The dataset is not in schema 1.0 to 1.2, or writing failed, or what was written would be
        refused when it is opened; ``path`` is as it was. A StorageError where another file got the
        name meanwhile, and this one is beside it.
    """
    kinds.check_dataset(ds)
    path = check_free(path, overwrite=overwrite)
    write(ds, path, whole=locks.replacing(path, overwrite=overwrite))
    # Of what was written, since θ may be something that takes long to compute.
    with open_trajectory(path) as written:
        found = consistency.inconsistencies(written)
    if found:
        note(f"{path}: gf.validate will find that {'; that '.join(found)}")


def write(
    ds: xr.Dataset,
    path: Path,
    checkpoint: Checkpoint | None = None,
    whole: AbstractContextManager[Path] | None = None,
) -> None:
    """Write a trajectory, Dask's arrays block by block, and rename it once it is on the disk.

    Parameters
    ----------
    ds : xarray.Dataset
        In schema 1.0 to 1.2.
    path : Path
        The file.
    checkpoint : Checkpoint, optional
        Kept in a group of its own, so that the walk can be extended.
    whole : context manager, optional
        As of :func:`geoflow.archive.netcdf.replacing`. None: whatever has the name is replaced.

    Raises
    ------
    ArchiveError
        The dataset is not in schema 1.0 to 1.2, or writing failed, or what was written would be
        refused when it is opened; ``path`` is as it was.
    """
    # Not the writing alone: the check of the schema and the look at what was written compute too.
    with scheduling.in_this_thread():
        found = schema.defects(ds) or storable.depth_defects(ds.attrs)
        if found:
            raise ArchiveError(f"not written to {path}: {found[0]}")
        groups: dict[str | None, xr.Dataset] = {None: ds}
        if checkpoint:
            groups[CHECKPOINT_GROUP] = _checkpoint_dataset(checkpoint)
        with netcdf.replacing(path, whole or locks.replacing(path)) as temporary:
            for group, content in groups.items():
                netcdf.write(content, temporary, encoding(content), group)
            seal.append(temporary)


def open_trajectory(path: str | Path) -> xr.Dataset:
    """Open a trajectory file lazily, its schema checked.

    Parameters
    ----------
    path : str or Path
        A netCDF-4 file written by geoflow.

    Raises
    ------
    ArchiveError
        There is no such file, or it is not a trajectory in schema 1.0 to 1.2.
    """
    with netcdf.kept_open(path) as read:
        ds = migrations.upgrade(read)
        found = schema.defects(ds)
        if found:
            other = other_kind(ds)
            said = f"it is of the kind {other}; give the file of a walk" if other else found[0]
            raise ArchiveError(f"{path} is not a trajectory: {said}")
    return ds


def other_kind(ds: xr.Dataset) -> str:
    """What a file is that is no walk and no path, by its kind; empty where it does not say."""
    kind = ds.attrs.get("kind")
    # Of a path the schema itself says so.
    if not isinstance(kind, str) or "geoflow_schema" in ds.attrs or path_schema.is_path(ds):
        return ""
    return f"{kind[:40]!a}"


def kind_there(path: Path) -> str:
    """What a file without a seal, as analyses are, is by its kind; empty where it is unreadable."""
    try:
        with netcdf.open_lazily(netcdf.checked(path)) as ds:
            return other_kind(ds)
    except (ArchiveError, *translation.UNREADABLE):
        return ""


def read_checkpoint(path: Path, ds: xr.Dataset) -> Checkpoint:
    """Read what a walk needs to go on from where its file ends.

    Parameters
    ----------
    path : Path
        The file.
    ds : xarray.Dataset
        What :func:`open_trajectory` gives of it.

    Raises
    ------
    ArchiveError
        The file holds no checkpoint, or one that cannot be used, or not with this walk.
    """
    try:
        with netcdf.open_lazily(netcdf.checked(path), CHECKPOINT_GROUP) as group:
            arrays = {str(name): variable.values for name, variable in group.variables.items()}
            state = json.loads(group.attrs["state"])
    except translation.UNREADABLE:
        raise ArchiveError(
            f"{path} holds no checkpoint to go on from; a walk with archive= keeps one"
        ) from None
    try:
        checkpoint = Checkpoint.unpack(arrays, state)
        counts = {name: ds[f"n_{name}"].values for name in checkpoint.counts if f"n_{name}" in ds}
        n_steps, n_parameters = ds.sizes["step"], ds.sizes["parameter"]
        checkpoint.check_fits(n_steps, n_parameters, ds.attrs["dtype"], counts)
        checkpoint.check_carry(ds.attrs["config"])
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}; walk again") from None
    return checkpoint


def _checkpoint_dataset(checkpoint: Checkpoint) -> xr.Dataset:
    arrays, state = checkpoint.pack()
    variables = {}
    for name, array in arrays.items():
        dims = tuple(f"{name}_{i}" for i in range(array.ndim))
        if name == "theta":
            what = "parameters at the end of the walk"
        elif name.startswith(STATE):
            what = f"{name.removeprefix(STATE)} at the end of the walk, of the flow's state"
        else:
            what = f"{name.removeprefix(CARRIED)}, carried by the solver"
        variables[name] = (dims, array, {"long_name": what, "units": "1"})
    text = json.dumps(state)
    return xr.Dataset(variables, attrs={"title": "What the walk needs to go on", "state": text})


def encoding(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    """How the variables of a trajectory or a path are stored, each with a checksum."""
    return {str(name): _storage(variable) for name, variable in ds.variables.items()}


def _storage(variable: xr.Variable) -> dict[str, Any]:
    """How one variable is stored; each with a Fletcher checksum that every reader verifies."""
    if variable.dtype.kind not in "fiu":
        # As characters: a string variable can carry no checksum, and the netCDF library crashes
        # where such a one is read from a file that is open twice in one process.
        return {"dtype": "S1", "fletcher32": True, **COMPRESSED}
    if not (variable.size and variable.ndim):
        return {"_FillValue": None}
    n = variable.shape[-1]
    if variable.dims == ("step", "constraint"):
        rows = min(len(variable), max(STEP_CHUNK // n, 1))
        return {"_FillValue": None, "fletcher32": True, "chunksizes": (rows, n), **COMPRESSED}
    if variable.dims[-1] in SCALAR_DIMENSIONS:
        filters, length = COMPRESSED, min(n, STEP_CHUNK)
    else:
        # Pieces of one length, so that none is padded.
        filters, length = {}, math.ceil(n / math.ceil(n / THETA_CHUNK))
    chunks = (*(1,) * (variable.ndim - 1), length)
    return {"_FillValue": None, "fletcher32": True, "chunksizes": chunks, **filters}
