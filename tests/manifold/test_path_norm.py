"""The path norm: beside the paths counted one by one, and of which networks there is one."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import jacrev

import geoflow as gf
import references
from geoflow.errors import InputError
from geoflow.manifold.regularizers.named import bound

R = gf.regularizers


def test_the_path_norm_is_the_sum_over_paths(network):
    problem, theta = network.problem, network.problem.theta0
    w = {n: t.numpy() for n, t in problem.unflatten(theta).items()}
    total = float((w["2.bias"] ** 2).sum())
    for out, unit_ in itertools.product(range(2), range(8)):
        after = w["2.weight"][out, unit_] ** 2
        total += after * w["0.bias"][unit_] ** 2
        total += sum(after * w["0.weight"][unit_, i] ** 2 for i in range(3))
    made = bound(R.path_norm, problem)
    assert float(made.value_and_gradient(theta)[0]) == pytest.approx(total, rel=1e-13)


def test_the_path_norm_of_a_convolution_is_that_of_its_matrix():
    # Under two names one module.
    activation = nn.Tanh()
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), activation, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2), activation
    ).double()
    x = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = gf.Problem.from_module(module, nn.functional.mse_loss, x, torch.ones(5, 2))
    # A linear network's paths: products of the squares of its layers' matrices.
    found = float(bound(R.path_norm, problem).value_and_gradient(problem.theta0)[0])

    def matrix(layer, shape):
        zero = torch.zeros(1, *shape, dtype=torch.float64)
        return jacrev(lambda at: layer(at).reshape(-1))(zero).reshape(-1, zero.numel()).detach()

    conv, pool, linear = module[0], module[2], module[4]
    units = (matrix(conv, (1, 6, 6)) ** 2).sum(1)
    units = units + (conv.bias.detach() ** 2).repeat_interleave(16)
    pooled = matrix(pool, (2, 4, 4)) ** 2 @ units
    expected = (linear.weight.detach() ** 2 @ pooled + linear.bias.detach() ** 2).sum()
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_the_path_norm_does_not_change_where_relu_units_are_rescaled():
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    problem = gf.Problem.from_module(module, nn.functional.cross_entropy, *references.small_data())
    theta, other = problem.theta0, problem.theta0.clone()
    problem.unflatten(other)["0.weight"][2] *= 3
    problem.unflatten(other)["0.bias"][2] *= 3
    problem.unflatten(other)["2.weight"][:, 2] /= 3
    made = bound(R.path_norm, problem)
    values = [float(made.value_and_gradient(at)[0]) for at in (theta, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-13)


def of_layers(*layers, shape=(3,)):
    """A problem of a linear network, of ones."""
    module = nn.Sequential(*layers).double()
    inputs = torch.ones(2, *shape, dtype=torch.float64)
    module(inputs)  # initialises lazy ones
    return gf.Problem.from_module(module, lambda out, _: (out**2).mean(), inputs, torch.zeros(2))


def test_the_path_norm_is_that_of_the_divisor_of_a_pool():
    made = [
        of_layers(pool, nn.Flatten(), nn.Linear(1, 1, bias=False), shape=(1, 2, 2))
        for pool in (nn.AvgPool2d(2, divisor_override=1), nn.AvgPool2d(2))
    ]
    for problem, weight in zip(made, (1.0, 1 / 4), strict=True):
        found = float(bound(R.path_norm, problem).value_and_gradient(problem.theta0)[0])
        assert found == pytest.approx(4 * weight**2 * float(problem.theta0) ** 2, rel=1e-13)


class Tripled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Named(nn.Sequential):
    """A sequence, under a name of its own."""


def hooked():
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda module, inputs, out: 3 * out)
    return layer


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([Tripled(3, 3)], (3,)),
        ([hooked()], (3,)),
        ([Residual(nn.Linear(3, 3))], (3,)),
        ([nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))], (3,)),
        ([nn.AvgPool1d(2, ceil_mode=True)], (1, 3)),
        ([nn.AvgPool1d(2, padding=1, count_include_pad=False)], (1, 3)),
    ],
)
def test_a_layer_that_computes_something_else_has_no_path_norm(layers, shape):
    problem = of_layers(*layers, nn.Flatten(), nn.LazyLinear(1), shape=shape)
    with pytest.raises(InputError, match=f"0 is a .*{type(layers[0]).__name__}"):
        bound(R.path_norm, problem)


def test_a_sequence_under_another_name_is_one():
    one, other = (of_layers(kind(nn.Linear(3, 3))) for kind in (nn.Sequential, Named))
    found = [bound(R.path_norm, p).value_and_gradient(one.theta0)[0] for p in (one, other)]
    assert torch.equal(*found)


def in_batches(*layers, shape=(3,)):
    module = nn.Sequential(*layers).double()

    def batch_loss(module, inputs):
        return module(inputs).square().sum(), len(inputs)

    halves = [torch.ones(2, *shape, dtype=torch.float64)] * 2
    return gf.Problem.from_batches(module, batch_loss, halves)


def of_images():
    return in_batches(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2), shape=(1, 3))


def of_sequences():
    return in_batches(nn.Linear(3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2), shape=(4, 3))


def test_the_path_norm_of_a_problem_of_batches_is_that_of_its_network():
    layers = [nn.Flatten(), nn.ReLU(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)]
    layers[2].bias.requires_grad_(False)
    one, other = of_layers(*layers), in_batches(*layers)
    assert torch.equal(one.theta0, other.theta0)
    assert len(one.theta0) == 12 + 8 + 2
    found = [bound(R.path_norm, p).value_and_gradient(one.theta0) for p in (one, other)]
    for value, right in zip(*found, strict=True):
        assert torch.equal(value, right)


@pytest.mark.parametrize("dropout", [nn.Dropout, nn.Dropout1d, nn.AlphaDropout])
def test_a_dropout_has_no_part_in_the_path_norm(dropout):
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)]
    one = of_layers(*layers)
    with_dropout = nn.Sequential(*layers[:2], dropout(0.5), layers[2]).double().eval()
    inputs, targets = references.small_data()
    other = gf.Problem.from_module(with_dropout, nn.functional.cross_entropy, inputs, targets)
    found = [bound(R.path_norm, p).value_and_gradient(one.theta0) for p in (one, other)]
    for value, right in zip(*found, strict=True):
        assert torch.equal(value, right)


def test_the_input_of_a_path_norm_may_be_alone_in_a_tuple():
    one = of_layers(nn.Linear(3, 2))
    module, (inputs, targets) = nn.Sequential(nn.Linear(3, 2)), references.small_data()
    other = gf.Problem.from_module(module, nn.functional.cross_entropy, (inputs,), targets)
    found = [bound(R.path_norm, p).value_and_gradient(one.theta0)[0] for p in (one, other)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (of_images, "no shape is known, and its first layer .Conv1d. does not tell it; make"),
        (of_sequences, "no shape is known, and a layer does not take what one vector becomes"),
    ],
)
def test_of_batches_a_network_whose_input_has_no_known_shape_is_refused(problem, message):
    with pytest.raises(InputError, match=message) as failure:
        gf.RegularizingFlow(gf.LevelSet(problem()), R.path_norm)
    assert "\n" not in str(failure.value)
