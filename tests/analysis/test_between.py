import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
from geoflow.analysis import between
from geoflow.analysis.networks.layers import layers_of
from geoflow.errors import InputError
from geoflow.experiments import networks


def drawn(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def outputs(module, theta, inputs):
    parts = theta.split([p.numel() for p in module.parameters()])
    named = zip(module.named_parameters(), parts, strict=True)
    parameters = {name: part.view(p.shape) for (name, p), part in named}
    return torch.func.functional_call(module, parameters, (inputs,)).detach()


def scrambled(module, theta, seed=0):
    """The units of every hidden layer in another order, with tanh of other signs."""
    rng, values = np.random.default_rng(seed), theta.numpy().copy()
    for layer in layers_of(module).hidden:
        order = rng.permutation(len(layer.incoming))
        sign = rng.choice([-1.0, 1.0], len(order))[:, None] if layer.odd else 1.0
        for part in (layer.incoming, layer.outgoing):
            values[part] = sign * values[part[order]]
    return torch.from_numpy(values)


def relu(*sizes):
    parts = [m for pair in itertools.pairwise(sizes) for m in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


NETWORKS = {
    "iris_ff": (lambda: networks.feed_forward([4, 100, 100, 100, 100, 3]), (4,)),
    "mnist_ff": (lambda: networks.feed_forward([784, 100, 100, 100, 10]), (1, 28, 28)),
    "mnist_conv": (lambda: networks.convolutional(1, 20, 28, 100), (1, 28, 28)),
    "relu": (lambda: relu(5, 8, 7, 2), (5,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_scrambled_copy_is_aligned_back_to_the_last_bit(name):
    build, _ = NETWORKS[name]
    module = build()
    theta = drawn(module, 1)
    copy = scrambled(module, theta)
    assert float((copy - theta).norm()) > 0.5 * float(theta.norm())
    assert torch.equal(between.align(module, copy, theta), theta)


@pytest.mark.parametrize("name", NETWORKS)
def test_another_network_comes_nearer_and_stays_the_same_function(name):
    build, shape = NETWORKS[name]
    module = build()
    target, theta = drawn(module, 1), drawn(module, 2)
    aligned = between.align(module, theta, target)
    assert float((aligned - target).norm()) < float((theta - target).norm())
    # Its entries are those of θ.
    assert torch.equal(aligned.abs().sort().values, theta.abs().sort().values)
    inputs = torch.randn(7, *shape, generator=torch.Generator().manual_seed(3)).double()
    before, after = outputs(module, theta, inputs), outputs(module, aligned, inputs)
    assert float((after - before).abs().max()) <= 1e-12 * float(before.abs().max())


def test_with_one_hidden_layer_no_copy_is_nearer():
    module = networks.feed_forward([2, 4, 3])
    target, theta = drawn(module, 1), drawn(module, 2)
    (layer,) = layers_of(module).hidden
    least = math.inf
    for order in itertools.permutations(range(4)):
        for signs in itertools.product([-1.0, 1.0], repeat=4):
            copy = theta.numpy().copy()
            for part in (layer.incoming, layer.outgoing):
                copy[part] = np.array(signs)[:, None] * copy[part[list(order)]]
            least = min(least, float(np.linalg.norm(copy - target.numpy())))
    found = float((between.align(module, theta, target) - target).norm())
    assert found == pytest.approx(least, rel=1e-14)


def test_single_precision_stays_so():
    module = networks.feed_forward([3, 5, 2])
    theta = drawn(module, 1).float()
    copy = scrambled(module, theta.double()).float()
    assert torch.equal(between.align(module, copy, theta), theta)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def hooked(layer):
    layer.register_forward_hook(lambda module, inputs, out: out + 1)
    return layer


@pytest.mark.parametrize(
    "between_layers",
    [
        [nn.ReLU(), Residual(nn.Linear(4, 4), nn.ReLU())],
        [nn.ReLU(), hooked(nn.Linear(4, 4)), nn.ReLU()],
        [hooked(nn.ReLU())],
        [nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU()],
    ],
)
def test_layers_that_compute_something_else_are_refused(between_layers):
    module = nn.Sequential(nn.Linear(3, 4), *between_layers, nn.Linear(4, 2)).double()
    theta = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    with pytest.raises(InputError, match="symmetries are known of"):
        between.align(module, theta, theta + 1)


def test_networks_and_points_of_other_forms_are_refused():
    module = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    theta = drawn(module, 1)
    with pytest.raises(InputError, match="Sigmoid"):
        between.align(module, theta, theta)
    module = networks.feed_forward([3, 4, 2])
    theta = drawn(module, 1)
    with pytest.raises(InputError, match=r"target has the shape \(3,\).*26 parameters"):
        between.align(module, theta, theta[:3])
    with pytest.raises(InputError, match="finite"):
        between.align(module, theta * math.nan, theta)


def test_a_barrier_is_measured_above_the_line_between_both_losses():
    # (x² − 1)² + x/4 from −1 to 1: the hill is 1 at x = 0, above the line's 0.
    problem = gf.Problem.from_function(
        lambda x: ((x**2 - 1) ** 2 + x / 4).sum(), torch.tensor([-1.0], dtype=torch.float64)
    )
    line = between.straight(problem.theta0, -problem.theta0)
    found = between.barrier(problem, line, points=5)
    assert found.t.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.losses == pytest.approx([-0.25, 0.4375, 1, 0.6875, 0.25], abs=1e-15)
    assert found.height == pytest.approx(1, abs=1e-15)
    assert problem.evaluations == 0


def test_a_convex_loss_has_no_barrier():
    theta0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda x: (x**2).sum(), theta0)
    line = between.straight(theta0, torch.tensor([-3.0, 0.5], dtype=torch.float64))
    assert between.barrier(problem, line).height == 0


def test_a_curve_goes_round_the_hill_that_a_line_goes_over():
    # A ring about (0, −0.3) through both ends.
    centre = torch.tensor([0.0, -0.3], dtype=torch.float64)
    start = torch.tensor([-1.0, 0.0], dtype=torch.float64)
    problem = gf.Problem.from_function(
        lambda x: (((x - centre) ** 2).sum() - 1.09) ** 2 + 0.1, start
    )
    line = between.barrier(problem, between.straight(start, -start))
    curve = between.bezier(problem, start, -start, evaluations=300, seed=1)
    assert problem.evaluations == 300
    # At (0, 0): (0.09 − 1.09)².
    assert line.height == pytest.approx(1, abs=1e-12)
    assert between.barrier(problem, curve).height < 0.1
    assert torch.equal(curve(0), start)
    assert torch.equal(curve(1), -start)
    assert torch.equal(curve(0.5), 0.25 * start + 0.5 * curve.middle - 0.25 * start)
    again = between.bezier(problem, start, -start, evaluations=300, seed=1)
    assert torch.equal(again.middle, curve.middle)


@pytest.mark.parametrize("solver", ["exponential", "bdf", "rkc"])
def test_a_walk_towards_a_point_of_a_sphere_follows_the_great_circle(solver):
    start = torch.zeros(5, dtype=torch.float64)
    start[0] = 1.7
    end = torch.tensor([-0.9, 0.4, 1.0, -0.2, 0.7], dtype=torch.float64)
    end *= 1.7 / end.norm()
    problem = gf.Problem.from_function(lambda x: (x**2).sum(), start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.distance_to(end))
    t = 0.8
    ds = gf.walk(flow, solver, rtol=1e-5, atol=1e-7, t_end=t, stop=None)
    assert ds.attrs["status"] == "t_end"
    # With φ the angle left, dφ/dt = −2 sin φ.
    first = math.acos(float(start @ end) / 1.7**2)
    left = 2 * math.atan(math.tan(first / 2) * math.exp(-2 * t))
    theta = torch.from_numpy(ds["theta"].values[-1])
    expected = (math.sin(first - left) * end + math.sin(left) * start) / math.sin(first)
    assert float((theta - expected).norm()) < 1e-3
    square = 2 * 1.7**2 * (1 - math.cos(left))
    assert float(ds["regularizer"][-1]) == pytest.approx(square, rel=2e-3)


def test_bad_arguments_are_refused():
    theta0 = torch.ones(3, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda x: (x**2).sum(), theta0)
    line = between.straight(theta0, 2 * theta0)
    with pytest.raises(InputError, match="points=2"):
        between.barrier(problem, line, points=2)
    with pytest.raises(InputError, match="curve: its start has shape"):
        between.barrier(problem, between.straight(theta0[:2], theta0[:2]))
    with pytest.raises(InputError, match="end has dtype"):
        between.bezier(problem, theta0, theta0.float())
    with pytest.raises(InputError, match="evaluations=0"):
        between.bezier(problem, theta0, theta0, evaluations=0)
    with pytest.raises(InputError, match="learning_rate=nan"):
        between.bezier(problem, theta0, theta0, learning_rate=math.nan)
    broken = torch.tensor([1.0, math.nan, 2.0], dtype=torch.float64)
    with pytest.raises(InputError, match="end has non-finite values; give a point of finite"):
        between.straight(theta0, broken)
    with pytest.raises(InputError, match="start has non-finite values; give a point of finite"):
        between.bezier(problem, broken / 0, theta0)
    both = gf.LevelSet([problem, gf.Problem.from_function(lambda x: x.sum(), theta0)]).problem
    with pytest.raises(InputError, match="several losses"):
        between.barrier(both, line)


def test_the_middle_of_a_curve_goes_down_by_adam_as_the_curve_depends_on_it():
    slope, start = np.array([2.0, -3.0]), torch.ones(2, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: theta @ torch.from_numpy(slope), start)
    ends = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    found = between.bezier(problem, *ends, evaluations=3, learning_rate=0.1).middle
    middle, mean, square = np.full(2, 0.5), np.zeros(2), np.zeros(2)
    for step, t in enumerate(np.random.default_rng(0).uniform(size=3)):
        gradient = 2 * t * (1 - t) * slope
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        parts = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        rate = 0.1 * (1 + math.cos(math.pi * step / 3)) / 2
        middle -= rate * parts[0] / (np.sqrt(parts[1]) + 1e-8)
    np.testing.assert_allclose(found, middle, rtol=1e-9)
