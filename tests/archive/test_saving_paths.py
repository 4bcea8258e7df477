"""What is no path is not saved as one, and nothing is made where it would be."""

import pytest

import drawn
from geoflow.archive import path_files
from geoflow.errors import ArchiveError
from geoflow.system import locks


def test_what_is_no_path_is_refused_with_the_name_of_its_file(tmp_path, monkeypatch):
    def made(*args, **options):
        raise AssertionError("something is made beside the file")

    monkeypatch.setattr(locks, "replacing", made)
    file = tmp_path / "bad.nc"
    with pytest.raises(ArchiveError, match=r"^not written to .*bad\.nc: it is a walk, "):
        path_files.save_path(drawn.walk(), file)
    with pytest.raises(ArchiveError, match=r"^not written to .*bad\.nc: .*level"):
        path_files.save_path(drawn.path().drop_vars("level"), file)
    assert list(tmp_path.iterdir()) == []
