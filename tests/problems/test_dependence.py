"""A loss is a function of the parameters that move: what else it uses of weights is told."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems import kept

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).sin()
MSE = functional.mse_loss


def net(out=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, out))


def summed(module, batch):
    return MSE(module(batch[0]), batch[1], reduction="sum"), len(batch[0])


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 1)

    def hidden(self, x):
        return torch.tanh(self.a(x))

    def forward(self, x):
        return self.b(self.hidden(x))


class HoldsInAList(Layers):
    def __init__(self):
        super().__init__()
        self.held = [self.b.weight]

    def forward(self, x):
        return super().forward(x) + self.held[0].square().sum()


class Holder:
    weight = None


class HoldsInAnObject(Layers):
    def __init__(self):
        super().__init__()
        self.holder = Holder()
        self.holder.weight = self.b.weight

    def forward(self, x):
        return super().forward(x) + self.holder.weight.square().sum()


class HoldsOutOfTheGraph(HoldsInAList):
    def forward(self, x):
        return Layers.forward(self, x) + self.held[0].detach().square().sum()


class KeepsAPenalty(Layers):
    kl = None

    def forward(self, x):
        self.kl = self.hidden(x).square().mean()
        return super().forward(x)


@pytest.mark.parametrize("made", [HoldsInAList, HoldsInAnObject, HoldsOutOfTheGraph])
def test_weights_beside_the_parameters_are_refused(made):
    message = "module: it holds .* beside its parameters .*reach"
    with pytest.raises(InputError, match=message):
        gf.Problem.from_module(made(), MSE, X, Y)
    with pytest.raises(InputError, match=message):
        gf.Problem.from_batches(made(), summed, [(X, Y)])


def test_those_of_what_does_not_move_are_not():
    module = HoldsInAList()
    problem = gf.Problem.from_module(module, MSE, X, Y, parameters="a.*")
    expected = MSE(module.double()(X.double()), Y.double())
    assert float(problem.loss(problem.theta0)) == pytest.approx(float(expected.detach()), rel=1e-13)


class Penalised(nn.Module):
    """A loss that holds the network."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, outputs, targets):
        return MSE(outputs, targets) + sum(p.square().sum() for p in self.module.parameters())


class OutOfTheGraph(Penalised):
    def forward(self, outputs, targets):
        penalty = sum(p.detach().square().sum() for p in self.module.parameters())
        return MSE(outputs, targets) * (1 + penalty)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, outputs, targets):
        return MSE(outputs, targets) * torch.exp(-self.log_variance) + self.log_variance


def test_a_loss_that_holds_the_network_is_refused():
    module = net()
    with pytest.raises(InputError, match="it uses the parameters of the module itself"):
        gf.Problem.from_module(module, Penalised(module), X, Y)
    with pytest.raises(InputError, match="it uses the parameters of the module itself"):
        gf.Problem.from_batches(module, Bound(module), [(X, Y)])
    with pytest.raises(InputError, match="it holds weights beside its parameters"):
        gf.Problem.from_module(module, OutOfTheGraph(module), X, Y)


class Bound(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, own, batch):
        penalty = sum(p.square().sum() for p in self.module.parameters())
        return MSE(own(batch[0]), batch[1], reduction="sum") + penalty, len(batch[0])


def test_a_loss_with_parameters_of_its_own_is_refused_unless_they_are_fixed():
    loss = Scaled()
    with pytest.raises(InputError, match=r"log_variance is no part of θ.*loss_fn.requires_grad_"):
        gf.Problem.from_module(net(), loss, X, Y)
    problem = gf.Problem.from_module(net(), loss.requires_grad_(False), X, Y)
    assert problem.n_parameters == sum(p.numel() for p in net().parameters())


def test_what_the_users_module_keeps_of_an_evaluation_is_refused():
    module = KeepsAPenalty()
    with torch.no_grad():
        module(X)
    kept = module.kl
    with pytest.raises(InputError, match=r"keeps of an evaluation \(kl\).*from_batches"):
        gf.Problem.from_module(module, lambda o, t: MSE(o, t) + module.kl, X, Y)

    def live(own, batch):
        total, weight = summed(own, batch)
        return total + module.kl, weight

    with pytest.raises(InputError, match=r"keeps of an evaluation \(kl\)"):
        gf.Problem.from_batches(module, live, [(X, Y)])
    assert module.kl is kept

    def right(own, batch):
        total, weight = summed(own, batch)
        return total + weight * own.kl, weight

    problem = gf.Problem.from_batches(module, right, [(X, Y)])
    module.double()
    expected = MSE(module(X.double()), Y.double()) + module.kl
    assert float(problem.loss(problem.theta0)) == pytest.approx(float(expected.detach()), rel=1e-13)


def test_what_it_keeps_that_no_evaluation_changes_is_taken():
    module = net()
    module.scale = torch.full((1,), 3.0)
    problem = gf.Problem.from_module(module, lambda o, t: module.scale[0] * MSE(o, t), X, Y)
    plain = gf.Problem.from_module(module, MSE, X, Y)
    theta = plain.theta0
    assert float(problem.loss(theta)) == pytest.approx(3 * float(plain.loss(theta)), rel=1e-14)


class Merged(nn.Module):
    """Low-rank factors, multiplied once and for all outside of training."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.ones(6, 3)), nn.Parameter(torch.ones(3, 8))
        self.head, self.merged = nn.Linear(8, 1), None

    def forward(self, x):
        if self.merged is None:
            self.merged = (self.up @ self.down).detach()
        return self.head(torch.tanh(x @ self.merged.to(x)))


def test_parameters_without_a_part_in_the_loss_are_named():
    module = Merged().eval()
    with torch.no_grad():
        module(X)
    with pytest.warns(
        UserWarning, match=r"module: up, down \(42 parameters of θ\) have .* keeps merged"
    ):
        gf.Problem.from_module(module, MSE, X, Y)


def test_a_module_need_not_use_all_of_its_parameters():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = Layers()
        module.spare = nn.Linear(2, 2)
        assert gf.Problem.from_module(module, MSE, X, Y).n_parameters == 71


def test_a_layer_before_one_of_zeros_has_a_part():
    module = net()
    nn.init.zeros_(module[2].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = gf.Problem.from_module(module, MSE, X, Y, 9)
    gradient = problem.unflatten(problem.value_and_gradient(problem.theta0)[1])
    assert not gradient["0.weight"].any()


def test_a_loss_is_one_number_whether_its_gradient_is_asked_for_or_not():
    with pytest.raises(InputError, match="loss: it is 6, and 3 where its gradient is computed"):
        gf.Problem.from_function(lambda t: t @ t * (1 if t.requires_grad else 2), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_nor_is_it_another_in_small_or_large_units(unit, dtype):
    theta = torch.ones(3, dtype=dtype)
    problem = gf.Problem.from_function(lambda t: unit * (t @ t), theta)
    assert torch.allclose(problem.hvp(theta, theta), 2 * unit * theta, rtol=1e-6, atol=0)
    with pytest.raises(InputError, match=r"loss: it is \S+, and \S+ where its gradient is"):
        gf.Problem.from_function(lambda t: unit * (t @ t) * (1 if t.requires_grad else 2), theta)


@pytest.mark.parametrize("unit", [1.0, 1e-20])
def test_rounding_where_a_loss_vanishes_is_no_other_loss(unit):
    """One way of two to compute it may give 0 and the other some last digits of its terms."""

    def function(t):
        return unit * ((t - 1).square().sum() + (1e-15 if t.requires_grad else 0.0))

    problem = gf.Problem.from_function(function, torch.ones(3, dtype=torch.float64))
    assert float(problem.loss(problem.theta0)) == 0


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 2)
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        found = self.encode(self.embed(tokens), src_key_padding_mask=tokens == 0)
        return self.head(found.mean(1))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_attention_takes_no_fast_path_of_its_own_without_a_gradient():
    tokens = torch.randint(1, 11, (24, 7), generator=torch.Generator().manual_seed(0))
    tokens[:, 5:], tokens[::2, 3:] = 0, 0
    labels = torch.arange(24) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Encoder().double().eval()
    problem = gf.Problem.from_module(module, functional.cross_entropy, tokens, labels)
    assert torch.backends.mha.get_fastpath_enabled()
    expected = float(functional.cross_entropy(module(tokens), labels).detach())
    value = problem.value_and_gradient(problem.theta0)[0]
    with torch.no_grad():
        loss = problem.loss(problem.theta0)
    assert float(value) == pytest.approx(expected, rel=1e-12)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert gf.LevelSet(problem).level == pytest.approx(expected, rel=1e-12)


class DropsOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        return self.inner(functional.dropout(x, 1e-4))


def test_rare_randomness_is_called_that():
    module = DropsOne().eval()
    found = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(20):
            torch.manual_seed(seed)
            try:
                gf.Problem.from_module(module, MSE, X, Y)
            except InputError as error:
                found.append(str(error))
    assert any("it draws random numbers" in said for said in found)
    assert not any("keeps something" in said for said in found)


def test_it_is_made_without_gradients_and_not_in_inference_mode():
    def residual(module, batch):
        t = batch.detach().requires_grad_()
        (slope,) = torch.autograd.grad(module(t).sum(), t, create_graph=True)
        return slope.square().sum(), len(t)

    expected = gf.Problem.from_batches(net(), residual, [X])
    with torch.no_grad():
        problem = gf.Problem.from_batches(net(), residual, [X])
        assert torch.equal(problem.loss(problem.theta0), expected.loss(expected.theta0))
    with (
        torch.inference_mode(),
        pytest.raises(InputError, match=r"inside torch.inference_mode\(\)"),
    ):
        gf.Problem.from_module(net(), MSE, X, Y)


class Checkpointed(Layers):
    """Computes its hidden layer again in the backward pass."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def hidden(self, x):
        return torch.utils.checkpoint.checkpoint(
            lambda y: self.activation(self.a(y)), x, use_reentrant=False
        )


class CheckpointedOut(Checkpointed):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(
            lambda y: super(Checkpointed, self).hidden(y).square() @ self.b.weight.T,
            x,
            use_reentrant=False,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("made", [Checkpointed, CheckpointedOut])
@pytest.mark.parametrize("activation", [functional.gelu, torch.tanh, torch.relu])
def test_a_gradient_that_is_partly_at_other_weights_is_refused(made, activation, dtype):
    message = r"module: .* not in the gradient .*checkpointing"
    with pytest.raises(InputError, match=message):
        gf.Problem.from_module(made(activation), MSE, X, Y, dtype=dtype)
    with pytest.raises(InputError, match=message):
        gf.Problem.from_module(made(activation), MSE, X, Y, 9, dtype=dtype)
    with pytest.raises(InputError, match=message):
        gf.Problem.from_batches(made(activation), summed, [(X, Y)], dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_of_a_few_examples_too(dtype):
    """Of the first chunk ReLU may have one derivative at both weights, where they are close."""
    for seed in range(20):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = Checkpointed(torch.relu)
        with pytest.raises(InputError, match="checkpointing and odeint_adjoint"):
            gf.Problem.from_module(module, MSE, X, Y, 9, dtype=dtype)


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_it_is_in_small_and_large_units_of_float32_too(unit):
    def loss(outputs, targets):
        return unit * MSE(outputs, targets)

    with pytest.raises(InputError, match="checkpointing and odeint_adjoint"):
        gf.Problem.from_module(Checkpointed(torch.tanh), loss, X, Y, dtype=torch.float32)


def test_what_is_checkpointed_and_does_not_move_is_taken():
    module = Checkpointed(functional.gelu)
    problem = gf.Problem.from_module(module, MSE, X, Y, parameters="b.*")
    theta = problem.theta0 + 0.1
    module.double().load_state_dict(problem.unflatten(theta), strict=False)
    loss = MSE(module(X.double()), Y.double())
    expected = torch.autograd.grad(loss, list(module.b.parameters()))
    found = problem.value_and_gradient(theta)[1]
    torch.testing.assert_close(found, torch.cat([g.reshape(-1) for g in expected]))


def test_a_loss_may_do_with_what_the_module_keeps_what_no_leaf_can():
    module = net()
    module.mean, module.last = torch.full((1,), 2.0), torch.zeros(())

    def shifted(outputs, targets):
        return MSE(outputs + torch.from_numpy(module.mean.numpy()), targets)

    def recorded(outputs, targets):
        loss = MSE(outputs, targets)
        module.last.copy_(loss.detach())
        return loss

    plain = gf.Problem.from_module(module, MSE, X, Y - 2)
    theta = plain.theta0
    expected = float(plain.loss(theta))
    problem = gf.Problem.from_module(module, shifted, X, Y)
    assert float(problem.loss(theta)) == pytest.approx(expected, rel=1e-6)
    problem = gf.Problem.from_module(module, recorded, X, Y - 2)
    assert float(problem.loss(theta)) == pytest.approx(expected, rel=1e-14)
    assert float(module.last) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(InputError, match=r"first evaluation failed \(of its own\)"):
        gf.Problem.from_module(module, lambda o, t: failing("of its own"), X, Y)


def failing(message):
    raise RuntimeError(message)


class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.frequencies = torch.rand(3)


def test_what_other_layers_keep_is_not_of_a_spare_one():
    module = Layers()
    module.rotary, module.pooler, module.mask = Rotary(), nn.Linear(2, 2), torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gf.Problem.from_module(module, MSE, X, Y).n_parameters == 71


class OfALayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.merging, self.spare, self.mask = Merged(), nn.Linear(2, 2), torch.ones(3)

    def forward(self, x):
        return self.merging(x)


def test_what_a_layer_has_merged_is_found_inside_a_network():
    module = OfALayer().eval()
    with torch.no_grad():
        module(X)
    message = r"module: merging.up, merging.down \(42 parameters of θ\) have .* keeps merged: "
    with pytest.warns(UserWarning, match=message):
        gf.Problem.from_module(module, MSE, X, Y)


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.spare, self.kept = nn.Parameter(torch.ones(1)), torch.ones(1)


def test_each_layer_is_looked_at_once_however_many_have_no_part(monkeypatch):
    module = Layers()
    module.layers = nn.ModuleList(Keeping() for _ in range(50))
    module.layers.insert(7, nn.Linear(1, 1))
    passes, tensors_kept = [], kept.tensors_kept
    monkeypatch.setattr(kept, "tensors_kept", lambda of: passes.append(of) or tensors_kept(of))
    message = r"module: layers.0.spare, .*, … \(50 parameters of θ\) have no part .* keeps kept: "
    with pytest.warns(UserWarning, match=message):
        gf.Problem.from_module(module, MSE, X, Y)
    assert len(passes) < 20


class Covariance(nn.Module):
    """A matrix that is positive definite next to its first value only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.matrix = nn.Parameter(0.05 * torch.eye(4) + 0.95)

    def forward(self, x):
        return self.layer(x), torch.linalg.cholesky((self.matrix + self.matrix.T) / 2)


def test_a_loss_need_not_have_a_value_far_from_theta0():
    def likelihood(outputs, targets):
        mean, factor = outputs
        scaled = torch.linalg.solve_triangular(factor, (targets - mean).T, upper=False)
        return scaled.square().sum(0).mean() / 2 + factor.diagonal().log().sum()

    module, targets = Covariance(), Y.expand(-1, 4)
    problem = gf.Problem.from_module(module, likelihood, X, targets)
    module.double()
    expected = likelihood(module(X.double()), targets.double())
    assert float(problem.loss(problem.theta0)) == pytest.approx(float(expected.detach()), rel=1e-12)
