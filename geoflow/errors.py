"""Every error geoflow raises on purpose, each a child of :class:`GeoflowError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Characters of a message: what is given may be a text of any length, and a path 4,096.
LONGEST = 2_000


def one_line(message: str) -> str:
    """A message in one line that can be read: of a longer one the middle is left out.

    At its beginning it names the argument, and at its end the remedy.
    """
    line = " ".join(message.splitlines())
    if len(line) <= LONGEST:
        return line
    end = LONGEST // 3
    return f"{line[: LONGEST - end - 1]}…{line[-end:]}"


class GeoflowError(Exception):
    """Base class: catching it catches every error geoflow raises on purpose."""

    def __init__(self, message: object = "", *more: object) -> None:
        super().__init__(one_line(str(message)), *more)

    def __reduce__(self) -> tuple[Any, ...]:
        # Python calls the class with the message alone, and what comes by keyword is missing: a
        # pool of processes then waits for ever for the error.
        return _again, (type(self), self.args, vars(self))


def _again(
    kind: type[GeoflowError], args: tuple[Any, ...], attributes: Mapping[str, Any]
) -> GeoflowError:
    """Make an error as it was, out of a pickle or for a copy."""
    error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error


class InputError(GeoflowError, ValueError):
    """An argument that cannot be used: names the argument, its value and the remedy."""


class DataError(GeoflowError):
    """A data set that is missing, truncated or altered: names the file and the remedy."""


class ArchiveError(GeoflowError):
    """A trajectory file that cannot be read, written or trusted."""


class DamageError(ArchiveError, RuntimeError):
    """Values that a file promises and that cannot be read from it."""


class StorageError(ArchiveError):
    """The disk takes no more of a walk, or another file has got a result's name.

    What was streamed is kept, and can be resumed; a result that is whole is kept beside that file.
    """


class ClusterError(GeoflowError):
    """The cluster of a sweep has gone; what was done is kept, and the same call goes on."""


class ProcessLostError(GeoflowError):
    """Another process of a walk over several has ended; the walk up to there is kept."""


class DivergenceError(GeoflowError):
    """The processes of one walk are no longer at the same θ."""


class CriticalPointError(GeoflowError):
    """The loss gradient vanishes, so the level set is not a manifold there."""


class ConvergenceError(GeoflowError):
    """Newton re-projection did not reach the level set.

    Attributes
    ----------
    iterations : int
        Newton corrections made.
    residual : float
        L − c at the last point evaluated, in units of the loss.
    reason : str
        ``"diverged"``, ``"displacement"``, ``"iterations"``, ``"kkt"`` where it is no re-projection
        that failed but the way to a KKT point, ``"not_finite"`` where L, R or a gradient is no
        number there, or, where rounding holds up the iteration above the tolerance, ``"floor"``.
    """

    def __init__(self, message: str, *, iterations: int, residual: float, reason: str) -> None:
        super().__init__(message)
        self.iterations = iterations
        self.residual = residual
        self.reason = reason


class BranchError(GeoflowError):
    """A branch of a regularisation path goes no further.

    Attributes
    ----------
    status : str
        The path's: ``"fold"`` or ``"negative_multiplier"``.
    """

    def __init__(self, message: str, *, status: str) -> None:
        super().__init__(message)
        self.status = status


class StepSizeError(GeoflowError):
    """No step size above the rounding of the state meets the tolerance."""


class NumericalError(GeoflowError):
    """A decomposition failed, or a number overflowed, was divided by zero or is not finite."""


class ObservableError(GeoflowError):
    """An observable raised an error: names it, and what was raised."""


class EvaluationLimitError(GeoflowError):
    """The budget of evaluations is spent (see :meth:`geoflow.Problem.budget`)."""


class RankError(InputError):
    """Points span fewer dimensions than components are asked for."""
