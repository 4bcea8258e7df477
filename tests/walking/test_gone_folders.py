"""A folder that is removed or renamed while a walk is streamed into it: what is said to be kept."""

import shutil

import pytest

import geoflow as gf
import references
from geoflow.archive import parts
from geoflow.errors import StorageError
from midway import during


def walked(path, action, **options):
    return gf.walk(
        references.ellipsoid(),
        "rk4",
        t_end=0.2,
        stop=None,
        reproject_every=0.02,
        observables=during(action),
        archive=path,
        **options,
    )


@pytest.mark.parametrize("seconds", [30, 0])
@pytest.mark.parametrize("gone", ["folder", "parts"])
def test_nothing_is_said_to_be_kept_where_it_was_removed(gone, seconds, tmp_path):
    path = tmp_path / "runs" / "x.nc"
    path.parent.mkdir()
    folder = path.parent if gone == "folder" else parts.folder_beside(path)
    said = r"x\.nc failed: \S*\.x\.nc\.parts has gone; where it was renamed, .* checkpoint$"
    with pytest.raises(StorageError, match=said):
        walked(path, lambda: shutil.rmtree(folder), checkpoint_seconds=seconds)


def test_where_it_was_renamed_the_walk_is_there(tmp_path):
    path, other = tmp_path / "runs" / "x.nc", tmp_path / "elsewhere"
    path.parent.mkdir()
    with pytest.raises(StorageError, match=r"where it was renamed, .* the walk is kept there"):
        walked(path, lambda: path.parent.rename(other), checkpoint_seconds=0)
    norm = during(lambda: None)
    with gf.resume(other / "x.nc", references.ellipsoid(), observables=norm) as ds:
        assert ds["time"][-1] == 0.2
