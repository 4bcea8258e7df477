"""Whether two trajectories agree."""

import json
from pathlib import Path

import numpy as np
import pytest

import crashes
import geoflow as gf
import invariants
from geoflow import cli
from geoflow.cli import terminal
from geoflow.errors import InputError

DATA = Path(__file__).parents[1] / "data"


def test_two_walks_of_the_same_settings_are_identical(path, ds, tmp_path, capsys):
    again = tmp_path / "again.nc"
    with crashes.walk("rk4", again) as other:
        differences = {d.name: d for d in gf.diff(ds, other)}
    assert differences.pop("wall_time").text == "not compared"
    assert {d.text for d in differences.values()} == {"identical"}
    assert cli.main(["diff", str(path), str(again)]) == 0
    assert "theta" in capsys.readouterr().out


def test_a_difference_is_named_with_its_place_and_size(path, ds, tmp_path, capsys):
    other = invariants.spoil("theta", (3, 1), float(ds["theta"][3, 1]) + 1e-3)(ds)
    other = invariants.spoil("angle", 5, float(ds["angle"][5]) * (1 + 1e-9))(other).assign_attrs(
        title="?"
    )
    wrong = {d.name: d for d in gf.diff(ds, other) if not d.agrees}
    assert set(wrong) == {"theta", "angle", "attribute title"}
    assert wrong["theta"].text == "differs by 0.001, first at snapshot 3"
    assert wrong["theta"].largest == pytest.approx(1e-3)
    assert "first at step 5" in wrong["angle"].text
    wrong = {d.name for d in gf.diff(ds, other, rtol=1e-6) if not d.agrees}
    assert wrong == {"theta", "attribute title"}
    gf.save_trajectory(other, tmp_path / "other.nc")
    arguments = ["diff", str(path), str(tmp_path / "other.nc"), "--json"]
    assert cli.main(arguments) == terminal.DIFFERENT
    content = json.loads(capsys.readouterr().out)
    assert not content["agree"]
    assert content["differences"]["theta"]["result"] == "differs by 0.001, first at snapshot 3"


def test_other_shapes_and_variables_differ(ds):
    shorter = {d.name: d for d in gf.diff(ds, ds.isel(step=slice(0, 9)).drop_vars("norm"))}
    assert shorter["angle"].text == "shape (21,) against (9,)"
    assert shorter["norm"].text == "the second has none"
    nan = invariants.spoil("angle", 2, np.nan)(ds)
    assert [d.largest for d in gf.diff(nan, ds, rtol=0.5) if d.name == "angle"] == [np.inf]
    with pytest.raises(InputError, match="rtol=-1"):
        gf.diff(ds, ds, rtol=-1)
