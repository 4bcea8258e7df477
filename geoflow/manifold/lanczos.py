"""Lanczos' process, fully re-orthogonalised."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from geoflow.manifold.basis import Basis
from geoflow.problems.scaling import length


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor
) -> Iterator[tuple[float, float, Basis]]:
    """Steps of the process, one product each, for as long as they are asked for.

    Parameters
    ----------
    product : callable
        v (P,) → A v (P,), of a symmetric A.
    start : Tensor, shape (P,)
        Spans the first vector of the basis; not zero.

    Yields
    ------
    alpha, beta : float
        The next entries of the tridiagonal matrix: on its diagonal, and beside it. A last beta of
        zero, or of rounding, says that the space is invariant: then no step is to be asked for.
    basis : Basis
        Orthonormal vectors, as many as steps so far; the same each time.
    """
    basis = Basis(start, start.dtype)
    unit = start / length(start)
    while True:
        basis.append(unit, 1.0)
        image = product(unit)
        alpha = float(torch.dot(unit, image))
        # Twice, since what converges first comes back with what rounding leaves of it.
        for _ in range(2):
            image = image - basis.combined(basis.inner(image, len(basis)))
        beta = length(image)
        yield alpha, beta, basis
        unit = image.div_(beta)
