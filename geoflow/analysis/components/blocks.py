"""Points of parameter space a few columns at a time, from arrays that may be larger than memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import InputError
from geoflow.system import kinds
from geoflow.system.progress import progress_bar

Floats = NDArray[np.float64]

# Of a block in float64; up to the second number, where a chunk of the file needs it.
BLOCK_BYTES = 2**27
LARGEST_BLOCK_BYTES = 2**29


def column_blocks(
    points: Sequence[Any], title: str = "", progress: bool = False
) -> Iterator[tuple[slice, Floats]]:
    """Read all points, a few columns at a time, each chunk of a file or a Dask array once.

    Only an array whose chunks have so many columns that a block of them exceeds
    ``LARGEST_BLOCK_BYTES`` is read more than once: as often as its chunks are then divided.

    Parameters
    ----------
    points : sequence of array, shape (N_i, P)
        NumPy's or Dask's, or lazy ones of xarray, of whatever dtype.
    title, progress : str, bool
        Of the bar on standard error, where that is a terminal or a notebook's and a bar is wanted.

    Yields
    ------
    slice, array of float64, shape (ΣN_i, columns)
        The columns and a copy of them.

    Raises
    ------
    InputError
        There are no columns, or no real numbers in them.
    """
    spans = _spans(points)
    rows = np.cumsum([0, *(len(part) for part in points)])
    for columns in progress_bar(progress, spans, title, unit="block"):
        block = np.empty((rows[-1], columns.stop - columns.start))
        for part, start, end in zip(points, rows[:-1], rows[1:], strict=True):
            block[start:end] = kinds.as_numbers(part[:, columns], "points")
        yield columns, block


def block_bytes(points: Sequence[Any]) -> int:
    """Size of the largest block that :func:`column_blocks` gives."""
    return 8 * sum(map(len, points)) * max(s.stop - s.start for s in _spans(points))


def _spans(points: Sequence[Any]) -> list[slice]:
    p = points[0].shape[1]
    if not p:
        raise InputError(
            "points have no parameters; give arrays of shape (N, P) with P of 1 or more"
        )
    row = 8 * sum(map(len, points))
    chunk = min(p, max(map(_chunk_length, points)))
    if row * chunk > LARGEST_BLOCK_BYTES:
        # As many equal pieces of each chunk as it takes.
        pieces = math.ceil(row * chunk / BLOCK_BYTES)
        outer, inner = chunk, math.ceil(chunk / pieces)
    else:
        outer = inner = chunk * max(1, BLOCK_BYTES // (row * chunk))
    return [
        slice(start, min(start + inner, end))
        for first in range(0, p, outer)
        for end in [min(first + outer, p)]
        for start in range(first, end, inner)
    ]


def _chunk_length(part: Any) -> int:
    """Columns of a chunk, as far as the array says; 1 where any columns can be read alike."""
    chunks = getattr(part, "chunks", None)
    if chunks:
        return int(max(chunks[1]))
    sizes = getattr(part, "encoding", {}).get("chunksizes")
    return int(sizes[-1]) if sizes else 1
