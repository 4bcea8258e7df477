"""The flow of an archived walk, made again from what the file says of itself."""

from __future__ import annotations

import json

import torch
import xarray as xr

from geoflow import regularizers
from geoflow.errors import InputError
from geoflow.experiments.registry import get
from geoflow.flows import RegularizingFlow
from geoflow.level_set import LevelSet
from geoflow.problem import Problem
from geoflow.trajectory import DTYPES


def rebuild(ds: xr.Dataset, *, device: torch.device | str = "cpu") -> RegularizingFlow:
    """Make the flow of a walk again: data, network, level and R, without training.

    The flow's ``problem.theta0`` is the experiment's untrained start; the walk's points are in
    ``ds["theta"]``.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory of one of the experiments, in schema 1.0.
    device : torch.device or str
        Where to evaluate; it need not be that of the walk.

    Raises
    ------
    InputError
        The walk is of no experiment, of an R of the user's own, or of other data than are found
        here now.
    DataError
        The data set's files are missing, truncated or altered.
    """
    name = ds.attrs["experiment"]
    if not name:
        raise InputError(
            "the walk is of no experiment, so its loss is not known here; make its flow in Python"
        )
    regularizer = regularizers.get(ds.attrs["regularizer_name"])
    experiment = get(name)
    provenance = json.loads(ds.attrs["config"])["provenance"]
    dtype = DTYPES[ds.attrs["dtype"]]
    start = experiment.start(
        int(ds.attrs["seed"]), data=provenance.get("data"), dtype=dtype, device=device
    )
    problem = Problem.from_module(
        start.module.eval(),
        experiment.loss_fn,
        *start.train,
        batch_size=experiment.batch_size,
        dtype=dtype,
        device=device,
    )
    if problem.data_sha256 != ds.attrs["data_sha256"]:
        raise InputError(
            f"the training data of {name}, seed {ds.attrs['seed']}, are not those of the walk "
            f"(from {provenance.get('data_source')}; here {start.source}); use the same data"
        )
    level_set = LevelSet(problem, float(ds.attrs["level"]), float(ds.attrs["level_rtol"]))
    return RegularizingFlow(level_set, regularizer)
