"""What is said of geoflow's own files that are neither a walk nor a path."""

import netCDF4
import pytest
import torch

import geoflow as gf
from geoflow import cli
from geoflow.analysis.components.pca import along
from geoflow.analysis.landscape import slices
from geoflow.archive import netcdf
from geoflow.cli.terminal import BAD_INPUT, DONE
from geoflow.errors import ArchiveError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    theta0 = torch.tensor([1.0, 0.5, 0.6], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: (t - 1).square().sum(), theta0)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    walk = gf.walk(flow, stop=None, t_end=0.3)
    slices.on_plane(walk, flow, points=2, archive=folder / "slice.nc")
    netcdf.save_dataset(along([walk]), folder / "pca.nc")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["slice", "pca"])
def test_validate_says_in_one_line_what_it_is(files, kind, capsys):
    path = files[kind]
    (said,) = gf.validate(path)
    assert said == f"it is of the kind {kind!r}; give the file of a walk or of a path"
    assert cli.main(["validate", str(path)]) == BAD_INPUT
    assert capsys.readouterr().out.splitlines() == [f"{path}: {said}"]
    with pytest.raises(ArchiveError, match=f"it is of the kind '{kind}'; give the file of a walk"):
        gf.open_trajectory(path)
    # Analyses have no seal, which is no damage of theirs.
    with pytest.raises(ArchiveError, match=f"it is of the kind '{kind}'; give the file of a walk"):
        gf.resume(path)


@pytest.mark.parametrize("mark", netcdf.MARKS)
def test_what_a_file_says_it_is_is_a_text(mark, files, tmp_path, capsys):
    path = tmp_path / "odd.nc"
    path.write_bytes(files["pca"].read_bytes())
    with netCDF4.Dataset(path, "a") as file:
        file.setncattr(mark, [1.0, 1.1])
    commands = (["info"], ["plot", "--out", str(tmp_path / "figures")], ["validate"])
    for command, *options in (*commands, ["report", "--out", str(tmp_path / "page.html")]):
        assert cli.main([command, str(path), *options]) == BAD_INPUT
        said = capsys.readouterr()
        assert f"its attribute {mark} is no text" in said.out + said.err


def test_a_list_in_the_place_of_a_text_is_no_text_to_a_figure(files, tmp_path, capsys):
    path, out = tmp_path / "odd.nc", str(tmp_path / "figures")
    path.write_bytes(files["pca"].read_bytes())
    with netCDF4.Dataset(path, "a") as file:
        file.setncattr("scaling", [1.0, 1.1])
        file.setncattr("of_the_users_own", [1.0, 2.0])
    assert cli.main(["plot", str(path), "--out", out]) == BAD_INPUT
    assert "odd.nc is not what can be drawn (there is no 'scaling')" in capsys.readouterr().err
    with netCDF4.Dataset(path, "a") as file:
        file.setncattr("scaling", "none")
    assert cli.main(["plot", str(path), "--out", out]) == DONE
