"""What lies beside a file under its name: it never takes the place of what is not its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import crashes
import geoflow as gf
from geoflow.archive import netcdf, parts, path_files, pieces, saved, seal, trajectory_files
from geoflow.archive.pieces import Pieces
from geoflow.errors import ArchiveError, InputError
from geoflow.system import files
from geoflow.walking.stream import Stream

DATA = Path(__file__).parents[1] / "data" / "resuming"
ANALYSIS = xr.Dataset({"x": ("n", np.arange(5.0))}, attrs={"kind": "test"})


class Killed(BaseException):
    """Ends a walk as a kill does: nothing is tidied up."""


@pytest.fixture
def killed(monkeypatch):
    """Return a function that walks or resumes, with a checkpoint at each step, and dies."""

    def kill(walk, path, **kwargs):
        accepted, taken = Stream.accepted, []

        def dying(self, checkpoint):
            self.interval = 0
            accepted(self, checkpoint)
            taken.append(self.n_steps)
            if len(taken) == 3:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Stream, "accepted", dying)
            with pytest.raises(Killed):
                walk(path=path, **kwargs)
        assert parts.is_resumable(path)

    return kill


def test_nothing_is_written_where_an_unfinished_walk_is_streamed(killed, tmp_path):
    path = tmp_path / "walk.nc"
    killed(crashes.walk, path, solver="rk4")
    with crashes.walk("rk4", tmp_path / "other.nc", t_end=0.1) as ds:
        for write in (
            lambda: netcdf.save_dataset(ANALYSIS, path),
            lambda: netcdf.save_dataset(ANALYSIS, path, overwrite=True),
            lambda: Pieces(path, {}, overwrite=True),
            lambda: path_files.save_path(ds, path, overwrite=True),
            lambda: gf.save_trajectory(ds, path, overwrite=True),
            lambda: gf.report.report([tmp_path / "other.nc"], path),
            lambda: parts.check_free(path),
        ):
            with pytest.raises(InputError, match="an unfinished walk is streamed beside it, in"):
                write()
    # What is asked of the operating system has nothing to do with walks.
    assert files.check_target(path) == path
    assert not path.exists()
    with crashes.resume(path) as ds:
        assert ds.attrs["status"] == "t_end"


def test_an_unfinished_walk_takes_the_place_of_no_other_file(killed, tmp_path):
    path, other = tmp_path / "walk.nc", tmp_path / "other.nc"
    killed(crashes.walk, path, solver="rk4")
    for write in (
        lambda: netcdf.save_dataset(ANALYSIS, other, overwrite=True),
        lambda: other.write_bytes(b"mine"),
        lambda: crashes.walk("dopri5", other, t_end=0.01, rtol=1e-4, overwrite=True).close(),
    ):
        write()
        shutil.copyfile(other, path)
        with pytest.raises(ArchiveError, match="is not of the walk that is streamed beside it"):
            crashes.resume(path)
        assert path.read_bytes() == other.read_bytes()
    path.unlink()
    with crashes.resume(path) as ds:
        assert ds.attrs["status"] == "t_end"


def test_a_walk_begun_over_another_goes_on_over_it(killed, tmp_path):
    path = tmp_path / "walk.nc"
    crashes.walk("dopri5", path, t_end=0.01, rtol=1e-4).close()
    killed(crashes.walk, path, solver="rk4", overwrite=True)
    # Once more cut off, after it was taken up.
    killed(crashes.resume, path)
    with crashes.resume(path) as ds:
        assert (ds.attrs["solver"], ds.attrs["status"]) == ("rk4", "t_end")


def test_a_walk_that_went_further_and_was_cut_off_goes_on(killed, tmp_path):
    path = tmp_path / "walk.nc"
    crashes.walk("rk4", path, t_end=0.1).close()
    killed(crashes.resume, path, t_end=1.0)
    with crashes.resume(path) as ds:
        assert float(ds["time"][-1]) == 1.0


def test_a_walk_that_died_once_its_file_was_there_goes_on(killed, monkeypatch, tmp_path):
    path = tmp_path / "walk.nc"
    written = trajectory_files.write

    def write(*args):
        written(*args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trajectory_files, "write", write)
        with pytest.raises(Killed):
            crashes.walk("rk4", path, t_end=0.1)
    assert path.is_file()
    assert parts.is_resumable(path)
    with crashes.resume(path) as ds:
        assert ds.attrs["status"] == "t_end"


def test_what_earlier_versions_streamed_goes_on_beside_a_file_of_the_same_walk(tmp_path):
    path = tmp_path / "walk.nc"
    shutil.copytree(DATA / "rk4.parts", parts.folder_beside(path))
    with crashes.walk("rk4", tmp_path / "same.nc", t_end=0.1, overwrite=True):
        pass
    shutil.copyfile(tmp_path / "same.nc", path)
    assert saved.saved(path).replaces is None
    with crashes.resume(path) as ds:
        assert float(ds["time"][-1]) == 0.5


def test_a_walk_is_not_begun_where_a_path_is_unfinished_and_a_file_is_looked_at_first(tmp_path):
    path = tmp_path / "walk.nc"
    beside = pieces.folder_beside(path)
    beside.mkdir()
    (beside / pieces.SETTINGS).write_text("{}")
    with pytest.raises(InputError, match="an unfinished path or analysis lies beside it, in"):
        crashes.walk("rk4", path, t_end=0.1, overwrite=True)
    crashes.walk("rk4", tmp_path / "other.nc", t_end=0.1).close()
    shutil.copyfile(tmp_path / "other.nc", path)
    # Where it is asked first, this is damage.
    (beside / pieces.SETTINGS).write_text("[")
    assert not path_files.is_path(path)
    with crashes.resume(path, t_end=0.2) as ds:
        assert float(ds["time"][-1]) == 0.2


def test_a_file_of_the_same_walk_differs_from_it_in_its_goals_alone(path):
    with gf.open_trajectory(path) as ds:
        attributes = dict(ds.attrs)
    config = json.loads(attributes["config"])

    def check(**changed):
        saved.check_same_walk(path, attributes | changed, path.parent)

    check(config=json.dumps(config | {"t_end": 9.0, "stop": None, "max_evaluations": 7}))
    for name in ("experiment", "seed", "data_sha256", "dtype", "level", "regularizer_name"):
        with pytest.raises(ArchiveError, match=f"its {name} is another"):
            check(**{name: "other"})
    without = {name: value for name, value in config.items() if name != "observables"}
    for other, said in ((without, "its observables is"), (config | {"new": 1}, "its new is")):
        with pytest.raises(ArchiveError, match=said):
            check(config=json.dumps(other))
    with pytest.raises(ArchiveError, match="it is no walk"):
        check(config="[]")


def test_a_file_is_known_by_its_length_and_its_end(tmp_path):
    found = set()
    # Of the first two the end is the same, which is all that is read.
    for content in (b"a" * 5000, b"b" + b"a" * 4999, b"a" * 5001, b"a" * 5000 + b"b"):
        (tmp_path / "file").write_bytes(content)
        found.add(seal.identity(tmp_path / "file"))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("status", "ended"),
    [(None, False), ("interrupted", False), ("process_lost", False), ("at_rest", True)],
)
def test_a_walk_that_was_cut_short_has_not_ended(status, ended):
    assert saved.Saved(None, {} if status is None else {"status": status}, []).has_ended == ended
