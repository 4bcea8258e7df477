"""``--problem``: the command line on a file of the user's own."""

import hashlib
import json
import os

import numpy as np
import pytest
import xarray as xr

import geoflow as gf
from geoflow import cli
from geoflow.cli.terminal import BAD_INPUT, DONE

HELPER = "WIDTH = 5\n"

FILE = '''
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import geoflow as gf
from my_widths import WIDTH


@dataclass
class Sizes:
    width: int


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    return inputs, (inputs.sum(dim=1) > 0).long() + (inputs[:, 0] > 1).long()


def network(seed):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, Sizes(WIDTH).width), nn.Tanh(), nn.Linear(WIDTH, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    module.double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    inputs, targets = data(seed)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    return module


def tiny(seed, dtype=torch.float64):
    """A network of one's own, with all that is known of it."""
    module, train, test = network(seed), data(seed), data(seed + 100)
    loss_fn = nn.functional.cross_entropy
    problem = gf.Problem.from_module(module, loss_fn, *train, dtype=dtype)
    tested = gf.Problem.from_module(module, loss_fn, *test, dtype=dtype)
    return gf.experiments.PreparedExperiment(
        problem,
        observables={"test_loss": lambda theta: float(tested.loss(theta))},
        provenance={"data_source": "drawn"},
        module=module,
        train=train,
        test=test,
        loss_fn=loss_fn,
        classification=True,
    )


def bare(seed):
    return gf.Problem.from_module(network(seed), nn.functional.cross_entropy, *data(seed))


def function_of_theta(seed):
    weights = torch.linspace(1, 3, 6, dtype=torch.float64) + seed
    return gf.Problem.from_function(lambda t: (weights * t**2).sum(), torch.ones(6).double())


def fails(seed):
    return undefined_name


def wrong(seed):
    return {"seed": seed}


def no_seed():
    return bare(0)


def provenance(seed):
    return gf.experiments.PreparedExperiment(bare(seed), provenance={"x": object()})


def iris_ff(seed):
    return bare(seed)


def failing_observable(seed):
    def test_loss(theta):
        raise RuntimeError("broken on purpose")

    return gf.experiments.PreparedExperiment(bare(seed), observables={"test_loss": test_loss})


def rmse(outputs, targets):
    return nn.functional.mse_loss(outputs, targets["y"]).sqrt()


def norm(outputs, _):
    return outputs.square().mean().sqrt()


def smoothed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.2)


def unseen(seed, n, loss_fn, targets, tested=None):
    """Trained by one loss, and tested by that or another, on more than 500 examples."""
    module, inputs = network(seed), torch.cat([data(seed + i)[0] for i in range(n)])
    train, test = [(inputs[part], targets(inputs[part])) for part in (slice(24), slice(24, None))]
    return gf.experiments.PreparedExperiment(
        gf.Problem.from_module(module, loss_fn, *train),
        observables={"test_loss": gf.Problem.from_module(module, tested or loss_fn, *test)},
        module=module,
        train=train,
        test=test,
        loss_fn=loss_fn,
    )


def by_another_loss(seed):
    def classes(x):
        return (x.sum(dim=1) > 0).long()

    return unseen(seed, 2, smoothed, classes, nn.functional.cross_entropy)


def without_targets(seed):
    return unseen(seed, 2, norm, lambda x: None)


def no_mean(seed):
    return unseen(seed, 30, rmse, lambda x: {"y": x.sin(), "other": x})


number = 3
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_widths.py").write_text(HELPER)
    path = folder / "mine.py"
    path.write_text(FILE)
    return path


def line_of(text):
    return FILE.splitlines().index(text) + 1


WALK = ["--t-end", "0.1", "--snapshots", "5", "--quiet"]


@pytest.fixture(scope="module", params=["tiny", "bare", "function_of_theta"])
def walked(request, file, tmp_path_factory):
    path = tmp_path_factory.mktemp("walked") / f"{request.param}.nc"
    problem = f"{file}:{request.param}"
    arguments = ["run", "--problem", problem, "--seed", "2", *WALK, "--out", str(path)]
    assert cli.main(arguments) == DONE
    return request.param, problem, path


def one_line(capsys, message):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("geoflow: error: ")
    assert message in captured.err, captured.err


def test_the_archive_names_the_function_and_the_hash_and_no_code(walked, file):
    name, _, path = walked
    with gf.open_trajectory(path) as ds:
        assert ds.attrs["experiment"] == name
        assert ds.attrs["seed"] == 2
        assert ds.attrs["status"] == "t_end"
        text = json.dumps(ds.attrs, default=str)
        provenance = json.loads(ds.attrs["config"])["provenance"]
    assert provenance["problem_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert provenance["problem_file"] == "mine.py"
    assert str(file.parent) not in text
    assert name not in gf.experiments.names()


def test_it_is_resumed_as_if_it_had_not_ended(walked, file, tmp_path, capsys):
    _, problem, _ = walked
    short, long = tmp_path / "short.nc", tmp_path / "long.nc"
    start = ["run", "--problem", problem, "--quiet", "--t-end"]
    assert cli.main([*start, "0.05", "--out", str(short)]) == DONE
    assert cli.main([*start, "0.1", "--out", str(long)]) == DONE
    assert cli.main(["resume", str(short), "--t-end", "0.1"]) == BAD_INPUT
    capsys.readouterr()
    assert cli.main(["resume", str(short), "--t-end", "0.1", "--quiet"]) == BAD_INPUT
    one_line(capsys, "register it first, or name its file with --problem")
    arguments = ["resume", str(short), "--problem", problem, "--t-end", "0.1", "--quiet"]
    assert cli.main(arguments) == DONE
    with gf.open_trajectory(short) as a, gf.open_trajectory(long) as b:
        assert a.sizes["step"] >= b.sizes["step"]
        assert float(a["time"][-1]) == float(b["time"][-1]) == 0.1
        ends = a["theta"].values[-1], b["theta"].values[-1]
        assert np.linalg.norm(ends[0] - ends[1]) < 1e-3 * np.linalg.norm(ends[1])


def test_it_is_run_again_from_its_file(walked, tmp_path, capsys):
    _, problem, path = walked
    again = tmp_path / "again.nc"
    arguments = ["run", "--like", str(path), "--out", str(again), "--quiet"]
    assert cli.main(arguments) == BAD_INPUT
    one_line(capsys, "name its file with --problem")
    assert cli.main([*arguments, "--problem", problem]) == DONE
    assert cli.main(["diff", str(path), str(again)]) == DONE


@pytest.mark.slow
def test_it_is_analysed(walked, tmp_path, capsys):
    name, problem, path = walked
    quick = ["--eigenvalues", "2", "--probes", "2", "--steps", "4", "--snapshots", "0,-1"]
    own = ["--problem", problem, "--quiet"]
    spectrum = tmp_path / "spectrum.nc"
    assert cli.main(["spectrum", str(path), *quick, *own, "--out", str(spectrum)]) == DONE
    with xr.open_dataset(spectrum) as found, gf.open_trajectory(path) as ds:
        assert np.allclose(found["multiplier"], ds["multiplier"][[0, -1]])
    sliced = tmp_path / "slice.nc"
    arguments = ["slice", str(path), *own, "--points", "4", "--out", str(sliced)]
    assert cli.main(arguments) == DONE
    with xr.open_dataset(sliced) as found:
        assert ("test_loss" in found) == (name == "tiny")
    if name != "function_of_theta":  # Its walk has too few steps for a fit.
        assert cli.main(["relaxation", str(path), *own, "--eigenvalues"]) == DONE
    capsys.readouterr()
    status = cli.main(["predictions", str(path), *own])
    if name == "tiny":
        assert status == DONE
        assert "JS / bit, test" in capsys.readouterr().out
    else:
        assert status == BAD_INPUT
        one_line(capsys, "return a PreparedExperiment with module and train or test")
        assert cli.main([*arguments, "--force", "--observables", "test_loss"]) == BAD_INPUT
        one_line(capsys, "the experiment gives no observables")
    figures = tmp_path / "figures"
    assert cli.main(["plot", str(path), "--out", str(figures)]) == DONE
    assert (figures / f"{path.stem}-overview.png").exists()


@pytest.mark.parametrize("name", ["by_another_loss", "without_targets", "no_mean"])
def test_a_slice_is_of_the_observable_as_it_was_given(name, file, tmp_path):
    """Not of the experiment's ``loss_fn`` on its test set, which may be another quantity."""
    own, path, sliced = f"{file}:{name}", tmp_path / "walk.nc", tmp_path / "slice.nc"
    assert cli.main(["run", "--problem", own, *WALK, "--out", str(path)]) == DONE
    arguments = ["slice", str(path), "--problem", own, "--points", "2", "--quiet"]
    assert cli.main([*arguments, "--out", str(sliced)]) == DONE
    with xr.open_dataset(sliced) as found, gf.open_trajectory(path) as ds:
        recorded = ds["test_loss"].values
        assert np.allclose(found["walk_test_loss"], recorded, rtol=1e-12, atol=0)
        # Its projections are beside the walk, and the grid is around them.
        assert np.allclose(found["projected_test_loss"], recorded, rtol=0.1)


def test_a_walk_of_another_function_is_refused(walked, file, capsys):
    name, _, path = walked
    other = "bare" if name == "tiny" else "tiny"
    for command in ("spectrum", "predictions", "resume"):
        assert cli.main([command, str(path), "--problem", f"{file}:{other}"]) == BAD_INPUT
        one_line(capsys, f"the walk is of {name!r}, not of {other!r}")


@pytest.mark.slow
def test_methods_are_compared_on_it(file, tmp_path, capsys):
    capped = ["--max-evaluations", "300", "--json"]
    assert cli.main(["bench", "--problem", f"{file}:tiny", *capped]) == DONE
    report = json.loads(capsys.readouterr().out)["tiny"]
    assert {"predictor_corrector", "exponential", "rkc"} <= set(report)
    arguments = ["compare", "--rtols", "1e-2", "--times", "0.05", "--reference-rtol", "1e-5"]
    for name, solvers in (("tiny", "rkc,rkc:float32"), ("bare", "rkc")):
        out = ["--out", str(tmp_path / f"{name}.nc"), "--problem", f"{file}:{name}", "--quiet"]
        assert cli.main([*arguments, "--solvers", solvers, *out]) == DONE
        table = capsys.readouterr().out
        assert ("test loss" in table.splitlines()[1]) == (name == "tiny")
        with xr.open_dataset(tmp_path / f"{name}.nc") as found:
            assert float(found["theta_error"].max()) < 0.1
    assert cli.main([*arguments, "--solvers", "rkc:float32", *out, "--force"]) == BAD_INPUT
    one_line(capsys, "return a PreparedExperiment with module, loss_fn and train")


def test_options_are_the_functions_own(file, tmp_path, capsys):
    start = ["run", "--t-end", "0.02", "--quiet", "--problem"]
    path = tmp_path / "single.nc"
    single = ["--dtype", "float32", "--rtol", "1e-2", "--out", str(path)]
    assert cli.main([*start, f"{file}:tiny", *single]) == DONE
    with gf.open_trajectory(path) as ds:
        assert ds.attrs["dtype"] == "float32"
    again = ["--like", str(path), "--out", str(tmp_path / "again.nc")]
    assert cli.main([*start, f"{file}:tiny", *again]) == DONE
    assert cli.main(["diff", str(path), str(tmp_path / "again.nc")]) == DONE
    capsys.readouterr()
    for option, value in (("dtype", "float32"), ("data", "x"), ("device", "cpu")):
        assert cli.main([*start, f"{file}:bare", f"--{option}", value]) == BAD_INPUT
        one_line(capsys, f"the function of 'bare' does not name {option} in its signature")


BAD = [
    ("mine.py", "use FILE.py:FUNCTION"),
    ("mine.py:", "use FILE.py:FUNCTION"),
    (":tiny", "use FILE.py:FUNCTION"),
    ("none.py:tiny", "none.py cannot be read (No such file or directory)"),
    (".:tiny", "cannot be read (Is a directory)"),
    ("/dev/zero:tiny", "/dev/zero cannot be read (it is no regular file); name a Python file"),
    ("mine.py:nothing", "nothing is not there; mine.py has data, network, tiny, bare"),
    ("mine.py:number", "number is no function"),
    ("mine.py:Sizes", "give a function of a seed"),
    ("mine.py:no_seed", "cannot be called with a seed alone"),
    ("mine.py:wrong", "returned a dict; return a geoflow.experiments.PreparedExperiment"),
    ("mine.py:provenance", "cannot be kept as JSON"),
    ("mine.py:iris_ff", "'iris_ff' is the name of another experiment"),
    (
        "mine.py:fails",
        f"mine.py, line {line_of('    return undefined_name')}: NameError: name 'undefined_name'",
    ),
    (
        "mine.py:failing_observable",
        "RuntimeError: broken on purpose",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[t for t, _ in BAD])
def test_what_cannot_be_used_is_one_line(text, message, file, monkeypatch, capsys):
    monkeypatch.chdir(file.parent)
    assert cli.main(["run", "--problem", text, *WALK]) == BAD_INPUT
    one_line(capsys, message)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (", "line 1: SyntaxError: '(' was never closed"),
        ("\nimport no_such_module", "line 2: ModuleNotFoundError: No module named"),
        ("\n\nimport sys; sys.exit(4)", "line 3: SystemExit: 4"),
        ("x = '\0'", "null bytes"),
    ],
)
def test_errors_at_the_top_of_the_file_are_one_line(source, message, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(source)
    assert cli.main(["run", "--problem", f"{path}:tiny"]) == BAD_INPUT
    one_line(capsys, message)


def test_two_names_or_none_are_refused(file, capsys):
    problem = ["--problem", f"{file}:bare"]
    compared = ["compare", "--solvers", "rkc", "--rtols", "1e-2", "--out", "x.nc"]
    swept = ["sweep", "--seeds", "0", "--out", "x"]
    for arguments in (
        ["run", "iris_ff", *problem],
        ["bench"],
        compared,
        [*compared, "iris_ff", *problem],
        swept,
        [*swept, "iris_ff", *problem],
    ):
        assert cli.main(arguments) == BAD_INPUT
        one_line(capsys, "--problem FILE.py:FUNCTION")


def test_a_baseline_of_ones_own_is_refused_with_what_does_for_it(file, tmp_path, capsys):
    out, own = ["--out", str(tmp_path / "x")], f"{file}:bare"
    for arguments in (
        ["sweep", "--baseline", "--seeds", "0", *out, "--problem", own],
        ["sweep", "--baseline", "--seeds", "0", *out, own],
        ["baseline", *out, "--problem", own],
        ["baseline", *out, f"--problem={own}", "iris_ff"],
        ["baseline", *out, own],
    ):
        assert cli.main(arguments) == BAD_INPUT
        one_line(capsys, "does not know how its network is trained")
        assert not (tmp_path / "x").exists()
    with pytest.raises(gf.InputError, match="weight-decay solutions"):
        gf.baselines.weight_decay(gf.experiments.OwnExperiment("mine", lambda seed: None))


@pytest.mark.filterwarnings("default")
def test_another_version_of_the_file_is_a_warning_and_another_problem_an_error(tmp_path, capsys):
    (tmp_path / "my_widths.py").write_text(HELPER)
    path, walk = tmp_path / "mine.py", tmp_path / "walk.nc"
    path.write_text(FILE)
    problem = ["--problem", f"{path}:bare", "--quiet"]
    assert cli.main(["run", *problem, "--t-end", "0.1", "--out", str(walk)]) == DONE
    path.write_text(FILE + "\n# The same, but for this.\n")
    capsys.readouterr()
    assert cli.main(["resume", str(walk), *problem, "--t-end", "0.2"]) == DONE
    said = capsys.readouterr().err
    assert said.startswith(f"geoflow: warning: {path} has changed since the walk was started")
    assert said.count("\n") == 1
    path.write_text(FILE.replace("torch.randn(24", "torch.randn(25"))
    assert cli.main(["resume", str(walk), *problem, "--t-end", "0.3"]) == BAD_INPUT
    assert "the training data of bare, seed 0, are not those of the walk" in capsys.readouterr().err
    path.write_text(FILE.replace("nn.Tanh()", "nn.Sigmoid()"))
    assert cli.main(["resume", str(walk), *problem, "--t-end", "0.3"]) == BAD_INPUT
    assert "go on with the network, the loss function" in capsys.readouterr().err


def test_predictions_of_a_network_whose_symmetries_are_not_known_are_compared(tmp_path, capsys):
    path, walk = tmp_path / "mine.py", tmp_path / "walk.nc"
    path.write_text(FILE.replace("nn.Tanh()", "nn.GELU()"))
    (tmp_path / "my_widths.py").write_text(HELPER)
    problem = ["--problem", f"{path}:tiny", "--quiet"]
    assert cli.main(["run", *problem, *WALK[:-1], "--out", str(walk)]) == DONE
    capsys.readouterr()
    assert cli.main(["predictions", str(walk), *problem]) == DONE
    said = capsys.readouterr()
    assert "JS / bit, test" in said.out
    assert "nearest copy" not in said.out
    assert said.err.startswith("geoflow: distances to copies are left out: module: ")
    assert said.err.count("\n") == 1


@pytest.mark.filterwarnings("default")
def test_predictions_of_another_network_of_the_same_tensors_are_refused(tmp_path, capsys):
    (tmp_path / "my_widths.py").write_text(HELPER)
    path, walk = tmp_path / "mine.py", tmp_path / "walk.nc"
    path.write_text(FILE)
    problem = ["--problem", f"{path}:tiny", "--quiet"]
    assert cli.main(["run", *problem, *WALK[:-1], "--out", str(walk)]) == DONE
    for snapshots in ([], ["--snapshots=-1"]):
        path.write_text(FILE)
        assert cli.main(["predictions", str(walk), *problem, *snapshots]) == DONE
        path.write_text(FILE.replace("nn.Tanh()", "nn.ReLU()"))
        capsys.readouterr()
        assert cli.main(["predictions", str(walk), *problem, *snapshots]) == BAD_INPUT
        said = capsys.readouterr()
        assert said.out == ""
        assert "flow has the loss" in said.err
        assert "give the flow of this walk: the same data, network and loss" in said.err


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("more", [[], ["--seed", "5"]])
def test_a_walk_is_not_run_again_with_other_tensors(tmp_path, capsys, more):
    (tmp_path / "my_widths.py").write_text(HELPER)
    path, walk, out = tmp_path / "mine.py", tmp_path / "walk.nc", tmp_path / "again.nc"
    path.write_text(FILE)
    problem = ["--problem", f"{path}:bare", "--quiet"]
    assert cli.main(["run", *problem, "--t-end", "0.1", "--out", str(walk)]) == DONE
    path.write_text(FILE.replace("from my_widths import WIDTH", "WIDTH = 4"))
    capsys.readouterr()
    again = ["run", "--like", str(walk), *problem, *more, "--out", str(out)]
    assert cli.main(again) == BAD_INPUT
    said = capsys.readouterr().err
    assert "the network of bare is not that of the archive" in said
    assert "(of its tensors ['0.weight', [4, 3]] and ['0.weight', [5, 3]])" in said
    assert not out.exists()


def test_a_problem_in_a_pipe_or_without_an_end_is_refused(tmp_path, capsys, monkeypatch):
    os.mkfifo(tmp_path / "pipe.py")
    assert cli.main(["run", "--problem", f"{tmp_path}/pipe.py:tiny"]) == BAD_INPUT
    one_line(capsys, "pipe.py cannot be read (it is no regular file)")
    monkeypatch.setattr("geoflow.experiments.problem_file.LARGEST", 10)
    (tmp_path / "long.py").write_text(FILE)
    assert cli.main(["run", "--problem", f"{tmp_path}/long.py:tiny"]) == BAD_INPUT
    one_line(capsys, "long.py cannot be read (it has more than 10 bytes)")


@pytest.mark.slow
def test_a_sweep_carries_it_to_its_workers(file, tmp_path, capsys):
    problem = ["--problem", f"{file}:tiny"]
    sweep = ["sweep", *problem, "--seeds", "0,3", "--out", str(tmp_path / "s"), *WALK]
    assert cli.main([*sweep, "--workers", "1"]) == DONE
    with gf.open_trajectory(tmp_path / "s" / "seed-0003.nc") as ds:
        assert (ds.attrs["experiment"], ds.attrs["seed"]) == ("tiny", 3)
        swept = ds.load()
    alone = tmp_path / "alone.nc"
    assert cli.main(["run", *problem, "--seed", "3", *WALK, "--out", str(alone)]) == DONE
    with gf.open_trajectory(alone) as ds:
        assert ds.drop_vars("wall_time").equals(swept.drop_vars("wall_time"))
    with gf.open_sweep(tmp_path / "s") as ds:
        assert ds["run"].values.tolist() == [0, 3]
    capsys.readouterr()
    changed = file.with_name("changed.py")
    changed.write_text(FILE + "\n# Changed.\n")
    other = ["sweep", "--problem", f"{changed}:tiny", *sweep[3:]]
    assert cli.main(other) == BAD_INPUT
    one_line(capsys, "holds a sweep with problem_sha256=")
