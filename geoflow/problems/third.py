"""Third derivatives along a vector: PyTorch's where right, else differences of products.

∇³L(θ)[v, v] is the derivative of ∇²L(θ) v along v, and the gradient of vᵀ∇²L(θ) v in θ.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, InputError
from geoflow.problems.counting import Counted
from geoflow.problems.few import Few
from geoflow.problems.mean import MeanOfParts
from geoflow.problems.products import Product, agrees, beside, probes
from geoflow.problems.products import error_of as products_error
from geoflow.problems.protocol import ProblemLike
from geoflow.problems.scaling import length
from geoflow.problems.slopes import DIFFERENCE_RTOL, gradient_at
from geoflow.problems.spacing import between, least_size, scales, steps

# (θ, v) → ∇²L v and ∇³L[v, v].
ThirdProduct = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Steps of a difference over the best of a smooth function at the scale of θ: those for functions
# that vary faster, or have kinks, and one for those that vary more slowly.
SHORTER = (1.0, 1 / 30, 1 / 1000, 10.0)
# Of a difference and that over half its step: where they differ by more than this part, of the best
# of all, neither says anything.
APART = 0.1

WRONG = "PyTorch's third derivatives of it are not those of its Hessian"


class ThirdDerivatives:
    """Chooses at the first, and keeps to it.

    Attributes
    ----------
    exact : bool, optional
        Whether they are PyTorch's; None before the first.
    rounding : float
        Relative error of the products that differences are made of; 0 for the dtype's resolution.
    """

    exact: bool | None = None
    rounding = 0.0

    def choose(self, problem: MeanOfParts, sizes: Sequence[int], *, of_products: bool) -> None:
        """Compare PyTorch's along a few directions with differences of products, beside ``theta0``.

        Of the first examples. In float32 rounding and kinks hide what is wrong by less than a
        tenth, and make wrong what is right: where the loss can be evaluated in float64, that
        decides.

        Parameters
        ----------
        problem : Problem
            The loss.
        sizes : sequence of int
            Numbers of parameters of the tensors that θ is made of, in their order.
        of_products : bool
            Whether PyTorch's second derivatives are right.
        """
        dtype = problem.theta0.dtype
        if of_products:
            few = Few(problem, dtype)
            fault = _fault(few.third_product, few.hvp, few.theta0, sizes)
            if fault in ("", WRONG) and dtype == torch.float32:
                wide = _fault_in_float64(problem, sizes)
                fault = fault if wide is None else wide
        else:
            self.rounding = products_error(problem, problem.theta0)
            fault = "its Hessian-vector products are differences"
        self.exact = not fault
        if fault:
            rounding = self.rounding or torch.finfo(dtype).eps
            warnings.warn(
                f"loss: {fault}; third derivatives are differences of products, with relative "
                f"errors of about {rounding ** (2 / 3):.0e} where it is smooth and larger beside "
                "kinks",
                stacklevel=4,
            )


def _fault(derived: ThirdProduct, product: Product, theta0: Tensor, sizes: Sequence[int]) -> str:
    """What is wrong of PyTorch's third derivatives; empty for nothing."""

    def along(v: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.new_zeros(()), product(theta, v)

    first = next(iter(probes(theta0, sizes)))
    try:
        least = least_size(partial(gradient_at, partial(along, first)), theta0)
        theta = beside(partial(along, theta0), theta0, least)
        tried = steps(theta, least)
        for v in probes(theta, sizes):
            if not agrees(derived(theta, v)[1], partial(along, v), theta, v, sizes, tried):
                return WRONG
    except InputError as refusal:
        return str(refusal).removeprefix("loss: ")
    return ""


def _fault_in_float64(problem: MeanOfParts, sizes: Sequence[int]) -> str | None:
    """The same of the loss in float64; None where it cannot be evaluated in it."""
    try:
        few = Few(problem, torch.float64)
        return _fault(few.third_product, few.hvp, few.theta0, sizes)
    # Not everything takes float64: memory, devices, what a user's code asserts.
    except Exception:
        return None


def third_product(problem: ProblemLike) -> ThirdProduct:
    """(θ, v) → ∇²L v and ∇³L[v, v]: the problem's own, or by differences of its products.

    Which those of a :class:`geoflow.Problem` are is decided here, at no count.
    """
    own: ThirdProduct | None = getattr(problem, "third_product", None)
    if own is None:
        return partial(by_differences, problem.hvp)
    if isinstance(problem, Counted):
        with problem.uncounted():
            own(problem.theta0, torch.zeros_like(problem.theta0))
    return own


def error_of(problem: ProblemLike, theta: Tensor) -> float:
    """Relative error of ∇³L[v, v]: rounding, or more where it is of differences."""
    chosen = getattr(problem, "_thirds", ThirdDerivatives())
    eps = torch.finfo(theta.dtype).eps
    return eps if chosen.exact else (chosen.rounding or eps) ** (2 / 3)


def by_differences(
    product: Product, theta: Tensor, v: Tensor, rounding: float = 0.0
) -> tuple[Tensor, Tensor]:
    """∇²L v and ∇³L[v, v], this by central differences of products over a step and its half.

    Their errors are as the squares of the steps, so what the two say together is of fourth order,
    and what they say differently shows whether they are any good. Five products; four more for each
    other step, where they disagree: what the function varies over is not known. Where ‖θ‖ is far
    below one it may be one: longer steps are tried until they say more than rounding.

    Parameters
    ----------
    product : callable
        (θ, v) → ∇²L v.
    theta, v : Tensor, shape (P,)
        Where, and along what.
    rounding : float
        Relative error of the products; 0 for the resolution of the dtype.

    Raises
    ------
    ConvergenceError
        Over no step do they agree, as where there are kinks everywhere.
    """
    middle = product(theta, v)
    size = length(v)
    if size == 0:
        return middle, torch.zeros_like(v)
    unit, rounding = v / size, rounding or torch.finfo(theta.dtype).eps
    noise = 10 * rounding * length(middle) / size
    is_small = len(scales(theta)) > 1
    least, smallest, best = math.inf, math.inf, torch.zeros_like(v)
    tried = list(_steps(theta, rounding))
    for step in tried:
        whole, half = (_central(product, theta, unit, s) for s in (step, step / 2))
        found = (4 * half - whole) / 3
        off, norm = (length(t) for t in (half - whole, found))
        within = noise / step
        apart = max(off - within, 0.0) / norm if norm else 0.0
        # What is within rounding may be right, and of steps that are too short is nothing else.
        error = max(off, within) if is_small else apart
        if error < smallest and not (is_small and apart > APART):
            smallest, best = error, found
        least = min(least, apart)
        if error <= (math.sqrt(rounding) * norm if is_small else DIFFERENCE_RTOL[theta.dtype]):
            break
    if not least <= APART:
        raise ConvergenceError(
            "third derivatives of the loss: differences of its Hessian-vector products over two "
            f"steps differ by {least:.1g} of their size, so it has kinks or its products are not "
            "exact; use another R, a smooth loss, or float64",
            iterations=len(tried),
            residual=least,
            reason="not_finite",
        )
    return middle, best * size**2


def _central(product: Product, theta: Tensor, unit: Tensor, step: float) -> Tensor:
    ahead, behind = (product(theta + s * unit, unit) for s in (step, -step))
    return (ahead - behind) / (2 * step)


def _steps(theta: Tensor, rounding: float) -> Iterator[float]:
    scale = length(theta) or 1.0
    for part in SHORTER:
        yield rounding ** (1 / 3) * scale * part
    for longer in between(scale):
        yield rounding ** (1 / 3) * longer
