"""A loss is tested at θ0 itself too, and for what a module keeps of its weights."""

import pytest
import torch
import torchdiffeq
from torch import nn

import geoflow as gf
import references
from geoflow.errors import InputError

INPUTS, TARGETS = references.small_data()
START = torch.tensor([0.5, -0.8, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loss_that_jumps_at_theta0_is_refused(dtype):
    torch.manual_seed(0)
    tall = nn.utils.parametrizations.orthogonal(nn.Linear(3, 8))
    module = nn.Sequential(tall, nn.Tanh(), nn.Linear(8, 2))
    with pytest.raises(InputError, match="it jumps there"):
        gf.Problem.from_module(module, nn.functional.cross_entropy, INPUTS, TARGETS, dtype=dtype)


def test_the_map_that_it_names_does_not_jump():
    torch.manual_seed(0)
    tall = nn.Linear(3, 8)
    module = nn.Sequential(tall, nn.Tanh(), nn.Linear(8, 2))
    nn.utils.parametrizations.orthogonal(tall)
    with pytest.raises(InputError, match='orthogonal_map="cayley" does not'):
        gf.Problem.from_module(module, nn.functional.cross_entropy, INPUTS, TARGETS)
    nn.utils.parametrize.remove_parametrizations(tall, "weight")
    nn.utils.parametrizations.orthogonal(tall, orthogonal_map="cayley")
    gf.Problem.from_module(module, nn.functional.cross_entropy, INPUTS, TARGETS)


class Halved(nn.Module):
    """Computes in fewer digits than it is asked to, or leaves a part out of the gradient."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.scale, self.how = (
            references.small_module(),
            nn.Parameter(torch.ones(2)),
            how,
        )

    def forward(self, x):
        return self.how(self.inner(x), self.scale)


def within_autocast(x, scale):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x @ torch.diag(scale)).float()


FEWER = {
    "float": lambda x, scale: (x * scale).float(),
    "autocast": within_autocast,
}


@pytest.mark.parametrize("how", FEWER)
def test_rounding_is_not_said_to_be_a_part_that_is_not_in_the_gradient(how):
    message = r"it is rounded more coarsely than float64 \(torch.autocast, .*or take float32 for θ"
    with pytest.raises(InputError, match=message):
        gf.Problem.from_module(Halved(FEWER[how]), nn.functional.cross_entropy, INPUTS, TARGETS)


@pytest.mark.parametrize("kinks", [nn.functional.relu, lambda x: x])
def test_nor_a_part_that_is_not_in_the_gradient_to_be_rounding(kinks):
    module = Halved(lambda x, scale: kinks(x) * scale.detach())
    with pytest.raises(InputError, match="so a part of it is not in the gradient"):
        gf.Problem.from_module(module, nn.functional.cross_entropy, INPUTS, TARGETS)


def test_a_gradient_that_is_not_finite_at_theta0_is_refused():
    with pytest.raises(InputError, match="its gradient at theta0 is not finite"):
        gf.Problem.from_function(lambda t: 1 + t.square().sum().sqrt(), torch.zeros(3))


@pytest.mark.parametrize(
    "loss",
    [
        lambda t: 1 + (t - START).abs().sum(),
        lambda t: 1 + (t - START).relu().sum() - (START - t).relu().sum(),
        lambda t: 1 + torch.linalg.vector_norm(t - START),
        lambda t: 1 + 1e6 * (t - START).square().sum(),
        lambda t: (t - START).square().sum(),
    ],
    ids=["absolute value", "two kinks that cancel", "norm", "steep", "minimum"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_kink_or_a_minimum_at_theta0_is_none(loss, dtype):
    start = START.to(dtype)
    problem = gf.Problem.from_function(lambda t: loss(t.double()).to(dtype), start)
    assert torch.isfinite(problem.value_and_gradient(start)[1]).all()


class Keeping(nn.Module):
    """Divides by a norm of its weights: of the first ones, or of those that it has."""

    def __init__(self, anew):
        super().__init__()
        self.inner, self.anew, self.norm = nn.Linear(3, 2), anew, None

    def forward(self, x):
        if self.norm is None or self.anew:
            self.norm = self.inner.weight.norm()
        if not self.anew:
            self.norm = self.norm.detach()
        return self.inner(x) / self.norm


def batch_loss(module, batch):
    inputs, targets = batch
    return nn.functional.cross_entropy(module(inputs), targets, reduction="sum"), len(targets)


@pytest.mark.parametrize("size", [None, 7])
def test_a_module_that_keeps_what_its_first_weights_gave_is_refused(size):
    with pytest.raises(InputError, match="keeps something that its first evaluation computed"):
        gf.Problem.from_module(
            Keeping(anew=False), nn.functional.cross_entropy, INPUTS, TARGETS, size
        )
    with pytest.raises(InputError, match="keeps something that its first evaluation computed"):
        gf.Problem.from_batches(Keeping(anew=False), batch_loss, [(INPUTS, TARGETS)])


def test_one_that_computes_it_anew_is_not():
    gf.Problem.from_module(Keeping(anew=True), nn.functional.cross_entropy, INPUTS, TARGETS, 7)
    gf.Problem.from_batches(Keeping(anew=True), batch_loss, [(INPUTS, TARGETS)])


@pytest.mark.parametrize("largest", [1.0, 800.0, 8000.0])
def test_a_function_need_not_have_a_value_beside_theta0(largest):
    theta0 = torch.diag(torch.tensor([1e-3, 1.0, largest], dtype=torch.float64)).flatten()

    def log_determinant(theta):
        matrix = theta.view(3, 3)
        factor = torch.linalg.cholesky((matrix + matrix.T) / 2)
        return matrix.trace() - 2 * factor.diagonal().log().sum()

    problem = gf.Problem.from_function(log_determinant, theta0)
    expected = torch.eye(3, dtype=torch.float64) - theta0.view(3, 3).inverse()
    torch.testing.assert_close(problem.value_and_gradient(theta0)[1], expected.flatten())
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: log_determinant(t) + t @ t)
    assert flow.evaluate(theta0).regularizer == pytest.approx(
        float(log_determinant(theta0) + theta0 @ theta0), rel=1e-12
    )


class Field(nn.Linear):
    def forward(self, t, h):
        return torch.tanh(super().forward(h))


class Ordinary(nn.Module):
    """A neural ODE, its derivatives those of the steps or of another ODE."""

    def __init__(self, integrate):
        super().__init__()
        self.field, self.integrate = Field(3, 3), integrate

    def forward(self, x):
        return self.integrate(self.field, x, torch.tensor([0.0, 1.0]).to(x), method="rk4")[-1]


def test_an_adjoint_ode_at_the_modules_own_weights_is_refused_by_its_name():
    make = gf.Problem.from_module
    make(Ordinary(torchdiffeq.odeint), nn.functional.cross_entropy, INPUTS, TARGETS)
    with pytest.raises(InputError, match=r"checkpointing and odeint_adjoint compute .* or odeint$"):
        make(Ordinary(torchdiffeq.odeint_adjoint), nn.functional.cross_entropy, INPUTS, TARGETS)


def test_what_a_large_coordinate_leaves_out_of_the_gradient_is_found_among_many_small_ones():
    start = torch.full((400,), 1e-3, dtype=torch.float64)
    start[0] = 100.0
    slopes = torch.ones(400, dtype=torch.float64)
    # So much of the gradient, of which a direction at random has a twentieth.
    part = 1.5e-4 * slopes.norm()

    def loss(theta):
        return 1 + torch.dot(slopes, theta) + part * theta[0].detach()

    with pytest.raises(InputError, match="a part of it is not in the gradient"):
        gf.Problem.from_function(loss, start)


def classified(scale, dtype=torch.float64):
    """A linear classifier by the first input's sign: the wider its margins, the less it loses."""
    inputs = INPUTS[INPUTS[:, 0].abs() > 0.3]
    module = nn.Linear(3, 2).double()
    weight = torch.tensor([[-1.0, 0.01, 0.0], [1.0, 0.0, 0.01]], dtype=torch.float64)
    nn.init.zeros_(module.bias)
    module.weight.data = scale * weight
    loss, targets = nn.functional.cross_entropy, (inputs[:, 0] > 0).long()
    return gf.Problem.from_module(module, loss, inputs, targets, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [50, 56, 80])
def test_a_loss_that_rounding_hides_is_not_said_to_leave_the_graph(scale, dtype):
    message = "so near zero that rounding of its terms hides how it changes there; start where"
    with pytest.raises(InputError, match=message):
        classified(scale, dtype)


def test_one_as_small_that_is_resolved_is_no_such_loss():
    assert 0 < float(classified(25).loss(classified(25).theta0)) < 1e-7
    gf.Problem.from_function(lambda t: 1e-30 * (t**4).sum(), START)
    # Its part without a gradient is none of rounding, however small it is.
    with pytest.raises(InputError, match="a part of it is not in the gradient"):
        gf.Problem.from_function(lambda t: 1e-30 * (t**2 * t.detach() ** 2).sum(), START)
