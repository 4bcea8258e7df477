"""What a command says while its packages are loaded, or cannot be; and before anything is done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import geoflow as gf
from geoflow import cli, plots
from geoflow.archive import seal
from geoflow.cli import terminal
from geoflow.errors import InputError
from geoflow.system import starting, translation

# Of the package, that is found from anywhere.
ROOT = Path(gf.__file__).parents[1]

# As pip writes the program of that name.
PROGRAM = "import sys\nfrom geoflow.cli import main\nsys.exit(main())\n"


@pytest.fixture(params=["program", "module"])
def command(request, tmp_path):
    if request.param == "module":
        return [sys.executable, "-m", "geoflow"]
    (tmp_path / "geoflow").write_text(PROGRAM)
    return [sys.executable, str(tmp_path / "geoflow")]


def run(command, *arguments, **environment):
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_package_that_chokes_on_a_setting_is_one_line(command):
    done = run(command, "experiments", TORCH_LOGS="bogus")
    assert (done.returncode, done.stdout) == (terminal.BAD_INPUT, "")
    assert done.stderr.startswith("geoflow: error: a package cannot be loaded (ValueError: Invalid")
    assert done.stderr.count("\n") == 1


# Sends itself Ctrl-C as soon as torch is looked for.
INTERRUPT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


def test_ctrl_c_while_packages_are_loaded_is_one_line_and_130(command, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(command, "experiments", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (terminal.INTERRUPTED, "")
    assert done.stderr == "geoflow: interrupted\n"


# Sends itself Ctrl-C as Python ends, after all that registers itself later.
AT_EXIT = """
import atexit, os, signal, threading
atexit.register(os.kill, os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize(
    ("argument", "status"), [("--version", terminal.DONE), ("--nonsense", terminal.BAD_INPUT)]
)
def test_ctrl_c_as_a_command_ends_leaves_its_exit_status(command, argument, status, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AT_EXIT)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(command, argument, PYTHONPATH=path)
    assert done.returncode == status
    assert done.stderr.count("\n") == (status != terminal.DONE)


def test_a_working_folder_that_has_gone_is_said_in_one_line(command, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    there = ["bash", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(folder)]
    done = run([*there, *command], "experiments", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (terminal.BAD_INPUT, "")
    assert done.stderr == (
        "geoflow: error: the working folder is gone (No such file or directory); cd to one that is "
        "there\n"
    )


@pytest.mark.slow
def test_who_imports_geoflow_gets_the_error_itself():
    done = run([sys.executable, "-c", "import geoflow"], TORCH_LOGS="bogus")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_command_that_runs_takes_care_of_its_errors_itself():
    assert sys.excepthook is not starting._one_line
    assert not starting.is_command()


def test_ctrl_c_while_options_are_made_is_one_line_and_130(monkeypatch, capsys):
    def press(*arguments):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("geoflow.cli.parser.import_module", press)
    assert cli.main(["info", "x.nc"]) == terminal.INTERRUPTED
    assert capsys.readouterr().err == "geoflow: interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "iris_ff", "--out", "{0}/x.nc"],
        *(
            pytest.param(arguments, marks=pytest.mark.slow)
            for arguments in (
                ["compare", "iris_ff", "--solvers", "rkc", "--rtols", "1e-3", "--out", "{0}/x.nc"],
                ["pca", "{0}/walk.nc", "--out", "{0}/x.nc"],
                ["plot", "{0}/walk.nc", "--out", "{0}/figures"],
            )
        ),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_damaged_file_of_dasks_settings_is_found_before_the_work(arguments, tmp_path):
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask" / "x.yaml").write_text("a: [1\nb: }")
    given = (text.format(tmp_path) for text in arguments)
    done = run([sys.executable, "-m", "geoflow"], *given, DASK_CONFIG=str(tmp_path / "dask"))
    assert done.returncode == terminal.BAD_INPUT
    assert done.stderr.startswith("geoflow: error: dask cannot be loaded (ValueError: A dask con")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.nc").exists()


@pytest.mark.slow
def test_a_damaged_file_of_matplotlibs_settings_is_found_before_the_work(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: \xff\n")
    for arguments in (
        ["run", "iris_ff", "--figures", str(tmp_path)],
        ["plot", "walk.nc", "--out", str(tmp_path)],
    ):
        done = run(
            [sys.executable, "-m", "geoflow"],
            *arguments,
            MATPLOTLIBRC=str(tmp_path / "matplotlibrc"),
        )
        assert done.returncode == terminal.BAD_INPUT
        # The line before, which names the file, is matplotlib's.
        assert done.stderr.splitlines()[-1].startswith("geoflow: error: ")
        assert "cannot be loaded (UnicodeDecodeError: " in done.stderr
        assert "Traceback" not in done.stderr


def test_the_first_line_of_an_error_that_says_something_is_shown():
    assert translation.reason(ValueError("\n\n  what  \n  more")) == "what"
    assert translation.reason(ValueError("")) == "ValueError"


FORMULAS = [r"$\frac{$", "a $b$ c", "$", "$$", r"\$x$", r"x_{$", "%s {0} $"]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    path = tmp_path_factory.mktemp("walked") / "iris.nc"
    options = ["--t-end", "0.05", "--snapshots", "9", "--out", str(path), "--quiet"]
    assert cli.main(["run", "iris_ff", *options]) == terminal.DONE
    return path


@pytest.mark.parametrize(
    "text", [FORMULAS[0], *(pytest.param(t, marks=pytest.mark.slow) for t in FORMULAS[1:])]
)
def test_what_looks_like_a_formula_in_a_file_is_drawn_as_it_is(walked, tmp_path, text, capsys):
    path = tmp_path / "walk.nc"
    path.write_bytes(walked.read_bytes()[: -seal.LENGTH])
    with h5py.File(path, "r+") as file:
        for name in ("title", "experiment", "regularizer_name", "solver"):
            file.attrs[name] = np.bytes_(text)
    seal.append(path)
    figures = ["--figures", str(tmp_path / "f"), "--quiet"]
    for arguments in (
        ["plot", str(path), "--out", str(tmp_path / "f")],
        ["pca", str(path), "--components", "2", *figures],
        ["periodogram", str(path), *figures],
        ["relaxation", str(path), *figures],
    ):
        status = cli.main(arguments)
        error = capsys.readouterr().err
        # The walk is short.
        assert status == terminal.DONE or "records" in error, error
    assert (tmp_path / "f" / "walk-overview.png").exists()
    with gf.open_trajectory(path) as ds:
        ax = plots.overview(ds).get_suptitle()
    assert ax.replace(r"\$", "$").startswith(text)


def test_a_figure_that_cannot_be_drawn_is_said_to_be_so(tmp_path):
    figure = plots.new_figure(2, 2)
    figure.suptitle(r"$\frac{$")
    with pytest.raises(InputError, match="figure 'x' cannot be drawn"):
        plots.save({"x": figure}, tmp_path, "walk")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_a_figure_is_said_to_be_full(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        plots.save({"x": plots.new_figure(2, 2)}, tmp_path, "walk")
