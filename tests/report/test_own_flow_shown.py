"""Walks of a flow that records neither R nor an angle, together and shown."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import geoflow as gf
import own_flow
from geoflow import cli, plots
from geoflow.manifold.protocol import Scalar
from geoflow.plots.ensembles import sweep_stack
from geoflow.report.page import report
from geoflow.sweeps import ensemble


class SilentFlow(own_flow.GeodesicFlow):
    scalars: ClassVar = {}

    def values(self, state: own_flow.GeodesicState) -> dict[str, float]:
        return {}


class WordyFlow(own_flow.GeodesicFlow):
    scalars: ClassVar = {f"theta_{i}": Scalar(f"parameter {i}", "1") for i in range(6)}

    def values(self, state: own_flow.GeodesicState) -> dict[str, float]:
        return {f"theta_{i}": float(state.theta[i]) for i in range(6)}


def of(kind: type[own_flow.GeodesicFlow]) -> xr.Dataset:
    flow, _ = own_flow.great_circle()
    times = [0.0, 0.5, 1.0, 1.5]
    made = kind(flow.level_set, flow.momentum)
    return gf.walk(made, "dopri5", stop=None, t_end=1.5, rtol=1e-6, snapshot_times=times)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for seed, end in enumerate((2.0, 1.5)):
        times = [0.0, 0.5, 1.0, end]
        own_flow.walk(folder / f"seed-000{seed}.nc", snapshot_times=times, t_end=end).close()
    return folder


@pytest.fixture
def walks(folder: Path) -> Iterator[list[xr.Dataset]]:
    opened = [gf.open_trajectory(path) for path in sorted(folder.glob("*.nc"))]
    yield opened
    for ds in opened:
        ds.close()


def test_an_ensemble_has_what_the_flow_records(folder: Path, walks: list[xr.Dataset]) -> None:
    together = gf.open_sweep(folder, n=31)
    assert {"energy", "level_residual", "arc_length", "n_gradient"} <= set(together.data_vars)
    assert not {"angle", "regularizer", "train_loss"} & set(together.data_vars)
    assert together["time"].values[[0, -1]].tolist() == [0.0, 1.5]
    for row, ds in enumerate(walks):
        expected = np.interp(together["time"], ds["time"], ds["energy"])
        np.testing.assert_array_equal(together["energy"].values[row], expected)


def test_without_an_angle_nothing_is_along_it(folder: Path) -> None:
    with pytest.raises(gf.InputError, match=r"^along='angle': the walks record no angle"):
        gf.open_sweep(folder, along="angle")


def test_a_scalar_of_ones_own_by_step_is_on_the_axis(walks: list[xr.Dataset]) -> None:
    given = [ds.assign(double=2 * ds["energy"]) for ds in walks]
    found = ensemble.resample(given, n=11)
    np.testing.assert_allclose(found["double"], 2 * found["energy"])


def drawn(figure: plt.Figure) -> list[str]:
    return [ax.get_ylabel() for ax in figure.axes]


def test_figures_show_what_the_flow_records(folder: Path, walks: list[xr.Dataset]) -> None:
    residual = "$|L-c|\\,/\\,c$"
    assert drawn(plots.overview(walks[0])) == ["energy", residual]
    assert drawn(plots.paper_stack(walks)) == ["energy"]
    assert drawn(plots.ensembles.ensemble(gf.open_sweep(folder))) == ["energy"]
    assert drawn(sweep_stack(walks, ensemble.resample(walks))) == ["energy"]


def test_each_of_many_scalars_has_a_panel() -> None:
    names = [f"theta {i}" for i in range(6)]
    for width in (3.5, 7.0):
        assert sorted(drawn(plots.overview(of(WordyFlow), width))) == names


def test_a_flow_without_scalars_is_refused_in_a_line() -> None:
    ds = of(SilentFlow)
    for figure in (plots.overview, plots.paper_stack):
        with pytest.raises(gf.InputError, match=r"no scalar and no test loss .* SilentFlow\)"):
            figure(ds)


def test_a_page_of_them(folder: Path, tmp_path: Path) -> None:
    silent = tmp_path / "silent.nc"
    gf.save_trajectory(of(SilentFlow), silent)
    sections = report([folder, silent], tmp_path / "page.html")
    assert [section.title for section in sections] == [
        "walk: 1 walk, dopri5, rtol 1e-06, float64, SilentFlow",
        "walk: 2 walks, dopri5, rtol 1e-09, float64, GeodesicFlow",
    ]
    ids = [part.id for section in sections for part in section.parts]
    assert "stack" not in ids
    assert "stack-1" in ids
    heads = [part.head for s in sections for part in s.parts if part.id.startswith("runs")]
    assert heads[0] == ["walk", "level c", "end", "evaluations", "time / s"]
    assert heads[1][3:6] == ["energy", "evaluations", "worst |L − c|/c"]
    table = next(p for p in sections[1].parts if p.id == "penalties-1")
    assert table.head[:3] == ["", "runs", "‖θ‖²"]


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (folder, folder / "seed-0000.nc"):
        assert cli.main(["plot", str(given), "--out", str(tmp_path / "figures")]) == 0
    page = str(tmp_path / "page.html")
    assert cli.main(["report", str(folder), "--out", page]) == 0
    assert "Traceback" not in capsys.readouterr().err
