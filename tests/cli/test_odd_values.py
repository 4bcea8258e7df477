"""Values of options that are nothing, or no sense, and files that are odd but no walks."""

import errno
import json
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr

import geoflow as gf
from geoflow import cli
from geoflow.archive import netcdf, path_files, pieces, seal
from geoflow.cli.terminal import BAD_INPUT
from geoflow.errors import ArchiveError, InputError
from geoflow.system import translation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "iris_ff", "--like", ""], "name either an EXPERIMENT or a file"),
        (["run", "--like", ""], "'' names no file; give its name"),
        (["run", "iris_ff", "--constraints", ""], "--constraints: invalid choice: ''"),
        (["run", "iris_ff", "--data", ""], "data='': iris_ff carries its own data"),
        (["run", "mnist_ff", "--data", ""], "data='' names no folder"),
        (["run", "cifar10_conv", "--data", ""], "data='' names no folder"),
        (["run", "iris_ff", "--device", ""], "device=''"),
        (["run", "iris_ff", "--dtype", ""], "--dtype: invalid choice: ''"),
        (["run", "iris_ff", "--regularizer", ""], "the regularisation function '' is not one"),
        (["run", "iris_ff", "--solver", ""], "solver=''"),
        (["run", "iris_ff", "--stop", ""], "stop="),
        (["run", "iris_ff", "--event", ""], "function=''"),
        (["run", "--problem", ""], "--problem : use FILE.py:FUNCTION"),
        (["path", "iris_ff", "--levels", "", "--out", "x.nc"], "--levels: ''"),
        (["resume", ""], "'' names no file; give its name"),
        (["run", "iris_ff", "--out", " "], "' ' names no file; give its name"),
        (["resume", "x.nc", "--levels", ""], "--levels: ''"),
        (["info", ""], "'' names no file; give its name"),
        (["plot", "{path}", "--out", "x", "--baseline", ""], "names no file"),
        (
            [
                "compare",
                "iris_ff",
                "--solvers=bdf",
                "--rtols=1e-3",
                "--out=x.nc",
                "--reference",
                "",
            ],
            "''",
        ),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)
def test_an_option_that_is_nothing_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    path = Path(__file__).parents[1] / "data" / "path-1.0.nc"
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main([text.format(path=path) for text in arguments])
    except SystemExit as end:
        status = end.code
    assert status == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_library_takes_no_empty_name_for_the_present_folder():
    for resume in (gf.resume, gf.resume_path):
        for blank in ("", " "):
            with pytest.raises(InputError, match=f"'{blank}' names no file"):
                resume(blank)


def test_levels_too_far_for_numbers_are_refused_without_a_warning(tmp_path, capsys):
    out = ["--out", str(tmp_path / "x.nc")]
    assert cli.main(["path", "iris_ff", "--levels-to", "1e308", *out]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("geoflow: error: --levels-to 1e+308: the level of the trained")
    assert error.count("\n") == 1


@pytest.mark.parametrize("depth", [150, 400, 900])
def test_settings_that_are_nested_deep_are_a_defect_and_one_line(path, depth, tmp_path, capsys):
    deep = tmp_path / "deep.nc"
    deep.write_bytes(path.read_bytes()[: -seal.LENGTH])
    with netCDF4.Dataset(deep, "a") as file:
        config = file.getncattr("config")
        file.setncattr("config", f'{config[:-1]}, "zzz": {"[" * depth}{"]" * depth}}}')
    seal.append(deep)
    assert any("its config is nested more than 100 deep" in line for line in gf.validate(deep))
    status = cli.main(["info", str(deep), "--json"])
    said = capsys.readouterr()
    assert (status == BAD_INPUT and said.err.count("\n") == 1) or json.loads(said.out)
    assert cli.main(["run", "--like", str(deep)]) == BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"\0" * 2**25], ids=range(3))
def test_settings_of_pieces_that_cannot_be_read_are_those_of_another(content, tmp_path):
    with pieces.Pieces(tmp_path / "a.nc", {"n": 1}) as kept:
        kept.compute("0", lambda: xr.Dataset({"x": 1.0}))
    (pieces.folder_beside(tmp_path / "a.nc") / pieces.SETTINGS).write_bytes(content)
    with pytest.raises(InputError, match=r"with other settings \(unreadable\) lies beside it; go"):
        pieces.Pieces(tmp_path / "a.nc", {"n": 1}).__enter__()
    with pytest.raises(ArchiveError, match="is not what an analysis keeps"):
        path_files.kept_settings(tmp_path / "a.nc")
    with pieces.Pieces(tmp_path / "a.nc", {"n": 1}, overwrite=True) as kept:
        assert kept.missing(["0"]) == ["0"]


def test_a_full_disk_that_netcdf_calls_forbidden_is_called_full(tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(netcdf, "write", forbidden)
    ds = xr.Dataset({"x": ("n", np.arange(3.0))})
    with pytest.raises(ArchiveError, match=r"\(Permission denied\); choose another"):
        netcdf.save_dataset(ds, tmp_path / "a.nc")
    monkeypatch.setattr(translation, "LITTLE", 2**62)
    with pytest.raises(ArchiveError, match=r"\(No space left on device\); free space"):
        netcdf.save_dataset(ds, tmp_path / "a.nc")
