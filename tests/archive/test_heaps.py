"""What HDF5 believes of its heaps, chunks and fill values: looked at before it hangs or crashes."""

import json
import struct
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from h5py import h5z

import geoflow as gf
from geoflow.archive import claims, structure
from geoflow.archive.heap import COLLECTION, ELEMENT, OBJECT, Heaps, Unsound, _objects
from geoflow.errors import ArchiveError

TEXT = h5py.string_dtype()
PURE = "This is a netCDF dimension but not a netCDF variable.{:10d}"


def small(path, **changed):
    """A file as HDF5 wrote it once, without checksums: texts in attributes and in a variable."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["kind"] = np.bytes_("test")
        file.attrs["notes"] = "hello"
        file.attrs.create("tags", ["first", "second"], dtype=TEXT)
        n = file.create_dataset("n", (4,), "f4")
        n.make_scale(PURE.format(4))
        how = {"chunks": (4,), "fletcher32": True, **changed}
        file.create_dataset("x", data=np.arange(4.0), **how).dims[0].attach_scale(n)
        text = np.array(["ab", "cd", "e", "fg"], object)
        file.create_dataset("t", data=text, dtype=TEXT, chunks=(2,)).dims[0].attach_scale(n)
    return bytearray(path.read_bytes())


def in_the_heap(content):
    """Where the objects of the first collection are: index → place; 0 is what is free."""
    start = content.find(b"GCOL")
    (size,) = struct.unpack_from("<Q", content, start + 8)
    found, at = {}, start + 16
    while at < start + size:
        index, length = OBJECT.unpack_from(content, at)
        found[index] = at
        at += length if index == 0 else 16 + -(-length // 8) * 8
    return start, found


def heap(change):
    """Change the header of a collection and those of its objects."""

    def changed(path):
        content = small(path)
        change(content, *in_the_heap(content))
        path.write_bytes(content)

    return changed


def number(form, offset, value, index=None):
    """Write a number into the header of an object, or of the collection."""

    def change(content, start, objects):
        at = start if index is None else objects[index]
        struct.pack_into(form, content, at + offset, value)

    return heap(change)


def chunk_of(value, **how):
    """Say of the only chunk of x that it has so many bytes, in its tree, and is where it is."""

    def changed(path):
        content = small(path, **how)
        with h5py.File(path) as file:
            chunk = file["x"].id.get_chunk_info(0)
        key = struct.pack("<IIQQ", chunk.size, chunk.filter_mask, 0, 0)
        at = content.find(key + struct.pack("<Q", chunk.byte_offset))
        assert at > 0
        if value is None:
            struct.pack_into("<Q", content, at + len(key), len(content) - 8)
        else:
            struct.pack_into("<I", content, at, value)
        path.write_bytes(content)

    return changed


def a_fill_value_that_claims(length):
    def changed(path):
        with h5py.File(path, "w", libver="earliest") as file:
            file.attrs["kind"] = np.bytes_("test")
            file.create_dataset("s", (4,), TEXT, fillvalue="FILLFILL", chunks=(4,))
        content = path.read_bytes()
        start, _ = in_the_heap(content)
        old = struct.pack("<IQI", 8, start, 1)
        assert content.count(old) == 2  # the message of today, and the older one
        path.write_bytes(content.replace(old, struct.pack("<IQI", length, start, 1)))

    return changed


def message(version, flags=0, name=b"notes", size=16, elements=b"", number=1):
    """An attribute of texts of variable length, as it stands in metadata."""
    kind = struct.pack("<BBBBI", 0x19, 1, 1, 0, size) + bytes.fromhex("1000000001000000")
    kind += bytes.fromhex("00000800")
    space = struct.pack("<BBBBIQ", 1, 1, 0, 0, 0, number)
    parts = [name + b"\0", kind, space]
    head = struct.pack("<BBHHH", version, flags, *map(len, parts)) + b"\1" * (version == 3)
    if version == 1:
        parts = [part + b"\0" * (-len(part) % 8) for part in parts]
    return head + b"".join(parts) + elements


def a_shared_type_behind_a_decoy(path):
    """The type of the attribute lies elsewhere; in another's text is one that claims 5 bytes."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["kind"] = np.bytes_("test")
        file.attrs.create("other", "hello", dtype=TEXT)
        file["T"] = TEXT
        file.attrs.create("notes", "hello", shape=(1,), dtype=file["T"])
        del file["T"]
    content = path.read_bytes()
    start, _ = in_the_heap(content)
    place = struct.pack("<IQI", 5, start, 1)
    with h5py.File(path, "r+", libver="earliest") as file:
        file.attrs["decoy"] = np.bytes_(b"A" + message(1, elements=place) + b"B")
    content = path.read_bytes()
    lies = struct.pack("<IQI", 0xE0000000, start, 2)
    assert content.count(struct.pack("<IQI", 5, start, 2)) > 0
    path.write_bytes(content.replace(struct.pack("<IQI", 5, start, 2), lies))


def shuffled_by_one(path):
    """Texts that a filter shuffles by elements of 1 byte: they are not shuffled at all."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs["kind"] = np.bytes_("test")
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4,))
        plan.set_filter(h5py.h5z.FILTER_SHUFFLE, 1, (1,))
        kind = h5py.h5t.py_create(TEXT, logical=True)
        space = h5py.h5s.create_simple((4,))
        made = h5py.Dataset(h5py.h5d.create(file.id, b"s", kind, space, plan))
        made[1:] = ["hello", "world", "third"]
        at = made.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    for k in (1, 2, 3):
        struct.pack_into("<I", content, at + 16 * k, 0x70000000)
    path.write_bytes(content)


def elements_of_two_bytes(path):
    content = small(path)
    kind = content.find(b"notes\0") + 8
    assert content[kind + 4] == 16
    content[kind + 4] = 2
    path.write_bytes(content)


def a_tie_of_no_dimension(path):
    content = small(path)
    # Behind the length of the dimension, the most that it may have.
    at = content.find(struct.pack("<IQI", 1, in_the_heap(content)[0], 4)) - 16
    assert content[at] == 1
    content[at] = 0
    path.write_bytes(content)


def one_name_twice(path):
    content = small(path)
    path.write_bytes(content.replace(b"notes\0", b"tags\0\0").replace(b"\6\0\x14", b"\5\0\x14"))


LIES = {
    # HDF5 goes round for ever.
    "no free space": (number("<Q", 8, 0, index=0), "is damaged"),
    "more free space": (number("<Q", 8, 2**40, index=0), "is damaged"),
    "an object without end": (number("<Q", 8, 2**63 + 8, index=1), "is damaged"),
    "an object behind the end": (number("<Q", 8, 2**12, index=1), "is damaged"),
    "an index twice": (number("<H", 0, 1, index=2), "is damaged"),
    "longer than the file": (number("<Q", 8, 2**40), "is damaged"),
    "shorter than any": (number("<Q", 8, 64), "is damaged"),
    "another version": (number("<B", 4, 2), "is damaged"),
    # HDF5 crashes, or copies more than there is room for.
    "an index that is not there": (number("<H", 0, 60_000, index=1), "'notes' claims what is not"),
    "a longer object": (number("<Q", 8, 8, index=1), "'notes' claims what is not"),
    "no heap": (number("<B", 0, 0), "not in the file's heap"),
    "a text that is not there": (number("<H", 0, 60_000, index=6), "'t' claims texts that are"),
    **{f"a chunk of {n} bytes": (chunk_of(n), f"'x' has a chunk of {n} bytes") for n in (0, 3, 31)},
    "a deflated chunk of 3": (chunk_of(3, compression=1), "'x' has a chunk of 3 bytes"),
    "a chunk without filters": (chunk_of(8, fletcher32=False), "'x' has a chunk of 8 bytes"),
    "a chunk behind the end": (chunk_of(None), "'x' has a chunk beyond the file's end"),
    # HDF5 reserves gigabytes.
    "a fill value": (a_fill_value_that_claims(0xE0000000), "its texts claim 3.76e+09 bytes"),
    "a longer fill value": (a_fill_value_that_claims(9), "the fill value of 's' claims what is"),
    "a shared type": (a_shared_type_behind_a_decoy, "'notes' shares its type or its space"),
    "shuffled by one": (shuffled_by_one, "its texts claim 5.64e+09 bytes"),
    "elements of 2 bytes": (elements_of_two_bytes, "'notes' has elements of 2 bytes"),
    "a tie of no dimension": (a_tie_of_no_dimension, "'DIMENSION_LIST' of 'x' holds neither"),
    "one name twice": (one_name_twice, "two attributes have one name"),
}

PROGRAM = """
import json, resource, sys
from geoflow.archive import netcdf
from geoflow.errors import GeoflowError

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for name in sys.argv[1:]:
    try:
        with netcdf.kept_open(name) as ds:
            ds.load()
        said = ""
    except GeoflowError as error:
        said = str(error)
    print(json.dumps([name, said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]), flush=True)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What is said of each file by a process that may hang or crash, and its peak of memory."""
    folder = tmp_path_factory.mktemp("lies")
    small(folder / "good.nc")
    names = {"good": str(folder / "good.nc")}
    for i, (name, (change, _)) in enumerate(LIES.items()):
        names[name] = str(folder / f"{i}.nc")
        change(folder / f"{i}.nc")
    command = [sys.executable, "-c", PROGRAM, *names.values()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        lines = done.stdout.splitlines()
    except subprocess.TimeoutExpired as error:
        lines = (error.stdout or b"").decode().splitlines()
    found = {name: rest for name, *rest in map(json.loads, lines)}
    return {name: found.get(file, (None, 0)) for name, file in names.items()}


def test_a_file_that_does_not_lie_passes(said):
    assert said["good"][0] == ""


@pytest.mark.parametrize("name", LIES)
def test_what_hdf5_would_hang_or_crash_on_is_refused(name, said):
    assert said[name][0] is not None, "HDF5 hung or crashed"
    assert LIES[name][1] in said[name][0]
    assert "\n" not in said[name][0]
    # In KiB.
    assert said[name][1] < said["good"][1] + 100_000


def test_one_bit_of_a_genuine_archive_is_found(path, tmp_path):
    """It is where netCDF ties dimensions to variables, and has no checksum."""
    content = bytearray(path.read_bytes())
    _, objects = in_the_heap(content)
    content[objects[1] + 8] ^= 8
    (tmp_path / "walk.nc").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"its heap at byte \d+ is damaged"):
        gf.open_trajectory(tmp_path / "walk.nc")


# Every form of an attribute is seen, or refused.


class NoHeap(Heaps):
    def __init__(self):
        pass

    def hold(self, elements, base):
        return True


@pytest.mark.parametrize("before", [0, 1, 3, 2**20 - 9])
@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_each_form_of_an_attribute_is_seen_or_refused(version, flags, before):
    elements = np.array([(70, 8, 1), (30, 8, 2)], ELEMENT).tobytes()
    piece = b"\1" * before + message(version, flags, elements=elements, number=2)

    def claimed():
        return claims.of_attributes([piece], {b"notes": {2: 1}}, NoHeap())

    if version > 1 and flags:
        with pytest.raises(Unsound, match="'notes' shares its type or its space"):
            claimed()
    else:
        # The flags of the first version mean nothing.
        assert claimed() == {(b"notes", 2): [claims.Claim(100, True)]}


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_what_was_written_over_is_no_attribute(cut):
    elements = np.array([(70, 8, 1)], ELEMENT).tobytes()
    piece = message(3, elements=elements)[:-cut]
    assert claims.of_attributes([piece], {b"notes": {1: 1}}, NoHeap()) == {}


def test_attributes_over_one_another_are_refused():
    """Each of them could claim all that follows, and all together the square of it."""
    piece = message(3, number=1500) * 1000
    with pytest.raises(Unsound, match="lie over one another"):
        claims.of_attributes([piece], {b"notes": {1500: 1}}, NoHeap())


def test_heaps_over_one_another_are_walked_no_longer_than_the_file_is(tmp_path):
    path = tmp_path / "heaps"
    path.write_bytes(struct.pack("<4sB3xQ", b"GCOL", 1, 2**16) * 2**12 + b"\0" * 2**16)
    with claims.Recording(path) as file:
        heaps = Heaps(file, path.stat().st_size)
        with pytest.raises(Unsound, match="is damaged"):
            heaps.hold(np.array([(1, 16, 1)], ELEMENT), 1)
        walked = [heaps._walked]
        for at in range(32, 2**16, 16):
            with pytest.raises(Unsound, match="is damaged"):
                heaps.collection(at)
            walked.append(heaps._walked)
        assert walked[-1] > 2 * path.stat().st_size


def test_no_attribute_is_opened_by_its_place(path, monkeypatch):
    """HDF5 sorts all of them for each: thousands would take hours."""
    opened = structure.h5a.open

    def by_name(owner, name):
        return opened(owner, name)

    monkeypatch.setattr(structure.h5a, "open", by_name)
    structure.check(path)


def test_more_attributes_than_netcdf_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(structure, "MOST_ATTRIBUTES", 2)
    small(tmp_path / "a.nc")
    with pytest.raises(Unsound, match="it has more than 2 attributes"):
        structure.check(tmp_path / "a.nc")


@pytest.mark.parametrize("size", [0, 16, 80])
def test_free_space_that_is_not_the_rest_of_its_heap_is_refused(size):
    with pytest.raises(Unsound, match="is damaged"):
        _objects(OBJECT.pack(0, size) + bytes(48), 4096)


@pytest.mark.parametrize("size", [8, 64])
def test_a_heap_shorter_than_any_is_refused(size, tmp_path):
    content = COLLECTION.pack(b"GCOL", 1, size) + OBJECT.pack(0, 48) + bytes(8192)
    (tmp_path / "heap").write_bytes(content)
    with (tmp_path / "heap").open("rb", buffering=0) as file, pytest.raises(Unsound, match="is d"):
        Heaps(file, 8192).collection(0)


def chunks(offset, size, filters):
    """What is made of a variable of one chunk of 64 bytes, in a file of 1000."""
    one = SimpleNamespace(byte_offset=offset, size=size, filter_mask=0)
    variable = SimpleNamespace(chunk_iter=lambda take: take(one))
    plan = SimpleNamespace(get_nfilters=lambda: len(filters), get_filter=lambda i: (filters[i],))
    return structure._Walk(1000, SimpleNamespace()).chunks(variable, plan, "v", 64)


CHECKED = [h5z.FILTER_DEFLATE, h5z.FILTER_FLETCHER32]


@pytest.mark.parametrize(
    ("offset", "size", "filters", "said"),
    [
        (937, 64, [], "beyond the file's end"),
        (0, 63, [], "a chunk of 63 bytes, which needs 64"),
        (0, 3, CHECKED, "a chunk of 3 bytes, which needs 4"),
    ],
)
def test_chunks_that_end_beyond_the_file_or_hold_too_little_are_refused(
    offset, size, filters, said
):
    with pytest.raises(Unsound, match=said):
        chunks(offset, size, filters)


def test_chunks_up_to_the_end_and_no_longer_than_their_checksum_are_good():
    assert len(chunks(936, 64, [])) == 1
    assert len(chunks(0, 4, CHECKED)) == 1
