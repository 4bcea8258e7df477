"""A loss over several processes is the loss over all their data."""

import json
import os
import pickle
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
import ranks
import references
from geoflow import cli
from geoflow.errors import InputError
from geoflow.problems.division import weighed
from geoflow.problems.parts import ModulePart

WEIGHTS = torch.tensor([0.3, 1.7], dtype=torch.float64)


def weighted(outputs, targets, reduction="mean"):
    return nn.functional.cross_entropy(outputs, targets, WEIGHTS, reduction=reduction)


def tokens():
    """Texts of five tokens and what follows each; some of the last are padding."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(0, 11, (24, 6), generator=generator)
    inputs, targets = given[:, :-1].contiguous(), given[:, 1:].contiguous()
    targets[::3, 3:] = -100
    module = nn.Sequential(nn.Embedding(11, 4), nn.Tanh(), nn.Linear(4, 11))
    return module, next_token, inputs, targets


def next_token(logits, targets, reduction="mean"):
    return nn.functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction=reduction
    )


def batch_loss(module, batch):
    inputs, targets = batch
    losses = nn.functional.cross_entropy(module(inputs), targets, reduction="sum")
    return losses + 1e-3 * sum(p.square().sum() for p in module.parameters()), len(targets)


def batches(sizes=(7, 7, 7, 3)):
    inputs, targets = references.small_data()
    return list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))


def of(kind):
    if kind == "batches":
        return gf.Problem.from_batches(references.small_module(), batch_loss, batches())
    if kind == "tokens":
        torch.manual_seed(0)
        return gf.Problem.from_module(*tokens())
    size = {"whole": None, "chunks": 5, "weighted": None, "float32": None}[kind]
    return gf.Problem.from_module(
        references.small_module(),
        weighted if kind == "weighted" else nn.functional.cross_entropy,
        *references.small_data(),
        batch_size=size,
        dtype=torch.float32 if kind == "float32" else torch.float64,
    )


def elsewhere(problem):
    generator = torch.Generator().manual_seed(4)
    shape = problem.theta0.shape
    theta, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return theta.to(problem.dtype) / 2, v.to(problem.dtype)


def evaluations(rank, kinds):
    found = []
    for kind in kinds:
        problem = gf.DistributedProblem(of(kind))
        theta, v = elsewhere(problem)
        value, gradient = problem.value_and_gradient(theta)
        product = problem.hvp(theta, v)
        found.append(
            [x.double().numpy() for x in (value, gradient, product, problem.loss(theta))]
            + [problem.counts, problem.data_sha256, 0 if kind == "batches" else problem.n_outputs]
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_values_gradients_and_products_are_those_of_one_process(n, tmp_path):
    kinds = ["whole", "chunks", "weighted", "batches", "float32", "tokens"]
    found = ranks.run(evaluations, n, tmp_path, kinds)
    for i, kind in enumerate(kinds):
        problem = of(kind)
        theta, v = elsewhere(problem)
        value, gradient = problem.value_and_gradient(theta)
        expected = [value, gradient, problem.hvp(theta, v), problem.loss(theta)]
        rtol = 1e-5 if kind == "float32" else 1e-12
        for rank in range(n):
            *numbers, counts, digest, n_outputs = found[rank][i]
            for a, b in zip(numbers, expected, strict=True):
                assert np.allclose(a, b.double().numpy(), rtol=rtol, atol=rtol)
            assert counts == {"gradient": 1, "hvp": 1}
            assert digest == problem.data_sha256
            assert n_outputs == (0 if kind == "batches" else problem.n_outputs)
            # To the bit: all go on from the same sums.
            for a, b in zip(numbers, found[0][i], strict=False):
                assert np.array_equal(a, b)


def with_own_data(rank):
    inputs, targets = references.small_data()
    mine = slice(0, 10) if rank == 0 else slice(10, 24)
    sums = gf.Problem.from_batches(
        references.small_module(), batch_loss, [(inputs[mine], targets[mine])]
    )
    problem = gf.DistributedProblem(sums, whole=False)
    # Not that of its own data, which it was before.
    gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm).start(problem.theta0)
    theta, _ = elsewhere(problem)
    return [x.numpy() for x in problem.value_and_gradient(theta)], problem.data_sha256


@pytest.mark.slow
def test_each_process_may_have_data_of_its_own(tmp_path):
    (first, digest), (second, same) = ranks.run(with_own_data, 2, tmp_path)
    assert digest == same
    whole = gf.Problem.from_batches(references.small_module(), batch_loss, batches((10, 14)))
    expected = whole.value_and_gradient(elsewhere(whole)[0])
    for a, b, c in zip(first, second, expected, strict=True):
        assert np.array_equal(a, b)
        assert np.allclose(a, c.numpy(), rtol=1e-12)


def batch_means(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


LOSSES = [nn.functional.cross_entropy, weighted, batch_means]


def with_uneven_shares(rank):
    """Of 19 examples and of 5: in one part both, then one of them in chunks."""
    mine = slice(0, 19) if rank == 0 else slice(19, 24)
    found = []
    for loss_fn in LOSSES:
        for size in (None, 4 if rank == 0 else None):
            own = gf.Problem.from_module(
                references.small_module(),
                loss_fn,
                *(t[mine] for t in references.small_data()),
                batch_size=size,
            )
            problem = gf.DistributedProblem(own, whole=False)
            theta, v = elsewhere(problem)
            numbers = *problem.value_and_gradient(theta), problem.hvp(theta, v)
            found.append([x.numpy() for x in numbers])
    return found


@pytest.mark.slow
def test_shares_of_uneven_size_count_as_their_examples_do(tmp_path):
    found = ranks.run(with_uneven_shares, 2, tmp_path)
    for i, loss_fn in enumerate(loss_fn for loss_fn in LOSSES for _ in range(2)):
        problem = gf.Problem.from_module(
            references.small_module(), loss_fn, *references.small_data()
        )
        theta, v = elsewhere(problem)
        expected = *problem.value_and_gradient(theta), problem.hvp(theta, v)
        for own in found:
            for a, b in zip(own[i], expected, strict=True):
                assert np.allclose(a, b.numpy(), rtol=1e-12, atol=1e-12)


def test_a_share_that_is_fitted_exactly_counts_as_the_others_do():
    module, inputs = nn.Linear(3, 2).double(), references.small_data()[0]
    part = ModulePart(module, {}, inputs, module(inputs).detach(), nn.functional.mse_loss)
    assert weighed(part, dict(module.named_parameters())).weight == pytest.approx(48, rel=1e-12)


def similar(outputs, targets):
    return nn.functional.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


def hidden_states(outputs, targets):
    return outputs[1][0].square().mean()


def of_pairs(outputs, targets):
    distances = torch.cdist(outputs, outputs).square()
    return distances.mean()


def undivided(rank, whole):
    inputs, targets = references.small_data()
    small = references.small_module()
    cells = nn.LSTM(1, 4, batch_first=True)
    found = []
    for module, loss, x in (
        (small, nn.CrossEntropyLoss(reduction="sum"), inputs),
        (small, similar, inputs),
        (small, of_pairs, inputs),
        (cells, hidden_states, inputs[..., None]),
    ):
        problem = gf.Problem.from_module(module, loss, x, targets)
        try:
            gf.DistributedProblem(problem, whole=whole)
            found.append("")
        except InputError as error:
            found.append(str(error))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_a_loss_that_is_no_mean_is_refused_by_what_was_given(whole, tmp_path):
    for said in ranks.run(undivided, 2, tmp_path, whole):
        summed, similar, pairs, states = said
        asked = "problem, divided over 2 processes" if whole else "whole=False"
        assert summed.startswith(f"{asked}: loss_fn is a sum over the examples")
        for one in (similar, pairs):
            assert one.startswith((asked, "module: the losses of some examples"))
            assert "use one process" in one
        # Of a process's own data the states are a mean like any other.
        assert states == "" if not whole else "use one process" in states
        assert not any("batch_size" in one for one in (summed, similar, pairs))


def refusals(rank):
    found = []

    def attempt(make):
        try:
            make()
            found.append("")
        except InputError as error:
            found.append(str(error))

    whole = of("whole")
    attempt(lambda: gf.DistributedProblem(references.ellipsoid().problem))
    few = gf.Problem.from_module(
        references.small_module(),
        nn.functional.cross_entropy,
        *(t[:1] for t in references.small_data()),
    )
    attempt(lambda: gf.DistributedProblem(few))
    own = gf.Problem.from_module(
        references.small_module(), nn.functional.cross_entropy, *references.small_data(seed=rank)
    )
    attempt(lambda: gf.DistributedProblem(own))
    problem = gf.DistributedProblem(whole)
    attempt(lambda: pickle.dumps(problem))
    attempt(lambda: gf.DistributedProblem(problem))
    attempt(lambda: gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.margin()))
    # A function of θ alone is the same in each.
    of_paths = [gf.regularizers.path_norm.bind(p) for p in (problem, whole)]
    values = [made.value_and_gradient(whole.theta0)[0] for made in of_paths]
    found.append("" if torch.equal(*values) else str(values))
    theta = problem.theta0 + (1e-16 if rank else 0.0)
    theta = torch.nextafter(theta, theta + rank)
    try:
        problem.value_and_gradient(theta)
    except gf.GeoflowError as error:
        found.append(str(error))
    return found


@pytest.mark.slow
def test_what_cannot_be_divided_is_refused_by_all(tmp_path):
    for said in ranks.run(refusals, 2, tmp_path):
        function, few, own, pickled, twice, margin, paths, diverged = said
        assert "has no data to divide" in function
        assert "there are 1, and 2 processes" in few
        assert "data differ from process to process" in own
        assert "cannot be pickled" in pickled
        assert "is a DistributedProblem" in twice
        assert "margin" in margin
        assert "needs them in one" in margin
        assert paths == ""
        assert "no longer the same in all 2 processes" in diverged


def test_without_processes_it_says_what_it_needs():
    with pytest.raises(InputError, match="init_process_group"):
        gf.DistributedProblem(of("whole"))


def tight(problem, archive, **settings):
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    return gf.walk(
        flow,
        "bdf",
        rtol=1e-8,
        t_end=0.2,
        stop=None,
        snapshot_times=[0.05, 0.1, 0.2],
        archive=archive,
        checkpoint_seconds=0.0,
        **settings,
    )


def walked(rank, folder):
    ds = tight(gf.DistributedProblem(of("whole")), folder / f"{rank}.nc")
    return ds["theta"].values, ds.attrs["status"]


@pytest.mark.slow
def test_a_walk_is_that_of_one_process_and_its_file_goes_on_with_any_number(tmp_path):
    (first, status), (second, _) = ranks.run(walked, 2, tmp_path, tmp_path)
    assert status == "t_end"
    assert np.array_equal(first, second)
    alone = tight(of("whole"), tmp_path / "alone.nc")
    assert np.abs(first - alone["theta"].values).max() <= 1e-8 * np.abs(first).max()
    # With one process, and with two again.
    problem = of("whole")
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sums of two shards may be the same bits
        further = gf.resume(tmp_path / "0.nc", flow, t_end=0.3)
    assert further.attrs["status"] == "t_end"
    assert float(further["time"][-1]) == 0.3
    further.close()
    (tmp_path / "1.nc").write_bytes((tmp_path / "0.nc").read_bytes())
    again = ranks.run(resumed, 2, tmp_path, tmp_path)
    assert again == [("t_end", 0.4)] * 2


def resumed(rank, folder):
    problem = gf.DistributedProblem(of("whole"))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = gf.resume(folder / f"{rank}.nc", flow, t_end=0.4)
    with ds:
        return ds.attrs["status"], float(ds["time"][-1])


class Ending:
    """An observable by which a process does something to itself at its third call."""

    def __init__(self, rank, which, how):
        self.mine, self.how, self.calls = rank == which, how, 0

    def __call__(self, theta):
        self.calls += 1
        if self.mine and self.calls == 3:
            os.kill(os.getpid(), self.how)
        return 0.0


def ended(rank, folder, how):
    ds = tight(
        gf.DistributedProblem(of("whole")),
        folder / f"{rank}.nc",
        observables={"nothing": Ending(rank, 1, how)},
    )
    return ds.attrs["status"], int(ds["n_gradient"][-1]), ds["theta"].values[-1]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_one_process_that_is_asked_to_stop_stops_all_at_one_evaluation(how, tmp_path):
    (status, n, theta), (other, m, there) = ranks.run(ended, 2, tmp_path, tmp_path, how)
    assert (status, n) == (other, m) == ("interrupted", n)
    assert np.array_equal(theta, there)
    assert gf.validate(tmp_path / "0.nc") == []


@pytest.mark.slow
def test_one_process_that_dies_ends_the_walk_of_the_others_and_it_is_kept(tmp_path):
    found, queue = ranks.start(ended, 2, tmp_path, tmp_path, signal.SIGKILL)
    rank, (status, _, theta) = queue.get(timeout=ranks.TIMEOUT)
    for process in found:
        process.join(ranks.TIMEOUT)
    assert (rank, status) == (0, "process_lost")
    assert gf.validate(tmp_path / "0.nc") == []
    with gf.open_trajectory(tmp_path / "0.nc") as ds:
        assert "another process has ended" in ds.attrs["status_message"]
        assert np.array_equal(ds["theta"].values[-1], theta)
    # The one that is left goes on by itself, and comes to the end.
    problem = of("whole")
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sums of two shards may be the same bits
        ds = gf.resume(tmp_path / "0.nc", flow, observables={"nothing": lambda theta: 0.0})
    with ds:
        assert ds.attrs["status"] == "t_end"


@pytest.mark.slow
def test_torchrun_walks_resumes_and_refuses_in_one_voice(tmp_path):
    """The file is written by the first process alone; what ends one ends the other."""

    def torchrun(*command):
        starting = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        started = subprocess.Popen(
            [*starting, "--nproc-per-node", "2", "-m", "geoflow", *command],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        said = started.communicate(timeout=120)[1]
        return started.returncode, said

    goal = ["--solver", "bdf", "--rtol", "1e-7", "--snapshot-times", "0.01,0.02", "--angle", "175"]
    short = ["run", "iris_ff", "--out", "two.nc", "--t-end", "0.02", *goal]
    assert torchrun(*short)[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["two.nc"]
    assert cli.main(["run", "iris_ff", "--out", str(tmp_path / "one.nc"), *short[4:]]) == 0
    with (
        gf.open_trajectory(tmp_path / "two.nc") as two,
        gf.open_trajectory(tmp_path / "one.nc") as one,
    ):
        off = np.abs(two["theta"].values - one["theta"].values).max()
        assert off <= 1e-8 * np.abs(one["theta"].values).max()
        assert json.loads(two.attrs["config"])["processes"] == 2
    status, said = torchrun("resume", "two.nc", "--t-end", "0.03")
    assert status == 0, said
    assert gf.validate(tmp_path / "two.nc") == []
    with gf.open_trajectory(tmp_path / "two.nc") as ds:
        assert float(ds["time"][-1]) == 0.03
    status, said = torchrun(*short)
    assert status != 0
    assert "two.nc exists" in said
    status, said = torchrun("info", "two.nc")
    assert status != 0
    assert "run and resume" in said
