"""What a file is made of, looked at before anything is read from it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

import crashes
import doctored
import geoflow as gf
from geoflow import baselines, cli
from geoflow.archive import netcdf, parts, pieces, seal, structure
from geoflow.cli.terminal import BAD_INPUT
from geoflow.errors import ArchiveError, InputError

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def file(path, tmp_path):
    """The archive of a walk, to be changed, beside an empty folder."""
    (tmp_path / "foreign").mkdir()
    return Path(shutil.copyfile(path, tmp_path / "walk.nc"))


def every_command(file, good):
    """Every command that reads an archive."""
    out = file.parent
    return [
        ["info", str(file)],
        ["validate", str(file)],
        ["diff", str(file), str(good)],
        ["diff", str(good), str(file)],
        ["plot", str(file), "--out", str(out / "p")],
        ["report", str(file), "--out", str(out / "page.html")],
        ["pca", str(file)],
        ["periodogram", str(file)],
        ["relaxation", str(file)],
        ["spectrum", str(file)],
        ["slice", str(file), "--out", str(out / "slice.nc")],
        ["predictions", str(file)],
        ["animate", str(file), "--out", str(out / "film.gif")],
        ["resume", str(file), "--t-end", "2"],
        ["run", "--like", str(file)],
    ]


def check_refused(file, good, message, capsys):
    """Each command says it in one line, and leaves nothing behind."""
    there = sorted(file.parent.iterdir())
    for arguments in every_command(file, good):
        assert cli.main(arguments) == BAD_INPUT, arguments
        said = capsys.readouterr()
        lines = (said.err + said.out).splitlines()
        # validate has a line more of a file without its seal.
        lines = [line for line in lines if seal.MISSING not in line]
        assert len(lines) == 1, arguments
        assert message in lines[0], arguments
        assert str(file) in lines[0], arguments
    assert sorted(file.parent.iterdir()) == there


ALL = pytest.mark.parametrize(
    ("change", "message"), doctored.STRUCTURES.values(), ids=doctored.STRUCTURES
)


@ALL
def test_what_geoflow_does_not_write_is_refused(change, message, file):
    foreign = file.parent / "foreign"
    change(file, foreign)
    with doctored.watched(foreign) as opened:
        with pytest.raises(ArchiveError) as error:
            gf.open_trajectory(file)
        assert message in str(error.value)
        assert str(error.value).startswith(f"{file} is not a readable netCDF-4 file (")
        assert "\n" not in str(error.value)
        defects = gf.validate(file)
        assert defects[0] == seal.MISSING
        assert message in defects[-1]
        assert not opened()


@pytest.mark.slow
@ALL
def test_what_geoflow_does_not_write_is_refused_by_every_command(
    change, message, file, path, capsys
):
    foreign = file.parent / "foreign"
    change(file, foreign)
    seal.append(file)
    with doctored.watched(foreign) as opened:
        check_refused(file, path, message, capsys)
        assert not opened()


def test_a_file_whose_theta_lies_in_another_is_refused_by_every_command(file, path, capsys):
    """It was validated and resumed, and the other file's bytes copied and sealed."""
    change, message = doctored.STRUCTURES["external storage"]
    change(file, file.parent / "foreign")
    seal.append(file)
    check_refused(file, path, message, capsys)


def test_the_watch_sees_what_netcdf_opens(file):
    """Without the border, the other file's values are read as if they were the file's own."""
    foreign = file.parent / "foreign"
    doctored.STRUCTURES["external storage"][0](file, foreign)
    with doctored.watched(foreign) as opened, netCDF4.Dataset(file) as plain:
        assert not opened()
        assert plain["theta"][:].shape == (21, 4)
        assert opened()


@pytest.mark.parametrize("kind", doctored.NO_FILES)
def test_what_is_no_file_is_refused_by_every_command(kind, file, path, capsys):
    """Without waiting for somebody to write into it."""
    doctored.no_file(file, kind)
    if kind != "folder":
        return check_refused(file, path, "", capsys)
    for arguments in every_command(file, path):
        assert cli.main(arguments) == BAD_INPUT, arguments
        assert capsys.readouterr().err.count("\n") == 1, arguments


def test_each_name_of_an_object_is_shown_as_text(file):
    with h5py.File(file, "r+") as changed:
        changed["\x1b[2J\n"] = h5py.SoftLink("/theta")
    with pytest.raises(ArchiveError, match=r"'\\x1b\[2J\\n' is a soft"):
        gf.open_trajectory(file)


def test_more_objects_than_the_bound_are_not_looked_at(file, monkeypatch):
    with h5py.File(file) as changed:
        assert len(changed) > 30
    monkeypatch.setattr(structure, "MOST_ENTRIES", 30)
    with pytest.raises(ArchiveError, match="more than 30 objects and attributes"):
        gf.open_trajectory(file)


@pytest.mark.parametrize(
    ("kind", "bound", "said"),
    [
        (h5py.Group, 1024, "1,024 groups"),
        pytest.param(h5py.Dataset, 16384, "16,384 variables", marks=pytest.mark.slow),
    ],
)
def test_more_groups_or_variables_than_netcdf_bears_are_refused(kind, bound, said, file):
    """They cost much more memory than bytes, and 40,000 groups end the process in netCDF."""

    def add(n):
        for _ in range(n):
            if kind is h5py.Group:
                within.create_group(f"x{len(within)}")
            else:
                within.create_dataset(f"x{len(within)}", data=0.0)

    there = []
    with h5py.File(file, "r+", libver="latest") as changed:
        within = changed.create_group("within")
        changed.visititems(lambda _, each: there.append(isinstance(each, kind)))
        add(bound - sum(there))
    structure.check(file)
    with h5py.File(file, "r+", libver="latest") as changed:
        within = changed["within"]
        add(1)
    with pytest.raises(ArchiveError, match=f"it holds more than {said}"):
        gf.open_trajectory(file)


def test_several_fill_values_of_one_variable_are_refused(file):
    """The netCDF library writes one; xarray would take each of them for a missing value."""
    with h5py.File(file, "r+") as changed:
        changed["angle"].attrs["_FillValue"] = np.array([90.0, 100.0])
    with pytest.raises(ArchiveError, match="attribute '_FillValue' of 'angle' is not as netCDF"):
        gf.open_trajectory(file)


# Files that are good.


def test_what_other_programs_make_of_an_archive_passes(ds, tmp_path):
    """Text of variable length, dimensions without end, none compressed, attributes not ASCII."""
    path = tmp_path / "plain.nc"
    plain = ds.drop_encoding().assign_attrs(title="θ", tags=["a", "bc", "ü"])
    plain.to_netcdf(path, unlimited_dims=["step", "snapshot"])
    with h5py.File(path) as file:
        assert h5py.check_string_dtype(file["tensor_name"].dtype).length is None
        assert file["theta"].maxshape[0] is None
    with gf.open_trajectory(path) as opened:
        xr.testing.assert_identical(opened.load(), plain)


def test_a_walk_without_snapshots_and_without_end_passes(ds, tmp_path):
    path = tmp_path / "empty.nc"
    ds.drop_encoding().isel(snapshot=slice(0)).to_netcdf(path, unlimited_dims=["snapshot"])
    with gf.open_trajectory(path) as opened:
        assert opened.sizes["snapshot"] == 0


def test_what_compresses_best_passes(tmp_path):
    """zlib makes 1,032 bytes of one at most, and zeros come near to it."""
    path = tmp_path / "zeros.nc"
    zeros = xr.Dataset({"x": ("n", np.zeros(2**22))}, attrs={"kind": "test"})
    zeros.to_netcdf(path, encoding={"x": {"zlib": True, "complevel": 9, "chunksizes": (2**22,)}})
    assert zeros.nbytes > 800 * path.stat().st_size
    with netcdf.open_analysis(path) as opened:
        xr.testing.assert_identical(opened.load(), zeros)


def test_a_dimension_without_values_may_have_any_length(tmp_path):
    path = tmp_path / "long.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("n", 2**40)
        file.kind = "test"
    with netcdf.open_analysis(path) as opened:
        assert opened.attrs == {"kind": "test"}


NAMES = ["a.nc#mode=zarr", "~/a.nc", "http:/host/a.nc", "[mode=nczarr,file]a.nc", "file:a%20b.nc"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_a_file_and_nothing_else(name, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, name)
    assert gf.validate(name) == []
    with gf.open_trajectory(name) as opened:
        assert opened.sizes["step"] == 21


def test_a_file_that_is_open_in_h5py_is_read_all_the_same(path):
    with h5py.File(path) as file:
        with gf.open_trajectory(path) as opened:
            assert opened["theta"].shape == file["theta"].shape
        assert file["theta"][:].shape == (21, 4)


# Whatever is read: analyses, baselines, folders, and what lies beside a file.


READERS = {
    "analysis": netcdf.open_analysis,
    "slice": lambda path: netcdf.open_analysis(path, "slice"),
    "baseline": baselines.open_weight_decay,
    "sweep": lambda path: gf.open_sweep(path.parent),
    "report": lambda path: gf.report.report([path.parent], path.parent / "page.html"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_whatever_is_read_is_looked_at_first(read, file):
    foreign = file.parent / "foreign"
    change, message = doctored.STRUCTURES["external link for theta"]
    change(file, foreign)
    renamed = file.rename(file.with_name("seed-0001.nc"))
    with doctored.watched(foreign) as opened:
        with pytest.raises(ArchiveError) as error:
            read(renamed)
        assert message in str(error.value)
        assert not opened()


def test_a_checkpoint_in_another_file_is_not_gone_on_from(file):
    foreign = file.parent / "foreign"
    with h5py.File(foreign / "other.nc", "w") as other, h5py.File(file, "r+") as changed:
        changed.copy("checkpoint", other)
        del changed["checkpoint"]
        changed["checkpoint"] = h5py.ExternalLink(foreign / "other.nc", "checkpoint")
    seal.append(file)
    with doctored.watched(foreign) as opened:
        with pytest.raises(ArchiveError, match="'checkpoint' is a soft or an external link"):
            crashes.resume(file, t_end=2.0)
        assert not opened()


def never():
    raise AssertionError("computed again")


@pytest.mark.parametrize("kind", ["link", "external link"])
def test_a_piece_that_lies_elsewhere_is_computed_again(kind, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    own = xr.Dataset({"x": ("n", [1.0])})
    with pieces.Pieces(tmp_path / "a.nc", {}) as kept:
        kept.compute("0", lambda: own)
    piece = pieces.folder_beside(tmp_path / "a.nc") / "0.nc"
    if kind == "link":
        piece.rename(foreign / "0.nc")
        piece.symlink_to(foreign / "0.nc")
    else:
        with h5py.File(foreign / "0.nc", "w") as other, h5py.File(piece, "r+") as changed:
            changed.copy("x", other)
            del changed["x"]
            changed["x"] = h5py.ExternalLink(foreign / "0.nc", "x")
    with doctored.watched(foreign) as opened, pieces.Pieces(tmp_path / "a.nc", {}) as kept:
        other = xr.Dataset({"x": ("n", [2.0])})
        xr.testing.assert_identical(kept.compute("0", lambda: other), other)
        xr.testing.assert_identical(kept.compute("0", never), other)
        assert not opened()


def test_settings_of_pieces_that_are_a_pipe_are_refused(tmp_path):
    with pieces.Pieces(tmp_path / "a.nc", {}) as kept:
        kept.compute("0", lambda: xr.Dataset({"x": 1.0}))
    doctored.no_file(pieces.folder_beside(tmp_path / "a.nc") / pieces.SETTINGS, "pipe")
    with pytest.raises(InputError, match="a device, a pipe or a socket"):
        pieces.Pieces(tmp_path / "a.nc", {}).__enter__()


def test_a_manifest_that_is_a_pipe_is_refused(tmp_path):
    doctored.no_file(tmp_path / "sweep.json", "pipe")
    with pytest.raises(InputError, match="a device, a pipe or a socket"):
        gf.sweep("iris_ff", [0], tmp_path)


def streamed(tmp_path):
    """A walk that was cut off, and a folder that is not its own."""
    (tmp_path / "foreign").mkdir()
    folder = shutil.copytree(DATA / "resuming" / "rk4.parts", tmp_path / ".walk.nc.parts")
    return tmp_path / "walk.nc", Path(folder), tmp_path / "foreign"


@pytest.mark.parametrize("part", ["checkpoint.npz", "theta-000000003.npz", "steps-000000.npz"])
@pytest.mark.parametrize("kind", ["link", *(k for k in doctored.NO_FILES if k != "nothing")])
def test_parts_of_a_walk_are_files_of_their_own(part, kind, tmp_path):
    walk, folder, foreign = streamed(tmp_path)
    if kind == "link":
        (folder / part).rename(foreign / part)
        (folder / part).symlink_to(foreign / part)
    else:
        doctored.no_file(folder / part, kind)
    with doctored.watched(foreign) as opened:
        with pytest.raises(ArchiveError, match=r"a whole part of a walk, run again \(it is a link"):
            crashes.resume(walk)
        assert not opened()


def test_parts_in_a_linked_folder_are_not_read(tmp_path):
    walk, folder, foreign = streamed(tmp_path)
    folder.rename(foreign / "parts")
    folder.symlink_to(foreign / "parts")
    with doctored.watched(foreign / "parts") as opened:
        with pytest.raises(ArchiveError, match="it is a link"):
            crashes.resume(walk)
        assert not opened()


def test_a_part_holds_no_more_than_its_size(tmp_path):
    """A compressed one could be a thousand times as long as it is."""
    path = tmp_path / "part.npz"
    np.savez_compressed(path, x=np.zeros(2**20))
    with pytest.raises(ArchiveError, match="it is compressed"):
        parts.read(path)
    parts.write(path, {"x": np.zeros(100)})
    assert parts.read(path)["x"].shape == (100,)
    # A header that promises 10¹² numbers.
    content = path.read_bytes().replace(b"(100,), }" + b" " * 10, b"(10000000000,), }" + b" " * 2)
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="a whole part of a walk"):
        parts.read(path)


# What it costs.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many texts of one", "two circles", "a long chunk", "deep"])
def test_a_file_that_lies_takes_no_more_memory_than_a_good_one(name, file, path):
    program = """
import json, resource, sys
from geoflow import cli
status = cli.main(["validate", sys.argv[1]])
print(json.dumps([status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""
    doctored.STRUCTURES[name][0](file, file.parent / "foreign")
    found = []
    for each in (path, file):
        command = [sys.executable, "-c", program, each]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    (good, memory), (bad, more) = found
    assert (good, bad) == (0, BAD_INPUT)
    assert more < 1.1 * memory
