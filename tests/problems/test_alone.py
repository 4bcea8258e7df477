"""Several threads evaluate one problem: forward passes one at a time, each at its own θ."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call

import geoflow as gf
from geoflow.problems import alone, capture, grouped
from geoflow.problems.parts import output_chunks
from geoflow.problems.reach import reachable

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(1, keepdim=True).sin()
TIMEOUT = 60

# What threads do between the two layers.
MEETING = SimpleNamespace(between=lambda: None)


class Meeting(nn.Module):
    """Two layers, between which a thread may wait."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        hidden = self.first(x).tanh()
        MEETING.between()
        return self.second(hidden)


def module():
    torch.manual_seed(1)
    return Meeting().double()


USERS = module()


def summed(net, batch):
    return nn.functional.mse_loss(net(batch[0]), batch[1], reduction="sum"), len(batch[0])


def of_module(**options):
    return gf.Problem.from_module(module(), nn.functional.mse_loss, X, Y, **options)


def of_batches():
    return gf.Problem.from_batches(module(), summed, [(X[:7], Y[:7]), (X[7:], Y[7:])])


def penalised(net, batch):
    total, weight = summed(net, batch)
    (slope,) = torch.autograd.grad(total, net.first.weight, create_graph=True)
    return total + slope.square().sum(), weight


def of_function():
    apart = of_module().unflatten
    return gf.Problem.from_function(
        lambda theta: (functional_call(USERS, apart(theta), (X,)) - Y).square().mean(),
        of_module().theta0,
    )


def own_r(theta):
    return functional_call(USERS, UNFLATTEN(theta), (X,)).square().mean()


UNFLATTEN = of_module().unflatten


def gradient(problem):
    return lambda theta: problem.value_and_gradient(theta)[1]


def product(problem):
    v = torch.linspace(-1, 1, problem.n_parameters, dtype=torch.float64)
    problem.hvp(problem.theta0, v)
    return lambda theta: problem.hvp(theta, v)


def gauss_newton(problem):
    v = torch.linspace(-1, 1, problem.n_parameters, dtype=torch.float64)
    problem.gauss_newton_product(problem.theta0, v)
    return lambda theta: problem.gauss_newton_product(theta, v)


def many_points(problem):
    return lambda theta: problem.losses(torch.stack([theta, 2 * theta]))


def of_regularizer(regularizer):
    problem = of_module()
    bound = gf.RegularizingFlow(gf.LevelSet(problem), regularizer)._bound
    return lambda theta: bound.value_and_gradient(theta)[1]


def chunk_of_outputs():
    net, unflatten = module(), of_module().unflatten
    return lambda theta: next(output_chunks(net, unflatten(theta), X))


CASES = {
    "loss": lambda: of_module().loss,
    "gradient": lambda: gradient(of_module()),
    "gradient in chunks": lambda: gradient(of_module(batch_size=5)),
    "gradient of batches": lambda: gradient(of_batches()),
    "gradient with inner derivatives": lambda: gradient(
        gf.Problem.from_batches(module(), penalised, [(X, Y)])
    ),
    "gradient of a function": lambda: gradient(of_function()),
    "product": lambda: product(of_module()),
    "product of a function": lambda: product(of_function()),
    "Gauss-Newton product": lambda: gauss_newton(of_module()),
    "losses of each example": lambda: grouped.each_example(of_module()).loss,
    "many points": lambda: many_points(of_module()),
    "jacobian_norm": lambda: of_regularizer(gf.regularizers.jacobian_norm),
    "an R of one's own": lambda: of_regularizer(own_r),
    "outputs": chunk_of_outputs,
}


@pytest.mark.parametrize("case", CASES)
def test_a_thread_that_waits_in_the_network_goes_on_with_its_own_parameters(case, monkeypatch):
    evaluate = CASES[case]()
    theta = of_module().theta0
    points = {"first": theta + 0.1, "second": theta - 0.7}
    expected = {name: evaluate(point) for name, point in points.items()}
    inside = {name: threading.Event() for name in points}
    leave, found = threading.Event(), {}

    def between():
        name = threading.current_thread().name
        inside[name].set()
        if name == "first":
            assert leave.wait(TIMEOUT)
        else:
            # Were it here beside the first, that would go on with these parameters.
            done.wait(1)

    def run():
        name = threading.current_thread().name
        found[name] = evaluate(points[name])
        if name == "first":
            done.set()

    done = threading.Event()
    monkeypatch.setattr(MEETING, "between", between)
    first, second = (threading.Thread(target=run, name=name) for name in points)
    first.start()
    assert inside["first"].wait(TIMEOUT)
    second.start()
    met = inside["second"].wait(0.3)
    leave.set()
    for thread in (first, second):
        thread.join(TIMEOUT)
    for name in points:
        assert torch.equal(found[name], expected[name]), name
    assert not met


def test_threads_find_what_one_alone_finds():
    problem, net = of_module(batch_size=5), of_batches()
    points = [problem.theta0 * (1 + 0.1 * k) for k in range(40)]
    v = points[1]
    for evaluate in (
        problem.loss,
        gradient(problem),
        gradient(net),
        product(problem),
        lambda theta: problem.third_product(theta, v)[1],
    ):
        expected = [evaluate(theta) for theta in points]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(evaluate, points))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_problems_of_modules_of_their_own_do_not_wait_for_one_another(monkeypatch):
    problems = {name: of_module() for name in "ab"}
    meeting, thetas = threading.Barrier(2), {n: p.theta0 for n, p in problems.items()}
    monkeypatch.setattr(MEETING, "between", lambda: meeting.wait(TIMEOUT))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: problems[name].loss(thetas[name]), "ab"))
    assert torch.equal(*found)


def test_backward_passes_go_on_beside_each_other():
    meeting = threading.Barrier(2)

    class Met(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            if threading.current_thread() is not threading.main_thread():
                meeting.wait(TIMEOUT)
            return slope

    def loss(outputs, targets):
        return (Met.apply(outputs) - targets).square().mean()

    problem = gf.Problem.from_module(module(), loss, X, Y)
    theta = problem.theta0
    expected = problem.value_and_gradient(theta)[1]
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(gradient(problem), [theta, theta]):
            assert torch.equal(found, expected)


def test_what_a_layer_keeps_is_that_of_the_outputs_whose_loss_it_is(monkeypatch):
    kept = SimpleNamespace()

    class Keeping(Meeting):
        def forward(self, x):
            kept.hidden = self.first(x)
            return self.second(kept.hidden.tanh())

    def loss(outputs, targets):
        MEETING.between()
        return (outputs - targets).square().mean() + kept.hidden.square().mean()

    torch.manual_seed(1)
    problem = gf.Problem.from_module(Keeping().double(), loss, X, Y)
    theta = problem.theta0
    expected = problem.loss(theta)
    started = threading.Event()
    other = threading.Thread(target=lambda: (started.set(), problem.loss(theta + 1)))

    def between():
        if threading.current_thread() is threading.main_thread():
            other.start()
            assert started.wait(TIMEOUT)
            other.join(0.2)

    monkeypatch.setattr(MEETING, "between", between)
    assert torch.equal(problem.loss(theta), expected)
    other.join()


def test_losses_that_evaluate_one_another_do_not_wait_for_ever():
    inner = of_module()
    outer = [
        gf.Problem.from_function(lambda t, k=k: k * inner.loss(t) + t @ t, inner.theta0)
        for k in (1.0, 2.0)
    ]
    theta = inner.theta0
    todo = [inner, *outer] * 10
    expected = [problem.loss(theta) for problem in todo]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda problem: problem.loss(theta), todo))
    assert found == expected


def test_copies_that_are_made_while_it_is_evaluated_evaluate_as_it_does(monkeypatch):
    problem = of_module()
    expected = problem.loss(problem.theta0)
    inside, leave = threading.Event(), threading.Event()

    def between():
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert leave.wait(TIMEOUT)

    monkeypatch.setattr(MEETING, "between", between)
    # Inside vmap the module has tensors that nobody can copy.
    thetas = torch.stack([problem.theta0 + 1, problem.theta0 + 2])
    other = threading.Thread(target=lambda: problem.losses(thetas))
    other.start()
    assert inside.wait(TIMEOUT)
    threading.Timer(0.2, leave.set).start()
    for copied in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert torch.equal(copied.loss(problem.theta0), expected)
    other.join()


def test_a_lock_is_that_of_an_object_and_goes_with_it():
    one, other = module(), module()
    assert alone.lock_of(one) is alone.lock_of(one)
    assert alone.lock_of(one) is not alone.lock_of(other)
    # What cannot be referred to weakly, or hashed, has one too.
    assert alone.lock_of((1, 2)) is alone.lock_of((3,))
    number = id(one)
    assert number in alone._LOCKS
    del one
    assert number not in alone._LOCKS
    assert not any("lock" in name.lower() for name in vars(other))


FORKED = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import torch
import test_alone as t

problem = t.of_module()
theta = problem.theta0
problem.hvp(theta, theta)
expected = problem.loss(theta)
inside, leave = threading.Event(), threading.Event()

def between():
    if threading.current_thread() is not threading.main_thread():
        inside.set()
        leave.wait(60)

def other():
    with problem.budget(1):
        problem.hvp_of_it(theta + 1)

problem.hvp_of_it = lambda at: t.gradient(problem)(at)
t.MEETING.between = between
threading.Thread(target=other).start()
assert inside.wait(60)
child = os.fork()
if not child:
    signal.alarm(60)
    right = torch.equal(problem.loss(theta), expected)
    with problem.budget(3):
        problem.hvp(theta, theta)
    # Settings of the threads that are not there are given back.
    right = right and torch.get_float32_matmul_precision() == "high"
    os._exit(0 if right else 3)
status = os.waitpid(child, 0)[1]
leave.set()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_in_the_middle_evaluates():
    script = 'import torch; torch.set_float32_matmul_precision("high")\n' + FORKED
    folder = os.path.dirname(__file__)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, folder], capture_output=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_replayed_graph_takes_and_gives_for_one_thread_at_a_time():
    captured, inside, leave = capture.Captured(), threading.Event(), threading.Event()
    captured._given = torch.zeros(2)
    captured._found = torch.zeros(()), torch.zeros(2)

    class Graph:
        def replay(self):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                leave.wait(0.3)
            captured._found[0].copy_(captured._given.sum())
            captured._found[1].copy_(captured._given)

    captured._graph, found = Graph(), []
    other = threading.Thread(target=lambda: found.append(captured(None, torch.ones(2))))
    other.start()
    assert inside.wait(TIMEOUT)
    assert captured(None, 2 * torch.ones(2))[0] == 4
    other.join()
    assert found[0][0] == 2
    assert torch.equal(found[0][1], torch.ones(2))


def test_functions_that_are_guarded_are_seen_through():
    assert any(one is USERS for one in reachable(alone.Alone(own_r)))
    assert alone.Alone(own_r) == alone.Alone(own_r)
    assert pickle.loads(pickle.dumps(alone.Alone(own_r))).function is own_r
