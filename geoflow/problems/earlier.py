"""What earlier archives say of the data of a problem."""

from __future__ import annotations

from geoflow.problems import data
from geoflow.problems.division import joined
from geoflow.problems.dtypes import DTYPES
from geoflow.problems.parts import ModulePart
from geoflow.problems.protocol import ProblemLike


def same_data(problem: ProblemLike, sha256: str) -> bool:
    """Whether a walk whose archive has this hash had the data of a problem.

    The hash is that of the data as they were given. In archives of experiments written before it
    was, it is that of the data converted to the walk's dtype.
    """
    if sha256 == problem.data_sha256:
        return True
    parts = getattr(problem, "_parts", None)
    if not isinstance(parts, tuple) or not all(isinstance(part, ModulePart) for part in parts):
        return False
    inputs, targets = (joined([getattr(p, what) for p in parts]) for what in ("inputs", "targets"))
    return any(
        sha256 == data.sha256(*(data.convert(d, dtype, problem.device) for d in (inputs, targets)))
        for dtype in DTYPES.values()
    )
