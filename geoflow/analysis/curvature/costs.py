"""What the spectrum of an operator takes: its products, and the vectors held meanwhile."""

from __future__ import annotations

from geoflow.manifold.basis import BLOCK

# Up to this size a matrix is written out where that costs less than to go on: 32 MiB in float64.
WRITTEN_OUT = 2048


def products_needed(
    n: int, *, k: int, n_probes: int, n_steps: int, n_trace: int, max_products: int
) -> tuple[int, int]:
    """Products for both ends, density and trace of one operator: at the least and at the most.

    What the eigenvalues take between a first Krylov space and their budgets is not known
    beforehand; the other two take a fixed number.

    Parameters
    ----------
    n : int
        Size of the operator.
    k, n_probes, n_steps, n_trace, max_products : int
        As for the functions of :mod:`geoflow.analysis.curvature.matrix_free`.
    """
    third = n_trace // 3
    fixed = n_probes * min(n_steps, n) + 2 * min(third, n) + (third if third < n else 0) + 2 * k
    n_vectors = krylov_size(k)
    if is_small(n, k, max_products):
        return fixed + 2 * n, fixed + 2 * n
    # Largest, smallest, and the largest once more to know how far to shift.
    most = 3 * (n_vectors + before_writing(n, max_products))
    most += 2 * to_rank(n, k, max_products)
    most += 2 * n if is_written_out(n, max_products) else 0
    return fixed + 3 * n_vectors + 2, fixed + most + 2


def vectors_held(n: int, *, k: int, n_steps: int, n_trace: int) -> int:
    """The most vectors of an operator's size at a time, for both ends, density and trace.

    Those of the larger end are kept meanwhile, and a product's own are not counted.

    Parameters
    ----------
    n : int
        Size of the operator.
    k, n_steps, n_trace : int
        As for the functions of :mod:`geoflow.analysis.curvature.matrix_free`.
    """
    kept = k
    arpack = min(n, krylov_size(k)) + 2 * k + 4
    # The matrix, what it is made of, and its eigenvectors.
    written = 4 * n if n <= WRITTEN_OUT else 0
    # Its basis grows by whole blocks.
    lanczos = BLOCK * -(-min(n_steps, n) // BLOCK) + 3
    # As a list, as a matrix, and the two of its QR factors.
    sketch = 3 * min(n_trace // 3, n) + 3
    return kept + max(arpack, written, lanczos, sketch)


def is_small(n: int, k: int, max_products: int) -> bool:
    """Whether the matrix is written out at once.

    That costs little more than the iteration does at the least: a basis at the larger end, two and
    a look at the other end at the smaller one. And it passes no copy of an eigenvalue over.
    """
    n_vectors = krylov_size(k)
    return n <= n_vectors or (n <= 3 * n_vectors and is_written_out(n, max_products))


def is_written_out(n: int, max_products: int) -> bool:
    """Whether the matrix is written out where its eigenvalues are not found before."""
    return n <= min(max_products, WRITTEN_OUT)


def before_writing(n: int, max_products: int) -> int:
    """Products of one Lanczos iteration: as many as the matrix takes that is written out else."""
    return n if is_written_out(n, max_products) else max_products


def krylov_size(k: int) -> int:
    """Vectors of a basis in which k eigenvalues are sought."""
    return max(2 * k + 1, 20)


def to_rank(n: int, k: int, max_products: int) -> int:
    """The most products that decide whether those that converged are the outermost."""
    return min(n - 1, max(2 * krylov_size(k), max_products // 4))
