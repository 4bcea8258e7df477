"""What earlier archives say of the data of a problem."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
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
    tensors, that of the tensors alone, or of all but objects of other kinds.
    """
    return sha256 == problem.data_sha256 or sha256 in _earlier(problem)


def same_data_apart(problems: Sequence[ProblemLike], sha256: str) -> bool:
    """The same of the problems that R evaluates, whose hashes an archive has in one text."""
    hashes = sha256.split(" ")
    if len(hashes) != len(problems):
        return not sha256 and not problems
    return all(map(same_data, problems, hashes))


def _earlier(problem: ProblemLike) -> Iterator[str]:
    """Hashes that earlier archives have of the data of a problem."""
    if (several := getattr(problem, "problems", None)) is not None:
        hashes = [_before_objects(one) for one in several]
        yield hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    parts = getattr(problem, "_parts", None)
    if isinstance(parts, BatchParts):
        yield _of_tensors(parts.batches)
        yield _of_known(parts.batches)
    elif isinstance(parts, tuple) and all(isinstance(part, ModulePart) for part in parts):
        trees = [joined([getattr(p, what) for p in parts]) for what in ("inputs", "targets")]
        for dtype in DTYPES.values():
            yield data.sha256(*(data.convert(tree, dtype, problem.device) for tree in trees))


def _before_objects(problem: ProblemLike) -> str:
    parts = getattr(problem, "_parts", None)
    return _of_known(parts.batches) if isinstance(parts, BatchParts) else problem.data_sha256


def _of_tensors(batches: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for _, tensor in data.leaves(batch, ""):
            data.update(digest, tensor)
    return digest.hexdigest()


def _of_known(batches: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        data.update(digest, batch, objects=False)
    return digest.hexdigest()
