"""What a command writes never takes the place of what it is made of."""

import os

import pytest

from geoflow import cli
from geoflow.cli.terminal import BAD_INPUT
from geoflow.errors import InputError
from geoflow.report.page import report

COMMANDS = ("pca", "spectrum", "slice", "predictions", "relaxation", "periodogram", "report")


@pytest.fixture(params=["name", "other name", "link", "hard link", "folder"])
def names(request, tmp_path):
    """One file by two names: what is read, and what is to be written."""
    path = tmp_path / "walk.nc"
    path.write_bytes(b"hours of work")
    other = tmp_path / "other.nc"
    if request.param == "link":
        other.symlink_to(path)
    elif request.param == "hard link":
        other.hardlink_to(path)
    else:
        other = {"other name": tmp_path / "." / ".." / tmp_path.name / path.name}.get(
            request.param, path
        )
    return (tmp_path if request.param == "folder" else path), other


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_an_input_is_refused_under_force_too(command, names, capsys):
    read, written = map(str, names)
    if os.path.isdir(read) and command not in ("pca", "report"):
        pytest.skip("it takes a file")
    assert cli.main([command, read, "--out", written, "--force"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error == (
        f"geoflow: error: --out {written}: it is made of this file; choose another name\n"
    )
    with open(written, "rb") as file:
        assert file.read() == b"hours of work"


def test_so_is_a_film_over_its_slice_and_a_walk_over_its_problem(tmp_path, capsys):
    film, problem = tmp_path / "slice.gif", tmp_path / "mine.py"
    film.write_bytes(b"a slice")
    problem.write_text("def mine(seed): ...")
    named = ["--problem", f"{problem}:mine"]
    for arguments in (
        ["animate", str(film), "--out", str(film)],
        ["run", *named, "--out", str(problem)],
        ["path", *named, "--levels", "1", "--out", str(problem)],
    ):
        assert cli.main([*arguments, "--force"]) == BAD_INPUT
        assert "it is made of this file" in capsys.readouterr().err
    assert film.read_bytes() == b"a slice"
    assert problem.read_text() == "def mine(seed): ..."


def test_a_page_over_one_of_its_files_is_refused_in_the_library(tmp_path):
    path = tmp_path / "walk.nc"
    path.write_bytes(b"hours of work")
    with pytest.raises(InputError, match=r"^out .*walk.nc: it is made of this file"):
        report([path], path, overwrite=True)
    assert path.read_bytes() == b"hours of work"
