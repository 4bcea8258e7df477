"""A file that gets the name of a result while that is made: it is never written over."""

import os

import numpy as np
import pytest
import torch
import xarray as xr

import geoflow as gf
import references
from geoflow.archive import netcdf, path_files, pieces
from geoflow.archive.pieces import Pieces
from geoflow.errors import InputError, StorageError
from geoflow.report import page
from geoflow.system import files
from midway import during

ANALYSIS = xr.Dataset({"x": ("n", np.arange(5.0))}, attrs={"kind": "test"})
PRECIOUS = b"precious"


def put(path, content=PRECIOUS):
    """Give a name to a file as a program does that renames what it has written."""
    beside = path.with_name("other")
    beside.write_bytes(content)
    os.replace(beside, path)


def nothing():
    """Do nothing."""


def walked(path, action=nothing, t_end=0.2, **options):
    flow, norm = references.ellipsoid(), during(action)
    more = {"reproject_every": 0.02, "stop": None, "observables": norm, "archive": path}
    return gf.walk(flow, "rk4", t_end=t_end, **more, **options)


def resumed(path, action=nothing, **options):
    return gf.resume(path, references.ellipsoid(), observables=during(action), **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "walk.nc"


KEPT = r"walk\.nc is not of the walk .*: it is no walk; move the file .*`geoflow resume .* goes on"


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_a_walk_leaves_a_file_that_got_its_name_and_goes_on_once_that_is_away(options, path):
    with pytest.raises(StorageError, match=KEPT):
        walked(path, lambda: put(path), **options)
    assert path.read_bytes() == PRECIOUS
    path.unlink()
    with resumed(path) as ds:
        assert ds["time"][-1] == 0.2
    assert gf.validate(path) == []
    assert os.listdir(path.parent) == ["walk.nc"]


def test_a_walk_leaves_the_file_of_a_link_that_got_its_name(path):
    there = path.with_name("there")
    there.write_bytes(PRECIOUS)
    with pytest.raises(StorageError, match=r"in \S*/\.walk\.nc\.parts: it is no walk"):
        walked(path, lambda: path.symlink_to(there))
    assert there.read_bytes() == PRECIOUS
    path.unlink()
    with resumed(path) as ds:
        assert ds["time"][-1] == 0.2


@pytest.mark.parametrize("instead", ["nothing", "the same", "another"])
def test_a_walk_replaces_only_the_file_that_it_was_begun_over(instead, path):
    path.write_bytes(b"old")
    if instead == "another":
        with pytest.raises(StorageError, match=KEPT):
            walked(path, lambda: put(path), overwrite=True)
        assert path.read_bytes() == PRECIOUS
        return
    # A copy of the same bytes is the same file.
    action = path.unlink if instead == "nothing" else lambda: put(path, b"old")
    walked(path, action, overwrite=True).close()
    assert gf.validate(path) == []


def test_a_walk_that_goes_further_replaces_only_its_own_file(path):
    walked(path, t_end=0.1).close()
    with pytest.raises(StorageError, match=KEPT):
        resumed(path, lambda: put(path), t_end=0.2)
    assert path.read_bytes() == PRECIOUS
    path.unlink()
    with resumed(path) as ds:
        assert ds["time"][-1] == 0.2


def test_a_walk_is_kept_where_a_folder_got_its_name(path):
    with pytest.raises(StorageError, match=r"walk\.nc is a folder; .*`geoflow resume .* goes on"):
        walked(path, path.mkdir)
    path.rmdir()
    with resumed(path) as ds:
        assert ds["time"][-1] == 0.2


def test_a_file_that_comes_while_the_walk_is_written_stays(path, monkeypatch):
    write = netcdf.write

    def slowly(*args):
        write(*args)
        put(path)

    with monkeypatch.context() as patch:
        patch.setattr(netcdf, "write", slowly)
        with pytest.raises(StorageError, match=KEPT):
            walked(path)
    assert path.read_bytes() == PRECIOUS
    path.unlink()
    with resumed(path) as ds:
        assert ds["time"][-1] == 0.2
    assert os.listdir(path.parent) == ["walk.nc"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("when", ["before", "while it is written"])
def test_an_analysis_leaves_a_file_that_got_its_name(when, overwrite, path):
    def write(ds, temporary):
        netcdf.write_analysis(ds, temporary)
        put(path)

    def analysed(write=netcdf.write_analysis, **options):
        with Pieces(path, {}, **options) as kept:
            kept.compute("0", lambda: ANALYSIS)
            if when == "before":
                put(path)
            kept.finish(ANALYSIS, write)

    if overwrite:
        path.write_bytes(b"old")
    said = (
        r"is not the file that was there .*; move it elsewhere"
        if overwrite
        else "exists; choose another"
    )
    with pytest.raises(InputError, match=said):
        analysed(*([] if when == "before" else [write]), overwrite=overwrite)
    assert path.read_bytes() == PRECIOUS
    assert pieces.are_kept(path)
    path.unlink()
    when = "gone on with"
    analysed()
    assert sorted(os.listdir(path.parent)) == ["walk.nc"]


def test_a_path_that_goes_further_replaces_only_its_own_file(path):
    scales = torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
    problem = gf.Problem.from_function(
        lambda theta: 0.5 + (scales * (theta - 1) ** 2).sum() / 2,
        torch.full((4,), 1.2, dtype=torch.float64),
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    gf.regularization_path(flow, [0.6], archive=path).close()
    follow = path_files.write
    with pytest.MonkeyPatch.context() as patch:

        def slowly(*args):
            follow(*args)
            put(path)

        patch.setattr(path_files, "write", slowly)
        with pytest.raises(InputError, match="is not the file that was there when this began"):
            gf.resume_path(path, flow, levels=[0.7])
    assert path.read_bytes() == PRECIOUS
    path.unlink()
    with gf.resume_path(path, flow) as ds:
        assert ds["level"].values.tolist()[1:] == [0.6, 0.7]


SAVED = {
    "analysis": lambda ds, path: netcdf.save_dataset(ANALYSIS, path),
    "trajectory": lambda ds, path: gf.save_trajectory(ds, path),
}


@pytest.mark.parametrize("kind", SAVED)
def test_what_is_saved_is_kept_beside_a_file_that_got_its_name(kind, path, monkeypatch):
    flow, write = references.ellipsoid(), netcdf.write
    ds = gf.walk(flow, t_end=0.1, stop=None)

    def slowly(*args):
        write(*args)
        put(path)

    path.with_name("walk-2.nc").write_bytes(b"mine")
    monkeypatch.setattr(netcdf, "write", slowly)
    with pytest.raises(StorageError, match=r"walk\.nc was not there .* result is in .*walk-3\.nc"):
        SAVED[kind](ds, path)
    assert path.read_bytes() == PRECIOUS
    assert path.with_name("walk-2.nc").read_bytes() == b"mine"
    assert sorted(os.listdir(path.parent)) == ["walk-2.nc", "walk-3.nc", "walk.nc"]
    with xr.open_dataset(path.with_name("walk-3.nc")) as found:
        assert found.attrs


def test_a_page_is_kept_beside_a_file_that_got_its_name(path, monkeypatch):
    out, read = path.with_name("page.html"), page.read
    walked(path).close()

    def slowly(*args):
        put(out)
        return read(*args)

    monkeypatch.setattr(page, "read", slowly)
    with pytest.raises(StorageError, match=r"page\.html was not there .*page-2\.html"):
        gf.report.report([path], out)
    assert out.read_bytes() == PRECIOUS
    assert out.with_name("page-2.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_what_may_be_replaced_is_replaced_whatever_comes_meanwhile(path):
    put(path)
    netcdf.save_dataset(ANALYSIS, path, overwrite=True)
    with xr.open_dataset(path) as ds:
        assert ds.attrs["kind"] == "test"


def test_a_name_beside_is_free(path):
    names = [files.free_beside(path).name for _ in range(3)]
    assert names == ["walk-2.nc", "walk-3.nc", "walk-4.nc"]
