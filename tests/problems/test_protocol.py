"""A problem is what has a problem's attributes, and a loss is what its parts add up to."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.errors import InputError
from geoflow.problems.parts import FunctionPart, ModulePart, TensorSpec, add_up


class Quadratic:
    """A problem without anything of geoflow's in it: ½θᵀDθ."""

    data_sha256 = ""

    def __init__(self, start, axes):
        self.theta0, self.axes = start, axes
        self.tensors = (TensorSpec("theta", 0, tuple(start.shape)),)
        self.n_parameters, self.dtype, self.device = len(start), start.dtype, start.device
        self.counts = {"gradient": 0, "hvp": 0}

    @property
    def evaluations(self):
        return sum(self.counts.values()) + self.counts.get("hvp", 0)

    def budget(self, evaluations):
        return contextlib.nullcontext()

    def loss(self, theta):
        return 0.5 * torch.dot(theta, self.axes * theta)

    def value_and_gradient(self, theta):
        self.counts = {**self.counts, "gradient": self.counts["gradient"] + 1}
        return self.loss(theta), self.axes * theta

    def hvp(self, theta, v):
        return self.axes * v

    def unflatten(self, theta):
        return {"theta": theta}


AXES = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
START = torch.tensor([0.5, -0.8, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("solver", ["exponential", "rkc", "dopri5"])
def test_a_problem_of_ones_own_is_walked_as_geoflows_is(solver, tmp_path):
    own = Quadratic(START, AXES)
    same = gf.Problem.from_function(lambda theta: 0.5 * torch.dot(theta, AXES * theta), START)
    walks = [
        gf.walk(
            gf.RegularizingFlow(gf.LevelSet(p), gf.regularizers.squared_norm),
            solver,
            t_end=0.3,
            archive=tmp_path / f"{i}.nc",
        )
        for i, p in enumerate((own, same))
    ]
    for name in ("train_loss", "angle", "theta"):
        assert np.allclose(walks[0][name], walks[1][name], rtol=1e-9), name
    assert int(walks[0]["n_gradient"][-1]) == own.counts["gradient"]


@pytest.mark.parametrize("name", ["hvp", "counts", "budget", "n_parameters", "theta0"])
def test_what_is_missing_is_named_when_the_level_set_is_made(name):
    class Without:
        def __getattr__(self, wanted):
            if wanted == name:
                raise AttributeError(wanted)
            return getattr(Quadratic(START, AXES), wanted)

    with pytest.raises(InputError, match=f"problem is a Without without {name};"):
        gf.LevelSet(Without())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta0": torch.ones(2, 2)}, "theta0 of Quadratic is no flat floating-point tensor"),
        ({"theta0": [1.0]}, "theta0 of Quadratic is no flat"),
        ({"counts": {"gradient": 0, "products": 0}}, "counts of Quadratic are"),
        ({"hvp": 3}, "without hvp"),
    ],
)
def test_what_is_of_another_kind_is_named_too(change, message):
    problem = Quadratic(START, AXES)
    problem.__dict__.update(change)
    with pytest.raises(InputError, match=message):
        gf.LevelSet(problem)


def test_a_function_is_no_problem():
    with pytest.raises(InputError, match="problem is a function without theta0"):
        gf.LevelSet(lambda theta: theta.sum())


def weighted(dtype=torch.float64):
    """Cross-entropy with class weights: a batch's weight is not its number of examples."""
    module = references.small_module().to(dtype)
    inputs, targets = references.small_data()
    inputs, weights = inputs.to(dtype), torch.tensor([1.0, 10.0], dtype=dtype)
    whole = nn.CrossEntropyLoss(weights)
    specs, offset = [], 0
    for name, value in module.named_parameters():
        specs.append(TensorSpec(name, offset, tuple(value.shape)))
        offset += value.numel()
    theta0 = torch.cat([p.detach().reshape(-1) for p in module.parameters()])

    summed = nn.CrossEntropyLoss(weights, reduction="sum")
    parts = tuple(
        ModulePart(module, {}, x, y, summed, weight=float(weights[y].sum()))
        for x, y in zip(inputs.split([1, 7, 11, 5]), targets.split([1, 7, 11, 5]), strict=True)
    )
    chunked = gf.Problem(parts, theta0, tuple(specs))
    return chunked, gf.Problem.from_module(module, whole, inputs, targets, dtype=dtype)


def test_sums_over_weights_are_the_weighted_mean_of_the_whole():
    chunked, whole = weighted()
    theta = whole.theta0
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    pairs = zip(
        (
            chunked.loss(theta),
            *chunked.value_and_gradient(theta),
            chunked.hvp(theta, v),
            chunked.gauss_newton_product(theta, v),
            chunked.losses(torch.stack([theta, v])),
        ),
        (
            whole.loss(theta),
            *whole.value_and_gradient(theta),
            whole.hvp(theta, v),
            whole.gauss_newton_product(theta, v),
            whole.losses(torch.stack([theta, v])),
        ),
        strict=True,
    )
    for a, b in pairs:
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.slow
def test_parts_are_added_up_in_float64_whatever_the_networks_dtype():
    # 10,000 parts of 0.1: in float32 their sum is off by 1e-4, their mean rounds to 0.1 exactly.
    tenth = torch.tensor(0.1)
    parts = (FunctionPart(lambda theta: tenth * theta.sum()),) * 10_000
    problem = gf.Problem(parts, torch.ones(1), (TensorSpec("theta", 0, (1,)),))
    value, gradient = problem.value_and_gradient(problem.theta0)
    assert value.dtype == gradient.dtype == torch.float32
    assert value == tenth
    assert gradient[0] == tenth


@pytest.mark.parametrize(("n", "weight"), [(10_000, 0.1), (20_000, 2345.0)])
def test_weights_are_added_up_in_float64_too(n, weight):
    # In float32 the one sum is off by 1e-4, the other leaves the whole numbers it can count.
    one = torch.tensor(weight)
    (total,), weights = add_up(((one,), one) for _ in range(n))
    assert total.dtype == weights.dtype == torch.float64
    assert float(total / weights) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_part_is_not_changed_by_a_bit(dtype):
    module, (inputs, targets) = references.small_module().to(dtype), references.small_data()
    inputs = inputs.to(dtype)
    problem = gf.Problem.from_module(
        module, nn.functional.cross_entropy, inputs, targets, dtype=dtype
    )

    def loss(parameters):
        outputs = torch.func.functional_call(module, parameters, (inputs,))
        return nn.functional.cross_entropy(outputs, targets)

    parameters = problem.unflatten(problem.theta0)
    gradients, value = torch.func.grad_and_value(loss)(parameters)
    v = torch.linspace(-1, 1, problem.n_parameters, dtype=dtype)
    tangents = problem.unflatten(v)
    products = torch.func.jvp(torch.func.grad(loss), (parameters,), (tangents,))[1]
    found = problem.value_and_gradient(problem.theta0)
    assert found[0] == value
    assert torch.equal(found[1], torch.cat([g.reshape(-1) for g in gradients.values()]))
    hvp = torch.cat([p.reshape(-1) for p in products.values()])
    # Reverse mode twice, which sums in another order.
    rtol = 1e3 * torch.finfo(dtype).eps
    assert torch.linalg.vector_norm(problem.hvp(problem.theta0, v) - hvp) <= rtol * hvp.norm()


def test_a_problem_shows_itself_in_a_line():
    problem = references.small_network().problem
    problem.value_and_gradient(problem.theta0)
    assert repr(problem) == (
        "Problem(50 parameters in 4 tensors, float64 on cpu, 1 evaluations so far)"
    )


@pytest.mark.parametrize("tensors", [(), (TensorSpec("a", 0, (2,)),), (TensorSpec("a", 1, (3,)),)])
def test_tensors_that_do_not_fill_theta_are_refused_before_the_walk(tensors):
    problem = Quadratic(START, AXES)
    problem.tensors = tensors
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    with pytest.raises(InputError, match="problem: its tensors do not fill its 3 parameters"):
        gf.walk(flow, t_end=0.1)
    assert problem.counts["gradient"] == 0
