"""What a user writes, with types: checked by mypy --strict, and run, in tests/test_types.py."""

from __future__ import annotations

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
        observables={"norm": lambda theta: float(theta.abs().max())},
        snapshot_times=[0.0, 0.01],
    )
    return found


def main() -> str:
    gf.experiments.register("typed", make)
    ds = walked(0)
    module = nn.Linear(8, 1)
    gf.load_into(module, ds, snapshot=-1)
    defects: list[str] = [d.name for d in gf.diff(ds, ds) if not d.agrees]
    figure = gf.plots.overview(ds)
    figure.set_size_inches(4, 3)
    return f"{ds.attrs['status']} {defects}"
