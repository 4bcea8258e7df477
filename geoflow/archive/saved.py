"""What there is to go on from: a walk streamed beside its archive, or one the archive holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from geoflow.archive import parts, seal, trajectory_files
from geoflow.archive.checkpoint import Checkpoint
from geoflow.errors import ArchiveError, InputError
from geoflow.system import files, translation

WANTED = "a walk to go on from, run again"


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
    """

    checkpoint: Checkpoint
    attributes: dict[str, Any]
    tensors: list[list[Any]]

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
        See :func:`geoflow.system.files.check_target`; or an unfinished walk is streamed there.
    """
    path = files.check_target(path, overwrite=overwrite)
    if parts.is_resumable(path) and not overwrite:
        raise InputError(
            f"{path}: an unfinished walk is streamed beside it; `geoflow resume {path}` goes on "
            "with it, --force starts anew"
        )
    return path


def saved(path: Path) -> Saved:
    """Read where a walk stands: an unfinished one first, else the one in the file.

    Raises
    ------
    ArchiveError
        There is neither, or it is damaged.
    """
    if parts.is_resumable(path):
        arrays = parts.read(parts.folder_beside(path) / parts.CHECKPOINT)
        with translation.reading(path, WANTED):
            state = json.loads(arrays["state"].tobytes())
            attributes, tensors = dict(state["attributes"]), state["tensors"]
        return Saved(Checkpoint.unpack(arrays, state), attributes, tensors)
    if not files.is_file(path):
        raise ArchiveError(f"{path}: there is no such file, and no walk is streamed beside it")
    defect = seal.defect(path)
    if defect:
        raise ArchiveError(f"{path}: {defect}; run again")
    with trajectory_files.open_trajectory(path) as ds, translation.reading(path, WANTED):
        attributes = {k: v.item() if hasattr(v, "item") else v for k, v in ds.attrs.items()}
        shapes = zip(ds["tensor_name"].values, ds["tensor_shape"].values, strict=True)
        tensors = [[str(name), json.loads(shape)] for name, shape in shapes]
        return Saved(trajectory_files.read_checkpoint(path, ds), attributes, tensors)
