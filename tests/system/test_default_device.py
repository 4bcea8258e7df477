"""geoflow's own tensors lie where θ does, or on the CPU, whatever torch's default device is."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import geoflow as gf

# Those that take the default device where none is given; of NumPy's arrays as_tensor is one.
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "normal"),
    *("ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices"),
    *("triu_indices", "zeros", "empty_strided", "hann_window"),
}


def calls_without_a_device(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
            and node.func.attr in FACTORIES
            and not any(k.arg == "device" for k in node.keywords)
        ):
            yield f"{path.name}:{node.lineno} torch.{node.func.attr}"


def test_every_tensor_is_made_on_a_device_that_is_named():
    root = Path(gf.__file__).parent
    found = [call for path in sorted(root.rglob("*.py")) for call in calls_without_a_device(path)]
    assert found == []


@pytest.fixture
def small():
    """A network and its flow, made before another device is the default."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    y = x.sum(1, keepdim=True).sin()
    problem = gf.Problem.from_module(module, functional.mse_loss, x, y)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


@pytest.fixture
def elsewhere():
    """As on a machine where "cuda" is the default, with data that was put on the CPU."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


SOLVERS = ["bdf", "exponential", "rkc", "dopri5", "rk4"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_walk_is_where_its_problem_is(small, elsewhere, solver):
    ds = gf.walk(small, solver, t_end=0.01, stop=None, events=[gf.Event("regularizer", value=1.0)])
    assert ds.attrs["status"] == "t_end", ds.attrs["status_message"]


def test_a_walk_is_resumed_where_its_problem_is(small, elsewhere, tmp_path):
    archive = tmp_path / "walk.nc"
    gf.walk(small, t_end=0.01, stop=None, archive=archive).close()
    with gf.resume(archive, small, t_end=0.02) as ds:
        assert ds.attrs["status"] == "t_end", ds.attrs["status_message"]
    assert gf.validate(archive) == []


def test_problems_are_made_and_derived_where_their_tensors_are(elsewhere):
    start = torch.arange(1.0, 6.0, dtype=torch.float64, device="cpu")
    problem = gf.Problem.from_function(lambda t: (t**4).sum(), start)
    assert torch.equal(problem.hvp(start, start), 12 * start**3)
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), device="cpu")
    module = nn.Sequential(nn.Linear(3, 4, device="cpu"), nn.Tanh(), nn.Linear(4, 3, device="cpu"))
    targets = x.argmax(1)
    problem = gf.Problem.from_module(module, functional.cross_entropy, x, targets, batch_size=7)
    assert problem.hvp(problem.theta0, problem.theta0).device.type == "cpu"
    assert problem.gauss_newton_product(problem.theta0, problem.theta0).isfinite().all()


REGULARIZERS = {
    "squared_norm": lambda p: gf.regularizers.squared_norm,
    "sharpness": lambda p: gf.regularizers.sharpness,
    "hessian_trace": lambda p: gf.regularizers.hessian_trace,
    "gradient_norm": lambda p: gf.regularizers.gradient_norm,
    "jacobian_norm": lambda p: gf.regularizers.jacobian_norm(probes=2),
    "path_norm": lambda p: gf.regularizers.path_norm,
    "group_lasso": lambda p: gf.regularizers.group_lasso,
    "distance_to": lambda p: gf.regularizers.distance_to(2 * p.theta0),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizers_are_evaluated_where_theta_is(small, elsewhere, name):
    problem = small.problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), REGULARIZERS[name](problem))
    assert flow.evaluate(problem.theta0).velocity.device.type == "cpu"


def test_analyses_are_where_the_problem_is(small, elsewhere):
    ds = gf.walk(small, t_end=0.1, stop=None, max_snapshots=5)
    spectra = gf.analysis.spectra.along(ds, small, snapshots=[0, -1], k=2)
    assert spectra["largest_eigenvalue"].notnull().any()
    assert gf.analysis.pca.along(ds).sizes
    assert gf.analysis.landscape.on_plane(ds, small, points=3)["loss"].notnull().all()
