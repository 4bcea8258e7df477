"""Vectors as they are but for powers of two, where their squares would leave a float."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def of_size_one(values: NDArray[np.floating], axis: int) -> Floats:
    """Divide by powers of two, which rounds nothing, so that squares stay within a float.

    Parameters
    ----------
    values : array
        Vectors.
    axis : int
        Along which they lie; the largest entry of each becomes one of 1/2 to 1, but for zeros.
    """
    _, exponents = np.frexp(np.abs(values).max(axis=axis, keepdims=True, initial=0))
    scaled: Floats = np.ldexp(values, -exponents)
    return scaled


def lengths(vectors: NDArray[np.floating]) -> Floats:
    """Euclidean norms of vectors of whatever size, shape (…, P): shape (…).

    Of vectors whose squares are floats, those of NumPy to the bit.
    """
    _, exponents = np.frexp(np.abs(vectors).max(axis=-1, initial=0))
    found: Floats = np.ldexp(np.linalg.norm(of_size_one(vectors, -1), axis=-1), exponents)
    return found
