import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.analysis.networks import predictions, symmetry
from geoflow.analysis.networks.layers import layers_of
from geoflow.errors import InputError
from geoflow.experiments import networks


def dense(*sizes, activation=nn.ReLU):
    parts = []
    for n_in, n_out in itertools.pairwise(sizes):
        parts += [nn.Linear(n_in, n_out), activation()]
    return drawn(nn.Sequential(*parts[:-1]))


def drawn(module, seed=0):
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            values = references._normal(parameter.numel(), seed + number)
            parameter.data = 0.5 * values.view_as(parameter)
    return module.double()


def flat(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).numpy()


def outputs(module, theta, inputs):
    parameters, start = {}, 0
    for name, p in module.named_parameters():
        part = torch.as_tensor(theta[start : start + p.numel()])
        parameters[name] = part.view(p.shape)
        start += p.numel()
    return torch.func.functional_call(module, parameters, (inputs,)).detach()


def rescaled(module, scales):
    """Flat θ after every unit of every hidden layer is rescaled, written out by tensor."""
    weighted = [m for m in module if isinstance(m, (nn.Linear, nn.Conv2d))]
    tensors = [[m.weight.detach(), m.bias.detach()] for m in weighted]
    start = 0
    for here, after in itertools.pairwise(tensors):
        n = len(here[0])
        a = scales[start : start + n]
        start += n
        here[0] = here[0] * a.view(-1, *[1] * (here[0].ndim - 1))
        here[1] = here[1] * a
        block = after[0].shape[1] // n
        columns = a.repeat_interleave(block)
        after[0] = after[0] / columns.view(1, -1, *[1] * (after[0].ndim - 2))
    return torch.cat([t.reshape(-1) for pair in tensors for t in pair])


def convolutional():
    module = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.LeakyReLU(0.2)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 4, 5), nn.ReLU(), nn.Linear(5, 2)),
    )
    return drawn(module), references._normal(6 * 12 * 12, 9).view(6, 1, 12, 12)


CASES = {
    "dense": lambda: (dense(4, 7, 6, 5, 3), references._normal(40, 9).view(10, 4)),
    "convolutional": convolutional,
}


@pytest.mark.parametrize("case", CASES)
def test_rescaling_directions_are_the_tangents_of_the_orbit(case):
    module, inputs = CASES[case]()
    layers = layers_of(module)
    theta = flat(module)
    units = sum(len(layer.incoming) for layer in layers.hidden)
    ones = torch.ones(units, dtype=torch.float64)
    scales = torch.linspace(0.5, 2, units, dtype=torch.float64)
    moved = rescaled(module, scales).numpy()
    assert torch.allclose(outputs(module, moved, inputs), outputs(module, theta, inputs))
    assert np.linalg.norm(moved - theta) > 1

    tangents = torch.func.jacrev(lambda a: rescaled(module, a))(ones).numpy()
    assert np.allclose(symmetry._rescaling_tangents(layers, theta).toarray(), tangents, atol=1e-14)
    basis = np.linalg.qr(tangents)[0]
    for seed in range(5):
        v = references._normal(len(theta), 100 + seed).numpy()
        v = v + seed * tangents @ np.ones(units)
        exact = np.linalg.norm(basis.T @ v) ** 2 / np.linalg.norm(v) ** 2
        assert symmetry.rescaling_fraction(layers, theta, v) == pytest.approx(exact, rel=1e-10)
        inside, outside = basis @ (basis.T @ v), v - basis @ (basis.T @ v)
        assert symmetry.rescaling_fraction(layers, theta, inside) == pytest.approx(1, abs=1e-12)
        assert symmetry.rescaling_fraction(layers, theta, outside) < 1e-24
    assert math.isnan(symmetry.rescaling_fraction(layers, theta, 0 * theta))


def test_units_without_weights_have_no_direction():
    module = dense(3, 4, 2)
    with torch.no_grad():
        module[0].weight[1], module[0].bias[1], module[2].weight[:, 1] = 0, 0, 0
    layers, theta = layers_of(module), flat(module)
    tangents = symmetry._rescaling_tangents(layers, theta).toarray()
    v = references._normal(len(theta), 5).numpy()
    exact = np.linalg.norm(tangents @ np.linalg.lstsq(tangents, v)[0]) ** 2 / (v @ v)
    assert symmetry.rescaling_fraction(layers, theta, v) == pytest.approx(exact, rel=1e-12)


def test_the_flow_balances_rescalable_units_as_exp_minus_4t_and_logits_as_exp_minus_2t():
    module = dense(3, 8, 6, 2)
    layers = layers_of(module)
    problem = gf.Problem.from_module(
        module, nn.functional.cross_entropy, *references.small_data(60)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    state = flow.evaluate(problem.theta0)
    theta, gradient, velocity = (x.numpy() for x in (state.theta, state.gradient, state.velocity))
    assert symmetry.rescaling_fraction(layers, theta, gradient) < 1e-24
    assert symmetry.shift_fraction(layers, gradient) < 1e-24
    tangents = symmetry._rescaling_tangents(layers, theta)
    balance = symmetry.balancedness(layers, theta)
    assert balance.shape == (14,)
    assert np.allclose(tangents.T @ velocity, -2 * balance, atol=1e-10)

    ds = gf.walk(flow, "dopri5", rtol=1e-7, t_end=0.05, stop=None, snapshot_times=[0.02, 0.05])
    for t, there in zip(ds["snapshot_time"].values, ds["theta"].values, strict=True):
        found = symmetry.balancedness(layers, there)
        assert np.allclose(found, balance * np.exp(-4 * t), atol=1e-6)
        means = there[layers.output].mean(axis=0)
        assert np.allclose(means, theta[layers.output].mean(axis=0) * np.exp(-2 * t), atol=1e-7)


def test_shifts_of_all_logits():
    module = dense(3, 4, 5, activation=nn.Tanh)
    layers, n = layers_of(module), len(flat(module))
    shift = np.zeros(n)
    shift[layers.output] = np.arange(5)  # the same to all five outputs
    assert symmetry.shift_fraction(layers, shift) == pytest.approx(1)
    v = references._normal(n, 3).numpy()
    basis = np.zeros((n, 5))
    for column, rows in enumerate(layers.output.T):
        basis[rows, column] = 1 / math.sqrt(5)
    exact = np.linalg.norm(basis.T @ v) ** 2 / (v @ v)
    assert symmetry.shift_fraction(layers, v) == pytest.approx(exact, rel=1e-12)
    closed = nn.Sequential(*module, nn.Tanh())
    assert math.isnan(symmetry.shift_fraction(layers_of(closed), v))


def symmetric_copy(layers, theta, seed):
    rng, copy = np.random.default_rng(seed), theta.copy()
    for layer in layers.hidden:
        n = len(layer.incoming)
        order = rng.permutation(n)
        sign = rng.choice([-1.0, 1.0], n) if layer.odd else np.ones(n)
        for part in (layer.incoming, layer.outgoing):
            copy[part] = sign[:, None] * copy[part][order]
    return copy


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (dense(4, 9, 3, activation=nn.Tanh), (4,)),
        (dense(6, 12, 11, 10, 3, activation=nn.Tanh), (6,)),
        (dense(6, 12, 11, 3), (6,)),
        (drawn(networks.convolutional(1, 6, 14, 12)), (1, 14, 14)),
    ],
    ids=["one layer", "three layers", "relu", "convolutions"],
)
def test_planted_copies_are_found_and_give_the_same_outputs(module, shape):
    layers, theta = layers_of(module), flat(module)
    inputs = references._normal(5 * math.prod(shape), 9).view(5, *shape)
    copy = symmetric_copy(layers, theta, 3)
    same = outputs(module, theta, inputs)
    assert np.linalg.norm(copy - theta) > 1
    assert torch.allclose(outputs(module, copy, inputs), same, atol=1e-12)
    found = symmetry.nearest_copy(layers, theta, copy)
    assert found.distance < 1e-12
    assert found.exact == (len(layers.hidden) == 1)
    # Another point's copy gives that point's outputs, and is no farther than the point itself.
    there = theta + 0.3 * references._normal(len(theta), 77).numpy()
    near = symmetry.nearest_copy(layers, copy, there)
    assert near.distance < np.linalg.norm(copy - there)
    assert torch.allclose(
        outputs(module, near.theta, inputs), outputs(module, there, inputs), atol=1e-12
    )


def test_with_one_hidden_layer_no_copy_is_nearer():
    module = dense(2, 4, 2, activation=nn.Tanh)
    layers = layers_of(module)
    (layer,) = layers.hidden
    for seed in range(5):
        a, b = (references._normal(len(flat(module)), seed + s).numpy() for s in (0, 50))
        least = math.inf
        for order in itertools.permutations(range(4)):
            for sign in itertools.product([-1.0, 1.0], repeat=4):
                copy = b.copy()
                for part in (layer.incoming, layer.outgoing):
                    copy[part] = np.array(sign)[:, None] * b[part][list(order)]
                least = min(least, np.linalg.norm(a - copy))
        found = symmetry.nearest_copy(layers, a, b)
        assert found.exact
        assert found.distance == pytest.approx(least, rel=1e-12)


def test_along_a_walk(network):
    ds = gf.walk(network, t_end=0.3, max_snapshots=4)
    module = references.small_module()
    found = symmetry.along(ds, module, classification=True)
    n = ds.sizes["snapshot"]
    assert found["symmetric_distance"].shape == (n, n)
    made = predictions.along(ds, module, {"one": torch.ones(1, 3)}, classification=True)
    assert found.attrs["kind"] == "symmetry"
    assert set(found.attrs) == set(made.attrs)
    assert all(found.attrs[k] == made.attrs[k] for k in ("experiment", "walk_seed"))
    assert found["symmetric_distance"].attrs["bound"] == "exact"
    theta = ds["theta"].values
    direct = np.linalg.norm(theta[:, None] - theta, axis=2)
    assert (found["symmetric_distance"].values <= direct + 1e-12).all()
    assert (found["rescaling_fraction"].values[:-1] == 0).all()
    step = theta[1] - theta[0]
    layers = layers_of(module)
    assert float(found["shift_fraction"][0]) == symmetry.shift_fraction(layers, step)
    assert np.isnan(found["shift_fraction"].values[-1])
    assert "shift_fraction" not in symmetry.along(ds, module, classification=False)
    with pytest.raises(InputError, match=r"the walk moved 0.weight of shape .*, and the mod"):
        symmetry.along(ds, dense(3, 4, 2), classification=True)


LAYOUTS = {
    "dense, places": ((3, 5), [nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)]),
    "dense, flattened": ((5,), [nn.Linear(5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)]),
    "dense, places averaged": (
        (6, 5),
        [nn.Linear(5, 4), nn.ReLU(), nn.AvgPool2d((3, 1)), nn.Linear(4, 2)],
    ),
    "two convolutions": ((2, 8), [nn.Conv1d(2, 4, 1), nn.Tanh(), nn.Conv1d(4, 3, 3), nn.Flatten()]),
    "pooled": (
        (2, 8),
        [nn.Conv1d(2, 4, 1), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(16, 3)],
    ),
    "flattened before tanh": (
        (1, 6, 6),
        [nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Tanh(), nn.Linear(12, 2)],
    ),
    "maxima before relu": (
        (1, 6, 6),
        [nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)],
    ),
    "volumes": (
        (1, 4, 4, 4),
        [nn.Conv3d(1, 3, 3), nn.LeakyReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(3, 2)],
    ),
    "around a circle": (
        (2, 8),
        [
            nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"),
            *(nn.Tanh(), nn.Dropout(0.0), nn.Flatten(), nn.AlphaDropout(0.0), nn.Linear(32, 3)),
        ],
    ),
    "deep": (
        (1, 8, 8),
        [
            *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2)),
        ],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_every_layout_a_copy_gives_the_same_outputs_and_so_do_rescalings(layout):
    shape, parts = LAYOUTS[layout]
    module = drawn(nn.Sequential(*parts))
    layers, theta = layers_of(module), flat(module)
    inputs = references._normal(7 * math.prod(shape), 9).view(7, *shape)
    same = outputs(module, theta, inputs)
    moved = 0.0
    for seed in range(5, 9):
        target = references._normal(len(theta), seed).numpy()
        copy = symmetry.nearest_copy(layers, target, theta).theta
        moved += np.linalg.norm(copy - theta)
        assert float((outputs(module, copy, inputs) - same).abs().max()) < 1e-12
    assert moved > 1
    for tangent in symmetry._rescaling_tangents(layers, theta).toarray().T:
        ahead, behind = (outputs(module, theta + h * tangent, inputs) for h in (1e-5, -1e-5))
        assert float((ahead - behind).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        # Of the columns, s·4 + u belongs to unit u at place s.
        ((3, 5), [nn.Linear(5, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)]),
        ((2, 8), [nn.Conv1d(2, 4, 1), nn.Tanh(), nn.Linear(8, 3)]),
        ((4, 5), [nn.Linear(5, 4), nn.Tanh(), nn.Conv1d(4, 2, 1)]),
        ((2, 8), [nn.Conv1d(2, 4, 1), nn.ReLU(), nn.AvgPool1d(2), nn.Linear(4, 3)]),
        ((5,), [nn.Linear(5, 4), nn.ReLU(), nn.AvgPool1d(3, 1, 1), nn.Linear(4, 2)]),
        ((5,), [nn.Linear(5, 4), nn.ReLU(), nn.MaxPool1d(3, 1, 1), nn.Linear(4, 2)]),
        ((6, 5), [nn.Linear(5, 4), nn.ReLU(), nn.AvgPool2d(3, 1, 1), nn.Linear(4, 2)]),
        (
            (2, 6),
            [nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Flatten(), nn.AvgPool1d(3), nn.Linear(8, 2)],
        ),
        (
            (2, 8),
            [nn.Conv1d(2, 4, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2)],
        ),
        ((4, 8), [nn.Conv1d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 2, 1)]),
    ],
)
def test_units_that_the_next_layer_takes_elsewhere_are_not_taken_for_its_own(shape, parts):
    module = drawn(nn.Sequential(*parts))
    n = shape[0] if isinstance(parts[-1], nn.Conv2d) else 3
    outputs(module, flat(module), references._normal(n * math.prod(shape), 1).view(n, *shape))
    with pytest.raises(InputError, match=r"does not take the 4 units of 0.*nn\.Flatten"):
        layers_of(module)


def tied():
    module = dense(3, 3, 3, 2, activation=nn.Tanh)
    module[2].weight = module[0].weight
    return module


def normed(norm):
    module = dense(2, 3, 1)
    module[0] = norm(module[0])
    return module


def frozen_first():
    module = dense(2, 3, 1)
    module[0].requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(2, 2), "no hidden layer"),
        (nn.Transformer(4, 2, 1, 1, 8, batch_first=True), "no hidden layer"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "0 activations between 0 and 1"),
        (nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)), "GELU between 0 and 2"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(2, 1, 2)),
            "MaxPool2d between",
        ),
        (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 2, groups=2)),
            "channels are in groups",
        ),
        (tied(), r"2 \(Linear\): its weight is shared: symmetries are"),
        (dense(2, 3, 1).requires_grad_(False), "no trainable parameter; set requires_grad=True"),
        (frozen_first(), r"0 \(Linear\): its weight is fixed, and no hidden layer has all"),
        (nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.Linear(3, 1)), "0.weight is not initial"),
        (normed(nn.utils.parametrizations.weight_norm), r"0 \(Parametrized.*remove_parametr"),
        (normed(nn.utils.spectral_norm), r"0 \(Linear\) computes its weight, or has a hook"),
    ],
)
def test_networks_of_another_form_are_refused_in_one_line(module, message):
    with pytest.raises(InputError, match=message) as error:
        layers_of(module)
    assert "\n" not in str(error.value)


def test_one_activation_may_be_called_twice_and_blocks_nested():
    tanh = nn.Tanh()
    nested = nn.Sequential(
        nn.Sequential(nn.Linear(3, 5), tanh), nn.Sequential(nn.Linear(5, 4), tanh), nn.Linear(4, 2)
    )
    found = layers_of(drawn(nested)).hidden
    assert [len(layer.incoming) for layer in found] == [5, 4]


def test_what_is_not_finite_is_refused_in_one_line():
    module = dense(3, 4, 1, activation=nn.Tanh)
    x = references._normal(24 * 3, 3).view(24, 3)
    y = x.sum(dim=1, keepdim=True).sin()
    problem = gf.Problem.from_module(module, nn.functional.mse_loss, x, y)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, max_evaluations=40)
    for value in (np.nan, np.inf):
        theta = ds["theta"].copy(deep=True)
        theta[2, 5] = value
        broken = ds.assign(theta=theta)
        with pytest.raises(InputError, match="snapshots: theta of 2 has non-finite values; leave"):
            symmetry.along(broken, module, classification=False)
        kept = [0, 1, 3]
        found = symmetry.along(broken, module, classification=False, snapshots=kept)
        assert found.identical(symmetry.along(ds, module, classification=False, snapshots=kept))
    layers, whole = layers_of(module), ds["theta"].values[0]
    broken = np.where(np.arange(len(whole)) == 5, np.nan, whole)
    for call, name in (
        (lambda: symmetry.nearest_copy(layers, broken, whole), "target"),
        (lambda: symmetry.nearest_copy(layers, whole, broken), "theta"),
        (lambda: symmetry.rescaling_fraction(layers, broken, whole), "theta"),
        (lambda: symmetry.rescaling_fraction(layers, whole, broken), "vector"),
        (lambda: symmetry.shift_fraction(layers, broken), "vector"),
    ):
        with pytest.raises(InputError, match=f"{name} has non-finite values; leave it out"):
            call()


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e160, 1e200])
def test_fractions_and_copies_do_not_depend_on_the_size_of_vectors_or_weights(scale):
    module = dense(3, 5, 4, 3)
    layers, theta = layers_of(module), flat(module)
    v = references._normal(len(theta), 5).numpy()
    rescaling = symmetry.rescaling_fraction(layers, theta, v)
    assert symmetry.rescaling_fraction(layers, theta, scale * v) == pytest.approx(rescaling)
    assert symmetry.rescaling_fraction(layers, scale * theta, v) == pytest.approx(rescaling)
    assert symmetry.shift_fraction(layers, scale * v) == pytest.approx(
        symmetry.shift_fraction(layers, v)
    )
    # Of one unit alone, whose direction is as long as its weights.
    uneven = theta.copy()
    for part in (layers.hidden[0].incoming, layers.hidden[0].outgoing):
        uneven[part[0]] *= scale
    tangents = symmetry._rescaling_tangents(layers, uneven).toarray()
    basis = np.linalg.qr(tangents / np.abs(tangents).max(axis=0))[0]
    exact = np.linalg.norm(basis.T @ v) ** 2 / (v @ v)
    if scale < 1:
        assert symmetry.rescaling_fraction(layers, uneven, v) == pytest.approx(exact, rel=1e-9)

    odd = dense(2, 4, 2, activation=nn.Tanh)
    of_odd, n = layers_of(odd), len(flat(odd))
    a, b = (references._normal(n, seed).numpy() for seed in (0, 50))
    one = symmetry.nearest_copy(of_odd, a, b)
    both = symmetry.nearest_copy(of_odd, scale * a, scale * b)
    assert both.distance / scale == pytest.approx(one.distance, rel=1e-12)
    assert np.array_equal(both.theta, scale * one.theta)
    alone = symmetry.nearest_copy(of_odd, a, scale * b)
    assert np.array_equal(alone.theta, scale * one.theta)


def test_a_point_without_weights_has_no_rescaling_directions():
    layers = layers_of(dense(3, 5, 4, 3))
    v = references._normal(59, 5).numpy()
    assert symmetry.rescaling_fraction(layers, np.zeros(59), v) == 0


def test_points_are_of_the_networks_parameters_or_are_refused():
    module = dense(3, 5, 4, 3)
    layers, theta = layers_of(module), flat(module)
    v = references._normal(59, 5).numpy()
    assert symmetry.rescaling_fraction(layers, theta.tolist(), list(v)) == (
        symmetry.rescaling_fraction(layers, theta, v)
    )
    assert np.array_equal(
        symmetry.balancedness(layers, theta.tolist()), symmetry.balancedness(layers, theta)
    )
    give = r"give the \(P,\) parameters of the network, 59 at least"
    for call, message in (
        (lambda: symmetry.rescaling_fraction(layers, np.zeros(5), np.ones(5)), give),
        (lambda: symmetry.rescaling_fraction(layers, np.zeros(5), v), give),
        (lambda: symmetry.rescaling_fraction(layers, theta, v[:5]), give),
        (lambda: symmetry.rescaling_fraction(layers, theta[None], v), give),
        (lambda: symmetry.shift_fraction(layers, v[:5]), give),
        (lambda: symmetry.balancedness(layers, 1.0), give),
        (lambda: symmetry.nearest_copy(layers, theta, v[:58]), give),
        (lambda: symmetry.balancedness(layers, np.full(59, np.nan)), "theta has non-finite values"),
        (lambda: symmetry.shift_fraction(layers, ["a"] * 59), "vector=.*; give real numbers"),
    ):
        with pytest.raises(InputError, match=message):
            call()
