"""A loss whose data are divided over the processes of ``torch.distributed``."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from geoflow.errors import DivergenceError, InputError, ProcessLostError
from geoflow.problems import arithmetic, data, unchanged
from geoflow.problems.checks import Division
from geoflow.problems.counting import own_counts
from geoflow.problems.division import divided, weighed
from geoflow.problems.parts import BatchParts, LossPart, ModulePart
from geoflow.problems.problem import Problem
from geoflow.problems.weighted import add_up
from geoflow.system.peak import peak_bytes
from geoflow.system.translation import reason

# Evaluations from one comparison of the processes' θ to the next.
COMPARED_EVERY = 16


class DistributedProblem(Problem):
    """L(θ) over the data of several processes, each of which holds and evaluates its share.

    Every process makes one and walks with it: θ and all that a solver keeps is the same in each to
    the bit, since all of them go on from the same sums. Sums and gradients are added up over the
    processes at each evaluation, in one message; every sixteenth also compares their θ. It agrees
    with the problem of one process to rounding, not to the bit: sums are in another order.

    Ctrl-C, and SIGTERM with it, that comes to one process during a walk ends the walk of all at
    the same evaluation.

    Parameters
    ----------
    problem : Problem
        Of :meth:`~geoflow.Problem.from_module` or :meth:`~geoflow.Problem.from_batches`: of all
        data, of which a share is kept and the rest can be freed, or of the process's own.
    whole : bool
        Whether it is of all data. Examples are then divided evenly, and of batches each process
        evaluates every n-th. What comes out is compared with the loss of the whole. If not, each
        process's examples count as they would in a problem of all of them.
    group : ProcessGroup, optional
        None: all processes. It has the back end that the device wants, gloo or NCCL.

    Raises
    ------
    InputError
        No process group, a loss that cannot be divided or has fewer parts than there are
        processes, or problems that are not of one network.
    ProcessLostError
        Another process has ended.

    Notes
    -----
    ``loss`` is a value here, without a graph, and every process must ask for it.
    """

    def __init__(
        self, problem: Problem, *, whole: bool = True, group: dist.ProcessGroup | None = None
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise InputError(
                "DistributedProblem needs torch.distributed.init_process_group, and a process "
                "started by torchrun or the like"
            )
        if type(problem) is not Problem:
            raise InputError(f"problem is a {type(problem).__name__}; give a geoflow.Problem")
        vars(self).update(problem.__getstate__())
        self._group, self._asked_to_stop = group, False
        # What is added up over processes is no work of one device alone.
        self._captured = None
        self.rank: int = dist.get_rank(group)
        self.n_processes: int = dist.get_world_size(group)
        with arithmetic.exact(self.device):
            expected = problem.loss(problem.theta0)
            self._parts = (
                _share(problem, self.rank, self.n_processes) if whole else _own_share(problem)
            )
        self._check_one_network(whole)
        self.theta0: Tensor = self._broadcast(problem.theta0)
        found = self.loss(self.theta0)
        if whole:
            allowed = 1e3 * torch.finfo(self.dtype).eps * max(abs(float(expected)), 1e-3)
            if not abs(float(found - expected)) <= allowed:
                raise InputError(
                    f"problem: its loss is {float(expected):.9g}, and divided over "
                    f"{self.n_processes} processes {float(found):.9g}; give each its own data, "
                    "with whole=False"
                )
        # One number for all, since what each of them does goes by it.
        self._rounding = self._largest(problem._rounding)
        beside, gradient = self._evaluated(self.theta0)
        self._first = unchanged.First.of(self.theta0, found, beside, gradient, self._rounding.max())
        self.evaluation_bytes: int = peak_bytes(lambda: self._evaluated(self.theta0))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: its other processes are not there, where it would be unpickled."""
        raise InputError("a DistributedProblem cannot be pickled; pickle the problem it is of")

    def loss(self, theta: Tensor) -> Tensor:
        """L(θ), a scalar tensor without a graph; every process must ask for it."""
        return super().loss(theta.detach()).detach()

    @property
    def n_outputs(self) -> int:
        """Numbers that the network gives on the data of all processes; every one must ask."""
        own = torch.tensor([super().n_outputs], dtype=torch.int64, device=self.device)
        with _translated():
            dist.all_reduce(own, group=self._group)
        return int(own)

    def losses(self, thetas: Tensor) -> Tensor:
        """L at N points, shape (N,), one after the other."""
        return torch.stack([self.loss(theta) for theta in thetas])

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(θ) and ∇L(θ); see :meth:`geoflow.Problem.value_and_gradient`.

        Raises
        ------
        DivergenceError
            θ is not the same in all processes.
        ProcessLostError
            Another process has ended.
        KeyboardInterrupt
            One of the processes was asked to stop.
        """
        if own_counts(self)["gradient"] % COMPARED_EVERY == 0:
            self._check_same(theta)
        return super().value_and_gradient(theta)

    @contextmanager
    def budget(self, evaluations: int) -> Iterator[None]:
        """Allow at most this many more evaluations; see :meth:`geoflow.Problem.budget`."""
        with super().budget(evaluations), self._stopped_together():
            yield

    def _mean(
        self, contributions: Iterable[tuple[tuple[Tensor, ...], Tensor]]
    ) -> tuple[Tensor, ...]:
        with arithmetic.exact(self.device):
            sums, weight = add_up(contributions)
        asked = weight.new_tensor([float(self._asked_to_stop)])
        numbers = [asked, weight, *sums]
        whole = torch.cat([t.reshape(-1).to(torch.float64) for t in numbers])
        with _translated():
            dist.all_reduce(whole, group=self._group)
        # To each process at the same evaluation.
        if whole[0]:
            self._asked_to_stop = False
            raise KeyboardInterrupt
        found = whole[2:].split([t.numel() for t in sums])
        return tuple(
            (total / whole[1]).view(t.shape).to(self.dtype)
            for total, t in zip(found, sums, strict=True)
        )

    @contextmanager
    def _stopped_together(self) -> Iterator[None]:
        """Keep what asks one process to stop for the next evaluation, of all."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def asked(*details: Any) -> None:
            self._asked_to_stop = True

        before = {s: signal.signal(s, asked) for s in (signal.SIGINT, signal.SIGTERM)}
        lost = False
        try:
            yield
        except ProcessLostError:
            lost = True
            raise
        finally:
            if lost or self._asked_to_stop:
                # It has been heard: what is left is to write the walk down.
                before[signal.SIGTERM] = signal.SIG_IGN
            for which, handler in before.items():
                signal.signal(which, handler)

    def _check_one_network(self, whole: bool) -> None:
        own = str((self.tensors, self.dtype, self.data_sha256 if whole else ""))
        digests = self._gathered(hashlib.sha256(own.encode()).digest())
        if len(set(digests)) > 1:
            what = "network, dtype or data" if whole else "network or dtype"
            raise InputError(f"problem: its {what} differ from process to process; give the same")
        if not whole:
            hashes = self._gathered(bytes.fromhex(self.data_sha256))
            self.data_sha256: str = hashlib.sha256(b"".join(hashes)).hexdigest()

    def _check_same(self, theta: Tensor) -> None:
        """Compare θ over the processes, by a hash.

        Raises
        ------
        DivergenceError
            They differ.
        """
        raw = theta.detach().cpu().contiguous().numpy().tobytes()
        if len(set(self._gathered(hashlib.sha256(raw).digest()))) > 1:
            raise DivergenceError(
                f"θ is no longer the same in all {self.n_processes} processes, so their walks are "
                "not one; use the same processors and versions for all"
            )

    def _gathered(self, digest: bytes) -> list[bytes]:
        """32 bytes of each process, in the order of their ranks."""
        own = torch.tensor(list(digest), dtype=torch.uint8, device=self.device)
        found = [torch.empty_like(own) for _ in range(self.n_processes)]
        with _translated():
            dist.all_gather(found, own, group=self._group)
        return [bytes(t.tolist()) for t in found]

    def _largest(self, numbers: unchanged.Numbers) -> unchanged.Numbers:
        """Of each number the largest that a process has."""
        found = torch.from_numpy(numbers.astype("float32")).to(self.device)
        with _translated():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        return found.double().cpu().numpy()

    def _broadcast(self, theta: Tensor) -> Tensor:
        theta = theta.clone()
        with _translated():
            source = 0 if self._group is None else dist.get_global_rank(self._group, 0)
            dist.broadcast(theta, source, group=self._group)
        return theta


@dataclass(frozen=True)
class Nth:
    """Every n-th batch of an iterable, from a first one on."""

    batches: Iterable[Any]
    first: int
    n: int

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.first, None, self.n)


def _share(problem: Problem, rank: int, n: int) -> Iterable[LossPart]:
    """The parts of a problem that one of n processes evaluates."""
    parts = problem._parts
    if isinstance(parts, BatchParts):
        if len(parts) < n:
            raise InputError(f"batches: there are {len(parts)}, and {n} processes; use fewer")
        return replace(parts, batches=Nth(parts.batches, rank, n))
    found = tuple(parts)
    first = found[0]
    if not isinstance(first, ModulePart):
        raise InputError("problem: a loss that is a function of θ alone has no data to divide")
    if len(found) < n:
        examples = [data.length(part.inputs) for part in found if isinstance(part, ModulePart)]
        if sum(examples) < n:
            raise InputError(f"inputs: there are {sum(examples)}, and {n} processes; use fewer")
        if len(found) > 1:
            raise InputError(
                f"batch_size: it makes {len(found)} chunks for {n} processes; use a smaller one"
            )
        moving = problem.unflatten(problem.theta0)
        size = -(-sum(examples) // n)
        # As even as can be: of 10 examples for 4 processes no chunk of 3 leaves one for the last.
        while -(-sum(examples) // size) < n:
            size -= 1
        asked = Division(size, f"problem, divided over {n} processes", "one process")
        found = divided(first, size, moving, division=asked)
    # Copies, so that nothing holds on to all data.
    return tuple(_own(part) for part in found[rank::n])


def _own_share(problem: Problem) -> Iterable[LossPart]:
    """The parts of a process's own data, each weighing what its examples do."""
    parts = problem._parts
    alone = parts[0] if isinstance(parts, tuple) and len(parts) == 1 else None
    # Its weight was of no effect so far: it is a mean that weighs 1, of however many examples.
    if isinstance(alone, ModulePart) and alone.scale == alone.weight == 1.0:
        return (weighed(alone, problem.unflatten(problem.theta0)),)
    return parts


def _own(part: LossPart) -> LossPart:
    assert isinstance(part, ModulePart)
    copied = (data.mapped(tree, torch.clone) for tree in (part.inputs, part.targets))
    return replace(part, **dict(zip(("inputs", "targets"), copied, strict=True)))


@contextmanager
def _translated() -> Iterator[None]:
    """Say of a message that does not come what it means."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ProcessLostError(
            f"another process has ended or cannot be reached ({reason(error)})"
        ) from None
