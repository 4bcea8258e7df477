"""Results of a long analysis, kept piece by piece beside the file they will make.

A piece is a small netCDF file. It gets its name once it is on the disk, so that a piece that is
there is whole, and an analysis that is cut off goes on after its last one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.archive import netcdf, parts, seal
from geoflow.errors import ArchiveError, InputError
from geoflow.system import files, interrupts, kinds, locks, translation

SETTINGS = "settings.json"
# Bytes; an analysis has some thousand.
LONGEST_SETTINGS = 2**24
# Arrays beside the pieces that tell of the file that was made of them last.
WRITTEN = "written"


def folder_beside(path: Path) -> Path:
    """Return the folder in which the pieces of an analysis that will be ``path`` are kept."""
    path = files.resolved(path)
    return path.with_name(f".{path.name}.pieces")


def are_kept(path: Path) -> bool:
    """Whether an unfinished analysis lies beside this file."""
    return files.is_file(folder_beside(path) / SETTINGS) and made_of(path) is None


def made_of(path: Path) -> list[str] | None:
    """Names of the pieces of which this file was made and that still lie beside it.

    So they do where a process was killed after it had written the file. None where it is not there,
    or not made of what lies there.
    """
    folder = folder_beside(path)
    if files.is_file(folder / SETTINGS) and files.is_file(folder / f"{WRITTEN}.npz"):
        with suppress(ArchiveError, *translation.UNREADABLE):
            found = parts.read(folder / f"{WRITTEN}.npz")
            if found["identity"].item() == seal.identity(path):
                return list(map(str, found["names"]))
    return None


def check_free(path: str | Path, *, overwrite: bool = False) -> Path:
    """Make sure that an analysis can be written to a file, or is written there already.

    Raises
    ------
    InputError
        See :func:`geoflow.archive.parts.check_free`.
    """
    path = files.file_named(path)
    is_written = False
    if files.is_file(path):
        # Half removed they are nothing to go on from, and the file stands for itself.
        locks.remove_left(folder_beside(path), SETTINGS)
        is_written = made_of(path) is not None
    return parts.check_free(path, overwrite=overwrite or is_written)


def remove_left(path: Path) -> None:
    """Remove what a process that was killed as it removed the pieces of a file has left of them."""
    folder = folder_beside(path)
    if made_of(path) is None:
        locks.remove_left(folder, SETTINGS)
        return
    # Somebody is at it.
    with suppress(ArchiveError):
        lock = locks.Lock(folder, SETTINGS)
        if made_of(path) is None:
            lock.release()
        else:
            lock.remove()


class Pieces:
    """What has been computed of a long analysis, beside the file that it will make.

    Used as a context: ``compute`` each piece, then ``finish``. Where the block ends early, by
    Ctrl-C or an error, the pieces stay, and the same analysis goes on with them. Its settings are
    kept beside them, so that no other analysis takes them for its own.

    Parameters
    ----------
    target : str, Path or None
        The file. None: nothing is kept and nothing is written.
    settings : mapping
        All that decides the pieces, as JSON can hold it; see :func:`fingerprint`.
    overwrite : bool
        Replace the file where it exists, and start over where pieces of another analysis lie
        beside it.
    of : Dataset, optional
        What is analysed: the file that it was opened from is never replaced.

    Raises
    ------
    InputError
        The file exists or cannot be written, is that of ``of``, or pieces of another analysis lie
        beside it.
    ArchiveError
        Another process is at it.
    """

    def __init__(
        self,
        target: str | Path | None,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
        of: xr.Dataset | None = None,
    ) -> None:
        # Without a target too.
        kinds.check_switch(overwrite, "overwrite")
        self.target = None if target is None else check_free(target, overwrite=overwrite)
        # The file that is there so far, and that may be replaced.
        self._replaces = self._there()
        if self.target is not None and of is not None:
            files.check_apart(self.target, _sources(of), "archive")
        # Numbers from a file's attributes are NumPy's.
        self.settings = json.dumps(settings, sort_keys=True, indent=1, default=lambda x: x.item())
        self.overwrite = overwrite
        if self.target is not None:
            netcdf.load_ahead()
        self._lock: locks.Lock | None = None
        self._used: set[str] = set()

    def __enter__(self) -> Self:
        if self.target is None:
            return self
        folder = folder_beside(self.target)
        self._lock = locks.Lock(folder, SETTINGS)
        try:
            with translation.writing(folder):
                self._claim(folder / SETTINGS)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        if self._lock:
            # Nothing worth keeping is not kept.
            if any(self._lock.folder.glob("*.nc")):
                self._lock.release()
            else:
                self._lock.remove()
            self._lock = None

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return those of the names of pieces that are not there yet."""
        return [n for n in names if not (self._lock and self._path(n).exists())]

    def compute(self, name: str, function: Callable[[], xr.Dataset]) -> xr.Dataset:
        """Return a piece: the one that is kept, or a new one that is kept from now on.

        Parameters
        ----------
        name : str
            Of the piece, as the name of a file.
        function : callable
            Makes it.

        Raises
        ------
        ArchiveError
            It cannot be written; the pieces before it are as they were.
        """
        if self.target is None or self._lock is None:
            return function()
        self._used.add(name)
        path = self._path(name)
        if path.exists():
            # A damaged one is computed again, and written over.
            with suppress(*translation.UNREADABLE):
                if path.is_symlink():
                    raise ValueError("a piece is a file of its own")
                with netcdf.open_lazily(netcdf.checked(path)) as ds:
                    return ds.load().drop_encoding()
        if made_of(self.target) is not None:
            # What is there is whole, and this would be another.
            parts.check_free(self.target, overwrite=self.overwrite)
        made = function()
        with translation.writing(path), files.replacing(path, follow=False) as temporary:
            netcdf.write_analysis(made, temporary)
        return made

    def keep(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays beside the pieces: what the next one is made with.

        Raises
        ------
        ArchiveError
            They cannot be written.
        """
        if self._lock is not None:
            path = self._lock.folder / f"{name}.npz"
            with translation.writing(path):
                parts.write(path, arrays)

    def kept(self, name: str) -> dict[str, NDArray[Any]]:
        """Return arrays that were kept.

        Raises
        ------
        ArchiveError
            They are missing or damaged.
        """
        assert self._lock, "only what has a target is kept"
        try:
            return parts.read(self._lock.folder / f"{name}.npz")
        except ArchiveError as error:
            raise self.damaged(name) from error

    def damaged(self, name: str) -> ArchiveError:
        """What to say of a piece, or of arrays, that cannot be made again by itself."""
        assert self.target
        return ArchiveError(
            f"{name} of what is kept of {self.target} is damaged; remove the folder "
            f"{folder_beside(self.target)} to start over"
        )

    def drop(self, name: str) -> None:
        """Remove arrays that were kept, where they are."""
        if self._lock is not None:
            (self._lock.folder / f"{name}.npz").unlink(missing_ok=True)

    def finish(
        self, ds: xr.Dataset, write: Callable[[xr.Dataset, Path], None] = netcdf.write_analysis
    ) -> None:
        """Write the whole to its file, and remove the pieces; Ctrl-C comes before or after that.

        A file that was made of these very pieces already is left as it is.

        Parameters
        ----------
        ds : xarray.Dataset
            The whole.
        write : callable, optional
            ``write(ds, path)`` writes it in place.

        Raises
        ------
        InputError
            Another file is there by now.
        ArchiveError
            It cannot be written; the pieces stay.
        """
        if self.target is None or self._lock is None:
            return
        with interrupts.put_off():
            names = sorted(self._used)
            if self.overwrite or made_of(self.target) != names:
                # Before it is written, too, which may take long.
                self._may_replace()
                whole = files.replacing(
                    self.target, folder=self._lock.folder, free=self._may_replace
                )
                with netcdf.replacing(self.target, whole) as temporary:
                    write(ds, temporary)
                    about = {"identity": seal.identity(temporary), "names": names}
                    self.keep(WRITTEN, {k: np.array(v, dtype=str) for k, v in about.items()})
            self._lock.remove()
            self._lock = None

    def _may_replace(self) -> bool:
        """Whether there is no file but one that may be replaced; raises where there is one."""
        assert self.target
        parts.check_free(self.target, overwrite=self.overwrite)
        if self._there() not in (self._replaces, ""):
            raise InputError(
                f"{self.target} is not the file that was there when this began; move it elsewhere, "
                f"and go on with what is kept in {folder_beside(self.target)}"
            )
        return True

    def _there(self) -> str | None:
        """Tell the file that has the target's name from others; None where it cannot be read."""
        with suppress(ArchiveError):
            return seal.identity(self.target) if self.target else ""
        return None

    def _path(self, name: str) -> Path:
        assert self._lock
        return self._lock.folder / f"{name}.nc"

    def _claim(self, path: Path) -> None:
        """Make sure the folder holds pieces of this very analysis, or none."""
        assert self._lock
        assert self.target
        if files.is_regular(path, follow=False) and not path.is_symlink():
            try:
                kept = files.content(path, LONGEST_SETTINGS).decode("utf-8", "replace")
            except ValueError:
                kept = ""
            if kept == self.settings:
                return
            if made_of(self.target) is not None:
                parts.check_free(self.target, overwrite=self.overwrite)
            elif not self.overwrite:
                raise InputError(
                    f"{self.target}: an unfinished analysis with other settings "
                    f"({_difference(kept, self.settings)}) lies beside it; go on with that one, "
                    "start over (--force, overwrite=True), or choose another name"
                )
        self._lock.clear()
        with files.replacing(path, follow=False) as temporary:
            temporary.write_text(self.settings, encoding="utf-8")


def fingerprint(ds: xr.Dataset) -> str:
    """SHA-256 of a walk's scalars and settings: which walk it is, without reading its θ."""
    digest = hashlib.sha256()
    for name in sorted(str(n) for n in ds.variables if n != "theta"):
        digest.update(name.encode())
        values = ds[name].values
        raw = values.tobytes() if values.dtype.kind in "fiu" else repr(values.tolist()).encode()
        digest.update(raw)
    digest.update(f"{ds['theta'].shape} {ds['theta'].dtype}".encode())
    settings = {str(k): str(v) for k, v in ds.attrs.items()}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _sources(ds: xr.Dataset) -> set[str]:
    """Files that a dataset was opened from; its variables know where it itself was changed."""
    encodings = (ds.encoding, *(variable.encoding for variable in ds.variables.values()))
    return {found for one in encodings if isinstance(found := one.get("source"), str)}


def _difference(kept: str, wanted: str) -> str:
    """Name a setting that differs."""
    try:
        old, new = json.loads(kept), json.loads(wanted)
        name = next(n for n in sorted({*old, *new}) if old.get(n) != new.get(n))
        if name == "config":
            return _difference(old[name], new[name])
        return f"{name}: {str(old.get(name))[:40]}, not {str(new.get(name))[:40]}"
    except (ValueError, TypeError, AttributeError, StopIteration, RecursionError):
        return "unreadable"
