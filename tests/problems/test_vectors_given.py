"""θ and vectors that are none of a problem's: refused by name, whatever they are."""

import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import InputError

# By what is wrong with it.
WRONG = {
    "shape": lambda t: t[:-1],
    "dtype": lambda t: t.float(),
    "device": lambda t: t.to("meta"),
    "layout": lambda t: t.to_sparse(),
    "of type ndarray": lambda t: t.numpy(),
    "of type list": lambda t: t.tolist(),
    "of type NoneType": lambda t: None,
}


@pytest.fixture(scope="module")
def problem():
    return references.small_network().problem


@pytest.fixture(scope="module")
def groups(problem):
    return gf.by_class(problem)


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", ["loss", "value_and_gradient", "unflatten"])
def test_a_theta_that_is_none_is_named(problem, groups, name, what):
    for one in (problem, groups):
        with pytest.raises(InputError, match=f"^theta.* {what}"):
            getattr(one, name)(WRONG[what](one.theta0))


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", ["hvp", "third_product", "gauss_newton_product"])
def test_a_vector_that_is_none_is_named(problem, name, what):
    theta, before = problem.theta0, problem.counts
    with pytest.raises(InputError, match=f"^v.* {what}"):
        getattr(problem, name)(theta, WRONG[what](theta))
    with pytest.raises(InputError, match=f"^theta.* {what}"):
        getattr(problem, name)(WRONG[what](theta), theta)
    assert problem.counts == before


def test_losses_of_what_are_no_points_are_refused_and_of_none_there_are_none(problem):
    theta = problem.theta0
    with pytest.raises(InputError, match=r"thetas=.* is of type list; give a torch"):
        problem.losses([theta])
    for wrong in (theta[None, :-1], theta[None].float(), theta[None].to_sparse()):
        with pytest.raises(InputError, match="theta"):
            problem.losses(wrong)
        with pytest.raises(InputError, match="theta"):
            problem.losses(wrong.to_dense()[:0].float())
    none = problem.losses(theta.expand(0, -1))
    assert (none.shape, none.dtype) == ((0,), theta.dtype)
    assert torch.allclose(problem.losses(theta[None])[0], problem.loss(theta), rtol=1e-12)
