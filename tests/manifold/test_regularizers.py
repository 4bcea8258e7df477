"""Regularisation functions by name, with options, and as sums."""

import inspect

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import Loss, Weighted

R = gf.regularizers


@pytest.mark.parametrize("name", R.REGULARIZERS)
def test_a_function_and_its_name_are_the_same(network, name):
    function = R.REGULARIZERS[name]
    assert function.__name__ == name
    assert R.get(name) is function
    assert getattr(R, name) is function
    assert function().__name__ == name
    assert "sign" in inspect.signature(function).parameters


def test_only_the_tensors_that_a_pattern_names_are_in_it(network):
    problem, theta = network.problem, network.problem.theta0
    parts = problem.unflatten(theta)
    by_pattern = {
        "*.weight": ["0.weight", "2.weight"],
        ("0.*",): ["0.weight", "0.bias"],
        ("2.bias", "0.bias"): ["0.bias", "2.bias"],
    }
    for patterns, names in by_pattern.items():
        flow = gf.RegularizingFlow(network.level_set, R.squared_norm(tensors=patterns))
        state = flow.evaluate(theta)
        expected = sum(float((parts[n] ** 2).sum()) for n in names)
        assert state.regularizer == pytest.approx(expected, rel=1e-14)
        gradient = problem.unflatten(state.regularizer_gradient)
        for n, tensor in parts.items():
            assert torch.equal(gradient[n], 2 * tensor if n in names else 0 * tensor)
        again = gf.RegularizingFlow(network.level_set, R.get(flow.regularizer_name))
        assert torch.equal(again.evaluate(theta).velocity, state.velocity)
        assert again.regularizer_name == flow.regularizer_name


def test_sign_turns_it_round(network):
    theta = network.problem.theta0
    down, up = (
        gf.RegularizingFlow(network.level_set, R.quartic_norm(sign=sign)) for sign in (1, -1)
    )
    a, b = down.evaluate(theta), up.evaluate(theta)
    assert (b.regularizer, b.angle) == (-a.regularizer, pytest.approx(180 - a.angle))
    assert torch.equal(b.velocity, -a.velocity)
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    assert torch.equal(up.regularizer_hessian(theta)(v), -down.regularizer_hessian(theta)(v))
    assert (down.regularizer_name, up.regularizer_name) == ("quartic_norm", "quartic_norm:sign=-1")
    assert float(R.squared_norm(theta, sign=-1)) == -float(R.squared_norm(theta))


def test_a_sum_is_the_sum(network):
    theta = network.problem.theta0
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    terms = [
        (2.0, R.squared_norm(tensors="*.weight")),
        (-0.5, R.pseudo_huber_norm(delta=0.1)),
        (3.0, lambda theta: theta[0] ** 2),
    ]
    flow = gf.RegularizingFlow(network.level_set, R.weighted_sum(*terms))
    singles = [gf.RegularizingFlow(network.level_set, term) for _, term in terms]
    state, states = flow.evaluate(theta), [single.evaluate(theta) for single in singles]
    weights = [weight for weight, _ in terms]
    expected = sum(w * s.regularizer for w, s in zip(weights, states, strict=True))
    assert state.regularizer == pytest.approx(expected, rel=1e-14)
    gradient = sum(w * s.regularizer_gradient for w, s in zip(weights, states, strict=True))
    assert torch.allclose(state.regularizer_gradient, gradient, rtol=1e-14)
    products = [single.regularizer_hessian(theta)(v) for single in singles]
    product = sum(w * p for w, p in zip(weights, products, strict=True))
    assert torch.allclose(flow.regularizer_hessian(theta)(v), product, rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("pseudo_huber_norm:delta=0.01", "pseudo_huber_norm"),
        ("squared_norm:sign=-1,tensors=0.*|2.weight", "squared_norm:tensors=0.*|2.weight,sign=-1"),
        ("squared_norm + 0.5*quartic_norm", "1.0*squared_norm + 0.5*quartic_norm"),
        ("-1*squared_norm", "-1.0*squared_norm"),
        (
            "1e-3*pseudo_huber_norm:delta=1e-3 + 2*squared_norm:tensors=*.weight",
            "0.001*pseudo_huber_norm:delta=0.001 + 2.0*squared_norm:tensors=*.weight",
        ),
    ],
)
def test_what_a_text_gives_has_a_name_that_gives_it_again(text, canonical):
    assert R.get(text).__name__ == canonical
    assert R.get(canonical).__name__ == canonical


@pytest.mark.parametrize(
    ("name", "option"), [("l1", "epsilon"), ("squared_norm", "sign"), ("hessian_trace", "seed")]
)
def test_a_number_beyond_a_floats_is_refused_by_its_option(name, option):
    with pytest.raises(InputError, match=f"regularizer '{name}': {option}=1000.*0; use a"):
        getattr(R, name)(**{option: 10**400})
    with pytest.raises(InputError, match=r"the weight 1000.*0 is no use; give a finite one"):
        R.weighted_sum((10**400, R.l1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "'nothing' is not one of geoflow's own"),
        ("squared_norm:delta=1", r"'delta' is none of its options \(tensors, sign\)"),
        ("squared_norm:sign=0.5", "sign=0.5; use a whole number"),
        ("squared_norm:sign=2", "sign=2.0; use 1 or -1"),
        ("pseudo_huber_norm:delta=-1", "delta=-1.0; use a positive number"),
        ("pseudo_huber_norm:delta=nan", "delta=nan; use a number"),
        ("0*squared_norm", "the weight 0.0 is no use"),
        ("1..2*squared_norm", "a weight is no number"),
        ("1e999*l1", "the weight inf is no use"),
        ("squared_norm + 0.1*l1:eps=1", "'eps' is none of its options"),
        ("squared_norm + 0.1*nothing", "'nothing' is not one of geoflow's own"),
        ("squared_norm + quantization_error:bits=0", "bits=0; use 2 to 16"),
        ("", "'' is not one of geoflow's own"),
        ("squared_norm:tensors=", "each value a number"),
        ("loss", "R is the loss of a problem"),
    ],
)
def test_bad_names(text, message):
    with pytest.raises(InputError, match=message) as failure:
        R.get(text)
    assert "\n" not in str(failure.value)


def test_bad_options(network):
    with pytest.raises(InputError, match="tensors='head' is the name of no parameter tensor"):
        gf.RegularizingFlow(network.level_set, R.squared_norm(tensors="head"))
    with pytest.raises(InputError, match="which θ alone does not have"):
        R.squared_norm(network.problem.theta0, tensors="*.weight")
    with pytest.raises(InputError, match="without commas"):
        R.squared_norm(tensors="a,b")
    with pytest.raises(InputError, match=r"tensors=\[\] names none"):
        R.squared_norm(tensors=[])
    with pytest.raises(InputError, match="has no term"):
        R.weighted_sum()
    with pytest.raises(InputError, match="is no number"):
        R.weighted_sum((R.squared_norm, 1.0))
    for term in (R.l1, (1.0, R.l1, 2.0)):
        with pytest.raises(InputError, match=r"is no term; give \(weight, R\)"):
            R.weighted_sum(term)
    with pytest.raises(InputError, match=r"give \(weight, R\)"):
        gf.RegularizingFlow(network.level_set, R.weighted_sum)
    with pytest.raises(InputError, match="tensors=3; give patterns of names"):
        R.l1(tensors=3)
    with pytest.raises(InputError, match=r"theta=0.1 is no tensor"):
        R.l1(0.1)
    with pytest.raises(InputError, match="problem=3; give a Problem"):
        R.sharpness().bind(3)
    with pytest.raises(InputError, match="regularizer 'loss' is a function without theta0"):
        R.loss(lambda theta: theta.sum())
    with pytest.raises(InputError, match="regularizer=3 is none"):
        gf.RegularizingFlow(network.level_set, 3)


def test_numbers_of_numpy_are_numbers():
    assert R.l1(epsilon=np.float32(0.5)).__name__ == "l1:epsilon=0.5"
    assert R.quantization_error(bits=np.int64(5)).__name__ == "quantization_error:bits=5"
    assert R.weighted_sum((np.float32(2), R.l1)).__name__ == "2.0*l1"
    with pytest.raises(InputError, match="is no number"):
        R.weighted_sum((np.True_, R.l1))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda theta: (theta * theta.detach()).sum(), "its gradient says"),
        (lambda theta: (theta - 1e9).sqrt().sum(), "gave nan at theta0"),
        (lambda theta: theta, r"gave \[.*it must return a finite scalar"),
        (lambda theta: theta.mul_(2).sum(), "regularizer: its first evaluation failed .* in-place"),
        (lambda theta: {}["mine"], "regularizer: its first evaluation failed"),
        (lambda theta: theta @ torch.ones(len(theta)), "regularizer: evaluated in float64"),
        (lambda theta: theta @ torch.ones(3).double(), "regularizer: its first evaluation"),
        (lambda theta, other: theta.sum(), "regularizer: its first evaluation .*'other'"),
        (lambda theta: theta.sum() + 0j, r"gave \(.*it must return a finite scalar"),
    ],
)
def test_the_terms_of_a_sum_are_checked_as_they_are_alone(network, function, message, sign):
    with pytest.raises(InputError, match=message):
        gf.RegularizingFlow(network.level_set, function)
    with pytest.raises(InputError, match=message):
        gf.RegularizingFlow(
            network.level_set, R.weighted_sum((1.0, R.squared_norm), (sign * 0.5, function))
        )


def test_a_sum_that_is_no_number_is_refused(network):
    with pytest.raises(InputError, match="gave inf at theta0"):
        gf.RegularizingFlow(network.level_set, R.get("1e308*l1 + 1e308*squared_norm"))


def test_a_gradient_that_is_none_at_theta0_is_refused():
    problem = gf.Problem.from_function(lambda t: ((t - 1) ** 2).sum(), torch.zeros(3).double())
    with pytest.raises(InputError, match="a gradient of norm nan"):
        gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: theta.square().sqrt().sum())


@pytest.mark.parametrize("text", ["squared_norm", "l1:epsilon=0.1", "1.0*squared_norm + 0.1*l1"])
def test_a_flow_takes_the_text_of_an_r(network, text):
    flow = gf.RegularizingFlow(network.level_set, text)
    same = gf.RegularizingFlow(network.level_set, R.get(text))
    assert flow.regularizer_name == same.regularizer_name == R.get(text).__name__
    theta = network.problem.theta0
    assert torch.equal(flow.evaluate(theta).velocity, same.evaluate(theta).velocity)
    with pytest.raises(InputError, match=r"'squared' is not one of geoflow's own .*squared_n"):
        gf.RegularizingFlow(network.level_set, "squared")


def test_the_terms_of_a_sum_are_whatever_a_flow_takes():
    assert R.weighted_sum((1, R.l1), (2, "l1:epsilon=0.1")).__name__ == (
        "1.0*l1 + 2.0*l1:epsilon=0.1"
    )
    for wrong in (3, None, [R.l1], R):
        with pytest.raises(InputError, match=r"weighted_sum: .* is none; give a callable"):
            R.weighted_sum((1, R.l1), (2, wrong))
    with pytest.raises(InputError, match="'nothing' is not one of geoflow's own"):
        R.weighted_sum((1, "nothing"))


@pytest.mark.parametrize("weights", [(3.0,), (-0.5,), (3.0, 2.0)])
def test_products_of_a_weighted_loss_are_weighted_once(weights):
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    loss = Loss(gf.Problem.from_function(lambda t: (t**4).sum(), theta))
    summed = Weighted([(weight, loss) for weight in weights])
    product = summed.hessian(theta, summed.value_and_gradient(theta)[1])
    v = torch.tensor([1.0, -1.0], dtype=torch.float64)
    expected = sum(weights) * 12 * theta**2 * v
    assert product(v).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
