"""Files that lie: what HDF5 can hold and geoflow never writes, and a watch over what is opened."""

from __future__ import annotations

import ctypes
import os
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import netCDF4
import numpy as np

OPENED = 0x20  # IN_OPEN of inotify(7)


@contextmanager
def watched(folder: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a file of a folder has been opened, by any library."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(folder), OPENED) > 0

    def opened() -> bool:
        try:
            return bool(os.read(watch, 4096))
        except BlockingIOError:
            return False

    try:
        yield opened
    finally:
        os.close(watch)


def _like(file: h5py.File, name: str, make: Callable[[h5py.Dataset], h5py.Dataset]) -> None:
    """Put another data set in a variable's place, with its attributes and dimensions."""
    old = file.pop(name)
    file[f"{name}_before"] = old
    new = make(old)
    for key in ("units", "long_name", "coordinates"):
        new.attrs[key] = old.attrs[key]
    for i, dimension in enumerate(old.dims):
        new.dims[i].attach_scale(dimension[0])
    del file[f"{name}_before"]


def _in(change: Callable[[h5py.File, Path], None]) -> Callable[[Path, Path], None]:
    """Change a file by h5py, where another folder holds what is not its own."""

    def doctored(path: Path, foreign: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file, foreign)

    return doctored


def external_storage(file: h5py.File, foreign: Path) -> None:
    def make(old: h5py.Dataset) -> h5py.Dataset:
        (foreign / "raw").write_bytes(old[:].tobytes())
        storage = [(str(foreign / "raw"), 0, old.nbytes)]
        return file.create_dataset("theta", old.shape, old.dtype, external=storage)

    _like(file, "theta", make)


def virtual(file: h5py.File, foreign: Path) -> None:
    def make(old: h5py.Dataset) -> h5py.Dataset:
        with h5py.File(foreign / "other.nc", "w") as other:
            other["theta"] = old[:]
        layout = h5py.VirtualLayout(old.shape, old.dtype)
        layout[:] = h5py.VirtualSource(foreign / "other.nc", "theta", old.shape)
        return file.create_virtual_dataset("theta", layout)

    _like(file, "theta", make)


def virtual_without_end(file: h5py.File, foreign: Path) -> None:
    """As many rows as the other file has: HDF5 asks it for them as soon as the shape is asked."""
    with h5py.File(foreign / "other.nc", "w") as other:
        other.create_dataset("x", data=np.ones(3), maxshape=(None,))
    layout = h5py.VirtualLayout((3,), "f8", maxshape=(None,))
    source = h5py.VirtualSource(foreign / "other.nc", "x", (3,), maxshape=(None,))
    layout[0 : h5py.h5s.UNLIMITED : 1] = source[0 : h5py.h5s.UNLIMITED : 1]
    file.create_virtual_dataset("x", layout)


def external_link(file: h5py.File, foreign: Path) -> None:
    with h5py.File(foreign / "other.nc", "w") as other:
        other["x"] = np.ones(3)
    file["x"] = h5py.ExternalLink(foreign / "other.nc", "x")


def external_link_for_theta(file: h5py.File, foreign: Path) -> None:
    with h5py.File(foreign / "other.nc", "w") as other:
        file.copy("theta", other)
    del file["theta"]
    file["theta"] = h5py.ExternalLink(foreign / "other.nc", "theta")


def soft_link(file: h5py.File, foreign: Path) -> None:
    file["x"] = h5py.SoftLink("/theta")


def circle(file: h5py.File, foreign: Path) -> None:
    file["checkpoint/again"] = file["/"]


def two_circles(file: h5py.File, foreign: Path) -> None:
    """Without a bound, twice as many groups at each depth."""
    a, b = file.create_group("a"), file.create_group("b")
    a["b"], a["a"], b["a"], b["b"] = b, a, a, b


def two_names(file: h5py.File, foreign: Path) -> None:
    file["x"] = file["theta"]


def deep(file: h5py.File, foreign: Path) -> None:
    file.create_group("/".join("g" * 20))


def _variable(name: str = "x", **how: object) -> Callable[[h5py.File, Path], None]:
    return lambda file, foreign: file.create_dataset(name, **how)


def _attribute(value: object, name: str = "x") -> Callable[[h5py.File, Path], None]:
    return lambda file, foreign: file["theta"].attrs.__setitem__(name, value)


def unknown_filter(file: h5py.File, foreign: Path) -> None:
    # As a plugin would have it, which HDF5 would look for and load.
    file.create_dataset(
        *("x", (4,), "f8"), chunks=(4,), compression=31_999, allow_unknown_filter=True
    )


def deflated_twice(file: h5py.File, foreign: Path) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((2**20,))
    plan.set_deflate(9)
    plan.set_deflate(9)
    space = h5py.h5s.create_simple((2**20,))
    made = h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F64LE, space, plan)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(2**20))


def one_chunk_of_many(file: h5py.File, foreign: Path) -> None:
    made = file.create_dataset("x", (2**40,), "f8", chunks=(2**10,))
    made[:10] = 1.0


def a_long_chunk(file: h5py.File, foreign: Path) -> None:
    """One value, and to read it a chunk of 512 MiB is reserved."""
    plan = {"maxshape": (None,), "chunks": (2**26,), "compression": 9, "shuffle": True}
    made = file.create_dataset("x", (1,), "f8", **plan)
    # As long a chunk, of nothing: a byte of it claims some 1,000,000.
    made.id.write_direct_chunk((0,), b"\0" * 64)


def many_texts_of_one(path: Path, foreign: Path) -> None:
    """1,000 texts of variable length, all of them the same megabyte of the file."""
    with h5py.File(path, "r+") as file:
        text = np.array(["x" * 2**20] + ["y"] * 999, dtype=object)
        made = file.create_dataset("x", data=text, dtype=h5py.string_dtype())
        start = made.id.get_offset()
    content = bytearray(path.read_bytes())
    content[start : start + 16_000] = 1000 * content[start : start + 16]
    path.write_bytes(content)


def many_texts_of_one_in_an_attribute(path: Path, foreign: Path) -> None:
    with h5py.File(path, "r+") as file:
        texts = np.array(["x" * 2**20] + ["y"] * 999, dtype=object)
        file["theta"].attrs.create("x", texts, dtype=h5py.string_dtype())


def _replace(path: Path, old: bytes, new: bytes) -> None:
    """Write other bytes in the place of some that are there, wherever they are."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def _element(length: int, heap: bytes, index: int) -> bytes:
    """What stands in the place of a text of variable length, or of a list."""
    return length.to_bytes(4, "little") + heap + index.to_bytes(4, "little")


def _heap_of(path: Path, text: bytes) -> tuple[bytes, int]:
    """Address of the heap that a text is in, as bytes, and its index there."""
    content = path.read_bytes()
    at = content.find(text)
    heap = content.rfind(b"GCOL", 0, at)
    return heap.to_bytes(8, "little"), int.from_bytes(content[at - 16 : at - 14], "little")


def a_text_that_claims(length: int) -> Callable[[Path, Path], None]:
    """A text of 100 characters that says it has some gigabytes."""

    def change(path: Path, foreign: Path) -> None:
        # As HDF5 wrote it once, without checksums that would tell.
        with h5py.File(path, "w", libver="earliest") as file:
            file.attrs.create("x", "Q" * 100, dtype=h5py.string_dtype())
        place = _heap_of(path, b"Q" * 100)
        _replace(path, _element(100, *place), _element(length, *place))

    return change


def a_tie_that_claims(length: int) -> Callable[[Path, Path], None]:
    """A variable tied to one dimension that says it is tied to millions."""

    def change(path: Path, foreign: Path) -> None:
        with h5py.File(path, "r+") as file:
            made = file.create_dataset("y", data=np.arange(4.0))
            file["x"] = np.arange(4.0)
            file["x"].make_scale("x")
            address = h5py.h5o.get_info(file["x"].id).addr.to_bytes(8, "little")
            made.dims[0].attach_scale(file["x"])
        content = path.read_bytes()
        # In the heap, behind its index and its length.
        heap = content.find((8).to_bytes(8, "little") + address) - 8
        index = int.from_bytes(content[heap : heap + 2], "little")
        start = content.rfind(b"GCOL", 0, heap).to_bytes(8, "little")
        _replace(path, _element(1, start, index), _element(length, start, index))

    return change


def attributes_of_one_text(path: Path, foreign: Path) -> None:
    """100 attributes, all of them the same 300,000 bytes of the file."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs.create("big", "Q" * 300_000, dtype=h5py.string_dtype())
        for i in range(100):
            file.attrs.create(f"z{i:03d}", f"r{i:05d}", dtype=h5py.string_dtype())
    big = _heap_of(path, b"Q" * 300_000)
    for i in range(100):
        place = _heap_of(path, f"r{i:05d}".encode())
        _replace(path, _element(6, *place), _element(300_000, *big))


def a_packed_text_that_claims(path: Path, foreign: Path) -> None:
    """Texts in a chunk that is deflated: what they claim is not seen in the file's bytes."""
    with h5py.File(path, "r+") as file:
        how = {"dtype": h5py.string_dtype(), "chunks": (300,), "compression": 9}
        made = file.create_dataset("x", data=np.array(["a"] * 300, dtype=object), **how)
        mask, packed = made.id.read_direct_chunk((0,))
        elements = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(300, 16).copy()
        elements[:, 3] = 1
        made.id.write_direct_chunk((0,), zlib.compress(elements.tobytes(), 9), mask)


def another_encoding(file: h5py.File, foreign: Path) -> None:
    """Python takes a time that grows with the square of the length to read some of them."""
    file["tensor_name"].attrs["_Encoding"] = np.bytes_("punycode")


def longer_dimension(file: h5py.File, foreign: Path) -> None:
    """Ten values on a dimension of 10¹¹: netCDF takes the dimension's word for it."""
    scale = file.create_dataset("long", (10**11,), ">f4")
    scale.make_scale(f"This is a netCDF dimension but not a netCDF variable.{10**11:10d}")
    scale.attrs["_Netcdf4Dimid"] = np.int32(99)
    file["x"] = np.ones(10)
    file["x"].dims[0].attach_scale(scale)


def later_start(path: Path, foreign: Path) -> None:
    """HDF5 finds a file at byte 512 too, behind what looks like another."""
    # Without the last byte of its seal, which would tell.
    path.write_bytes(b"\0" * 512 + path.read_bytes()[:-1])


def classic(path: Path, foreign: Path) -> None:
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_DATA") as file:
        file.createDimension("step", 3)
        file.createVariable("time", "f8", ("step",))[:] = range(3)


def no_file(path: Path, kind: str) -> None:
    """Put what is no regular file in a file's place."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "nothing":
        path.symlink_to(path.with_name("nothing"))
    else:
        raise ValueError(kind)


NO_FILES = ("pipe", "socket", "folder", "device", "nothing")


# What a file is changed by, and what is said of it.
STRUCTURES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "external storage": (_in(external_storage), "'theta' lie in another file"),
    "virtual": (_in(virtual), "'theta' is a virtual data set"),
    "virtual, without end": (_in(virtual_without_end), "'x' is a virtual data set"),
    "external link": (_in(external_link), "'x' is a soft or an external link"),
    "external link for theta": (_in(external_link_for_theta), "'theta' is a soft or an external"),
    "soft link": (_in(soft_link), "'x' is a soft or an external link"),
    "circle": (_in(circle), "'again' is there under two names"),
    "two circles": (_in(two_circles), "is there under two names"),
    "two names": (_in(two_names), "is there under two names"),
    "deep": (_in(deep), "groups lie more than 8 deep"),
    "lzf": (_in(_variable(data=np.ones(4), compression="lzf")), "'x' has the filter 32000"),
    "scale-offset": (_in(_variable(data=np.ones(4, int), scaleoffset=0)), "'x' has the filter 6"),
    "unknown filter": (_in(unknown_filter), "'x' has the filter 31999"),
    "deflated twice": (_in(deflated_twice), "'x' has the filter 1"),
    "never written": (_in(_variable(shape=(2**40,), dtype="f8")), "'x' declares 8.8e+12 bytes"),
    "never written, in chunks": (
        _in(_variable(shape=(2**40,), dtype="f8", chunks=(2**20,), compression=1)),
        "'x' declares 8.8e+12 bytes",
    ),
    "one chunk of many": (_in(one_chunk_of_many), "'x' declares 8.8e+12 bytes"),
    "a long chunk": (_in(a_long_chunk), "'x' declares 5.37e+08 bytes"),
    "many texts of one": (many_texts_of_one, "its texts claim 1.05e+09 bytes, more than"),
    "many texts of one, in an attribute": (
        many_texts_of_one_in_an_attribute,
        "attribute 'x' of 'theta' is too long: it claims 1.05e+06 bytes",
    ),
    "a text that claims": (a_text_that_claims(2**31 - 1), "attribute 'x' is too long: it claims"),
    "a text that claims all": (a_text_that_claims(2**32 - 1), "attribute 'x' is too long"),
    "a tie that claims": (a_tie_that_claims(2**28), "attribute 'DIMENSION_LIST' is too"),
    "a tie that claims all": (a_tie_that_claims(2**32 - 1), "attribute 'DIMENSION_LIST' is"),
    "attributes of one text": (attributes_of_one_text, "its texts claim 3.03e+07 bytes, more than"),
    "a packed text that claims": (a_packed_text_that_claims, "its texts claim 5.03e+09 bytes"),
    "another encoding": (_in(another_encoding), "'tensor_name' is in 'punycode', not in UTF-8"),
    "longer dimension": (_in(longer_dimension), "its variables declare 8e+11 bytes"),
    "long attribute": (_in(_attribute(np.zeros(2**18))), "attribute 'x' of 'theta' is too long"),
    "long text": (_in(_attribute("x" * 2**21)), "attribute 'x' of 'theta' is too long"),
    # The netCDF library takes these for what they should be, and crashes.
    "dimensions, as text": (
        _in(_attribute("x" * 40, "_Netcdf4Coordinates")),
        "attribute '_Netcdf4Coordinates' of 'theta' is not as netCDF writes it",
    ),
    "dimensions, too many": (
        _in(_attribute(np.arange(40, dtype="i4"), "_Netcdf4Coordinates")),
        "attribute '_Netcdf4Coordinates' of 'theta' is not as netCDF writes it",
    ),
    "dimensions, negative": (
        _in(_attribute(np.array([0, -7], "i4"), "_Netcdf4Coordinates")),
        "attribute '_Netcdf4Coordinates' of 'theta' is not as netCDF writes it",
    ),
    "dimension, as a list": (
        _in(_attribute(np.arange(40, dtype="i4"), "_Netcdf4Dimid")),
        "attribute '_Netcdf4Dimid' of 'theta' is not as netCDF writes it",
    ),
    "name, as numbers": (
        _in(_attribute(np.full(40, np.nan), "NAME")),
        "attribute 'NAME' of 'theta' is not as netCDF writes it",
    ),
    "name, too long": (
        _in(_attribute(np.bytes_("x" * 4000), "NAME")),
        "attribute 'NAME' of 'theta' is not as netCDF writes it",
    ),
    "class, as a number": (
        _in(_attribute(1.0, "CLASS")),
        "attribute 'CLASS' of 'theta' is not as netCDF writes it",
    ),
    "boolean attribute": (_in(_attribute(True)), "holds neither numbers nor text"),
    "compound": (
        _in(_variable(data=np.zeros(3, [("a", "f8"), ("b", "i4")]))),
        "'x' holds neither numbers nor text",
    ),
    "complex": (_in(_variable(data=np.zeros(3, complex))), "'x' holds neither numbers nor text"),
    "half precision": (_in(_variable(data=np.zeros(3, "f2"))), "'x' holds neither"),
    "opaque": (_in(_variable(data=np.zeros(3, "V8"))), "'x' holds neither numbers nor text"),
    "enumeration": (_in(_variable(data=np.zeros(3, bool))), "'x' holds neither numbers nor text"),
    "references": (
        _in(_variable(shape=(3,), dtype=h5py.ref_dtype)),
        "'x' holds neither numbers nor text",
    ),
    "variable length": (
        _in(_variable(shape=(3,), dtype=h5py.vlen_dtype("f8"))),
        "'x' holds neither numbers nor text",
    ),
    "texts of a length": (_in(_variable(data=np.zeros(3, "S9"))), "'x' holds neither numbers"),
    "no shape": (_in(lambda f, _: f.__setitem__("x", h5py.Empty("f8"))), "'x' has no shape"),
    "a type": (_in(lambda f, _: f.__setitem__("x", np.dtype("f8"))), "'x' is a type of its own"),
    "later start": (later_start, "does not start as an HDF5 file does"),
    "classic": (classic, "netCDF's classic format"),
}
