"""Products with the Gauss–Newton matrix of a network's outputs and a loss of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from geoflow.errors import GeoflowError, InputError
from geoflow.problems import data
from geoflow.problems.derivatives import (
    Tensors,
    derivable,
    derived,
    gradients_of,
    hessian_of,
    twice_differentiable,
    variables_of,
)
from geoflow.problems.parts import LossPart, ModulePart, Parameters
from geoflow.problems.products import agrees, in_float32
from geoflow.problems.scaling import length
from geoflow.problems.slopes import DIFFERENCE_RTOL, gradient_at
from geoflow.problems.spacing import least_size, steps
from geoflow.problems.weighted import Weighted
from geoflow.problems.widened import Either, Evaluation
from geoflow.system.translation import reason


def n_outputs(outputs: Any) -> int:
    """Real numbers in what a network gives, of which a complex one is two.

    Raises
    ------
    InputError
        No tensor is found in it.
    """
    found = [t for _, t in data.leaves(outputs, "")]
    if not found:
        raise _not_found(outputs)
    return sum(t.numel() * (2 if t.is_complex() else 1) for t in found)


class Products:
    """G v of the parts of a loss, compared at the first with what it is made of.

    Attributes
    ----------
    checked : bool
        Whether it has been.
    """

    def __init__(self) -> None:
        self.checked = False

    def __call__(self, part: LossPart, at: Parameters, v: Parameters) -> tuple[Parameters, Tensor]:
        """Product and weight of a part whose network is known."""
        assert isinstance(part, ModulePart)
        if not self.checked:
            check(part.outputs, part.weighted_sum, at)
            self.checked = True
        return product(part.outputs, part.weighted_sum, at, v)


def product(
    outputs: Callable[[Tensors], Any],
    loss: Callable[[Any], Weighted],
    at: Mapping[str, Tensor],
    v: Mapping[str, Tensor],
) -> tuple[Tensors, Tensor]:
    """JᵀHJv and the weight, with J the Jacobian of the outputs and H the Hessian of a loss of them.

    Jv is the derivative of Jᵀu·v in u, which asks for reverse mode alone.

    Raises
    ------
    InputError
        The loss has no second derivative in the outputs, or they none in the tensors.
    """
    with torch.enable_grad(), twice_differentiable():
        spread = _Outputs(outputs, at)
        moved = spread.moved(v)
        points = [t.detach().requires_grad_() for t in spread.given]
        value, weight = spread.loss_at(loss, points)
        curved = hessian_of(derivable(value), points, moved)
        products = spread.pulled(curved)
    return dict(zip(spread.names, products, strict=True)), weight


def check(
    outputs: Callable[[Tensors], Any],
    loss: Callable[[Any], Weighted],
    at: Mapping[str, Tensor],
) -> None:
    """Compare what a product is made of with what it must be, along one direction.

    Jv with Jᵀ, whose adjoint it is, and H with differences of the loss's gradient in the outputs.

    Raises
    ------
    InputError
        A function in the network, or the loss, has a gradient that is not its own to differentiate.
    """
    generator = torch.Generator().manual_seed(3)

    def random(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=_real(t.dtype), device="cpu").to(t)

    with torch.enable_grad(), twice_differentiable():
        spread = _Outputs(outputs, at)
        v = {n: random(t) for n, t in at.items()}
        moved, w = spread.moved(v), [random(t) for t in spread.given]
        pulled = spread.pulled(w, retain_graph=True)
        eps = max(torch.finfo(_real(t.dtype)).eps for t in (*spread.given, *at.values()))
        ahead, behind = _flat(moved), _flat(w)
        back, along = _flat(pulled), _flat(list(v.values()))
        there, here = float(torch.dot(ahead, behind)), float(torch.dot(back, along))
        allowed = math.sqrt(eps) * length(ahead) * length(behind)
        if not abs(there - here) <= allowed + 1e3 * eps * length(back) * length(along):
            raise _unmoved()
        if not _right_curvature(spread, loss, ahead, generator):
            raise InputError(
                "loss: its second derivatives in the outputs are not those of its gradient, so "
                "there is no Gauss–Newton product; write its backward in PyTorch, without detach"
            )


def _right_curvature(
    spread: _Outputs, loss: Callable[[Any], Weighted], v: Tensor, generator: torch.Generator
) -> bool:
    """Whether Hv is a difference of gradients, as far as differences tell.

    They do not of outputs in several resolutions, or where the loss is not defined beside them, as
    beside a probability of 0.
    """
    dtypes = {_real(t.dtype) for t in spread.given}
    if not (len(dtypes) == 1 and dtypes <= DIFFERENCE_RTOL.keys() and bool(v.any())):
        return True
    start, unit = _flat(spread.given), v / length(v)
    noise = torch.randn(start.shape, generator=generator, dtype=start.dtype, device="cpu").to(start)
    # Where an output is its target to rounding there may be a kink.
    start = start + noise * (1e-3 * length(start) / math.sqrt(start.numel()))

    def at(flat: Tensor) -> tuple[Tensor, list[Tensor]]:
        points = [t.detach().requires_grad_() for t in _shaped(flat, spread.given)]
        return derivable(spread.loss_at(loss, points)[0]), points

    def value_and_gradient(flat: Tensor) -> tuple[Tensor, Tensor]:
        value, points = at(flat)
        gradient = _flat(gradients_of([value], points, None))
        if not torch.isfinite(gradient).all():
            raise InputError("loss: it is not defined there; take other outputs")
        return value, gradient

    def curved(flat: Tensor) -> tuple[Tensor, Tensor]:
        value, points = at(flat)
        return value, _flat(hessian_of(value, points, _shaped(unit.to(flat), spread.given)))

    # In float32 the rounding of a gradient hides what is wrong.
    if dtypes == {torch.float32}:
        try:
            wide = Either(lambda _: value_and_gradient), Either(lambda _: curved)
            if not in_float32(wide[0](start.double())[1]):
                return _agrees(*wide, start.double(), unit.double())
        # Not everything takes float64: memory, devices, what a user's code asserts.
        except Exception:
            pass
    try:
        return _agrees(value_and_gradient, curved, start, unit)
    except InputError:
        return True


def _agrees(function: Evaluation, curved: Evaluation, start: Tensor, unit: Tensor) -> bool:
    """Whether products with a unit vector are differences of a function's gradients."""
    function(start)
    least = least_size(partial(gradient_at, function), start)
    tried = steps(start, least)
    return agrees(curved(start)[1], function, start, unit, [start.numel()], tried)


class _Outputs:
    """What a network gives, as a function of its parameters: the tensors with a derivative."""

    def __init__(self, outputs: Callable[[Tensors], Any], at: Mapping[str, Tensor]) -> None:
        variables = variables_of(at)
        self.names, self.inputs = list(variables), list(variables.values())
        self.tree = outputs(variables)
        self.given = [t for _, t in data.leaves(self.tree, "") if t.requires_grad]
        if not self.given:
            raise _not_found(self.tree)

    def moved(self, v: Mapping[str, Tensor]) -> list[Tensor]:
        """Jv."""
        u = [torch.zeros_like(t, requires_grad=True) for t in self.given]
        pulled = derived(lambda: self.pulled(u, create_graph=True), "module")
        if not any(t.requires_grad for t in pulled):
            raise _unmoved()
        kept = [(t, v[n]) for t, n in zip(pulled, self.names, strict=True) if t.requires_grad]
        along = [w for _, w in kept]
        return derived(
            lambda: gradients_of([t for t, _ in kept], u, along, retain_graph=True), "module"
        )

    def pulled(self, u: list[Tensor], **options: bool) -> list[Tensor]:
        """Jᵀu."""
        return gradients_of(self.given, self.inputs, u, **options)

    def loss_at(self, loss: Callable[[Any], Weighted], points: list[Tensor]) -> Weighted:
        """The loss and its weight where these stand for the outputs with a derivative."""
        values = iter(points)
        # Copies, that a loss may write into.
        tree = data.mapped(self.tree, lambda t: next(values).clone() if t.requires_grad else t)
        try:
            value, weight = loss(tree)
        except (GeoflowError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            said = reason(error)
            raise InputError(
                f"loss: of the outputs alone it fails ({said}), so there is no Gauss–Newton "
                "matrix; let the network's forward compute what derivatives of it are needed"
            ) from None
        held = torch.autograd.grad(
            derivable(value), self.inputs, retain_graph=True, allow_unused=True
        )
        if any(gradient is not None for gradient in held):
            raise _not_found(self.tree) if _hides(self.tree) else _not_of_outputs()
        return value, weight


def _not_found(tree: Any) -> InputError:
    return InputError(
        f"module: what it gives (a {type(tree).__name__}) has its tensors where they are not "
        "found, or none with a derivative in θ, and the Gauss–Newton matrix is of them; return a "
        "tensor, or a tuple, dict or dataclass of them"
    )


def _hides(tree: Any) -> bool:
    """Whether what a network gives may hold tensors that are not found."""
    if isinstance(tree, Mapping | tuple | list) or data.is_record(tree):
        return any(_hides(value) for value in data.held(tree))
    return not isinstance(tree, Tensor | bool | int | float | complex | str | None)


def _not_of_outputs() -> InputError:
    return InputError(
        "loss: it uses more of the network than its outputs (an activation that a hook keeps, the "
        "weights), so there is no Gauss–Newton matrix; return that beside the outputs in forward"
    )


def _unmoved() -> InputError:
    return InputError(
        "module: a function in it has a backward without a derivative that is right (detach or "
        "NumPy in it, a hook on a gradient, PyTorch's logcumsumexp), so there is no Gauss–Newton "
        "product; write it with other functions of PyTorch, without detach"
    )


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real()


def _flat(tensors: list[Tensor]) -> Tensor:
    """One real vector of all of them."""
    real = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors)
    return torch.cat([t.reshape(-1) for t in real]).detach()


def _shaped(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The same taken apart."""
    sizes = [t.numel() * (2 if t.is_complex() else 1) for t in like]
    parts = zip(flat.split(sizes), like, strict=True)
    return [
        torch.view_as_complex(part.reshape(*t.shape, 2)) if t.is_complex() else part.view(t.shape)
        for part, t in parts
    ]
