"""Analyses of a network as its user has it: wrapped, partly fixed, of several inputs or outputs."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.nn import functional as F

import geoflow as gf
import references
from geoflow.analysis import between
from geoflow.analysis.networks import predictions, symmetry
from geoflow.analysis.networks.layers import layers_of
from geoflow.errors import InputError

X, Y = references.small_data()
SETS = {"train": X}


def net():
    return references.small_module()


def deep(seed=0):
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 0.5 * references._normal(parameter.numel(), seed + number).view_as(
            parameter
        )
    return module


def walked(module, inputs=X, loss_fn=F.cross_entropy, **options):
    problem = gf.Problem.from_module(module, loss_fn, inputs, Y, **options)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    return gf.walk(flow, t_end=0.3, stop=None, max_snapshots=4)


def at_ends(module, ds, evaluate):
    """What the network gives at the first and the last snapshot, put there by ``load_into``."""
    found = []
    for snapshot in (0, -1):
        gf.load_into(module, ds, snapshot)
        with torch.no_grad():
            found.append(evaluate(module))
    return found


def compiled(module):
    return torch.compile(module, backend="eager")


def part_compiled(module):
    module[0] = compiled(module[0])
    return module


WRAPPED = {
    "compiled": compiled,
    "data parallel": nn.DataParallel,
    "both": lambda module: nn.DataParallel(compiled(module)),
    "a part": part_compiled,
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrappers_are_seen_through(wrap):
    module = WRAPPED[wrap](net())
    ds = walked(module)
    given = dict(module.named_parameters())
    for along, more in ((predictions.along, (SETS,)), (symmetry.along, ())):
        made = along(ds, module, *more, classification=True)
        plain = along(ds, net(), *more, classification=True)
        assert all(np.array_equal(made[n], plain[n], equal_nan=True) for n in plain.data_vars)
    theta = torch.tensor(ds["theta"].values[-1])
    copy = theta.clone()
    first = layers_of(net()).hidden[0]
    for part in (first.incoming, first.outgoing):
        copy[part] = -theta[part[::-1].copy()]
    assert torch.equal(between.align(module, copy, theta), theta)
    assert dict(module.named_parameters()) == given


@pytest.mark.parametrize("wrapped", [compiled, nn.DataParallel], ids=["compiled", "data parallel"])
def test_a_hook_on_a_wrapper_is_not_lost_in_silence(wrapped):
    ds, module = walked(net()), wrapped(net())
    module.register_forward_hook(lambda module, given, found: 2 * found)
    for call in (
        lambda: predictions.along(ds, module, SETS, classification=True),
        lambda: symmetry.along(ds, module, classification=True),
        lambda: layers_of(module),
    ):
        with pytest.raises(InputError, match="has a forward hook, and is taken off"):
            call()


@pytest.mark.parametrize("how", ["patterns", "requires_grad"])
def test_what_a_walk_kept_fixed_is_that_of_the_network(how):
    module = deep()
    if how == "patterns":
        ds = walked(module, parameters=["2.*", "4.*"])
    else:
        module[0].requires_grad_(False)
        ds = walked(module)
    found = predictions.along(ds, module, SETS, classification=True)
    first, last = at_ends(module, ds, lambda m: m.double()(X))
    rms = float((first - last).square().mean().sqrt())
    assert rms > 1e-3
    assert found["output_distance"].values[0, 0, -1] == pytest.approx(rms, rel=1e-9)
    # The same network, now free as a whole, or not at all.
    for free in (True, False):
        again = predictions.along(ds, deep().requires_grad_(free), SETS, classification=True)
        assert np.allclose(again["output_distance"], found["output_distance"], atol=1e-7)


def test_units_of_which_a_weight_is_fixed_have_no_other_copy():
    module = deep().double()
    ds = walked(module, parameters=["2.*", "4.*"])
    (layer,) = layers_of(module, ["2.*", "4.*"]).hidden
    theta = torch.tensor(ds["theta"].values[0])
    # Units of the second hidden layer in another order and of other signs: the same network.
    order = [3, 0, 4, 1, 2]
    copy = theta.clone()
    for part in (layer.incoming, layer.outgoing):
        copy[part] = -theta[part[order]]

    def outputs(flat):
        problem = gf.Problem.from_module(module, F.cross_entropy, X, Y, parameters=["2.*", "4.*"])
        return torch.func.functional_call(module, problem.unflatten(flat), (X,)).detach()

    assert float((copy - theta).norm()) > 1
    assert torch.allclose(outputs(copy), outputs(theta), atol=1e-13)
    aligned = between.align(module, copy, theta, parameters=["2.*", "4.*"])
    assert torch.equal(aligned, theta)
    found = symmetry.along(ds, module, classification=True)
    assert found["symmetric_distance"].attrs["bound"] == "exact"
    # The same of a network whose first layer is frozen.
    frozen = deep().double()
    frozen[0].requires_grad_(False)
    assert torch.equal(between.align(frozen, copy, theta), theta)
    with pytest.raises(InputError, match=r"theta has the shape \(47,\).*71 parameters, or param"):
        between.align(module, copy, theta)
    with pytest.raises(InputError, match="parameters='none' is the name of no parameter"):
        layers_of(module, "none")


def test_of_fixed_weights_the_last_bias_alone_shifts_all_logits():
    module = deep()
    names = ["0.*", "2.*", "4.bias"]
    layers = layers_of(module, names)
    assert [len(layer.incoming) for layer in layers.hidden] == [6]
    assert layers.output.shape == (2, 1)
    ds = walked(module, parameters=names)
    found = symmetry.along(ds, module, classification=True)["shift_fraction"].values[0]
    step = np.diff(ds["theta"].values[:2], axis=0)[0]
    assert found == pytest.approx(2 * step[-2:].mean() ** 2 / (step @ step), rel=1e-12)
    assert layers_of(module, ["0.*", "2.*"]).output is None


def test_a_network_without_the_walks_tensors_is_refused_in_one_line():
    ds = walked(net())
    for module, said in (
        (nn.Linear(3, 2), r"moved 0.weight of shape \(8, 3\), and the module has none of that"),
        (net()[:2], r"moved 2.weight of shape \(2, 8\), and the module has none"),
        (deep(), r"moved 0.weight of shape \(8, 3\), and the module has \(6, 3\)"),
    ):
        for along, more in ((predictions.along, (SETS,)), (symmetry.along, ())):
            with pytest.raises(InputError, match=said) as caught:
                along(ds, module, *more, classification=True)
            assert "\n" not in str(caught.value)


class Two(nn.Module):
    """Of two inputs, with logits and the activations before them."""

    def __init__(self, give=lambda logits, hidden: logits):
        super().__init__()
        self.body, self.head, self.give = nn.Linear(3, 5), nn.Linear(5, 2), give

    def forward(self, left, right):
        hidden = torch.tanh(self.body(torch.cat([left, right], dim=1)))
        return self.give(self.head(hidden), hidden)


def two(*give):
    torch.manual_seed(0)
    return Two(*give).double()


LEFT, RIGHT = X[:, :1], X[:, 1:]


@pytest.mark.parametrize(
    "inputs",
    [
        (LEFT, RIGHT),
        [LEFT, RIGHT],
        {"right": RIGHT, "left": LEFT},
        {"left": LEFT.numpy(), "right": RIGHT.float()},
    ],
    ids=["tuple", "list", "dict", "arrays"],
)
def test_inputs_may_be_several(inputs):
    module = two()
    ds = walked(module, (LEFT, RIGHT))
    found = predictions.along(ds, module, {"x": inputs}, classification=True, batch_size=7)
    first, last = at_ends(module, ds, lambda m: m(LEFT, RIGHT))
    rms = float((first - last).square().mean().sqrt())
    assert found["output_distance"].values[0, 0, -1] == pytest.approx(rms, rel=1e-5)


def of_logits(found, targets):
    return F.cross_entropy(found["logits"], targets)


GIVES = {
    "dict": (lambda logits, hidden: {"logits": logits}, lambda found: found["logits"]),
    "tuple with nothing": (lambda logits, hidden: (logits, None), lambda found: found[0]),
}


@pytest.mark.parametrize("give", GIVES)
def test_logits_may_be_in_a_tree(give):
    made, logits = GIVES[give]
    module = two(made)
    ds = walked(module, (LEFT, RIGHT), lambda found, y: F.cross_entropy(logits(found), y))
    sets = {"x": (LEFT, RIGHT)}
    found = predictions.along(ds, module, sets, classification=True, batch_size=10)
    same = predictions.along(ds, two(), sets, classification=True)
    for name in same.data_vars:
        assert np.allclose(found[name], same[name], rtol=1e-12, atol=1e-15)


def test_of_several_outputs_the_distance_is_over_all_numbers_and_the_classes_are_not_known():
    both = two(lambda logits, hidden: {"logits": logits, "hidden": hidden})
    ds = walked(both, (LEFT, RIGHT), of_logits)
    sets = {"x": (LEFT, RIGHT)}
    found = predictions.along(ds, both, sets, classification=False, batch_size=10)
    first, last = (
        torch.cat([one["logits"].flatten(), one["hidden"].flatten()])
        for one in at_ends(both, ds, lambda m: m(LEFT, RIGHT))
    )
    rms = float((first - last).square().mean().sqrt())
    assert found["output_distance"].values[0, 0, -1] == pytest.approx(rms, rel=1e-12)
    message = r"returns 2 tensors \(outputs\['logits'\], outputs\['hidden'\]\), and classification"
    with pytest.raises(InputError, match=message):
        predictions.along(ds, both, sets, classification=True)
    # The remedy.
    both.register_forward_hook(lambda module, given, found: found["logits"])
    hooked = predictions.along(ds, both, sets, classification=True)
    plain = predictions.along(ds, two(), sets, classification=True)
    assert np.allclose(hooked["js_divergence"], plain["js_divergence"], atol=1e-15)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (
            lambda logits, hidden: (logits, logits.sum()),
            r"outputs\[1\] is a number of all",
        ),
        (lambda logits, hidden: "logits", "in what it gives, a str, no tensor is found"),
        (lambda logits, hidden: logits * 1j, "complex128; let the module return real numbers"),
        (
            lambda logits, hidden: logits.flatten()[: 20 if logits[0, 0] == FIRST[0] else 30],
            r"have shape \(20,\) at one snapshot and \(30,\) at another",
        ),
    ],
)
def test_outputs_without_a_distance_are_refused_in_one_line(give, message):
    ds = walked(two(), (LEFT, RIGHT))
    gf.load_into(plain := two(), ds, 0)
    with torch.no_grad():
        FIRST[0] = plain(LEFT, RIGHT)[0, 0]
    with pytest.raises(InputError, match=message) as caught:
        predictions.along(ds, two(give), {"x": (LEFT, RIGHT)}, classification=False)
    assert "\n" not in str(caught.value)
    assert "tensor(" not in str(caught.value)


FIRST = [0.0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((LEFT, RIGHT[:5]), r"inputs\['x'\] has shape \(24, 1\) and \(5, 2\); give one example"),
        ((LEFT, torch.tensor(1.0)), r"has shape \(24, 1\) and \(\); give one example or more"),
        ((), r"inputs\['x'\] holds no tensor; give one example or more"),
        ((LEFT, "right"), r"inputs\['x'\]\[1\] is a str; give a tensor"),
        ("left", r"inputs\['x'\]='left' is of type str; give a tensor of examples, or a tuple"),
        (X, r"inputs\['x'\] of shape \(24, 3\) and torch.float64: module does not take them"),
        (
            (LEFT, LEFT),
            r"of shape \(24, 1\) and torch.float64 and \(24, 1\) and torch.float64",
        ),
        ({"left": LEFT, "other": RIGHT}, "module does not take them .*other"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused_in_one_line(inputs, message):
    ds = walked(two(), (LEFT, RIGHT))
    with pytest.raises(InputError, match=message) as caught:
        predictions.along(ds, two(), {"x": inputs}, classification=True)
    assert "\n" not in str(caught.value)
    assert "tensor(" not in str(caught.value)


class Language(nn.Module):
    """A token after each of the positions before: outputs (N, T, V)."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7)

    def forward(self, tokens):
        seen = self.embed(tokens).cumsum(dim=1)
        return self.out(torch.tanh(self.mix(seen)))


def test_classes_lie_along_the_axis_that_is_said():
    torch.manual_seed(0)
    module = Language().double()
    generator = torch.Generator().manual_seed(1)
    tokens, following = (torch.randint(7, (9, 4), generator=generator) for _ in range(2))

    def loss_fn(found, targets):
        return F.cross_entropy(found.reshape(-1, 7), targets.reshape(-1))

    problem = gf.Problem.from_module(module, loss_fn, tokens, following)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, t_end=0.3, stop=None, max_snapshots=4)
    sets = {"train": tokens}
    with pytest.raises(InputError, match=r"shape \(9, 4, 7\): any axis .* give class_dim, 1 or -1"):
        predictions.along(ds, module, sets, classification=True)
    found = predictions.along(ds, module, sets, classification=True, class_dim=-1)
    same = predictions.along(ds, module, sets, classification=True, class_dim=2)
    first, last = (o.numpy() for o in at_ends(module, ds, lambda m: m(tokens)))
    p, q = (np.exp(o) / np.exp(o).sum(axis=-1, keepdims=True) for o in (first, last))
    here = {n: float(found[n][0, 0, -1]) for n in ("js_divergence", "disagreement")}
    divergence = (jensenshannon(p, q, axis=-1, base=2) ** 2).mean()
    assert here["js_divergence"] == pytest.approx(divergence, rel=1e-6)
    assert here["disagreement"] == (first.argmax(-1) != last.argmax(-1)).mean() > 0
    assert all(np.array_equal(found[n], same[n]) for n in found.data_vars)
    # As cross_entropy takes them.
    turned = torch.tensor(np.stack([first, last])).transpose(2, 3)
    over = predictions.between(turned, True, 1)
    assert over["js_divergence"][0, 1] == pytest.approx(divergence, rel=1e-6)
    assert over["disagreement"][0, 1] == here["disagreement"]
    assert math.isclose(over["output_distance"][0, 1], float(found["output_distance"][0, 0, -1]))
    with pytest.raises(InputError, match=r"shape \(9, 7, 4\): any axis .* give class_dim"):
        predictions.between(turned, True)


@pytest.mark.parametrize(
    ("shape", "class_dim", "message"),
    [
        ((5, 3), 0, r"class_dim=0 and outputs of shape \(5, 3\); use 1$"),
        ((5, 3), -2, r"class_dim=-2 and outputs of shape \(5, 3\); use 1$"),
        ((5, 3), 2, r"class_dim=2 and outputs of shape \(5, 3\); use 1$"),
        ((5, 3, 2, 2), None, r"\(5, 3, 2, 2\): any axis .* give class_dim, 1 or 2 or -1$"),
        ((5, 3, 2, 2), 4, "use 1 or 2 or 3$"),
        ((5, 3, 1), -1, "logits of two classes or more"),
        ((5,), 1, "class_dim=1 and outputs of shape .*none: each example is one number"),
        ((5,), None, "logits of two classes or more"),
    ],
)
def test_an_axis_without_classes_is_refused(shape, class_dim, message):
    with pytest.raises(InputError, match=message):
        predictions.between(torch.zeros(2, *shape), True, class_dim)


def test_of_pairs_of_numbers_the_axis_need_not_be_said():
    ds = walked(net())
    found = predictions.along(ds, net(), SETS, classification=True)
    for class_dim in (1, -1):
        same = predictions.along(ds, net(), SETS, classification=True, class_dim=class_dim)
        assert all(np.array_equal(found[n], same[n]) for n in found.data_vars)
    with pytest.raises(InputError, match="class_dim=1 with classification=False; leave one out"):
        predictions.along(ds, net(), SETS, classification=False, class_dim=1)
