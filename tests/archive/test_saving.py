"""What is said of a trajectory that does not fit together, where it is saved."""

import numpy as np
import pytest

import geoflow as gf
import references


@pytest.fixture(scope="module")
def ds():
    flow = references.ellipsoid()
    return gf.walk(flow, t_end=0.1, stop=None, observables={"norm": lambda t: float(t.norm())})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda ds: ds.assign(theta=ds["theta"].astype("float32")),
            "theta is float32, not float64 as its config has it",
        ),
        (lambda ds: ds.assign(theta=ds["theta"] * np.nan), "theta is not finite at snapshot 0"),
        (lambda ds: ds.assign(theta=ds["theta"].chunk() * np.inf), "theta is not finite"),
        (lambda ds: ds.drop_vars("norm"), "the observables are not those that its config names"),
        (lambda ds: ds.assign(train_loss=ds["train_loss"] + 1), "level_residual is not train_loss"),
    ],
)
def test_what_validate_will_find_is_said_in_one_line(change, said, ds, tmp_path, capsys):
    path = tmp_path / "walk.nc"
    with_attributes = change(ds)
    for name, variable in ds.variables.items():
        if name in with_attributes.variables:
            with_attributes[name].attrs |= variable.attrs
    gf.save_trajectory(with_attributes, path)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    found = gf.validate(path)
    assert found
    assert said in found[0]
    assert line == f"{path}: gf.validate will find that {'; that '.join(found)}\n"


def test_of_a_walk_that_fits_nothing_is_said(ds, tmp_path, capsys):
    for given in (ds, ds.isel(snapshot=[0, -1]), ds.assign(theta=ds["theta"].chunk())):
        gf.save_trajectory(given, tmp_path / "walk.nc", overwrite=True)
        assert gf.validate(tmp_path / "walk.nc") == []
    assert capsys.readouterr().err == ""
