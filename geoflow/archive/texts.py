"""What a file's variables of texts claim: in their elements, and in their fill values.

Texts of a variable have no common length: what is stored are elements that point at them
(:mod:`geoflow.archive.heap`). HDF5 reads them where values are asked for, and the fill value as
soon as it is asked how a variable is stored.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from h5py import h5d, h5z
from numpy.typing import NDArray

from geoflow.archive.heap import ELEMENT, Heaps, Unsound

# Bytes of a fill value with its size and what tells of it.
AROUND = 8 + 4 + ELEMENT.itemsize
# Bytes that are looked at together.
BLOCK = 2**20


def fill_values(pieces: Sequence[bytes], heaps: Heaps, size: int) -> Iterator[NDArray[np.void]]:
    """Whatever looks like the fill value of texts: its size, and an element that points at a heap.

    Parameters
    ----------
    pieces : sequence of bytes
        The metadata read so far.
    heaps : Heaps
        Of the file.
    size : int
        Bytes of the file.

    Yields
    ------
    array of ELEMENT, shape (1,)
        What such a value would be.

    Raises
    ------
    Unsound
        One points at a heap that is damaged.
    """
    size_of = struct.pack("<I", ELEMENT.itemsize)
    for piece in pieces:
        data: NDArray[np.uint8] = np.frombuffer(piece, np.uint8)
        last = len(data) - len(size_of) - ELEMENT.itemsize + 1
        for first in range(0, last, BLOCK):
            block = data[first : min(first + BLOCK, last) + len(size_of) - 1]
            alike = (block[:-3] == size_of[0]) & (block[1:-2] == 0) & (block[2:-1] == 0)
            at = first + len(size_of) + np.flatnonzero(alike & (block[3:] == 0))
            elements = data[at[:, None] + np.arange(ELEMENT.itemsize)].view(ELEMENT)[:, 0]
            for k in np.flatnonzero(elements["address"] < size).tolist():
                told = _tells_of_a_fill_value(piece[max(at[k] - 12, 0) : at[k] - 4])
                if told and heaps.collection(int(elements["address"][k])) is not None:
                    yield elements[k : k + 1]


def _tells_of_a_fill_value(before: bytes) -> bool:
    """Whether 8 bytes may stand before its size: elements in a row look alike but for that."""
    if len(before) < 8:
        return False
    # Version 3 and its flags; 1 or 2, when it is written, and whether there is one.
    if before[6] == 3 or (before[4] in (1, 2) and before[7]):
        return True
    # The older message: its type and its length, in headers of both versions.
    for at, end in ((0, 2), (2, 3), (4, 5)):
        long = int.from_bytes(before[end : end + 2], "little") >= 4 + ELEMENT.itemsize
        if before[at] == 4 and not any(before[at + 1 : end]) and long:
            return True
    return False


def of_variable(
    variable: Any, file: io.FileIO, chunks: Sequence[h5d.StoreInfo], name: str, largest: int
) -> Iterator[NDArray[np.void]]:
    """The elements of a variable of texts, one piece of the file after the other.

    Parameters
    ----------
    variable : h5py.h5d.DatasetID
        The variable.
    file : io.FileIO
        Its file.
    chunks : sequence of StoreInfo
        Where it lies, if in chunks.
    name : str
        For messages.
    largest : int
        Of a chunk, unpacked.

    Raises
    ------
    Unsound
        Its elements are stored as netCDF stores none.
    """
    plan = variable.get_create_plist()
    layout = plan.get_layout()
    if layout == h5d.CONTIGUOUS:
        file.seek(variable.get_offset())
        yield _elements(file.read(math.prod(variable.shape) * ELEMENT.itemsize))
    elif layout != h5d.CHUNKED:
        raise Unsound(f"the texts of {name} lie in its header")
    filters = [plan.get_filter(i) for i in range(plan.get_nfilters())]
    for chunk in chunks:
        file.seek(chunk.byte_offset)
        content = file.read(chunk.size)
        used = [f for k, f in enumerate(filters) if not chunk.filter_mask >> k & 1]
        yield _elements(_unpacked(content, used, largest))


def _elements(content: bytes) -> NDArray[np.void]:
    return np.frombuffer(content, ELEMENT, len(content) // ELEMENT.itemsize)


def _unpacked(content: bytes, filters: Sequence[tuple[Any, ...]], largest: int) -> bytes:
    """Undo the filters of a chunk, each by its number and its parameters."""
    for number, _, values, _ in reversed(filters):
        if number == h5z.FILTER_FLETCHER32:
            content = content[:-4]
        elif number == h5z.FILTER_DEFLATE:
            content = zlib.decompressobj().decompress(content, largest + 4)
        elif number == h5z.FILTER_SHUFFLE and values and 1 < values[0] <= len(content):
            # Of elements as long as the filter says, whatever they are.
            whole = len(content) // values[0] * values[0]
            rows: NDArray[np.uint8] = np.frombuffer(content[:whole], np.uint8)
            content = rows.reshape(values[0], -1).T.tobytes() + content[whole:]
    return content
