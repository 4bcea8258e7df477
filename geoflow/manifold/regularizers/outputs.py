"""Functions of a network's outputs on the data of its problem, and the losses of other problems.

Each is a mean over the examples, and a problem of its own: evaluated in the same chunks, its
evaluations counted apart from those of the level set's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import BoundRegularizer, Loss
from geoflow.manifold.regularizers.named import Make, Regularizer, bound, regularizer, suffix
from geoflow.problems import data
from geoflow.problems.parts import (
    LossPart,
    ModulePart,
    Parameters,
    Weighted,
    as_arguments,
    module_parts,
)
from geoflow.problems.problem import Problem
from geoflow.problems.protocol import ProblemLike, check_problem
from geoflow.system.memory import check_memory


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

    return Regularizer(suffix("loss", {"sign": sign}, {"sign": 1}), make, sign)


@regularizer
def margin(*, temperature: float = 1.0) -> Make:
    """R(θ) = mean over examples of f_y − τ log Σ_{k≠y} exp(f_k/τ): the margin of the right class.

    Of the outputs f of a classifier, with a smooth maximum over the wrong classes, above the true
    one by at most τ log(C − 1) of C classes, so that R is below the mean margin by as much at the
    most. With ``sign=-1`` a walk widens margins. An evaluation costs what one of a loss does.

    Parameters
    ----------
    theta, sign
        See :func:`squared_norm <geoflow.manifold.regularizers.norms.squared_norm>`.
    temperature : float
        τ > 0, in units of the outputs.
    """
    if temperature <= 0:
        raise InputError(f"temperature={temperature}; use a positive number")

    def part_of(part: ModulePart) -> LossPart:
        loss_fn = partial(_margins, temperature=temperature)
        return replace(part, loss_fn=loss_fn, scale=1.0, weight=float(data.length(part.inputs)))

    return _of_outputs("margin", part_of)


@regularizer
def jacobian_norm(*, probes: int = 0, seed: int = 0) -> Make:
    """R(θ) = mean over examples of ‖∂f/∂x‖²_F: of the outputs f in the inputs x of the network.

    As Hoffman, Roberts & Yaida (2019, arXiv:1908.02729) take it to keep a network from being moved
    by noise in its inputs. Exact, by a backward pass for each output, or by Hutchinson's estimator
    with fixed vectors of signs. Examples must not act on each other, as they do in batch
    normalisation by the batch's own statistics. An evaluation, counted as one gradient, takes about
    1 + 2K times a gradient's time with K outputs or probes.

    Parameters
    ----------
    theta, sign
        See :func:`squared_norm <geoflow.manifold.regularizers.norms.squared_norm>`.
    probes : int
        Vectors of the estimator; 0 for the exact norm.
    seed : int
        Of these.
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

    return _of_outputs("jacobian_norm", part_of)


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
            named = {**part.fixed, **parameters}
            outputs = functional_call(part.module, named, arguments, keywords)
            if not isinstance(outputs, Tensor) or len(outputs) != len(inputs):
                raise InputError(
                    "regularizer 'jacobian_norm': the network's outputs are no tensor with a row "
                    "for each example; use another R"
                )
            rows = outputs.reshape(len(outputs), -1)
            total = rows.new_zeros(())
            for direction in self._directions(rows):
                (slope,) = torch.autograd.grad(
                    rows @ direction, inputs, torch.ones_like(rows[:, 0]), create_graph=True
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
        return (2 * torch.randint(0, 2, (self.probes, n), generator=generator) - 1).to(rows)


def _margins(outputs: Any, targets: Any, *, temperature: float) -> Tensor:
    """Sum of the margins of some examples."""
    usable = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    usable = usable and outputs.ndim == 2 and outputs.shape[1] > 1
    if not usable or targets.shape != outputs.shape[:1] or targets.is_floating_point():
        raise InputError(
            "regularizer 'margin': the outputs are no logits (N, C) of classes (N,); use another R"
        )
    index = targets.long()[:, None]
    right = outputs.gather(1, index)[:, 0]
    wrong = outputs.scatter(1, index, -torch.inf)
    return (right - temperature * torch.logsumexp(wrong / temperature, 1)).sum()


def _of_outputs(name: str, part_of: Callable[[ModulePart], LossPart]) -> Make:
    """Make a problem of the same network, data and parameters with other parts."""

    def make(problem: ProblemLike | None) -> BoundRegularizer:
        parts = module_parts(problem, f"the regularisation function {name!r}")
        assert problem is not None, "a problem has parts"
        made = tuple(part_of(part) for part in parts)
        return Loss(Problem(made, problem.theta0, problem.tensors, problem.data_sha256))

    return make
