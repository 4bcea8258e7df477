"""Where HDF5 keeps data of variable length: heaps, walked here before HDF5 walks them.

Texts of variable length and lists of references lie in collections of a global heap. What is kept
in their place is a length and where they are: HDF5 reserves as much as the length says before it
looks there, copies as much as the heap says, and goes round for ever in a collection whose free
space is 0 bytes long. There is no checksum. So a collection that something points at is walked
here first, once, as HDF5 would (HDF5 File Format Specification 3.0, III.E).
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray

# What stands in the place of the data: a length, the address of a collection, the index there.
ELEMENT = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])

# Signature, version, and the bytes of the whole collection; then of each object its index, how
# often it is pointed at, and its bytes.
SIGNATURE, VERSION = b"GCOL", 1
COLLECTION = struct.Struct("<4sB3xQ")
OBJECT = struct.Struct("<H6xQ")
ALIGNED = 8
SMALLEST = 2**12


class Unsound(ValueError):
    """A file that would cost more than its size says, or read from another."""


def lengths_of(elements: NDArray[np.void]) -> int:
    """Sum of the lengths that elements claim."""
    return int(elements["length"].sum(dtype=np.int64))


class Heaps:
    """The heap collections of a file, each walked when it is first pointed at.

    Parameters
    ----------
    file : io.FileIO
        The file; its position is moved.
    size : int
        Bytes of the file.
    """

    def __init__(self, file: io.FileIO, size: int) -> None:
        self._file, self._size = file, size
        self._walked = 0
        self._found: dict[int, dict[int, int] | None] = {}

    def hold(self, elements: NDArray[np.void], base: int) -> bool:
        """Whether all that elements point at is there, and as long as they say.

        Parameters
        ----------
        elements : array of ELEMENT
            Those without an address are empty.
        base : int
            Bytes that each of their lengths counts.

        Raises
        ------
        Unsound
            One points at a collection that is damaged.
        """
        for length, address, index in elements[elements["address"] > 0].tolist():
            objects = self.collection(address)
            if objects is None or objects.get(index) != length * base:
                return False
        return True

    def collection(self, address: int) -> dict[int, int] | None:
        """Bytes of each object of a collection, by index; None where there is no collection.

        Raises
        ------
        Unsound
            It is damaged, or lies over others.
        """
        if address not in self._found:
            self._found[address] = self._walk(address)
        return self._found[address]

    def _walk(self, address: int) -> dict[int, int] | None:
        if address > self._size - SMALLEST:
            return None
        self._file.seek(address)
        signature, version, size = COLLECTION.unpack(self._file.read(COLLECTION.size))
        if signature != SIGNATURE:
            return None
        # One that was freed can be under another still.
        self._walked += size
        if version != VERSION or size < SMALLEST or self._walked > 2 * self._size:
            raise _damaged(address)
        content = self._file.read(size - COLLECTION.size)
        if len(content) < size - COLLECTION.size:
            raise _damaged(address)
        return _objects(content, address)


def _objects(content: bytes, address: int) -> dict[int, int]:
    """Walk through a collection: bytes of each object, by index."""
    found: dict[int, int] = {}
    at, end = 0, len(content)
    # What is too short for an object is free.
    while end - at >= OBJECT.size:
        index, size = OBJECT.unpack_from(content, at)
        if not index:
            # The free rest, its own header included.
            if size != end - at:
                raise _damaged(address)
            return found
        at += OBJECT.size + -(-size // ALIGNED) * ALIGNED
        if index in found or at > end:
            raise _damaged(address)
        found[index] = size
    return found


def _damaged(address: int) -> Unsound:
    return Unsound(f"its heap at byte {address} is damaged")
