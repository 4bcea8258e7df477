"""The Gauss–Newton product, its rank's bound, and what there is none of."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import functional_call

import geoflow as gf
from geoflow.analysis.curvature.operators import gauss_newton
from geoflow.errors import InputError
from geoflow.problems import gauss_newton as gauss_newton_of

D = torch.float64
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=D)
Y = X.sum(1, keepdim=True).sin()
MSE = nn.functional.mse_loss


class Network(nn.Module):
    def __init__(self, n_outputs=1, between=torch.tanh, give=lambda outputs, inputs: outputs):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, n_outputs)
        self.between, self.give = between, give

    def forward(self, inputs):
        inputs = inputs.detach().requires_grad_()
        return self.give(self.second(self.between(self.first(inputs))), inputs)


def test_a_loss_of_what_a_hook_keeps_is_not_one_of_the_outputs():
    kept, module = {}, nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    module[1].register_forward_hook(lambda _, inputs, outputs: kept.update(hidden=outputs))
    problem = gf.Problem.from_module(
        module, lambda outputs, y: MSE(outputs, y) + kept["hidden"].abs().mean(), X, Y
    )
    with pytest.raises(InputError, match="uses more of the network than its outputs"):
        problem.gauss_newton_product(problem.theta0, problem.theta0)


def problem_of(loss_fn=MSE, **options):
    return gf.Problem.from_module(Network(**options), loss_fn, X, Y)


def product_of(loss_fn=MSE, **options):
    problem = problem_of(loss_fn, **options)
    return problem.gauss_newton_product(problem.theta0, torch.ones_like(problem.theta0))


def test_complex_outputs_count_twice():
    def loss(outputs, targets):
        return (outputs.real * outputs.imag.exp() - targets).square().mean()

    network = Network(4, give=lambda o, x: torch.complex(o[:, :2], o[:, 2:])).double()
    problem = gf.Problem.from_module(network, loss, X, Y)
    theta = problem.theta0
    assert problem.n_outputs == 5 * 2 * 2
    operator = gauss_newton(problem, theta)
    matrix = operator.dense()
    rank = int((abs(torch.linalg.eigvalsh(torch.as_tensor(matrix))) > 1e-12).sum())
    assert rank == 20
    assert operator.nullity == problem.n_parameters - rank

    def real(t):
        outputs = functional_call(network, problem.unflatten(t), (X,))
        return torch.view_as_real(outputs).reshape(-1)

    jacobian = torch.autograd.functional.jacobian(real, theta)
    curvature = torch.autograd.functional.hessian(
        lambda f: loss(torch.view_as_complex(f.reshape(5, 2, 2)), Y), real(theta).detach()
    )
    assert torch.allclose(torch.as_tensor(matrix), jacobian.T @ curvature @ jacobian, atol=1e-12)


class Outputs:
    def __init__(self, logits):
        self.logits = logits


@dataclasses.dataclass
class Record:
    logits: torch.Tensor


def of_logits(outputs, targets):
    return MSE(outputs.logits, targets)


def test_outputs_that_are_not_found_are_refused():
    problem = problem_of(of_logits, give=lambda o, x: Outputs(o))
    for ask in (
        lambda: problem.n_outputs,
        lambda: gauss_newton(problem, problem.theta0),
        lambda: problem.gauss_newton_product(problem.theta0, problem.theta0),
    ):
        with pytest.raises(InputError, match=r"^module: .* \(a Outputs\).*dict or dataclass"):
            ask()


def test_those_of_a_dataclass_are():
    problem = problem_of(of_logits, give=lambda o, x: Record(o))
    assert problem.n_outputs == len(X)
    found = problem.gauss_newton_product(problem.theta0, torch.ones_like(problem.theta0))
    assert torch.equal(found, product_of())


def test_outputs_of_which_some_are_not_found_are_refused_where_the_loss_has_them():
    def give(outputs, inputs):
        return {"found": outputs, "hidden": Outputs(outputs)}

    def both(outputs, targets):
        return MSE(outputs["found"], targets) + of_logits(outputs["hidden"], targets)

    with pytest.raises(InputError, match="not found"):
        product_of(both, give=give)
    alone = product_of(lambda outputs, targets: MSE(outputs["found"], targets), give=give)
    assert torch.equal(alone, product_of())


def test_a_loss_may_write_into_the_outputs():
    found = product_of(lambda outputs, targets: outputs.sub_(targets).square().mean())
    assert torch.allclose(found, product_of(), rtol=1e-13, atol=0)


def test_parameters_without_a_part_in_the_outputs_have_none_in_products():
    class Unused(Network):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.ones(3))

    problem = gf.Problem.from_module(Unused(), MSE, X, Y)
    found = problem.unflatten(problem.gauss_newton_product(problem.theta0, problem.theta0))
    assert not found["unused"].any()
    assert found["first.weight"].any()


def test_a_loss_that_is_no_function_of_the_outputs_alone_is_refused():
    def physics(outputs, targets):
        u, x = outputs
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return MSE(u, targets) + slope.square().mean()

    with pytest.raises(InputError, match=r"^loss: of the outputs alone it fails \(.*forward"):
        product_of(physics, give=lambda o, x: (o, x))


class Tanh(torch.autograd.Function):
    """With a gradient that leaves the graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient.detach() * (1 - x.detach().tanh() ** 2)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().mean()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * gradient * x.detach() / x.numel()


def distances(x):
    return torch.cdist(x[:, None], torch.eye(8, dtype=x.dtype).expand(len(x), 8, 8))[:, 0]


@pytest.mark.parametrize("between", [nn.functional.hardsigmoid, distances])
def test_a_network_without_second_derivatives_is_refused(between):
    with pytest.raises(InputError, match=r"^module: it has no second derivative \(.*backward"):
        product_of(between=between)


@pytest.mark.parametrize("between", [Tanh.apply, lambda x: torch.tanh(x) + 1e-3 * Tanh.apply(x)])
def test_a_backward_that_leaves_the_graph_is_refused(between):
    """In part too, which would change products by 10⁻³ and no more."""
    with pytest.raises(InputError, match=r"^module: .*backward without a derivative"):
        product_of(between=between)


def test_pytorchs_own_backward_that_is_not_linear_is_named():
    with pytest.raises(InputError, match=r"a hook on a gradient, PyTorch's logcumsumexp\), so"):
        product_of(between=lambda x: x.logcumsumexp(1))


def test_a_wrong_curvature_of_the_loss_is_refused():
    with pytest.raises(InputError, match=r"^loss: its second derivatives in the outputs"):
        product_of(lambda outputs, targets: Square.apply(outputs - targets))


LOSSES = {
    "probabilities": (
        lambda o, y: nn.functional.binary_cross_entropy(torch.sigmoid(o), (y > 0).to(o)),
        lambda o, x: o,
    ),
    "given probabilities": (
        lambda o, y: nn.functional.binary_cross_entropy(o, (y > 0).to(o)),
        lambda o, x: torch.sigmoid(15 * o),
    ),
    "with kinks": (lambda o, y: nn.functional.smooth_l1_loss(o, y, beta=0.3), lambda o, x: o),
    "without curvature": (nn.functional.l1_loss, lambda o, x: o),
    "at a kink": (lambda o, y: (o - o.detach()).abs().mean() + MSE(o, y), lambda o, x: o),
}


@pytest.mark.parametrize(("loss_fn", "give"), LOSSES.values(), ids=LOSSES)
def test_losses_with_a_domain_or_kinks_have_products(loss_fn, give):
    problem = gf.Problem.from_module(Network(give=give), loss_fn, X, Y)
    assert torch.isfinite(problem.gauss_newton_product(problem.theta0, problem.theta0)).all()


class Fourth(torch.autograd.Function):
    """Σ x⁴, whose gradient is right and whose second derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x**4).sum()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 4 * gradient * x.detach() ** 3


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loss_with_wrong_second_derivatives_is_refused_in_either_dtype(size, dtype):
    """Small outputs beside large targets: a gradient's rounding is more than the curvature."""
    module = Network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(size)

    def product(fourth, dtype):
        def loss(outputs, targets):
            return (fourth(outputs - targets) + (outputs - targets).square().sum()) / len(targets)

        problem = gf.Problem.from_module(module, loss, X, Y, dtype=dtype)
        return problem.gauss_newton_product(problem.theta0, torch.ones_like(problem.theta0))

    with pytest.raises(InputError, match="its second derivatives in the outputs are not those of"):
        product(Fourth.apply, dtype)
    found, expected = (product(lambda x: (x**4).sum(), d) for d in (dtype, D))
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", [1e-30, 1e-24, 1.0, 1e18])
def test_outputs_may_be_in_any_unit_of_float32(unit):
    """Squares of derivatives of 1e-30 have no place in float32."""
    matrix = unit * torch.randn(30, 5, generator=torch.Generator().manual_seed(0))

    def loss(outputs):
        return (outputs / unit).square().sum(), torch.ones(())

    at = {"a": torch.linspace(-1, 1, 5)}
    gauss_newton_of.check(lambda p: matrix @ p["a"], loss, at)
    with pytest.raises(InputError, match="a backward without a derivative that is right"):
        gauss_newton_of.check(lambda p: matrix @ Detached.apply(p["a"]), loss, at)


class Detached(torch.autograd.Function):
    """x, with a backward that is no function of its argument."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.detach().clone()
