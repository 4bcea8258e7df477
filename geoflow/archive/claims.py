"""How long a file's data of variable length are by its own word, before HDF5 believes it.

Texts of variable length and lists of references lie in a heap. What is kept in their place is a
length and where in the heap they are, and HDF5 reserves as much as the length says before it looks
there: a file of some kilobytes can claim gigabytes. So the lengths are read here, from the bytes of
the file. Which bytes are metadata is known by what HDF5 itself has read: an attribute stands there
in one piece, with its name before it (HDF5 File Format Specification 3.0, IV.A.2.m).
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from h5py import h5d, h5z
from numpy.typing import NDArray

# In the file: a length, and the heap's address and the index there.
ELEMENT = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
VARIABLE_LENGTH = 9
HEAP = b"FRHP"
# Each is looked for by itself; other programs write some tens of them.
MOST_NAMES = 256


class Unsound(ValueError):
    """A file that would cost more than its size says, or read from another."""


class Recording(io.FileIO):
    """A file that keeps note of what is read from it.

    Attributes
    ----------
    ranges : list of (int, int)
        Start and end of each piece.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.ranges: list[tuple[int, int]] = []

    def readinto(self, buffer: Any) -> int:
        """Read, as :meth:`io.RawIOBase.readinto`."""
        start = self.tell()
        size = super().readinto(buffer) or 0
        self.ranges.append((start, start + size))
        return size

    def pieces(self) -> list[bytes]:
        """What has been read, pieces that touch as one, each byte once."""
        merged: list[list[int]] = []
        for start, end in sorted(self.ranges):
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
    """What an attribute in a file claims.

    Attributes
    ----------
    number : int
        Of its elements.
    bytes : int
        Of all of them together.
    """

    number: int
    bytes: int


def of_attributes(pieces: Sequence[bytes], names: Iterable[bytes]) -> dict[bytes, list[Claim]]:
    """Find the attributes of variable length of these names, wherever they stand in metadata.

    Parameters
    ----------
    pieces : sequence of bytes
        All metadata; see :meth:`Recording.pieces`.
    names : iterable of bytes
        Of the attributes.

    Raises
    ------
    Unsound
        Attributes may be packed, so that they are not seen.
    """
    wanted = sorted(set(names), key=len, reverse=True)
    found: dict[bytes, list[Claim]] = {name: [] for name in wanted}
    if not wanted:
        return found
    for piece in pieces:
        for at in _places(piece, HEAP):
            # Version, length of its identifiers, and length of what says how it is filtered.
            if piece[at + 4 : at + 5] == b"\0" and piece[at + 7 : at + 9] not in (b"\0\0", b""):
                raise Unsound("it has a heap with filters, which netCDF does not write")
        for name in wanted:
            for at in _places(piece, name + b"\0"):
                claim = _claim(piece, at, name)
                if claim is not None:
                    found[name].append(claim)
    return found


def _places(piece: bytes, text: bytes) -> Iterator[int]:
    at = piece.find(text)
    while at >= 0:
        yield at
        at = piece.find(text, at + 1)


def _claim(piece: bytes, at: int, name: bytes) -> Claim | None:
    """Read the message of an attribute whose name is at a place; None where there is none."""
    try:
        # Version 3 has the encoding of the name before it.
        for version, before in ((3, 9), (2, 8), (1, 8)):
            start = at - before
            if start < 0 or piece[start] != version:
                continue
            lengths = struct.unpack_from("<HHH", piece, start + 2)
            if lengths[0] != len(name) + 1:
                continue
            if version == 1:
                lengths = tuple(-(-n // 8) * 8 for n in lengths)
            kind, space = at + lengths[0], at + lengths[0] + lengths[1]
            if piece[kind] & 15 != VARIABLE_LENGTH:
                continue
            (base,) = struct.unpack_from("<I", piece, kind + 12)
            number = _number(piece, space)
            content = piece[space + lengths[2] :][: number * ELEMENT.itemsize]
            if len(content) < number * ELEMENT.itemsize:
                raise Unsound(f"attribute {name[:80]!r} is cut off")
            return Claim(number, base * lengths_of(content))
    except (struct.error, IndexError):
        pass
    return None


def _number(piece: bytes, at: int) -> int:
    """Elements of a data space, by its message."""
    version, rank = piece[at], piece[at + 1]
    start = at + (8 if version == 1 else 4)
    if version == 2 and piece[at + 3] == 2:
        return 0
    return math.prod(struct.unpack_from(f"<{rank}Q", piece, start))


def lengths_of(content: bytes) -> int:
    """Sum of the lengths that elements claim."""
    return int(np.frombuffer(content, ELEMENT)["length"].sum(dtype=np.int64))


def of_variable(variable: Any, file: Recording, name: str, largest: int) -> int:
    """Bytes that a variable's texts of variable length claim, all together.

    Parameters
    ----------
    variable : h5py.h5d.DatasetID
        The variable.
    file : Recording
        Its file.
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
    if not variable.get_storage_size():
        return 0
    if layout == h5d.CONTIGUOUS:
        file.seek(variable.get_offset())
        return lengths_of(file.read(math.prod(variable.shape) * ELEMENT.itemsize))
    if layout != h5d.CHUNKED:
        raise Unsound(f"the texts of {name} lie in its header")
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    total = 0
    for i in range(variable.get_num_chunks()):
        chunk = variable.get_chunk_info(i)
        file.seek(chunk.byte_offset)
        content = file.read(chunk.size)
        used = [f for k, f in enumerate(filters) if not chunk.filter_mask >> k & 1]
        total += lengths_of(_unpacked(content, used, largest))
    return total


def _unpacked(content: bytes, filters: Sequence[int], largest: int) -> bytes:
    for number in reversed(filters):
        if number == h5z.FILTER_FLETCHER32:
            content = content[:-4]
        elif number == h5z.FILTER_DEFLATE:
            content = zlib.decompressobj().decompress(content, largest + 4)
        elif number == h5z.FILTER_SHUFFLE:
            size = ELEMENT.itemsize
            whole = len(content) // size * size
            rows: NDArray[np.uint8] = np.frombuffer(content[:whole], np.uint8).reshape(size, -1)
            content = rows.T.tobytes() + content[whole:]
    return content[: len(content) // ELEMENT.itemsize * ELEMENT.itemsize]


def check(
    pieces: Sequence[bytes], met: Mapping[bytes, Sequence[tuple[int, str]]], largest: int
) -> int:
    """Bytes that attributes of variable length claim, all together.

    Parameters
    ----------
    pieces : sequence of bytes
        All metadata; see :meth:`Recording.pieces`.
    met : mapping of bytes to sequence of (int, str)
        How many elements each attribute of a name has by HDF5's word, and how it is shown.
    largest : int
        That one may claim.

    Raises
    ------
    Unsound
        One is not found where netCDF stores it, or claims more than it may.
    """
    if len(met) > MOST_NAMES:
        raise Unsound(f"it has attributes of variable length of more than {MOST_NAMES} names")
    found = of_attributes(pieces, met)
    total = 0
    for name, attributes in met.items():
        there = sorted(found[name], key=lambda claim: -claim.bytes)
        left = [claim.number for claim in there]
        for number, shown in attributes:
            if len(attributes) > 1:
                # Which of them it is, nothing says.
                shown = shown.partition(" of ")[0]
            if number not in left:
                raise Unsound(f"{shown} is not stored as netCDF stores it")
            left.remove(number)
            # What was written over may still be there: of as many, those that claim the most.
            most = next(claim for claim in there if claim.number == number)
            if most.bytes > largest:
                raise Unsound(f"{shown} is too long: it claims {most.bytes:.3g} bytes")
        total += sum(claim.bytes for claim in there[: len(attributes)])
    return total
