"""What a walk takes of memory: estimated as measured, and refused before it starts."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems.footprint import evaluation_bytes
from geoflow.solvers.base import DEFAULT_VECTORS, bytes_of, vectors_of
from geoflow.system.memory import left_in_cgroup
from geoflow.walking.memory import STATE, walk_bytes
from geoflow.walking.snapshots import Every, Thinned

WALK = """
import sys
from pathlib import Path
import torch
import geoflow as gf
from geoflow.solvers import Exponential
from geoflow.walking.memory import walk_bytes
from geoflow.walking.snapshots import Thinned


class LongSteps(Exponential):
    # Fills the Krylov space in its first step.
    def init(self, flow, state, tolerance):
        return {**super().init(flow, state, tolerance), "step_size": 1e3}


def memory(entry):
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(entry + ":")[1].split()[0])


def flow(n):
    # Blocks of one curvature each: many eigenvalues, and no large temporaries.
    curvature = torch.linspace(1, 100, 50, dtype=torch.float64)
    def loss(theta):
        return (theta.view(50, -1).square().sum(1) * curvature).sum() / 2
    theta0 = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = gf.Problem.from_function(loss, theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.quartic_norm)


torch.set_num_threads(1)
solver = LongSteps() if sys.argv[1] == "exponential" else gf.solvers.get(sys.argv[1])


def walk(flow):
    return gf.walk(flow, solver, stop=None, max_evaluations=60, max_snapshots=2)


walk(flow(100))
big = flow(1_000_000)
before = memory("VmRSS")
assert walk(big).sizes["step"] > 1
peak = memory("VmHWM") - before
print(walk_bytes(big, solver, Thinned(2), torch.float64) / peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("solver", ["exponential", "rkc", "dopri5"])
def test_the_estimate_is_within_a_quarter_of_the_measured_peak(solver):
    # As glibc does with vectors of 32 MiB and more: a freed one goes back to the system.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", WALK, solver]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 0.8 <= float(done.stdout) <= 1.25


def _group(folder, most, used, cached):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")


def test_the_limit_of_a_batch_job_is_what_there_is(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "self"
    own.write_text("0::/job/step\n")
    assert left_in_cgroup(root, tmp_path / "missing") is None
    # The root has no such files.
    (root / "job" / "step").mkdir(parents=True)
    assert left_in_cgroup(root, own) is None
    _group(root / "job" / "step", "max", 10, 0)
    assert left_in_cgroup(root, own) is None
    _group(root / "job", 1000, 700, 50)
    assert left_in_cgroup(root, own) == 350
    _group(root / "job" / "step", 100, 90, 5)
    assert left_in_cgroup(root, own) == 15
    _group(root / "job" / "step", 100, 120, 5)
    assert left_in_cgroup(root, own) == 0
    # A container sees its own group as the root.
    own.write_text("1:name=systemd:/x\n0::/\n")
    _group(root, 5000, 1000, 0)
    assert left_in_cgroup(root, own) == 4000


def _available(monkeypatch, n_bytes):
    monkeypatch.setattr("geoflow.system.memory.available_memory", lambda device: n_bytes)


def test_a_solver_that_would_not_fit_is_refused_before_the_first_evaluation(monkeypatch, network):
    n = 8 * network.problem.n_parameters
    evaluations = network.problem.evaluations
    rkc = STATE + vectors_of(gf.solvers.get("rkc"))
    _available(monkeypatch, rkc * n + evaluation_bytes(network.problem) + 2 * n)
    message = (
        r"solver='exponential': the \d+ vectors of a walk in [\d,]+ parameters and an evaluation's "
        r"[\d.]+ MiB need .*use a solver with fewer, such as 'rkc'"
    )
    with pytest.raises(InputError, match=message):
        gf.walk(network, "exponential", max_snapshots=2)
    assert network.problem.evaluations == evaluations
    gf.walk(network, "rkc", max_snapshots=2, max_evaluations=40)


def test_the_limit_of_krylov_vectors_that_is_named_does_fit(monkeypatch, network):
    n = 8 * network.problem.n_parameters
    others = vectors_of(gf.solvers.Exponential(max_vectors=7))
    _available(monkeypatch, (STATE + others + 2) * n + evaluation_bytes(network.problem))
    for solver in ("exponential", "exponential:max_vectors=10"):
        with pytest.raises(InputError, match="use 'exponential:max_vectors=9', 'rkc'"):
            gf.walk(network, solver, archive="never-made.nc")
    gf.walk(network, "exponential:max_vectors=7", max_snapshots=2, max_evaluations=40)


def test_activations_that_would_not_fit_are_refused_by_the_option_that_bounds_them(monkeypatch):
    def of(batch_size):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)
        )
        inputs, targets = torch.randn(20_000, 4), torch.randn(20_000, 1)
        loss = torch.nn.functional.mse_loss
        problem = gf.Problem.from_module(module, loss, inputs, targets, batch_size=batch_size)
        return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)

    whole = of(None)
    # Two layers of 64 by 20,000, and the gradient of one.
    assert 2 <= evaluation_bytes(whole.problem) / (8 * 64 * 20_000) <= 4
    _available(monkeypatch, 2**23)
    with pytest.raises(InputError, match=r"an evaluation's [\d.]+ MiB need .*batch_size"):
        gf.walk(whole, "rkc", max_snapshots=2)
    assert whole.problem.evaluations == 0
    gf.walk(of(1_000), "rkc", max_snapshots=2, max_evaluations=10)


def test_snapshots_that_would_not_fit_are_refused_and_an_archive_lifts_it(
    monkeypatch, network, tmp_path
):
    n = 8 * network.problem.n_parameters
    _available(monkeypatch, 100 * n)
    settings = {"solver": "rkc", "max_evaluations": 40}
    evaluations = network.problem.evaluations
    with pytest.raises(InputError, match=r"100 snapshots .*max_snapshots.*theta_dtype.*archive"):
        gf.walk(network, **settings, max_snapshots=100)
    assert network.problem.evaluations == evaluations
    gf.walk(network, **settings, max_snapshots=40)
    gf.walk(network, **settings, max_snapshots=100, archive=tmp_path / "walk.nc").close()


def test_the_estimate_counts_every_vector(network):
    vector = 8 * network.problem.n_parameters
    evaluation = evaluation_bytes(network.problem)

    def of(solver, rule, dtype=torch.float64):
        return (walk_bytes(network, solver, rule, dtype) - evaluation) / vector

    rkc, unnamed = gf.solvers.get("rkc"), SimpleNamespace(name="one's own")
    assert of(rkc, Every(1.0)) == STATE + rkc.vectors
    assert of(unnamed, Every(1.0)) == STATE + DEFAULT_VECTORS
    assert of(rkc, Thinned(2)) == STATE + rkc.vectors + 2
    assert of(rkc, Thinned(2), torch.float32) == STATE + rkc.vectors + 1
    # The snapshots are stacked once the solver has let go.
    assert walk_bytes(network, rkc, Thinned(1000), torch.float64) == (STATE + 2000) * vector


def test_of_krylov_vectors_the_limit_and_the_dtype_count(network):
    theta, exponential = network.problem.theta0, gf.solvers.Exponential

    def of(**options):
        return bytes_of(exponential(**options), theta) / (8 * theta.numel())

    others = of() - 41
    assert of(max_vectors=9) == 10 + others
    assert of(max_vectors=9, basis="float32") == 5 + others
    assert exponential().vectors == of()
    # A GPU takes whole blocks.
    on_gpu = exponential().bytes_at(theta.to("meta")) / (8 * theta.numel())
    assert on_gpu == 48 + others


def test_every_solver_says_how_many_vectors_it_holds():
    # That of SUNDIALS is an extra, which need not be installed.
    names = [name for name in gf.solvers.names() if name != "cvode"]
    assert all(gf.solvers.get(name).vectors > 0 for name in names)
    history = gf.solvers.TorchDiffEq("explicit_adams", reproject_every=1.0).vectors
    assert history > gf.solvers.get("explicit_adams").vectors
