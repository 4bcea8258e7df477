"""What a file's attributes of variable length claim, before HDF5 believes it.

What stands in the place of such data is read here from the bytes of the file, and what it claims is
looked for in the heap (:mod:`geoflow.archive.heap`). Which bytes are metadata is known by what HDF5
itself has read: an attribute stands there in one piece, with its name before it (HDF5 File Format
Specification 3.0, IV.A.2.m).

What was written over, and what only looks like an attribute, is found there too. That is safe as
long as every real attribute is among what is found, in each version of the message that HDF5 reads:
then more is claimed than there is, never less. What HDF5 would read and this module would not is
refused.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geoflow.archive.heap import ELEMENT, Heaps, Unsound, lengths_of

VARIABLE_LENGTH = 9
# Bytes before the name by version of the message; in 3 the encoding of the name is one of them.
BEFORE = {1: 8, 2: 8, 3: 9}
# Its type or its data space lies elsewhere, as only other programs store them.
ELSEWHERE = 3
# A heap of attributes, of version 0, that says how its content is filtered.
FILTERED = re.compile(rb"FRHP\0..(?!\0\0)..", re.DOTALL)
# Starts that are looked at together.
BLOCK = 2**20


class Recording(io.FileIO):
    """A file that keeps note of what HDF5 reads from it.

    Attributes
    ----------
    ranges : list of (int, int)
        Start and end of each piece.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.ranges: list[tuple[int, int]] = []

    def readinto(self, buffer: Any) -> int:
        """Read, as :meth:`io.RawIOBase.readinto`, which is what h5py calls."""
        start = self.tell()
        size = super().readinto(buffer) or 0
        self.ranges.append((start, start + size))
        return size

    def pieces(self, first: int = 0, margin: int = 0) -> list[bytes]:
        """What HDF5 has read: all metadata, what is free among it, and values that lie there.

        Pieces that touch are one; each byte is there once.

        Parameters
        ----------
        first : int
            Index of the range to begin with.
        margin : int
            Bytes more on both sides of each.
        """
        merged: list[list[int]] = []
        wider = ((max(start - margin, 0), end + margin) for start, end in self.ranges[first:])
        for start, end in sorted(wider):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        found = []
        for start, end in merged:
            self.seek(start)
            found.append(self.read(end - start))
        return found


class Claim(NamedTuple):
    """What something that looks like an attribute claims.

    Attributes
    ----------
    bytes : int
        Of all of its elements together.
    held : bool
        Whether the heap holds them.
    """

    bytes: int
    held: bool


def check(
    pieces: Sequence[bytes],
    met: Mapping[bytes, Sequence[tuple[int, str]]],
    heaps: Heaps,
    largest: int,
) -> int:
    """Bytes that attributes of variable length claim, all together.

    Parameters
    ----------
    pieces : sequence of bytes
        All metadata; see :meth:`Recording.pieces`.
    met : mapping of bytes to sequence of (int, str)
        How many elements each attribute of a name has by HDF5's word, and how it is shown.
    heaps : Heaps
        Of the file.
    largest : int
        That one may claim.

    Raises
    ------
    Unsound
        One is not found where netCDF stores it, claims more than it may or what is not there.
    """
    wanted = {name: Counter(number for number, _ in those) for name, those in met.items()}
    found = of_attributes(pieces, wanted, heaps)
    total = 0
    for name, numbers in wanted.items():
        for number, times in numbers.items():
            shown = [each for n, each in met[name] if n == number]
            # Which of them it is, nothing says.
            what = shown[0] if len(met[name]) == 1 else shown[0].partition(" of ")[0]
            # Of as many elements, those that claim the most.
            claims = sorted(found.get((name, number), []), key=lambda claim: -claim.bytes)
            if len(claims) < times:
                raise Unsound(f"{what} is not stored as netCDF stores it")
            if claims[0].bytes > largest:
                raise Unsound(f"{what} is too long: it claims {claims[0].bytes:.3g} bytes")
            if sum(claim.held for claim in claims) < times:
                raise Unsound(f"{what} claims what is not in the file's heap")
            total += sum(claim.bytes for claim in claims[:times])
    return total


def of_attributes(
    pieces: Sequence[bytes], wanted: Mapping[bytes, Mapping[int, int]], heaps: Heaps
) -> dict[tuple[bytes, int], list[Claim]]:
    """Find attributes of variable length by name and number of elements, wherever they stand.

    Parameters
    ----------
    pieces : sequence of bytes
        All metadata; see :meth:`Recording.pieces`.
    wanted : mapping of bytes to mapping of int to int
        Numbers of elements by name.
    heaps : Heaps
        Of the file.

    Raises
    ------
    Unsound
        Attributes may be stored so that they are not seen.
    """
    found: dict[tuple[bytes, int], list[Claim]] = {}
    if not wanted:
        return found
    left = 2 * sum(map(len, pieces))
    for piece in pieces:
        if FILTERED.search(piece):
            raise Unsound("it has a heap with filters, which netCDF does not write")
        for name, kind, space, at in _messages(piece, wanted):
            number = _number(piece, space)
            content = piece[at : at + number * ELEMENT.itemsize]
            # One that is cut off was written over.
            if number not in wanted[name] or len(content) < number * ELEMENT.itemsize:
                continue
            left -= len(content)
            if left < 0:
                raise Unsound("its attributes lie over one another")
            (base,) = struct.unpack_from("<I", piece, kind + 12)
            elements: NDArray[np.void] = np.frombuffer(content, ELEMENT)
            claim = Claim(base * lengths_of(elements), heaps.hold(elements, base))
            found.setdefault((name, number), []).append(claim)
    return found


def _messages(
    piece: bytes, wanted: Mapping[bytes, object]
) -> Iterator[tuple[bytes, int, int, int]]:
    """Whatever looks like one of these attributes: name, where its type, space and elements are.

    Raises
    ------
    Unsound
        The type or the data space of one lies elsewhere.
    """
    for start in _starts(piece, wanted):
        version, flags, *lengths = struct.unpack_from("<BBHHH", piece, start)
        at = start + BEFORE[version]
        name = piece[at : at + lengths[0] - 1]
        if name not in wanted or piece[at + lengths[0] - 1]:
            continue
        if version > 1 and flags & ELSEWHERE:
            raise Unsound(f"attribute {ascii(name[:80])[1:]} shares its type or its space")
        if version == 1:
            lengths = [-(-n // 8) * 8 for n in lengths]
        kind = at + lengths[0]
        (size,) = struct.unpack_from("<I", piece, kind + 4)
        if size != ELEMENT.itemsize:
            raise Unsound(f"attribute {ascii(name[:80])[1:]} has elements of {size} bytes")
        yield name, kind, kind + lengths[1], kind + lengths[1] + lengths[2]


def _starts(piece: bytes, wanted: Mapping[bytes, object]) -> Iterator[int]:
    """Where the message of one of these attributes may start, by its numbers."""
    data: NDArray[np.uint8] = np.frombuffer(piece, np.uint8)
    long = np.zeros(2**16, bool)
    long[[len(name) + 1 for name in wanted]] = True
    # Up to the base of its type.
    last = len(data) - (8 + 1 + 16)
    for first in range(0, last, BLOCK):
        block = data[first : min(first + BLOCK, last) + 4]
        lengths = block[2:-2] | block[3:-1].astype(np.uint16) << 8
        versions = block[:-4]
        starts = first + np.flatnonzero((versions > 0) & (versions <= 3) & long[lengths])
        yield from starts[_fit(data, starts)].tolist()


def _fit(data: NDArray[np.uint8], starts: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether a type of variable length follows the name, or one that lies elsewhere."""
    old = data[starts] == 1
    lengths = data[starts + 2] + 256 * data[starts + 3].astype(np.intp)
    kinds = starts + 8 + (data[starts] == 3) + np.where(old, -(-lengths // 8) * 8, lengths)
    inside = kinds + 16 <= len(data)
    kinds = np.where(inside, kinds, 0)
    elsewhere = ~old & (data[starts + 1] & ELSEWHERE > 0)
    return inside & (elsewhere | (data[kinds] & 15 == VARIABLE_LENGTH))


def _number(piece: bytes, at: int) -> int:
    """Elements of a data space, by its message; none where there is no message."""
    try:
        version, rank, _, kind = piece[at : at + 4]
        start = at + (8 if version == 1 else 4)
        if version == 2 and kind == 2:
            return 0
        return math.prod(struct.unpack_from(f"<{rank}Q", piece, start))
    except (struct.error, ValueError):
        return -1
