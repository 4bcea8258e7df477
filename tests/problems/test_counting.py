"""A budget, and what is left uncounted, belong to the thread that takes them; counts to all."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import EvaluationLimitError, InputError
from geoflow.problems import counting
from geoflow.problems.counting import own_counts, own_evaluations, shared_budget
from geoflow.problems.several import Problems
from references import small_network
from waiting import TIMEOUT, Told, join, start, wait

COUNTS = ("n_gradient", "n_hvp")


def problem(shift=0.0):
    theta0 = torch.linspace(1, 2, 4, dtype=torch.float64)
    return gf.Problem.from_function(lambda theta: ((theta - shift) ** 4).sum(), theta0)


def elsewhere(function):
    """What a function gives in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(TIMEOUT)


def spend(one, times=1):
    for _ in range(times):
        one.value_and_gradient(one.theta0)


def test_what_other_threads_evaluate_is_counted_and_takes_nothing_from_a_budget():
    one = problem()
    one.hvp(one.theta0, one.theta0)
    with one.budget(3):
        spend(one)
        elsewhere(lambda: (spend(one, 5), one.hvp(one.theta0, one.theta0)))
        spend(one, 2)
        with pytest.raises(EvaluationLimitError):
            spend(one)
        # Nor is it limited by one that is spent.
        elsewhere(lambda: spend(one))
    assert one.counts == {"gradient": 9, "hvp": 2}
    assert own_counts(one) == {"gradient": 3, "hvp": 1}
    assert own_evaluations(one) == 5
    assert one.evaluations == 13


def test_what_one_thread_leaves_uncounted_wipes_out_nothing_of_another():
    one = problem()
    with one.uncounted():
        spend(one, 2)
        elsewhere(lambda: spend(one, 3))
    assert one.counts["gradient"] == 3
    assert own_counts(one)["gradient"] == 0


def test_a_budget_that_is_taken_while_another_thread_measures_holds_on_when_it_is_done():
    one, inside, leave = problem(), threading.Event(), threading.Event()

    def measure():
        with one.uncounted():
            spend(one)
            inside.set()
            wait(leave)

    other = start(measure)
    wait(inside)
    with one.budget(1):
        spend(one)
        leave.set()
        join(other)
        with pytest.raises(EvaluationLimitError):
            spend(one)
    assert one.counts["gradient"] == 1


def test_a_walk_that_is_refused_changes_nothing_of_the_one_that_walks():
    one = problem()

    def refused():
        with pytest.raises(InputError, match="another walk is evaluating it"):
            one.budget(10).__enter__()

    with one.budget(2):
        spend(one)
        elsewhere(refused)
        spend(one)
        with pytest.raises(EvaluationLimitError):
            spend(one)

    def allowed():
        with one.budget(1):
            spend(one)

    elsewhere(allowed)


@pytest.mark.parametrize(
    ("evaluations", "said"),
    [
        ("10", r"evaluations='10'; give a whole number"),
        (math.nan, r"evaluations=nan; give a whole number"),
        (2.5, r"evaluations=2\.5; give a whole number"),
        (True, r"evaluations=True; give a whole number"),
        (-5, r"evaluations=-5; use at least 0"),
    ],
)
def test_a_budget_is_a_whole_number_and_one_that_is_refused_is_not_taken(evaluations, said):
    one = problem()
    with pytest.raises(InputError, match=f"^{said}$"):
        one.budget(evaluations).__enter__()
    for whole in (1, 1.0, np.int64(1)):
        with one.budget(whole):
            spend(one)
            with pytest.raises(EvaluationLimitError, match=r"budget of 1 evaluations"):
                spend(one)


def test_nor_is_one_of_problems_whose_counts_fail(monkeypatch):
    first, second = problem(), problem(0.5)
    together = Problems([first, second])

    def failing(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("geoflow.problems.several.own_counts", failing)
        with pytest.raises(KeyboardInterrupt):
            together.budget(10).__enter__()
    with together.budget(2):
        spend(together)


def test_nor_is_one_where_ctrl_c_comes_as_it_is_taken(monkeypatch):
    one = problem()

    class Interrupted(dict):
        def setdefault(self, *item):
            super().setdefault(*item)
            raise KeyboardInterrupt

    taken = Interrupted()
    monkeypatch.setattr(counting, "_WALKING", taken)
    with pytest.raises(KeyboardInterrupt):
        one.budget(10).__enter__()
    assert not taken
    spend(one, 11)


def test_what_a_budget_allows_is_said_and_not_where_it_ends():
    first, second = problem(), problem(0.5)
    spend(first, 500)
    with first.budget(3):
        spend(first, 3)
        with pytest.raises(EvaluationLimitError, match=r"^the budget of 3 evaluations is spent"):
            spend(first)
    with shared_budget([first, second], 2):
        spend(second, 2)
        with pytest.raises(EvaluationLimitError, match=r"^the budget of 2 evaluations of them all"):
            spend(first)


def test_a_budget_that_is_taken_where_nothing_counts_is_one():
    one = problem()
    with one.uncounted(), one.budget(1):
        spend(one)
        with pytest.raises(EvaluationLimitError):
            spend(one)
    assert one.evaluations == 0


def test_a_budget_of_several_is_that_of_a_thread():
    first, second = problem(), problem(0.5)
    with shared_budget([first, second], 2):
        elsewhere(lambda: (spend(first, 3), spend(second, 3)))
        spend(first)
        spend(second)
        with pytest.raises(EvaluationLimitError, match="2 evaluations of them all"):
            spend(first)
    together = Problems([first, second])
    with together.budget(2):
        elsewhere(lambda: spend(first, 4))
        spend(together)
        with pytest.raises(EvaluationLimitError):
            spend(together)


def test_none_is_lost_where_two_threads_count(monkeypatch):
    one, come, others = problem(), threading.Event(), []

    def count():
        one._count(gradient=1)
        come.set()

    class Count(int):
        def __add__(self, more):
            # In the middle of a count another thread counts.
            if not others:
                others.append(start(count))
                wait(come)
            return int(self) + more

    monkeypatch.setattr(counting, "_CHANGING", Told(come.set))
    one._n_gradient = Count(2)
    one._count(gradient=1)
    join(*others)
    assert one.counts["gradient"] == 4


def test_a_walk_whose_problem_others_use_is_the_walk_alone():
    network = small_network()
    used = network.problem

    def busy(theta, others):
        # In the middle of a step another thread evaluates, makes a flow, and measures.
        def use():
            spend(used, 3)
            used.hvp(used.theta0, used.theta0)
            with used.uncounted():
                spend(used)

        if others:
            elsewhere(use)
        return theta @ theta

    walked = []
    for others in (False, True):
        flow = gf.RegularizingFlow(network.level_set, partial(busy, others=others))
        walked.append(gf.walk(flow, max_evaluations=60, stop=None))
    for name in (*COUNTS, "theta", "regularizer", "train_loss"):
        np.testing.assert_array_equal(walked[0][name], walked[1][name])
    assert walked[0].attrs["status"] == walked[1].attrs["status"] == "max_evaluations"


def test_a_path_counts_its_own():
    network = small_network()
    used, level = network.problem, network.level_set.level

    def use(theta):
        elsewhere(lambda: spend(used, 2))
        return 0.0

    plain, measured = (
        gf.regularization_path(network, [2 * level], observables=observables)
        for observables in ({}, {"use": use})
    )
    for name in COUNTS:
        np.testing.assert_array_equal(measured[name], plain[name])
