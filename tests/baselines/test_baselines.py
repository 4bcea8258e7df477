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
