"""A transformer of one's own, with nothing but what the documentation says of each step."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import geoflow as gf


class Commonest(Dataset):
    """Which token is the commonest, of sequences of several lengths, padded with 0."""

    def __init__(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(1, 4, (n, 7), generator=generator)
        lengths = torch.randint(4, 8, (n,), generator=generator)
        for row, length in zip(self.tokens, lengths, strict=True):
            row[length:] = 0
        counts = [(self.tokens == k).sum(1) for k in (1, 2, 3)]
        self.labels = torch.stack(counts).argmax(0)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return self.tokens[index], self.labels[index]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.embed, self.head = nn.Embedding(4, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        padding = tokens == 0
        hidden = self.encode(self.embed(tokens), src_key_padding_mask=padding)
        return self.head(hidden.masked_fill(padding[..., None], 0).mean(1))


def batch_loss(module, batch):
    tokens, labels = batch
    return F.cross_entropy(module(tokens), labels, reduction="sum"), len(labels)


@pytest.fixture(scope="module")
def trained():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Encoder().eval()
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        for _ in range(20):
            for tokens, labels in DataLoader(Commonest(60, 0), batch_size=20):
                optimizer.zero_grad()
                F.cross_entropy(module(tokens), labels).backward()
                optimizer.step()
    return module


@pytest.mark.slow
def test_it_walks_follows_a_path_and_takes_the_best_point_back(trained, tmp_path):
    # Weights before a LayerNorm have no size of their own: the page on one's own network says so.
    moving = {"parameters": ["head.*", "*.linear?.*"]}
    problem = gf.Problem.from_batches(
        trained, batch_loss, DataLoader(Commonest(60, 0), 20), **moving
    )
    unseen = gf.Problem.from_batches(
        trained, batch_loss, DataLoader(Commonest(60, 1), 60), **moving
    )
    observables = {"validation_loss": lambda theta: float(unseen.loss(theta))}
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(
        flow,
        stop=gf.Stationary(degrees=150),
        observables=observables,
        archive=tmp_path / "walk.nc",
        max_evaluations=2_000,
    )
    assert ds.status == "stationary"
    assert gf.validate(tmp_path / "walk.nc") == []

    c = flow.level_set.level
    path = gf.regularization_path(
        flow,
        [1.5 * c, 2 * c],
        degrees=150,
        observables=observables,
        archive=tmp_path / "path.nc",
    )
    assert path.status == "complete"
    best = gf.best_on_path(path, "validation_loss")
    gf.load_into(trained, path, best.point)
    with torch.no_grad():
        tokens, labels = Commonest(60, 1)[:]
        loss = F.cross_entropy(trained(tokens), labels)
    # The module is float32, the path float64.
    assert float(loss) == pytest.approx(best.value, rel=1e-5)

    for name, dimension in (("walk.nc", "snapshot"), ("path.nc", "level")):
        with xr.open_dataset(tmp_path / name) as plain:
            assert plain["theta"].dims == (dimension, "parameter")
            assert plain.sizes["parameter"] == problem.n_parameters
            assert np.isfinite(plain["validation_loss"]).all()
            assert all({"long_name", "units"} <= set(v.attrs) for v in plain.data_vars.values())
            assert plain.attrs["config"]
