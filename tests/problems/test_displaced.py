"""A loss that changes with the user's own weights is refused, and these stay the very same."""

import copy
import mmap
import signal
import threading
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems import dependence, displaced
from waiting import join, start, tell_of_waits, wait

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).sin()
MSE = functional.mse_loss


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def squared(tensors):
    return float(sum((np.asarray(t.detach()) ** 2).sum() for t in tensors))


USES = {
    "by detach": lambda m: sum(p.detach().double().square().sum() for p in m.parameters()),
    "by float": lambda m: sum(p.square().sum() for p in m.parameters()).item(),
    "by NumPy": lambda m: squared(m.parameters()),
    "by its state": lambda m: squared(m.state_dict().values()),
    "one weight": lambda m: m[2].bias.item(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_loss_that_uses_the_weights_out_of_its_graph_is_refused(use):
    module = net()
    message = "^loss: it uses the parameters of the module itself.*from_batches.*copy.deepcopy"
    with pytest.raises(InputError, match=message):
        gf.Problem.from_module(module, lambda o, t: MSE(o, t) + use(module), X, Y)

    def batch_loss(own, batch):
        return MSE(own(batch[0]), batch[1], reduction="sum") + use(module), len(batch[0])

    with pytest.raises(InputError, match=message):
        gf.Problem.from_batches(module, batch_loss, [(X, Y)])


def test_what_was_taken_of_them_before_is_refused_where_it_follows_them():
    module = net()
    view, state = module[0].weight.detach(), module.state_dict()
    for tensor in (view, state["0.weight"], view.numpy()):
        with pytest.raises(InputError, match="the parameters of the module itself"):
            gf.Problem.from_module(
                module, lambda o, t, w=tensor: MSE(o, t) + float((w**2).sum()), X, Y
            )
    number, kept = float(view.norm()), copy.deepcopy(module)
    problem = gf.Problem.from_module(
        module, lambda o, t: MSE(o, t) * number + squared(kept.parameters()), X, Y
    )
    before = problem.loss(problem.theta0)
    with torch.no_grad():
        view.mul_(2)
    assert torch.equal(before, problem.loss(problem.theta0))


def test_the_head_alone_may_be_trained_on_what_the_trunk_gives():
    module = net()
    trunk = module[0]
    problem = gf.Problem.from_module(
        module, lambda o, t: MSE(o, t) + trunk.weight.norm().item(), X, Y, parameters="2.*"
    )
    assert problem.n_parameters == 5
    with pytest.raises(InputError, match="the parameters of the module itself"):
        gf.Problem.from_module(
            module, lambda o, t: MSE(o, t) + module[2].bias.item(), X, Y, parameters="2.*"
        )


def test_buffers_are_fixed():
    module = net()
    module.register_buffer("weights", torch.full((), 3.0))
    problem = gf.Problem.from_module(module, lambda o, t: float(module.weights) * MSE(o, t), X, Y)
    plain = gf.Problem.from_module(module, MSE, X, Y)
    expected = 3 * float(plain.loss(plain.theta0))
    assert float(problem.loss(problem.theta0)) == pytest.approx(expected, rel=1e-14)


def state_of(module):
    return [
        (p.detach().numpy().tobytes(), p._version, p.requires_grad, p.data_ptr(), p.stride())
        for p in module.parameters()
    ]


@pytest.mark.parametrize("raises", [False, True])
def test_the_users_weights_are_the_same_afterwards(raises):
    module = net()
    MSE(module(X), Y).backward()
    # Bits that no arithmetic gives back.
    with torch.no_grad():
        module[0].weight[0, 0] = -0.0
        module[0].weight[0, 1] = torch.tensor([0x7FC01234], dtype=torch.int32).view(torch.float32)
    before, slope = state_of(module), module[0].weight.grad
    seen = []

    def evaluate():
        seen.append(module[2].weight.detach().clone())
        if raises and len(seen) == 1:
            raise ValueError("not there")
        return module[2].weight.detach().sum()

    weight = module[2].weight.detach().clone()
    assert displaced.has_part(module.parameters(), evaluate, weight.sum())
    assert not torch.equal(seen[0], weight)
    assert torch.equal(seen[1], weight)
    assert state_of(module) == before
    assert module[0].weight.grad is slope
    gf.Problem.from_module(net(), MSE, X, Y)


def read_only(tensor, path):
    np.save(path, tensor.detach().numpy())
    # The warning comes once in a process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.load(path, mmap_mode="r"))


def mapped(tensor, path):
    torch.save(tensor.detach(), path)
    return torch.load(path, mmap=True)


def shared(tensor, path):
    return tensor.detach().clone().share_memory_()


def in_inference(tensor, path):
    with torch.inference_mode():
        return nn.Parameter(tensor.detach().clone())


@pytest.mark.parametrize("kept", [mapped, shared, in_inference, read_only])
def test_memory_of_others_is_not_written_to(kept, tmp_path):
    module = net()
    found = kept(module[0].weight, tmp_path / "weight.npy")
    module[0].weight = found if found.requires_grad else nn.Parameter(found)
    where, bits = module[0].weight.data_ptr(), module[0].weight.detach().clone()
    memory, seen = module[0].weight.detach(), []

    def loss(outputs, targets):
        seen.append(memory.clone())
        return MSE(outputs, targets)

    plain = gf.Problem.from_module(net(), MSE, X, Y)
    problem = gf.Problem.from_module(module, loss, X, Y)
    assert torch.equal(problem.loss(problem.theta0), plain.loss(plain.theta0))
    assert module[0].weight.data_ptr() == where
    assert torch.equal(module[0].weight, bits)
    if kept is not in_inference:
        assert all(torch.equal(one, bits) for one in seen)
    with pytest.raises(InputError, match="the parameters of the module itself"):
        gf.Problem.from_module(
            module, lambda o, t: MSE(o, t) + module[0].weight.norm().item(), X, Y
        )


def test_memory_that_cannot_be_written_to_is_not_whosever_it_is():
    # Of no file, and of this process alone.
    memory = mmap.mmap(-1, 64, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = nn.Parameter(torch.frombuffer(memory, dtype=torch.float32))
    where = found.data_ptr()
    with displaced.elsewhere([found]):
        assert found.data_ptr() != where
        assert found.any()
    assert found.data_ptr() == where


def test_no_copy_of_weights_is_made_while_they_are_elsewhere(monkeypatch):
    module = net()
    expected = gf.Problem.from_module(module, MSE, X, Y).theta0
    found, come = [], threading.Event()

    def copied():
        found.append(gf.Problem.from_module(module, MSE, X, Y).theta0)
        come.set()

    tell_of_waits(monkeypatch, come.set)
    with displaced.elsewhere(module.parameters()):
        thread = start(copied)
        wait(come)
        assert not found
    join(thread)
    assert torch.equal(found[0], expected)


def test_what_a_module_keeps_is_watched_by_one_thread_at_a_time(monkeypatch):
    module = net()
    module.kept = torch.ones(2)
    inside, come = threading.Event(), threading.Event()

    def first():
        inside.set()
        wait(come)
        return torch.ones(())

    def second():
        copied.kept = torch.ones(2)
        come.set()
        return module.kept.sum()

    copied = copy.deepcopy(module)
    tell_of_waits(monkeypatch, come.set)
    other = start(lambda: dependence._check_live(module, copy.deepcopy(module), first))
    wait(inside)
    # Were the first still inside, what that has put there would be taken for the user's own.
    with pytest.raises(InputError, match="what the module itself keeps"):
        dependence._check_live(module, copied, second)
    join(other)


def test_weights_that_are_elsewhere_are_not_loaded_into(monkeypatch):
    module, come = net(), threading.Event()
    flow = gf.RegularizingFlow(
        gf.LevelSet(gf.Problem.from_module(module, MSE, X, Y)), gf.regularizers.squared_norm
    )
    ds = gf.walk(flow, t_end=0.01, stop=None)

    def load():
        gf.load_into(module, ds)
        come.set()

    tell_of_waits(monkeypatch, come.set)
    with displaced.elsewhere(module.parameters()):
        other = start(load)
        wait(come)
    join(other)
    found = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert torch.equal(found, torch.from_numpy(ds.theta.values[-1]).to(found))


def test_tied_and_frozen_weights_are_taken():
    module = net()
    module.append(nn.Linear(1, 4)).append(nn.Linear(4, 1))
    module[4].weight = module[2].weight
    module[4].requires_grad_(False)
    module[2].requires_grad_(True)
    problem = gf.Problem.from_module(module, MSE, X, Y)
    assert problem.n_parameters == sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_tensors_that_are_no_plain_ones_stay_as_they_are():
    rows, nowhere = torch.eye(3).to_sparse(), torch.ones(2, device="meta")
    ours = torch.ones(3).as_subclass(type("Ours", (torch.Tensor,), {}))
    parts = [nn.Parameter(t, requires_grad=False) for t in (rows, nowhere, ours)]
    plain = nn.Parameter(torch.ones(3))
    with displaced.elsewhere([*parts, plain]):
        assert not torch.equal(plain, torch.ones(3))
        assert torch.equal(parts[0].to_dense(), torch.eye(3))
        assert (parts[2] == 1).all()
    assert torch.equal(plain, torch.ones(3))


def test_weights_are_back_where_they_were_before_ctrl_c_takes_effect(monkeypatch):
    put_off, plain = displaced.interrupts.put_off, nn.Parameter(torch.ones(3))

    @contextmanager
    def pressed():
        with put_off():
            signal.raise_signal(signal.SIGINT)
            yield

    monkeypatch.setattr(displaced.interrupts, "put_off", pressed)
    with pytest.raises(KeyboardInterrupt), displaced.elsewhere([plain]):
        pass
    assert torch.equal(plain, torch.ones(3))


def test_plain_weights_are_moved_in_place_wherever_no_memory_is_known(monkeypatch):
    monkeypatch.setattr(displaced, "_is_anonymous", lambda address: False)
    plain = nn.Parameter(torch.ones(3))
    view = plain.detach()
    with displaced.elsewhere([plain]):
        assert not torch.equal(view, torch.ones(3))


def test_without_memory_nothing_is_said_of_a_part():
    def evaluate():
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        displaced.has_part([nn.Parameter(torch.ones(3))], evaluate, torch.ones(()))
