"""The files that are read: one that is there, or all that the names given stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from geoflow.archive import parts
from geoflow.errors import ArchiveError, InputError
from geoflow.system.files import file_named, is_file, is_folder, resolved


def existing(path: str | Path) -> Path:
    """Return the path of a trajectory that is there.

    Raises
    ------
    InputError
        The name is empty.
    ArchiveError
        It is not, or not yet.
    """
    path = file_named(path)
    if is_file(path):
        return path
    if parts.is_resumable(path):
        raise ArchiveError(f"{path} is not finished; `geoflow resume {path}` goes on with it")
    raise ArchiveError(f"{path} is not a file; name a trajectory written by geoflow")


def expand(files: Sequence[str | Path]) -> list[Path]:
    """Name every file once, a folder standing for the .nc files in it, a link for its file.

    Raises
    ------
    InputError
        There are none, or a name is empty.
    ArchiveError
        A folder without any.
    """
    paths: list[Path] = []
    for given in files:
        path = file_named(given, "files")
        inside = sorted(path.glob("*.nc")) if is_folder(path) else [path]
        if not inside:
            raise ArchiveError(f"{path} has no .nc file; name a folder of a sweep, or files")
        paths += inside
    if not paths:
        raise InputError("files=[]; name at least one")
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(_target(path), path)
    return list(once.values())


def _target(path: Path) -> Path:
    try:
        return resolved(path)
    except (OSError, ValueError):  # no file can be named so: whoever opens it says that
        return path
