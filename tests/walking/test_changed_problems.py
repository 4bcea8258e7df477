"""A problem that uses what has been written into since it was made begins no walk."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import geoflow as gf
import own_flow
from geoflow.errors import InputError

CHANGED = r"^problem: its loss at theta0 was .* when it was made, and is .*make the problem anew$"


@pytest.fixture
def data():
    torch.manual_seed(0)
    x = torch.randn(24, 4, dtype=torch.float64)
    return (
        x,
        x.sum(1, keepdim=True).sin(),
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)),
    )


def batch_loss(module, batch):
    return F.mse_loss(module(batch[0]), batch[1], reduction="sum"), len(batch[1])


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, outputs, targets):
        return self.scale * F.mse_loss(outputs, targets)


def of_closure(x, y, module, live):
    return gf.Problem.from_module(module, lambda o, t: live * F.mse_loss(o, t), x, y)


def of_default(x, y, module, live):
    def loss(o, t, scale=live):
        return scale * F.mse_loss(o, t)

    return gf.Problem.from_module(module, loss, x, y, batch_size=7)


def of_object(x, y, module, live):
    return gf.Problem.from_module(module, Scaled(live), x, y)


def of_function(x, y, module, live):
    return gf.Problem.from_function(lambda t: live * t.square().sum(), torch.ones(3).double())


def of_array(x, y, module, live):
    array = live.numpy()
    loss = lambda o, t: float(array) * F.mse_loss(o, t)  # noqa: E731
    return gf.Problem.from_module(module, loss, x, y, dtype=torch.float32)


def of_batches(x, y, module, live):
    # In float64 nothing of it is converted, and so nothing copied.
    scaled = lambda m, b: (live * batch_loss(m, b)[0], len(b[1]))  # noqa: E731
    return gf.Problem.from_batches(module, scaled, [(x[:9], y[:9]), (x[9:], y[9:])])


MADE = [of_closure, of_default, of_object, of_function, of_array, of_batches]


@pytest.mark.parametrize("make", MADE)
def test_what_is_written_into_afterwards_is_found(make, data):
    live = torch.tensor(2.0, dtype=torch.float64)
    problem = make(*data, live)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    before = gf.walk(flow, max_evaluations=20)
    live.mul_(1.01)
    for begin in (lambda: gf.walk(flow), lambda: flow.start(problem.theta0)):
        with pytest.raises(InputError, match=CHANGED):
            begin()
    # From elsewhere too, where L(θ0) is no part of the walk.
    with pytest.raises(InputError, match=CHANGED):
        flow.start(1.1 * problem.theta0)
    with pytest.raises(InputError, match=CHANGED):
        gf.LevelSet(problem)
    live.div_(1.01)
    again = gf.walk(flow, max_evaluations=20)
    assert (again["theta"].values == before["theta"].values).all()


def test_batches_that_are_written_into_are_not_those_of_the_hash(data):
    x, y, module = data
    problem = gf.Problem.from_batches(module, batch_loss, [(x[:9], y[:9]), (x[9:], y[9:])])
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    x.mul_(3)
    with pytest.raises(InputError, match=CHANGED):
        gf.walk(flow)


def test_a_walk_is_not_taken_up_with_what_has_changed(data, tmp_path):
    x, y, module = data
    problem = gf.Problem.from_batches(module, batch_loss, [(x, y)])
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    path = tmp_path / "walk.nc"
    gf.walk(flow, max_evaluations=60, archive=path).close()
    # Less than a record tells: another machine makes as much.
    y.add_(1e-9)
    with pytest.raises(InputError, match=CHANGED):
        gf.resume(path, flow, max_evaluations=120)
    y.sub_(1e-9)
    gf.resume(path, flow, max_evaluations=120).close()


def test_nor_is_a_path_begun_or_gone_on_with(tmp_path):
    live = torch.tensor(1.0, dtype=torch.float64)
    centre = torch.tensor([3.0, 0.0], dtype=torch.float64)
    problem = gf.Problem.from_function(
        lambda t: live * (t - centre).square().sum(), torch.tensor([1.0, 0.5]).double()
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    path = tmp_path / "path.nc"
    gf.regularization_path(flow, [3.0], archive=path).close()
    live.add_(1e-9)
    with pytest.raises(InputError, match=CHANGED):
        gf.regularization_path(flow, [3.0])
    with pytest.raises(InputError, match=CHANGED):
        gf.resume_path(path, flow, levels=[2.0])


def test_of_several_constraints_each_is_looked_at(data):
    x, y, module = data
    live = torch.tensor(2.0, dtype=torch.float64)
    first = gf.Problem.from_module(module, nn.MSELoss(), x[:12], y[:12])
    second = gf.Problem.from_module(module, lambda o, t: live * F.mse_loss(o, t), x[12:], y[12:])
    flow = gf.RegularizingFlow(gf.LevelSet([first, second]), gf.regularizers.squared_norm)
    gf.walk(flow, max_evaluations=20)
    live.mul_(1.01)
    with pytest.raises(InputError, match=CHANGED):
        gf.walk(flow, max_evaluations=20)


def test_and_of_groups_of_examples(data):
    x, _, _ = data
    live = torch.tensor(2.0, dtype=torch.float64)
    module = nn.Linear(4, 2)
    loss = lambda o, t: live * F.cross_entropy(o, t)  # noqa: E731
    problem = gf.Problem.from_module(module, loss, x, (x[:, 0] > 0).long())
    flow = gf.RegularizingFlow(gf.LevelSet(gf.by_class(problem)), gf.regularizers.squared_norm)
    gf.walk(flow, max_evaluations=20)
    live.mul_(1.01)
    with pytest.raises(InputError, match=CHANGED):
        gf.walk(flow, max_evaluations=20)


def test_a_problem_that_is_descended_is_looked_at_too(data):
    x, y, module = data
    live = torch.tensor(2.0, dtype=torch.float64)
    problem = gf.Problem.from_module(module, nn.MSELoss(), x[:12], y[:12])
    other = gf.Problem.from_module(module, lambda o, t: live * F.mse_loss(o, t), x[12:], y[12:])
    flow = gf.RegularizingFlow(
        gf.LevelSet(problem), gf.regularizers.weighted_sum((1.0, other), (0.1, "squared_norm"))
    )
    gf.walk(flow, max_evaluations=20)
    live.mul_(1.01)
    with pytest.raises(InputError, match=CHANGED):
        gf.walk(flow, max_evaluations=20)


def test_so_is_that_of_a_flow_of_ones_own():
    live = torch.tensor(0.5, dtype=torch.float64)
    theta0 = torch.tensor([1.0, 0.5, -0.5], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: live * (t @ t), theta0)
    flow = own_flow.GeodesicFlow(gf.LevelSet(problem), torch.tensor([0.0, 1.0, 1.0]).double())
    gf.walk(flow, "dopri5", t_end=0.1, stop=None)
    live.mul_(1.01)
    with pytest.raises(InputError, match=CHANGED):
        gf.walk(flow, "dopri5", t_end=0.1, stop=None)


def test_it_takes_no_evaluation_where_a_walk_starts():
    calls = []

    def loss(t):
        calls.append(1)
        return t.square().sum()

    problem = gf.Problem.from_function(loss, torch.ones(3, dtype=torch.float64))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (t - 2).pow(4).sum())
    calls.clear()
    flow.start(problem.theta0)
    assert (len(calls), problem.counts["gradient"]) == (1, 1)
    # From elsewhere one without gradient, and not counted.
    flow.level_set.levels[:] = float(loss(0.9 * problem.theta0))
    calls.clear()
    flow.start(0.9 * problem.theta0)
    assert (len(calls), problem.counts["gradient"]) == (2, 2)


def test_tensors_among_the_arguments_of_a_partial_are_copied(data):
    x, y, module = data
    y = (y > 0).double()
    weight, scales = torch.tensor([2.0], dtype=torch.float64), [torch.ones(1).double()]
    array, seen = np.ones(1), []

    def loss(o, t, scales, *, pos_weight, array, seen):
        seen.append(1)
        mean = F.binary_cross_entropy_with_logits(o, t, pos_weight=pos_weight)
        return float(array[0]) * scales[0].squeeze() * mean

    arguments = {"pos_weight": weight, "array": array, "scales": scales, "seen": seen}
    problem = gf.Problem.from_module(module, partial(loss, **arguments), x, y)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    before = gf.walk(flow, max_evaluations=20)
    weight.fill_(1.5)
    array.fill(3)
    again = gf.walk(flow, max_evaluations=20)
    assert (again["theta"].values == before["theta"].values).all()
    # Containers are the user's own, which the loss may write into.
    seen.clear()
    problem.loss(problem.theta0)
    assert seen
    scales[0].fill_(2)
    with pytest.raises(InputError, match="has been changed since"):
        gf.walk(flow, max_evaluations=20)


def test_copies_and_pickles_remember_and_older_ones_tell_nothing(data):
    x, y, module = data
    problem = gf.Problem.from_module(module, nn.MSELoss(), x, y)
    there = pickle.loads(pickle.dumps(problem))
    for one in (there, copy.deepcopy(problem)):
        flow = gf.RegularizingFlow(gf.LevelSet(one), gf.regularizers.squared_norm)
        one.theta0.mul_(1.1)
        with pytest.raises(InputError, match=CHANGED):
            gf.walk(flow)
    # As those of before have it.
    del there._first, there._rounding
    flow = gf.RegularizingFlow(gf.LevelSet(there), gf.regularizers.squared_norm)
    there.theta0.mul_(1.1)
    gf.walk(flow, max_evaluations=20)


def test_another_number_of_threads_is_no_change():
    torch.manual_seed(0)
    x = torch.randn(3000, 40)
    module = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 3))
    y = x[:, :3].argmax(1)
    threads = torch.get_num_threads()
    for dtype in (torch.float64, torch.float32):
        problem = gf.Problem.from_module(module, F.cross_entropy, x, y, dtype=dtype)
        flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
        try:
            torch.set_num_threads(3)
            flow.start(problem.theta0)
        finally:
            torch.set_num_threads(threads)
