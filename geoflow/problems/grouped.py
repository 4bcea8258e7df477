"""The losses of groups of examples, each a constraint: by class, or every example's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import GeoflowError, InputError
from geoflow.problems import arithmetic, checks, data, rounding, sampling, unchanged
from geoflow.problems.counting import Counted
from geoflow.problems.division import adds_up, sum_of
from geoflow.problems.groups import Groups, checked
from geoflow.problems.joining import joined
from geoflow.problems.parts import ModulePart, Parameters, TensorSpec, module_parts
from geoflow.problems.problem import Problem
from geoflow.problems.protocol import ProblemLike
from geoflow.problems.slopes import unit_of
from geoflow.problems.widened import Either
from geoflow.system import kinds
from geoflow.system.translation import reason

# Of a group the number of examples that it weighs as, to rounding of sums and means.
WEIGHT_RTOL = {torch.float64: 1e-6, torch.float32: 1e-3}


class Grouped(Counted):
    """The mean losses of n ≥ 2 groups of a problem's examples: values (n,), gradients (n, P).

    Made by :func:`each_example` and :func:`by_class`. All groups together are one pass over the
    data, and count as one evaluation. The gradients of single examples are computed together, by
    ``torch.func.vmap``; where that cannot take what the network or the loss does, one by one.

    The loss of a group is what the problem's ``loss_fn`` makes of its examples: with class weights
    in it the mean weighted by them, in which those of one class cancel.

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
        The problem's network and data are not known, its loss is no mean over the examples,
        weighted or not, or has no value on those of a group; or there are fewer than two groups.
    """

    def __init__(
        self, problem: ProblemLike, groups: Sequence[NDArray[np.intp]], division: str
    ) -> None:
        parts = module_parts(problem, "a constraint for each group of examples")
        found = checked(groups, sum(data.length(part.inputs) for part in parts))
        self.theta0: Tensor = problem.theta0
        self.tensors: tuple[TensorSpec, ...] = problem.tensors
        self.data_sha256: str = problem.data_sha256
        self.division, self.whole = division, problem
        self._unflatten = problem.unflatten
        first = parts[0]
        # Of a chunk the loss is a sum.
        mean = first.loss_fn if first.mean is None else first.mean
        self._part = replace(first, loss_fn=mean, scale=1.0, weight=1.0, mean=None)
        inputs, targets = (joined([getattr(p, w) for p in parts]) for w in ("inputs", "targets"))
        self._groups = Groups(inputs, targets, found, alike=division == "each_example")
        values = self._first_values()
        self._check(values, parts, [len(g) for g in found], [int(g[0]) for g in found])
        # Of what it is made of, as its problem has them.
        self._rounding: NDArray[np.float64] = self._own_rounding()
        self._first = unchanged.First.of(self.theta0, values, values, rounding=self._rounding.max())

    def __repr__(self) -> str:
        what = "examples" if self.division == "each_example" else "groups of examples"
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
        """Full passes over the data so far, of all threads: ``{"gradient": n, "hvp": m}``."""
        return {"gradient": self._n_gradient, "hvp": self._n_hvp}

    def unflatten(self, theta: Tensor) -> Parameters:
        """Views of flat θ by tensor name."""
        return self._unflatten(theta)

    def loss(self, theta: Tensor) -> Tensor:
        """The losses at θ, shape (n,), not counted."""
        # There may be inner derivatives.
        with torch.enable_grad(), arithmetic.exact(self.device):
            found = self._groups.values(self._part, self.unflatten(theta))
        return found if theta.requires_grad and torch.is_grad_enabled() else found.detach()

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, shape (n,), and their gradients, shape (n, P): one evaluation."""
        given = self._spend(theta)
        with arithmetic.exact(self.device):
            return self._groups.values_and_gradients(
                self._part, self.unflatten, given, self.tensors
            )

    def values(self, theta: Tensor) -> Tensor:
        """The losses at θ, shape (n,), without gradients: counted as one evaluation all the same.

        It is a pass over the data, if one of half the work.
        """
        return self.loss(self._spend(theta).detach())

    def weighted_gradient(self, theta: Tensor, weights: Tensor) -> Tensor:
        """∇Σ wᵢLᵢ at θ, shape (P,), weights of shape (n,): one evaluation, one backward pass."""
        given = self._spend(theta)
        with torch.enable_grad(), arithmetic.exact(self.device):
            (gradient,) = torch.autograd.grad(self.loss(given) @ weights, given)
        return gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The Hessians of the losses times v, shape (n, P): exact, where the problem's are.

        Where PyTorch's second derivatives are wrong or missing, by differences of gradients, which
        are wrong beside kinks.
        """
        checks.check_like(v, self.theta0, "v")
        checks.check_like(theta, self.theta0)
        self._check_budget(2)
        if self._has_exact_products:
            self._count(hvp=1)
            at, along = self.unflatten(theta.detach().clone()), self.unflatten(v.detach())
            with arithmetic.exact(self.device):
                return self._groups.hessian_products(self._part, at, along, theta, self.tensors)
        whole = self.whole
        assert isinstance(whole, Problem)
        with self.uncounted():
            product = whole._products.spacing.difference(
                lambda at: self.value_and_gradient(at)[1], theta, v
            )
        self._count(hvp=1)
        return product

    @cached_property
    def _has_exact_products(self) -> bool:
        """Whether PyTorch's second derivatives of the whole are right, as it finds them."""
        whole = self.whole
        assert isinstance(whole, Problem)
        with whole.uncounted():
            whole.hvp(self.theta0, torch.zeros_like(self.theta0))
        return bool(whole._products.exact)

    def _spend(self, theta: Tensor) -> Tensor:
        """Count one evaluation, and give it a θ of its own."""
        checks.check_like(theta, self.theta0)
        self._check_budget(1)
        self._count(gradient=1)
        return theta.detach().clone().requires_grad_()

    def _own_rounding(self) -> NDArray[np.float64]:
        """The error of each loss by its own rounding, that of the whole at least."""
        least = np.full(len(self._groups), rounding.of(self.whole, 1))
        if self.dtype != torch.float32:
            return least

        def of(dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
            (part,) = sampling.some([self._part], dtype, 1)
            assert isinstance(part, ModulePart)
            if dtype == torch.float64:
                return lambda theta: (self._groups.values(part, self.unflatten(theta)), theta)
            return lambda theta: self._groups.values_and_gradients(
                part, self.unflatten, theta.clone().requires_grad_(), self.tensors
            )

        with torch.enable_grad(), arithmetic.exact(self.device):
            found = rounding.measured([Either(of)], self.theta0, len(least))
        return np.maximum(found, least)

    def _check(
        self,
        values: Tensor,
        parts: Sequence[ModulePart],
        sizes: Sequence[int],
        firsts: Sequence[int],
    ) -> None:
        """Refuse a loss that is no mean of those of the groups.

        Either each group weighs as many examples as it has, or what the mean divides its sum by, as
        by class weights.
        """
        if not torch.isfinite(values).all():
            raise self._without_value(values, firsts)
        with torch.no_grad():
            whole = self.whole.loss(self.theta0)
        counts = values.new_tensor([float(size) for size in sizes])
        other = self._other_mean(values * counts, counts.sum(), whole)
        if other is None:
            return
        summed = sum_of(self._part.loss_fn)
        if summed is not None and self._weighed(summed, parts, values, counts, whole):
            return
        alike = self.division == "each_example"
        sums = values * counts if alike else values
        if self._other_mean(sums, values.new_ones(()), whole) is None:
            raise adds_up(self.division)
        raise InputError(
            f"loss: its mean over the groups is {other:.6g} and that over all examples "
            f"{float(whole):.6g}, so it is no mean over examples, or they act on each other; make "
            "a problem for each constraint"
        )

    def _other_mean(self, sums: Tensor, weight: Tensor, whole: Tensor) -> float | None:
        """The mean that the groups' sums give where it is another than the whole's, or None."""
        mean = float(sums.sum() / weight)
        off, size = abs(mean - float(whole)), float(sums.abs().sum() / weight)
        allowed = 1e3 * torch.finfo(self.dtype).eps
        if off <= allowed * max(abs(float(whole)), size):
            return None
        return None if off <= allowed * self._unit else mean

    @cached_property
    def _unit(self) -> float:
        with torch.no_grad():
            return unit_of(self.whole.loss, self.theta0)

    def _weighed(
        self,
        summed: Callable[[Any, Any], Tensor],
        parts: Sequence[ModulePart],
        values: Tensor,
        counts: Tensor,
        whole: Tensor,
    ) -> bool:
        """Whether the loss is Σ sums / Σ weights, and a weight is a sum by its mean."""
        parameters = self.unflatten(self.theta0)
        # There may be inner derivatives, as in `loss`.
        with torch.enable_grad(), arithmetic.exact(self.device):
            sums = self._groups.values(replace(self._part, loss_fn=summed), parameters).detach()
            if self.division == "each_example":
                sums = sums * counts
            if parts[0].mean is None:
                total = replace(parts[0], loss_fn=summed).sum_and_weight(parameters)[0]
                weight = total.detach() / whole
            else:
                weight = whole.new_tensor(sum(part.weight for part in parts))
        if self._other_mean(sums, weight, whole) is not None:
            return False
        # A loss of zero does not tell what it is divided by.
        if not values.all():
            return True
        rtol = WEIGHT_RTOL[self.dtype]
        return bool(((sums / values).sum() - weight).abs() <= rtol * weight.abs())

    def _first_values(self) -> Tensor:
        """The losses at θ0; from here on one by one where vmap does not take them together."""
        try:
            if self.division == "each_example":
                with arithmetic.exact(self.device):
                    self._groups.values_and_gradients(
                        self._part, self.unflatten, self.theta0, self.tensors, first=2
                    )
            return self.loss(self.theta0)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        # It refuses in many ways what has no rule, is decided by a value, or leaves the graph.
        except Exception:
            self._groups.take_apart()
        try:
            return self.loss(self.theta0)
        except (GeoflowError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"loss: it fails on some of the examples by themselves ({reason(error)}), as where "
                "they act on each other (nodes of a graph, a matrix of all with all); make a "
                "problem for each constraint"
            ) from error

    def _without_value(self, values: Tensor, firsts: Sequence[int]) -> InputError:
        """What to say of groups whose loss is not finite."""
        which = [first for value, first in zip(values.isfinite(), firsts, strict=True) if not value]
        kind = "example" if self.division == "each_example" else "group"
        # Those of one class have their ignored ones in one group.
        what = "the group of example" if kind == "group" else kind
        numbers = ", ".join(map(str, which[:4])) + (", …" if len(which) > 4 else "")
        value = float(values[~values.isfinite()][0])
        if len(which) == len(values):
            # All together they have one, so it is no target of one of them that leaves it out.
            return InputError(
                f"loss: it is {value} on each {kind} alone, so examples act on each other (a "
                "contrastive or ranking loss); make a problem for each constraint"
            )
        return InputError(
            f"targets: the loss is {value} on {what} {numbers} alone, as where its target is "
            "ignored (ignore_index), its class weighs 0, or examples act on each other (a ranking "
            "loss of survival times); leave such examples out, or make a problem for each "
            "constraint"
        )


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
    hashes = (
        data.sha256(*(data.chunk(tree, i, 1) for tree in (part.inputs, part.targets)))
        for part in parts
        for i in range(data.length(part.inputs))
    )
    alike: dict[str, list[int]] = {}
    for number, digest in enumerate(hashes):
        alike.setdefault(digest, []).append(number)
    return Grouped(problem, [np.array(same) for same in alike.values()], "each_example")


def by_class(problem: ProblemLike) -> Grouped:
    """The mean loss of each class: the constraints in the order of the classes.

    That of a class is the problem's ``loss_fn`` of its examples: with class weights the plain mean,
    since one weight cancels, but for label smoothing.

    Parameters
    ----------
    problem : Problem
        From ``Problem.from_module``, with whole numbers of shape (N,) as targets.

    Raises
    ------
    InputError
        See :class:`Grouped`; or targets that are no classes.
    """
    parts = module_parts(problem, "a constraint for each class")
    targets = joined([part.targets for part in parts])
    whole = isinstance(targets, Tensor) and not targets.is_floating_point()
    if whole and targets.numel() > len(targets):
        raise InputError(
            f"targets: there are several of each example, shape {tuple(targets.shape)}, and groups "
            "are of whole examples; for each class make a problem whose other targets the loss "
            "ignores (ignore_index, -100 to PyTorch), and give LevelSet the list of them"
        )
    if not whole or targets.ndim != 1:
        raise InputError(
            "targets: they are no classes, whole numbers of shape (N,); make a problem for each "
            "constraint"
        )
    labels = targets.cpu().numpy()
    order = np.argsort(labels, kind="stable")
    _, firsts = np.unique(labels[order], return_index=True)
    return Grouped(problem, np.split(order, firsts[1:]), "by_class")


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
