"""A streamed walk: what is on the disk and in memory, and when; by a clock that the test sets."""

import errno
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import recorded
from geoflow.archive import parts
from geoflow.archive.saved import saved
from geoflow.errors import ArchiveError, StorageError
from geoflow.walking import stream, streamed_snapshots
from geoflow.walking.snapshots import Thinned
from geoflow.walking.stream import Stream
from geoflow.walking.streamed_snapshots import StreamedSnapshots

PROBLEM = recorded.FLOW.problem


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(stream, "STEPS_PER_PART", 4)
    monkeypatch.setattr(streamed_snapshots, "SNAPSHOTS_PER_PART", 2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "walk.nc"


def create(path, **kwargs):
    settings = {"look_back": 0.0, "interval": math.inf, "overwrite": False, **kwargs}
    return Stream.create(path, PROBLEM, recorded.HEADER, **settings)


def reopen(path, rule=None, **kwargs):
    settings = {"look_back": 0.0, "interval": math.inf, **kwargs}
    rule = rule or Thinned(10**6)
    return Stream.reopen(path, PROBLEM, recorded.HEADER, rule=rule, **settings)[0]


def finish(recorder):
    with recorder.finish(recorded.checkpoint(recorder.n_steps - 1), recorded.END) as ds:
        return ds.load()


def n_saved(path):
    return saved(path).checkpoint.n_steps


def in_folder(path):
    names = sorted(p.name for p in parts.folder_beside(path).iterdir())
    return [name for name in names if name.endswith(".npz") and name != parts.CHECKPOINT]


def fail_to_write(monkeypatch, name):
    """A disk that does not take the part of this name."""
    write = parts.write

    def failing(part, arrays):
        if part.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(part, arrays)

    monkeypatch.setattr(parts, "write", failing)


def test_a_checkpoint_is_due_once_the_interval_has_passed_since_the_last(path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stream, "STEPS_PER_PART", 1000)
    monkeypatch.setattr(stream, "clock", SimpleNamespace(monotonic=lambda: now[0]))
    found = []
    with create(path, interval=10.0) as recorder:
        for step, now[0] in enumerate([100.0, 109.9, 110.0, 119.9, 125.0, 134.9, 135.0]):
            recorded.take(recorder, [step])
            found.append(n_saved(path))
    assert found == [0, 0, 3, 3, 5, 5, 7]


def test_a_full_part_is_saved_before_the_next_is_begun(path):
    with create(path) as recorder:
        found = []
        for step in range(9):
            recorded.take(recorder, [step], Thinned(2))
            found.append(n_saved(path))
        assert found == [0, 0, 0, 4, 4, 4, 4, 8, 8]
        rows = parts.read(parts.folder_beside(path) / "steps-000001.npz")
        assert rows["time"].tolist() == [4, 5, 6, 7]
        # Nothing is new in the part that was full when it is saved once more.
        recorder.save(recorded.checkpoint(8))
        recorder.save(recorded.checkpoint(8))
        assert finish(recorder)["time"].values.tolist() == list(range(9))


def test_a_walk_that_ends_with_a_full_part_has_every_step(path):
    with create(path) as recorder:
        recorded.take(recorder, range(8))
        assert finish(recorder)["time"].values.tolist() == list(range(8))


def test_snapshots_that_wait_are_saved_before_they_fill_the_memory(path, monkeypatch):
    monkeypatch.setattr(stream, "STEPS_PER_PART", 1000)
    monkeypatch.setattr(stream, "PENDING_BYTES", 3 * 8 * PROBLEM.n_parameters)
    with create(path) as recorder:
        recorded.take(recorder, range(2))
        assert (len(recorder.snapshots.pending), n_saved(path)) == (2, 0)
        recorded.take(recorder, [2])
        assert (len(recorder.snapshots.pending), n_saved(path)) == (0, 3)


def test_a_snapshot_dropped_before_it_is_saved_is_never_written(path):
    with create(path) as recorder:
        recorded.take(recorder, range(2))
        recorder.record(recorded.record(recorder.records.columns, 2), [0])
        recorder.save(recorded.checkpoint(2))
        assert in_folder(path) == ["steps-000000.npz", "theta-000000001.npz"]


def test_a_part_goes_once_none_of_its_snapshots_is_kept_and_the_checkpoint_says_so(
    path, monkeypatch
):
    with create(path) as recorder:
        recorded.take(recorder, range(4))
        assert [n for n in in_folder(path) if n.startswith("theta")] == [
            "theta-000000000.npz",
            "theta-000000002.npz",
        ]
        recorder.record(recorded.record(recorder.records.columns, 4), [0, 2, 3])
        with monkeypatch.context() as patch:
            fail_to_write(patch, parts.CHECKPOINT)
            with pytest.raises(StorageError, match="No space left"):
                recorder.save(recorded.checkpoint(4))
        # The checkpoint on the disk is of step 3, and all four belong to it.
        assert "theta-000000002.npz" in in_folder(path)
        recorder.save(recorded.checkpoint(4))
        assert "theta-000000002.npz" not in in_folder(path)
        assert "theta-000000000.npz" in in_folder(path)


@pytest.mark.parametrize(
    ("look_back", "n_steps", "in_memory"),
    [
        # Two at least, against which a change is seen.
        (0.0, 8, [6, 7]),
        # The one at or before the start of the time looked back on.
        (2.5, 8, [4, 5, 6, 7]),
        (3.0, 8, [4, 5, 6, 7]),
        (5.0, 8, [2, 3, 4, 5, 6, 7]),
        (math.inf, 8, list(range(8))),
        # All of the part that is not full yet.
        (0.0, 11, [8, 9, 10]),
        (0.0, 1, [0]),
    ],
)
def test_records_are_kept_in_memory_as_far_as_they_are_needed(path, look_back, n_steps, in_memory):
    with create(path, look_back=look_back) as recorder:
        recorded.take(recorder, range(n_steps))
        recorder.save(recorded.checkpoint(n_steps - 1))
        assert recorder.records.columns["time"].tolist() == in_memory
    with reopen(path, look_back=look_back) as recorder:
        assert recorder.records.columns["time"].tolist() == in_memory


@pytest.mark.parametrize("n_steps", [3, 4, 7, 8, 10])
def test_a_walk_goes_on_from_its_checkpoint_whatever_was_written_after_it(
    path, tmp_path, monkeypatch, n_steps
):
    """A save that fails at its checkpoint leaves longer parts, and parts of later snapshots."""
    with create(path) as recorder:
        recorded.take(recorder, range(n_steps), Thinned(5))
        recorder.save(recorded.checkpoint(n_steps - 1))
        with monkeypatch.context() as patch:
            fail_to_write(patch, parts.CHECKPOINT)
            rule = Thinned(5)
            for step in range(n_steps):
                rule.offer(step, float(step), float(step))
            with pytest.raises(StorageError, match=f"geoflow resume {path}"):
                recorded.take(recorder, range(n_steps, n_steps + 4), rule)
    rule = Thinned(5)
    with reopen(path, rule) as recorder:
        assert recorder.n_steps == n_steps
        held = set(in_folder(path))
        assert held == {part.name for part in recorder.snapshots.where.values()} | {
            f"steps-{i:06d}.npz" for i in range(math.ceil(n_steps / 4))
        }
        recorded.take(recorder, range(n_steps, 14), rule)
        resumed = finish(recorder)
    with create(tmp_path / "whole.nc") as recorder:
        recorded.take(recorder, range(14), Thinned(5))
        assert resumed.identical(finish(recorder))


def test_a_part_shorter_than_the_checkpoint_says_is_found(path):
    with create(path) as recorder:
        recorded.take(recorder, range(4))
    part = parts.folder_beside(path) / "steps-000000.npz"
    parts.write(part, {name: column[:3] for name, column in parts.read(part).items()})
    with pytest.raises(ArchiveError, match=r"steps-000000\.npz is too short; run again"):
        reopen(path)


def test_a_part_that_is_missing_is_found_before_any_is_read(path):
    with create(path) as recorder:
        recorded.take(recorder, range(5))
        recorder.save(recorded.checkpoint(4))
    (parts.folder_beside(path) / "steps-000001.npz").unlink()
    with pytest.raises(ArchiveError, match="some of its 5 steps are missing"):
        reopen(path)


def test_a_snapshot_that_is_missing_is_found(path):
    with create(path) as recorder:
        recorded.take(recorder, range(4))
    (parts.folder_beside(path) / "theta-000000002.npz").unlink()
    with pytest.raises(ArchiveError, match=r"the snapshot of step [23] is missing; run again"):
        reopen(path)


def test_a_finished_walk_that_is_taken_apart_and_given_up_is_as_it_was(path, tmp_path):
    with create(path) as recorder:
        recorded.take(recorder, range(7))
        whole = finish(recorder)
    before = path.read_bytes()
    with reopen(path) as recorder:
        assert n_saved(path) == 7
        recorder.give_up()
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]
    assert path.read_bytes() == before
    with reopen(path) as recorder:
        assert finish(recorder).identical(whole)
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


def test_an_unfinished_walk_that_is_given_up_stays_what_it_was(path):
    with create(path) as recorder:
        recorded.take(recorder, range(4))
    with reopen(path) as recorder:
        recorder.give_up()
    with reopen(path) as recorder:
        assert recorder.n_steps == 4


def test_an_archive_is_taken_apart_one_part_at_a_time(path, monkeypatch):
    with create(path) as recorder:
        recorded.take(recorder, range(7))
        finish(recorder)
    waiting, save = [], StreamedSnapshots.save

    def saving(self):
        waiting.append(len(self.pending))
        save(self)

    monkeypatch.setattr(StreamedSnapshots, "save", saving)
    with reopen(path) as recorder:
        assert waiting == [2, 2, 2, 1]
        assert recorder.last_kept == 6


def test_what_an_earlier_walk_left_is_not_taken_for_this_ones(path):
    with create(path) as recorder:
        recorded.take(recorder, range(8))
    with create(path, overwrite=True) as recorder:
        assert in_folder(path) == []
        assert n_saved(path) == 0
        recorded.take(recorder, range(2))
        recorder.save(recorded.checkpoint(1))
    with reopen(path) as recorder:
        assert list(recorder.snapshots.kept) == ["0", "1"]


def test_a_stream_that_cannot_be_begun_does_not_hold_the_name(path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_to_write(patch, parts.CHECKPOINT)
        with pytest.raises(ArchiveError, match="No space left"):
            create(path)
    with create(path) as recorder:
        recorded.take(recorder, range(4))
    (parts.folder_beside(path) / "theta-000000002.npz").rename(path.with_name("aside"))
    with pytest.raises(ArchiveError, match="missing"):
        reopen(path)
    path.with_name("aside").rename(parts.folder_beside(path) / "theta-000000002.npz")
    with reopen(path) as recorder:
        assert recorder.n_steps == 4


def test_ctrl_c_once_the_archive_is_whole_waits_until_the_parts_are_gone(path, tmp_path):
    with create(path) as recorder:
        recorded.take(recorder, range(4))
        remove = recorder.lock.remove

        def pressed():
            signal.raise_signal(signal.SIGINT)
            remove()

        recorder.lock.remove = pressed
        with pytest.raises(KeyboardInterrupt):
            finish(recorder)
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


def test_snapshots_stand_in_the_order_of_their_steps(path):
    with create(path) as recorder:
        recorded.take(recorder, range(13))
        recorder.save(recorded.checkpoint(12))
    with reopen(path) as recorder:
        ds = finish(recorder)
    assert ds["snapshot_step"].values.tolist() == list(range(13))
    assert np.array_equal(ds["theta"], [recorded.theta(step).numpy() for step in range(13)])


@pytest.mark.parametrize("name", ["theta", "snapshot_time", "arc_length"])
def test_a_finished_walk_that_cannot_be_read_is_not_said_to_fail_at_writing(
    path, monkeypatch, name
):
    with create(path) as recorder:
        recorded.take(recorder, range(7))
        finish(recorder)
    opened = stream.trajectory_files.open_trajectory

    def failing(*arguments):
        ds = opened(*arguments)
        read = {"dask": "parallelized", "output_dtypes": [ds[name].dtype]}
        return ds.assign({name: xr.apply_ufunc(fail, ds[name].chunk(), **read)})

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(stream.trajectory_files, "open_trajectory", failing)
    message = rf"^{path} is not a readable netCDF-4 file \(Input/output error\)$"
    with pytest.raises(ArchiveError, match=message):
        reopen(path)
    assert not parts.folder_beside(path).exists()


def other_arrays(part, **changes):
    """Write a part again with some arrays changed, or left out where it is None."""
    arrays = parts.read(part)
    arrays |= {name: change(arrays[name]) for name, change in changes.items() if change}
    parts.write(part, {n: a for n, a in arrays.items() if changes.get(n, True)})


NOT_AS_WRITTEN = {
    "left out": None,
    "a number": lambda a: np.array(1.0),
    "too short": lambda a: a[:-1],
    "of two dimensions": lambda a: a[None],
    "of another dtype": lambda a: a.astype("f2"),
    "complex": lambda a: a.astype(complex),
    "text": lambda a: a.astype(str),
    "of no size": lambda a: np.empty((0, 10**6)),
}


@pytest.mark.parametrize("change", NOT_AS_WRITTEN)
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("steps-000000.npz", "time"),
        ("steps-000000.npz", "train_loss"),
        ("theta-000000000.npz", "0"),
        ("theta-000000000.npz", "scalars"),
    ],
)
def test_arrays_that_are_not_as_they_were_written_are_refused(path, part, name, change):
    with create(path) as recorder:
        recorded.take(recorder, range(3))
        recorder.save(recorded.checkpoint(2))
    part = parts.folder_beside(path) / part
    other_arrays(part, **{name: NOT_AS_WRITTEN[change]})
    # All columns have the length that the times have.
    with pytest.raises(ArchiveError, match="npz is not a whole part of a walk, run again"):
        reopen(path)


def test_arrays_in_the_other_order_of_bytes_are_read(path):
    with create(path) as recorder:
        recorded.take(recorder, range(3))
        recorder.save(recorded.checkpoint(2))

    def turned(array):
        return array.astype(array.dtype.newbyteorder(">"))

    folder = parts.folder_beside(path)
    other_arrays(folder / "steps-000000.npz", time=turned, train_loss=turned)
    other_arrays(folder / "theta-000000000.npz", **{"0": turned, "scalars": turned})
    with reopen(path) as recorder:
        ds = finish(recorder)
    assert ds["time"].values.tolist() == [0, 1, 2]
    assert np.isfinite(ds["theta"].values).all()
