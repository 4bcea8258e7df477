"""What is said of a trajectory that does not fit together, where it is saved."""

import numpy as np
import pytest
import xarray as xr

import geoflow as gf
import references
from geoflow.archive import netcdf, trajectory_files
from geoflow.errors import ArchiveError


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


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("theta", "scale_factor", 0.5),
        ("theta", "missing_value", 1.0),
        ("norm", "scale_factor", 1.0),
        ("norm", "add_offset", 5.0),
        ("norm", "_FillValue", 0.0),
        ("norm", "missing_value", [1.0, 2.0]),
        ("norm", "dtype", "bool"),
        ("n_gradient", "_Unsigned", "true"),
        ("n_gradient", "_FillValue", 3),
        ("n_gradient", "missing_value", np.nan),
        ("tensor_name", "missing_value", "theta"),
    ],
)
def test_attributes_by_which_readers_change_values_are_refused(
    name, attribute, value, ds, tmp_path
):
    path = tmp_path / "walk.nc"
    gf.save_trajectory(ds, path)
    before = path.read_bytes()
    packed = ds.copy(deep=True)
    packed[name].attrs[attribute] = value
    said = rf"'{name}' has the attribute {attribute}, by which readers change its values\); leave"
    for save in (gf.save_trajectory, netcdf.save_dataset):
        with pytest.raises(ArchiveError, match=said):
            save(packed, path, overwrite=True)
    assert path.read_bytes() == before


def test_nan_may_stand_for_what_is_missing(ds, tmp_path):
    """As it does in files that xarray writes, read without a look at such attributes."""
    given = ds.copy(deep=True)
    given["norm"].attrs["_FillValue"] = np.nan
    given["angle"].attrs["missing_value"] = np.float64("nan")
    gf.save_trajectory(given, tmp_path / "walk.nc")
    with gf.open_trajectory(tmp_path / "walk.nc") as opened:
        xr.testing.assert_equal(opened.load(), ds)


def test_a_list_of_coordinates_is_the_files_own(ds, tmp_path):
    with pytest.raises(ArchiveError, match="'coordinates' is the file's own list of them"):
        gf.save_trajectory(ds.assign_attrs(coordinates="time"), tmp_path / "walk.nc")
    # What xarray has left in it is written again as it is.
    path = tmp_path / "walk.nc"
    gf.save_trajectory(ds, path)
    with xr.open_dataset(path, decode_coords=False) as undecoded:
        assert "coordinates" in undecoded.attrs
        gf.save_trajectory(undecoded.load(), tmp_path / "again.nc")
    with gf.open_trajectory(tmp_path / "again.nc") as opened:
        assert opened.coords.keys() == ds.coords.keys()


def test_text_in_blocks_is_written_without_a_warning(ds, tmp_path):
    gf.save_trajectory(ds.chunk(), tmp_path / "walk.nc")
    with gf.open_trajectory(tmp_path / "walk.nc") as opened:
        xr.testing.assert_equal(opened.load(), ds)


def test_pieces_are_of_one_length_and_not_much_longer_than_what_is_read_at_once():
    sizes = {
        "theta": (("snapshot", "parameter"), (2, 20_001), (1, 10_001)),
        "constraint_residual": (("step", "constraint"), (70_000, 2), (32_768, 2)),
        "few": (("step", "constraint"), (3, 2), (3, 2)),
        "time": (("step",), (70_000,), (65_536,)),
        "nothing": (("step",), (0,), None),
    }
    for name, (dims, shape, chunks) in sizes.items():
        found = trajectory_files.encoding(xr.Dataset({name: (dims, np.zeros(shape, "f4"))}))
        assert found[name].get("chunksizes") == chunks
