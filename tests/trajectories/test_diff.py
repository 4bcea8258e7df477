"""Whether two trajectories agree."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

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
    close = tmp_path / "close.nc"
    gf.save_trajectory(other.assign_attrs(title=ds.attrs["title"]), close)
    for tolerance, left in (
        ([], {"theta", "angle"}),
        (["--rtol", "1e-6"], {"theta"}),
        (["--atol", "1e-6"], {"theta"}),
        (["--atol", "1e-2"], set()),
    ):
        status = cli.main(["diff", str(path), str(close), "--json", *tolerance])
        assert status == (terminal.DIFFERENT if left else terminal.DONE)
        content = json.loads(capsys.readouterr().out)
        assert content["agree"] == (not left)
        assert {n for n, d in content["differences"].items() if not d["agrees"]} == left


def test_other_shapes_and_variables_differ(ds):
    shorter = {d.name: d for d in gf.diff(ds, ds.isel(step=slice(0, 9)).drop_vars("norm"))}
    assert shorter["angle"].text == "shape (21,) against (9,)"
    assert shorter["norm"].text == "the second has none"
    assert "the first has none" in {d.text for d in gf.diff(ds.drop_vars("norm"), ds)}
    nan = invariants.spoil("angle", 2, np.nan)(ds)
    assert [d.largest for d in gf.diff(nan, ds, rtol=0.5) if d.name == "angle"] == [np.inf]
    with pytest.raises(InputError, match="rtol=-1"):
        gf.diff(ds, ds, rtol=-1)
    for value in (None, "1", 1j, [1]):
        for name in ("rtol", "atol"):
            with pytest.raises(InputError, match=f"{name}=.*; give a real number"):
                gf.diff(ds, ds, **{name: value})


def test_single_values_are_compared_as_such(ds):
    first, second = ds.isel(snapshot=0), ds.isel(snapshot=1)
    found = {d.name: d for d in gf.diff(first, second)}
    apart = float(second["snapshot_time"] - first["snapshot_time"])
    assert found["snapshot_time"].text == f"differs by {apart:.3g}"
    assert all(d.agrees for d in gf.diff(first, first))
    one, other = (xr.Dataset({"name": name}) for name in ("a", "b"))
    assert [d.text for d in gf.diff(one, other)] == ["differs"]
    one, other = (xr.Dataset({"x": ("n", x)}) for x in ([1.0, 1.0], [1.0 + 1e-9, 2.0]))
    assert [d.text for d in gf.diff(one, other, atol=1e-3)] == ["differs by 1, first at n 1"]
    # Of numbers whose difference no float32 holds.
    one, other = (xr.Dataset({"x": (("s", "p"), np.full((1, 2), x, "f4"))}) for x in (3e38, -3e38))
    assert [d.agrees for rtol in (1.5, 2.5) for d in gf.diff(one, other, rtol=rtol)] == [
        False,
        True,
    ]
    # Relative to the greater of the two, whichever comes first.
    one, other = (xr.Dataset({"x": ("n", [np.inf, x])}) for x in (1.0, 2.0))
    for pair in ((one, other), (other, one)):
        assert [d.agrees for rtol in (0.0, 0.5) for d in gf.diff(*pair, rtol=rtol)] == [False, True]


def test_numbers_of_attributes_are_compared_by_value(path, ds):
    # In memory they are Python's, from a file NumPy's.
    plain = ds.assign_attrs({k: getattr(v, "tolist", lambda v=v: v)() for k, v in ds.attrs.items()})
    assert type(plain.attrs["seed"]) is not type(ds.attrs["seed"])
    assert all(d.agrees for d in gf.diff(ds, plain))
    for x, y, text in (
        ([1, 2], np.array([1, 2]), None),
        (np.array([1, 2]), np.array([1, 2, 3]), "[1, 2] against [1, 2, 3]"),
        ([1], np.int64(1), None),
        (np.nan, np.float64("nan"), None),
        (np.int64(1), 2.0, "1 against 2.0"),
        ("1", 1, "'1' against 1"),
        (["a"], ["a", "b"], "['a'] against ['a', 'b']"),
    ):
        found = gf.diff(ds.assign_attrs(x=x), ds.assign_attrs(x=y))
        assert [d.text for d in found if not d.agrees] == ([] if text is None else [text])


def of_theta(ds, first, second, snapshot=1):
    """Two walks that are one but for θ of a snapshot."""
    found = []
    for values in (first, second):
        theta = ds["theta"].copy(deep=True)
        theta[snapshot] = np.resize(np.asarray(values), theta.shape[1])
        found.append(ds.assign(theta=theta))
    return found


@pytest.mark.parametrize(
    ("first", "second", "rtol", "text"),
    [
        # Whose squares, or whose differences' squares, no float holds.
        ([1e-170, 0, 0], [2e-170, 0, 0], 0.0, "differs by"),
        ([5e-324, 0, 0], [0, 0, 0], 0.0, "differs by"),
        ([1, 2, 1e-200], [1, 2, 2e-200], 0.0, "differs by"),
        ([1, 2, 1e-200], [1, 2, 2e-200], 1e-12, "agrees to"),
        ([1e-170, 0, 0], [1e-170 * (1 + 1e-7), 0, 0], 1e-6, "agrees to"),
        ([1e200, 2e200, 3e200], [1e200, 2e200, 3.0000001e200], 1e-3, "agrees to"),
        ([1e200, 2e200, 3e200], [1e200, 2e200, 3.0000001e200], 1e-9, "differs by"),
        ([1, 2, 3], [2, 4, 6], 0.5, "agrees to"),
        # What is in both NaN, or infinite, says nothing of the rest.
        ([np.nan, 1, 2], [np.nan, 1 + 1e-12, 2], 1e-6, "agrees to"),
        ([np.nan, 1, 2], [np.nan, 1 + 1e-3, 2], 1e-6, "differs by"),
        ([np.nan, 1, 2], [np.nan, 1, 2], 0.0, "identical"),
        ([np.inf, 1, 2], [np.inf, 1 + 1e-12, 2], 1e-6, "agrees to"),
        ([np.inf, 1, 2], [np.inf, 5, 9], 1e-3, "differs by"),
        ([np.inf, 1, 2], [-np.inf, 1, 2], 10.0, "differs by inf"),
        ([np.inf, 1, 2], [0, 1, 2], 10.0, "differs by inf"),
        ([np.nan, 1, 2], [0, 1, 2], 10.0, "differs by inf"),
    ],
)
def test_theta_is_compared_bit_by_bit_and_by_its_norm_whatever_its_size(
    first, second, rtol, text, ds, tmp_path
):
    a, b = of_theta(ds, first, second)
    for one, other in ((a, b), (b, a)):
        (found,) = (d for d in gf.diff(one, other, rtol=rtol) if d.name == "theta")
        assert found.text.startswith(text)
        assert found.agrees == (not text.startswith("differs"))
        if text != "identical":
            assert found.text.endswith("first at snapshot 1")
            assert found.largest > 0
