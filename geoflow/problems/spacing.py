"""How far apart a function is taken for differences of it, whatever units θ is in.

A function is most often one of θ relative to its size, or relative to one: a network that starts at
a θ of 1e-9 varies over one, and what is in small units of θ over these. Which of the two it is
nothing but differences tell: over the right step they are the same as over half of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geoflow.problems.scaling import length

# Below this ‖θ‖ it is a scale of its own beside one.
SMALL = 0.1
# Between the two, scales that are tried are apart by this factor.
COARSER = 100.0
# A tensor shorter than this part of θ may have a scale of its own.
UNEVEN = 1e-3
# Differences that over half the step differ by less than this part of their size say something.
AGREED = 0.1
# A longer step is not better where what it gives is off a shorter one's by so many of its errors.
CONSISTENT = 10.0

Gradient = Callable[[Tensor], Tensor | None]


def scales(theta: Tensor) -> list[float]:
    """Scales that a function of θ may vary over, shortest first: one, and ‖θ‖ far below that."""
    size = length(theta)
    return [size, 1.0] if 0 < size < SMALL else [1.0]


def point_near(
    theta: Tensor, seed: int, least: float = 1.0, by: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """A point near θ, by a part of its size, and the vector at random that leads there.

    Parameters
    ----------
    theta : Tensor, shape (P,)
        Where.
    seed : int
        Of the vector.
    least : float
        Size that θ is taken to have at least; see :func:`scales`.
    by : float
        The part.
    """
    random = _random(theta, seed)
    scale = max(length(theta), least)
    return theta + random * (by * scale / math.sqrt(theta.numel())), random


def steps(theta: Tensor, least: float = 1.0) -> list[float]:
    """Step sizes for differences: the best of a smooth function first, others near kinks."""
    best = _best(theta.dtype) * max(length(theta), least)
    return [best, best / 30, best / 1000, 10 * best]


@dataclass(frozen=True)
class Spacing:
    """Steps over which gradients are taken apart for products with a Hessian.

    Attributes
    ----------
    least : float
        Size that θ is taken to have at least.
    of_tensors : tuple of (int, float)
        Number of parameters of each tensor and the size that it is taken to have at least, where
        each of them has a scale of its own.
    """

    least: float = 1.0
    of_tensors: tuple[tuple[int, float], ...] = ()

    def step(self, theta: Tensor, v: Tensor) -> float:
        """The step in units of v; of v = 0 any."""
        best, size = _best(theta.dtype), length(v)
        # Over a number below it a step may be more than the dtype holds.
        tiny = torch.finfo(v.dtype).tiny
        if not self.of_tensors or size == 0:
            return best * max(length(theta), self.least) / (max(size, tiny) if size else 1.0)
        parts = [n for n, _ in self.of_tensors]
        return min(
            best * max(length(t), least) / max(size, tiny)
            for t, w, (_, least) in zip(
                theta.split(parts), v.split(parts), self.of_tensors, strict=True
            )
            if (size := length(w)) > 0
        )

    def difference(self, gradient: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor) -> Tensor:
        """∇²f v by a central difference of gradients, shape of these: two evaluations."""
        step = self.step(theta, v)
        ahead, behind = (gradient(theta + s * v) for s in (step, -step))
        return (ahead - behind) / (2 * step)


@dataclass(frozen=True)
class Measured:
    """Steps, and how good differences over them are.

    Attributes
    ----------
    spacing : Spacing
        The steps.
    error : float
        Largest relative error along the vectors tried, by halving the steps; infinite where
        differences are zero or not defined.
    found : tuple of Tensor
        The differences.
    """

    spacing: Spacing
    error: float
    found: tuple[Tensor, ...]

    def improves_on(self, shorter: Measured) -> bool:
        """Whether longer steps agree better, and on the same.

        Over a step that is far too long differences may agree on a mean of what they pass over.
        """
        if not self.error < shorter.error:
            return False
        return math.isinf(shorter.error) or all(
            length((a - b).double()) <= CONSISTENT * shorter.error * length(b.double())
            for a, b in zip(self.found, shorter.found, strict=True)
        )


def chosen(
    gradient: Gradient, theta0: Tensor, sizes: Sequence[int], probes: Sequence[Tensor]
) -> Measured:
    """The steps whose differences agree best with those over half of them.

    They are those relative to ‖θ‖, or to one, wherever these say anything and ‖θ‖ is not far below
    one: four evaluations a vector. Else a few other scales are tried, down to that of θ, and that
    of each tensor by itself where one is far smaller than all of them together.

    Parameters
    ----------
    gradient : callable
        θ → ∇f, or None where there is none.
    theta0 : Tensor, shape (P,)
        Where.
    sizes : sequence of int
        Numbers of parameters of the tensors that θ is made of, in their order.
    probes : sequence of Tensor, shape (P,)
        Along which products are compared; where all tensors are of one size the first is enough.
    """
    norms = [length(t) for t in theta0.split(list(sizes))]
    size, smallest = length(theta0), min((n for n in norms if n > 0), default=0.0)
    is_small, is_uneven = 0 < size < SMALL, 0 < smallest < UNEVEN * size
    random = _random(theta0, 2)
    # Beside θ0, each tensor by a part of its own size: where a weight is zero, so are whole blocks.
    near = theta0 + torch.cat(
        [
            part * (1e-3 * (norm or size or 1.0) / math.sqrt(len(part)))
            for part, norm in zip(random.split(list(sizes)), norms, strict=True)
        ]
    )
    theta = theta0 if gradient(near) is None else near
    tried = probes if is_uneven else probes[:1]
    usual = _measured(gradient, theta, tried, Spacing())
    if not (is_small or is_uneven) or (not is_small and usual.error <= AGREED):
        return usual
    others = []
    if is_uneven:
        least = [norm or size for norm in norms]
        others.append(Spacing(of_tensors=tuple(zip(sizes, least, strict=True))))
    if is_small:
        others += [Spacing(least) for least in (size, *between(size)) if least < 1]
    best, *longer = [*(_measured(gradient, theta, tried, one) for one in others), usual]
    for one in longer:
        best = one if one.improves_on(best) else best
    return best if best.error <= AGREED else usual


def least_size(gradient: Gradient, theta0: Tensor) -> float:
    """Size that θ is to be taken to have at least: one, or less where ∇f varies over less.

    Parameters
    ----------
    gradient : callable
        θ → ∇f, or None where there is none; evaluated where ‖θ‖ is far below one only.
    theta0 : Tensor, shape (P,)
        Where.
    """
    if len(scales(theta0)) == 1:
        return 1.0
    v = _random(theta0, 3)
    return chosen(gradient, theta0, [theta0.numel()], [v]).spacing.least


def between(size: float) -> Iterator[float]:
    """Scales above ‖θ‖, up to one where it is far below that; none where it is not."""
    if size >= SMALL:
        return
    while (size := COARSER * size) < SMALL:
        yield size
    yield 1.0


def _measured(
    gradient: Gradient, theta: Tensor, probes: Sequence[Tensor], spacing: Spacing
) -> Measured:
    worst, found = 0.0, []
    for v in probes:
        step = spacing.step(theta, v)
        whole, noise = _central(gradient, theta, v, step)
        half, _ = _central(gradient, theta, v, step / 2)
        if whole is None or half is None:
            return Measured(spacing, math.inf, tuple(torch.zeros_like(v) for v in probes))
        size = length(half.double())
        error = (length((whole - half).double()) + noise) / size if size else math.inf
        worst = max(worst, error if math.isfinite(error) else math.inf)
        found.append(whole)
    return Measured(spacing, worst, tuple(found))


def _central(
    gradient: Gradient, theta: Tensor, v: Tensor, step: float
) -> tuple[Tensor | None, float]:
    """A central difference, and what rounding of the gradients makes of it."""
    ahead, behind = (gradient(theta + s * v) for s in (step, -step))
    if ahead is None or behind is None:
        return None, 0.0
    noise = torch.finfo(theta.dtype).eps * length(ahead) / step
    return (ahead - behind) / (2 * step), noise


def _best(dtype: torch.dtype) -> float:
    """The best step of a smooth function over what it varies over."""
    return float(torch.finfo(dtype).eps ** (1 / 3))


def _random(theta: Tensor, seed: int) -> Tensor:
    """A vector at random like θ, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(theta.shape, generator=generator, dtype=torch.float64, device="cpu")
    return random.to(theta)
