"""What data of variable length claim by the bytes of a file, read without HDF5."""

import struct
import zlib

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z

from geoflow.archive import claims, parts, texts
from geoflow.archive.claims import Claim
from geoflow.archive.heap import ELEMENT, Heaps, Unsound
from geoflow.errors import ArchiveError

TIES = h5py.vlen_dtype(np.int64)


@pytest.fixture
def content(tmp_path):
    """A file with an attribute of two lists, of three and five numbers, and one of nothing."""
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        lists = np.array([np.arange(3), np.arange(5)], dtype=object)
        file.attrs.create("ties", lists, dtype=TIES)
        file.attrs["nothing"] = h5py.Empty(h5py.string_dtype())
    return path.read_bytes()


@pytest.fixture
def heaps(content, tmp_path):
    with open(tmp_path / "file.h5", "rb", buffering=0) as file:
        yield Heaps(file, len(content))


def test_an_attribute_claims_its_elements_by_their_size(content, heaps):
    wanted = {b"ties": {2: 1}, b"nothing": {0: 1}, b"none": {1: 1}}
    found = claims.of_attributes([content], wanted, heaps)
    assert found == {(b"ties", 2): [Claim(8 * 8, True)], (b"nothing", 0): [Claim(0, True)]}


@pytest.mark.parametrize(("filters", "refused"), [(b"\x0a\0", True), (b"\0\0", False)])
def test_a_heap_with_filters_hides_attributes(filters, refused, heaps):
    heap = b"before FRHP\0\x08\0" + filters + b"after"
    if refused:
        with pytest.raises(Unsound, match="heap with filters"):
            claims.of_attributes([heap], {b"x": {1: 1}}, heaps)
    else:
        assert claims.of_attributes([heap], {b"x": {1: 1}}, heaps) == {}


def test_what_all_attributes_claim_is_their_sum(content, heaps):
    met = {b"ties": [(2, "attribute 'ties' of a")], b"nothing": [(0, "attribute 'nothing'")]}
    assert claims.check([content], met, heaps, largest=64) == 64
    with pytest.raises(Unsound, match=r"'ties' of a is too long: it claims 64 bytes"):
        claims.check([content], met, heaps, largest=63)
    # One that is there stands for one that HDF5 has met, and for no other.
    met[b"ties"].append((2, "attribute 'ties' of b"))
    with pytest.raises(Unsound, match=r"attribute 'ties' is not stored as netCDF stores it"):
        claims.check([content], met, heaps, largest=64)


def elements(*lengths):
    made = np.zeros(len(lengths), ELEMENT)
    made["length"] = lengths
    return made.tobytes()


def lengths_of_texts(path, make):
    """Those that the elements of a variable of texts claim."""
    with h5py.File(path, "w") as file:
        make(file)
    with open(path, "rb", buffering=0) as raw, h5py.File(path) as file:
        variable, chunks = file["x"].id, []
        if variable.get_create_plist().get_layout() == h5d.CHUNKED:
            variable.chunk_iter(chunks.append)
        found = texts.of_variable(variable, raw, chunks, "x", 4 * ELEMENT.itemsize)
        return [int(length) for piece in found for length in piece["length"]]


def test_a_chunk_that_a_filter_has_left_out_is_read_as_it_is(tmp_path):
    def make(file):
        made = file.create_dataset("x", 8, h5py.string_dtype(), chunks=(4,), compression="gzip")
        made.id.write_direct_chunk((0,), elements(5, 0, 7, 0), filter_mask=1)
        made.id.write_direct_chunk((4,), zlib.compress(elements(0, 100, 0, 0)))

    assert lengths_of_texts(tmp_path / "file.h5", make) == [5, 0, 7, 0, 0, 100, 0, 0]


def test_texts_in_the_header_of_their_variable_are_unsound(tmp_path):
    def make(file):
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_layout(h5d.COMPACT)
        kind = h5t.py_create(h5py.string_dtype(), logical=True)
        h5d.create(file.id, b"x", kind, h5s.create_simple((3,)), plan)
        file["x"][:] = ["a", "bc", "def"]

    with pytest.raises(Unsound, match="the texts of x lie in its header"):
        lengths_of_texts(tmp_path / "file.h5", make)


def test_a_chunk_is_unpacked_no_further_than_a_chunk_may_be():
    packed = zlib.compress(bytes(1_000_000))
    # And by what a checksum may take.
    assert texts._unpacked(packed, [(h5z.FILTER_DEFLATE, 0, (), b"")], 32) == bytes(32 + 4)


def test_a_checksum_is_taken_off_and_what_fills_no_element_stays_last():
    content = bytes(range(7))
    shuffled = content[0:6:2] + content[1:6:2] + content[6:]
    filters = [(h5z.FILTER_SHUFFLE, 0, (2,), b""), (h5z.FILTER_FLETCHER32, 0, (), b"")]
    assert texts._unpacked(shuffled + b"sum.", filters, 7) == content


def test_a_part_that_declares_more_than_it_has_is_not_read(tmp_path):
    path = tmp_path / "part.npz"
    parts.write(path, {"a": np.arange(3.0)})
    content = bytearray(path.read_bytes())
    # Both sizes in the directory at its end.
    at = content.rindex(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", 2**20, 2**20)
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="declares more bytes than it has"):
        parts.read(path)
