"""What a process leaves that is killed once its file is written, and who removes it."""

import os
import signal

import pytest
import xarray as xr

import crashes
import geoflow as gf
from geoflow.archive import netcdf, parts, pieces, saved
from geoflow.archive.pieces import Pieces
from geoflow.errors import InputError
from geoflow.system import locks
from geoflow.walking.stream import Stream

SETTINGS = {"seed": 1}
NAMES = ("0", "1")


class Killed(BaseException):
    """In place of a signal that ends the process."""


def piece(value):
    return xr.Dataset({"x": ("n", [float(value)])})


def analyse(target, names=NAMES, made=None, **options):
    with Pieces(target, options.pop("settings", SETTINGS), **options) as kept:
        for name in names:

            def make(name=name):
                assert made is not None, "computed again"
                made.append(name)
                return piece(name)

            kept.compute(name, make)
        kept.finish(piece(len(names)))


@pytest.fixture
def left(tmp_path, monkeypatch):
    """A file, and the pieces that it was made of, which a kill has left."""
    target = tmp_path / "x.nc"

    def killed():
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(locks.Lock, "remove", lambda self: killed())
        with pytest.raises(Killed):
            analyse(target, made=[])
    assert target.is_file()
    assert (pieces.folder_beside(target) / pieces.SETTINGS).is_file()
    return target


def test_ctrl_c_comes_when_the_pieces_are_gone(tmp_path, monkeypatch):
    target, remove = tmp_path / "x.nc", locks.Lock.remove

    def pressed(self):
        signal.raise_signal(signal.SIGINT)
        remove(self)

    monkeypatch.setattr(locks.Lock, "remove", pressed)
    with pytest.raises(KeyboardInterrupt):
        analyse(target, made=[])
    assert os.listdir(tmp_path) == ["x.nc"]


def test_the_same_analysis_finds_its_file_written(left):
    before = left.read_bytes(), left.stat().st_ino
    assert not pieces.are_kept(left)
    analyse(left)
    assert (left.read_bytes(), left.stat().st_ino) == before
    assert os.listdir(left.parent) == ["x.nc"]


def test_with_overwrite_it_is_written_again_from_its_pieces(left):
    before = left.stat().st_ino
    analyse(left, overwrite=True)
    assert left.stat().st_ino != before
    assert os.listdir(left.parent) == ["x.nc"]


@pytest.mark.parametrize("other", [{"names": ("0",)}, {"names": ("0", "2"), "made": []}])
def test_a_whole_of_other_pieces_does_not_take_its_place(left, other):
    before = left.read_bytes()
    with pytest.raises(InputError, match=r"x\.nc exists; choose another name"):
        analyse(left, **other)
    assert not other.get("made")
    assert left.read_bytes() == before


def test_an_analysis_of_other_settings_and_another_file_do_not_either(left):
    with pytest.raises(InputError, match=r"x\.nc exists; choose another name"):
        analyse(left, settings={"seed": 2})
    with pytest.raises(InputError, match=r"x\.nc exists; choose another name"):
        netcdf.save_dataset(piece(0), left)
    left.write_bytes(b"another's")
    assert pieces.are_kept(left)
    with pytest.raises(InputError, match=r"x\.nc exists; choose another name"):
        analyse(left)
    assert left.read_bytes() == b"another's"


def test_what_is_left_disturbs_no_walk_over_the_file(left):
    with pytest.raises(InputError, match=r"x\.nc exists; choose another name"):
        saved.check_target(left)
    saved.check_target(left, overwrite=True)
    assert os.listdir(left.parent) == ["x.nc"]


def test_pieces_half_removed_are_removed_by_whoever_asks_next(left):
    (pieces.folder_beside(left) / pieces.SETTINGS).unlink()
    with pytest.raises(InputError, match=r"x\.nc exists; choose another name"):
        analyse(left)
    assert os.listdir(left.parent) == ["x.nc"]


def test_what_another_process_is_at_is_not_removed(left):
    folder = pieces.folder_beside(left)
    lock = locks.Lock(folder, pieces.SETTINGS)
    pieces.remove_left(left)
    assert (folder / "0.nc").is_file()
    lock.release()


def test_parts_of_a_finished_walk_are_removed_where_it_is_asked_to_go_on(tmp_path):
    path = tmp_path / "walk.nc"
    crashes.walk("rk4", path, t_end=0.02).close()
    beside = parts.folder_beside(path)
    beside.mkdir()
    for name in ("lock", "theta-000000000.npz", "steps-000000.npz", ".checkpoint.npz.0a.tmp"):
        (beside / name).touch()
    with pytest.raises(InputError, match=r"t_end"):
        crashes.resume(path, t_end=0.01)
    assert os.listdir(tmp_path) == ["walk.nc"]


def test_parts_without_a_file_are_left_to_the_next_walk(tmp_path):
    path = tmp_path / "walk.nc"
    beside = parts.folder_beside(path)
    beside.mkdir()
    (beside / "theta-000000000.npz").touch()
    with pytest.raises(gf.ArchiveError, match="there is no such file"):
        crashes.resume(path)
    assert os.listdir(beside) == ["theta-000000000.npz"]
    crashes.walk("rk4", path, t_end=0.02).close()
    assert os.listdir(tmp_path) == ["walk.nc"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_start_that_fails_leaves_nothing(error, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(parts, "write", fail)
    wanted = KeyboardInterrupt if error is KeyboardInterrupt else gf.ArchiveError
    with pytest.raises(wanted):
        crashes.walk("rk4", tmp_path / "walk.nc", t_end=0.02)
    monkeypatch.setattr(Pieces, "_claim", fail)
    with pytest.raises(wanted):
        analyse(tmp_path / "x.nc")
    assert os.listdir(tmp_path) == []


def test_a_start_that_is_refused_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"

    def killed(self, checkpoint):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "accepted", killed)
        with pytest.raises(Killed):
            crashes.walk("rk4", path, t_end=0.02)
    before = sorted(os.listdir(parts.folder_beside(path)))
    assert parts.CHECKPOINT in before
    with pytest.raises(InputError, match="an unfinished walk is streamed beside it"):
        crashes.walk("rk4", path, t_end=0.02)
    assert sorted(os.listdir(parts.folder_beside(path))) == before
