"""Outputs that no distance in predictions can be taken of as they come."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.nn import functional as F

import geoflow as gf
from geoflow.analysis import predictions
from geoflow.analysis.networks.outputs import check_logits
from geoflow.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(30, 4, generator=GENERATOR) + torch.linspace(-2, 2, 30)[:, None]
TARGETS = (INPUTS[:, 0] > 0).long()


def network(*last, between=()):
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 6), *between, nn.Tanh(), nn.Linear(6, 2), *last)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.double().eval()


def walked(module, loss_fn=F.cross_entropy):
    problem = gf.Problem.from_module(module, loss_fn, INPUTS, TARGETS)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    return gf.walk(flow, max_evaluations=30)


def outputs(module, ds):
    found = []
    for snapshot in (0, -1):
        gf.load_into(module, ds, snapshot=snapshot)
        found.append(module(INPUTS.double()).detach())
    return found


class Neighbours(nn.Module):
    """Of a graph of thirty nodes."""

    def __init__(self):
        super().__init__()
        self.of_one = network()
        self.register_buffer("neighbour", torch.arange(30).roll(1))

    def forward(self, x):
        return self.of_one(x + x[self.neighbour])


STATISTICS = nn.BatchNorm1d(6, track_running_stats=False)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (network(between=[STATISTICS]), "module gives other outputs for 20 .* act on each other"),
        (
            Neighbours(),
            r"module does not take inputs\['all'\] of shape .* in parts of 20 and a last 10 ",
        ),
    ],
)
def test_examples_that_act_on_each_other_are_evaluated_at_once(module, said):
    ds = walked(module)
    with pytest.raises(InputError, match=rf"batch_size=20: {said}.* give batch_size=30"):
        predictions.along(ds, module, {"all": INPUTS}, classification=False, batch_size=20)
    found = predictions.along(ds, module, {"all": INPUTS}, classification=False, batch_size=30)
    first, last = outputs(module, ds)
    expected = float((first - last).square().mean().sqrt())
    assert float(found["output_distance"][0, 0, -1]) == pytest.approx(expected, rel=1e-12)


class Noted(nn.Module):
    """Notes how many examples it is given at once; may take none alone."""

    sizes: ClassVar[list[int]] = []
    least = 1

    def __init__(self):
        super().__init__()
        self.of_one = network()

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) < self.least:
            raise ValueError("more than one value is wanted")
        return self.of_one(x)


@pytest.mark.parametrize("size", [1, 2, 7, 29, 57])
@pytest.mark.parametrize("least", [1, 2])
def test_no_more_examples_are_evaluated_at_once_than_were_asked_for(size, least, monkeypatch):
    ds, inputs = walked(Noted()), {"all": INPUTS.repeat(2, 1)[:58]}
    monkeypatch.setattr(Noted, "sizes", [])
    monkeypatch.setattr(Noted, "least", least)

    def along():
        return predictions.along(ds, Noted(), inputs, classification=False, batch_size=size)

    if least == 2 and 58 % size in (0, 1) and size in (1, 57):
        said = rf"in parts of {size}.* \(.*more than one .*batch_size=58, all at once"
        with pytest.raises(InputError, match=said):
            along()
    else:
        along()
    assert max(Noted.sizes) <= max(size, 2)


def test_of_one_example_at_a_time_two_are_compared():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.of_one = network()

        def forward(self, x):
            return self.of_one(x - x.mean(0))

    ds = walked(module := Centred())
    for size in (1, 2):
        said = f"batch_size={size}: module gives other outputs for 2 "
        with pytest.raises(InputError, match=said):
            predictions.along(ds, module, {"all": INPUTS}, classification=False, batch_size=size)


def test_a_network_for_a_certain_number_of_examples_is_taken_in_chunks_of_them():
    class OfThirty(nn.Module):
        def __init__(self):
            super().__init__()
            self.of_one = network()

        def forward(self, x):
            return torch.cat([self.of_one(part) for part in x.view(3, 10, 4)])

    ds, inputs = walked(OfThirty()), {"all": INPUTS.repeat(2, 1)}
    found = predictions.along(ds, OfThirty(), inputs, classification=True, batch_size=30)
    expected = predictions.along(ds, OfThirty(), {"all": INPUTS}, classification=True)
    np.testing.assert_allclose(found["js_divergence"], expected["js_divergence"], rtol=1e-12)


def test_probabilities_are_refused_and_their_logarithms_are_not():
    module = network(nn.Softmax(1))
    ds = walked(module, lambda found, targets: F.nll_loss(found.log(), targets))
    with pytest.raises(InputError, match=r"the outputs are probabilities .* softmax out"):
        predictions.along(ds, module, {"all": INPUTS}, classification=True)
    first, last = outputs(module, ds)
    expected = (jensenshannon(first, last, base=2, axis=1) ** 2).mean()
    for last_layer in (nn.LogSoftmax(1), nn.Identity()):
        found = predictions.along(ds, network(last_layer), {"all": INPUTS}, classification=True)
        assert float(found["js_divergence"][0, 0, -1]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_probabilities_are_known_in_every_dtype(dtype):
    logits = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    with pytest.raises(InputError, match="probabilities"):
        predictions.between(logits.softmax(2), classification=True)
    # Not all of these are: positive, or with a sum near 1, or such for most examples.
    almost = logits.softmax(2)
    almost[0, 0] *= 2
    for given in (
        logits,
        logits.sigmoid(),
        logits.abs(),
        logits / logits.sum(2)[..., None],
        almost,
    ):
        assert np.isfinite(predictions.between(given, classification=True)["js_divergence"]).all()


class Noisy(nn.Module):
    """Outputs that are others each time; and one for each chunk."""

    def __init__(self):
        super().__init__()
        self.of_one = network()

    def forward(self, x):
        found = self.of_one(x)
        return found + torch.randn_like(found), found.mean(0, keepdim=True)


def test_what_is_random_or_of_a_chunk_is_not_said_to_act_on_each_other():
    ds, module = walked(network()), Noisy()
    names = {f"of_one.{name}": name for name in map(str, ds["tensor_name"].values)}
    renamed = ds.assign_coords(tensor_name=("tensor", list(names)))
    found = predictions.along(
        renamed, module, {"x": INPUTS}, classification=False, batch_size=10, snapshots=[0, -1]
    )
    assert float(found["output_distance"].max()) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_are_no_probabilities_by_rounding(dtype):
    check_logits(torch.tensor([[0.75, 0.5], [0.5, 0.625]], dtype=dtype), 1)
    with pytest.raises(InputError, match="the outputs are probabilities"):
        check_logits(torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=dtype), 1)
