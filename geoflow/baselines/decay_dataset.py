"""The dataset of weight-decay trainings: assembled, written, opened, and a penalty chosen by it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn

from geoflow.archive import netcdf
from geoflow.errors import ArchiveError, InputError
from geoflow.experiments import training
from geoflow.experiments.registry import Experiment
from geoflow.problems.parts import laid_out
from geoflow.system import files, kinds, translation

SCHEMA_VERSION = "1.0"

A_BASELINE = "what gf.baselines.weight_decay returned"
# Of θ.
DIMENSIONS = ("penalty", "run", "parameter")
# What files of one baseline have in common, in versions that recorded it.
OF_ALL = (
    *("experiment", "epochs", "dtype", "data", "n_train", "n_test", "validation"),
    *("learning_rate", "eps", "batch_size"),
)

Curve = NDArray[np.float64]


def to_dataset(
    experiment: Experiment,
    module: nn.Module,
    coordinates: Mapping[str, list[Any]],
    curves: Mapping[str, list[list[Curve]]],
    thetas: list[NDArray[np.generic]],
    config: Mapping[str, Any],
) -> xr.Dataset:
    """Assemble the dataset of :func:`geoflow.baselines.decay_training.weight_decay`.

    Parameters
    ----------
    experiment : Experiment
        Gives the names of network and loss.
    module : torch.nn.Module
        Gives the layout of θ.
    coordinates : mapping of str to list
        ``penalty``, ``run`` and ``epoch``.
    curves : mapping of str to list of list of array, shape (epoch,)
        By name, penalty and run.
    thetas : list of array, shape (P,)
        The ends, run by run of one penalty after the other.
    config : mapping
        Attributes.
    """
    n_penalties, n_runs = len(coordinates["penalty"]), len(coordinates["run"])
    theta = np.stack(thetas).reshape(n_penalties, n_runs, -1)
    wanted = ["train_loss", "test_loss", "validation_loss"]
    if experiment.classification:
        wanted += ["train_accuracy", "test_accuracy", "validation_accuracy"]
    variables: dict[str, Any] = {}
    for name in wanted:
        nothing = np.full((n_penalties, n_runs, len(coordinates["epoch"])), np.nan)
        values = np.array(curves[name]) if name in curves else nothing
        text = name.replace("_", " ") + (" without the penalty" if name.endswith("loss") else "")
        if name.startswith("validation"):
            text += ", of trainings without that part"
        variables[name] = (("penalty", "run", "epoch"), values, {"long_name": text, "units": "1"})
    variables["regularizer"] = (
        ("penalty", "run"),
        np.square(theta.astype(float)).sum(axis=2),
        {"long_name": "squared norm of all parameters at the end", "units": "1"},
    )
    variables["theta"] = (
        DIMENSIONS,
        theta,
        {"long_name": "parameters at the end, flat", "units": "1"},
    )
    specs = laid_out(dict(module.named_parameters()))
    units = {"units": "1"}
    coords = {
        "penalty": ("penalty", coordinates["penalty"], units | {"long_name": "weight decay"}),
        "run": ("run", coordinates["run"], units | {"long_name": "seed of the run"}),
        "epoch": ("epoch", coordinates["epoch"], units | {"long_name": "epochs of training"}),
        "tensor_name": (
            "tensor",
            np.array([s.name for s in specs], dtype=object),
            units | {"long_name": "name of the parameter tensor"},
        ),
        "tensor_offset": (
            "tensor",
            [s.offset for s in specs],
            units | {"long_name": "first index of the tensor in theta"},
        ),
        "tensor_shape": (
            "tensor",
            np.array([str(list(s.shape)) for s in specs], dtype=object),
            units | {"long_name": "shape of the tensor, a JSON list"},
        ),
    }
    note = ", on synthetic images, not CIFAR-10" if config["data"] == "synthetic" else ""
    attributes = {
        "geoflow_baseline": SCHEMA_VERSION,
        "geoflow_version": version("geoflow"),
        "Conventions": "CF-1.11",
        "kind": "baseline",
        "title": f"{experiment.name}: training with weight decay{note}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "experiment": experiment.name,
        "network": experiment.network,
        "loss": experiment.loss_name,
        "optimizer": "Adam",
        "learning_rate": training.LEARNING_RATE,
        "eps": training.EPS,
        "batch_size": training.BATCH_SIZE,
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "xarray_version": xr.__version__,
    } | {k: "" if v is None else v for k, v in config.items()}
    return xr.Dataset(variables, coords, attributes)


def best_penalty(ds: xr.Dataset, by: str = "validation_loss") -> float:
    """Return the penalty whose runs do best at their last epoch, on average.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`weight_decay`.
    by : str
        A loss (the least counts) or an accuracy (the greatest). ``test_loss`` and
        ``test_accuracy`` are the paper's way: they choose on the set they report.

    Raises
    ------
    InputError
        No baseline, no such curve, or no value in it.
    """
    kinds.check_dataset(ds, "penalty", "run", "epoch", give=A_BASELINE)
    kinds.check_kind(by, str, "by", "the name of a loss or an accuracy")
    if by not in ds or not by.endswith(("_loss", "_accuracy")):
        raise InputError(f"by={by!r} is not a loss or an accuracy of this baseline")
    values = ds[by].isel(epoch=-1).mean("run", skipna=False)
    if not bool(np.isfinite(values).any()):
        raise InputError(f"by={by!r}: it has no values; train with validation=0.2, for example")
    chosen = values.idxmin("penalty") if by.endswith("_loss") else values.idxmax("penalty")
    return float(chosen)


def save_weight_decay(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a baseline to a netCDF-4 file, whole or not at all.

    Raises
    ------
    InputError
        No baseline, or a part of one without its dimensions; or the file is there already, or its
        folder cannot be written.
    ArchiveError
        Writing failed; ``path`` is as it was.
    """
    kinds.check_dataset(ds, "theta", give=A_BASELINE)
    if ds.attrs.get("geoflow_baseline") != SCHEMA_VERSION:
        raise InputError(f"ds is no weight-decay baseline; give {A_BASELINE}")
    if ds["theta"].dims != DIMENSIONS:
        raise InputError(
            f"ds: its theta has the dimensions {ds['theta'].dims}, not {DIMENSIONS}; select with "
            "lists, as in ds.sel(penalty=[0.1])"
        )
    encoding: dict[str, dict[str, Any]] = {
        str(name): {"zlib": True, "complevel": 1, "shuffle": True}
        for name, variable in ds.variables.items()
        if variable.dtype.kind in "fi"
    }
    encoding["theta"]["chunksizes"] = (1, 1, ds.sizes["parameter"])
    netcdf.save_dataset(ds, path, overwrite=overwrite, encoding=encoding)


def open_weight_decay(paths: str | Path | Sequence[str | Path]) -> xr.Dataset:
    """Open the file of a baseline, or several that differ in their penalties, as one dataset.

    Raises
    ------
    InputError
        No names of files.
    ArchiveError
        No such file, not a baseline, or files that do not belong together, as two that have a
        penalty in common.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    give = "the name of a file, or several in a list"
    kinds.check_kind(paths, Iterable, "paths", give)
    given = kinds.listed(paths, "paths", give)
    several = [kinds.as_path(path, "paths") for path in given]
    if not several:
        raise InputError("paths is empty; name at least one file")
    datasets = []
    for path in several:
        if not files.is_file(path):
            raise ArchiveError(f"{path} is not a file; name one of geoflow baseline")
        with translation.reading(path):
            ds = netcdf.open_lazily(netcdf.checked(Path(path)))
        if ds.attrs.get("geoflow_baseline") != SCHEMA_VERSION:
            ds.close()
            raise ArchiveError(f"{path} is not a weight-decay baseline of geoflow")
        datasets.append(ds)
    first = datasets[0]
    for path, ds in zip(several, datasets, strict=True):
        same = all(ds.attrs.get(name) == first.attrs.get(name) for name in OF_ALL)
        if not same or not all(first[k].equals(ds[k]) for k in ("run", "epoch")):
            raise ArchiveError(
                f"{path} is not of the same experiment, runs, epochs, data and part held out"
            )
    _check_apart(several, datasets)
    if len(datasets) == 1:
        return first
    joined = xr.concat(datasets, "penalty", data_vars="minimal", combine_attrs="override")
    return joined.sortby("penalty")


def _check_apart(paths: Sequence[Path], datasets: Sequence[xr.Dataset]) -> None:
    """Refuse files that have a penalty in common, which would be two of one name."""
    there: dict[float, Path] = {}
    for path, ds in zip(paths, datasets, strict=True):
        for penalty in ds["penalty"].values.tolist():
            if penalty in there:
                raise ArchiveError(
                    f"{path} has the penalty {penalty:g}, as {there[penalty]} has; give files that "
                    "differ in their penalties, each once"
                )
            there[penalty] = path
