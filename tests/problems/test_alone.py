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
from geoflow.problems import alone, capture, displaced, grouped, modules
from geoflow.problems.parts import output_chunks
from geoflow.problems.reach import reachable
from waiting import TIMEOUT, join, start, tell_of_waits, wait

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(1, keepdim=True).sin()

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


def path_norm(monkeypatch):
    def forward(self, x):
        MEETING.between()
        return x

    # What activations become there.
    monkeypatch.setattr(nn.Identity, "forward", forward)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    problem = gf.Problem.from_module(net, nn.functional.mse_loss, X, Y)
    bound = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.path_norm)._bound
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
    "path_norm": path_norm,
}


@pytest.mark.parametrize("case", CASES)
def test_a_thread_that_waits_in_the_network_goes_on_with_its_own_parameters(case, monkeypatch):
    evaluate = CASES[case](monkeypatch) if case == "path_norm" else CASES[case]()
    theta = of_module().theta0
    points = {"first": theta + 0.1, "second": theta - 0.7}
    expected = {name: evaluate(point) for name, point in points.items()}
    inside, come, leave, done = (threading.Event() for _ in range(4))
    found, met = {}, []

    def between():
        if threading.current_thread().name == "first":
            inside.set()
            wait(leave)
        elif not leave.is_set():
            # Here beside the first, which now goes on with these parameters.
            met.append(True)
            come.set()
            done.wait(TIMEOUT)

    def run():
        name = threading.current_thread().name
        found[name] = evaluate(points[name])
        (done if name == "first" else come).set()

    monkeypatch.setattr(MEETING, "between", between)
    tell_of_waits(monkeypatch, come.set)
    first = start(run, "first")
    wait(inside)
    second = start(run, "second")
    wait(come)
    leave.set()
    join(first, second)
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
            found = list(pool.map(evaluate, points, timeout=TIMEOUT))
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
    come, others = threading.Event(), []

    def elsewhere():
        problem.loss(theta + 1)
        come.set()

    def between():
        if threading.current_thread() is threading.main_thread():
            others.append(start(elsewhere))
            wait(come)

    monkeypatch.setattr(MEETING, "between", between)
    tell_of_waits(monkeypatch, come.set)
    assert torch.equal(problem.loss(theta), expected)
    join(*others)


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
        found = list(pool.map(lambda problem: problem.loss(theta), todo, timeout=TIMEOUT))
    assert found == expected


def of_method(loss):
    class Model:
        def loss(self, theta):
            return loss(theta)

    return gf.Problem.from_function(Model().loss, of_module().theta0)


# Of a function of its own and the value that it adds to it.
ADDING = {
    "functions": lambda more: gf.Problem.from_function(
        lambda theta: theta @ theta + more(), of_module().theta0
    ),
    "methods": lambda more: of_method(lambda theta: theta @ theta + more()),
    "modules": lambda more: gf.Problem.from_module(
        module(), lambda outputs, y: (outputs - y).square().mean() + more(), X, Y
    ),
    "batches": lambda more: gf.Problem.from_batches(
        module(), lambda net, batch: (summed(net, batch)[0] + more() * len(X), len(X)), [(X, Y)]
    ),
}


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("kind", ADDING)
def test_a_ring_of_losses_that_evaluate_one_another_does_not_wait_for_ever(kind, n):
    meeting, met, found, problems = threading.Barrier(n), set(), {}, []

    def more(k):
        # Each thread evaluates one, which evaluates the next, which another thread is in.
        if threading.current_thread().name != f"ring {k}":
            return 0.0
        if k not in met:
            met.add(k)
            meeting.wait(TIMEOUT)
        with torch.no_grad():
            return problems[(k + 1) % n].loss(theta)

    problems += [ADDING[kind](lambda k=k: more(k)) for k in range(n)]
    theta = problems[0].theta0
    alone_there = float(problems[0].loss(theta))
    join(
        *(
            start(lambda k=k: found.update({k: float(problems[k].loss(theta))}), f"ring {k}")
            for k in range(n)
        )
    )
    assert found == {k: pytest.approx(2 * alone_there, rel=1e-14) for k in range(n)}
    assert not alone._WAITING


def test_methods_of_one_object_do_not_put_parameters_into_its_network_at_once(monkeypatch):
    class Model:
        net = USERS

        def loss(self, theta):
            return own_r(theta)

        def penalty(self, theta):
            return 2 * own_r(theta)

    model, theta = Model(), of_module().theta0
    loss, penalty = (alone.Alone(f) for f in (model.loss, model.penalty))
    inside, leave, found = threading.Event(), threading.Event(), []
    expected = loss(theta)

    def between():
        if threading.current_thread() is not threading.main_thread() and not leave.is_set():
            inside.set()
            wait(leave)

    monkeypatch.setattr(MEETING, "between", between)
    tell_of_waits(monkeypatch, leave.set)
    other = start(lambda: found.append(loss(theta)))
    wait(inside)
    penalty(theta + 1)
    assert leave.is_set()
    join(other)
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize("last", ["copies", "looks"])
def test_a_copy_inside_of_a_function_that_is_looked_at_elsewhere_waits_for_nobody(
    last, monkeypatch
):
    net, meeting, met, found = module(), threading.Barrier(2), set(), {}
    asked = threading.Event()
    tell_of_waits(monkeypatch, asked.set)

    def meet():
        if (name := threading.current_thread().name) not in met:
            met.add(name)
            meeting.wait(TIMEOUT)
            if name == last:
                wait(asked)

    def own(theta):
        if threading.current_thread().name == "copies":
            meet()
            copied = modules.duplicate(net)
            return theta @ theta + copied.first.weight.sum()
        return theta @ theta

    function, theta = alone.Alone(own), torch.ones(2, dtype=torch.float64)

    def looked_at():
        meet()
        return function(theta)

    def look():
        found["has"] = displaced.has_part(net.parameters(), looked_at, theta @ theta)

    with torch.no_grad():
        expected = 2 + net.first.weight.sum()

    join(
        start(lambda: found.update(copies=function(theta).detach()), "copies"), start(look, "looks")
    )
    assert torch.equal(found["copies"], expected)
    assert found["has"] is False


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda problem: pickle.loads(pickle.dumps(problem))]
)
def test_a_copy_that_is_made_while_it_is_evaluated_evaluates_as_it_does(copied, monkeypatch):
    problem = of_module()
    expected = problem.loss(problem.theta0)
    inside, leave = threading.Event(), threading.Event()

    def between():
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            wait(leave)

    monkeypatch.setattr(MEETING, "between", between)
    # Inside vmap the module has tensors that nobody can copy.
    thetas = torch.stack([problem.theta0 + 1, problem.theta0 + 2])
    other = start(lambda: problem.losses(thetas))
    wait(inside)
    tell_of_waits(monkeypatch, leave.set)
    try:
        assert torch.equal(copied(problem).loss(problem.theta0), expected)
    finally:
        leave.set()
        join(other)


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
import torch
torch.set_float32_matmul_precision("high")
import geoflow as gf
from geoflow.problems import displaced

waits = []

def loss(theta):
    if threading.current_thread() in waits:
        inside.set()
        leave.wait(60)
    return (theta**4).sum()

problem = gf.Problem.from_function(loss, torch.ones(3))
theta = problem.theta0
expected = problem.loss(theta)
inside, leave = threading.Event(), threading.Event()

def other():
    with problem.budget(1), displaced.in_place():
        problem.hvp(theta, theta)

waits.append(threading.Thread(target=other, daemon=True))
waits[0].start()
assert inside.wait(60)
child = os.fork()
if not child:
    signal.alarm(60)
    right = torch.equal(problem.loss(theta), expected)
    with problem.budget(3), displaced.in_place():
        problem.hvp(theta, theta)
    # Settings of the threads that are not there are given back.
    right = right and torch.get_float32_matmul_precision() == "high"
    os._exit(0 if right else 3)
status = os.waitpid(child, 0)[1]
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow  # it imports PyTorch anew
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_in_the_middle_evaluates():
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_replayed_graph_takes_and_gives_for_one_thread_at_a_time(monkeypatch):
    captured, inside, come = capture.Captured(), threading.Event(), threading.Event()
    captured._given = torch.zeros(2)
    captured._found = torch.zeros(()), torch.zeros(2)

    class Graph:
        def replay(self):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                wait(come)
            captured._found[0].copy_(captured._given.sum())
            captured._found[1].copy_(captured._given)
            come.set()

    captured._graph, found = Graph(), []
    tell_of_waits(monkeypatch, come.set)
    other = start(lambda: found.append(captured(None, torch.ones(2))))
    wait(inside)
    assert captured(None, 2 * torch.ones(2))[0] == 4
    join(other)
    assert found[0][0] == 2
    assert torch.equal(found[0][1], torch.ones(2))


def test_a_graph_is_recorded_once(monkeypatch):
    inside, come, recorded = threading.Event(), threading.Event(), []

    class Recording(capture.Captured):
        def _record(self, evaluation, theta, expected):
            recorded.append(theta)
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                wait(come)
            come.set()
            self._tried = True

    captured, one = Recording(), torch.ones(2)
    tell_of_waits(monkeypatch, come.set)
    other = start(lambda: captured(lambda theta: (theta.sum(), theta), one))
    wait(inside)
    captured(lambda theta: (theta.sum(), theta), one)
    join(other)
    assert len(recorded) == 1


def test_functions_that_are_guarded_are_seen_through():
    assert any(one is USERS for one in reachable(alone.Alone(own_r)))
    assert alone.Alone(own_r) == alone.Alone(own_r)
    assert pickle.loads(pickle.dumps(alone.Alone(own_r))).function is own_r
