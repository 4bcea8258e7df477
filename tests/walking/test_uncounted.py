"""What a walk measures on its way costs it nothing: neither in its counts nor of its budget."""

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import EvaluationLimitError, InputError

COUNTS = ("n_gradient", "n_hvp")


def walk(flow, **options):
    return gf.walk(flow, t_end=0.05, stop=None, **options)


def test_gradients_that_an_observable_takes_are_no_cost(network):
    problem = network.problem
    before = problem.counts

    def gradient_norm(theta):
        return float(problem.value_and_gradient(theta)[1].norm())

    def curvature(theta):
        return float(theta @ problem.hvp(theta, theta))

    plain = walk(network)
    measured = walk(network, observables={"g": gradient_norm, "c": curvature})
    for name in (*COUNTS, "theta"):
        np.testing.assert_array_equal(measured[name], plain[name])
    np.testing.assert_allclose(measured["g"], measured["gradient_norm"], rtol=1e-12)
    # And so it is with what the problem itself counts.
    spent = {n: 2 * int(plain[f"n_{n}"][-1]) for n in before}
    first = {"gradient": 1, "hvp": 1}
    assert {n: problem.counts[n] - before[n] - first[n] for n in before} == spent


def test_an_observable_may_take_more_than_the_whole_budget(network):
    def sharpness(theta):
        operator = gf.analysis.loss_hessian(network.problem, theta)
        return float(gf.analysis.extreme_eigenvalues(operator, 1).values[0])

    budget = int(walk(network)["n_gradient"][-1])
    ds = walk(network, observables={"sharpness": sharpness}, max_evaluations=budget)
    assert ds.attrs["status"] == "t_end"


@pytest.mark.parametrize("rate", [False, True])
def test_gradients_that_an_event_takes_are_no_cost(network, rate):
    def plain(theta):
        return float(theta @ theta)

    def costly(theta):
        return float(theta @ theta) + 0 * float(network.problem.value_and_gradient(theta)[0])

    threshold = 0.0 if rate else float(walk(network)["regularizer"][:3].mean())
    found = [
        walk(network, events=[gf.Event(function, value=threshold, rate=rate, name="there")])
        for function in (plain, costly)
    ]
    for name in COUNTS:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    assert rate or (found[0]["event"] > 0).any()


def test_nor_are_those_of_one_of_several_constraints():
    inputs, targets = references.small_data()
    problems = [
        gf.Problem.from_module(
            references.small_module(),
            torch.nn.functional.cross_entropy,
            inputs[half],
            targets[half],
        )
        for half in (slice(None, None, 2), slice(1, None, 2))
    ]
    flow = gf.RegularizingFlow(gf.LevelSet(problems), gf.regularizers.squared_norm)
    plain = walk(flow)
    one = walk(flow, observables={"g": lambda t: float(problems[1].value_and_gradient(t)[0])})
    np.testing.assert_array_equal(one["n_gradient"], plain["n_gradient"])


def test_a_walk_resumed_counts_as_one_that_was_not_cut_off(network, tmp_path):
    observables = {"g": lambda t: float(network.problem.value_and_gradient(t)[1].norm())}
    whole = walk(network, observables=observables)
    part = int(whole["n_gradient"][-1]) // 2
    file = tmp_path / "walk.nc"
    walk(network, observables=observables, max_evaluations=part, archive=file).close()
    with gf.resume(file, network, observables=observables, max_evaluations=10**4) as ds:
        for name in (*COUNTS, "theta", "g"):
            np.testing.assert_array_equal(ds[name], whole[name])


def test_a_path_too_counts_without_its_observables(network):
    level = network.level_set.level
    plain, measured = (
        gf.regularization_path(network, [2 * level], observables=observables)
        for observables in (
            {},
            {"g": lambda t: float(network.problem.value_and_gradient(t)[1].norm())},
        )
    )
    for name in COUNTS:
        np.testing.assert_array_equal(measured[name], plain[name])


def test_a_budget_holds_again_after_what_is_not_counted(network):
    problem = network.problem
    with problem.budget(1):
        with problem.uncounted():
            for _ in range(3):
                problem.value_and_gradient(problem.theta0)
            # Another walk would mix its counts with those of this one.
            with pytest.raises(InputError, match="another walk is evaluating it"):
                problem.budget(1).__enter__()
        problem.value_and_gradient(problem.theta0)
        with pytest.raises(EvaluationLimitError):
            problem.value_and_gradient(problem.theta0)


def test_a_problem_is_an_observable_by_its_loss(network):
    other = references.small_network().problem
    ds = walk(network, observables={"other": other})
    losses = [float(other.loss(torch.from_numpy(theta))) for theta in ds["theta"].values]
    np.testing.assert_array_equal(ds["other"], losses)


def test_what_an_observable_raises_is_told_from_what_is_no_number(network):
    def fails(theta):
        return 1 / 0

    with pytest.raises(InputError, match="at theta0 raised ZeroDivisionError: division by zero"):
        walk(network, observables={"o": fails})
    with pytest.raises(InputError, match="each number by a function of its own"):
        walk(network, observables={"o": lambda theta: {"a": 1.0}})
    with pytest.raises(InputError, match="of letters, digits and underscores"):
        walk(network, observables={"test loss": lambda theta: 1.0})
