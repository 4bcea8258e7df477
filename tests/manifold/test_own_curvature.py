"""Second derivatives of one's own R: right, or by differences, with a word."""

import warnings

import pytest
import torch

import geoflow as gf
from geoflow.analysis.curvature.operators import tangent_hessian


class Quartic(torch.autograd.Function):
    """Σ t⁴, whose gradient is right and whose second derivative is lost."""

    @staticmethod
    def forward(ctx, theta):
        ctx.save_for_backward(theta)
        return (theta**4).sum()

    @staticmethod
    def backward(ctx, gradient):
        (theta,) = ctx.saved_tensors
        return 4 * gradient * theta.detach() ** 3


class Once(Quartic):
    """The same, which says so."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (theta,) = ctx.saved_tensors
        return 4 * gradient * theta**3


def right(theta):
    return (theta**4).sum()


def fused(problem):
    """Weight normalisation by PyTorch's fused kernel, whose second derivatives are wrong."""

    def function(theta):
        named = problem.unflatten(theta)
        weight, size = named["0.weight"], named["0.bias"][:, None] + 2
        return torch._weight_norm(weight, size, 0).sin().sum() + theta @ theta

    return function


def plain(problem):
    def function(theta):
        named = problem.unflatten(theta)
        weight, size = named["0.weight"], named["0.bias"][:, None] + 2
        return (size * weight / weight.norm(dim=1, keepdim=True)).sin().sum() + theta @ theta

    return function


def flow_of(network, function):
    return gf.RegularizingFlow(gf.LevelSet(network.problem), function)


WRONG = {
    "detached": (lambda problem: Quartic.apply, lambda problem: right),
    "once differentiable": (lambda problem: Once.apply, lambda problem: right),
    "fused kernel": (fused, plain),
}


@pytest.mark.parametrize(("make", "expected"), WRONG.values(), ids=WRONG)
def test_wrong_second_derivatives_of_r_are_differences_with_a_word(network, make, expected):
    problem = network.problem
    v = torch.randn(len(problem.theta0), generator=torch.Generator().manual_seed(0)).double()
    flow = flow_of(network, make(problem))
    with pytest.warns(UserWarning, match=r"^regularizer: .* are differences of gradients"):
        product = flow.regularizer_hessian(problem.theta0)(v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = flow_of(network, expected(problem)).regularizer_hessian(problem.theta0)(v)
        again = flow.regularizer_hessian(problem.theta0)(v)  # said once
    assert float((product - exact).norm() / exact.norm()) < 1e-8
    assert torch.equal(product, again)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0])
@pytest.mark.parametrize("function", [Quartic.apply, Once.apply], ids=["detached", "once"])
def test_in_float32_too(size, function):
    """A slope beside it has more rounding over the shortest step than there is curvature."""

    def sloping(of):
        return lambda t: 10 * t.sum() + of(t)

    theta = size * torch.linspace(-1, 1, 20)
    problem = gf.Problem.from_function(lambda t: (t - 1).square().sum(), theta)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), sloping(function))
    at, v = torch.linspace(0.5, 1, 20), torch.linspace(-1, 2, 20)
    with pytest.warns(UserWarning, match=r"^regularizer: .* are differences of gradients"):
        product = flow.regularizer_hessian(at)(v)
    expected = 12 * at**2 * v
    assert float((product - expected).norm() / expected.norm()) < 1e-2
    flow = gf.RegularizingFlow(gf.LevelSet(problem), sloping(right))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(flow.regularizer_hessian(at)(v), expected, rtol=1e-5)


def test_the_tangent_hessian_has_the_right_curvature_of_r(network):
    def operator(function):
        flow = flow_of(network, function)
        return tangent_hessian(flow, flow.start(network.problem.theta0)[0])

    with pytest.warns(UserWarning, match="regularizer: "):
        found = operator(Quartic.apply)
    expected = operator(right)
    v = torch.randn(found.size, generator=torch.Generator().manual_seed(0)).double()
    assert float((found(v) - expected(v)).norm() / expected(v).norm()) < 1e-8


SMOOTH = {
    "with kinks at zero": lambda t: t.abs().sum() + (t @ t),
    "without curvature": lambda t: t.sum(),
    "of a norm": lambda t: t.norm(),
}


@pytest.mark.parametrize("function", SMOOTH.values(), ids=SMOOTH)
def test_right_second_derivatives_stay_exact(network, function):
    theta = network.problem.theta0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product = flow_of(network, function).regularizer_hessian(theta)(torch.ones_like(theta))
    expected = torch.autograd.functional.hvp(function, theta, torch.ones_like(theta))[1]
    assert torch.allclose(product, expected, rtol=1e-13, atol=1e-13)


def test_functions_by_name_are_not_compared(network):
    """Grids have kinks, and their second derivatives are tested in their own place."""
    theta = network.problem.theta0
    flow = flow_of(network, gf.regularizers.quantization_error(bits=16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.regularizer_hessian(theta)(torch.ones_like(theta))


def test_a_kink_at_theta0_itself_is_no_fault(network):
    problem = gf.Problem.from_function(
        lambda t: (t - 1).square().sum(), torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: t.abs().sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product = flow.regularizer_hessian(problem.theta0)(torch.ones(3, dtype=torch.float64))
    assert not product.any()


@pytest.mark.parametrize(("ridge", "curvature"), [(0.0, 0.0), (1.0, 2.0)], ids=["l1", "elastic"])
def test_kinks_of_many_parameters_are_no_fault(ridge, curvature):
    """In float32 some are crossed by every difference, each by others."""
    theta = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    problem = gf.Problem.from_function(lambda t: (t - 1).square().mean(), theta)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: t.abs().sum() + ridge * (t @ t))
    v = torch.ones_like(theta)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product = flow.regularizer_hessian(theta)(v)
    assert torch.allclose(product, curvature * v)
