import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import geoflow as gf
import references
from geoflow import cli, plots
from geoflow.archive.netcdf import save_dataset
from geoflow.cli.terminal import BAD_INPUT, DONE, INTERRUPTED
from geoflow.comparisons import cost, judging
from geoflow.comparisons.cost import summarise
from geoflow.comparisons.dataset import Run, to_dataset
from geoflow.comparisons.reference import reference_for
from geoflow.comparisons.work_precision import compare
from geoflow.errors import ConvergenceError, CriticalPointError, InputError
from geoflow.experiments import registry
from geoflow.solvers import TorchDiffEq

TIMES = [0.3, 1.0]
RTOLS = [1e-2, 1e-3, 1e-4, 1e-5]
OBSERVABLES = {"test_loss": lambda theta: float(theta[0])}


def relative(theta, exact):
    return float((theta - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def oja():
    return references.oja()


@pytest.fixture(scope="module")
def ds(oja):
    # With SUNDIALS installed the reference would be another one.
    solvers = ["rkc", "exponential", "bosh3"]
    return compare(oja.flow, solvers, RTOLS, TIMES, OBSERVABLES, reference="dopri5")


def test_errors_fall_with_the_tolerance_and_evaluations_grow(ds):
    assert ds["theta_error"].dims == ("solver", "rtol", "snapshot")
    assert np.array_equal(ds["rtol"], RTOLS)
    assert (ds["status"] == "t_end").all()
    assert (np.diff(ds["theta_error"], axis=1) < 0).all()
    assert (np.diff(ds["evaluations"], axis=1) > 0).all()
    assert (np.diff(ds["evaluations"], axis=2) > 0).all()
    assert (ds["level_error"] <= 1e-6).all()


@pytest.mark.parametrize("make", [references.oja, references.sphere_linear])
def test_the_references_estimate_of_its_own_error_holds(make):
    exact = make()
    times = [1.0, 2.0]
    ds = compare(exact.flow, ["dopri5"], [1e-3], times, reference="dopri5", reference_rtol=1e-5)
    # As the reference is made: dopri5, the level kept to 1e-10.
    level_set = gf.LevelSet(exact.flow.problem, level_rtol=1e-10)
    flow = gf.RegularizingFlow(level_set, exact.flow.regularizer)
    solver = gf.solvers.get("dopri5")
    solver.dense = False
    walked = gf.walk(flow, solver, rtol=1e-5, atol=1e-8, t_end=2.0, stop=None, snapshot_times=times)
    for i, t in enumerate(times):
        true = relative(torch.as_tensor(walked["theta"].values[i]), exact.exact(t))
        estimate = float(ds["reference_theta_error"][i])
        # The tighter walk is off by about a tenth as much, and both by what the level is kept to.
        assert estimate > 1e-10
        assert true <= 1.3 * estimate + 1e-10
        assert estimate <= 1e-5


def test_the_error_is_the_distance_from_the_exact_solution(oja, ds):
    walked = gf.walk(
        oja.flow, "rkc", rtol=1e-3, t_end=1.0, stop=None, snapshot_times=TIMES, max_snapshots=2
    )
    theta, exact = torch.as_tensor(walked["theta"].values[1]), oja.exact(1.0)
    cell = ds.sel(solver="rkc", rtol=1e-3).isel(snapshot=1)
    assert float(cell["theta_error"]) == pytest.approx(relative(theta, exact), rel=1e-3)
    difference = abs(float(theta[0] - exact[0]))
    assert float(cell["test_loss_error"]) == pytest.approx(difference, rel=1e-3)
    difference = abs(float(oja.flow.regularizer(theta) - oja.flow.regularizer(exact)))
    assert float(cell["regularizer_error"]) == pytest.approx(difference, rel=1e-3)
    assert float(cell["evaluations"]) == float(walked["n_gradient"][-1])


def test_a_spent_budget_gives_nan_from_there_and_says_so(oja):
    ds = compare(oja.flow, ["rkc"], [1e-2, 1e-6], TIMES, max_evaluations=120)
    assert ds["status"].values.tolist() == [["t_end", "max_evaluations"]]
    assert "budget of 120" in str(ds["status_message"].values[0, 1])
    short = ds.isel(solver=0, rtol=1)
    assert np.isnan(short["theta_error"]).values.tolist() == [False, True]
    assert np.isnan(short["evaluations"]).values.tolist() == [False, True]
    assert int(short["evaluations_spent"]) == 120
    none = compare(oja.flow, ["rkc"], [1e-6], TIMES, max_evaluations=1)
    assert np.isnan(none["theta_error"]).all()
    assert none["status"].item() == "max_evaluations"


def test_float32_is_measured_by_the_float64_reference(network):
    module, data = references.small_module(), references.small_data()
    loss_fn = torch.nn.functional.cross_entropy
    problem = gf.Problem.from_module(module, loss_fn, *data, dtype=torch.float32)
    level_set = gf.LevelSet(problem, network.level_set.level, level_rtol=1e-5)
    single = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)
    ds = compare(
        network,
        ["exponential", "exponential:float32"],
        [1e-2, 1e-4, 2e-7],
        [0.02],
        float32=single,
    )
    assert ds["dtype"].values.tolist() == ["float64", "float32"]
    assert ds["status"].values[1].tolist() == ["t_end", "t_end", "not_resolved"]
    assert "below what torch.float32 resolves" in str(ds["status_message"].values[1, 2])
    errors = ds["theta_error"].values[:, :, 0]
    # At 1e-2 the method's error is the larger part in either; at 1e-4 rounding adds to it.
    assert errors[1, 0] == pytest.approx(errors[0, 0], rel=0.05)
    level = ds["level_error"].values[1, :2, 0]
    assert (level > 0).all()
    assert (level <= 2e-5).all()


def test_solvers_of_ones_own_and_rtols_by_label(oja):
    own = {"every 0.1": TorchDiffEq("dopri5", reproject_every=0.1), "each": TorchDiffEq("dopri5")}
    ds = compare(oja.flow, own, {"every 0.1": [1e-3], "each": [1e-4]}, TIMES)
    assert ds["solver"].values.tolist() == ["every 0.1", "each"]
    assert ds["status"].values.tolist() == [["t_end", "not_run"], ["not_run", "t_end"]]
    config = json.loads(ds.attrs["config"])
    assert config["solvers"]["every 0.1"]["reproject_every"] == 0.1


def test_several_runs_give_mean_and_deviation(oja):
    """By walks at the same tolerances, one by one."""
    ds = compare(oja.flow, ["exponential"], [1e-3], TIMES, reference_rtol=1e-6, runs=3)
    single = [
        compare(oja.flow, ["exponential"], [rtol], TIMES, reference_rtol=1e-6)
        for rtol in (0.85e-3, 1e-3, 1.15e-3)
    ]
    for name in ("theta_error", "evaluations"):
        values = np.array([one[name].values[0, 0] for one in single])
        assert ds[name].values[0, 0] == pytest.approx(values.mean(axis=0), rel=1e-12)
        deviation = ds[f"{name}_deviation"].values[0, 0]
        assert deviation == pytest.approx(values.std(axis=0, ddof=1), rel=1e-9)
        assert np.isnan(single[0][f"{name}_deviation"]).all()
    worst = [float(one["level_error_worst"][0, 0]) for one in single]
    assert float(ds["level_error_worst"][0, 0]) == max(worst)
    assert json.loads(ds.attrs["config"])["jitters"] == [0.85, 1.0, 1.15]


def test_the_worst_level_error_is_that_over_all_steps(oja):
    ds = compare(oja.flow, ["dopri5"], [1e-3], TIMES, reference_rtol=1e-5)
    walked = gf.walk(
        oja.flow, "dopri5", 1e-3, 1e-6, t_end=TIMES[-1], stop=None, snapshot_times=TIMES
    )
    worst = np.abs(walked["level_residual"]).max() / oja.flow.level_set.level
    assert float(ds["level_error_worst"][0, 0]) == float(worst)
    # And what the whole of it took.
    assert ds["n_steps"].item() == walked.sizes["step"] - 1
    assert ds["evaluations_spent"].item() == int(walked["n_gradient"][-1])
    # Of L = ½‖θ‖² the gradient is as long as θ.
    for i, theta in enumerate(walked["theta"].values):
        size, level = np.linalg.norm(theta), oja.flow.level_set.level
        off = abs(size**2 / 2 - level)
        assert float(ds["level_error"][0, 0, i]) == pytest.approx(off / level, rel=1e-6)
        assert float(ds["level_distance"][0, 0, i]) == pytest.approx(off / size, rel=1e-6)


def test_attempts_that_are_rejected_are_counted(oja):
    run = judging.Judge(oja.flow, {}).walk(oja.flow, gf.solvers.get("rkc"), 1e-2, [1.0], None)
    walked = gf.walk(oja.flow, "rkc", 1e-2, 1e-5, t_end=1.0, stop=None, snapshot_times=[1.0])
    assert run.n_rejected == int(walked["n_rejected"][-1]) > 0
    assert (run.n_steps, run.spent) == (walked.sizes["step"] - 1, int(walked["n_gradient"][-1]))


def test_a_level_below_zero_has_errors_above_it():
    centre = torch.tensor([1.0, 2.0], dtype=torch.float64)
    problem = gf.Problem.from_function(
        lambda t: ((t - centre) ** 2).sum() - 9, torch.zeros(2, dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: t[0])
    assert flow.level_set.level == -4
    judge = judging.Judge(flow, {})
    # L = −3: a quarter of the level away from it.
    values, _ = judge.measure(np.array([[1.0, 2.0 - 6**0.5]]))
    assert values["level_error"] == pytest.approx(0.25)
    run = judge.walk(flow, gf.solvers.get("bosh3"), 1e-2, [0.5], None)
    assert run.status == "t_end"
    assert 0 < run.worst <= 1e-6


def test_of_two_runs_the_one_that_came_least_far_says_how_it_ended():
    def run(status, n, spent, rejected):
        values = dict.fromkeys(("regularizer", "angle"), np.ones(n))
        return Run(status, "", np.ones((n, 3)), values, spent, spent, rejected, 0.1 * rejected)

    whole, short = run("t_end", 2, 10, 3), run("max_evaluations", 1, 21, 6)
    scalars = ("regularizer", "angle", "level_error", "evaluations", "wall_time")
    reference = Run("t_end", "", np.ones((2, 3)), dict.fromkeys(scalars, np.ones(2)))
    for several in ([whole, short], [short, whole]):
        found = {("a", 1e-2): several}
        ds = to_dataset([], ["a"], [1e-2], TIMES, found, [reference] * 2, {})
        assert ds["status"].item() == "max_evaluations"
        assert np.isnan(ds["theta_error"]).values.ravel().tolist() == [False, True]
        # Means, to whole numbers.
        assert (ds["evaluations_spent"].item(), ds["n_rejected"].item()) == (16, 4)
        assert ds["level_error_worst"].item() == pytest.approx(0.6)
    # An interrupt says so, however far it came.
    stopped = run("interrupted", 2, 10, 3)
    found = {("a", 1e-2): [short, stopped]}
    ds = to_dataset([], ["a"], [1e-2], TIMES, found, [reference] * 2, {})
    assert ds["status"].item() == "interrupted"


def test_the_reference_is_tighter_than_all_that_is_compared(monkeypatch):
    monkeypatch.setattr("geoflow.solvers.is_installed", lambda name: False)
    assert reference_for({"rkc": [1e-2, 1e-3]}, None, None) == ("dopri5", 1e-7)
    assert reference_for({"rkc": [1e-2], "bdf": [1e-8]}, None, None) == ("dopri5", 1e-10)
    assert reference_for({"rkc": [1e-2]}, "bdf", 1e-6) == ("bdf", 1e-6)
    assert reference_for({"bdf": [1e-12]}, None, None)[1] == pytest.approx(4.4e-14, rel=0.02, abs=0)


def test_the_file_explains_itself_and_is_read_without_geoflow(ds, tmp_path):
    path = tmp_path / "c.nc"
    save_dataset(ds, path)
    with xr.open_dataset(path, engine="netcdf4") as read:
        assert read["theta_error"].equals(ds["theta_error"])
        assert read["status"].values.tolist() == ds["status"].values.tolist()
        for variable in read.variables.values():
            assert variable.attrs["long_name"]
            assert variable.attrs["units"]
        assert read.attrs["reference_solver"] == "dopri5"
        assert {"geoflow_version", "torch_version", "config", "created"} <= set(read.attrs)
    with pytest.raises(InputError, match="exists; choose another name"):
        save_dataset(ds, path)


def test_the_diagram_has_a_line_for_each_solver_and_the_floor(ds, tmp_path):
    ax = plots.work_precision(ds, snapshot=0)
    *lines, floor = ax.lines
    for line, solver in zip(lines, ds["solver"].values, strict=True):
        at = ds.sel(solver=solver).isel(snapshot=0)
        assert np.array_equal(line.get_xdata(), at["evaluations"])
        assert np.array_equal(line.get_ydata(), at["theta_error"])
    assert floor.get_ydata()[0] == float(ds["reference_theta_error"][0])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    files = plots.save_figures(ds, tmp_path, "oja")
    assert [f.name for f in files] == ["oja-work-precision.png", "oja-work-precision.pdf"]
    with pytest.raises(InputError, match="not a comparison"):
        plots.work_precision(xr.Dataset())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solvers": ["newton"]}, "solver='newton'"),
        ({"solvers": ["rkc", "rkc"]}, "no name comes twice"),
        ({"solvers": []}, "solvers is empty"),
        ({"solvers": ["rkc:float32"]}, "give float32="),
        ({"rtols": [0.0]}, "rtol=0.0"),
        ({"rtols": []}, "at least one"),
        ({"rtols": [1e-7], "reference_rtol": 1e-7}, "not looser than the reference's"),
        ({"rtols": {"rkc": [1e-2], "x": [1e-2]}}, "'x' is not in both"),
        ({"times": [0.0, 1.0]}, "increasing flow times above 0"),
        ({"times": [1.0, 0.5]}, "increasing flow times above 0"),
        ({"times": [0.5, math.inf]}, "finite, increasing flow times above 0"),
        ({"max_evaluations": 0}, "max_evaluations=0"),
        ({"runs": 0}, "runs=0; use 1 to"),
        ({"rtols": [3e-14]}, "rtol=3e-14 is not looser than the reference's"),
        ({"reference": "newton"}, "solver='newton'"),
        ({"observables": {"level": lambda theta: 0.0}}, "'level' is taken"),
        ({"observables": {"angle": lambda theta: 0.0}}, "'angle' is taken"),
        ({"observables": {"angle_error": lambda theta: 0.0}}, "'angle_error' is taken"),
        ({"observables": dict.fromkeys(("x", "x_error"), lambda theta: 0.0)}, "'x_error' is taken"),
    ],
)
def test_bad_input(oja, arguments, message):
    given = {"solvers": ["rkc"], "rtols": [1e-2], "times": TIMES} | arguments
    with pytest.raises(InputError, match=message):
        compare(oja.flow, **given)


WRONG = [
    ({"solvers": 3}, "solvers=3 is of type int"),
    ({"solvers": [3]}, "solvers: one=3"),
    ({"solvers": {"a": 3}}, r"solvers\['a'\]=3 is none"),
    ({"solvers": {"a": "bdf"}}, r"solvers\['a'\]='bdf' is none"),
    ({"solvers": {3: TorchDiffEq("rk4")}}, "solvers: a label=3"),
    ({"solvers": "bdf"}, "use a list"),
    ({"rtols": 1e-3}, "rtols=0.001; give a list"),
    ({"rtols": "1e-3"}, "rtols='1e-3'; give a list"),
    ({"rtols": None}, "rtols=None; give a list"),
    ({"rtols": ["a"]}, "rtols='a'; give a real number"),
    ({"rtols": {"rkc": 1e-3}}, r"rtols\['rkc'\]=0.001; give a list"),
    ({"rtols": {"rkc": [1e-3], 3: [1e-3]}}, "3 is not in both"),
    ({"times": 1.0}, "times=1.0; give a list"),
    ({"times": ["x"]}, "times='x'; give a real number"),
    ({"times": {0.1: 1}}, "times={0.1: 1}; give a list"),
    ({"runs": "3"}, "runs='3'; give a whole number"),
    ({"runs": True}, "runs=True; give a whole number"),
    ({"runs": 1.5}, "runs=1.5; give a whole number"),
    ({"observables": 3}, "observables=3 is of type int"),
    ({"reference": 3}, "reference=3 is of type int"),
    ({"reference_rtol": "1e-9"}, "reference_rtol='1e-9'; give a real number"),
    ({"provenance": 3}, "provenance=3 is of type int"),
    ({"provenance": {"a": object()}}, "provenance, with the settings, cannot be kept as JSON"),
    ({"note": 3}, "note=3 is of type int"),
    ({"float32": 3}, "float32=3 is of type int"),
    ({"flow": None}, "flow=None is of type NoneType"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[m for _, m in WRONG])
def test_an_argument_of_the_wrong_kind_is_refused_before_a_walk(oja, arguments, message):
    given = {"flow": oja.flow, "solvers": ["rkc"], "rtols": [1e-2], "times": TIMES} | arguments
    before = oja.flow.problem.counts
    with pytest.raises(InputError, match=message) as caught:
        compare(**given)
    assert "\n" not in str(caught.value)
    # Observables are tried at the start, which takes no gradient.
    assert oja.flow.problem.counts == before


@pytest.fixture
def quick(monkeypatch):
    """Only one epoch of training: the command is tested, not the network."""
    prepare = registry.Experiment.prepare
    monkeypatch.setattr(
        registry.Experiment, "prepare", lambda self, *a, **k: prepare(self, *a, epochs=1, **k)
    )


REFERENCE = ["--reference", "dopri5", "--reference-rtol", "1e-5"]
COMMAND = ["compare", "iris_ff", "--times", "0.005,0.01", *REFERENCE]


def test_the_command_writes_the_dataset_and_the_diagram(quick, tmp_path, capsys):
    path = tmp_path / "c.nc"
    options = ["--solvers", "rkc,exponential:float32", "--rtols", "1e-2,1e-3", "--runs", "2"]
    options += ["--out", str(path)]
    assert cli.main([*COMMAND, *options, "--figures", str(tmp_path)]) == DONE
    captured = capsys.readouterr()
    assert "exponential:float32" in captured.out
    assert "±" in captured.out
    assert "mean ± deviation of 2 walks" in captured.out
    assert "reference, dopri5 at rtol 1e-06" in captured.err
    assert (tmp_path / "c-work-precision.png").stat().st_size > 0
    with xr.open_dataset(path) as ds:
        assert ds.sizes == {"solver": 2, "rtol": 2, "snapshot": 2}
        assert ds.attrs["title"] == "iris_ff, seed 0: solvers and tolerances compared"
        assert (ds["status"] == "t_end").all()
        assert {"test_loss_error", "test_accuracy_error"} <= set(ds.data_vars)
    before = path.read_bytes()
    assert cli.main([*COMMAND, *options]) == BAD_INPUT
    assert "--force" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--solvers", "newton", "--rtols", "1e-2"], "solver='newton'"),
        (["--solvers", "rkc", "--rtols", "1e-9", "--reference-rtol", "1e-9"], "not looser"),
        (["--solvers", "rkc", "--rtols", "1e-2", "--times", "-1"], "flow times above 0"),
    ],
)
def test_bad_input_on_the_command_line(options, message, tmp_path, capsys):
    arguments = ["compare", "iris_ff", *options, "--out", str(tmp_path / "c.nc")]
    assert cli.main(arguments) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("geoflow: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "c.nc").exists()


def test_an_interrupt_keeps_what_has_been_walked(quick, tmp_path, monkeypatch):
    walks = []

    def interrupted(*args, **kwargs):
        ds = gf.walk(*args, **kwargs)
        walks.append(1)
        return ds.assign_attrs(status="interrupted") if len(walks) == 4 else ds

    monkeypatch.setattr(judging, "walk", interrupted)
    path = tmp_path / "c.nc"
    options = ["--solvers", "rkc", "--rtols", "1e-2,1e-3,1e-4", "--runs", "1", "--quiet"]
    options += ["--out", str(path)]
    assert cli.main([*COMMAND, *options]) == INTERRUPTED
    with xr.open_dataset(path) as ds:
        assert ds["status"].values.tolist() == [["t_end", "interrupted", "not_run"]]
        assert ds.attrs["status"] == "interrupted"


def test_an_interrupt_of_the_reference_is_one(oja, monkeypatch):
    def interrupted(*args, **kwargs):
        return gf.walk(*args, **kwargs).assign_attrs(status="interrupted")

    monkeypatch.setattr(judging, "walk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(oja.flow, ["rkc"], [1e-2], TIMES)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CriticalPointError("flat"), "critical_point"),
        (
            ConvergenceError("far", iterations=3, residual=1.0, reason="diverged"),
            "projection_failed",
        ),
    ],
)
def test_a_walk_without_a_start_costs_what_it_took_and_says_why(oja, monkeypatch, error, status):
    def failing(flow, *args, **kwargs):
        flow.evaluate(flow.problem.theta0)
        raise error

    monkeypatch.setattr(judging, "walk", failing)
    run = judging.Judge(oja.flow, {}).walk(oja.flow, TorchDiffEq("rk4"), 1e-3, TIMES, None)
    assert (run.status, run.message, run.spent) == (status, str(error), 1)
    assert len(run.theta) == 0


def recorded(level):
    """A walk by hand: its angle falls once, and R rises once; 179° are not reached."""
    steps = {
        "angle": [100.0, 150.0, 140.0, 176.0],
        "regularizer": [9.0, 5.0, 6.0, 4.0],
        "n_gradient": [1, 10, 20, 30],
        "n_hvp": [0, 3, 4, 5],
        "wall_time": [0.0, 1.5, 2.5, 4.0],
        "level_residual": [0.0, 1e-6, -4e-6, 0.0],
        "level_distance": [0.0, 1e-7, 3e-7, 0.0],
    }
    ds = xr.Dataset({name: ("step", np.array(column)) for name, column in steps.items()})
    return ds.assign_attrs(level=level, rtol=1e-3, status="max_evaluations")


def test_what_a_method_takes_to_each_angle():
    found = summarise(recorded(-2.0), 5.5)
    assert found["evaluations"] == {"120": 16, "150": 16, "175": 40, "179": None}
    assert found["wall_time"] == {"120": 1.5, "150": 1.5, "175": 4.0, "179": None}
    assert found["to_regularizer"] == {"target": 5.5, "evaluations": 16}
    assert found["worst_level_residual"] == pytest.approx(2e-6)
    assert found["worst_level_distance"] == pytest.approx(3e-7)
    last = {"angle": 176.0, "regularizer": 4.0, "evaluations": 40, "status": "max_evaluations"}
    assert (found["final"], found["rtol"]) == (last, 1e-3)
    never = {"target": 3.0, "evaluations": None}
    assert summarise(recorded(2.0), 3.0)["to_regularizer"] == never


def test_the_r_to_come_to_is_the_least_of_the_papers_loop(oja, monkeypatch):
    loop = recorded(2.0).isel(step=slice(3))
    prepared = SimpleNamespace(problem=oja.flow.problem)
    mine = SimpleNamespace(prepare=lambda seed: prepared)
    monkeypatch.setattr(cost.registry, "get", lambda name: mine)
    monkeypatch.setattr(cost, "predictor_corrector", lambda flow, **options: loop)
    monkeypatch.setattr(cost, "walk", lambda flow, name, **options: recorded(2.0))
    found = cost.bench("mine")
    assert {"predictor_corrector", *cost.SOLVERS} <= set(found)
    for entry in found.values():
        assert entry["to_regularizer"] == {"target": 5.0, "evaluations": 16}


def test_a_reference_without_a_start_is_an_error():
    problem = gf.Problem.from_function(
        lambda t: 1 + torch.dot(t, t), torch.ones(2, dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem, 0.5), lambda t: t[0])
    with pytest.raises(ConvergenceError, match="choose a level the loss can reach"):
        compare(flow, ["dopri5"], [1e-3], [1.0])


def test_an_observable_that_raises_costs_its_own_numbers_and_no_others(oja):
    n_asked = 0

    def failing(theta):
        nonlocal n_asked
        n_asked += 1
        # At θ0, and at the times of the reference and of the walk that it is checked by.
        if n_asked > 1 + 2 * len(TIMES):
            raise MemoryError("out of memory")
        return float(theta[0])

    ds = compare(oja.flow, ["dopri5"], [1e-3], TIMES, {"failing": failing}, reference="dopri5")
    assert np.isnan(ds["failing_error"]).all()
    assert (ds["theta_error"] < 1e-2).all()
    assert np.isfinite(ds["reference_failing"]).all()
    assert "observables['failing'] raised MemoryError: out of" in str(ds["status_message"].item())
