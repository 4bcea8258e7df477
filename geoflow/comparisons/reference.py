"""Which walk the others are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from geoflow import solvers
from geoflow.comparisons.dataset import TIGHTER
from geoflow.errors import InputError
from geoflow.solvers import Tolerance
from geoflow.system import kinds

# On a stiff flow its stability holds dopri5 to short steps whatever the tolerance, so that a tight
# one costs little more; it takes up to twenty times what CVODE does.
WITHOUT_SUNDIALS = "dopri5"
LOOSEST, BELOW = 1e-7, 1e-2


def reference_for(
    rtols: Mapping[str, Sequence[float]], solver: str | None, rtol: float | None
) -> tuple[str, float]:
    """Return solver and tolerance of the reference; see :func:`geoflow.comparisons.compare`.

    Parameters
    ----------
    rtols : mapping of str to sequence of float
        Tolerances that are compared, by the labels of the solvers.
    solver, rtol
        As they are given.

    Raises
    ------
    InputError
        A solver that is not known or not installed, or a tolerance that is not tighter than every
        other or is too tight for float64.
    """
    kinds.check_kind(solver, str | None, "reference", "the name of a solver")
    if solver is None:
        solver = "cvode" if solvers.is_installed("cvode") else WITHOUT_SUNDIALS
    solvers.get(solver)
    tightest = min(r for several in rtols.values() for r in several)
    if rtol is None:
        # As far as float64 resolves the walk that it is checked by.
        least = 20 * torch.finfo(torch.float64).eps / TIGHTER
        rtol = max(min(LOOSEST, BELOW * tightest), least)
    rtol = kinds.as_number(rtol, "reference_rtol")
    Tolerance.checked(rtol * TIGHTER, 0.0, torch.float64)
    if tightest <= rtol:
        raise InputError(
            f"rtol={tightest} is not looser than the reference's, {rtol}; "
            "drop it, or use a tighter reference_rtol"
        )
    return solver, rtol
