import copy

import pytest
import torch
from torch import nn
from torch.utils import deterministic

import geoflow as gf
import references
from geoflow.errors import EvaluationLimitError, InputError
from geoflow.problems import arithmetic


class Counting(nn.Module):
    """Counts its forward passes, whoever copies it, and remembers the largest batch."""

    passes = 0
    largest = 0

    def __init__(self):
        super().__init__()
        self.inner = references.small_module()

    def forward(self, inputs):
        Counting.passes += 1
        Counting.largest = max(Counting.largest, len(inputs))
        return self.inner(inputs)


@pytest.fixture
def counting():
    def make(batch_size=None):
        problem = gf.Problem.from_module(
            Counting(), nn.functional.cross_entropy, *references.small_data(), batch_size
        )
        Counting.passes = Counting.largest = 0
        return problem

    return make


MODULE, DATA = references.small_module(), references.small_data()


def dense_loss(theta):
    module, (inputs, targets) = MODULE, DATA
    parameters, offset = {}, 0
    for name, value in module.named_parameters():
        parameters[name] = theta[offset : offset + value.numel()].view(value.shape)
        offset += value.numel()
    outputs = torch.func.functional_call(module, parameters, (inputs,))
    return nn.functional.cross_entropy(outputs, targets)


def test_loss_gradient_and_hvp_are_those_of_autograd(network):
    problem = network.problem
    theta = problem.theta0
    value, gradient = problem.value_and_gradient(theta)
    assert torch.allclose(value, dense_loss(theta), rtol=1e-14)
    assert problem.loss(theta) == value
    assert torch.allclose(gradient, torch.func.grad(dense_loss)(theta), rtol=1e-12, atol=1e-15)
    hessian = torch.func.hessian(dense_loss)(theta)
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    assert torch.allclose(problem.hvp(theta, v), hessian @ v, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("batch_size", [1, 5, 24, 100])
def test_chunks_give_the_same_to_rounding(network, batch_size):
    whole, chunked = network.problem, references.small_network(batch_size=batch_size).problem
    theta = whole.theta0
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    for a, b in zip(
        (*whole.value_and_gradient(theta), whole.hvp(theta, v)),
        (*chunked.value_and_gradient(theta), chunked.hvp(theta, v)),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-15)


def squared_error(outputs, targets):
    return nn.functional.mse_loss(outputs, nn.functional.one_hot(targets, 2).double())


def dense_gauss_newton(loss_fn):
    """JᵀHJ from the dense Jacobian of all outputs, and the dense Hessian of the loss in them."""
    inputs, targets = DATA
    parameters = dict(MODULE.named_parameters())
    jacobians = torch.func.jacrev(lambda p: torch.func.functional_call(MODULE, p, (inputs,)))(
        parameters
    )
    outputs = MODULE(inputs).detach()
    jacobian = torch.cat([j.reshape(outputs.numel(), -1) for j in jacobians.values()], dim=1)
    hessian = torch.autograd.functional.hessian(lambda o: loss_fn(o, targets), outputs)
    return jacobian.T @ hessian.reshape(outputs.numel(), -1) @ jacobian


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("loss_fn", [nn.functional.cross_entropy, squared_error])
def test_gauss_newton_is_the_dense_one_and_positive_semi_definite(loss_fn, batch_size):
    problem = gf.Problem.from_module(MODULE, loss_fn, *DATA, batch_size)
    identity = torch.eye(problem.n_parameters, dtype=torch.float64)
    found = torch.stack([problem.gauss_newton_product(problem.theta0, v) for v in identity])
    exact = dense_gauss_newton(loss_fn).detach()
    assert (found - exact).abs().max() < 1e-8
    assert torch.allclose(found, exact, rtol=1e-10, atol=1e-14)
    eigenvalues = torch.linalg.eigvalsh(found)
    assert eigenvalues[0] > -1e-14
    assert eigenvalues[-1] > 0.01
    # It is not the Hessian: the network's own curvature is missing.
    v = torch.linspace(-1, 1, problem.n_parameters, dtype=torch.float64)
    assert (problem.hvp(problem.theta0, v) - found @ v).norm() > 1e-2 * (found @ v).norm()


@pytest.mark.parametrize("loss_fn", [nn.functional.cross_entropy, squared_error])
def test_gauss_newton_of_a_linear_model_is_the_hessian(loss_fn):
    problem = gf.Problem.from_module(nn.Linear(3, 2), loss_fn, *DATA, batch_size=7)
    for v in torch.eye(problem.n_parameters, dtype=torch.float64):
        product = problem.gauss_newton_product(problem.theta0, v)
        assert torch.allclose(product, problem.hvp(problem.theta0, v), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("loss_fn", [nn.functional.mse_loss, nn.functional.huber_loss])
def test_losses_without_a_forward_derivative_have_products_all_the_same(loss_fn):
    inputs = DATA[0]
    targets = torch.stack([inputs[:, 0], inputs[:, 1] * inputs[:, 2]], dim=1)
    problem = gf.Problem.from_module(MODULE, loss_fn, inputs, targets)
    theta, step = problem.theta0, 1e-5
    v = torch.linspace(-1, 1, problem.n_parameters, dtype=torch.float64)
    ahead, behind = (problem.value_and_gradient(theta + s * v)[1] for s in (step, -step))
    assert torch.allclose(problem.hvp(theta, v), (ahead - behind) / (2 * step), rtol=1e-6)


def test_gauss_newton_costs_a_hessian_vector_product_and_needs_outputs():
    problem = gf.Problem.from_module(MODULE, nn.functional.cross_entropy, *DATA)
    problem.gauss_newton_product(problem.theta0, problem.theta0)
    assert problem.counts == {"gradient": 0, "hvp": 1}
    with problem.budget(1), pytest.raises(EvaluationLimitError):
        problem.gauss_newton_product(problem.theta0, problem.theta0)
    flat = gf.Problem.from_function(references.half_square, torch.ones(2))
    with pytest.raises(InputError, match=r"needs a network's outputs; .*from_module"):
        flat.gauss_newton_product(flat.theta0, flat.theta0)
    with pytest.raises(InputError, match="v has shape"):
        problem.gauss_newton_product(problem.theta0, torch.ones(2, dtype=torch.float64))


def test_counts_are_the_forward_passes(counting):
    problem = counting()
    theta = problem.theta0
    # The first product is compared with differences, apart from the counts.
    problem.hvp(theta, theta)
    assert problem.counts == {"gradient": 0, "hvp": 1}
    Counting.passes = 0
    for _ in range(3):
        problem.value_and_gradient(theta)
    problem.hvp(theta, theta)
    assert problem.counts == {"gradient": 3, "hvp": 2}
    assert Counting.passes == 4
    assert problem.evaluations == 7


def test_a_walk_counts_every_forward_pass(counting):
    problem = counting()
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    Counting.passes = 0
    ds = gf.walk(flow, "dopri5", t_end=0.1, stop=None)
    assert Counting.passes == int(ds["n_gradient"][-1]) + int(ds["n_hvp"][-1]) > 10


def test_chunks_never_hold_more_examples_than_asked(counting):
    problem = counting(batch_size=7)
    problem.value_and_gradient(problem.theta0)
    assert Counting.largest == 7


def test_the_callers_module_is_untouched():
    module = references.small_module()
    module.register_buffer("seen", torch.zeros(1))
    module[0].bias.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    problem = gf.Problem.from_module(
        module, nn.functional.cross_entropy, *references.small_data(), dtype=torch.float32
    )
    problem.value_and_gradient(problem.theta0 + 1)
    assert problem.n_parameters == 8 * 3 + 2 * 8 + 2
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert module.training
    assert module[0].weight.grad is None
    assert module[0].weight.dtype == torch.float64


def test_tied_parameters_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False)
            self.b = nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    inputs, targets = references.small_data()
    problem = gf.Problem.from_module(Tied(), nn.functional.cross_entropy, inputs, targets)
    assert problem.n_parameters == 9
    theta = problem.theta0
    gradient = problem.value_and_gradient(theta)[1]
    step = 1e-6 * torch.ones_like(theta)
    difference = problem.loss(theta + step) - problem.loss(theta - step)
    assert torch.isclose(difference, 2 * torch.dot(gradient, step), rtol=1e-6)


@pytest.mark.parametrize(
    "layer", [nn.Dropout(), nn.BatchNorm1d(8), nn.RReLU(), nn.AlphaDropout()], ids=str
)
def test_training_mode_that_makes_the_loss_random_is_refused(layer):
    module = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)).double()
    data = references.small_data()
    with pytest.raises(InputError, match=r"module: 1 .*training mode.*module\.eval\(\)"):
        gf.Problem.from_module(module, nn.functional.cross_entropy, *data)
    problem = gf.Problem.from_module(module.eval(), nn.functional.cross_entropy, *data)
    assert problem.loss(problem.theta0) == problem.loss(problem.theta0)


def test_functional_dropout_is_found_by_evaluating_twice():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = references.small_module()

        def forward(self, x):
            return nn.functional.dropout(self.inner(x), 0.5)

    with pytest.raises(InputError, match="two evaluations at theta0 differ"):
        gf.Problem.from_module(Hidden(), nn.functional.cross_entropy, *references.small_data())


def bad_inputs():
    inputs, targets = references.small_data()
    holed = inputs.clone()
    holed[3, 1] = torch.nan
    entropy = nn.functional.cross_entropy
    frozen = references.small_module().requires_grad_(False)
    module = references.small_module()
    batchless = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)).eval()
    return [
        ((module, entropy, holed, targets), {}, "inputs have 1 non-finite"),
        ((module, entropy, inputs, targets[:5]), {}, r"inputs have shape \(24, 3\) and targets"),
        ((module, entropy, inputs, targets, 0), {}, "batch_size=0"),
        ((module, entropy, inputs, targets), {"dtype": torch.int64}, "dtype=torch.int64"),
        ((module, entropy, inputs, targets), {"device": "nowhere"}, "device='nowhere'"),
        ((frozen, entropy, inputs, targets), {}, "no trainable parameter"),
        ((module, lambda o, t: o, inputs, targets), {}, r"loss_fn returned shape \(24, 2\)"),
        ((batchless, entropy, inputs, targets, 5), {}, "normalises by batch statistics"),
    ]


@pytest.mark.parametrize(("args", "kwargs", "message"), bad_inputs())
def test_bad_input_names_the_argument_and_the_remedy(args, kwargs, message):
    with pytest.raises(InputError, match=message):
        gf.Problem.from_module(*args, **kwargs)


NO_TENSORS = {
    "dict": (lambda loss: {"loss": loss}, r"a dict; .*scalar tensor.* \(add up those it holds\)"),
    "tuple": (lambda loss: (loss, 1), r"a tuple; .* \(leave out what is beside it\)"),
    "float": (lambda loss: loss.item(), r"a float; .* \(without .item\(\) or float\(\)"),
    "none": (lambda loss: None, r"None; .* \(a return is missing\)"),
}


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("name", NO_TENSORS)
def test_a_loss_that_returns_no_tensor_is_told_what_to_return(name, batch_size):
    change, message = NO_TENSORS[name]
    inputs, targets = references.small_data()

    def loss(outputs, targets):
        return change(nn.functional.cross_entropy(outputs, targets))

    with pytest.raises(InputError, match=f"^loss_fn returned {message}"):
        gf.Problem.from_module(references.small_module(), loss, inputs, targets, batch_size)
    with pytest.raises(InputError, match=f"^loss returned {message}"):
        gf.Problem.from_function(lambda t: change(t @ t), torch.ones(2))


def test_from_function_refuses_what_is_not_a_scalar_of_a_flat_tensor():
    with pytest.raises(InputError, match="theta0 has shape"):
        gf.Problem.from_function(torch.sum, torch.zeros(2, 2))
    with pytest.raises(InputError, match="non-finite"):
        gf.Problem.from_function(torch.sum, torch.tensor([1.0, torch.inf]))
    with pytest.raises(InputError, match="must return a scalar"):
        gf.Problem.from_function(lambda t: t, torch.ones(2))
    with pytest.raises(InputError, match="it must be finite"):
        gf.Problem.from_function(lambda t: (t / 0).sum(), torch.ones(2))


@pytest.mark.parametrize(
    ("theta", "what"),
    [
        (torch.zeros(3, dtype=torch.float64), "shape"),
        (torch.zeros(50, dtype=torch.float32), "dtype"),
        (torch.zeros(50, dtype=torch.float64, device="meta"), "device"),
    ],
)
def test_theta_of_another_kind_is_refused(network, theta, what):
    for call in (network.problem.loss, network.problem.value_and_gradient):
        with pytest.raises(InputError, match=f"theta has {what}"):
            call(theta)


def test_a_budget_is_never_passed(network):
    problem = network.problem
    with problem.budget(3):
        problem.value_and_gradient(problem.theta0)
        problem.hvp(problem.theta0, problem.theta0)
        with pytest.raises(EvaluationLimitError):
            problem.value_and_gradient(problem.theta0)
    assert problem.evaluations == 3
    problem.value_and_gradient(problem.theta0)


def test_data_hash_tells_data_apart():
    inputs, targets = references.small_data()
    module, entropy = references.small_module(), nn.functional.cross_entropy
    a = gf.Problem.from_module(module, entropy, inputs, targets).data_sha256
    b = gf.Problem.from_module(module, entropy, inputs + 1e-12, targets).data_sha256
    assert len(a) == 64
    assert a != b


def test_data_hash_is_of_the_values_however_they_lie_in_memory():
    inputs, targets = references.small_data()
    module, entropy = references.small_module(), nn.functional.cross_entropy
    plain, strided = (
        gf.Problem.from_module(module, entropy, inputs[:1], labels).data_sha256
        # One example of every second: contiguous, with a stride of 2.
        for labels in (targets[:1].clone(), targets[::2][:1])
    )
    assert plain == strided


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_same_to_rounding(network):
    on_gpu = references.small_network(device="cuda").problem
    gradient = network.problem.value_and_gradient(network.problem.theta0)[1]
    assert torch.allclose(on_gpu.value_and_gradient(on_gpu.theta0)[1].cpu(), gradient, rtol=1e-10)


def test_losses_at_many_points_are_those_at_each():
    for problem in (
        references.small_network().problem,
        references.small_network(batch_size=7).problem,
        references.ellipsoid().problem,
    ):
        counts = problem.counts
        thetas = problem.theta0 * torch.linspace(0.5, 2, 5, dtype=torch.float64)[:, None]
        found = problem.losses(thetas)
        assert torch.allclose(found, torch.stack([problem.loss(t) for t in thetas]), rtol=1e-13)
        assert not found.requires_grad
        assert problem.counts == counts
        with pytest.raises(InputError, match=r"give \(N, P\)"):
            problem.losses(problem.theta0)


def test_no_precision_of_float32_is_given_away():
    """PyTorch may be told to multiply in bfloat16: an evaluation does not, and leaves it told."""
    inputs = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(300 * 200, generator=torch.Generator().manual_seed(1)) / 20
    seen = []

    def loss(theta):
        seen.append(torch.get_float32_matmul_precision())
        return torch.tanh(inputs @ theta.view(300, 200)).square().mean()

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        problem = gf.Problem.from_function(loss, weight)
        seen.clear()
        problem.value_and_gradient(weight)
        problem.loss(weight)
        assert seen == ["highest", "highest"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_on_a_gpu_sums_are_made_in_one_order_and_what_was_set_is_given_back():
    def settings():
        return (
            torch.are_deterministic_algorithms_enabled(),
            deterministic.fill_uninitialized_memory,
            torch.backends.cudnn.allow_tf32,
        )

    before = settings()
    with arithmetic.exact(torch.device("cuda")), arithmetic.exact(torch.device("cuda")):
        assert settings() == (True, False, False)
    assert settings() == before
    with arithmetic.exact(torch.device("cpu")):
        assert settings() == (*before[:2], False)
    assert settings() == before


def test_a_gradient_that_is_not_the_same_twice_is_refused():
    class Wavering(torch.autograd.Function):
        """As an operation that adds in any order: its gradient differs in the last digits."""

        calls = 0

        @staticmethod
        def forward(ctx, theta):
            ctx.save_for_backward(theta)
            return theta.square().sum()

        @staticmethod
        def backward(ctx, grad):
            Wavering.calls += 1
            (theta,) = ctx.saved_tensors
            return grad * 2 * theta * (1 + 1e-15 * Wavering.calls)

    with pytest.raises(InputError, match="two evaluations of its gradient"):
        gf.Problem.from_function(Wavering.apply, torch.arange(1.0, 6.0, dtype=torch.float64))
