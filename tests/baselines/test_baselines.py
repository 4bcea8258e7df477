import json

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow import cli
from geoflow.baselines import predictor_corrector
from geoflow.cli import terminal
from geoflow.comparisons import cost
from geoflow.errors import InputError
from geoflow.trajectories import schema


def test_the_loop_keeps_close_to_the_level_and_falls_in_r(network):
    ds = predictor_corrector(network, steps=400)
    assert schema.defects(ds) == []
    assert ds.attrs["status"] == "max_steps"
    # Predictions start within |L − c| ≤ 1e-5, and a step of at most 0.1 follows.
    assert np.abs(ds["level_residual"]).max() < 0.05
    assert ds["regularizer"].values[-1] < ds["regularizer"].values[0]


def test_every_record_costs_one_gradient(network):
    before = network.problem.counts["gradient"]
    ds = predictor_corrector(network, steps=50)
    assert network.problem.counts["gradient"] - before == ds.sizes["step"]
    assert ds["n_gradient"].values.tolist() == list(range(1, ds.sizes["step"] + 1))
    predictions = ds.sizes["step"] - 1 - int(ds["n_reprojection"][-1])
    assert predictions == 50


def straight():
    """A plane as level set: every prediction keeps its direction."""
    problem = gf.Problem.from_function(
        lambda t: 1.0 + t[0], torch.tensor([0.0, 5.0, 0.0], dtype=torch.float64)
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: theta[1])


def test_consecutive_predictions_without_a_turn_grow_by_a_tenth():
    ds = predictor_corrector(straight(), steps=100, predictor_min=1e-4)
    lengths = np.diff(ds["arc_length"].values)
    assert np.allclose(lengths[:70], np.minimum(1e-4 * 1.1 ** np.arange(70), 0.1), rtol=1e-6)
    assert lengths.max() == pytest.approx(0.1)


def test_corrections_are_fixed_unless_asked_to_adapt():
    def walk(adaptive):
        problem = gf.Problem.from_function(
            lambda t: 1.0 + t[0], torch.tensor([0.5, 5.0], dtype=torch.float64)
        )
        flow = gf.RegularizingFlow(gf.LevelSet(problem, 1.0), lambda theta: theta[1])
        ds = predictor_corrector(
            flow, corrector_min=1e-3, adaptive_corrector=adaptive, max_evaluations=50
        )
        return np.diff(ds["arc_length"].values)

    assert np.allclose(walk(False), 1e-3)
    assert np.allclose(walk(True)[:40], 1e-3 * 1.1 ** np.arange(40))


def test_the_budget_is_never_passed(network):
    ds = predictor_corrector(network, max_evaluations=17)
    assert ds.attrs["status"] == "max_evaluations"
    assert int(ds["n_gradient"][-1]) == 17


@pytest.mark.parametrize("name", ["predictor_min", "corrector_min", "max_evaluations", "steps"])
def test_bad_input(network, name):
    with pytest.raises(InputError, match=f"{name}=-1"):
        predictor_corrector(network, **{name: -1})


def test_a_summary_says_what_each_angle_took_and_what_was_not_reached():
    ds = gf.walk(references.small_network(), stop=gf.Stationary(160.0))
    entry = cost.summarise(ds, target=float(ds["regularizer"][2]))
    evaluations = (ds["n_gradient"] + 2 * ds["n_hvp"]).values
    assert entry["evaluations"]["179"] is None
    first = int(np.argmax(ds["angle"].values >= 150))
    assert entry["evaluations"]["150"] == evaluations[first]
    assert entry["to_regularizer"]["evaluations"] == evaluations[2]
    assert entry["final"]["evaluations"] == evaluations[-1]


@pytest.mark.slow
def test_bench_prints_one_json_object(capsys):
    assert cli.main(["bench", "iris_ff", "--max-evaluations", "400", "--json"]) == terminal.DONE
    captured = capsys.readouterr()
    report = json.loads(captured.out)["iris_ff"]
    methods = {"predictor_corrector", "dopri5", "bosh3", "rkc", "exponential", "bdf"}
    assert set(report) - {"cvode"} == methods
    assert set(report["exponential"]["evaluations"]) == {"120", "150", "175", "179"}
    assert all(e["final"]["evaluations"] <= 400 for e in report.values())
    assert "iris_ff: exponential" in captured.err


def test_bench_refuses_bad_input_before_it_starts(capsys):
    assert cli.main(["bench", "iris_ff", "nope"]) == terminal.BAD_INPUT
    assert cli.main(["bench", "iris_ff", "--max-evaluations", "0"]) == terminal.BAD_INPUT
    assert "max_evaluations=0" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["predictor_corrector", "bosh3"])
def test_ctrl_c_ends_bench_and_leaves_no_table(when, monkeypatch, capsys):
    started = []

    def noted(name):
        started.append(name)
        return {"status": "interrupted"} if name == when else {}

    def loop(*args, **kwargs):
        return predictor_corrector(*args, **kwargs).assign_attrs(noted("predictor_corrector"))

    def walk(flow, name, **kwargs):
        return gf.walk(flow, name, **kwargs).assign_attrs(noted(name))

    monkeypatch.setattr(cost, "predictor_corrector", loop)
    monkeypatch.setattr(cost, "walk", walk)
    assert cli.main(["bench", "iris_ff", "--max-evaluations", "20"]) == terminal.INTERRUPTED
    assert started[-1] == when
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("geoflow: interrupted\n")


def test_the_papers_loop_ends_where_time_no_longer_advances():
    # Its steps are of a given length, so that time stands where R is steep enough.
    theta0 = torch.tensor([1.0, 1.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: theta[1] + 0 * theta[0], theta0)
    steep = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: -torch.exp(40 * theta[0]))
    ds = gf.baselines.predictor_corrector(steep, stop=None, max_evaluations=5_000)
    assert ds.attrs["status"] == "step_size_underflow"
    assert (np.diff(ds["time"]) > 0).all()


def raising(n):
    """The squared norm, which at its ``n``-th evaluation raises."""
    left = n

    def loss(theta):
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("out of data")
        return theta.square().sum()

    return loss


def on_a_sphere(loss, regularizer, level=None):
    theta0 = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    problem = gf.Problem.from_function(loss, theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem, level), regularizer)


def test_a_loop_whose_loss_raises_keeps_what_was_walked():
    ds = predictor_corrector(on_a_sphere(raising(60), lambda t: t[0] + 2 * t[1]))
    assert ds.attrs["status"] == "evaluation_failed"
    assert ds.attrs["status_message"] == "an evaluation raised RuntimeError: out of data"
    assert schema.defects(ds) == []
    whole = predictor_corrector(
        on_a_sphere(lambda t: t.square().sum(), lambda t: t[0] + 2 * t[1]),
        max_evaluations=ds.sizes["step"],
    )
    assert ds.sizes["step"] > 10
    assert np.array_equal(ds["theta"], whole["theta"])


def test_a_loop_whose_criterion_or_r_raises_keeps_what_was_walked():
    def stop(records):
        if len(records) == 4:
            raise ZeroDivisionError("no rate yet")

    def regularizer(theta):
        if theta[1] < 0.99:
            raise OSError("the file is gone")
        return theta[0] + 2 * theta[1]

    flow = on_a_sphere(lambda t: t.square().sum(), lambda t: t[0] + 2 * t[1])
    ds = predictor_corrector(flow, stop=stop)
    assert (ds.attrs["status"], ds.sizes["step"]) == ("evaluation_failed", 4)
    assert ds.attrs["status_message"] == "an evaluation raised ZeroDivisionError: no rate yet"
    ds = predictor_corrector(on_a_sphere(lambda t: t.square().sum(), regularizer))
    assert ds.attrs["status"] == "evaluation_failed"
    assert ds.sizes["step"] > 4
    assert ds["theta"].values[-1, 1] >= 0.99


def test_a_loop_that_has_no_first_point_raises_what_was_raised():
    with pytest.raises(RuntimeError, match="out of data"):
        predictor_corrector(on_a_sphere(raising(made_of()), lambda t: t[0]))


def made_of():
    """Evaluations that a flow takes to be made."""
    n = 0

    def loss(theta):
        nonlocal n
        n += 1
        return theta.square().sum()

    on_a_sphere(loss, lambda t: t[0])
    return n


def test_a_correction_where_r_is_stationary_ends_the_loop():
    # A correction is given the flow time of a step as long along ∇R, which there is none of.
    there = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    flow = on_a_sphere(lambda t: t.square().sum(), lambda t: (t - there).square().sum(), level=3.0)
    ds = predictor_corrector(flow, steps=20)
    assert ds.attrs["status"] == "critical_point"
    assert ds.attrs["status_message"].startswith("R is stationary at loss 2.25, where a step of")
    assert ds.sizes["step"] == 1
    assert schema.defects(ds) == []


def test_the_loop_counts_an_r_that_is_another_problem_apart():
    # Each record of it costs a gradient of the loss and one of R.
    theta0 = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    other = gf.Problem.from_function(lambda t: (t - 2).square().sum() + t[0], theta0)
    flow = on_a_sphere(lambda t: t.square().sum(), other)
    ds = predictor_corrector(flow, steps=20)
    assert ds.attrs["status"] == "max_steps"
    assert schema.defects(ds) == []
    assert ds["n_gradient"].values.tolist() == list(range(1, ds.sizes["step"] + 1))
    assert np.array_equal(ds["n_regularizer_gradient"], ds["n_gradient"])
    ds = predictor_corrector(flow, max_evaluations=7)
    assert ds.attrs["status"] == "max_evaluations"
    assert int(ds["n_regularizer_gradient"][-1]) == 7
