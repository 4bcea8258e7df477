"""Functions of a network's outputs on the data of its problem, and the losses of other problems.

Each is a mean over the examples, and a problem of its own: evaluated in the same chunks, its
evaluations counted apart from those of the level set's loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import BoundRegularizer, Loss
from geoflow.manifold.regularizers.named import (
    Make,
    Regularizer,
    bound,
    needs_problem,
    regularizer,
    suffix,
)
from geoflow.problems import arithmetic, data
from geoflow.problems.differences import VALUE_RTOL
from geoflow.problems.forward import as_arguments
from geoflow.problems.parts import LossPart, ModulePart, Parameters, module_parts
from geoflow.problems.problem import Problem
from geoflow.problems.protocol import ProblemLike, check_problem
from geoflow.problems.weighted import Weighted
from geoflow.system.memory import check_memory

# In the place of an ignored target where there is none.
NO_TARGET = -(2**62)


def loss(problem: ProblemLike, *, sign: int = 1) -> Regularizer:
    """R(θ) = the loss of another problem of the same parameters.

    As the problem itself in the place of R, with a sign: −1 to raise the loss on examples that are
    to be forgotten, say. Archives do not hold the problem: such a walk is resumed with its flow,
    made in Python, and is not run again from its file alone.

    Parameters
    ----------
    problem : ProblemLike
        Its evaluations are counted apart from those of the level set.
    sign : int
        −1 for −R, up which a walk goes.

    Raises
    ------
    InputError
        ``sign`` is another number.
    """
    if sign not in (1, -1):
        raise InputError(f"regularizer 'loss': sign={sign!r}; use 1 or -1")
    check_problem(problem, "regularizer 'loss'")

    def make(of: ProblemLike | None) -> BoundRegularizer:
        return Loss(problem) if of is None else bound(problem, of)

    name = suffix("loss", {"sign": sign}, {"sign": 1})
    return Regularizer(name, make, sign, partial(loss, problem, sign=sign))


@regularizer
def margin(*, temperature: float = 1.0, class_dim: int | None = None) -> Make:
    """R(θ) = mean over targets of f_y − τ log Σ_{k≠y} exp(f_k/τ): the margin of the right class.

    Of the outputs f of a classifier, with a smooth maximum over the wrong classes, above the true
    one by at most τ log(C − 1) of C classes, so that R is below the mean margin by as much at the
    most. With ``sign=-1`` a walk widens margins. An evaluation costs what one of a loss does.
    Targets that the loss ignores, by its ``ignore_index``, are left out.

    Outputs have the shape of the targets and one axis more, that of the C classes: (N, C) with one
    target an example, (N, C, T) or (N, T, C) with T of them, as words of a sequence or pixels.

    Parameters
    ----------
    theta, sign
        See :func:`squared_norm <geoflow.manifold.regularizers.norms.squared_norm>`.
    temperature : float
        τ > 0, in units of the outputs.
    class_dim : int, optional
        The axis of the outputs along which the classes are; wanted only where the shape of the
        targets leaves several, as with as many words as classes.

    Raises
    ------
    InputError
        ``temperature`` is not positive, or ``class_dim`` 0; and where a flow is made, a problem
        whose network or targets are of no classifier.
    """
    if temperature <= 0:
        raise InputError(f"temperature={temperature}; use a positive number")
    if class_dim == 0:
        raise InputError("class_dim=0 is the axis of the examples; use 1 or -1")

    def part_of(part: ModulePart) -> LossPart:
        there, n = None, data.length(part.inputs)
        if isinstance(part.targets, Tensor):
            counted = part.targets != _ignored(part.loss_fn)
            there, n = None if bool(counted.all()) else counted, int(counted.sum())
        loss_fn = partial(_margins, temperature=temperature, class_dim=class_dim, there=there)
        return replace(part, loss_fn=loss_fn, scale=1.0, weight=float(n))

    return _of_outputs("margin", part_of, partial(_check_classes, class_dim=class_dim))


@regularizer
def jacobian_norm(*, probes: int = 0, seed: int = 0) -> Make:
    """R(θ) = mean over examples of ‖∂f/∂x‖²_F: of the outputs f in the inputs x of the network.

    As Hoffman, Roberts & Yaida (2019, arXiv:1908.02729) take it to keep a network from being moved
    by noise in its inputs. Exact, by a backward pass for each output, or by Hutchinson's estimator
    with fixed vectors of signs. Examples must not act on each other, as they do in batch
    normalisation by the batch's own statistics; a network in which they do is refused. An
    evaluation, counted as one gradient, takes about 1 + 2K times a gradient's time with K outputs
    or probes.

    Parameters
    ----------
    theta, sign
        See :func:`squared_norm <geoflow.manifold.regularizers.norms.squared_norm>`.
    probes : int
        Vectors of the estimator; 0 for the exact norm.
    seed : int
        Of these.

    Raises
    ------
    InputError
        ``probes`` is negative, or ``seed`` not from 0 to below 2**63; and where a flow is made, a
        network without one tensor of inputs, or whose examples act on each other.
    """
    if probes < 0:
        raise InputError(f"probes={probes}; use a positive whole number, or 0 for the exact norm")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed={seed}; use zero or a positive number below 2**63")

    def part_of(part: ModulePart) -> LossPart:
        if not isinstance(part.inputs, Tensor) or not part.inputs.is_floating_point():
            raise InputError(
                "regularizer 'jacobian_norm': the inputs are no single tensor of floating numbers, "
                "in which a network has a Jacobian; use another R"
            )
        return _JacobianPart(part, probes, seed)

    return _of_outputs("jacobian_norm", part_of, _check_apart)


@dataclass(frozen=True)
class _JacobianPart(LossPart):
    """Σ ‖∂f/∂x‖²_F over some examples."""

    part: ModulePart
    probes: int
    seed: int

    def sum_and_weight(self, parameters: Parameters) -> Weighted:
        """The sum, and the number of examples."""
        part = self.part
        inputs = part.inputs.detach().requires_grad_()
        with torch.enable_grad():
            arguments, keywords = as_arguments(inputs)
            outputs = part.called(parameters, arguments, keywords)
            if not isinstance(outputs, Tensor) or outputs.shape[:1] != inputs.shape[:1]:
                raise InputError(
                    "regularizer 'jacobian_norm': the network's outputs are no tensor with a row "
                    "for each example; use another R"
                )
            rows = outputs.reshape(len(outputs), -1)
            total = rows.new_zeros(())
            for direction in self._directions(rows):
                along = rows @ direction
                slope = None
                if along.requires_grad:
                    ones = torch.ones_like(along)
                    (slope,) = torch.autograd.grad(
                        along, inputs, ones, create_graph=True, allow_unused=True
                    )
                if slope is None:
                    raise InputError(
                        "regularizer 'jacobian_norm': the outputs have no derivative in the "
                        "inputs: forward takes these out of the graph (x.detach(), NumPy) or does "
                        "not use them; detach them only if not x.requires_grad, or use another R"
                    )
                total = total + (slope**2).sum()
            if self.probes:
                total = total / self.probes
        return total, torch.full_like(total.detach(), float(len(inputs)))

    def _directions(self, rows: Tensor) -> Tensor:
        n = rows.shape[1]
        if not self.probes:
            return torch.eye(n, dtype=rows.dtype, device=rows.device)
        # Of whole numbers of eight bytes at first, then in the dtype of the outputs.
        what = f"regularizer 'jacobian_norm': probes={self.probes} vectors of signs"
        check_memory(16 * self.probes * n, what, "use fewer", rows.device)
        generator = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, (self.probes, n), generator=generator, device="cpu")
        return (2 * signs - 1).to(rows)


def _margins(
    outputs: Any,
    targets: Any,
    *,
    temperature: float,
    class_dim: int | None,
    there: Tensor | None = None,
) -> Tensor:
    """Sum of the margins of some examples, of those targets that are there where not all are."""
    axis = _class_axis(outputs, targets, class_dim)
    known = targets.long() if there is None else torch.where(there, targets.long(), 0)
    index = known.unsqueeze(axis)
    right = outputs.gather(axis, index).squeeze(axis)
    wrong = outputs.scatter(axis, index, -torch.inf)
    margins = right - temperature * torch.logsumexp(wrong / temperature, axis)
    return margins.sum() if there is None else torch.where(there, margins, 0).sum()


def _class_axis(outputs: Any, targets: Any, class_dim: int | None) -> int:
    """Along which axis of logits the classes are: the others are those of the targets.

    Raises
    ------
    InputError
        It is none of them, or may be several.
    """
    fitting: list[int] = []
    said = f"the outputs, a {type(outputs).__name__},"
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
        said = f"outputs of shape {tuple(outputs.shape)} and targets of {tuple(targets.shape)}"
        fitting = [
            axis
            for axis in range(1, outputs.ndim)
            if outputs.shape[axis] > 1
            and (*outputs.shape[:axis], *outputs.shape[axis + 1 :]) == targets.shape
            and not targets.is_floating_point()
        ]
    if not fitting:
        raise InputError(
            f"regularizer 'margin': {said} are no logits and classes; let the module return (N, C) "
            "for whole numbers (N,), or for those of another shape one axis more, or use another R"
        )
    chosen = [a for a in fitting if class_dim in (None, a, a - outputs.ndim)]
    if len(chosen) != 1:
        given = "" if class_dim is None else f"class_dim={class_dim}, and "
        raise InputError(
            f"regularizer 'margin': {given}{said} have the classes along axis "
            f"{' or '.join(map(str, fitting))}; give that as class_dim"
        )
    return chosen[0]


def _ignored(loss_fn: Any) -> int:
    """The target that a loss leaves out, where it says so as PyTorch's own do."""
    found = getattr(loss_fn, "ignore_index", None)
    if isinstance(loss_fn, partial):
        named = loss_fn.keywords.get("ignore_index")
        found = _ignored(loss_fn.func) if named is None else named
    elif found is None:
        with suppress(TypeError, ValueError):
            option = inspect.signature(loss_fn).parameters.get("ignore_index")
            found = None if option is None else option.default
    return found if isinstance(found, int) else NO_TARGET


def _check_classes(
    parts: Sequence[ModulePart], parameters: Parameters, *, class_dim: int | None
) -> None:
    """Refuse targets that are no class of the network, but for those that the loss ignores.

    A loss of one's own may leave them out without saying so.
    """
    # A network may take derivatives itself.
    with torch.enable_grad(), arithmetic.exact(next(iter(parameters.values())).device):
        outputs = parts[0].outputs(parameters)
    axis, n = _class_axis(outputs, parts[0].targets, class_dim), 0
    n_classes = outputs.shape[axis]
    for part in parts:
        there = part.targets[part.targets != _ignored(part.loss_fn)]
        n += len(there)
        wrong = there[(there < 0) | (there >= n_classes)]
        if len(wrong):
            raise InputError(
                f"regularizer 'margin': {len(wrong)} targets, as {int(wrong[0])}, are none of the "
                f"{n_classes} classes, and the loss has no ignore_index that leaves them out; give "
                "it one, as nn.CrossEntropyLoss(ignore_index=…) has, or leave those examples out"
            )
    if not n:
        raise InputError(
            "regularizer 'margin': the loss ignores all targets; use another R, or other data"
        )


def _check_apart(parts: Sequence[ModulePart], parameters: Parameters) -> None:
    """Refuse a network in which examples act on each other: the outputs of some of another.

    The inputs of one half are replaced by some of the other's, whose outputs then stay. A half is
    drawn, so that examples beside each other are in different ones too.
    """
    part = parts[0]
    n = data.length(part.inputs)
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu")
    drawn = drawn.to(part.inputs.device)
    halves = drawn[: n // 2], drawn[n // 2 :]
    with torch.enable_grad(), arithmetic.exact(part.inputs.device):
        outputs = part.outputs(parameters)
        if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != n:
            return
        if not outputs.is_floating_point():
            raise InputError(
                f"regularizer 'jacobian_norm': the network's outputs are {outputs.dtype}; give "
                "real ones of a floating dtype, or use another R"
            )
        if n < 2:
            return
        for kept, others in (halves, halves[::-1]):
            inputs = part.inputs.clone()
            inputs[others] = inputs[kept].repeat(2, *[1] * (inputs.ndim - 1))[: len(others)]
            beside = replace(part, inputs=inputs).outputs(parameters).detach()[kept]
            apart = torch.linalg.vector_norm(beside - outputs.detach()[kept])
            size = torch.linalg.vector_norm(outputs.detach())
            if apart > VALUE_RTOL.get(beside.dtype, 30 * torch.finfo(beside.dtype).eps) * size:
                raise InputError(
                    "regularizer 'jacobian_norm': the outputs of some examples change with the "
                    "inputs of others (batch statistics, attention over the examples, a graph), so "
                    "none has a Jacobian of its own; use another R"
                )


def _of_outputs(
    name: str,
    part_of: Callable[[ModulePart], LossPart],
    check: Callable[[Sequence[ModulePart], Parameters], None],
) -> Make:
    """Make a problem of the same network, data and parameters with other parts."""

    def make(problem: ProblemLike | None) -> BoundRegularizer:
        if problem is None:
            raise needs_problem(f"regularizer {name!r}", "it is of a network's outputs")
        parts = module_parts(problem, f"the regularisation function {name!r}")
        made = tuple(part_of(part) for part in parts)
        check(parts, problem.unflatten(problem.theta0))
        return Loss(Problem(made, problem.theta0, problem.tensors, problem.data_sha256))

    return make
