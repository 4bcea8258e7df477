"""What commands do where standard output or standard error takes nothing, or not all characters."""

import json
import math
import os
import shutil
import subprocess
import sys

import netCDF4
import numpy as np
import pytest
import xarray as xr
from rich.table import Table

import geoflow as gf
from geoflow import cli
from geoflow.cli import terminal
from geoflow.cli.study_commands import with_deviation
from geoflow.system.messages import note, printable

ESCAPES = "\x1b[31m\x07\r\n\x9b2J\u202e"


def geoflow(*arguments, environment=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "geoflow", *map(str, arguments)],
        env=os.environ | (environment or {}),
        stderr=subprocess.PIPE,
        timeout=120,
        **options,
    )


def closed_pipe():
    """The end of a pipe that is written to, nobody being at the other."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize(
    "command",
    [["diff", "{0}", "{0}"], pytest.param(["diff", "--help"], marks=pytest.mark.slow)],
    ids=["diff", "help"],
)
def test_a_closed_pipe_ends_a_command_quietly_with_141(path, command):
    pipe = closed_pipe()
    done = geoflow(*(text.format(path) for text in command), stdout=pipe)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (terminal.CLOSED_PIPE, b"")


def test_a_full_device_is_one_line_and_status_2(path):
    with open("/dev/full", "wb") as full:
        done = geoflow("diff", path, path, stdout=full)
    assert done.returncode == terminal.BAD_INPUT
    assert done.stderr.count(b"\n") == 1
    assert b"standard output cannot be written (No space left on device)" in done.stderr


@pytest.mark.slow
def test_standard_output_that_is_closed_is_said_to_be(path):
    command = f'exec "{sys.executable}" -m geoflow diff "{path}" "{path}" >&-'
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, timeout=120, check=False)
    assert done.returncode == terminal.BAD_INPUT
    assert b"standard output is closed" in done.stderr


@pytest.mark.parametrize(
    "redirection", ["2>/dev/full", pytest.param("2>&-", marks=pytest.mark.slow)]
)
def test_the_status_stays_where_no_message_can_be_written(redirection):
    command = f'exec "{sys.executable}" -m geoflow validate nowhere.nc {redirection}'
    done = subprocess.run(command, shell=True, timeout=120, check=False)
    assert done.returncode == terminal.BAD_INPUT


OWN = """
import torch
import geoflow as gf


def make(seed):
    weights = torch.linspace(1, 5, 10, dtype=torch.float64)
    least = torch.linspace(-2, 2, 10, dtype=torch.float64)
    return gf.Problem.from_function(lambda t: weights @ (t - least) ** 2, least + 0.3)
"""


@pytest.mark.slow
def test_the_work_is_done_where_standard_error_is_closed(tmp_path):
    # Each of these shows a bar where that is a terminal.
    (tmp_path / "own.py").write_text(OWN)
    commands = {
        "walk.nc": "run --problem own.py:make --solver dopri5 --stop none --t-end 0.1",
        "path.nc": "path --problem own.py:make --levels 3,3.2",
        "slice.nc": "slice walk.nc --problem own.py:make --points 3",
        "spectrum.nc": "spectrum walk.nc --problem own.py:make",
    }
    for out, command in commands.items():
        done = subprocess.run(
            f'exec "{sys.executable}" -m geoflow {command} --out {out} 2>&-',
            shell=True,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            timeout=120,
            check=False,
        )
        assert (tmp_path / out).exists(), command
        assert done.returncode in (terminal.DONE, terminal.ENDED_EARLY), command


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONIOENCODING": "ascii",
        },
        {"PYTHONOPTIMIZE": "2"},
        {"MPLBACKEND": "nonsense"},
        {"HOME": "/proc/nowhere", "XDG_CONFIG_HOME": "", "MPLCONFIGDIR": ""},
    ],
    ids=["locale", "optimised", "backend", "home"],
)
def test_odd_surroundings_change_no_result(path, tmp_path, environment):
    done = geoflow("info", path, environment=environment, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (terminal.DONE, b"")
    assert b"status" in done.stdout
    out = tmp_path / "figures"
    done = geoflow("plot", path, "--out", out, environment=environment, stdout=subprocess.PIPE)
    assert done.returncode == terminal.DONE, done.stderr
    assert len(list(out.glob("*.png"))) == len(list(out.glob("*.pdf"))) > 0


def test_nothing_that_a_terminal_obeys_is_written(path, tmp_path, capfd):
    hostile = tmp_path / "hostile.nc"
    with gf.open_trajectory(path) as ds:
        changed = ds.load().assign_attrs(
            status_message=f"done{ESCAPES}", title=ESCAPES, own=ESCAPES
        )
        gf.save_trajectory(changed, hostile)
    for command in (["info"], ["info", "--json"], ["validate"], ["resume"], ["run", "--like"]):
        cli.main([*command, str(hostile)])
    assert cli.main(["diff", str(path), str(hostile)]) == terminal.DIFFERENT
    for name in (f"no{ESCAPES}.nc", "no[/bold].nc"):
        assert cli.main(["info", name]) == terminal.BAD_INPUT
    with pytest.raises(SystemExit):
        cli.main(["info", "a", ESCAPES])
    captured = capfd.readouterr()
    for text in (captured.out, captured.err):
        assert "�[31m" in text
        assert all(c.isprintable() for line in text.split("\n") for c in line)
    assert all(line.startswith("geoflow: ") for line in captured.err.splitlines())


def test_text_is_printable_and_letters_stay():
    assert printable("∇R·é e\u0301 ß") == "∇R·é e\u0301 ß"
    assert printable(ESCAPES) == "�[31m����2J�"
    assert printable(os.fsdecode(b"\xff")) == "�"


def test_numbers_of_tables():
    assert [terminal.number(v) for v in (12345, 1234.5678, math.nan, None)] == [
        "12,345",
        "1234.57",
        "–",
        "–",
    ]
    assert [terminal.or_dash(v) for v in (np.array(0.123456), math.nan)] == ["0.1235", "–"]
    one = xr.Dataset({"a": 2.0, "a_deviation": 0.125, "b": 3.0, "b_deviation": math.nan, "c": 4.0})
    assert [with_deviation(one, n) for n in "abc"] == ["2 ± 0.12", "3", "4"]


@pytest.mark.parametrize("before", [None, "nonsense"])
def test_a_command_leaves_the_back_end_that_is_named_as_it_was(before, monkeypatch):
    if before is None:
        monkeypatch.delenv("MPLBACKEND", raising=False)
    else:
        monkeypatch.setenv("MPLBACKEND", before)
    with terminal.no_window():
        assert os.environ["MPLBACKEND"] == "agg"
    assert os.environ.get("MPLBACKEND") == before


def test_a_table_takes_nothing_for_markup(capsys):
    table = Table("a")
    table.add_row("[bold]x[/nope] :smile:")
    table.add_row(ESCAPES)
    # A pipe has no width at which a row would be folded.
    table.add_row("wide " * 30)
    terminal.show(table)
    shown = capsys.readouterr().out
    assert "[bold]x[/nope] :smile:" in shown
    assert ("wide " * 30).strip() in shown
    assert all(c.isprintable() for line in shown.split("\n") for c in line)


def test_json_has_null_for_what_is_no_number_of_it(capsys):
    content = {
        "a": float("inf"),
        "b": [float("nan"), 1.5, np.float64("-inf")],
        "c": {"d": np.array([1, 2]), "e": None, "f": True, "g": np.float32(0.5)},
        "h": ESCAPES,
    }
    terminal.show_json(content)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.5, None],
        "c": {"d": [1, 2], "e": None, "f": True, "g": 0.5},
        "h": ESCAPES,
    }


def test_info_is_valid_json_whatever_the_attributes_are(path, tmp_path, capsys):
    odd = tmp_path / "odd.nc"
    with gf.open_trajectory(path) as ds:
        changed = ds.load().assign_attrs(own=np.inf, several=np.array([1.0, np.nan]))
        changed["angle"].values[-1] = np.inf
        gf.save_trajectory(changed, odd)
    assert cli.main(["info", str(odd), "--json"]) == terminal.DONE
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert content["attributes"]["own"] is None
    assert content["attributes"]["several"] == [1.0, None]
    assert content["scalars"]["angle"]["last"] is None


def test_a_note_that_nobody_takes_is_no_error(monkeypatch):
    pipe = closed_pipe()
    with open(pipe, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        note("to nobody")
        note("again")
    monkeypatch.setattr(sys, "stderr", None)
    note("to nobody")


@pytest.mark.parametrize(
    "name", ["file", "file/folder", "/proc/1/folder", "n" * 300, "/dev/null", "link"]
)
def test_a_folder_that_cannot_be_is_found_before_any_work(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("geoflow.walking.rerunning.Run.prepare", pytest.fail)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    for command in (
        ["run", "iris_ff", "--figures", name],
        ["sweep", "iris_ff", "--seeds", "0", "--out", name],
        ["plot", "x.nc", "--out", name],
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(command)
        assert end.value.code == terminal.BAD_INPUT
        captured = capsys.readouterr()
        assert "cannot be written (" in captured.err
        assert captured.err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


@pytest.mark.slow
def test_a_warning_of_a_library_is_said_once(path, tmp_path):
    """However often a command opens the file that it warns of."""
    file = shutil.copyfile(path, tmp_path / "walk.nc")
    with netCDF4.Dataset(file, "a") as changed:
        changed["angle"].setncattr("missing_value", [400.0, 500.0])
    done = geoflow("report", file, "--out", tmp_path / "page.html", stdout=subprocess.DEVNULL)
    assert done.returncode == 0
    assert done.stderr.count(b"warning: variable 'angle' has multiple fill values") == 1
