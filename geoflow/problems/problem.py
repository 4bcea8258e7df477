"""The training loss as a function of one flat parameter vector, with exact evaluation counts."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value, jvp, vjp, vmap

from geoflow.errors import InputError
from geoflow.problems.checks import check_data, check_device_and_dtype, check_mode
from geoflow.problems.counting import Counted
from geoflow.problems.dtypes import dtype_name
from geoflow.problems.parts import (
    LossPart,
    Parameters,
    TensorSpec,
    Weighted,
    add_up,
    parts_of_module,
)


class Problem(Counted):
    """A deterministic loss L(θ) on flat θ ∈ R^P: value, gradient, Hessian-vector product.

    Make one with :meth:`from_module` or :meth:`from_function`.

    Attributes
    ----------
    theta0 : Tensor, shape (P,)
        The starting point; its dtype and device are those of the problem.
    tensors : tuple of TensorSpec
        Name, offset and shape of every trainable tensor, in flat order.
    data_sha256 : str
        SHA-256 of inputs and targets; empty for :meth:`from_function`.
    """

    def __init__(
        self,
        parts: tuple[LossPart, ...],
        theta0: Tensor,
        tensors: tuple[TensorSpec, ...],
        data_sha256: str = "",
    ) -> None:
        self._parts = parts
        self.theta0 = theta0
        self.tensors = tensors
        self.data_sha256 = data_sha256
        self._n_gradient = 0
        self._n_hvp = 0
        loss = self.loss(theta0)
        if not torch.isfinite(loss):
            raise InputError(f"loss at theta0 is {loss.item()}; it must be finite")
        if not torch.equal(loss, self.loss(theta0)):
            raise InputError(
                "loss: two evaluations at theta0 differ, so L(θ) is random or stateful; "
                "remove the randomness (for a module, call module.eval())"
            )

    def __repr__(self) -> str:
        return (
            f"Problem({self.n_parameters:,} parameters in {len(self.tensors)} tensors, "
            f"{dtype_name(self.dtype)} on {self.device}, {self.evaluations} evaluations so far)"
        )

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
        batch_size: int | None = None,
        *,
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
            ``loss_fn(outputs, targets)`` → scalar mean over the examples.
        inputs, targets : Tensor, shape (N, …)
            Floating tensors are converted to ``dtype``; integer ones are kept.
        batch_size : int, optional
            Evaluate in chunks of this many examples: the same result to rounding,
            with memory flat in N. None: the whole set at once.
        dtype : torch.dtype
            float64 or float32.
        device : torch.device or str
            Where everything is evaluated.

        Raises
        ------
        InputError
            Non-finite data, shapes that do not match, no trainable parameter, or a
            module in a mode that makes the loss random or stateful.
        """
        device = check_device_and_dtype(device, dtype)
        check_data(inputs, targets, batch_size)
        check_mode(module, batch_size)
        module = copy.deepcopy(module).to(device=device, dtype=dtype)
        inputs = _convert(inputs, dtype, device)
        targets = _convert(targets, dtype, device)
        parts, theta0, tensors = parts_of_module(module, loss_fn, inputs, targets, batch_size)
        return cls(parts, theta0, tensors, _sha256(inputs, targets))

    @classmethod
    def from_function(cls, loss: Callable[[Tensor], Tensor], theta0: Tensor) -> Problem:
        """Make a problem from any scalar function of a flat tensor.

        Parameters
        ----------
        loss : callable
            Tensor (P,) → scalar Tensor, differentiable by ``torch.func``.
        theta0 : Tensor, shape (P,)
            Starting point; its dtype and device are used throughout.

        Raises
        ------
        InputError
            ``theta0`` is not a finite flat floating tensor, or the loss not a scalar.
        """
        if theta0.ndim != 1 or not theta0.is_floating_point():
            raise InputError(
                f"theta0 has shape {tuple(theta0.shape)} and dtype {theta0.dtype}; "
                "pass a flat floating-point tensor"
            )
        if not torch.isfinite(theta0).all():
            raise InputError("theta0 has non-finite entries; remove them")
        theta0 = theta0.detach().clone()
        shape = loss(theta0).shape
        if shape != ():
            raise InputError(f"loss returned shape {tuple(shape)}; it must return a scalar")
        one = torch.ones((), dtype=theta0.dtype, device=theta0.device)
        part = LossPart(lambda parameters: (loss(parameters["theta"]), one))
        return cls((part,), theta0, (TensorSpec("theta", 0, tuple(theta0.shape)),))

    @property
    def n_parameters(self) -> int:
        """P, the number of trainable parameters."""
        return self.theta0.numel()

    @cached_property
    def n_outputs(self) -> int:
        """Numbers that the network gives on the whole training set: examples × outputs of each.

        Raises
        ------
        InputError
            The problem is of :meth:`from_function`, so its outputs are not known.
        """
        self._check_outputs()
        parameters = self.unflatten(self.theta0)
        with torch.no_grad():
            return sum(p.outputs(parameters).numel() for p in self._parts if p.outputs)

    @property
    def n_chunks(self) -> int:
        """In how many chunks the examples are evaluated."""
        return len(self._parts)

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

        A bare :meth:`loss` is not counted: no solver uses it.
        """
        return {"gradient": self._n_gradient, "hvp": self._n_hvp}

    def loss(self, theta: Tensor) -> Tensor:
        """L(θ), a scalar tensor, without its gradient.

        Raises
        ------
        InputError
            θ has another shape, dtype or device than :attr:`theta0`.
        """
        with torch.no_grad():
            return self._loss(theta)

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
        if thetas.ndim != 2:
            raise InputError(f"thetas has shape {tuple(thetas.shape)}; give (N, P)")
        with torch.no_grad():
            return vmap(self._loss)(thetas)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(θ), a scalar tensor, and ∇L(θ), shape (P,): one evaluation.

        Raises
        ------
        InputError
            θ has another shape, dtype or device than :attr:`theta0`.
        EvaluationLimitError
            A :meth:`budget` is spent.
        """
        parameters = self.unflatten(theta)
        self._check_budget(1)
        self._n_gradient += 1

        def contribution(part: LossPart) -> tuple[tuple[Tensor, ...], Tensor]:
            gradients, (value, weight) = grad_and_value(part.loss, has_aux=True)(parameters)
            return (value.detach(), _flatten(gradients)), weight

        value, gradient = self._mean(contribution(part) for part in self._parts)
        return value, gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇²L(θ) v, shape (P,), forward over reverse: one Hessian-vector product.

        Raises
        ------
        InputError
            θ or v has another shape, dtype or device than :attr:`theta0`.
        EvaluationLimitError
            A :meth:`budget` is spent.
        """
        parameters, tangents = self.unflatten(theta), self.unflatten(v, "v")
        self._check_budget(2)
        self._n_hvp += 1

        def contribution(part: LossPart) -> tuple[tuple[Tensor, ...], Tensor]:
            products, weight = _hessian_product(part.loss, parameters, tangents)
            return (_flatten(products),), weight

        return self._mean(contribution(part) for part in self._parts)[0]

    def gauss_newton_product(self, theta: Tensor, v: Tensor) -> Tensor:
        """G(θ) v for the Gauss–Newton matrix G, shape (P,): counted as a Hessian-vector product.

        G = JᵀHJ, with J the Jacobian of the network's outputs in θ and H the Hessian of the loss
        in the outputs: ∇²L without the curvature of the network itself (Schraudolph 2002, Neural
        Computation 14). Where the loss is convex in the outputs, as squared error and
        cross-entropy are, G is positive semi-definite. Its rank is at most :attr:`n_outputs`.

        Raises
        ------
        InputError
            The problem is of :meth:`from_function`, so its outputs are not known; or θ or v has
            another shape, dtype or device than :attr:`theta0`.
        EvaluationLimitError
            A :meth:`budget` is spent.
        """
        self._check_outputs()
        parameters, tangents = self.unflatten(theta), self.unflatten(v, "v")
        self._check_budget(2)
        self._n_hvp += 1

        def contribution(part: LossPart) -> tuple[tuple[Tensor, ...], Tensor]:
            assert part.outputs is not None
            assert part.loss_of_outputs is not None
            moved = jvp(part.outputs, (parameters,), (tangents,))[1]
            values, pull_back, *_ = vjp(part.outputs, parameters)
            curved, weight = _hessian_product(part.loss_of_outputs, values, moved)
            return (_flatten(pull_back(curved)[0]),), weight

        return self._mean(contribution(part) for part in self._parts)[0]

    def unflatten(self, theta: Tensor, name: str = "theta") -> Parameters:
        """Views of flat θ by parameter name, as the module names them.

        Raises
        ------
        InputError
            θ has another shape, dtype or device than :attr:`theta0`.
        """
        reference = self.theta0
        for what in ("shape", "dtype", "device"):
            if getattr(theta, what) != getattr(reference, what):
                raise InputError(
                    f"{name} has {what} {getattr(theta, what)}; "
                    f"the problem has {what} {getattr(reference, what)}: convert it first"
                )
        theta = theta.detach()
        return {
            s.name: theta.narrow(0, s.offset, math.prod(s.shape)).view(s.shape)
            for s in self.tensors
        }

    def _loss(self, theta: Tensor) -> Tensor:
        parameters = self.unflatten(theta)
        weighted = (part.loss(parameters) for part in self._parts)
        return self._mean(((total,), weight) for total, weight in weighted)[0]

    def _mean(
        self, contributions: Iterable[tuple[tuple[Tensor, ...], Tensor]]
    ) -> tuple[Tensor, ...]:
        """Σ sums / Σ weights, in the dtype of θ."""
        sums, weight = add_up(contributions)
        return tuple((total / weight).to(self.dtype) for total in sums)

    def _check_outputs(self) -> None:
        if any(part.outputs is None for part in self._parts):
            raise InputError(
                "problem: its loss is a function of θ alone, and the Gauss–Newton matrix needs a "
                "network's outputs; make it with Problem.from_module"
            )


def _hessian_product(function: Callable[[Any], Weighted], at: Any, v: Any) -> tuple[Any, Tensor]:
    """Product of the Hessian of a sum of losses, and the weight of that sum."""
    gradient = grad(function, has_aux=True)
    try:
        pushed: Any = jvp(gradient, (at,), (v,), has_aux=True)
        return pushed[1], pushed[2]
    except RuntimeError:
        # Some losses, torch's mse_loss and huber_loss among them, have no forward derivative of
        # their backward pass. Reverse mode twice takes longer and works for these too.
        pulled: Any = vjp(gradient, at, has_aux=True)
        return pulled[1](v)[0], pulled[2]


def _flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors.values()]).detach()


def _convert(data: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return data.to(device=device, dtype=dtype if data.is_floating_point() else data.dtype)


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
