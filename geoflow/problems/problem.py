"""The training loss as a function of one flat parameter vector, with exact evaluation counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.problems import (
    alone,
    capture,
    checks,
    differences,
    few,
    flattening,
    gauss_newton,
    kept,
    live,
    making,
    products,
    rounding,
    sampling,
    third,
    unchanged,
)
from geoflow.problems.data import Tree
from geoflow.problems.dtypes import dtype_name
from geoflow.problems.each import each
from geoflow.problems.mean import MeanOfParts
from geoflow.problems.parts import (
    LossPart,
    ModulePart,
    Parameters,
    TensorSpec,
    network_of,
    of_network,
)
from geoflow.system import kinds
from geoflow.system.peak import peak_bytes


class Problem(MeanOfParts):
    """A deterministic loss L(θ) on flat θ ∈ R^P: value, gradient, Hessian-vector product.

    Make one with :meth:`from_module`, :meth:`from_batches` or :meth:`from_function`. Their
    assumptions about the loss are checked when the problem is made, by some twenty evaluations near
    ``theta0`` that :attr:`counts` does not include. Pickled, its counts start at zero on the other
    side.

    Several threads may evaluate one: forward passes are made one at a time, backward passes beside
    each other. One of them may walk with it.

    Attributes
    ----------
    theta0 : Tensor, shape (P,)
        The starting point; its dtype and device are those of the problem.
    tensors : tuple of TensorSpec
        Name, offset and shape of every trainable tensor, in flat order.
    data_sha256 : str
        SHA-256 of the data as they were given; empty for :meth:`from_function`.
    evaluation_bytes : int
        Tensors that one evaluation holds at its peak, activations included.
    """

    def __init__(
        self,
        parts: Iterable[LossPart],
        theta0: Tensor,
        tensors: tuple[TensorSpec, ...],
        data_sha256: str = "",
    ) -> None:
        self._parts = parts
        self.theta0 = theta0
        self.tensors = tensors
        self.data_sha256 = data_sha256
        self._products = products.HessianProducts()
        self._thirds = third.ThirdDerivatives()
        self._gauss_newton = gauss_newton.Products()
        # Batches may be made anew for each evaluation, and functions may close over anything.
        fixed = isinstance(parts, tuple) and isinstance(parts[0], ModulePart)
        self._captured = capture.Captured() if fixed and capture.pays(theta0) else None
        # Of batches only the first has been evaluated before.
        with checks.explained(theta0.dtype):
            own = flattening.apart(theta0, tensors, copied=True)
            self._copied = flattening.views_as_complex(parts, own)
            first_loss = self.loss(theta0)
        checks.check_deterministic(first_loss, self.loss(theta0))
        with self.uncounted():
            with checks.naming_padding(parts):
                wide = sampling.in_either_dtype(self._evaluated, parts)
                value, first = differences.check_gradient(
                    self.value_and_gradient, theta0, "loss", wide
                )
            # Of a loss in float64, and where its error is not known, zero.
            self._rounding = rounding.measured(wide, theta0)
            second = self.value_and_gradient(theta0)[1]
            checks.check_repeatable(first, second)
            differences.check_same_value(first_loss, value, first, theta0, self.loss)
            self._first = unchanged.First.of(theta0, first_loss, value, first, self._rounding.max())
            gradient = self.unflatten(first)
            kept.check_used(parts, network_of(self), self.unflatten(theta0), gradient)
            self.evaluation_bytes: int = peak_bytes(lambda: self._evaluated(theta0))

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        inputs: Tree,
        targets: Tree,
        batch_size: int | None = None,
        *,
        parameters: str | Sequence[str] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Problem:
        """Make a problem from a module, a mean loss and the whole training set.

        Parameters
        ----------
        module : torch.nn.Module
            Copied, never modified. Parameters with ``requires_grad=False`` and all
            buffers stay fixed.
        loss_fn : callable
            ``loss_fn(outputs, targets)`` → scalar mean over the examples. A module is copied and
            converted with the network; parameters of its own are not part of θ, and must be fixed.
            So are tensors and arrays among the arguments of a ``functools.partial`` copied.
        inputs, targets : Tensor or array, shape (N, …), or tuple or dict of such
            The network is called ``module(inputs)``, ``module(*inputs)`` for a tuple,
            ``module(**inputs)`` for a dictionary, in which numbers, texts and None are constants.
            Floating tensors are converted to ``dtype``; whole ones are kept, integer targets as
            int64. They are copied, so later changes to the originals have no effect; the loss must
            not write into them. Targets may be None, which is passed on to the loss.
        batch_size : int, optional
            Evaluate in chunks of this many examples: the same result to rounding,
            with memory flat in N, where examples do not act on each other. Outputs that the loss
            uses have the examples in their first dimension. None: the whole set at once.
        parameters : str or sequence of str, optional
            Patterns of the names of those that move, as ``"head.*"``; the rest stays fixed.
        dtype : torch.dtype
            float64 or float32.
        device : torch.device or str
            Where everything is evaluated.

        Raises
        ------
        InputError
            Non-finite data, shapes that do not match, no trainable parameter, a module in a mode
            that makes the loss random or stateful, or a loss that is not what it must be: finite,
            a function of θ alone with a gradient, the same in chunks and after conversion.
        """
        problem = cls(
            *making.of_module(
                module, loss_fn, inputs, targets, batch_size, parameters, dtype, device
            )
        )
        live.remember(module, [tensor.name for tensor in problem.tensors])
        return problem

    @classmethod
    def from_batches(
        cls,
        module: nn.Module,
        batch_loss: Callable[[nn.Module, Any], tuple[Tensor, float]],
        batches: Iterable[Any],
        *,
        parameters: str | Sequence[str] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Problem:
        """Make a problem from batches of data: any loss that is a sum over them.

        Parameters
        ----------
        module : torch.nn.Module
            See :meth:`from_module`.
        batch_loss : callable
            ``batch_loss(module, batch)`` → (sum of the batch's losses, its weight): a scalar tensor
            and a number that does not depend on θ. L = Σ sums / Σ weights. The module it is given
            has the θ in question: whatever of it is used, calls or parameters, is part of L(θ).
        batches : iterable
            A ``DataLoader`` that does not shuffle, or anything else that gives the same batches in
            the same order whenever it is iterated. Tensors in tuples, lists and dictionaries,
            sparse ones too, are converted to ``dtype`` and moved to ``device``, one batch at a
            time. They are **not copied**: what is written into them later changes L, and no
            walk begins on it any more. Where several threads evaluate, each iterates them for
            itself.
        parameters, dtype, device
            See :meth:`from_module`.

        Raises
        ------
        InputError
            See :meth:`from_module`; or batches that are not the same twice.
        """
        made = making.of_batches(module, batch_loss, batches, parameters, dtype, device)
        problem = cls(*made)
        live.remember(module, [tensor.name for tensor in problem.tensors])
        return problem

    @classmethod
    def from_function(cls, loss: Callable[[Tensor], Tensor], theta0: Tensor) -> Problem:
        """Make a problem from any scalar function of a flat tensor.

        Parameters
        ----------
        loss : callable
            Tensor (P,) → scalar Tensor, differentiable by autograd.
        theta0 : Tensor, shape (P,)
            Starting point; its dtype and device are used throughout.

        Raises
        ------
        InputError
            ``theta0`` is not a finite flat floating tensor, or the loss not a scalar that has a
            gradient; or it uses parameters of a module that a problem was made of, not frozen.
        """
        problem = cls(*making.of_function(loss, theta0))
        live.check_alone(alone.Alone(loss), problem.theta0, "loss")
        return problem

    def __repr__(self) -> str:
        return (
            f"Problem({self.n_parameters:,} parameters in {len(self.tensors)} tensors, "
            f"{dtype_name(self.dtype)} on {self.device}, {self.evaluations} evaluations so far)"
        )

    @property
    def n_parameters(self) -> int:
        """P, the number of trainable parameters."""
        return self.theta0.numel()

    @cached_property
    def n_outputs(self) -> int:
        """Numbers that the network gives on the whole training set: examples × outputs of each.

        A complex output is two.

        Raises
        ------
        InputError
            The problem is not of :meth:`from_module`, so its outputs are not known; or they are no
            tensors, in tuples, dictionaries or dataclasses.
        """
        parameters = self.unflatten(self.theta0)
        parts = of_network(self._parts, "their number")
        # There may be inner derivatives.
        with torch.enable_grad():
            return sum(gauss_newton.n_outputs(part.outputs(parameters)) for part in parts)

    @property
    def n_chunks(self) -> int:
        """In how many chunks the examples are evaluated."""
        return len(self._parts)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of θ and of every evaluation."""
        return self.theta0.dtype

    @property
    def device(self) -> torch.device:
        """Device of θ and of every evaluation."""
        return self.theta0.device

    @property
    def counts(self) -> dict[str, int]:
        """Evaluations so far: ``{"gradient": n, "hvp": m}``, full passes over the data.

        Of all threads together; a walk records those of its own. A bare :meth:`loss` is not
        counted: no solver uses it.
        """
        return {"gradient": self._n_gradient, "hvp": self._n_hvp}

    def loss(self, theta: Tensor) -> Tensor:
        """L(θ), a scalar tensor, differentiable in θ; not counted.

        Raises
        ------
        InputError
            θ has another shape, dtype or device than :attr:`theta0`.
        """
        checks.check_like(theta, self.theta0)
        derivable = theta.requires_grad and torch.is_grad_enabled()
        given = theta if derivable or not theta.requires_grad else theta.detach()
        parameters = self.unflatten(given)

        def contribution(part: LossPart) -> tuple[tuple[Tensor], Tensor]:
            # There may be inner derivatives. They leave a graph even where θ has none.
            with torch.enable_grad():
                value, weight = part.sum_and_weight(parameters)
            inner = value.requires_grad and not derivable
            return (value.detach() if inner else value,), weight

        return self._mean(contribution(part) for part in self._parts)[0]

    def losses(self, thetas: Tensor) -> Tensor:
        """L at N points, shape (N,), all at once by ``torch.func.vmap``; not counted either.

        The same numbers as :meth:`loss` gives, to rounding, with N times its memory.

        Parameters
        ----------
        thetas : Tensor, shape (N, P)
            The points.

        Raises
        ------
        InputError
            The points have another shape, dtype or device than :attr:`theta0`.
        RuntimeError
            From torch, where vmap cannot take what the loss does.
        """
        kinds.check_kind(thetas, Tensor, "thetas", "a torch.Tensor of shape (N, P)")
        if thetas.ndim != 2:
            raise InputError(f"thetas has shape {tuple(thetas.shape)}; give (N, P)")
        if not len(thetas):  # vmap goes over one at the least
            checks.check_like(thetas.new_empty(thetas.shape[1:]), self.theta0)
            return thetas.new_empty(0)
        with torch.no_grad():
            return each(self.loss)(thetas)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(θ), a scalar tensor, and ∇L(θ), shape (P,): one evaluation.

        Raises
        ------
        InputError
            θ has another shape, dtype or device than :attr:`theta0`, or the loss changes it.
        EvaluationLimitError
            A :meth:`budget` is spent.
        """
        checks.check_like(theta, self.theta0)
        self._check_budget(1)
        self._count(gradient=1)
        if self._captured is None:
            return self._evaluated(theta)
        return self._captured(self._evaluated, theta)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇²L(θ) v, shape (P,): one Hessian-vector product.

        Exact to rounding, where PyTorch's second derivatives of what the loss uses are: before the
        first product a few are compared with differences of gradients, tensor by tensor. Where they
        are not, or are not there, products are such differences, with a warning that says how good
        they are.

        Raises
        ------
        InputError
            θ or v has another shape, dtype or device than :attr:`theta0`.
        EvaluationLimitError
            A :meth:`budget` is spent.
        """
        self._check_both(theta, v)
        if self._products.exact is None:
            with self.uncounted():
                sizes = [math.prod(s.shape) for s in self.tensors]
                wide = partial(few.Few, self, torch.float64)
                self._products.choose(
                    self._derived, self.value_and_gradient, self.theta0, sizes, wide
                )
        if self._products.exact:
            return self._derived(theta, v)
        self._check_budget(2)
        with self.uncounted():
            product = self._products.difference(self.value_and_gradient, theta, v)
        self._count(hvp=1)
        return product

    def third_product(self, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """∇²L(θ) v and ∇³L(θ)[v, v], the gradient of vᵀ∇²L(θ) v: shape (P,) both.

        Counted as two products, and exact as they are: at the first, PyTorch's third derivatives
        are compared with differences of products. Where they are not right, or not there, such
        differences take their place, with a warning, and count as the products that they take.

        Raises
        ------
        InputError
            θ or v has another shape, dtype or device than :attr:`theta0`.
        ConvergenceError
            Differences over several steps do not agree.
        EvaluationLimitError
            A :meth:`budget` is spent.
        """
        self._check_both(theta, v)
        if self._thirds.exact is None:
            with self.uncounted():
                sizes = [math.prod(s.shape) for s in self.tensors]
                self.hvp(self.theta0, torch.zeros_like(self.theta0))
                self._thirds.choose(self, sizes, of_products=bool(self._products.exact))
        if self._thirds.exact:
            return self._derived_thrice(theta, v)
        return third.by_differences(self.hvp, theta, v, self._thirds.rounding)

    def gauss_newton_product(self, theta: Tensor, v: Tensor) -> Tensor:
        """G(θ) v for the Gauss–Newton matrix G, shape (P,): counted as a Hessian-vector product.

        G = JᵀHJ, with J the Jacobian of the network's outputs in θ and H the Hessian of the loss
        in the outputs: ∇²L without the curvature of the network itself (Schraudolph 2002, Neural
        Computation 14). Where the loss is convex in the outputs, as squared error and
        cross-entropy are, G is positive semi-definite. Its rank is at most :attr:`n_outputs`.

        Raises
        ------
        InputError
            The problem is not of :meth:`from_module`, so its outputs are not known; the loss is no
            function of them alone, or its second derivative or a backward in the network is wrong,
            by a check at the first product; or θ or v does not fit :attr:`theta0`.
        EvaluationLimitError
            A :meth:`budget` is spent.
        """
        of_network(self._parts, "the Gauss–Newton matrix")
        return self._product(theta, v, self._gauss_newton)

    def unflatten(self, theta: Tensor, name: str = "theta") -> Parameters:
        """Views of flat θ by parameter name, as the module names them; differentiable in θ.

        Where the loss views numbers as complex ones, as Fourier layers do, they are copies, since
        torch does that at even places of memory alone; differentiable too.

        Raises
        ------
        InputError
            θ has another shape, dtype or device than :attr:`theta0`.
        """
        checks.check_like(theta, self.theta0, name)
        return flattening.apart(theta, self.tensors, copied=self._copied)
