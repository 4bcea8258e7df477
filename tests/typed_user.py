"""What a user writes, with types: checked by mypy --strict, and run, in tests/test_types.py."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import geoflow as gf


def weights_only(theta: Tensor) -> Tensor:
    return theta[:8].square().sum()


def make(seed: int) -> gf.Problem:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 8, generator=generator)
    return gf.Problem.from_module(nn.Linear(8, 1), nn.functional.mse_loss, x, x[:, :1])


def walked(seed: int) -> xr.Dataset:
    problem = make(seed)
    level_set = gf.LevelSet(problem, level=None, level_rtol=1e-6)
    projection: gf.Projection = level_set.project(problem.theta0)
    flow = gf.RegularizingFlow(level_set, weights_only)
    loss, gradient = problem.value_and_gradient(projection.theta)
    norm: float = float(gradient.abs().max()) + float(loss)
    found: xr.Dataset = gf.walk(
        flow,
        solver="bdf",
        rtol=1e-4,
        stop=gf.Event("regularizer", value=norm * 0),
        t_end=0.01,
        max_evaluations=2e3,
        observables={"norm": lambda theta: float(theta.abs().max()), "sum": lambda t: t.sum()},
        snapshot_times=[0.0, 0.01],
    )
    return found


def prepared(seed: int) -> gf.experiments.PreparedExperiment:
    problem, x = make(seed), torch.ones(4, 8)
    return gf.experiments.PreparedExperiment(
        problem, observables={"test_loss": make(seed + 1)}, train=(x, x[:, :1]), test=(x, None)
    )


def of_arrays(archive: str) -> list[str]:
    """Several numbers are an array, a tensor or a list; solver and stop are texts or mappings."""
    problem = make(0)
    flow = gf.RegularizingFlow(gf.LevelSet(problem, problem.loss(problem.theta0)), weights_only)
    for level in (np.full(1, flow.level_set.level), torch.full((1,), flow.level_set.level)):
        gf.LevelSet(problem, level=level)
    times, solver = np.linspace(0.0, 0.01, 3), "exponential:max_vectors=12"
    ds = gf.walk(
        flow, solver, stop=None, t_end=1e-2, snapshot_times=times, archive=archive, overwrite=True
    )
    found = [str(ds.attrs["status"])]
    ds.close()
    stop = {"name": "Plateau", "window": 20.0, "rtol": 1e-3}
    ds = gf.resume(archive, flow, solver=solver, stop="Plateau:window=20", t_end=0.02)
    ds.close()
    ds = gf.resume(
        archive, flow, solver={"name": "exponential", "max_vectors": 12}, stop=stop, t_end=0.03
    )
    found.append(str(ds.attrs["status"]))
    ds.close()
    flow = gf.RegularizingFlow(gf.LevelSet(problem, 0.3), gf.regularizers.squared_norm)
    path = gf.regularization_path(flow, levels=np.geomspace(0.25, 0.2, 2))
    return [*found, str(path.attrs["status"])]


def main() -> str:
    gf.experiments.register("typed", make)
    ds = walked(0)
    module = nn.Linear(8, 1)
    gf.load_into(module, ds, snapshot=-1)
    defects: list[str] = [d.name for d in gf.diff(ds, ds) if not d.agrees]
    figure = gf.plots.overview(ds)
    figure.set_size_inches(4, 3)
    return f"{ds.attrs['status']} {defects}"
