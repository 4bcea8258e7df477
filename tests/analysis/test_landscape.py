import itertools
import os
import signal
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import geoflow as gf
import references
from geoflow import cli
from geoflow.analysis import landscape
from geoflow.analysis.landscape import planes, slices
from geoflow.cli.terminal import BAD_INPUT, DONE, INTERRUPTED
from geoflow.errors import InputError, ObservableError
from geoflow.experiments import RebuiltWalk
from geoflow.experiments.registry import Data
from geoflow.problems.parts import TensorSpec


def walk(flow, **kwargs):
    return gf.walk(flow, "exponential", rtol=1e-5, t_end=0.3, stop=None, max_snapshots=7, **kwargs)


@pytest.fixture(scope="module")
def flow():
    return references.small_network()


@pytest.fixture(scope="module")
def ds(flow):
    return walk(flow, observables={"test_loss": other_problem().loss})


def other_problem():
    return gf.Problem.from_module(
        references.small_module(), nn.functional.cross_entropy, *references.small_data(40, seed=9)
    )


def test_the_loss_on_the_plane_is_the_formula(sphere):
    ds = walk(sphere.flow)
    found = landscape.on_plane(ds, sphere.flow, points=9)
    theta = ds["theta"].values
    mean = theta.mean(axis=0)
    _, _, components = np.linalg.svd(theta - mean)
    # The plane of the singular vectors, whatever their signs; ½‖θ‖² by Pythagoras.
    inside = components[:2] @ mean
    signs = np.sign(
        (theta - mean)
        @ components[:2].T
        * np.stack([found["walk_alpha"], found["walk_beta"]], axis=1)
    )
    assert (signs == signs[0]).all()
    inside = inside * signs[0]
    alpha, beta = found["alpha"].values[:, None], found["beta"].values[None, :]
    exact = 0.5 * ((alpha + inside[0]) ** 2 + (beta + inside[1]) ** 2)
    exact = exact + 0.5 * (mean @ mean - inside @ inside)
    assert np.abs(found["loss"] - exact).max() < 1e-12
    # The level is a circle around the projection of the minimum: off by what the walk is off.
    projected = found["walk_alpha"] + inside[0], found["walk_beta"] + inside[1]
    distance = (theta - mean) - ((theta - mean) @ components[:2].T) @ components[:2]
    assert np.allclose(found["off_plane_distance"], np.linalg.norm(distance, axis=1), atol=1e-12)
    at_projection = 0.5 * (projected[0] ** 2 + projected[1] ** 2)
    at_projection = at_projection + 0.5 * (mean @ mean - inside @ inside)
    assert np.allclose(found["projected_loss"], at_projection, atol=1e-12)
    assert np.allclose(found["walk_loss"], found.attrs["level"], rtol=1e-6)
    assert found.attrs["level"] == sphere.flow.level_set.level
    assert found["explained_variance_ratio"].sum() <= 1 + 1e-12


def test_the_projection_is_the_nearest_point_also_where_directions_are_skew(ds, flow):
    rng = np.random.default_rng(0)
    plane = planes.Plane(rng.standard_normal(50), rng.standard_normal((2, 50)) * [[3.0], [0.2]])
    for theta in ds["theta"].values:
        alpha, beta, distance = plane.coordinates(theta)
        exact, residual, *_ = np.linalg.lstsq(plane.directions.T, theta - plane.origin)
        assert np.allclose([alpha, beta], exact, rtol=1e-10)
        assert distance == pytest.approx(np.sqrt(residual[0]), rel=1e-12)
    found = landscape.on_plane(ds, flow, plane, points=4)
    for i, a in enumerate(found["alpha"].values):
        for j, b in enumerate(found["beta"].values):
            exact = flow.problem.loss(torch.from_numpy(plane.at(a, b)))
            assert float(found["loss"][i, j]) == pytest.approx(float(exact), rel=1e-12)
    assert found.attrs["direction_cosine"] == pytest.approx(plane.cosine)
    assert np.array_equal(found["direction_norm"], plane.norms)


def test_the_grid_holds_the_walk_and_its_margin(ds, flow):
    found = landscape.on_plane(ds, flow, points=5, margin=0.5)
    extents = [np.ptp(found[n].values) for n in ("walk_alpha", "walk_beta")]
    for name in ("alpha", "beta"):
        low, high = found[f"walk_{name}"].values.min(), found[f"walk_{name}"].values.max()
        around = 0.5 * max(extents)
        assert found[name].values[[0, -1]] == pytest.approx([low - around, high + around])


def test_three_points_lie_at_their_coordinates(ds, flow):
    plane = planes.through(ds, [1, 3, -1])
    found = landscape.on_plane(ds, flow, plane, points=3)
    theta, on = ds["theta"].values, [1, 3, ds.sizes["snapshot"] - 1]
    assert np.array_equal(found.attrs["through"], on)
    assert np.abs(found["off_plane_distance"][on]).max() < 1e-12
    assert (found["off_plane_distance"].values[[0, 2]] > 1e-6).all()
    a, b, c = theta[on]
    alpha, beta = found["walk_alpha"].values[on], found["walk_beta"].values[on]
    assert np.allclose(alpha[:2], [0, np.linalg.norm(b - a)], atol=1e-13)
    assert np.allclose(beta[:2], 0, atol=1e-13)
    assert np.hypot(alpha[2], beta[2]) == pytest.approx(np.linalg.norm(c - a), rel=1e-12)
    for i, index in enumerate(on):
        assert np.allclose(plane.at(alpha[i], beta[i]), theta[index], atol=1e-12)
    assert np.allclose(found["projected_loss"][on], found["walk_loss"][on], rtol=1e-9)
    assert plane.norms == pytest.approx([1, 1])
    assert abs(plane.cosine) < 1e-14


def test_filters_get_the_norms_of_the_weights(flow):
    tensors, theta = flow.problem.tensors, flow.problem.theta0.numpy()
    direction = np.random.default_rng(1).standard_normal(50)
    found = planes.filter_normalised(direction, theta, tensors)

    def rows(vector):
        """Of the two weight matrices, then the two biases whole."""
        v = vector
        return [*v[:24].reshape(8, 3), *v[32:48].reshape(2, 8), v[24:32], v[48:50]]

    for new, old, weight in zip(rows(found), rows(direction), rows(theta), strict=True):
        assert np.linalg.norm(new) == pytest.approx(np.linalg.norm(weight), rel=1e-12)
        assert np.allclose(new / np.linalg.norm(new), old / np.linalg.norm(old))
    # The scale of a filter of the direction does not matter, that of the weights does.
    scaled = direction.copy()
    scaled[:3] *= 7
    scaled[48:] = 0
    again = planes.filter_normalised(scaled, theta, tensors)
    assert np.allclose(again[:48], found[:48])
    assert (again[48:] == 0).all()


def test_principal_directions_can_be_filter_normalised(ds, flow):
    tensors = flow.problem.tensors
    plain, rescaled = planes.principal(ds), planes.principal(ds, tensors)
    assert np.array_equal(plain.origin, rescaled.origin)
    for i in range(2):
        exact = planes.filter_normalised(plain.directions[i], plain.origin, tensors)
        assert np.array_equal(rescaled.directions[i], exact)
        # All filters have the norms of the origin's, so the whole has as well.
        assert rescaled.norms[i] == pytest.approx(np.linalg.norm(plain.origin))
    found = landscape.on_plane(ds, flow, rescaled, points=3)
    assert found.attrs["filter_normalised"] == 1


@pytest.mark.parametrize("sizes", [(3, 4, 2), (3, 9, 2), (2, 8, 2), (3, 8, 2, 2), (5, 6, 2)])
def test_tensors_of_another_network_are_refused(sizes, ds):
    """Of fewer parameters, of more, and of as many (the last): filters would be cut elsewhere."""
    layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
    inputs, targets = torch.randn(5, sizes[0]), torch.zeros(5, dtype=torch.int64)
    other = gf.Problem.from_module(
        nn.Sequential(*layers), nn.functional.cross_entropy, inputs, targets
    ).tensors
    with pytest.raises(InputError, match=r"tensors: the shape of number \d is .* in ds; give the"):
        planes.random(ds, other)
    with pytest.raises(InputError, match=r"tensors: the shape of number \d is .* in ds; give the"):
        planes.principal(ds, other)
    n = sum(np.prod(t.shape) for t in other)
    with pytest.raises(InputError, match=f"tensors are of {n} parameters and theta has {n + 1}"):
        planes.filter_normalised(np.ones(n), np.ones(n + 1), other)
    with pytest.raises(InputError, match=f"tensors are of {n} parameters and direction has 12;"):
        planes.filter_normalised(np.ones(12), np.ones(n), other)


def test_random_directions_come_from_the_seed(ds, flow):
    tensors = flow.problem.tensors
    plane = planes.random(ds, tensors, seed=3)
    assert np.array_equal(plane.directions, planes.random(ds, tensors, seed=3).directions)
    assert not np.array_equal(plane.directions, planes.random(ds, tensors, seed=4).directions)
    assert np.array_equal(plane.origin, ds["theta"].values[-1])
    found = landscape.on_plane(ds, flow, plane, points=3)
    for name in ("alpha", "beta"):
        assert found[name].values[0] <= -1
        assert found[name].values[-1] >= 1
    assert found.attrs["seed"] == 3


def test_batches_give_the_same_numbers(ds, flow):
    observables = {"test_loss": other_problem()}
    one, *others = (
        landscape.on_plane(ds, flow, points=7, observables=observables, batch_size=size)
        for size in (1, 2, 7, None)
    )
    for other in others:
        for name in one.variables:
            if one[name].dtype.kind == "f":
                assert np.allclose(one[name], other[name], rtol=1e-13, atol=1e-15)


def test_how_many_points_are_evaluated_at_once(flow, monkeypatch):
    assert slices._points_at_once(flow.problem) == slices.BATCH
    # 50 parameters twice, and 24 examples on 8 hidden units thrice, 8 bytes each.
    monkeypatch.setattr(slices, "MEMORY", 3 * 8 * (2 * 50 + 3 * 24 * 8))
    assert slices._points_at_once(flow.problem) == 3
    monkeypatch.setattr(slices, "MEMORY", 0)
    assert slices._points_at_once(flow.problem) == 1
    monkeypatch.undo()
    assert slices._points_at_once(references.small_network(batch_size=7).problem) == 1

    def branching(theta):
        return theta.square().sum() if theta.detach()[0] > 0 else theta.abs().sum()

    problem = gf.Problem.from_function(branching, torch.ones(3, dtype=torch.float64))
    assert slices._points_at_once(problem) == 1


def test_chunks_and_float32_give_the_same(ds, flow):
    whole = landscape.on_plane(ds, flow, points=3)
    chunked = landscape.on_plane(ds, references.small_network(batch_size=7), points=3)
    assert np.allclose(chunked["loss"], whole["loss"], rtol=1e-12)
    single = references.small_network(dtype=torch.float32)
    level_set = gf.LevelSet(single.problem, ds.attrs["level"], level_rtol=1e-5)
    found = landscape.on_plane(ds, gf.RegularizingFlow(level_set, flow.regularizer), points=3)
    assert np.allclose(found["loss"], whole["loss"], rtol=1e-4)


def test_the_callers_model_and_counts_stay_and_evaluations_are_counted(ds):
    module = references.small_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    problem = gf.Problem.from_module(module, nn.functional.cross_entropy, *references.small_data())
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    counts, calls = problem.counts, []

    def norm(theta):
        calls.append(1)
        return float(theta.norm())

    found = landscape.on_plane(ds, flow, points=4, observables={"norm": norm})
    assert all(torch.equal(before[n], v) for n, v in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert problem.counts == counts
    n = ds.sizes["snapshot"]
    # The loss at the snapshots is known, the norm is not.
    assert len(calls) == 16 + 2 * n
    assert found.attrs["evaluations"] == 16 + n + len(calls)
    assert np.allclose(found["walk_norm"], np.linalg.norm(ds["theta"], axis=1))


def test_what_the_walk_recorded_is_taken_from_it(ds, flow):
    found = landscape.on_plane(ds, flow, points=2, observables={"test_loss": other_problem()})
    assert np.array_equal(found["walk_test_loss"], ds["test_loss"])
    assert found.attrs["kind"] == "slice"
    assert all({"units", "long_name"} <= set(v.attrs) for v in found.variables.values())
    assert np.array_equal(found["snapshot_time"], ds["snapshot_time"])


def test_another_function_of_a_recorded_name_is_evaluated(ds, flow):
    test = other_problem()
    for other in (lambda t: -float(test.loss(t)), lambda t: float(test.loss(t)) + 1e-6):
        found = landscape.on_plane(ds, flow, points=2, observables={"test_loss": other})
        for snapshot, theta in enumerate(ds["theta"].values):
            assert np.isclose(found["walk_test_loss"][snapshot], other(torch.tensor(theta)), 1e-12)
        # Beside what the same function has at the projections.
        assert abs(found["walk_test_loss"] - found["projected_test_loss"]).max() < 0.1


OWN_NAMES = [
    *("alpha", "beta", "direction", "snapshot", "snapshot_time", "snapshot_arc_length"),
    *("walk_alpha", "walk_beta", "off_plane_distance", "direction_norm"),
    *("explained_variance_ratio", "walk_loss", "projected_loss"),
]


@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_name_that_a_slice_has_itself_is_refused_before_it_is_evaluated(name, ds, flow):
    calls = []
    with pytest.raises(InputError, match=f"observables: '{name}' is taken or not a name"):
        landscape.on_plane(ds, flow, points=2, observables={name: calls.append})
    assert calls == []


def test_observables_that_would_share_a_variable_are_refused(ds, flow):
    for other in ("walk_x", "projected_x"):
        with pytest.raises(InputError, match=r"observables: '\w*x' is taken"):
            landscape.on_plane(ds, flow, points=2, observables={"x": float, other: float})
    with pytest.raises(InputError, match="is a name of 260 bytes; use at most 255"):
        landscape.on_plane(ds, flow, points=2, observables={"x" * 250: float})
    # Names of a walk's own are free, and have nothing to do with those of a slice.
    names = {"time": lambda t: 1.0, "step": lambda t: 2.0, "angle": lambda t: 3.0}
    found = landscape.on_plane(ds, flow, points=2, observables=names)
    assert [float(found[name][0, 0]) for name in names] == [1, 2, 3]


def test_an_observable_that_raises_is_named_and_the_rows_are_kept(ds, flow, tmp_path):
    def until(n, calls):
        def late(theta):
            calls.append(1)
            if len(calls) > n:
                raise ValueError("no more\nof that")
            return 1.0

        return {"observables": {"o": late}, "points": 4, "archive": target}

    target = tmp_path / "slice.nc"
    # At the snapshots and their projections, and in the third row.
    for n in (0, 2 * ds.sizes["snapshot"] + 8):
        with pytest.raises(ObservableError) as caught:
            landscape.on_plane(ds, flow, **until(n, []))
        said = "observables['o'] raised ValueError: no more; with archive=… the rows done are kept"
        assert str(caught.value) == said
    calls = []
    landscape.on_plane(ds, flow, **until(99, calls))
    # Once to see that it is the same function as before, and in two rows.
    assert len(calls) == 1 + 8


def test_an_observable_that_writes_into_its_point_changes_no_other(ds, flow):
    observables = {"zero": lambda t: float(t.zero_().sum()), "norm": lambda t: float(t.norm())}
    both = landscape.on_plane(ds, flow, points=2, observables=observables)
    one = landscape.on_plane(ds, flow, points=2, observables={"norm": observables["norm"]})
    assert np.array_equal(both["norm"], one["norm"])


def press_ctrl_c_once(monkeypatch, call):
    calls, losses = [], gf.Problem.losses

    def pressed(self, thetas):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return losses(self, thetas)

    monkeypatch.setattr(gf.Problem, "losses", pressed)
    return calls


def test_interrupted_it_goes_on_to_the_same_bits(ds, flow, tmp_path, monkeypatch):
    whole = landscape.on_plane(ds, flow, points=6, batch_size=8)
    target = tmp_path / "slice.nc"
    calls = press_ctrl_c_once(monkeypatch, len(ds["snapshot"]) + 4)
    arguments = {"points": 6, "batch_size": 8, "archive": target}
    with pytest.raises(KeyboardInterrupt):
        landscape.on_plane(ds, flow, **arguments)
    assert not target.exists()
    with pytest.raises(InputError, match=r"margin: 0.25, not 0.3"):
        landscape.on_plane(ds, flow, margin=0.3, **arguments)
    before = len(calls)
    found = landscape.on_plane(ds, flow, **arguments)
    # Three rows were done, and the walk before them.
    assert len(calls) - before == 3
    xr.testing.assert_identical(found, whole)
    with xr.open_dataset(target, engine="netcdf4") as kept:
        assert kept.load().equals(whole)
    assert os.listdir(tmp_path) == ["slice.nc"]


def test_a_slice_does_not_replace_its_own_walk(network, tmp_path):
    file, link = tmp_path / "walk.nc", tmp_path / "link.nc"
    walk(network, archive=file)
    link.symlink_to(file)
    before = file.read_bytes()
    with gf.open_trajectory(file) as opened:
        for of in (opened, opened.isel(snapshot=[0, 1, -1])):
            for target in (file, link):
                with pytest.raises(InputError, match=r"archive .* it is made of this file"):
                    landscape.on_plane(of, network, points=3, archive=target, overwrite=True)
        landscape.on_plane(opened, network, points=3, archive=tmp_path / "slice.nc")
    assert file.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["link.nc", "slice.nc", "walk.nc"]


@pytest.mark.slow
def test_the_commands(network, tmp_path, monkeypatch, capsys):
    file, target = tmp_path / "walk.nc", tmp_path / "slice.nc"
    walk(network, archive=file)
    rebuilt = RebuiltWalk(
        flow=network,
        observables={"test_loss": other_problem(), "norm": lambda t: float(t.norm())},
        module=references.small_module(),
        loss_fn=nn.functional.cross_entropy,
        train=Data(*references.small_data()),
        test=Data(*references.small_data(40, seed=9)),
    )
    monkeypatch.setattr(
        "geoflow.cli.analysis_commands.experiments.rebuild", lambda attributes, device: rebuilt
    )
    arguments = ["slice", str(file), "--out", str(target), "--points", "5"]
    with monkeypatch.context() as patch:
        press_ctrl_c_once(patch, 27)
        assert cli.main(arguments) == INTERRUPTED
    said = capsys.readouterr().err
    assert "slice: about" in said
    assert "the same command goes on" in said
    assert cli.main([*arguments, "--figures", str(tmp_path / "figures")]) == DONE
    assert "test_loss" in capsys.readouterr().out
    assert len(os.listdir(tmp_path / "figures")) == 2
    assert cli.main(arguments) == BAD_INPUT
    for more, message in (
        (["--through", "0,1,2", "--random"], "leave --filter-normalise and --random out"),
        (["--through", "0,1"], "three different snapshots, from 0 to"),
        (["--observables", "x"], "there is no 'x'; choose from test_loss, norm"),
        (["--points", "1"], "points=1"),
    ):
        capsys.readouterr()
        assert cli.main([*arguments, "--force", *more]) == BAD_INPUT
        assert message in capsys.readouterr().err
    for more, kind in (
        (["--through=0,2,-1"], "snapshots"),
        (["--filter-normalise"], "pca"),
        (["--random", "--seed", "2"], "random"),
        (["--observables", "test_loss,norm"], "pca"),
    ):
        assert cli.main([*arguments, "--force", "--quiet", *more]) == DONE
        with xr.open_dataset(target, engine="netcdf4") as found:
            assert found.attrs["plane"] == kind
    film = tmp_path / "walk.gif"
    assert cli.main(["animate", str(target), "--out", str(film), "--frames", "3"]) == DONE
    assert film.stat().st_size > 0
    capsys.readouterr()
    assert cli.main(["animate", str(file), "--out", str(film)]) == BAD_INPUT
    assert "give one of the kind 'slice'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": 1}, "points=1"),
        ({"margin": -1.0}, r"margin=-1\.0"),
        ({"margin": 1e300}, r"margin=1e\+300; use a number from 0 to 1e\+09"),
        ({"margin": float("nan")}, "margin=nan"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"observables": {"loss": float}}, "'loss' is taken"),
    ],
)
def test_bad_input(ds, flow, arguments, message):
    with pytest.raises(InputError, match=message):
        landscape.on_plane(ds, flow, **arguments)


def test_planes_that_are_none_and_flows_of_another_walk(ds, flow):
    with pytest.raises(InputError, match="span no plane"):
        planes.Plane(np.zeros(3), np.ones((2, 3)))
    with pytest.raises(InputError, match="three different snapshots"):
        planes.through(ds, [0, 0, 1])
    line = ds.assign(theta=ds["theta"][0] + ds["snapshot_time"] * ds["theta"][1])
    with pytest.raises(InputError, match="lie on a line"):
        planes.through(line, [0, 1, 2])
    with pytest.raises(InputError, match="seed=-1"):
        planes.random(ds, flow.problem.tensors, seed=-1)
    with pytest.raises(InputError, match="4 parameters and ds 50"):
        landscape.on_plane(ds, references.ellipsoid())
    with pytest.raises(InputError, match="give the flow of this walk"):
        landscape.on_plane(ds.assign(train_loss=ds["train_loss"] * 1.01), flow)
    with pytest.raises(InputError, match=r"shape \(2, 3\)"):
        landscape.on_plane(ds, flow, planes.Plane(np.zeros(3), np.eye(3)[:2]))


def test_the_margin_is_as_wide_in_theta_along_directions_of_any_length():
    walk = dict.fromkeys(("walk_alpha", "walk_beta"), np.array([0.0, 1.0]))
    plane = SimpleNamespace(norms=(2.0, 0.5), least_extent=0.0)
    alpha, beta = slices._grid(walk, plane, 3, 0.25)
    assert np.allclose(alpha, [-0.25, 0.5, 1.25])
    assert np.allclose(beta, [-1.0, 0.5, 2.0])


def exact_coordinates(plane, theta):
    """α and β of the nearest point, in fractions."""
    first, second = ([Fraction(x) for x in row] for row in plane.directions)
    there = [Fraction(a) - Fraction(b) for a, b in zip(theta, plane.origin, strict=True)]

    def dot(u, v):
        return sum(x * y for x, y in zip(u, v, strict=True))

    a, b, c = dot(first, first), dot(first, second), dot(second, second)
    p, q = dot(first, there), dot(second, there)
    return float((c * p - b * q) / (a * c - b * b)), float((a * q - b * p) / (a * c - b * b))


@pytest.mark.parametrize("sine", [1e-3, 1e-5, 2e-6])
def test_the_nearest_point_is_right_between_directions_that_are_nearly_parallel(sine):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        v = np.linalg.qr(rng.standard_normal((59, 3)))[0].T
        origin = rng.standard_normal(59)
        plane = planes.Plane(origin, np.stack([v[0], v[0] + sine * v[1]]))
        for off in (0.0, 1e-3, 1.0):
            theta = origin - v[0] - 3e-5 * v[1] + off * v[2]
            alpha, beta, distance = plane.coordinates(theta)
            # As near as the last bits of the directions say.
            rtol = 1e-15 * (1 / sine + off / sine**2)
            assert [alpha, beta] == pytest.approx(exact_coordinates(plane, theta), rel=10 * rtol)
            assert distance == pytest.approx(off, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e170, 1e300])
def test_directions_may_be_of_any_length(scale):
    rng = np.random.default_rng(0)
    origin, theta, directions = (rng.standard_normal(s) for s in (9, 9, (2, 9)))
    one = planes.Plane(origin, directions)
    other = planes.Plane(origin, scale * directions)
    alpha, beta, distance = other.coordinates(theta)
    assert np.allclose([scale * alpha, scale * beta, distance], one.coordinates(theta), rtol=1e-12)
    assert other.cosine == pytest.approx(one.cosine, rel=1e-12)
    assert np.allclose(other.norms / scale, one.norms, rtol=1e-12)
    # And so may the points, and the filters that directions are rescaled to.
    small = planes.Plane(scale * origin, directions).coordinates(scale * theta)
    assert np.allclose(np.array(small) / scale, one.coordinates(theta), rtol=1e-12)
    tensors = [TensorSpec("w", 0, (3, 3))]
    usual = planes.filter_normalised(directions[0], theta, tensors)
    for factor, there in ((scale, 1.0), (1.0, scale), (1 / scale, scale)):
        found = planes.filter_normalised(factor * directions[0], there * theta, tensors)
        assert np.allclose(found / there, usual, rtol=1e-12)


def test_a_plane_through_points_however_close(ds):
    theta = ds["theta"].values
    middle = theta[3]
    close = ds.assign(theta=ds["theta"] * 0 + (theta - middle) * 1e-170)
    plane = planes.through(close, [0, 3, -1])
    exact = planes.through(ds.assign(theta=ds["theta"] - middle), [0, 3, -1])
    assert np.allclose(plane.directions, exact.directions, atol=1e-9)
    with pytest.raises(InputError, match="the three lie on a line; choose others"):
        planes.through(ds.assign(theta=0 * ds["theta"]), [0, 3, -1])


def test_a_plane_is_of_arrays_that_fit_together(ds, flow):
    good = planes.principal(ds)
    from_lists = planes.Plane(good.origin.tolist(), good.directions.tolist())
    assert from_lists.coordinates(ds["theta"].values[0]) == good.coordinates(ds["theta"].values[0])
    one, other = (landscape.on_plane(ds, flow, plane, points=2) for plane in (good, from_lists))
    assert np.array_equal(one["loss"], other["loss"])
    n = len(good.origin)
    for origin, directions, message in (
        (np.zeros(n), np.eye(n)[:3], rf"origin has the shape \({n},\) and directions \(3, {n}\);"),
        (np.zeros(5), good.directions, r"origin has the shape \(5,\) and directions \(2, "),
        (np.zeros(1), good.directions, r"give \(P,\) and \(2, P\)"),
        (0.0, good.directions, r"origin has the shape \(\)"),
        (good.origin, good.directions[0], r"give \(P,\) and \(2, P\)"),
        (np.full(n, np.nan), good.directions, "origin has non-finite values; give a point of"),
        (np.full(n, np.inf), good.directions, "origin has non-finite values; give a point of"),
    ):
        with pytest.raises(InputError, match=message):
            planes.Plane(origin, directions)
