"""The manifest of a sweep's folder: one folder has one set of settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geoflow.errors import InputError
from geoflow.manifold import regularizers
from geoflow.sweeps.arguments import named_dtype
from geoflow.sweeps.tasks import FAILED, Outcome
from geoflow.system import files
from geoflow.system.translation import reason
from geoflow.walking.settings import DEFAULTS, OPTIONS

MANIFEST = "sweep.json"
FORMAT = "1.1"
# Bytes of a manifest; the largest have a list of some thousand numbers.
LONGEST = 2**24
# What runs leave in the folder, finished or not.
OF_RUNS = ("*.nc", ".*.nc.parts")


@contextmanager
def claimed(out: str | Path, settings: Mapping[str, Any]) -> Iterator[tuple[Path, list[Outcome]]]:
    """Make a sweep's folder, or check that what is in it has the same settings.

    A folder that this sweep has claimed, and in which no run of it has begun, is free again.

    Parameters
    ----------
    out : str or Path
        The folder.
    settings : mapping
        Of the sweep, as JSON can hold them.

    Yields
    ------
    (Path, list of Outcome)
        The folder, and a list that takes what becomes of the runs.

    Raises
    ------
    InputError
        It cannot be used, or is of other settings.
    """
    folder, is_new = _claim(out, {"geoflow_sweep": FORMAT, **settings})
    outcomes: list[Outcome] = []
    raised = True
    try:
        yield folder, outcomes
        raised = False
    finally:
        none_ran = raised or (outcomes and all(o.status == FAILED for o in outcomes))
        if is_new and none_ran and not any(any(folder.glob(name)) for name in OF_RUNS):
            with suppress(OSError):
                (folder / MANIFEST).unlink()


def _claim(out: str | Path, content: dict[str, Any]) -> tuple[Path, bool]:
    """The folder, and whether the manifest in it is new."""
    folder = files.folder_named(out, "out").absolute()
    manifest = folder / MANIFEST
    files.check_encoding(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not files.is_regular(manifest)
        if is_new:
            with files.replacing(manifest, follow=False) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n")
        there = _read(manifest)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"out={folder} cannot be used ({reason(error)}); choose another") from None
    _check_same(folder, there, content)
    return folder, is_new


def _read(manifest: Path) -> dict[str, Any]:
    """The settings in a manifest, as they are written now."""
    try:
        there = json.loads(files.content(manifest, LONGEST))
        if not isinstance(there, dict) or not isinstance(there.get("geoflow_sweep"), str):
            raise ValueError("not a sweep's")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{manifest} is damaged ({reason(error)}); remove it to go on with the runs beside it, "
            "or choose another folder"
        ) from None
    if there["geoflow_sweep"] == "1.0":
        try:
            there = {**current(there), "geoflow_sweep": FORMAT}
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise InputError(
                f"{manifest}: its settings are none of a sweep; choose another folder"
            ) from None
    return there


def _check_same(folder: Path, there: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    # As JSON has them: what was written and read is compared with the same.
    content = json.loads(json.dumps(content))
    for key in content:
        if there.get(key) != content[key]:
            raise InputError(
                f"{folder} holds a sweep with {key}={there.get(key)!r}, not {content[key]!r}; "
                "give the same to go on with it, or choose another folder"
            )


def current(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep's settings as they are written now, where they are of walks.

    In format 1.0 a solver is its name, ``degrees`` are in the place of a criterion, and what was
    not yet to be chosen has its default.
    """
    # Only the paper's were swept in format 1.0, and always in a dtype.
    if "solver" not in settings or settings["dtype"] is None:
        return dict(settings)
    names = [name for name in OPTIONS if name in settings]
    walks = DEFAULTS.changed(**{name: settings[name] for name in names})
    rest = {k: v for k, v in settings.items() if k not in names}
    return {"regularizer": regularizers.DEFAULT, **rest} | walks.resolved(
        named_dtype(settings["dtype"])
    ).config
