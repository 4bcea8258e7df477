"""What an HDF5 file is made of, held against its size before any other library opens it.

A file says of itself where its values lie and how many they are. A netCDF reader believes it: it
opens the other files that are named, goes round a circle of groups, and reserves what is declared.
So each file is walked once, with bounds, by the low-level functions of h5py. They follow no link
and open no other file. Of values they read netCDF's own numbers of dimensions and the short texts
by which it knows them, after a look at their type and their length, and HDF5 converts the fill
value of a variable, which is looked at before.

What passes is what the netCDF library writes with the filters of ``KNOWN``. Nothing of it costs
more than its own size says:

- a variable holds at most the bytes stored for it, or 1,032 times as many where they are deflated
  (zlib makes no more of a byte), and ``ALLOWANCE`` where nothing is stored;
- what is stored of all variables together is within the file;
- texts and lists of variable length are together no longer than the file, by the lengths that they
  claim (:mod:`geoflow.archive.claims`), and are there (:mod:`geoflow.archive.heap`): what stands in
  their place may be deflated, they are not;
- characters, which are read as soon as a file is opened, are no more than ``MOST_CHARACTERS``, or
  ``TEXT_RATIO`` times the file;
- a dimension without values may have any length, as nothing is read of it;
- groups and variables, which cost memory however small they are, are no more than ``MOST_GROUPS``
  and ``MOST_VARIABLES``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5t, h5z

from geoflow.archive import claims, texts
from geoflow.archive.heap import ELEMENT, Heaps, Unsound, lengths_of
from geoflow.trajectories.storable import LONGEST_TEXT

SIGNATURE = b"\x89HDF\r\n\x1a\n"
CLASSIC = b"CDF"

# Filters that every HDF5 has, and whose cost is known.
KNOWN = (h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32)

# zlib makes of a byte at most this many.
LARGEST_RATIO = 1032

# Bytes of a variable that has never been written to.
ALLOWANCE = 2**16

# Objects and attributes, and groups within groups; geoflow writes some 200, and one group.
MOST_ENTRIES = 2**16
DEEPEST = 8

# The netCDF library takes up to 65 kB for a group and 22 kB for a variable, whatever their size in
# the file, and ends the process at some 32,768 groups. Of a walk's observables, each with its
# attributes, ``MOST_ENTRIES`` lets through fewer than so many.
MOST_GROUPS, MOST_VARIABLES = 2**10, 2**14

# Of one object, as many as netCDF's NC_MAX_ATTRS: HDF5 may look for each among all others.
MOST_ATTRIBUTES = 2**13

# Of a variable whose texts have no common length; geoflow writes none.
MOST_TEXTS = 2**17

# Of all texts of a common length; geoflow writes kilobytes.
MOST_CHARACTERS, TEXT_RATIO = 2**26, 16

# Pure dimensions are data sets without values; netCDF says so in their names.
NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable."

# netCDF's types for numbers; netCDF stores them in no other way.
NUMBERS = [
    getattr(h5t, name + order)
    for name in (
        *("IEEE_F32", "IEEE_F64", "STD_I8", "STD_I16", "STD_I32", "STD_I64"),
        *("STD_U8", "STD_U16", "STD_U32", "STD_U64"),
    )
    for order in ("LE", "BE")
]

# Bytes of Fletcher's checksum, which HDF5 takes from each chunk.
CHECKSUM = 4

# Of a variable; HDF5 has no more.
MOST_DIMENSIONS = 32


# Attributes of netCDF's own, which its library reads without a look at their size: numbers of
# dimensions, one for each dimension of the variable or one alone; and short texts.
EACH, ALONE = b"_Netcdf4Coordinates", (b"_Netcdf4Dimid", b"_nc3_strict")
SHORT = (b"NAME", b"CLASS")
# Of a variable, one value; netCDF writes no other, and its readers make of several what they like.
FILL = b"_FillValue"
LONGEST_NAME = 256


def check(path: Path) -> None:
    """Walk a regular file's structure once, with bounds.

    Raises
    ------
    Unsound
        It is no HDF5 file, or holds what a file of geoflow does not.
    OSError, ValueError, RuntimeError, KeyError, TypeError
        HDF5 cannot read its structure; see :data:`geoflow.system.translation.UNREADABLE`.
    """
    with open(path, "rb") as file:
        start = file.read(len(SIGNATURE))
        size = file.seek(0, os.SEEK_END)
    if start.startswith(CLASSIC):
        raise Unsound("it is in netCDF's classic format; nccopy -k netCDF-4 makes a new one of it")
    if start != SIGNATURE:
        raise Unsound("it does not start as an HDF5 file does")
    with claims.Recording(path) as file:
        _Walk(size, file).check()


class _Walk:
    """One walk through a file: what has been met so far.

    Parameters
    ----------
    size : int
        Bytes of the file.
    source : Recording
        The file.
    """

    def __init__(self, size: int, source: claims.Recording) -> None:
        self.size, self.source = size, source
        self.heaps = Heaps(source, size)
        self.stored = self.text = self.characters = self.looked_through = 0
        self.entries = self.groups = self.variables = 0
        self.seen: set[int] = set()
        # Attributes of variable length by name: how many elements, and how they are shown.
        self.claiming: dict[bytes, list[tuple[int, str]]] = {}

    def check(self) -> None:
        with h5py.File(self.source, "r") as file:
            if file.id.get_create_plist().get_sizes() != (8, 8):
                raise Unsound("its addresses are not as long as netCDF's")
            root = h5g.open(file.id, b"/")
            self.seen.add(h5o.get_info(root).addr)
            self.group(root, "", 0)
        pieces = self.source.pieces()
        self.claimed(claims.check(pieces, self.claiming, self.heaps, LONGEST_TEXT))

    def claimed(self, more: int) -> None:
        self.text += more
        if self.text > self.size:
            raise Unsound(f"its texts claim {self.text:.3g} bytes, more than the file has")

    def group(self, group: Any, name: str, depth: int) -> None:
        if depth > DEEPEST:
            raise Unsound(f"its groups lie more than {DEEPEST} deep")
        self.attributes(group, name)
        self.count(group.get_num_objs())
        for link in list(group):
            shown = _shown(link)
            if group.links.get_info(link).type != h5l.TYPE_HARD:
                raise Unsound(f"{shown} is a soft or an external link")
            info = h5o.get_info(group, link)
            if info.addr in self.seen:
                raise Unsound(f"{shown} is there under two names")
            self.seen.add(info.addr)
            if info.type == h5o.TYPE_GROUP:
                self.groups += 1
                if self.groups > MOST_GROUPS:
                    raise Unsound(f"it holds more than {MOST_GROUPS:,} groups")
                self.group(h5g.open(group, link), shown, depth + 1)
            elif info.type == h5o.TYPE_DATASET:
                self.variables += 1
                if self.variables > MOST_VARIABLES:
                    raise Unsound(f"it holds more than {MOST_VARIABLES:,} variables")
                self.variable(h5d.open(group, link), shown)
            else:
                raise Unsound(f"{shown} is a type of its own")

    def count(self, more: int) -> None:
        self.entries += more
        if self.entries > MOST_ENTRIES:
            raise Unsound(f"it holds more than {MOST_ENTRIES:,} objects and attributes")

    def attributes(self, owner: Any, name: str, rank: int | None = None) -> None:
        """Look at the attributes of a group, or of a variable of so many dimensions."""
        names: list[bytes] = []
        if h5a.get_num_attrs(owner) > MOST_ATTRIBUTES:
            raise Unsound(f"{name or 'it'} has more than {MOST_ATTRIBUTES:,} attributes")
        # Opened by its place among them, each would have all of them sorted again.
        h5a.iterate(owner, names.append)
        self.count(len(names))
        if len(set(names)) < len(names):
            raise Unsound(f"two attributes{name and f' of {name}'} have one name")
        for each in names:
            attribute = h5a.open(owner, each)
            shown = f"attribute {_shown(each)}{name and f' of {name}'}"
            # None where it is without a data space, and then without elements.
            shape = attribute.shape
            number = 0 if shape is None else math.prod(shape)
            # Where it is 0, h5py raises an error.
            if number and attribute.get_storage_size() > LONGEST_TEXT:
                raise Unsound(f"{shown} is too long")
            kind = attribute.get_type()
            if (_is_text(kind) and kind.is_variable_str()) or kind.get_class() == h5t.VLEN:
                if len(each) > LONGEST_NAME:
                    raise Unsound(f"{shown} has a name of {len(each):,} bytes")
                self.claiming.setdefault(each, []).append((number, shown))
            tie = rank is not None and _is_tie(attribute, kind, rank)
            if not (_is_text(kind) or _is_number(kind) or tie):
                raise Unsound(f"{shown} holds neither numbers nor text")
            if not _is_as_written(attribute, kind, rank):
                raise Unsound(f"{shown} is not as netCDF writes it")

    def variable(self, variable: Any, name: str) -> None:
        kind = variable.get_type()
        heaped = _is_text(kind) and kind.is_variable_str()
        characters = not heaped and _is_text(kind) and kind.get_size() == 1
        alone = characters or (heaped and kind.get_super().get_size() == 1)
        if not (alone or _is_number(kind)):
            raise Unsound(f"{name} holds neither numbers nor text")
        if heaped:
            self.fill_value(name)
        plan = variable.get_create_plist()
        # Before its shape, for which HDF5 would open the files that it is made up from.
        if plan.get_layout() == h5d.VIRTUAL:
            raise Unsound(f"{name} is a virtual data set, made up from others")
        if plan.get_external_count():
            raise Unsound(f"the values of {name} lie in another file")
        shape = variable.shape
        if shape is None:
            raise Unsound(f"{name} has no shape")
        self.attributes(variable, name, len(shape))
        deflated = self.filters(plan, name)
        if len(shape) > MOST_DIMENSIONS:
            raise Unsound(f"{name} has {len(shape)} dimensions")
        number, size = math.prod(shape), kind.get_size()
        stored = variable.get_storage_size()
        self.stored += stored
        if self.stored > self.size:
            raise Unsound(f"its variables take {self.stored:.3g} bytes, more than the file has")
        if not stored and _is_pure_dimension(variable):
            return
        chunk = math.prod(plan.get_chunk()) if plan.get_layout() == h5d.CHUNKED else 0
        number = max(number, chunk * bool(stored))
        if number * size > stored * (LARGEST_RATIO if deflated else 1) + ALLOWANCE:
            raise Unsound(f"{name} declares {number * size:.3g} bytes, more than the file can hold")
        if heaped and number > MOST_TEXTS:
            raise Unsound(f"{name} holds more than {MOST_TEXTS:,} texts")
        self.characters += number * characters
        if self.characters > max(MOST_CHARACTERS, TEXT_RATIO * self.size):
            raise Unsound(f"its texts have {self.characters:.3g} characters")
        largest = chunk * (ELEMENT.itemsize if heaped else size)
        chunks = self.chunks(variable, plan, name, largest) if chunk else []
        if heaped and stored:
            for part in texts.of_variable(variable, self.source, chunks, name, largest):
                self.claimed(lengths_of(part))
                if not self.heaps.hold(part, 1):
                    raise Unsound(f"{name} claims texts that are not in the file's heap")

    def fill_value(self, name: str) -> None:
        """Look at the fill value of a variable of texts, which HDF5 reads for its plan."""
        new = self.source.pieces(self.looked_through, margin=texts.AROUND)
        self.looked_through = len(self.source.ranges)
        for value in texts.fill_values(new, self.heaps, self.size):
            self.claimed(lengths_of(value))
            if not self.heaps.hold(value, 1):
                raise Unsound(f"the fill value of {name} claims what is not in the file's heap")

    def chunks(self, variable: Any, plan: Any, name: str, largest: int) -> list[Any]:
        """Where a variable's chunks lie, of so many bytes each; refuses those that crash HDF5."""
        found: list[Any] = []
        variable.chunk_iter(found.append)
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        for chunk in found:
            used = [f for k, f in enumerate(filters) if not chunk.filter_mask >> k & 1]
            least = 1 if h5z.FILTER_DEFLATE in used else largest
            if h5z.FILTER_FLETCHER32 in used:
                least = max(least, CHECKSUM)
            if chunk.size < least:
                raise Unsound(f"{name} has a chunk of {chunk.size} bytes, which needs {least}")
            if chunk.byte_offset + chunk.size > self.size:
                raise Unsound(f"{name} has a chunk beyond the file's end")
        return found

    def filters(self, plan: Any, name: str) -> bool:
        """Whether values are deflated; refuses other filters, which HDF5 may have or may not."""
        found = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        for number in found:
            # Twice deflated, a byte becomes a million.
            if number not in KNOWN or found.count(number) > 1:
                raise Unsound(f"{name} has the filter {number}, which geoflow does not write")
        return h5z.FILTER_DEFLATE in found


def _is_text(kind: Any) -> bool:
    return hasattr(kind, "is_variable_str")


def _is_number(kind: Any) -> bool:
    size = kind.get_size()
    return any(kind.equal(number) for number in NUMBERS if number.get_size() == size)


def _is_as_written(attribute: Any, kind: Any, rank: int | None) -> bool:
    """Whether an attribute of netCDF's own is what its library takes it for; others are.

    ``rank`` is the number of dimensions of its variable, None for a group's.
    """
    if attribute.name == FILL and rank is not None:
        return attribute.shape is not None and math.prod(attribute.shape) == 1
    if attribute.name in SHORT:
        fixed = _is_text(kind) and not kind.is_variable_str()
        return fixed and attribute.shape == () and kind.get_size() <= LONGEST_NAME
    if attribute.name != EACH and attribute.name not in ALONE:
        return True
    shape = attribute.shape
    if kind.get_class() != h5t.INTEGER or shape is None or len(shape) > 1:
        return False
    if math.prod(shape) != ((rank or 0) if attribute.name == EACH else 1):
        return False
    found = np.empty(shape, dtype=np.int64)
    attribute.read(found, mtype=h5t.py_create(found.dtype))
    return bool((found >= 0).all() and (found < MOST_ENTRIES).all())


def _is_tie(attribute: Any, kind: Any, rank: int) -> bool:
    """Whether an attribute ties a variable's dimensions to their data sets, as HDF5 does."""
    if attribute.name == b"DIMENSION_LIST" and kind.get_class() == h5t.VLEN:
        tied = kind.get_super().get_class() == h5t.REFERENCE
        # A list for each dimension: netCDF reads as many, whatever is there.
        return tied and attribute.shape == (rank,)
    if attribute.name == b"REFERENCE_LIST" and kind.get_class() == h5t.COMPOUND:
        members = [kind.get_member_class(i) for i in range(kind.get_nmembers())]
        return members == [h5t.REFERENCE, h5t.INTEGER]
    return False


def _is_pure_dimension(variable: Any) -> bool:
    """Whether netCDF takes a data set for a dimension, and never for a variable."""
    texts = {}
    for name in (b"CLASS", b"NAME"):
        if not h5a.exists(variable, name):
            return False
        attribute = h5a.open(variable, name)
        if not _is_text(attribute.get_type()) or attribute.shape != ():
            return False
        found = np.empty((), dtype=attribute.dtype)
        attribute.read(found)
        texts[name] = found.item()
    return texts[b"CLASS"] == b"DIMENSION_SCALE" and texts[b"NAME"].startswith(NO_VARIABLE)


def _shown(name: bytes) -> str:
    """Return a name from a file, as a terminal may show it."""
    return ascii(name[:80].decode("utf-8", "replace"))
