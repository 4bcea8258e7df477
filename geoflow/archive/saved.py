"""What there is to go on from: a walk streamed beside its archive, or one the archive holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from geoflow.archive import parts, pieces, seal, trajectory_files
from geoflow.archive.checkpoint import Checkpoint
from geoflow.errors import ArchiveError, InputError
from geoflow.system import files, locks, translation
from geoflow.trajectories.layout import layout_in

WANTED = "a walk to go on from, run again"

# What a file has in common with the walk streamed beside it, where it is of that walk: these
# attributes, and the settings but for the goals, which change where a walk goes further.
SAME = ("experiment", "seed", "data_sha256", "dtype", "level", "regularizer_name")
FURTHER = ("t_end", "stop", "max_evaluations")


class Saved(NamedTuple):
    """What there is to go on from.

    Attributes
    ----------
    checkpoint : Checkpoint
        Where the walk stands.
    attributes : dict
        Global attributes; with its status, where the walk has ended.
    tensors : list
        Name and shape of each parameter tensor.
    replaces : str, optional
        Of a walk that is not finished: :func:`geoflow.archive.seal.identity` of the file that had
        its name when it was begun. None where that was not noted.
    """

    checkpoint: Checkpoint
    attributes: dict[str, Any]
    tensors: list[list[Any]]
    replaces: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the walk came to an end of its own, and was not cut short."""
        return self.attributes.get("status") not in (None, "interrupted", "process_lost")

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the walk."""
        return json.loads(self.attributes["config"])


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """Make sure a walk can be streamed to a file before hours are spent on it.

    Raises
    ------
    InputError
        See :func:`geoflow.system.files.check_target`; or the file that is to be replaced cannot be
        read; or an unfinished walk is streamed there, or what is done of a path or an analysis lies
        there.
    """
    path = files.check_target(path, overwrite=overwrite)
    try:
        # The file that it is begun over is told from others by its end.
        seal.identity(path)
    except ArchiveError as error:
        raise InputError(f"{error}; remove it, or choose another name") from None
    if pieces.are_kept(path):
        raise InputError(
            f"{path}: an unfinished path or analysis lies beside it, in "
            f"{pieces.folder_beside(path)}; go on with that one, remove the folder, or choose "
            "another name"
        )
    if parts.is_resumable(path) and not overwrite:
        raise InputError(
            f"{path}: an unfinished walk is streamed beside it; `geoflow resume {path}` goes on "
            "with it, --force (overwrite=True) starts anew"
        )
    pieces.remove_left(path)
    return path


def saved(path: Path) -> Saved:
    """Read where a walk stands: an unfinished one first, else the one in the file.

    Raises
    ------
    ArchiveError
        There is neither, or it is damaged; or both, and they do not belong together.
    """
    if parts.is_resumable(path):
        arrays = parts.read(parts.folder_beside(path) / parts.CHECKPOINT)
        with translation.reading(path, WANTED):
            state = json.loads(arrays["state"].tobytes())
            attributes, tensors = dict(state["attributes"]), state["tensors"]
            replaces = state.get("replaces")
            n_parameters = sum(math.prod(shape) for _, shape in tensors)
            dtype, config = attributes["dtype"], attributes["config"]
        try:
            checkpoint = Checkpoint.unpack(arrays, state)
            checkpoint.check_state(n_parameters, dtype)
            checkpoint.check_carry(config)
        except ArchiveError as error:
            raise ArchiveError(f"{path}: {error}; walk again") from None
        if files.is_file(path) and replaces != seal.identity(path):
            check_same_walk(path, attributes, parts.folder_beside(path))
        return Saved(checkpoint, attributes, tensors, replaces)
    if not files.is_file(path):
        raise ArchiveError(f"{path}: there is no such file, and no walk is streamed beside it")
    # A process was killed as it removed them: a copy of what is in the file.
    locks.remove_left(parts.folder_beside(path), parts.CHECKPOINT, parts.OWN)
    defect = seal.defect(path)
    if defect == seal.MISSING and (other := trajectory_files.kind_there(path)):
        raise ArchiveError(
            f"{path} is not a trajectory: it is of the kind {other}; give the file of a walk"
        )
    if defect:
        raise ArchiveError(f"{path}: {defect}; run again")
    with trajectory_files.open_trajectory(path) as ds, translation.reading(path, WANTED):
        attributes = {k: v.item() if hasattr(v, "item") else v for k, v in ds.attrs.items()}
        return Saved(trajectory_files.read_checkpoint(path, ds), attributes, layout_in(ds))


def check_same_walk(path: Path, attributes: Mapping[str, Any], folder: Path) -> None:
    """Refuse to let an unfinished walk take the place of another, or of what is none.

    Parameters
    ----------
    path : Path
        The file that has its name.
    attributes : mapping
        Of the unfinished walk.
    folder : Path
        In which it is streamed.

    Raises
    ------
    ArchiveError
        Says in what they differ.
    """
    try:
        with trajectory_files.open_trajectory(path) as ds:
            pairs = [(_settings(a), a) for a in (dict(ds.attrs), attributes)]
        different = next((n for n in SAME if pairs[0][1].get(n) != pairs[1][1].get(n)), None)
        if different is None:
            there, streamed = (settings for settings, _ in pairs)
            names = sorted({*there, *streamed} - {*FURTHER})
            different = next((n for n in names if there.get(n) != streamed.get(n)), None)
        what = different and f"its {different} is another"
    except (ArchiveError, *translation.UNREADABLE):
        what = "it is no walk"
    if what:
        raise ArchiveError(
            f"{path} is not of the walk that is streamed beside it, in {folder}: {what}; move the "
            "file elsewhere to go on with the walk, or the folder"
        )


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found = json.loads(attributes["config"])
    if not isinstance(found, dict):
        raise ValueError("config is no JSON object")
    return found
