"""Files that are good pass, whichever program wrote them; what is written is what can be opened."""

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

import geoflow as gf
from geoflow.archive import netcdf, structure
from geoflow.archive.heap import Unsound
from geoflow.errors import ArchiveError

TEXT = h5py.string_dtype()


def test_attributes_without_values_pass(tmp_path):
    path = tmp_path / "a.nc"
    empty = xr.Dataset({"x": ("n", [1.0], {"e": []})}, attrs={"kind": "test", "none": []})
    empty.to_netcdf(path)
    with h5py.File(path, "r+") as file:
        file.attrs["e1"] = h5py.Empty(TEXT)
        file.attrs["e2"] = h5py.Empty("S1")
        file.attrs["e3"] = np.array([], TEXT)
        file.attrs["e4"] = ""
    with netcdf.open_analysis(path) as ds:
        assert ds.attrs["none"].shape == (0,)
        assert ds["x"].attrs["e"].shape == (0,)
        assert ds.attrs["e4"] == ""


def test_hundreds_of_attributes_that_are_not_ascii_pass(tmp_path):
    path = tmp_path / "a.nc"
    texts = {f"a{i}": f"ü{i}" for i in range(300)}
    xr.Dataset(attrs={"kind": "test", **texts}).to_netcdf(path)
    with netcdf.open_analysis(path) as ds:
        assert ds.attrs == {"kind": "test", **texts}


@pytest.mark.parametrize("fill", [None, "none"])
@pytest.mark.parametrize("packed", [False, True])
def test_texts_that_netcdf_packs_pass(packed, fill, tmp_path):
    """The elements are deflated and shuffled, by netCDF itself; the texts are not."""
    path = tmp_path / "a.nc"
    texts = np.array([f"text {i}" for i in range(1000)], object)
    with netCDF4.Dataset(path, "w") as file:
        file.kind = "test"
        file.createDimension("n", None)
        how = {"zlib": packed, "shuffle": packed, "chunksizes": (300,), "fill_value": fill}
        for name in ("first", "second"):
            file.createVariable(name, str, ("n",), **how)[:] = texts
    with netcdf.open_analysis(path) as ds:
        assert ds["second"].values.tolist() == texts.tolist()


def test_attributes_written_over_again_and_again_pass(path, tmp_path):
    """What they were before is there still, and points at what is not."""
    changed = tmp_path / "a.nc"
    changed.write_bytes(path.read_bytes())
    for i in range(8):
        with h5py.File(changed, "r+") as file:
            file.attrs["tags"] = ["x" * (50 - 5 * i)] * (1 + i % 2)
            file["theta"].attrs["note"] = "ü" * (100 - 11 * i)
    with gf.open_trajectory(changed) as ds:
        assert ds["theta"].attrs["note"] == "ü" * 23


def test_text_that_is_much_longer_than_its_file_is_refused(tmp_path, monkeypatch):
    """It is read as soon as the file is opened."""
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.kind = "test"
        file.createDimension("n", 2**20)
        how = {"zlib": True, "shuffle": False, "complevel": 9, "chunksizes": (2**20,)}
        file.createVariable("s", "S1", ("n",), **how)[:] = np.zeros(2**20, "S1")
    structure.check(path)
    monkeypatch.setattr(structure, "MOST_CHARACTERS", 2**19)
    with pytest.raises(Unsound, match=r"its texts have 1.05e\+06 characters"):
        structure.check(path)


# What is written is what can be opened.


@pytest.mark.parametrize(
    ("attribute", "message"),
    [({"long": "x" * 2**21}, "attribute 'long' is too long"), ({"NAME": "x"}, "name in use")],
)
def test_what_could_not_be_opened_replaces_nothing(attribute, message, ds, tmp_path):
    path = tmp_path / "walk.nc"
    gf.save_trajectory(ds, path)
    before = path.read_bytes()
    for save in (gf.save_trajectory, netcdf.save_dataset):
        with pytest.raises(ArchiveError, match=rf"writing .* failed \(.*{message}.*\); leave out"):
            save(ds.assign_attrs(attribute), path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    gf.save_trajectory(ds.assign_attrs(notes=[]), path, overwrite=True)
    with gf.open_trajectory(path) as opened:
        assert opened.attrs["notes"].shape == (0,)
