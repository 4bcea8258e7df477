"""``geoflow predictions`` of networks whose classes are not along the second axis, or wrapped."""

import pytest
import torch
import xarray as xr
from torch import nn
from torch.nn import functional as F

import geoflow as gf
from geoflow import cli
from geoflow.cli.terminal import BAD_INPUT, DONE

FILE = """
import torch
from torch import nn
from torch.nn import functional as F

import geoflow as gf


def loss_fn(found, targets):
    return F.cross_entropy(found.flatten(0, 1), targets.flatten())


def made(seed, wrap=lambda module: module, **more):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    x = torch.randn(6, 2, 3, generator=generator)
    y = torch.randint(4, (6, 2), generator=generator)
    module = wrap(module)
    problem = gf.Problem.from_module(module, loss_fn, x, y)
    return gf.experiments.PreparedExperiment(
        problem, module=module, train=(x, y), classification=True, **more
    )


def unsaid(seed):
    return made(seed)


def said(seed):
    return made(seed, class_dim=-1)


def compiled(seed):
    return made(seed, lambda m: torch.compile(m, backend="eager"), class_dim=-1)


def parallel(seed):
    return made(seed, nn.DataParallel, class_dim=-1)
"""


@pytest.mark.parametrize("function", ["unsaid", "said", "compiled", "parallel"])
def test_the_experiment_says_along_which_axis_its_classes_are(function, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FILE)
    problem = ["--problem", f"{tmp_path / 'mine.py'}:{function}", "--quiet"]
    walk, out = tmp_path / "walk.nc", tmp_path / "out.nc"
    assert cli.main(["run", *problem, "--t-end", "0.1", "--out", str(walk)]) == DONE
    capsys.readouterr()
    some = ["--batch", "4"] if function == "said" else []
    status = cli.main(["predictions", str(walk), *problem, *some, "--out", str(out)])
    said = capsys.readouterr().err
    if function == "unsaid":
        assert status == BAD_INPUT
        assert "outputs of shape (6, 2, 4): any axis but the first" in said
        assert said.endswith("give class_dim, 1 or -1\n")
        assert said.count("\n") == 1
        return
    assert status == DONE
    space: dict[str, object] = {}
    exec(FILE, space)
    prepared = space["made"](0)
    with gf.open_trajectory(walk) as ds:
        first, last = (
            torch.func.functional_call(
                prepared.module.double(),
                prepared.problem.unflatten(torch.as_tensor(ds["theta"].values[index])),
                (prepared.train[0].double(),),
            ).log_softmax(-1)
            for index in (0, -1)
        )
    mean = torch.stack([first, last]).exp().mean(0).log()
    divergence = sum(
        F.kl_div(mean, one, reduction="sum", log_target=True) for one in (first, last)
    ) / (2 * 12 * torch.log(torch.tensor(2.0)))
    with xr.open_dataset(out) as found:
        assert float(found["js_divergence"][0, 0, -1]) == pytest.approx(float(divergence), rel=1e-6)
        assert "symmetric_distance" in found
        assert "shift_fraction" in found


def test_an_experiment_of_a_wrapped_network_has_the_names_of_the_network():
    from dataclasses import replace

    iris = gf.experiments.get("iris_ff")

    def small():
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    found = {}
    for name, wrap in {"plain": lambda m: m, "wrapped": nn.DataParallel}.items():
        own = replace(iris, name=name, build=lambda wrap=wrap: wrap(small()))
        prepared = own.prepare(seed=0, epochs=2)
        theta = 1.5 * prepared.problem.theta0
        decay = gf.baselines.weight_decay(own, penalties=[0.0], seeds=[0], epochs=1)
        found[name] = (
            prepared.observables["test_loss"](theta),
            decay["tensor_name"].values.tolist(),
            decay["theta"].values.tolist(),
        )
    assert found["plain"] == found["wrapped"]
