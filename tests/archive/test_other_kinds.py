"""What is said of geoflow's own files that are neither a walk nor a path."""

import pytest
import torch

import geoflow as gf
from geoflow import cli
from geoflow.analysis.components.pca import along
from geoflow.analysis.landscape import slices
from geoflow.archive import netcdf
from geoflow.cli.terminal import BAD_INPUT
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
