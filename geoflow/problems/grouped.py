"""The losses of groups of examples, each a constraint: by class, or every example's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad_and_value

from geoflow.errors import InputError
from geoflow.problems import arithmetic, checks, data, differences
from geoflow.problems.counting import Counted
from geoflow.problems.division import joined
from geoflow.problems.each import each
from geoflow.problems.parts import ModulePart, Parameters, TensorSpec, module_parts
from geoflow.problems.protocol import ProblemLike
from geoflow.system import kinds
from geoflow.system.translation import reason

# Gradients of single examples that are computed at once: as many as take so many bytes.
BYTES_AT_ONCE = 2**28


class Grouped(Counted):
    """The mean losses of n ≥ 2 groups of a problem's examples: values (n,), gradients (n, P).

    Made by :func:`each_example` and :func:`by_class`. All groups together are one pass over the
    data, and count as one evaluation. The gradients of single examples are computed together, by
    ``torch.func.vmap``.

    Parameters
    ----------
    problem : Problem
        From ``Problem.from_module``, of a loss that is a mean over its examples.
    groups : sequence of ndarray of int
        Examples of each group, by their number; every example in one group, none empty.
    division : str
        How the groups were made, as archives have it. Of ``"each_example"`` the examples of a group
        are equal, and the first is evaluated.

    Attributes
    ----------
    whole : Problem
        The problem: what R is of where it is of the loss or of the network.

    Raises
    ------
    InputError
        The problem's network and data are not known, its loss is no mean over the examples, or
        there are fewer than two groups.
    """

    def __init__(
        self, problem: ProblemLike, groups: Sequence[NDArray[np.intp]], division: str
    ) -> None:
        parts = module_parts(problem, "a constraint for each group of examples")
        groups = _checked(groups, sum(data.length(part.inputs) for part in parts))
        self.theta0: Tensor = problem.theta0
        self.tensors: tuple[TensorSpec, ...] = problem.tensors
        self.data_sha256: str = problem.data_sha256
        self.division, self.whole = division, problem
        self._unflatten = problem.unflatten
        self._part = parts[0]
        inputs, targets = (joined([getattr(p, w) for p in parts]) for w in ("inputs", "targets"))
        self._groups = [
            (_taken(inputs, torch.from_numpy(g)), _taken(targets, torch.from_numpy(g)), len(g))
            for g in groups
        ]
        self._single: tuple[Any, Any] | None = None
        if division == "each_example":
            order = torch.from_numpy(np.array([g[0] for g in groups]))
            self._single = _taken(inputs, order), _taken(targets, order)
        sizes = self.theta0.new_tensor([float(len(g)) for g in groups])
        try:
            values = self.loss(self.theta0)
        except RuntimeError as error:
            raise InputError(
                "loss: torch.func.vmap cannot take it example by example "
                f"({reason(error)}); make a problem for each constraint"
            ) from None
        mean, whole = values @ sizes / sizes.sum(), problem.loss(self.theta0)
        eps = torch.finfo(self.theta0.dtype).eps
        if not abs(float(mean - whole)) <= 1e3 * eps * max(abs(float(whole)), 1.0):
            raise InputError(
                f"loss: its mean over the groups is {float(mean):.6g} and that over all examples "
                f"{float(whole):.6g}, so it is no mean over examples; make a problem for each "
                "constraint"
            )

    def __repr__(self) -> str:
        what = "examples" if self._single else "groups of examples"
        return f"Grouped({len(self._groups)} {what}, {self.n_parameters:,} parameters)"

    @property
    def n_parameters(self) -> int:
        """P."""
        return self.theta0.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of θ and of every gradient."""
        return self.theta0.dtype

    @property
    def device(self) -> torch.device:
        """Device of θ and of every gradient."""
        return self.theta0.device

    @property
    def counts(self) -> dict[str, int]:
        """Full passes over the data so far: ``{"gradient": n, "hvp": m}``."""
        return {"gradient": self._n_gradient, "hvp": self._n_hvp}

    def unflatten(self, theta: Tensor) -> Parameters:
        """Views of flat θ by tensor name."""
        return self._unflatten(theta)

    def loss(self, theta: Tensor) -> Tensor:
        """The losses at θ, shape (n,), not counted."""
        parameters = self.unflatten(theta)
        with torch.set_grad_enabled(theta.requires_grad), arithmetic.exact(self.device):
            if self._single is not None:
                return each(self._of_one, (None, *_batched(self._single)))(
                    parameters, *self._single
                )
            return torch.stack([self._of_group(parameters, *g) for g in self._groups])

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, shape (n,), and their gradients, shape (n, P): one evaluation."""
        given = self._spend(theta, 1)
        with arithmetic.exact(self.device):
            if self._single is not None:
                return self._of_each(given)
            values, gradients = [], []
            for group in self._groups:
                with torch.enable_grad():
                    value = self._of_group(self.unflatten(given), *group)
                    (gradient,) = torch.autograd.grad(value, given)
                values.append(value.detach())
                gradients.append(gradient)
            return torch.stack(values), torch.stack(gradients)

    def values(self, theta: Tensor) -> Tensor:
        """The losses at θ, shape (n,), without gradients: counted as one evaluation all the same.

        It is a pass over the data, if one of half the work.
        """
        return self.loss(self._spend(theta, 1).detach())

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """∇Σ wᵢLᵢ at θ, shape (P,), weights of shape (n,): one evaluation, one backward pass."""
        given = self._spend(theta, 1)
        with torch.enable_grad(), arithmetic.exact(self.device):
            if self._single is None:
                parameters = self.unflatten(given)
                total = torch.stack([self._of_group(parameters, *g) for g in self._groups])
            else:
                total = self.loss(given)
            (gradient,) = torch.autograd.grad(total @ weights, given)
        return gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The Hessians of the losses times v, shape (n, P), by differences of gradients."""
        checks.check_like(v, self.theta0, "v")
        self._check_budget(2)
        size = float(torch.linalg.vector_norm(v))
        step = differences.steps(theta)[0] / (size or 1.0)
        ahead, behind = (self.value_and_gradient(theta + s * v)[1] for s in (step, -step))
        self._n_gradient, self._n_hvp = self._n_gradient - 2, self._n_hvp + 1
        return (ahead - behind) / (2 * step)

    def _spend(self, theta: Tensor, evaluations: int) -> Tensor:
        checks.check_like(theta, self.theta0)
        self._check_budget(evaluations)
        self._n_gradient += evaluations
        return theta.detach().clone().requires_grad_()

    def _of_each(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        assert self._single is not None, "groups of single examples"

        n = len(self._groups)
        at_once = max(BYTES_AT_ONCE // (theta.numel() * theta.element_size()), 1)
        made: Callable[..., Any] = each(
            grad_and_value(self._of_one),
            (None, *_batched(self._single)),
            # All in one are returned as they are, one chunk would be copied.
            chunk_size=at_once if at_once < n else None,
        )
        # By tensors: a slice of θ would have a gradient as long as θ.
        gradients, values = made(self.unflatten(theta.detach()), *self._single)
        found = theta.new_empty((n, theta.numel()))
        for t in self.tensors:
            # Those of weights come transposed, which a copy undoes faster than a concatenation.
            of_tensor = gradients[t.name]
            size = of_tensor[0].numel()
            found.narrow(1, t.offset, size).view(of_tensor.shape).copy_(of_tensor)
        return values.detach(), found

    def _of_one(self, parameters: Parameters, x: Any, y: Any) -> Tensor:
        x, y = (data.mapped(tree, lambda t: t[None]) for tree in (x, y))
        return self._of_group(parameters, x, y, 1)

    def _of_group(self, parameters: Parameters, x: Any, y: Any, size: int) -> Tensor:
        part: ModulePart = self._part
        value = part.loss_fn(replace(part, inputs=x).outputs(parameters), y)
        return value / size if _is_sum(part.loss_fn) else value


def each_example(problem: ProblemLike) -> Grouped:
    """Every example's own loss: n constraints for n examples that differ.

    Examples that are there twice, with the same target, are one constraint: as two their gradients
    would be dependent everywhere.

    Parameters
    ----------
    problem : Problem
        From ``Problem.from_module``.

    Raises
    ------
    InputError
        See :class:`Grouped`.
    """
    parts = module_parts(problem, "a constraint for each example")
    alike: dict[str, list[int]] = {}
    for part in parts:
        for i in range(data.length(part.inputs)):
            one = (data.chunk(tree, i, 1) for tree in (part.inputs, part.targets))
            alike.setdefault(data.sha256(*one), []).append(sum(map(len, alike.values())))
    return Grouped(problem, [np.array(same) for same in alike.values()], "each_example")


def by_class(problem: ProblemLike) -> Grouped:
    """The mean loss of each class: the constraints in the order of the classes.

    Parameters
    ----------
    problem : Problem
        From ``Problem.from_module``, with whole numbers as targets.

    Raises
    ------
    InputError
        See :class:`Grouped`; or targets that are no classes.
    """
    parts = module_parts(problem, "a constraint for each class")
    targets = joined([part.targets for part in parts])
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise InputError(
            "targets: they are no classes, whole numbers of shape (N,); make a problem for each "
            "constraint"
        )
    labels = targets.cpu().numpy()
    return Grouped(problem, [np.flatnonzero(labels == k) for k in np.unique(labels)], "by_class")


# By the name that an archive and the command line have of them.
DIVISIONS: dict[str, Callable[[ProblemLike], Grouped]] = {
    made.__name__: made for made in (each_example, by_class)
}


def divided(problem: ProblemLike, division: str) -> ProblemLike:
    """Divide a problem by the name of a division; as it is for an empty one.

    Raises
    ------
    InputError
        There is no such division; or see :class:`Grouped`.
    """
    check_division(division or None)
    return DIVISIONS[division](problem) if division else problem


def check_division(division: str | None) -> None:
    """Make sure that a division is one of :data:`DIVISIONS`, or None.

    Raises
    ------
    InputError
        It is not.
    """
    kinds.check_kind(division, str | None, "constraints", f"{' or '.join(DIVISIONS)}, or None")
    if division is not None and division not in DIVISIONS:
        raise InputError(f"constraints={division!r}; use {' or '.join(DIVISIONS)}")


def _checked(groups: Any, n: int) -> list[NDArray[np.intp]]:
    """Groups that hold each of n examples once."""
    kinds.check_kind(groups, Sequence, "groups", "the numbers of the examples of each group")
    found = [np.asarray(group) for group in groups]
    if len(found) < 2:
        raise InputError(
            f"groups: there is {len(found)} of examples; several constraints take two or more"
        )
    for number, group in enumerate(found):
        if group.ndim != 1 or not len(group) or group.dtype.kind not in "iu":
            raise InputError(
                f"groups[{number}]={kinds.shown(groups[number])}; give the numbers of its "
                "examples, one or more"
            )
    examples, times = np.unique(np.concatenate(found), return_counts=True)
    if not np.array_equal(examples, np.arange(n)) or times.max() > 1:
        missing = np.setdiff1d(np.arange(n), examples)
        beyond = examples[(examples < 0) | (examples >= n)]
        what = (
            f"there is no example {beyond[0]}"
            if len(beyond)
            else f"example {missing[0]} is in none"
            if len(missing)
            else f"example {examples[times > 1][0]} is in two"
        )
        raise InputError(f"groups: {what}; have each of the {n} examples in one group")
    return [group.astype(np.intp) for group in found]


def _is_sum(loss_fn: Any) -> bool:
    """Whether a loss adds up over the examples, as that of a chunk does which is made of a mean."""
    keywords = getattr(loss_fn, "keywords", {})
    return "sum" in (keywords.get("reduction"), getattr(loss_fn, "reduction", None))


def _taken(tree: Any, order: Tensor) -> Any:
    return data.mapped(tree, lambda t: t[order.to(t.device)])


def _batched(single: tuple[Any, Any]) -> tuple[Any, Any]:
    """Dimensions that vmap goes along: the first of every tensor."""
    x, y = (data.mapped(tree, lambda t: 0) for tree in single)  # type: ignore[arg-type,return-value]
    return x, y
