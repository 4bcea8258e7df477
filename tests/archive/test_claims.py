"""What data of variable length claim by the bytes of a file, read without HDF5."""

import struct
import zlib

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z

from geoflow.archive import claims, parts
from geoflow.archive.claims import Claim, Unsound
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


def test_an_attribute_claims_its_elements_by_their_size(content):
    found = claims.of_attributes([content], [b"ties", b"nothing", b"none"])
    assert found == {b"ties": [Claim(2, 8 * 8)], b"nothing": [Claim(0, 0)], b"none": []}


def test_an_attribute_that_is_cut_off_is_unsound(content):
    begin = content.index(b"ties\0")
    # As far as its last element: by fewer bytes it is no longer whole.
    end = next(end for end in range(begin + 32, len(content)) if _is_whole(content[:end]))
    assert claims.of_attributes([content[:end]], [b"ties"])[b"ties"] == [Claim(2, 64)]
    with pytest.raises(Unsound, match=r"attribute b'ties' is cut off"):
        claims.of_attributes([content[: end - 1]], [b"ties"])


def _is_whole(piece):
    try:
        return claims.of_attributes([piece], [b"ties"])[b"ties"] == [Claim(2, 64)]
    except Unsound:
        return False


@pytest.mark.parametrize(("filters", "refused"), [(b"\x0a\0", True), (b"\0\0", False)])
def test_a_heap_with_filters_hides_attributes(filters, refused):
    heap = b"before FRHP\0\x08\0" + filters + b"after"
    if refused:
        with pytest.raises(Unsound, match="heap with filters"):
            claims.of_attributes([heap], [b"x"])
    else:
        assert claims.of_attributes([heap], [b"x"]) == {b"x": []}


def test_what_all_attributes_claim_is_their_sum(content):
    met = {b"ties": [(2, "attribute 'ties' of a")], b"nothing": [(0, "attribute 'nothing'")]}
    assert claims.check([content], met, largest=64) == 64
    with pytest.raises(Unsound, match=r"'ties' of a is too long: it claims 64 bytes"):
        claims.check([content], met, largest=63)
    # One that is there stands for one that HDF5 has met, and for no other.
    met[b"ties"].append((2, "attribute 'ties' of b"))
    with pytest.raises(Unsound, match=r"attribute 'ties' is not stored as netCDF stores it"):
        claims.check([content], met, largest=64)


def test_attributes_of_too_many_names_are_not_looked_for():
    met = {b"x%d" % i: [] for i in range(257)}
    with pytest.raises(Unsound, match="more than 256 names"):
        claims.check([b""], met, largest=64)
    del met[b"x0"]
    assert claims.check([b""], met, largest=64) == 0


def elements(*lengths):
    made = np.zeros(len(lengths), claims.ELEMENT)
    made["length"] = lengths
    return made.tobytes()


def variable_of(path, make):
    with h5py.File(path, "w") as file:
        make(file)
    with claims.Recording(path) as recording, h5py.File(path) as file:
        return claims.of_variable(file["x"].id, recording, "x", 4 * claims.ELEMENT.itemsize)


def test_a_chunk_that_a_filter_has_left_out_is_read_as_it_is(tmp_path):
    def make(file):
        texts = file.create_dataset("x", 8, h5py.string_dtype(), chunks=(4,), compression="gzip")
        texts.id.write_direct_chunk((0,), elements(5, 0, 7, 0), filter_mask=1)
        texts.id.write_direct_chunk((4,), zlib.compress(elements(0, 100, 0, 0)))

    assert variable_of(tmp_path / "file.h5", make) == 112


def test_texts_in_the_header_of_their_variable_are_unsound(tmp_path):
    def make(file):
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_layout(h5d.COMPACT)
        kind = h5t.py_create(h5py.string_dtype(), logical=True)
        h5d.create(file.id, b"x", kind, h5s.create_simple((3,)), plan)
        file["x"][:] = ["a", "bc", "def"]

    with pytest.raises(Unsound, match="the texts of x lie in its header"):
        variable_of(tmp_path / "file.h5", make)


def test_a_chunk_is_unpacked_no_further_than_a_chunk_may_be():
    packed = zlib.compress(bytes(1_000_000))
    assert claims._unpacked(packed, [h5z.FILTER_DEFLATE], 32) == bytes(32)


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
