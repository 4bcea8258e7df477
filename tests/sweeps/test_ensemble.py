import numpy as np
import pytest

import geoflow as gf
from geoflow.errors import ArchiveError, InputError
from geoflow.sweeps import ensemble
from references import small_network


def walk(seed):
    """A walk whose level depends on the seed."""
    problem = small_network().problem
    level_set = gf.LevelSet(problem, float(problem.loss(problem.theta0)) * (1 - 0.2 * seed))
    flow = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)
    return gf.walk(
        flow,
        rtol=1e-4,
        stop=gf.Stationary(150.0),
        observables={"norm": lambda theta: float(theta.norm())},
        provenance={"experiment": "small", "seed": seed},
    )


@pytest.fixture(scope="module")
def runs():
    return [walk(seed) for seed in (0, 1)]


def test_by_time_nothing_is_extrapolated(runs):
    ds = ensemble.resample(runs, "time", 50)
    assert dict(ds.sizes) == {"run": 2, "time": 50, "parameter": runs[0].sizes["parameter"]}
    assert ds["run"].values.tolist() == [0, 1]
    assert float(ds["time"][0]) == 0
    assert float(ds["time"][-1]) == min(float(r["time"][-1]) for r in runs)
    for i, run in enumerate(runs):
        assert float(ds["regularizer"][i, 0]) == float(run["regularizer"][0])
        expected = np.interp(ds["time"], run["time"], run["regularizer"])
        assert np.allclose(ds["regularizer"][i], expected, rtol=1e-12)
        assert np.array_equal(ds["theta_end"][i], run["theta"][-1])


def test_observables_come_from_the_snapshots(runs):
    ds = ensemble.resample(runs, "time", 50)
    for i, run in enumerate(runs):
        expected = np.interp(ds["time"], run["snapshot_time"], run["norm"])
        assert np.allclose(ds["norm"][i], expected, rtol=1e-12)
        assert float(ds["norm"][i, 0]) == pytest.approx(np.linalg.norm(run["theta"][0]))


def test_by_angle_each_walk_is_taken_where_it_first_comes_to_it(runs):
    ds = ensemble.resample(runs, "angle", 40)
    assert float(ds["angle"][0]) == max(float(r["angle"][0]) for r in runs)
    assert float(ds["angle"][-1]) == min(float(r["angle"].max()) for r in runs)
    for i, run in enumerate(runs):
        for angle, steps in zip(ds["angle"].values, ds["arc_length"][i].values, strict=True):
            first = int(np.argmax(run["angle"].values >= angle))
            low = run["arc_length"].values[max(first - 1, 0)]
            assert low - 1e-12 <= steps <= run["arc_length"].values[first] + 1e-12
        assert (np.diff(ds["arc_length"][i]) >= 0).all()


def test_a_fall_of_the_angle_does_not_count_twice(runs):
    fallen = runs[0].copy(deep=True)
    middle = fallen.sizes["step"] // 2
    fallen["angle"][middle] = fallen["angle"][0]
    at, when = ensemble._passage(fallen, "angle")
    assert (np.diff(at) > 0).all()
    assert (np.diff(when) >= 0).all()
    assert at[-1] == fallen["angle"].max()


def test_the_axis_is_within_the_snapshots_that_there_are(runs):
    few = [ds.isel(snapshot=slice(1, -1)) for ds in runs]
    for along in ensemble.ALONG:
        ds = ensemble.resample(few, along, 20)
        for i, run in enumerate(few):
            kept = run["snapshot_time"].values
            times = ds["time"].values if along == "time" else ds["time"].values[i]
            assert times.min() >= kept[0]
            assert times.max() <= kept[-1]


def test_what_the_walks_differ_in_is_not_said_of_all_of_them(runs):
    same = ensemble.resample(runs).attrs
    assert (same["solver"], same["rtol"]) == ("bdf", 1e-4)
    other = runs[1].assign_attrs(solver="dopri5", rtol=1e-6)
    mixed = ensemble.resample([runs[0], other]).attrs
    assert mixed["solver"] == "bdf, dopri5"
    assert "rtol" not in mixed
    assert mixed["regularizer_name"] == "squared_norm"
    assert same["title"] == "small: 2 walks by time"
    unnamed = [ds.assign_attrs(experiment="") for ds in runs]
    assert ensemble.resample(unnamed, "angle").attrs["title"] == "walks: 2 walks by angle"


def test_every_variable_has_units(runs):
    ds = ensemble.resample(runs)
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.variables.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda runs: ensemble.resample([]), "at least one walk"),
        (lambda runs: ensemble.resample(runs, "step"), r"^along='step'; choose from time, angle$"),
        (lambda runs: ensemble.resample(runs, n=1), r"^n=1; use at least 2$"),
        (lambda runs: ensemble.resample(runs, n="5"), "n='5'; give a whole number"),
        (lambda runs: ensemble.resample(runs[0]), "give a list of walks"),
        (lambda runs: ensemble.with_range(True), "runs=True is of type bool; give a list of"),
        (lambda runs: ensemble.with_range(iter(runs)), "give a list of walks"),
        (
            lambda runs: ensemble.with_range(runs, np.zeros(3)),
            r"along=array.* choose from time, angle$",
        ),
        (lambda runs: ensemble.with_range(runs, "foo"), r"^along='foo'; choose from time, angle$"),
        (lambda runs: ensemble.with_range(runs, called=True), "called=True; give names in a list"),
        (lambda runs: ensemble.on_axis(runs, "ab"), "called='ab'; give names in a list"),
        (
            lambda runs: ensemble.on_axis(runs, ["a"]),
            "called has 1 names for 2 walks; give as many",
        ),
        (lambda runs: ensemble.resample([runs[0].isel(step=[])]), "has no snapshot"),
        (lambda runs: ensemble.resample([runs[0], runs[1].drop_vars("norm")]), "other observables"),
        (
            lambda runs: ensemble.resample([runs[0], runs[1].assign_attrs(experiment="x")]),
            "walks of '.*' and 'x' do not belong together",
        ),
        (
            lambda runs: ensemble.resample([runs[0], runs[1].isel(parameter=[0])]),
            r"walks of \d+ and 1 parameters do not belong together; give those of one network",
        ),
        (lambda runs: ensemble.resample([runs[0].isel(snapshot=[])]), "has no snapshot"),
        (
            lambda runs: ensemble.resample([runs[0], runs[1].isel(snapshot=[0])]),
            r"no range of time in common \(0 to 0\)",
        ),
        (lambda runs: ensemble.resample([runs[0].rename(norm="level")]), "observable 'level' has"),
        (lambda runs: ensemble.resample([runs[0].rename(norm="run")]), "observable 'run' has"),
        (
            lambda runs: ensemble.resample(
                [runs[0], runs[1].assign(angle=runs[1]["angle"] - 90)], "angle"
            ),
            "no range of angle in common",
        ),
    ],
)
def test_bad_input(runs, call, message):
    with pytest.raises(InputError, match=message):
        call(runs)


def test_a_folder_of_walks_opens_as_one_dataset(runs, tmp_path):
    with pytest.raises(ArchiveError, match="has no walk"):
        gf.open_sweep(tmp_path)
    for i, run in enumerate(runs):
        gf.save_trajectory(run, tmp_path / f"seed-{i:04d}.nc")
    assert gf.open_sweep(tmp_path, "angle", 20).equals(ensemble.resample(runs, "angle", 20))


def first_passage(time, angle, value):
    """When the line through the steps first comes to a value, step by step."""
    i = int(np.flatnonzero(angle >= value)[0])
    if i == 0:
        return time[0]
    part = (value - angle[i - 1]) / (angle[i] - angle[i - 1])
    return time[i - 1] + part * (time[i] - time[i - 1])


@pytest.mark.parametrize("seed", range(20))
def test_an_angle_that_falls_in_between_is_first_come_to_where_it_passes_its_record(runs, seed):
    rng = np.random.default_rng(seed)
    ds = runs[0].copy(deep=True)
    # Plateaus too, of what is recorded with few digits.
    angle = 120 + np.cumsum(rng.normal(0.5, 2, ds.sizes["step"])).round(seed % 3)
    angle[-1] = angle.max() + 1
    ds["angle"] = ("step", angle, ds["angle"].attrs)
    found = ensemble.resample([ds, ds], "angle", 301)
    expected = [first_passage(ds["time"].values, angle, v) for v in found["angle"].values]
    assert np.allclose(found["time"][0], expected, rtol=1e-9, atol=1e-12)


def test_a_steady_angle_is_interpolated_between_its_own_steps(runs):
    """To the bit, so that nothing changes where nothing falls."""
    ds = runs[0].isel(step=np.flatnonzero(np.diff(runs[0]["angle"], prepend=0) > 0))
    at, when = ensemble._passage(ds, "angle")
    assert np.array_equal(at, ds["angle"])
    assert np.array_equal(when, ds["time"])


def test_walks_down_different_functions_have_no_r_in_common(runs):
    other = runs[1].assign_attrs(regularizer_name="l1")
    mixed = ensemble.resample([runs[0], other], "time", 20)
    alone = ensemble.resample(runs, "time", 20)
    assert mixed.attrs["regularizer_name"] == "squared_norm, l1"
    of_r = {"regularizer", "multiplier", "tangent_norm"}
    assert set(alone.data_vars) - set(mixed.data_vars) == of_r
    assert mixed.drop_attrs().equals(alone.drop_vars(of_r).drop_attrs())
    assert gf.plots.ensemble(mixed).axes


def test_snapshots_in_another_order_are_the_same_walk(runs):
    turned = [ds.isel(snapshot=slice(None, None, -1)) for ds in runs]
    for along in ensemble.ALONG:
        assert ensemble.resample(turned, along, 20).equals(ensemble.resample(runs, along, 20))


def at_its_goal(runs):
    """The first walk where it starts: what a walk that starts at its goal has, no step."""
    return runs[0].isel(step=[0], snapshot=[0]).assign_attrs(seed=7)


def test_a_walk_of_no_step_takes_nothing_from_the_others(runs, tmp_path):
    for i, run in enumerate([*runs, at_its_goal(runs)]):
        gf.save_trajectory(run, tmp_path / f"seed-{i:04d}.nc")
    for along in ensemble.ALONG:
        said = rf"left out for want of a range of {along} is the walk of seed 7$"
        with pytest.warns(UserWarning, match=said):
            found = gf.open_sweep(tmp_path, along, 20)
        assert found.equals(ensemble.resample(runs, along, 20))


def test_walks_without_a_common_range_are_named(runs):
    still = at_its_goal(runs)
    there, without = ensemble.with_range([*runs, still])
    assert there == list(runs)
    assert without == [still]
    with pytest.raises(InputError, match=r"\(0 to 0\): that of seed 7 ends at 0; leave that out"):
        ensemble.resample([*runs, still])
    with pytest.raises(InputError, match=r": that of seeds 7, 7, 7, 7, 7, … ends at 0; leave"):
        ensemble.resample([still] * 6)
    late = runs[1].assign(angle=runs[1]["angle"] - 90)
    first, last = float(runs[0]["angle"][0]), float(late["angle"].max())
    said = rf": that of seed 0 begins at {first:.4g}, and that of seed 1 ends at {last:.4g}; leave"
    with pytest.raises(InputError, match=said):
        ensemble.resample([runs[0], late], "angle")


def without_a_seed(runs):
    """One of no step between two whose angles have no range in common, none with a seed."""
    late = runs[1].assign(angle=runs[1]["angle"] - 90)
    return [ds.assign_attrs(seed=-1) for ds in (runs[0], at_its_goal(runs), late)]


def test_walks_without_a_seed_are_named_by_their_place(runs):
    first, still, late = without_a_seed(runs)
    with pytest.raises(InputError, match=r"that of walk 2, walk 3 ends at 0; leave"):
        ensemble.resample([first, still, still])
    with pytest.raises(InputError, match=r"that of walk 1 begins at .*, and that of walk 2 ends"):
        ensemble.resample([first, late], "angle")
    with pytest.raises(InputError, match=r"^walk 2 has no snapshot; walk again"):
        ensemble.resample([first, late.isel(snapshot=[])])
    with pytest.raises(InputError, match=r"^walk 2 has other observables than the first"):
        ensemble.with_range([first, late.drop_vars("norm")])
    mixed = [first, still, still.assign_attrs(seed=7)]
    with pytest.raises(InputError, match=r"that of walk 2, seed 7 ends at 0; leave"):
        ensemble.resample(mixed)


def test_walks_without_a_seed_are_named_by_their_file_in_a_folder(runs, tmp_path):
    for i, run in enumerate(without_a_seed(runs)):
        gf.save_trajectory(run, tmp_path / f"seed-{i:04d}.nc")
    with pytest.warns(UserWarning, match=r"range of time is seed-0001\.nc$"):
        gf.open_sweep(tmp_path)
    # By its own name, though another before it is left out.
    said = r"that of seed-0000\.nc begins at .*, and that of seed-0002\.nc ends"
    with pytest.warns(UserWarning, match="left out"), pytest.raises(InputError, match=said):
        gf.open_sweep(tmp_path, "angle")


def test_several_walks_left_out_are_named_by_their_seeds(runs, tmp_path):
    for i, run in enumerate([*runs, at_its_goal(runs), at_its_goal(runs).assign_attrs(seed=8)]):
        gf.save_trajectory(run, tmp_path / f"seed-{i:04d}.nc")
    with pytest.warns(UserWarning, match=r"is the walk of seeds 7, 8$"):
        gf.open_sweep(tmp_path)


def test_walks_of_no_step_alone_have_no_range(runs, tmp_path):
    for i in range(2):
        gf.save_trajectory(at_its_goal(runs), tmp_path / f"seed-{i:04d}.nc")
    with pytest.raises(InputError, match=r"no range of time in common \(0 to 0\)"):
        ensemble.open_sweep(tmp_path)
