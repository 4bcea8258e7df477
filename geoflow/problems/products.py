"""Products with a Hessian: PyTorch's second derivatives where right, else differences."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.problems.scaling import length
from geoflow.problems.slopes import DIFFERENCE_RTOL, Derivable, gradient_at
from geoflow.problems.spacing import SMALL, Spacing, chosen, least_size, point_near, steps

Product = Callable[[Tensor, Tensor], Tensor]

# Into so many groups tensors are divided, each probed by itself: what is wrong of a small one is
# not seen among all the others.
GROUPS = 4
# Differences over two steps that agree to this part of what a product is off are right, not it.
AGREEMENT = 0.1
# A last difference in float64, by a step so much below the least of the others: it agrees with that
# of this one also where there is a kink every few steps.
BESIDE_KINKS = 5

# A point beside θ0 is so far from it, over its size; where θ0 is zero or small, beside one.
BESIDE, FROM_ZERO = 1e-3, 0.1

WRONG = "PyTorch's second derivatives of it are not those of its gradient"


class TwiceDerivable(Protocol):
    """A function of flat θ with PyTorch's first and second derivatives.

    Attributes
    ----------
    theta0 : Tensor, shape (P,)
        Where it is looked at, in the dtype that it is evaluated in.
    """

    theta0: Tensor

    def value_and_gradient(self, theta: Tensor, /) -> tuple[Tensor, Tensor]:
        """Value and gradient."""

    def hvp(self, theta: Tensor, v: Tensor, /) -> Tensor:
        """∇²f v by PyTorch's second derivatives."""


@dataclass
class HessianProducts:
    """Chooses at the first product, and keeps to it.

    PyTorch has second derivatives that are missing, and some that are wrong: those of weight
    normalisation's fused kernel are.

    Attributes
    ----------
    name : str
        The argument whose Hessian it is.
    exact : bool, optional
        Whether products are exact to rounding; None before the first.
    spacing : Spacing
        Of the differences that take their place.
    error : float
        Relative error of these where they are not the usual ones; 0 for that of a smooth function.
    """

    name: str = "loss"
    exact: bool | None = None
    spacing: Spacing = field(default_factory=Spacing)
    error: float = 0.0

    def choose(
        self,
        derived: Product,
        function: Derivable,
        theta0: Tensor,
        sizes: Sequence[int],
        wide: Callable[[], TwiceDerivable] | None = None,
    ) -> None:
        """Compare PyTorch's products along a few directions with differences of gradients.

        Beside ``theta0``: where a weight is zero, so are whole blocks of a Hessian, and there may
        be a kink. In float32 rounding hides what is wrong, and kinks make wrong what is right:
        where the function can be evaluated in float64, that decides.

        Parameters
        ----------
        derived : callable
            (θ, v) → ∇²f v by PyTorch's second derivatives.
        function : callable
            θ → (f, ∇f).
        theta0 : Tensor, shape (P,)
            Where.
        sizes : sequence of int
            Numbers of parameters of the tensors that θ is made of, in their order.
        wide : callable, optional
            → the same of float32 numbers in float64, or as much of it as tells.
        """
        right = None
        if wide is not None and theta0.dtype == torch.float32:
            right = _right_wide(wide, sizes)
        try:
            if right is None:
                right = _right(derived, function, theta0, sizes)
            elif right:
                # Some of PyTorch's kernels for float32 have no second derivatives.
                derived(theta0, next(probes(theta0, sizes)))
            fault = "" if right else WRONG
        except InputError as refusal:
            fault = str(refusal).removeprefix(f"{self.name}: ")
        self.exact = not fault
        if fault:
            along = list(probes(theta0, sizes))
            found = chosen(partial(gradient_at, function), theta0, sizes, along)
            self.spacing = found.spacing
            self.error = 0.0 if found.spacing == Spacing() else found.error
            warnings.warn(
                f"{self.name}: {fault}; Hessian-vector products are differences of gradients, with "
                f"relative errors of about {found.error:.0e} at theta0 and larger beside kinks",
                stacklevel=4,
            )

    def difference(self, function: Derivable, theta: Tensor, v: Tensor) -> Tensor:
        """∇²f v by a central difference of gradients: two evaluations."""
        if not bool(v.any()):
            return torch.zeros_like(v)
        return self.spacing.difference(lambda at: function(at)[1], theta, v)


def _right(
    derived: Product,
    function: Derivable,
    theta0: Tensor,
    sizes: Sequence[int],
    of: torch.dtype | None = None,
) -> bool:
    """Whether products along a few directions are differences of gradients, beside a point.

    Those of a function ``of`` numbers with fewer digits may be over the steps of these.
    """
    least = least_size(partial(gradient_at, function), theta0)
    theta = beside(function, theta0, least)
    tried, coarse = steps(theta, least), [] if of is None else steps(theta.to(of), least)[:1]
    return all(
        agrees(derived(theta, v), function, theta, v, sizes, tried, coarse)
        for v in probes(theta, sizes)
    )


def _right_wide(wide: Callable[[], TwiceDerivable], sizes: Sequence[int]) -> bool | None:
    """The same of a function of float32 numbers in float64; None where that tells nothing."""
    try:
        of = wide()
        if in_float32(of.value_and_gradient(beside(of.value_and_gradient, of.theta0))[1]):
            return None
        return _right(of.hvp, of.value_and_gradient, of.theta0, sizes, torch.float32)
    # Not everything takes float64: memory, devices, what a user's code asserts.
    except Exception:
        return None


def in_float32(gradient: Tensor) -> bool:
    """Whether one in float64 is no better known than in float32, as of what NumPy computes."""
    return torch.equal(gradient, gradient.float().double())


def error_of(problem: object, theta: Tensor) -> float:
    """Relative error of a problem's products: rounding, or more where they are differences."""
    of = getattr(problem, "_products", None)
    eps = torch.finfo(theta.dtype).eps
    if of is None or of.exact is not False:
        return eps
    return of.error or eps ** (2 / 3)


def beside(function: Derivable, theta0: Tensor, least: float = 1.0) -> Tensor:
    """A point near ``theta0`` where the function is finite, or that itself."""
    # The curvature of what is odd, as tanh is, vanishes with θ, and so does what is wrong of it.
    is_small = length(theta0) < SMALL
    theta, _ = point_near(theta0, 2, least, FROM_ZERO if is_small else BESIDE)
    return theta0 if gradient_at(function, theta) is None else theta


def probes(theta: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Unit vectors: one along all tensors, and one along those of each group, equally long."""
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(theta.shape, generator=generator, dtype=torch.float64, device="cpu").to(theta)
    yield v / torch.linalg.vector_norm(v)
    if len(sizes) == 1:
        return
    order = torch.randperm(len(sizes), generator=generator, device="cpu").tolist()
    for start in range(min(GROUPS, len(sizes))):
        chosen = set(order[start::GROUPS])
        parts = [
            t / torch.linalg.vector_norm(t) if i in chosen else torch.zeros_like(t)
            for i, t in enumerate(v.split(list(sizes)))
        ]
        yield torch.cat(parts) / math.sqrt(len(chosen))


def agrees(
    found: Tensor,
    function: Derivable,
    theta: Tensor,
    v: Tensor,
    sizes: Sequence[int],
    tried: list[float],
    coarse: Sequence[float] = (),
) -> bool:
    """Whether a product is a difference of gradients: as a whole, and in each tensor by itself.

    It is not where differences over two steps agree on something else. Where no two of them give
    the same, they tell of no fault: beside kinks they hold jumps of the gradient, and a gradient's
    rounding is not that of its size where much of it cancels. Of the step sizes ``tried`` the one
    that tells is put first, for the next product.

    Over ``coarse`` steps a product may agree, too, of which a part is computed in fewer digits.
    """
    eps, rtol = torch.finfo(theta.dtype).eps, DIFFERENCE_RTOL[theta.dtype]
    wrong = torch.ones(1 + len(sizes), dtype=torch.bool, device=theta.device)
    differences, errors = [], []
    last = [min(tried) / BESIDE_KINKS] if theta.dtype == torch.float64 else []
    for step in (*tried, *coarse, *last):
        ahead, behind = (gradient_at(function, theta + s * v) for s in (step, -step))
        if ahead is None or behind is None:
            continue
        expected = (ahead - behind) / (2 * step)
        rounding = 10 * eps * length(ahead) / step
        error, size = (_norms(t, sizes) for t in (found - expected, expected))
        if step not in last:
            wrong &= ~(error <= rtol * size + rounding)
        # Many kinks within a long step add up to what looks like a derivative.
        if step not in coarse:
            differences.append(expected)
            errors.append(error)
        if not wrong.any():
            tried.sort(key=lambda other: other != step)
            return True
    if len(differences) < 2:
        return True
    pairs = itertools.combinations(differences, 2)
    spread = torch.stack([_norms(a - b, sizes) for a, b in pairs]).amin(0)
    return not (wrong & (spread < AGREEMENT * torch.stack(errors).amin(0))).any()


def _norms(t: Tensor, sizes: Sequence[int]) -> Tensor:
    """Norm of all, and of each tensor's share."""
    parts = (t, *t.split(list(sizes)))
    # In float64: squares of float32 numbers may have no place in float32.
    return torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts])
