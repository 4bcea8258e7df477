"""What a command has worked out: written, drawn, and shown whether or not that can be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr

from geoflow.errors import ArchiveError, GeoflowError, InputError, StorageError
from geoflow.system import files, translation

Attempt = Callable[..., Any]


@contextmanager
def shown_in_any_case() -> Iterator[Attempt]:
    """Show what the block shows before an error in writing it is raised.

    Yields
    ------
    callable
        ``attempt(function, *arguments)`` gives what the function does, or None where it fails.

    Raises
    ------
    GeoflowError
        The first that an attempt has raised.
    """
    errors: list[GeoflowError] = []

    def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except GeoflowError as error:
            errors.append(error)
            return None

    try:
        yield attempt
    # Where it cannot be shown either, that is the lesser loss.
    except Exception:
        if not errors:
            raise
    if errors:
        raise errors[0] from None


def write(
    save: Callable[..., None], ds: xr.Dataset, out: str | Path, overwrite: bool = False
) -> None:
    """Write a result to a file that could be written when the work began.

    Parameters
    ----------
    save : callable
        ``save(ds, path, overwrite=…)``.
    ds : xarray.Dataset
        The result.
    out : str or Path
        The file.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    InputError
        It can be written no longer, as where its folder has gone.
    StorageError
        The disk does not take it; or another file got its name, and it is kept beside that.
    """
    path = Path(out)
    try:
        save(ds, path, overwrite=overwrite)
    except InputError:
        if overwrite or files.is_free(path):
            raise
        with translation.writing(path):
            beside = files.free_beside(files.resolved(path))
        save(ds, beside, overwrite=True)
        raise files.taken(path, beside) from None
    except StorageError:
        raise
    except ArchiveError as error:
        # Nobody has given a wrong argument.
        raise StorageError(str(error)) from error
