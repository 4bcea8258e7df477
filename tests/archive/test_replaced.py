"""What was opened lazily gives the values of its own file, or says that it cannot."""

import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import geoflow as gf
import references
from geoflow.archive import netcdf, seal
from geoflow.errors import ArchiveError, DamageError

REPLACED = r"the values of 'theta' cannot be read \(it was replaced or changed since it was opened"


@pytest.fixture(scope="module")
def walks():
    """Two walks of one length, so that their files have one size but for what is compressed."""
    return [gf.walk(references.ellipsoid(), t_end=t_end, stop=None) for t_end in (0.1, 0.3)]


@pytest.fixture
def opened(walks, tmp_path):
    path = tmp_path / "walk.nc"
    gf.save_trajectory(walks[0], path)
    with gf.open_trajectory(path) as ds:
        yield path, ds


def closed_meanwhile(path, ds):
    """As xarray closes a file where more are opened than it keeps open."""
    with xr.set_options(file_cache_maxsize=1), netcdf.open_lazily(netcdf.checked(path)):
        pass
    return ds


def test_a_file_that_is_open_gives_what_it_held(opened, walks):
    path, ds = opened
    gf.save_trajectory(walks[1], path, overwrite=True)
    assert np.array_equal(ds["theta"], walks[0]["theta"])


def test_one_that_was_closed_meanwhile_is_opened_again(opened, walks):
    path, ds = opened
    assert np.array_equal(closed_meanwhile(path, ds)["theta"], walks[0]["theta"])


@pytest.mark.parametrize("how", ["saved", "renamed", "in place"])
def test_another_file_in_its_place_is_not_read(how, opened, walks, tmp_path):
    path, ds = opened
    other = tmp_path / "other.nc"
    gf.save_trajectory(walks[1], other)
    if how == "saved":
        gf.save_trajectory(walks[1], path, overwrite=True)
    elif how == "renamed":
        # Of one time, as files from an archive of whole seconds have it.
        found = path.stat()
        os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
        other.replace(path)
    else:
        shutil.copyfile(other, path)
    with pytest.raises(DamageError, match=REPLACED):
        _ = closed_meanwhile(path, ds)["theta"].values
    with gf.open_trajectory(path) as again:
        assert np.array_equal(again["theta"], walks[1]["theta"])


def test_a_copy_of_the_same_bytes_is(opened, walks, tmp_path):
    """Such as one that was brought back, or one that was touched lest it be removed."""
    path, ds = opened
    shutil.copyfile(path, tmp_path / "copy.nc")
    (tmp_path / "copy.nc").replace(path)
    assert np.array_equal(closed_meanwhile(path, ds)["theta"], walks[0]["theta"])
    os.utime(path, ns=(0, 0))
    assert np.array_equal(closed_meanwhile(path, ds)["angle"], walks[0]["angle"])


def test_a_copy_that_is_damaged_is_not(opened):
    path, ds = opened
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert seal.defect(path) == seal.BROKEN
    with pytest.raises(DamageError, match=REPLACED):
        _ = closed_meanwhile(path, ds)["theta"].values


@pytest.mark.slow
def test_another_process_reads_the_file_that_was_opened(opened, walks, tmp_path):
    path, ds = opened
    program = """
import pickle, sys
import geoflow
with open(sys.argv[1], "rb") as file:
    ds = pickle.load(file)
try:
    print(ds["theta"].values[-1].tolist())
except geoflow.errors.DamageError as error:
    print(error)
"""
    given = tmp_path / "given"
    given.write_bytes(pickle.dumps(ds))

    def read():
        command = [sys.executable, "-c", program, given]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    assert read().strip() == str(walks[0]["theta"].values[-1].tolist())
    gf.save_trajectory(walks[1], path, overwrite=True)
    assert "it was replaced or changed since it was opened; open it again" in read()


def test_a_file_replaced_between_the_look_and_the_opening_is_not_opened(opened, walks):
    path, _ = opened
    checked = netcdf.checked(path)
    gf.save_trajectory(walks[1], path, overwrite=True)
    with pytest.raises(ValueError, match="it was replaced or changed"):
        netcdf.open_lazily(checked)
    with pytest.raises(ValueError, match="it was replaced or changed"), netcdf.opened(checked):
        pass


def test_of_a_file_without_a_seal_time_and_size_are_compared(tmp_path):
    path = tmp_path / "analysis.nc"
    for value in (1.0, 2.0):
        content = xr.Dataset({"x": ("n", np.full(10, value))}, attrs={"kind": "test"})
        netcdf.save_dataset(content, path, overwrite=True)
        if value == 1.0:
            ds = netcdf.open_analysis(path)
    with ds, pytest.raises(ArchiveError, match=r"'x' cannot be read \(it was replaced"):
        _ = closed_meanwhile(path, ds)["x"].values
