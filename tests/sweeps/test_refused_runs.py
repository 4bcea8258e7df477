"""Runs that are refused, and what a sweep says of them and leaves behind."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow import cli
from geoflow.archive import parts
from geoflow.cli import reading
from geoflow.errors import ArchiveError, CriticalPointError, InputError
from geoflow.sweeps import runs, tasks
from geoflow.sweeps.tasks import Outcome, Task, run_tasks

SHORT = {"epochs": 3, "t_end": 0.01, "max_snapshots": 3}


def at_the_minimum(seed):
    """A problem whose level set is a point, so that no walk of it has a first step."""
    theta = torch.zeros(3, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: 1 + t @ t, theta)
    return gf.experiments.PreparedExperiment(problem)


def refuse(path, **arguments):
    problem = at_the_minimum(0).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    return gf.walk(flow, archive=path).attrs["status"], ""


def write(path, **arguments):
    with open(path, "w") as file:
        file.write("done")
    return "t_end", "done"


def causes(error):
    """The error and its causes, each once; cut where they go in a circle."""
    found = []
    while error is not None and len(found) < 20:
        found.append(error)
        error = error.__cause__
    return found


def test_numbers_of_numpy_are_settings_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "run_tasks", lambda *_: [])
    for numbers in (np.int64, np.array, torch.tensor):
        gf.sweep("iris_ff", [numbers(0)], tmp_path, epochs=numbers(3), threads=numbers(1))
    settings = json.loads((tmp_path / "sweep.json").read_text())
    assert (settings["epochs"], settings["threads"]) == (3, 1)
    with pytest.raises(InputError, match=r"epochs=3.0; give a whole number"):
        gf.sweep("iris_ff", [0], tmp_path, epochs=3.0)
    with pytest.raises(InputError, match=r"seeds=array\(0\); give numbers in a list"):
        gf.sweep("iris_ff", np.array(0), tmp_path)


def test_the_causes_of_a_refused_walk_or_path_come_to_an_end(tmp_path):
    problem = at_the_minimum(0).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    for refused in (
        lambda: gf.walk(flow),
        lambda: gf.walk(flow, archive=tmp_path / "walk.nc"),
        lambda: gf.regularization_path(flow, [2.0]),
    ):
        with pytest.raises(CriticalPointError) as caught:
            refused()
        chain = causes(caught.value)
        assert len(chain) == len({id(error) for error in chain}) < 20
    # Nothing is left that would be taken for an unfinished walk.
    assert not parts.folder_beside(tmp_path / "walk.nc").exists()


def test_a_budget_spent_before_the_start_is_said_as_that_with_its_cause():
    problem = gf.Problem.from_function(lambda t: t @ t, torch.ones(2, dtype=torch.float64))
    flow = gf.RegularizingFlow(gf.LevelSet(problem, 1e-3), gf.regularizers.squared_norm)
    for spent, where in (
        (lambda: gf.walk(flow, max_evaluations=1), "the level set is reached"),
        (lambda: gf.regularization_path(flow, [2e-3], max_evaluations=1), "the first point is"),
    ):
        with pytest.raises(InputError, match=f"max_evaluations=1 are spent before {where}") as e:
            spent()
        assert len(causes(e.value)) < 20


def test_what_a_run_raises_comes_back_in_words(tmp_path):
    status, message = tasks._attempt(refuse, str(tmp_path / "walk.nc"), {})
    assert status == "failed"
    assert message.startswith("the loss gradient is zero")
    assert "\n" not in message

    def broken(path):
        raise KeyError("weights")

    assert tasks._attempt(broken, "x", {}) == ("failed", "KeyError: 'weights'")


@pytest.mark.slow
def test_a_refused_run_is_one_that_failed_and_the_others_go_on(tmp_path):
    files = {"a": write, "b": refuse, "c": write}
    waiting = [Task(name, tmp_path / name, function, {}) for name, function in files.items()]
    outcomes = run_tasks(waiting, {}, None, 1, 1, False)
    assert [o.status for o in outcomes] == ["t_end", "failed", "t_end"]
    assert outcomes[1].message.startswith("the loss gradient is zero")


def kill(path, **arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_run_whose_workers_die_says_so_and_what_to_do(tmp_path):
    (outcome,) = run_tasks([Task("a", tmp_path / "a", kill, {})], {}, None, 1, 1, False)
    assert outcome.status == "failed"
    assert outcome.message == (
        "its workers died, 2 of them (killed, or out of memory); the same call tries it again"
    )


PRESSED = """
import os, signal, sys, threading, time
from pathlib import Path
from geoflow.sweeps.tasks import Task, run_tasks

def wait(path):
    time.sleep(60)

if __name__ == "__main__":
    import distributed

    # As a terminal does: to the workers too.
    threading.Timer(float(sys.argv[1]), os.killpg, (0, signal.SIGINT)).start()
    try:
        run_tasks([Task("a", Path("a"), wait, {})], {}, None, 2, 1, False)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.4, 2])
def test_ctrl_c_while_the_workers_start_is_an_interruption(tmp_path, seconds):
    (tmp_path / "script.py").write_text(PRESSED)
    command = [sys.executable, "script.py", str(seconds)]
    ended = subprocess.run(
        command, cwd=tmp_path, start_new_session=True, capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr) == ("interrupted\n", "")


TRAININGS = {
    "experiment": "iris_ff",
    "seeds": [0],
    "epochs": 2,
    "validation": 0.0,
    "data": None,
    "dtype": "float64",
    "device": "cpu",
}


def test_trainings_that_are_there_are_neither_done_again_nor_written_over(tmp_path, monkeypatch):
    path, train = tmp_path / "penalty-0.1.nc", runs.baselines.weight_decay
    made = []

    def counted(*args, **kwargs):
        made.append(args)
        return train(*args, **kwargs)

    # It would make this process a worker.
    monkeypatch.setattr(runs, "settle", lambda threads: None)
    monkeypatch.setattr(runs.baselines, "weight_decay", counted)
    assert runs._train(str(path), 1, penalty=0.1, **TRAININGS)[0] == "trained"
    # As where its worker dies before it can say so.
    assert runs._train(str(path), 1, penalty=0.1, **TRAININGS)[0] == "trained"
    assert len(made) == 1

    def slowly(*args, **kwargs):
        path.write_bytes(b"precious")
        return train(*args, **kwargs)

    path.unlink()
    monkeypatch.setattr(runs.baselines, "weight_decay", slowly)
    with pytest.raises(ArchiveError, match="move it elsewhere"):
        runs._train(str(path), 1, penalty=0.1, **TRAININGS)
    assert path.read_bytes() == b"precious"


PRESSED_AGAIN = """
import os, signal, sys, threading, time
from pathlib import Path
from geoflow.sweeps.tasks import Task, run_tasks

def wait(path):
    Path(path).touch()
    time.sleep(60)

def press():
    while not Path("a").exists():
        time.sleep(0.05)
    for _ in range(int(sys.argv[1])):
        os.killpg(0, signal.SIGINT)
        time.sleep(0.2)

if __name__ == "__main__":
    threading.Thread(target=press).start()
    try:
        run_tasks([Task("a", Path("a"), wait, {})], {}, None, 2, 1, True)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted")
"""


@pytest.mark.slow
def test_ctrl_c_that_is_pressed_again_while_the_workers_end_waits_for_that(tmp_path):
    (tmp_path / "script.py").write_text(PRESSED_AGAIN)
    command = [sys.executable, "script.py", "4"]
    ended = subprocess.run(
        command, cwd=tmp_path, start_new_session=True, capture_output=True, text=True, check=False
    )
    assert ended.stdout == "interrupted\n"
    # Beside the bar, which is drawn on a terminal only.
    assert ended.stderr == "ending the workers…\n"


def test_what_is_closed_whole_is_so_when_ctrl_c_comes_again():
    done = []

    def close():
        signal.raise_signal(signal.SIGINT)
        done.append("closed")

    def interrupted():
        with tasks._closed_whole(lambda: done.append("said")) as stack:
            stack.callback(close)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["said", "closed"]


def test_a_sweep_that_ran_nothing_leaves_its_folder_to_others(tmp_path, monkeypatch):
    nowhere = {"scheduler": "nonsense://x"}
    with pytest.raises(InputError, match="cannot be reached"):
        gf.sweep("iris_ff", [0], tmp_path, rtol=1e-2, **nowhere, **SHORT)
    with pytest.raises(InputError, match="cannot be reached"):
        gf.sweep_weight_decay("iris_ff", [0], tmp_path, **nowhere)

    def all_failed(waiting, *details):
        return [Outcome(t.name, t.path, "failed", "refused", new=True) for t in waiting]

    def interrupted(waiting, *details):
        raise KeyboardInterrupt

    monkeypatch.setattr("geoflow.sweeps.runs.run_tasks", all_failed)
    gf.sweep("iris_ff", [0], tmp_path, rtol=1e-2, **SHORT)
    monkeypatch.setattr("geoflow.sweeps.runs.run_tasks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gf.sweep("iris_ff", [0], tmp_path, rtol=1e-4, **SHORT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["seed-0000.nc", ".seed-0000.nc.parts"])
def test_a_folder_in_which_a_run_has_begun_keeps_its_settings(tmp_path, monkeypatch, left):
    def dying(waiting, *details):
        (tmp_path / left).mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("geoflow.sweeps.runs.run_tasks", dying)
    with pytest.raises(KeyboardInterrupt):
        gf.sweep("iris_ff", [0], tmp_path, rtol=1e-2, **SHORT)
    with pytest.raises(InputError, match=r"holds a sweep with rtol=0.01, not 0.001"):
        gf.sweep("iris_ff", [0], tmp_path, **SHORT)
    # And so does one that was claimed by another call.
    assert (tmp_path / "sweep.json").is_file()


@pytest.mark.parametrize("content", ["{", "", "{}", "[]", '{"geoflow_sweep": null}', "[" * 10**6])
def test_a_damaged_manifest_is_named_with_what_to_do(content, tmp_path):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError, match=r"sweep\.json is damaged \(.*\); remove it to go on"):
        gf.sweep("iris_ff", [0], tmp_path, **SHORT)
    assert (tmp_path / "sweep.json").read_text() == content


def test_a_manifest_of_any_length_is_not_read_whole(tmp_path):
    with (tmp_path / "sweep.json").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(InputError, match=r"sweep\.json is damaged \(it has more than 16,777,216 b"):
        gf.sweep("iris_ff", [0], tmp_path, **SHORT)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_file_is_named_with_what_to_do(damage, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("geoflow.sweeps.runs.run_tasks", lambda *details: done.append(1) or [])
    file = tmp_path / "seed-0000.nc"
    torch.manual_seed(0)
    prepared = gf.experiments.get("iris_ff").prepare(0, epochs=3)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    gf.walk(
        flow,
        t_end=0.01,
        max_snapshots=3,
        observables=prepared.observables,
        provenance=prepared.provenance,
        archive=file,
    ).close()
    gf.sweep("iris_ff", [0], tmp_path, **SHORT)
    assert done == [1]
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    file.write_bytes(content[: {"cut": len(content) // 2, "empty": 0}.get(damage)])
    with pytest.raises(ArchiveError, match=r"seed-0000\.nc.*; move it elsewhere, or choose"):
        gf.sweep("iris_ff", [0], tmp_path, **SHORT)
    assert done == [1]


def test_what_decides_no_worker_is_checked_where_nothing_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("geoflow.sweeps.runs.run_tasks", lambda *details: [])
    for options in ({"workers": 0}, {"threads": 0}):
        with pytest.raises(InputError, match="=0; use at least 1"):
            gf.sweep("iris_ff", [0], tmp_path, **options, **SHORT)


def test_a_range_of_seeds_that_is_empty_is_named(capsys):
    assert reading.seeds("5:6") == [5]
    with pytest.raises(SystemExit):
        cli.main(["sweep", "iris_ff", "--seeds", "5:0", "--out", "x"])
    assert "'5:0' are no seeds; use 0:5 for 0 to 4" in capsys.readouterr().err
