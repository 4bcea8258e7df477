"""A thousand archives that lie, each changed at random by its number, before every command.

Whatever a file says, a command that reads it ends with the exit status of docs/cli.md: done, or bad
input and one line. What ``validate`` passes, every command takes.
"""

import contextlib
import io
import json
import resource
import shutil
import warnings

import matplotlib.animation
import matplotlib.figure
import numpy as np
import pytest
from torch import nn

import doctored
import doctoring
import geoflow as gf
from geoflow import cli
from geoflow.cli.terminal import BAD_INPUT, DIFFERENT, DONE, ENDED_EARLY

SEED = 2026
FEW, MANY, PART = 30, 1030, 125
KINDS = [
    *["walk"] * 7,
    *("spectrum", "predictions", "pca", "slice", "periodogram", "relaxation", "compare"),
    "baseline",
]

PROBLEM = """
import torch
from torch import nn

import geoflow as gf


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    return inputs, (inputs.sum(dim=1) > 0).long() + (inputs[:, 0] > 1).long()


def tiny(seed):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    train, test = data(seed), data(seed + 100)
    loss_fn = nn.functional.cross_entropy
    problem = gf.Problem.from_module(module, loss_fn, *train)
    tested = gf.Problem.from_module(module, loss_fn, *test)
    return gf.experiments.PreparedExperiment(
        problem,
        observables={"test_loss": lambda theta: float(tested.loss(theta))},
        module=module,
        train=train,
        test=test,
        loss_fn=loss_fn,
        classification=True,
    )
"""

QUICK_SPECTRUM = [
    *("--snapshots=-1", "--probes=2", "--steps=3", "--eigenvalues=1", "--max-products=8"),
]


def analyses(folder):
    """Write the analyses that need nothing but a walk, and take no time."""
    walk, other = str(folder / "walk.nc"), str(folder / "other.nc")
    for kind, arguments in {
        "pca": [walk, other, "--components", "3", "--null-models"],
        "periodogram": [walk, "--simulations", "19"],
        "relaxation": [walk],
    }.items():
        out = ["--out", str(folder / f"{kind}.nc"), "--quiet"]
        assert cli.main([kind, *arguments, *out]) == DONE


@pytest.fixture(scope="module")
def simple(tmp_path_factory, path):
    """A folder with a walk of no experiment and what is soon made of it."""
    folder = tmp_path_factory.mktemp("simple")
    shutil.copyfile(path, folder / "walk.nc")
    shutil.copyfile(path, folder / "other.nc")
    analyses(folder)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a file of each kind as geoflow writes it, and the problem that was walked."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "problem.py").write_text(PROBLEM)
    own = ["--problem", f"{folder}/problem.py:tiny"]
    walk, quiet = str(folder / "walk.nc"), ["--quiet"]

    def make(command, kind, *arguments):
        done = cli.main([command, *arguments, "--out", str(folder / f"{kind}.nc"), *quiet])
        assert done == DONE

    walked = ["--solver", "rkc", "--rtol", "1e-6", "--t-end", "0.5", "--max-snapshots", "16"]
    make("run", "walk", *own, *walked)
    make("run", "other", *own, "--seed", "1", *walked)
    analyses(folder)
    make("spectrum", "spectrum", walk, *own, *QUICK_SPECTRUM)
    make("predictions", "predictions", walk, *own, "--snapshots", "0,1,-1")
    make("slice", "slice", walk, *own, "--points", "5")
    rtols = [
        "--rtols",
        "1e-2,1e-3",
        "--times",
        "0.05,0.1",
        "--reference-rtol",
        "1e-5",
        "--runs",
        "1",
    ]
    make("compare", "compare", *own, "--solvers", "exponential,rkc", *rtols)
    trained = ["--epochs", "2", "--runs", "2", "--penalties", "0,0.1"]
    make("baseline", "baseline", "iris_ff", *trained)
    return folder


def always(file, number=0):
    return [["validate", file], ["info", file, *["--json"] * (number % 2)]]


def by_turns(file, good):
    """All other commands that read a walk; some of them on a folder with it."""
    own, folder, other = (
        ["--problem", f"{good}/problem.py:tiny"],
        file.parent,
        str(good / "other.nc"),
    )
    file, out = str(file), str(folder / "out")
    return [
        ["diff", file, other],
        ["plot", file, "--out", out],
        ["report", file, "--out", f"{out}.html", "--force"],
        ["run", "--like", file, *own, "--max-evaluations", "3"],
        ["pca", file, "--components", "3"],
        ["periodogram", file, "--simulations", "19"],
        ["relaxation", file],
        ["resume", file, *own, "--t-end", "0.51"],
        ["predictions", file, *own, "--snapshots", "0,-1"],
        ["diff", other, file, "--json"],
        ["plot", str(folder), "--out", out],
        ["report", str(folder), other, "--out", f"{out}.html", "--force"],
        ["slice", file, *own, "--points", "3", "--out", f"{out}.nc", "--force"],
        ["pca", str(folder), other, "--components", "3", "--standardise"],
        ["periodogram", file, "--simulations", "19", "--scalar", "test_loss,pc1"],
        ["spectrum", file, *own, *QUICK_SPECTRUM],
        ["relaxation", file, "--terms", "2", "--scalar", "angle,pc1"],
    ]


def of_an_analysis(file, good):
    out = str(file.parent / "out")
    return [
        ["plot", str(file), "--out", out],
        ["animate", str(file), "--out", f"{out}.gif", "--frames", "2"],
        ["report", str(file), "--out", f"{out}.html"],
        ["validate", str(file)],
        ["info", str(file)],
        ["diff", str(good / "walk.nc"), str(file)],
    ]


def call(arguments):
    """Run a command as a user does, whose warnings are no errors."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        status = cli.main(arguments)
    return status, out.getvalue(), err.getvalue()


def no_constant(text):
    raise ValueError(f"{text} is not JSON")


def check(arguments):
    """Assert that a command ends as docs/cli.md says, and return its exit status."""
    status, out, err = call(arguments)
    said = err.splitlines()
    errors = [line for line in said if line.startswith("geoflow: error: ")]
    allowed = {"diff": DIFFERENT, "run": ENDED_EARLY, "resume": ENDED_EARLY}
    assert status in (DONE, BAD_INPUT, allowed.get(arguments[0])), status
    assert "Traceback" not in err
    assert "\x1b[2J" not in out + err
    if arguments[0] == "validate":
        # Its defects are its output.
        assert (status == DONE) == (out == ""), out
    else:
        assert len(errors) == (status == BAD_INPUT), err
    if errors:
        assert said[-1] == errors[0], err
        assert out == "" or "--json" not in arguments
    elif "--json" in arguments:
        json.loads(out)
    return status


@pytest.fixture
def undrawn(monkeypatch):
    """All of a figure but its pixels, which take longer than all the rest."""
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda *_, **__: None)
    writer = matplotlib.animation.PillowWriter
    monkeypatch.setattr(writer, "grab_frame", lambda *_, **__: None)
    monkeypatch.setattr(writer, "finish", lambda *_: None)


def load(file):
    """Put the last snapshot into a network, where the file has one."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    with warnings.catch_warnings(), contextlib.suppress(gf.GeoflowError):
        warnings.simplefilter("ignore")
        with gf.open_trajectory(file) as ds:
            gf.load_into(network, ds)


def run_case(number, good, folder, kinds=KINDS):
    """Change a file and give it to commands; returns what failed, as text."""
    rng = np.random.default_rng([SEED, number])
    kind = doctoring.pick(rng, kinds)
    shutil.rmtree(folder, ignore_errors=True)
    foreign = folder / "foreign"
    foreign.mkdir(parents=True)
    file = folder / "seed-0000.nc"
    shutil.copyfile(good / f"{kind}.nc", file)
    changed = doctoring.doctor(rng, file, foreign)
    failed, valid = [], False
    turns = by_turns(file, good)
    commands = always(str(file), number) if kind == "walk" else of_an_analysis(file, good)
    commands += [turns[number % len(turns)]] if kind == "walk" else []
    with doctored.watched(foreign) as opened:
        for arguments in commands:
            try:
                status = check(arguments)
                if arguments[0] == "validate" and status == DONE:
                    # Two more commands, others for each number.
                    valid = True
                    commands += [turns[(number + i) % len(turns)] for i in (4, 11)]
                assert not opened(), "another file was opened"
            except Exception as error:
                failed.append(
                    f"{number} {kind}: {changed[:200]}\n  {arguments[0]}: {error!r}"[:500]
                )
    try:
        load(file)
    except Exception as error:
        failed.append(f"{number} {kind}: {changed[:200]}: load_into: {error!r}"[:500])
    return failed, valid


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_what_geoflow_wrote_is_taken_by_every_command(good, tmp_path):
    walk = tmp_path / "seed-0000.nc"
    shutil.copyfile(good / "walk.nc", walk)
    for arguments in [*always(str(walk)), *by_turns(walk, good)]:
        assert check(arguments) != BAD_INPUT, arguments
        # No walk, beside the one whose folder the next command reads.
        (tmp_path / "out.nc").unlink(missing_ok=True)
    for kind in dict.fromkeys(KINDS):
        file = good / f"{kind}.nc"
        assert check(["plot", str(file), "--out", str(tmp_path / "out")]) == DONE, kind


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_archives_that_lie_end_in_one_line(simple, tmp_path):
    kinds = ["walk", "walk", "pca", "periodogram", "relaxation"]
    found = [run_case(number, simple, tmp_path / "case", kinds) for number in range(FEW)]
    assert [line for failed, _ in found for line in failed] == []


# In parts, which are spread over the processors.
@pytest.mark.slow
@pytest.mark.parametrize("first", range(FEW, MANY, PART))
@pytest.mark.usefixtures("undrawn")
def test_a_thousand_archives_that_lie_end_in_one_line(first, good, tmp_path):
    """And with no more memory than those that do not lie."""
    walk = tmp_path / "seed-0000.nc"
    shutil.copyfile(good / "walk.nc", walk)
    for arguments in [*always(str(walk)), *by_turns(walk, good)]:
        check(arguments)
    before = peak()
    found = [run_case(number, good, tmp_path / "case") for number in range(first, first + PART)]
    assert [line for failed, _ in found for line in failed] == []
    # Not all of them were refused, or nothing would have been tried.
    assert sum(valid for _, valid in found) > PART / 40
    assert peak() < 1.5 * before
