"""Files that the system does not let be read: said in one line, by whoever meets one."""

import builtins
import errno
import os

import pytest

import crashes
import geoflow as gf
from geoflow import cli
from geoflow.archive import parts, seal
from geoflow.cli.terminal import BAD_INPUT
from geoflow.errors import ArchiveError, InputError
from geoflow.system import locks

SAID = r"x\.nc is not a file that can be read \(Permission denied\)"


@pytest.fixture
def forbid(monkeypatch):
    """Return a function that has a file be refused as the system refuses it to all but root."""

    def set_up(path):
        def refusing(file, *args, **kwargs):
            if os.fspath(file) == str(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
            return builtins.open(file, *args, **kwargs)

        monkeypatch.setattr(seal, "open", refusing, raising=False)
        return path

    return set_up


@pytest.fixture
def unreadable(tmp_path, forbid):
    path = tmp_path / "x.nc"
    crashes.walk("rk4", path, t_end=0.1).close()
    return forbid(path)


def test_validate_says_so(unreadable, capsys):
    with pytest.raises(ArchiveError, match=SAID):
        gf.validate(unreadable)
    assert cli.main(["validate", str(unreadable)]) == BAD_INPUT
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_resuming_says_so(unreadable):
    with pytest.raises(ArchiveError, match=SAID):
        crashes.resume(unreadable)


def test_a_walk_does_not_begin_over_it(unreadable):
    before = unreadable.read_bytes()
    with pytest.raises(InputError, match=SAID + "; remove it, or choose another name"):
        crashes.walk("rk4", unreadable, overwrite=True)
    assert unreadable.read_bytes() == before
    assert os.listdir(unreadable.parent) == ["x.nc"]


def test_a_walk_is_not_resumed_beside_it(tmp_path, forbid, monkeypatch):
    path = tmp_path / "x.nc"
    with monkeypatch.context() as patch:
        # As where the process is killed once the file is there.
        patch.setattr(locks.Lock, "remove", lambda self: self.release())
        crashes.walk("rk4", path, t_end=0.1).close()
    assert parts.is_resumable(path)
    forbid(path)
    with pytest.raises(ArchiveError, match=SAID):
        crashes.resume(path)


def test_a_sweep_says_so(unreadable):
    there = unreadable.rename(unreadable.with_name("seed-0000.nc"))

    def refusing(file, *args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal, "open", refusing, raising=False)
        with pytest.raises(ArchiveError, match=r"seed-0000\.nc is not a file .*move it elsewhere"):
            gf.sweep("iris_ff", [0], there.parent, epochs=3)
