"""The blocks of the reference pages, run with what each page takes for granted."""

import os
import re
import shutil
import socket
import subprocess
import sys
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.datasets import load_iris
from torch import nn
from torch.nn import functional as F

import geoflow as gf
from geoflow import cli

DOCS = Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.slow


def blocks(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in found]


def trained():
    """A small network on half of the irises, and what the pages call its parts."""
    iris = load_iris()
    x = torch.tensor((iris.data - iris.data.mean(0)) / iris.data.std(0))
    y = torch.tensor(iris.target)
    train, rest = (x[::2], y[::2]), (x[1::2], y[1::2])
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    optimizer = torch.optim.Adam(module.parameters(), 0.03)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(module(train[0]), train[1]).backward()
        optimizer.step()

    def problem(inputs, targets):
        return gf.Problem.from_module(module, F.cross_entropy, inputs, targets)

    kept = problem(*train)
    drawn = torch.Generator().manual_seed(1)
    theta_b = torch.randn(kept.n_parameters, generator=drawn, dtype=torch.float64)
    for _ in range(300):
        theta_b -= 0.1 * kept.value_and_gradient(theta_b)[1]
    return {
        **{"gf": gf, "np": np, "xr": xr, "torch": torch, "F": F, "module": module},
        **{"loss_fn": F.cross_entropy, "inputs": train[0], "targets": train[1]},
        **{"x": train[0], "y": train[1], "problem": kept, "level_set": gf.LevelSet(kept)},
        **{"held_out": problem(*rest), "other_problem": problem(*rest)},
        **{"forget": problem(rest[0][:5], rest[1][:5])},
        **{"theta_a": kept.theta0, "theta_b": theta_b},
        **{"prepared": SimpleNamespace(problem=kept, observables={})},
        **{"problem_a": problem(*train), "problem_b": problem(*rest)},
    }


def shortened(function, **at_most):
    """Call with no more than these, whatever the page says."""

    @wraps(function)
    def call(*args, **given):
        return function(
            *args, **{**given, **{k: min(given.get(k, v), v) for k, v in at_most.items()}}
        )

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files by the names that the pages call them."""
    made = tmp_path_factory.mktemp("pages")
    run = ["run", "iris_ff", "--angle", "130", "--quiet", "--out"]
    (made / "walks").mkdir()
    for seed in range(2):
        file = made / "walks" / f"seed-000{seed}.nc"
        assert cli.main([*run, str(file), "--seed", str(seed)]) == 0
    shutil.copytree(made / "walks", made / "runs")
    for name in ("iris.nc", "walk.nc"):
        shutil.copy(made / "walks" / "seed-0000.nc", made / name)
    return made


@pytest.mark.filterwarnings("ignore:.*consolidated.*", "ignore:.*Zarr.*specification.*")
@pytest.mark.parametrize(
    "page",
    ["analysis.md", "archive.md", "index.md", "objectives.md", "regularizers.md", "schema.md"],
)
def test_its_blocks_run(page, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    if page in ("index.md", "regularizers.md"):
        Path("walk.nc").unlink()  # which they write
    # Down the loss of examples held out no walk of this network comes to its end.
    monkeypatch.setattr(gf, "walk", shortened(gf.walk, max_evaluations=400))
    with torch.random.fork_rng(devices=[]):
        namespace = {"__name__": "page", **trained()}
        for line, code in blocks(page):
            exec(compile("\n" * line + code, page, "exec"), namespace)


def test_the_blocks_of_the_path_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page", **trained()}
    for number, (line, code) in enumerate(blocks("path.md")):
        if number:  # the page does not say again how an observable is given
            path = namespace["path"]
            error = xr.full_like(path["test_loss"], 0.01)
            namespace["path"] = path.assign(
                validation_loss=path["test_loss"], validation_loss_error=error
            )
            namespace["module"] = namespace["prepared"].module
        exec(compile("\n" * line + code, "path.md", "exec"), namespace)


def test_the_block_of_several_processes_runs(tmp_path):
    (_, code), *_ = blocks("processes.md")
    here = Path(__file__).parent
    script = f"""
import sys
sys.path.insert(0, {str(here)!r})
from test_reference_pages import trained
globals().update(trained())
{code}
assert ds.status == "stationary", ds.status_message
dist.destroy_process_group()
"""
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=os.environ | alone, check=True)
    assert (tmp_path / "walk-0.nc").is_file()


def test_no_block_of_a_page_is_left_out():
    elsewhere = {"README.md", "start.md", "cli.md", "own-network.md", "path.md", "processes.md"}
    here = {
        "analysis.md",
        "archive.md",
        "index.md",
        "objectives.md",
        "regularizers.md",
        "schema.md",
    }
    pages = [p.name for p in DOCS.glob("*.md") if blocks(p.name)]
    assert set(pages) <= elsewhere | here
