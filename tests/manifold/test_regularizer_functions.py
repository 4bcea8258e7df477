"""Each regularisation function beside its formula, and its derivatives beside differences."""

import decimal
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev, vmap

import geoflow as gf
import references
from geoflow.errors import ConvergenceError, InputError
from geoflow.manifold.regularizers.bound import ThetaFunction
from geoflow.manifold.regularizers.named import bound
from geoflow.system.peak import peak_bytes

R = gf.regularizers

# By what the differences of gradients that a product is made of may be off.
EXACT, OF_GRADIENTS = 1e-8, 1e-5
FUNCTIONS = {
    "squared_norm": EXACT,
    "quartic_norm": EXACT,
    "pseudo_huber_norm:delta=0.1": EXACT,
    "l1:epsilon=0.1,tensors=*.weight": EXACT,
    "group_lasso:epsilon=0.1": EXACT,
    "group_lasso:epsilon=0.1,axis=1": EXACT,
    "group_lasso:epsilon=0.1,rows=2": EXACT,
    "quantization_error:bits=3,tensors=*.weight": EXACT,
    "path_norm": EXACT,
    "margin": OF_GRADIENTS,
    "jacobian_norm": OF_GRADIENTS,
    "jacobian_norm:probes=3": OF_GRADIENTS,
    "gradient_norm": OF_GRADIENTS,
    "sharpness": OF_GRADIENTS,
    "hessian_trace:probes=3": OF_GRADIENTS,
    "-1.0*quartic_norm + 0.5*margin": OF_GRADIENTS,
}


def unit(n, seed=5):
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(n, generator=generator, dtype=torch.float64)
    return v / v.norm()


def test_none_is_left_out():
    assert {name.partition(":")[0] for name in FUNCTIONS} >= set(R.REGULARIZERS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_its_gradient_is_that_of_its_values_and_its_products_those_of_its_gradient(network, name):
    made, theta = bound(R.get(name), network.problem), network.problem.theta0
    value, gradient = made.value_and_gradient(theta)
    v = unit(len(theta))
    # Richardson's extrapolation, of fourth order; between two kinks where there are some.
    step = 1e-5 if "quantization" in name else 1e-3
    ahead = {n: made.value_and_gradient(theta + n * step * v) for n in (-2, -1, 1, 2)}

    def slope(k):
        near, far = ((ahead[n][k] - ahead[-n][k]) / (2 * n * step) for n in (1, 2))
        return (4 * near - far) / 3

    assert value.shape == ()
    assert float(slope(0)) == pytest.approx(float(gradient @ v), rel=3e-6, abs=1e-7)
    for known in (gradient, None):
        product = made.hessian(theta, known)(3 * v)
        error = (product - 3 * slope(1)).norm() / (3 * slope(1)).norm()
        assert float(error) < max(FUNCTIONS[name], 3e-7)
    assert not made.hessian(theta, gradient)(0 * v).any()


def test_l1_is_the_sum_of_moduli_but_for_epsilon(network):
    theta = network.problem.theta0
    l1 = float(theta.abs().sum())
    for epsilon in (1e-2, 1e-4):
        found = float(R.l1(theta, epsilon=epsilon))
        assert l1 - epsilon * len(theta) < found < l1
    assert torch.equal(R.l1(theta, epsilon=0.1), R.pseudo_huber_norm(theta, delta=0.1))


def as_deep(square, epsilon):
    """√(s + ε²) − ε to forty digits."""
    with decimal.localcontext(prec=40):
        s, e = decimal.Decimal(square), decimal.Decimal(epsilon)
        return float((s + e * e).sqrt() - e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5, 1e-7, 1e-9])
def test_entries_far_below_epsilon_count_to_rounding_in_either_dtype(dtype, size):
    rounding = 8 * torch.finfo(dtype).eps
    theta = torch.full((12,), size, dtype=dtype)
    entry = theta[0].item()
    right = 12 * as_deep(entry * entry, 1e-3)
    assert float(R.l1(theta)) == pytest.approx(right, rel=rounding, abs=0)
    assert float(R.pseudo_huber_norm(theta, delta=1e-3)) == pytest.approx(
        right, rel=rounding, abs=0
    )
    problem = gf.Problem.from_module(
        nn.Linear(3, 3).to(dtype), nn.functional.mse_loss, torch.ones(2, 3), torch.ones(2, 3)
    )
    rows = bound(R.group_lasso, problem)
    right = 3 * math.sqrt(3) * as_deep(3 * entry * entry, 1e-3)
    value, gradient = rows.value_and_gradient(theta)
    assert float(value) == pytest.approx(right, rel=rounding, abs=0)
    root = math.sqrt(3 * entry * entry + 1e-6)
    assert float(gradient[0]) == pytest.approx(math.sqrt(3) * entry / root, rel=rounding, abs=0)
    made = bound(R.l1, problem)
    root = math.sqrt(entry * entry + 1e-6)
    assert float(made.value_and_gradient(theta)[1][0]) == pytest.approx(
        entry / root, rel=rounding, abs=0
    )
    curved = float(made.hessian(theta)(torch.ones_like(theta))[0])
    # Far from zero R is straight, to rounding of its slope.
    assert curved == pytest.approx(1e-6 / root**3, rel=rounding, abs=rounding / entry)


def test_the_groups_are_rows_columns_and_blocks_of_rows(network):
    problem, theta = network.problem, network.problem.theta0
    first, second = (problem.unflatten(theta)[n] for n in ("0.weight", "2.weight"))

    def value(**options):
        made = bound(R.group_lasso(epsilon=1e-12, **options), problem)
        return float(made.value_and_gradient(theta)[0])

    def norms(*groups):
        return sum(math.sqrt(g.numel()) * float(g.norm()) for g in groups)

    assert value() == pytest.approx(norms(*first, *second), rel=1e-10)
    assert value(axis=1) == pytest.approx(norms(*first.T, *second.T), rel=1e-10)
    assert value(rows=2) == pytest.approx(norms(*first.split(2), second), rel=1e-10)
    assert value(rows=4, tensors="0.*") == pytest.approx(norms(*first.split(4)), rel=1e-10)


def test_the_quantization_error_is_the_distance_to_the_rounded_tensor(network):
    problem, theta = network.problem, network.problem.theta0
    made = bound(R.quantization_error(bits=4), problem)
    expected, rounded = 0.0, []
    for tensor in problem.unflatten(theta).values():
        grid = float(tensor.abs().max()) / 7 * np.arange(-7, 8)
        nearest = grid[np.abs(tensor.numpy().reshape(-1, 1) - grid).argmin(1)]
        expected += ((tensor.numpy().ravel() - nearest) ** 2).sum()
        rounded.append(torch.from_numpy(nearest))
    assert float(made.value_and_gradient(theta)[0]) == pytest.approx(expected, rel=1e-12)
    value, gradient = made.value_and_gradient(torch.cat(rounded))
    assert float(value) < 1e-28
    assert float(gradient.norm()) < 1e-13
    zeros = made.value_and_gradient(0 * theta)
    assert float(zeros[0]) == 0
    assert torch.isfinite(zeros[1]).all()


def test_the_distance_to_a_point(network):
    problem, theta = network.problem, network.problem.theta0
    target = theta + unit(len(theta))
    made = bound(R.distance_to(target), problem)
    value, gradient = made.value_and_gradient(theta)
    assert float(value) == pytest.approx(1.0)
    assert torch.allclose(gradient, 2 * (theta - target))
    some = bound(R.distance_to(target, tensors="0.bias"), problem)
    part = problem.unflatten(theta - target)["0.bias"]
    assert float(some.value_and_gradient(theta)[0]) == pytest.approx(float((part**2).sum()))
    name = R.distance_to(target, sign=-1).__name__
    assert name == f"{R.distance_to(target).__name__},sign=-1"
    assert name != R.distance_to(theta, sign=-1).__name__
    with pytest.raises(InputError, match=r"distance to a point .* an archive does not hold"):
        R.get(name)
    with pytest.raises(InputError, match="the target has shape"):
        bound(R.distance_to(target[:3]), problem)
    with pytest.raises(InputError, match="no flat tensor"):
        R.distance_to(target * math.nan)


def dense(problem):
    return hessian(problem.loss)(problem.theta0)


def test_sharpness_is_the_largest_eigenvalue_and_its_gradient_that_by_third_derivatives(network):
    problem, theta = network.problem, network.problem.theta0
    values, vectors = torch.linalg.eigh(dense(problem))
    before, made = problem.counts, bound(R.sharpness, problem)
    # What is decided when R is made is no cost.
    assert problem.counts == before
    value, gradient = made.value_and_gradient(theta)
    spent = {name: n - before[name] for name, n in problem.counts.items()}
    assert spent["gradient"] == 0
    assert 0 < spent["hvp"] < 30
    assert float(value) == pytest.approx(float(values[-1]), rel=1e-10)
    v = vectors[:, -1]
    exact = torch.func.grad(lambda at: v @ hessian(problem.loss)(at) @ v)(theta)
    # As good as the eigenvector is.
    assert float((gradient - exact).norm() / exact.norm()) < 1e-5
    close = bound(R.sharpness(rtol=1e-12), problem).value_and_gradient(theta)[1]
    assert float((close - exact).norm() / exact.norm()) < 1e-11
    # A function of θ, not of the points before.
    made = bound(R.sharpness, problem)
    made.value_and_gradient(theta + 0.1)
    assert torch.equal(made.value_and_gradient(theta)[1], gradient)
    # And hardly one of the vector that it starts from.
    other = bound(R.sharpness(seed=1), problem).value_and_gradient(theta)
    assert float((other[1] - gradient).norm() / exact.norm()) < 1e-4


def test_sharpness_that_does_not_converge_says_so(network, monkeypatch):
    monkeypatch.setattr("geoflow.manifold.regularizers.curvature.MAX_PRODUCTS", 3)
    with pytest.raises(ConvergenceError, match="does not come to rtol=1e-06 within 3 products"):
        bound(R.sharpness, network.problem).value_and_gradient(network.problem.theta0)


def dense_spectrum(n=3000):
    """A loss whose Hessian has its eigenvalues close together, from 1 to 2."""
    curvatures = torch.linspace(1, 2, n, dtype=torch.float64)
    return gf.Problem.from_function(
        lambda t: 0.5 * (curvatures * t * t).sum() + (t**4).sum() / (100 * n),
        torch.ones(n, dtype=torch.float64),
    )


def test_sharpness_holds_the_vectors_of_its_process_once_and_says_so():
    problem = dense_spectrum()
    theta, flow = problem.theta0, gf.RegularizingFlow(gf.LevelSet(problem), R.sharpness(rtol=1e-3))
    said = flow.regularizer_bytes
    assert problem.counts == {"gradient": 0, "hvp": 0}
    took = peak_bytes(lambda: flow._bound.value_and_gradient(theta))
    vector, products = 8 * len(theta), problem.counts["hvp"]
    assert products > 40
    # Blocks of 8 of them, and what a product and the process hold beside.
    assert (products - 2) * vector < took <= said < (products + 8 + 12) * vector


def test_sharpness_takes_no_more_memory_than_there_is(monkeypatch):
    problem = dense_spectrum()
    made = bound(R.sharpness(rtol=1e-3), problem)
    monkeypatch.setattr("geoflow.system.memory.available_memory", lambda device: 1000)
    with pytest.raises(InputError, match=r"8 more vectors of Lanczos' process beside 8 need"):
        made.value_and_gradient(problem.theta0)


def test_the_trace_is_that_of_its_probes_and_in_expectation_that_of_the_hessian(network):
    problem, theta = network.problem, network.problem.theta0
    matrix = dense(problem)
    made = bound(R.hessian_trace(probes=5, seed=2), problem)
    z = 2.0 * made.signs.double() - 1
    assert float(made.value_and_gradient(theta)[0]) == pytest.approx(
        float(((z @ matrix) * z).sum() / 5), rel=1e-12
    )
    many = bound(R.hessian_trace(probes=400), problem).value_and_gradient(theta)[0]
    deviation = math.sqrt(2 * float(((matrix - matrix.diag().diag()) ** 2).sum()) / 400)
    assert abs(float(many) - float(matrix.trace())) < 3 * deviation


def test_the_gradient_norm(network):
    problem, theta = network.problem, network.problem.theta0
    _, g = problem.value_and_gradient(theta)
    value, gradient = bound(R.gradient_norm, problem).value_and_gradient(theta)
    assert float(value) == pytest.approx(float(g @ g), rel=1e-13)
    assert torch.allclose(gradient, 2 * dense(problem) @ g, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("batch_size", [None, pytest.param(7, marks=pytest.mark.slow)])
def test_jacobian_and_margin_are_those_of_the_network(batch_size):
    flow = references.small_network(batch_size=batch_size)
    problem, module = flow.problem, references.small_module()
    inputs, targets = references.small_data()
    theta = problem.theta0

    def output(x):
        return functional_call(module, problem.unflatten(theta), (x[None],))[0]

    jacobians = vmap(jacrev(output))(inputs)
    expected = float((jacobians**2).sum() / len(inputs))
    exact = bound(R.jacobian_norm, problem)
    assert float(exact.value_and_gradient(theta)[0]) == pytest.approx(expected, rel=1e-12)
    # All vectors of signs of two outputs: their mean is the norm.
    total = 0.0
    for a, b in itertools.product((1.0, -1.0), repeat=2):
        total += float(((torch.tensor([a, b]).double() @ jacobians) ** 2).sum()) / len(inputs)
    assert total / 4 == pytest.approx(expected, rel=1e-12)
    many = bound(R.jacobian_norm(probes=2000), problem).value_and_gradient(theta)[0]
    assert float(many) == pytest.approx(expected, rel=0.05)

    logits = vmap(output)(inputs).detach()
    right, wrong = logits[range(24), targets], logits[range(24), 1 - targets]
    found = bound(R.margin, problem).value_and_gradient(theta)[0]
    # Of two classes there is one wrong one, and nothing to smooth.
    assert float(found) == pytest.approx(float((right - wrong).mean()), rel=1e-12)
    assert exact.problems[0].counts == {"gradient": 1, "hvp": 0}


def test_the_smooth_margin_is_below_the_margin_by_what_it_says():
    module = nn.Linear(3, 4).double()
    inputs, _ = references.small_data()
    targets = torch.arange(24) % 4
    problem = gf.Problem.from_module(module, nn.functional.cross_entropy, inputs, targets)
    logits = module(inputs).detach()
    right = logits[range(24), targets]
    logits[range(24), targets] = -torch.inf
    margin = float((right - logits.amax(1)).mean())
    for temperature in (1.0, 0.01):
        made = bound(R.margin(temperature=temperature), problem)
        found = float(made.value_and_gradient(problem.theta0)[0])
        assert margin - temperature * math.log(3) - 1e-12 < found < margin


def sigmoid_network():
    module = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    return gf.Problem.from_module(module, nn.functional.cross_entropy, *references.small_data())


def regression():
    inputs, targets = references.small_data()
    return gf.Problem.from_module(
        nn.Linear(3, 1).double(), nn.functional.mse_loss, inputs, targets[:, None].double()
    )


def function():
    return gf.Problem.from_function(references.half_square, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "problem", "message"),
    [
        ("path_norm", sigmoid_network, "1 is a Sigmoid"),
        ("path_norm", function, "'path_norm': the problem has no network"),
        ("margin", regression, "no logits"),
        ("margin", function, "'margin' needs a network's outputs"),
        ("jacobian_norm", function, "'jacobian_norm' needs a network's outputs"),
        ("group_lasso", function, "none of its tensors has rows"),
        ("group_lasso:rows=3", sigmoid_network, "rows=3 does not divide"),
        ("group_lasso:rows=0", function, "rows=0"),
        ("group_lasso:axis=2", function, "axis=2"),
        ("l1:epsilon=0", function, "epsilon=0.0"),
        ("l1:epsilon=1e200", function, r"epsilon=1e\+200"),
        ("l1:epsilon=1e-300", function, "epsilon=1e-300"),
        ("hessian_trace:probes=1e15", function, "probes=1000000000000000 .* use fewer"),
        ("jacobian_norm:probes=1e15", regression, "probes=1000000000000000 .* use fewer"),
        ("quantization_error:bits=1", function, "bits=1"),
        ("hessian_trace:probes=0", function, "probes=0"),
        ("jacobian_norm:probes=-1", function, "probes=-1"),
        ("sharpness:rtol=2", function, "rtol=2.0"),
        ("sharpness:seed=-1", function, "seed=-1"),
        ("margin:temperature=0", function, "temperature=0.0"),
        ("margin:class_dim=0", function, "class_dim=0 is the axis of the examples; use 1 or -1"),
        ("margin:class_dim=0.5", function, "class_dim=0.5; use a whole number"),
    ],
)
def test_what_is_not_defined_is_refused(name, problem, message):
    with pytest.raises(InputError, match=message) as failure:
        gf.RegularizingFlow(gf.LevelSet(problem()), R.get(name))
    assert "\n" not in str(failure.value)


def test_what_needs_a_problem_is_not_evaluated_without(network):
    for name in ("sharpness", "margin", "group_lasso", "path_norm"):
        with pytest.raises(InputError):
            R.get(name)(network.problem.theta0)


def test_of_several_constraints_the_one_that_is_meant_is_named(network):
    other = references.small_network(batch_size=7).problem
    both = gf.LevelSet([network.problem, other])
    with pytest.raises(InputError, match=r"make it of the one you mean by \.bind\(problem\)"):
        gf.RegularizingFlow(both, R.sharpness())
    flow = gf.RegularizingFlow(network.level_set, R.sharpness().bind(other))
    # No archive may take it for the sharpness of its own problem.
    assert flow.regularizer_name == "sharpness of a problem given"
    with pytest.raises(InputError, match="which an archive does not hold"):
        R.get(flow.regularizer_name)
    before = network.problem.counts
    flow.evaluate(network.problem.theta0)
    assert network.problem.counts["gradient"] == before["gradient"] + 1
    assert other.counts["hvp"] > 0


def test_what_a_caller_has_bound_is_left_as_it_was_given(network):
    """R differentiates in θ itself, and so has no value at a θ that is in no graph."""

    def slope(theta):
        (gradient,) = torch.autograd.grad((theta**4).sum(), theta, create_graph=True)
        return gradient.square().sum()

    given = ThetaFunction(slope)
    flow = gf.RegularizingFlow(network.level_set, given)
    assert given.function is slope
    theta = network.problem.theta0
    state = flow.evaluate(theta)
    assert state.regularizer == pytest.approx(float((16 * theta**6).sum()))
    assert torch.allclose(state.regularizer_gradient, 96 * theta**5)
    assert torch.allclose(flow.regularizer_hessian(theta)(theta), 480 * theta**5)
