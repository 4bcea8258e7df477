"""Other programs read the files: xarray, h5py, ncdump, Zarr, pandas, Dask, a CF checker."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import crashes
import geoflow as gf

DATA = Path(__file__).parents[1] / "data"


def test_plain_xarray_reads_it(path, ds):
    with xr.open_dataset(path) as plain:
        xr.testing.assert_identical(plain.load(), ds)


def test_h5py_reads_it(path, ds):
    # In a process of its own: h5py and netCDF4 bring an HDF5 library each.
    program = """
import sys, h5py
with h5py.File(sys.argv[1]) as file:
    assert file["angle"].attrs["units"] == b"degree"
    assert file.attrs["status"] == b"t_end"
    assert file["theta"].fletcher32
    assert file["theta"].chunks[0] == 1
    print(file["theta"][:].tolist())
"""
    command = [sys.executable, "-c", program, path]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == ds["theta"].values.tolist()


@pytest.mark.skipif(not shutil.which("ncdump"), reason="ncdump is not installed")
def test_ncdump_reads_it(path, ds):
    output = subprocess.run(["ncdump", path], capture_output=True, text=True, check=True).stdout
    assert 'angle:units = "degree" ;' in output
    assert f"step = {ds.sizes['step']} ;" in output


@pytest.mark.filterwarnings("ignore:.*consolidated.*", "ignore:.*Zarr.*specification.*")
def test_to_zarr_and_back_loses_nothing(path, ds, tmp_path):
    with gf.open_trajectory(path) as opened:
        opened.drop_encoding().to_zarr(tmp_path / "walk.zarr")
    with xr.open_zarr(tmp_path / "walk.zarr") as back:
        xr.testing.assert_identical(back.load(), ds)
        gf.save_trajectory(back, tmp_path / "back.nc")
    assert gf.validate(tmp_path / "back.nc") == []
    with gf.open_trajectory(tmp_path / "back.nc") as back:
        assert all(d.agrees for d in gf.diff(back, ds))


def test_pandas_takes_the_scalars(ds):
    frame = ds.drop_dims(["snapshot", "parameter", "tensor"]).to_dataframe()
    assert len(frame) == ds.sizes["step"]
    assert frame["angle"].tolist() == ds["angle"].values.tolist()


def test_a_folder_of_runs_opens_lazily_as_one_dataset(path, ds, tmp_path):
    for i in range(3):
        shutil.copy(path, tmp_path / f"{i}.nc")
    crashes.walk("rk4", tmp_path / "3.nc", t_end=0.3).close()

    def numbered(run):
        return run.assign_coords({d: np.arange(run.sizes[d]) for d in ("step", "snapshot")})

    with xr.open_mfdataset(
        str(tmp_path / "*.nc"),
        combine="nested",
        concat_dim="run",
        preprocess=numbered,
        join="outer",
        combine_attrs="drop_conflicts",
        data_vars="all",
        coords="all",
        compat="no_conflicts",
        chunks={},
    ) as runs:
        assert dict(runs["theta"].sizes) == {"run": 4, "snapshot": 21, "parameter": 4}
        assert all(variable.chunks for variable in runs.data_vars.values())
        assert np.array_equal(runs["theta"][1], ds["theta"])
        assert np.isnan(runs["angle"][3, -1])


def test_a_cf_checker_finds_nothing_to_correct(path, tmp_path):
    report = tmp_path / "report.json"
    program = Path(sys.executable).with_name("compliance-checker")
    command = [program, "--test", "cf:1.11", "--format", "json", "--output", report, path]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads(report.read_text())["cf:1.11"]
    assert result["scored_points"] == result["possible_points"]
    assert result["possible_points"] > 10
