"""On a GPU: what the CPU gives, and the same at every run. Skipped where there is none."""

import pickle

import pytest
import torch
from torch import nn

import geoflow as gf
import invariants
import references
from geoflow.analysis.curvature import loss_hessian, matrix_free

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TIMES = [0.02, 0.05]


def convolutional(dtype, device):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 12, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (64,), generator=generator)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    return gf.Problem.from_module(
        module, nn.functional.cross_entropy, images, labels, dtype=dtype, device=device
    )


@pytest.mark.parametrize("solver", ["exponential", "bdf", "rkc", "dopri5"])
def test_a_walk_is_that_of_the_cpu_to_its_tolerance(solver):
    def walk(device):
        flow = references.small_network(device=device)
        return gf.walk(flow, solver, rtol=1e-6, t_end=TIMES[-1], stop=None, snapshot_times=TIMES)

    there, here = walk("cuda"), walk("cpu")
    assert there.attrs["device"].startswith("cuda")
    off = abs(there["theta"] - here["theta"]).max() / abs(here["theta"]).max()
    assert float(off) < 1e-5
    assert float(abs(there["level_residual"]).max()) <= 1e-6 * there.attrs["level"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolutions_have_the_digits_of_their_dtype_and_the_same_ones_each_time(dtype):
    # TensorFloat-32, which PyTorch takes for float32 unless it is told not to, is off by 1e-4.
    allowed = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    problem, exact = convolutional(dtype, "cuda"), convolutional(torch.float64, "cpu")
    theta = problem.theta0
    first, second = (problem.value_and_gradient(theta)[1] for _ in range(2))
    assert torch.equal(first, second)
    expected = exact.value_and_gradient(theta.double().cpu())[1]
    assert (first.double().cpu() - expected).norm() < allowed * expected.norm()


def test_an_embedding_adds_its_gradient_in_one_order():
    """PyTorch's adds it in any order, unless it is told not to."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (8192,), generator=generator)
    module = nn.Sequential(nn.Embedding(50, 16), nn.Tanh(), nn.Linear(16, 3))
    problem = gf.Problem.from_module(
        module,
        nn.functional.cross_entropy,
        tokens,
        tokens % 3,
        dtype=torch.float32,
        device="cuda",
    )
    gradients = [problem.value_and_gradient(problem.theta0)[1] for _ in range(10)]
    assert all(torch.equal(g, gradients[0]) for g in gradients)


def test_an_evaluation_is_recorded_and_replayed_to_the_bit():
    problem = convolutional(torch.float32, "cuda")
    assert problem._captured.recorded
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(3):
        theta = problem.theta0 + 0.1 * torch.randn(problem.n_parameters, generator=generator).to(
            "cuda"
        )
        value, gradient = problem.value_and_gradient(theta)
        found.append((theta, value, gradient))
    # What was found stays as it was while more is evaluated.
    for theta, value, gradient in found:
        expected = problem._evaluated(theta)
        assert torch.equal(value, expected[0])
        assert torch.equal(gradient, expected[1])
    assert torch.equal(pickle.loads(pickle.dumps(problem)).value_and_gradient(theta)[1], gradient)


def test_a_loss_that_looks_at_a_number_is_evaluated_anew_each_time():
    def loss(outputs, targets):
        entropy = nn.functional.cross_entropy(outputs, targets)
        return entropy if float(outputs.detach().max()) > 0 else 2 * entropy

    problem = gf.Problem.from_module(
        references.small_module(), loss, *references.small_data(), device="cuda"
    )
    assert not problem._captured.recorded
    exact = gf.Problem.from_module(references.small_module(), loss, *references.small_data())
    gradient = problem.value_and_gradient(problem.theta0)[1]
    assert torch.allclose(gradient.cpu(), exact.value_and_gradient(exact.theta0)[1], rtol=1e-10)
    assert torch.ones(3, device="cuda").sum() == 3


@pytest.mark.parametrize("solver", ["exponential", "bdf", "rkc", "dopri5"])
def test_a_walk_resumes_to_the_same_bits(solver, tmp_path):
    def walk(name, n):
        return gf.walk(
            references.small_network(device="cuda"),
            solver,
            rtol=1e-4,
            t_end=1.0,
            stop=None,
            max_evaluations=n,
            archive=tmp_path / name,
        )

    whole = walk("whole.nc", 150)
    walk("part.nc", 60).close()
    resumed = gf.resume(
        tmp_path / "part.nc", references.small_network(device="cuda"), max_evaluations=150
    )
    assert invariants.same(resumed, whole)
    assert gf.validate(tmp_path / "part.nc") == []


def test_float32_walks_keep_the_level():
    problem = references.small_network(device="cuda", dtype=torch.float32).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem, level_rtol=1e-5), gf.regularizers.squared_norm)
    ds = gf.walk(flow, max_evaluations=200, max_snapshots=2)
    assert ds.attrs["status"] in ("max_evaluations", "stationary")
    assert ds["theta"].dtype == "float32"
    assert float(abs(ds["level_residual"]).max()) <= 1e-5 * ds.attrs["level"]
    assert float(ds["regularizer"][-1]) < float(ds["regularizer"][0])


def test_spectra_are_those_of_the_cpu():
    problems = (references.small_network(device=d).problem for d in ("cuda", "cpu"))
    there, here = (
        matrix_free.extreme_eigenvalues(loss_hessian(p, p.theta0), 3).values for p in problems
    )
    assert there == pytest.approx(here, rel=1e-8)
