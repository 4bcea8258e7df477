"""Faults: a disk that fails or fills, a second process, a read-only folder, Ctrl-C."""

import errno
import signal
import tempfile
from pathlib import Path

import pytest

import crashes
import geoflow as gf
import invariants
import references
from geoflow.archive import parts
from geoflow.archive.parts import is_resumable
from geoflow.errors import ArchiveError, InputError, StorageError
from geoflow.walking import stream


def count_operations(monkeypatch, path):
    with monkeypatch.context() as patch:
        count = crashes.fail_at(0, None, patch.setattr)
        crashes.walk("rk4", path, checkpoint_seconds=0, t_end=0.1)
        return count()


@pytest.mark.slow
def test_killed_before_any_change_of_the_disk_a_walk_resumes(tmp_path, monkeypatch):
    whole = crashes.walk("rk4", tmp_path / "whole.nc", t_end=0.1)
    n = count_operations(monkeypatch, tmp_path / "counted.nc")
    assert n > 30
    for k in range(1, n + 1):
        folder = tmp_path / f"{k}"
        folder.mkdir()
        path = folder / "walk.nc"
        process, _ = crashes.start(crashes.die_at, k, "rk4", path, 0.1)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if not is_resumable(path) and not path.exists():
            # Nothing had been walked; the name is free.
            crashes.walk("rk4", path, t_end=0.1)
        with crashes.resume(path) if is_resumable(path) else gf.open_trajectory(path) as resumed:
            assert invariants.same(resumed, whole)
        # Killed while it cleans up, it leaves parts that nobody takes for a walk.
        assert not is_resumable(path)


@pytest.mark.slow
def test_a_disk_that_fails_at_any_write_loses_nothing_saved(tmp_path, monkeypatch):
    whole = crashes.walk("rk4", tmp_path / "whole.nc", t_end=0.1)
    n = count_operations(monkeypatch, tmp_path / "counted.nc")

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = 0
    for k in range(1, n + 1):
        path = tmp_path / f"{k}.nc"
        with monkeypatch.context() as patch:
            crashes.fail_at(k, full, patch.setattr)
            try:
                crashes.walk("rk4", path, checkpoint_seconds=0, t_end=0.1).close()
                failed = None
            except (ArchiveError, InputError) as error:
                failed = error
        assert failed is None or "No space left" in str(failed)
        if isinstance(failed, StorageError):
            kept += 1
            assert f"geoflow resume {path}" in str(failed)
            assert is_resumable(path)
        elif failed:
            # Before the walk began.
            assert not path.exists()
            continue
        with crashes.resume(path) if is_resumable(path) else gf.open_trajectory(path) as resumed:
            assert invariants.same(resumed, whole)
    assert kept > n / 2


@pytest.mark.parametrize(
    "limit", [3_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (8_000, 20_000, 40_000))]
)
def test_a_disk_that_is_full_ends_the_walk_with_an_error_and_the_walk_kept(limit, tmp_path):
    """The kernel refuses: no file may grow past the limit."""
    path = tmp_path / "walk.nc"
    process, receive = crashes.start(crashes.walk_on_a_small_disk, limit, path)
    error = receive.recv()
    process.join()
    assert "File too large" in error or "HDF error" in error
    assert not path.exists()
    if not is_resumable(path):
        assert limit == 3_000
        return
    assert "StorageError" in error
    with crashes.resume(path) as resumed:
        assert invariants.same(resumed, crashes.walk("exponential", tmp_path / "whole.nc"))


def test_only_one_process_writes_to_an_archive(tmp_path):
    path = tmp_path / "walk.nc"
    process, receive = crashes.start(crashes.report_steps, "exponential", path, 0.0)
    receive.recv()
    for attempt in (
        lambda: crashes.resume(path),
        lambda: crashes.walk("exponential", path, overwrite=True),
    ):
        with pytest.raises(ArchiveError, match="in use by another process"):
            attempt()
    process.kill()
    process.join()
    with crashes.resume(path) as resumed:
        assert resumed.attrs["status"] == "t_end"


def test_a_folder_that_cannot_be_written_is_said_to_be_so():
    # Not in tmp_path, whose parents only their owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "walk.nc"
        crashes.walk("rk4", path, t_end=0.1).close()
        before = path.read_bytes()
        process, receive = crashes.start(crashes.try_read_only, path)
        errors = receive.recv()
        process.join()
        assert [name for name, _ in errors] == ["InputError", "ArchiveError"]
        assert all("cannot be written (Permission denied)" in text for _, text in errors)
        assert path.read_bytes() == before


def press(times):
    """An observable that presses Ctrl-C at its n-th calls."""
    calls = []

    def pressed(theta):
        calls.append(1)
        if len(calls) in times:
            signal.raise_signal(signal.SIGINT)
        return float(theta.norm())

    return {"norm": pressed}


def test_ctrl_c_once_leaves_a_file_that_can_be_resumed(whole, tmp_path):
    path = tmp_path / "walk.nc"
    settings = {"stop": None, "max_snapshots": 30, **crashes.SETTINGS["exponential"]}
    with gf.walk(
        references.ellipsoid(), "exponential", observables=press([7]), archive=path, **settings
    ) as ds:
        assert ds.attrs["status"] == "interrupted"
    with crashes.resume(path) as resumed:
        assert invariants.same(resumed, whole["exponential"])


def test_ctrl_c_twice_loses_nothing_that_was_saved(whole, tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"
    settings = {"stop": None, "max_snapshots": 30, **crashes.SETTINGS["exponential"]}
    write = stream.trajectory_files.write

    def press_again(*args):
        signal.raise_signal(signal.SIGINT)
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stream.trajectory_files, "write", press_again)
        with pytest.raises(KeyboardInterrupt):
            gf.walk(
                references.ellipsoid(),
                "exponential",
                observables=press([7]),
                archive=path,
                **settings,
            )
    assert not path.exists()
    with crashes.resume(path) as resumed:
        assert invariants.same(resumed, whole["exponential"])


def test_ctrl_c_within_a_save_waits_for_its_end(tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"
    write, written = parts.write, []

    def press_once(part, arrays):
        written.append(part.name)
        if len(written) == 8:
            signal.raise_signal(signal.SIGINT)
        write(part, arrays)

    monkeypatch.setattr(parts, "write", press_once)
    with crashes.walk("rk4", path, checkpoint_seconds=0) as ds:
        assert ds.attrs["status"] == "interrupted"
        assert 1 < ds.sizes["step"] < 5
