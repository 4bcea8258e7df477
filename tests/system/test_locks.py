"""Folders in which one process writes: what is left in them, and whose it is."""

import errno
import os
import signal

import pytest

from geoflow.errors import ArchiveError
from geoflow.system import files, locks


def write(path, content=b"new", **options):
    with locks.replacing(path, **options) as temporary:
        temporary.write_bytes(content)


@pytest.mark.parametrize("ending", [files.UNFINISHED, ".gif"])
def test_what_a_kill_left_is_removed_by_whoever_writes_the_file_next(ending, tmp_path):
    path = tmp_path / "a.gif"
    left = []
    with locks.replacing(path, ending=ending) as temporary:
        left.append(temporary.name)
        beside = temporary.parent
    assert beside.parent == tmp_path
    beside.mkdir()
    for name in (*left, locks.LOCK):
        (beside / name).write_bytes(b"half")
    write(path, ending=ending)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.gif"]


def test_what_is_somebody_elses_stays(tmp_path):
    beside = tmp_path / ".a.gif.new"
    beside.mkdir()
    (beside / "mine.gif").write_bytes(b"mine")
    write(tmp_path / "a.gif", ending=".gif")
    assert os.listdir(beside) == ["mine.gif"]


def test_two_that_write_the_same_file_both_do(tmp_path):
    path = tmp_path / "a"
    with locks.replacing(path) as temporary:
        temporary.write_bytes(b"first")
        write(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_where_no_folder_can_be_had_it_is_written_all_the_same(tmp_path):
    (tmp_path / ".a.new").write_bytes(b"a file")
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_ctrl_c_as_the_folder_is_made_leaves_none(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def pressed(*args, **options):
        mkdir(*args, **options)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "mkdir", pressed)
    with pytest.raises(KeyboardInterrupt):
        locks.Lock(tmp_path / "folder", "first")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_begun_stays_and_one_that_is_not_goes(tmp_path):
    folder = tmp_path / "folder"
    lock = locks.Lock(folder, "first")
    (folder / "first").touch()
    lock.release()
    locks.remove_left(folder, "first")
    assert "first" in os.listdir(folder)
    (folder / "first").unlink()
    held = locks.Lock(folder, "first")
    # Somebody is at work in it.
    locks.remove_left(folder, "first")
    assert folder.is_dir()
    held.release()
    assert os.listdir(tmp_path) == []


def sync_fails(monkeypatch, folder, number, operation):
    """Let a folder fail to be opened, or synced."""
    real, of_folder = {n: getattr(os, n) for n in ("open", "fsync")}, set()

    def opened(path, *args, **options):
        if os.fspath(path) == os.fspath(folder):
            if operation == "open":
                raise OSError(number, os.strerror(number))
            found = real["open"](path, *args, **options)
            of_folder.add(found)
            return found
        return real["open"](path, *args, **options)

    def synced(descriptor):
        if descriptor in of_folder:
            raise OSError(number, os.strerror(number))
        real["fsync"](descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)


@pytest.mark.parametrize(("operation", "number"), [("open", errno.EACCES), ("fsync", errno.EINVAL)])
def test_a_folder_that_cannot_be_synced_holds_files_all_the_same(
    operation, number, tmp_path, monkeypatch
):
    sync_fails(monkeypatch, tmp_path, number, operation)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize(("operation", "number"), [("open", errno.ENOSPC), ("fsync", errno.EIO)])
def test_a_disk_that_fails_once_a_file_is_there_is_said_to_have_it(
    operation, number, tmp_path, monkeypatch
):
    sync_fails(monkeypatch, tmp_path, number, operation)
    with pytest.raises(ArchiveError, match=r"a is written, but may be lost .*; look at the disk"):
        write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("end", ["release", "remove"])
def test_ctrl_c_as_the_folder_goes_leaves_none_of_it(end, tmp_path, monkeypatch):
    rmdir = os.rmdir

    def pressed(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        rmdir(*args, **kwargs)

    lock = locks.Lock(tmp_path / ".a.new", None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", pressed)
        with pytest.raises(KeyboardInterrupt):
            getattr(lock, end)()
    assert os.listdir(tmp_path) == []
    locks.Lock(tmp_path / ".a.new", None).release()
