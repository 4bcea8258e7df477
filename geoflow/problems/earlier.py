"""What earlier archives say of the data of a problem."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from geoflow.problems import data
from geoflow.problems.dtypes import DTYPES
from geoflow.problems.joining import joined
from geoflow.problems.parts import BatchParts, ModulePart
from geoflow.problems.protocol import ProblemLike


def same_data(problem: ProblemLike, sha256: str) -> bool:
    """Whether a walk whose archive has this hash had the data of a problem.

    The hash is that of the data as they were given. In archives of experiments written before it
    was, it is that of the data converted to the walk's dtype; and of batches that hold more than
    tensors, that of the tensors alone.
    """
    if sha256 == problem.data_sha256:
        return True
    parts = getattr(problem, "_parts", None)
    if isinstance(parts, BatchParts):
        return sha256 == _of_tensors(parts.batches)
    if not isinstance(parts, tuple) or not all(isinstance(part, ModulePart) for part in parts):
        return False
    inputs, targets = (joined([getattr(p, what) for p in parts]) for what in ("inputs", "targets"))
    return any(
        sha256 == data.sha256(*(data.convert(d, dtype, problem.device) for d in (inputs, targets)))
        for dtype in DTYPES.values()
    )


def _of_tensors(batches: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for _, tensor in data.leaves(batch, ""):
            data.update(digest, tensor)
    return digest.hexdigest()
