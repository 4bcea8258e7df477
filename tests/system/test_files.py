"""Files written whole: what is planted, linked, special or failing where they go."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import xarray as xr

import crashes
import geoflow as gf
import references
from geoflow import plots
from geoflow.archive import netcdf, parts
from geoflow.errors import ArchiveError, InputError
from geoflow.system import files

ANALYSIS = xr.Dataset({"x": ("n", np.arange(5.0))}, attrs={"kind": "test"})


def plain(path):
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")


def analysis(path):
    netcdf.save_dataset(ANALYSIS, path, overwrite=True)


def trajectory(path):
    with crashes.walk("rk4", path.with_name("source.nc"), t_end=0.02, overwrite=True) as ds:
        gf.save_trajectory(ds, path, overwrite=True)


def walk(path):
    crashes.walk("rk4", path, t_end=0.02, overwrite=True).close()


WRITERS = {"plain": plain, "analysis": analysis, "trajectory": trajectory, "walk": walk}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def test_a_link_is_followed_and_stays(write, tmp_path):
    folder = tmp_path / "far"
    folder.mkdir()
    there, link = folder / "there.nc", tmp_path / "link.nc"
    there.write_bytes(b"old")
    link.symlink_to(there)
    write(link)
    assert link.is_symlink()
    assert not there.is_symlink()
    assert there.read_bytes() != b"old"
    assert [p.name for p in folder.iterdir()] == ["there.nc"]


def test_a_link_to_nothing_is_followed(tmp_path):
    link = tmp_path / "link.nc"
    link.symlink_to(tmp_path / "there.nc")
    analysis(link)
    assert link.is_symlink()
    assert (tmp_path / "there.nc").is_file()


def test_a_link_that_leads_round_is_named(tmp_path):
    link = tmp_path / "link.nc"
    link.symlink_to(link)
    with pytest.raises(InputError, match=r"link.nc is a link that leads to no file; choose"):
        files.check_target(link)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_and_stays(write, kind, tmp_path):
    path = tmp_path / "target.nc"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        # A link to one, as nobody but root can make one.
        path.symlink_to("/dev/null")
    else:
        path.mkdir()
    before = os.stat(path)
    with pytest.raises(InputError, match=r"name a (regular )?file"):
        write(path)
    after = os.stat(path)
    assert stat.S_IFMT(after.st_mode) == stat.S_IFMT(before.st_mode)
    assert after.st_ino == before.st_ino


def test_nothing_planted_at_a_name_that_can_be_guessed_is_written_to(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    target = tmp_path / "walk.nc"
    for name in (f".walk.nc.{os.getpid()}.tmp", "walk.nc.tmp", ".walk.nc.tmp"):
        (tmp_path / name).symlink_to(victim)
    analysis(target)
    walk(target)
    assert victim.read_bytes() == b"mine"


def test_the_other_name_is_random_and_made_exclusively(tmp_path, monkeypatch):
    with files.replacing(tmp_path / "a") as first:
        pass
    with files.replacing(tmp_path / "a") as second:
        pass
    assert first != second
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "guessed")
    (tmp_path / ".a.guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError), files.replacing(tmp_path / "a"):
        pass
    assert victim.read_bytes() == b"mine"


def test_a_file_exchanged_while_it_is_written_does_not_get_the_name(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def exchange():
        with files.replacing(path) as temporary:
            temporary.unlink()
            temporary.write_bytes(b"planted")

    with pytest.raises(ArchiveError, match="exchanged"):
        exchange()
    assert path.read_bytes() == b"old"


def test_a_link_in_the_place_of_the_parts_is_refused(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "mine").write_bytes(b"mine")
    path = tmp_path / "walk.nc"
    parts.folder_beside(path).symlink_to(precious)
    with pytest.raises(ArchiveError, match="is a link"):
        walk(path)
    assert [p.name for p in precious.iterdir()] == ["mine"]


def test_a_link_in_the_place_of_a_part_or_a_figure_is_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    part = tmp_path / "checkpoint.npz"
    part.symlink_to(victim)
    parts.write(part, {"x": np.arange(3)})
    (tmp_path / "walk-empty.png").symlink_to(victim)
    # What a killed process left there of the same figure.
    left = tmp_path / ".walk-empty.png.new"
    left.mkdir()
    (left / ".walk-empty.png.0123456789abcdef.tmp").touch()
    plots.save({"empty": matplotlib.figure.Figure()}, tmp_path, "walk")
    assert victim.read_bytes() == b"mine"
    assert not left.exists()
    assert parts.read(part)["x"].tolist() == [0, 1, 2]
    assert (tmp_path / "walk-empty.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_a_new_file(write, umask, tmp_path):
    before = os.umask(umask)
    try:
        write(tmp_path / "a.nc")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.nc").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_what_is_replaced_keeps_its_mode(write, mode, tmp_path):
    path = tmp_path / "a.nc"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert path.read_bytes() != b"old"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_replaces_is_private_while_it_is_written_and_no_link_has_a_mode(tmp_path):
    path, link = tmp_path / "a.nc", tmp_path / "link"
    path.touch()
    path.chmod(0o600)
    with files.replacing(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    link.symlink_to(path)
    path.chmod(0o640)
    with files.replacing(link, follow=False):
        pass
    assert not link.is_symlink()
    assert stat.S_IMODE(link.stat().st_mode) != 0o777
    assert files._mode(tmp_path) is None


def test_a_file_that_is_longer_than_it_says_is_read_all_the_same():
    # As one that grows meanwhile; of these Linux says that they are empty.
    path = Path("/proc/self/stat")
    if path.exists():
        assert files.content(path, 10_000).endswith(b"\n")


def test_a_walk_that_is_gone_on_with_stays_private(tmp_path):
    path = tmp_path / "walk.nc"
    crashes.walk("rk4", path, t_end=0.02).close()
    path.chmod(0o600)
    crashes.resume(path, t_end=0.04).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_not_of_a_walk_in_its_folder_stays(tmp_path):
    path = tmp_path / "walk.nc"
    beside = parts.folder_beside(path)
    beside.mkdir()
    (beside / "mine.txt").write_text("mine")
    (beside / "data.nc").write_text("mine")
    crashes.walk("rk4", path, t_end=0.02).close()
    assert sorted(p.name for p in beside.iterdir()) == ["data.nc", "mine.txt"]
    # It disturbs nobody.
    crashes.resume(path, t_end=0.04).close()
    assert sorted(p.name for p in beside.iterdir()) == ["data.nc", "mine.txt"]


@pytest.mark.parametrize("operation", ["open", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(operation, tmp_path, monkeypatch):
    path = tmp_path / "a.nc"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, fail)
        with pytest.raises(OSError, match="No space left"):
            plain(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_ends_early_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def end_early():
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        end_early()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "names no file"),
        (" ", "names no file"),
        ("nul\0.nc", "no name of a file"),
        ("x" * 241, "241 bytes"),
        ("none/a.nc", "does not exist"),
    ],
)
def test_a_target_that_is_no_name_is_refused(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        files.check_target(name)


@pytest.mark.parametrize("where", ["name", "folder", "folder of a link", "present folder"])
def test_what_is_not_utf8_is_refused_before_anything_is_walked(where, tmp_path, monkeypatch):
    odd = tmp_path / os.fsdecode(b"c\xff")
    odd.mkdir()
    path = {"name": tmp_path / f"{odd.name}.nc", "folder": odd / "c.nc"}.get(where, Path("c.nc"))
    monkeypatch.chdir(odd if where == "present folder" else tmp_path)
    if where == "folder of a link":
        path.symlink_to(odd / "there.nc")
    with pytest.raises(InputError, match=r"c\\udcff.* is not UTF-8; choose another"):
        walk(path)
    assert not any(odd.iterdir())
    assert {p.name for p in tmp_path.iterdir()} <= {odd.name, "c.nc"}


def test_where_the_locale_is_not_utf8_the_locale_is_named(tmp_path):
    code = "from geoflow.system import files; files.check_target('\\udcc3\\udca47.nc')"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | plain, capture_output=True, text=True, check=False
    )
    assert (
        "a name that the locale's encoding, ascii, does not have; set PYTHONUTF8=1" in done.stderr
    )


def test_the_longest_name_allowed_can_be_walked_to(tmp_path):
    walk(tmp_path / ("x" * (files.LONGEST_NAME - 3) + ".nc"))


def test_an_empty_archive_is_refused_not_forgotten():
    with pytest.raises(InputError, match="names no file"):
        gf.walk(references.ellipsoid(), "rk4", archive="", t_end=0.02)
