from pathlib import Path

import pytest
import xarray as xr
from matplotlib.figure import Figure

import drawn
from geoflow import cli
from geoflow.archive import netcdf
from geoflow.archive.trajectory_files import open_trajectory
from geoflow.cli.terminal import BAD_INPUT, DONE
from geoflow.errors import ArchiveError, InputError
from geoflow.plots import kinds


def test_a_dataset_says_what_can_be_drawn_of_it():
    assert {"overview", "stack"} <= set(kinds.names(drawn.walk()))
    assert kinds.names(drawn.comparison()) == ["work-precision"]
    with pytest.raises(InputError, match="no dataset that geoflow draws"):
        kinds.names(xr.Dataset())


def test_every_figure_is_in_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()
    table = page.split("| figure | of | shows |")[1]
    for name in kinds.KINDS:
        assert f"`{name}`" in table


def test_the_accessor_draws_what_the_function_draws():
    plot = drawn.walk().geoflow.plot
    assert "overview" in dir(plot)
    figure = plot.overview(width=4.0)
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[0] == 4.0
    assert isinstance(drawn.comparison().geoflow.plot.work_precision(), Figure)
    with pytest.raises(InputError, match="foo: kind='overview' has no such option; use width"):
        plot.overview(foo=3)
    with pytest.raises(AttributeError, match="no figure 'work_precision' of this dataset"):
        plot.work_precision()


def test_the_usual_figure_is_the_overview_of_a_walk_and_the_first_of_anything_else():
    def looks(figure):
        return [(ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) for ax in figure.axes]

    walk, comparison = drawn.walk().geoflow.plot, drawn.comparison().geoflow.plot
    usual = walk(width=4.0)
    assert looks(usual) == looks(walk.overview(width=4.0)) != looks(walk.stack(width=4.0))
    assert usual.get_size_inches()[0] == 4.0
    assert looks(comparison()) == looks(comparison.work_precision())
    with pytest.raises(InputError, match="no dataset that geoflow draws"):
        xr.Dataset().geoflow.plot()


def test_of_a_dataset_without_figures_none_is_listed():
    plot = xr.Dataset(attrs={"kind": "symmetry"}).geoflow.plot
    assert dir(plot) == []
    assert not hasattr(plot, "overview")
    with pytest.raises(AttributeError, match="no figure 'overview' of this dataset; geoflow draws"):
        plot.overview()


def test_no_figures_and_no_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for figures in ("", "overview", []):
        with pytest.raises(InputError, match=r"figures=.*; give a list of names, as \['overview'"):
            kinds.save_figures(drawn.walk(), "there", "walk", figures)
    for blank in ("", " "):
        with pytest.raises(InputError, match=f"folder='{blank}' names no folder"):
            kinds.save_figures(drawn.walk(), blank, "walk")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "iris_ff", "--figures"],
        ["compare", "iris_ff", "--solvers", "rkc", "--rtols", "1e-2", "--out", "c.nc", "--figures"],
        ["sweep", "iris_ff", "--seeds", "0", "--out"],
        ["plot", "walk.nc", "--out"],
        *([name, "walk.nc", "--out", "x.nc", "--figures"] for name in ("spectrum", "relaxation")),
    ],
)
def test_a_folder_without_a_name_is_refused_before_anything_is_done(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for blank in ("", " "):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*arguments, blank])
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {arguments[-1]}: '{blank}' names no folder" in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_plot_takes_an_analysis_and_names_of_figures(tmp_path, capsys):
    path = tmp_path / "compared.nc"
    netcdf.save_dataset(drawn.comparison(), path)
    arguments = ["plot", str(path), "--out", str(tmp_path), "--size", "column"]
    assert cli.main(arguments) == DONE
    assert capsys.readouterr().out.splitlines()[0].endswith("compared-work-precision.png")
    assert (tmp_path / "compared-work-precision.pdf").exists()
    assert cli.main([*arguments, "--kind", "stack"]) == BAD_INPUT
    assert "kind='stack' is no figure of this comparison" in capsys.readouterr().err


def test_an_analysis_is_opened_by_its_kind(tmp_path):
    path = tmp_path / "compared.nc"
    netcdf.save_dataset(drawn.comparison(), path)
    with netcdf.open_analysis(path, "comparison") as ds:
        xr.testing.assert_identical(ds.load(), drawn.comparison())
    with pytest.raises(ArchiveError, match="not a trajectory: it is of the kind 'comparison'"):
        open_trajectory(path)
    with pytest.raises(ArchiveError, match="of the kind 'comparison'; give one of the kind 'pca'"):
        netcdf.open_analysis(path, "pca")
    netcdf.save_dataset(xr.Dataset({"x": 1}), tmp_path / "other.nc")
    with pytest.raises(ArchiveError, match="no analysis of geoflow"):
        netcdf.open_analysis(tmp_path / "other.nc")
    with pytest.raises(ArchiveError, match=r"missing\.nc"):
        netcdf.open_analysis(tmp_path / "missing.nc")
