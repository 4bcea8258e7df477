"""Results of hours whose file cannot be written at the end: shown, and kept where that goes."""

import errno
import os
from pathlib import Path

import pytest

import geoflow as gf
import references
from geoflow import baselines, cli
from geoflow.archive import netcdf
from geoflow.cli import results
from geoflow.cli.terminal import BAD_INPUT, ENDED_EARLY, ClosedPipeError
from geoflow.comparisons.work_precision import compare
from geoflow.errors import InputError, StorageError

PRECIOUS = b"precious"
COMPARE = ["compare", "iris_ff", "--solvers", "rkc", "--rtols", "1e-2", "--out", "c.nc", "--quiet"]
BASELINE = ["baseline", "iris_ff", "--out", "c.nc", "--penalties", "0.1,0.2", "--validation", "0"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def compared():
    observables = {"test_loss": lambda theta: float(theta[0])}
    flow = references.oja().flow
    return compare(flow, ["rkc"], [1e-2], [0.1], observables, reference="dopri5")


@pytest.fixture(scope="module")
def trained():
    return baselines.weight_decay("iris_ff", penalties=[0.1, 0.2], epochs=2, validation=0)


@pytest.fixture
def meanwhile(compared, trained, monkeypatch):
    """Return a function that has something happen while the work is done."""

    def set_up(action):
        def work(ds):
            def done(*args, **kwargs):
                action()
                return ds

            return done

        monkeypatch.setattr("geoflow.cli.study_commands.compare_experiment", work(compared))
        monkeypatch.setattr(baselines, "weight_decay", work(trained))

    return set_up


def nothing():
    """Do nothing."""


@pytest.mark.parametrize(("command", "shown"), [(COMPARE, "rkc"), (BASELINE, "best by test_loss")])
def test_what_the_disk_does_not_take_is_shown(command, shown, meanwhile, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    meanwhile(nothing)
    monkeypatch.setattr(netcdf, "write", full)
    assert cli.main(command) == ENDED_EARLY
    said = capsys.readouterr()
    assert shown in said.out + said.err
    assert "wrote" not in said.err
    assert said.err.splitlines()[-1].startswith("geoflow: error: writing c.nc failed (No space lef")
    assert os.listdir() == []


@pytest.mark.parametrize(("command", "shown"), [(COMPARE, "rkc"), (BASELINE, "best by test_loss")])
def test_where_a_file_got_the_name_the_result_is_kept_beside(command, shown, meanwhile, capsys):
    meanwhile(lambda: Path("c.nc").write_bytes(PRECIOUS))
    assert cli.main(command) == ENDED_EARLY
    said = capsys.readouterr()
    assert shown in said.out + said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("geoflow: error: c.nc was not there when this began, and is now")
    assert last.endswith("the result is in " + os.path.realpath("c-2.nc"))
    assert Path("c.nc").read_bytes() == PRECIOUS
    with netcdf.open_analysis("c-2.nc") as ds:
        assert ds.attrs["kind"] in ("comparison", "baseline")
    assert sorted(os.listdir()) == ["c-2.nc", "c.nc"]


def test_where_its_folder_has_gone_the_result_is_shown(meanwhile, capsys):
    os.mkdir("d")
    meanwhile(lambda: os.rmdir("d"))
    assert cli.main([*COMPARE, "--out", "d/c.nc"]) == BAD_INPUT
    said = capsys.readouterr()
    assert "rkc" in said.out
    assert said.err.startswith("geoflow: error: d/c.nc: the folder d does not exist")


def test_figures_that_cannot_be_written_leave_the_rest_as_it_was(meanwhile, monkeypatch, capsys):
    def unwritable(*args):
        raise InputError("figures cannot be written")

    meanwhile(nothing)
    monkeypatch.setattr(gf.plots, "save_figures", unwritable)
    assert cli.main([*COMPARE[:-1], "--figures", "f"]) == BAD_INPUT
    said = capsys.readouterr()
    assert "rkc" in said.out
    assert said.err.splitlines() == ["wrote c.nc", "geoflow: error: figures cannot be written"]


def test_of_two_errors_that_of_writing_is_said():
    def failing():
        raise StorageError("lost")

    def closed():
        with results.shown_in_any_case() as attempt:
            attempt(failing)
            raise ClosedPipeError

    with pytest.raises(StorageError, match="lost"):
        closed()


def test_an_error_in_showing_is_that_where_all_is_written():
    def closed():
        with results.shown_in_any_case() as attempt:
            assert attempt(len, "abc") == 3
            raise ClosedPipeError

    with pytest.raises(ClosedPipeError):
        closed()
