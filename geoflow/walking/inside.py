"""Points of the level set inside a step that has been made: dense output, re-projected."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoflow.manifold.normals import normal_space
from geoflow.manifold.protocol import Flow, State
from geoflow.solvers import StepResult

# A shorter step from the same start, which ends at the flow time asked for.
Shorter = Callable[[float], tuple[Any, int]]

# So many points of a step are worth evaluating each by itself.
FEW = 3
# A curve of more is right where it lies as near the level set as this, over its tolerance, and by
# the part before should: a cubic's error in half a part falls by sixteen, and is taken by this.
CLOSE, FALLS = 0.2, 8.0


class Inside:
    """What lies inside one step.

    The solver's interpolant leaves the level set by a little. What re-projection adds to it is a
    smooth function of time, known at the ends and wherever a point has been re-projected: the
    polynomial through these corrections brings the rest of the curve back without an evaluation.

    Parameters
    ----------
    flow : Flow
        Evaluates and re-projects.
    start : State
        Where the step began.
    result : StepResult
        The step.
    shorter : callable
        Steps to a flow time after the start, where the step has no interpolant; it returns the
        state there and Newton's corrections.

    Attributes
    ----------
    n_newton : int
        Newton's corrections so far.
    """

    def __init__(self, flow: Flow, start: State, result: StepResult, shorter: Shorter) -> None:
        self.flow, self.shorter = flow, shorter
        self.interpolant, self.duration = result.interpolant, result.time
        self.ends = {0.0: start, result.time: result.state}
        self.known = dict(self.ends)
        self.corrections: dict[float, Tensor | None] = {}
        self.n_newton = 0

    def state(self, time: float) -> State:
        """State on the level set at a flow time after the start: one gradient, mostly, or two.

        Raises
        ------
        ConvergenceError, CriticalPointError
            Re-projection fails.
        """
        if time not in self.known:
            self.known[time] = self._reproject(time)
        return self.known[time]

    def flats(self, times: Sequence[float]) -> Iterator[Tensor]:
        """``state.flat`` on the level set at increasing flow times, to within its tolerance.

        Many cost hardly more gradients than a few, some ten for a step at the usual ``level_rtol``;
        where that is tight they cost more, and one or two each at the most.

        Raises
        ------
        ConvergenceError, CriticalPointError
            Re-projection fails.
        """
        if self.interpolant:
            self._follow(times)
        for time in times:
            yield self._curve(time) if self.interpolant else self._reproject(time).flat

    def flat(self, time: float) -> Tensor:
        """``state.flat`` at a flow time after the start, near the level set: no evaluation."""
        if time in self.known:
            return self.known[time].flat
        return self._curve(time) if self.interpolant else self.state(time).flat

    def _follow(self, times: Sequence[float]) -> None:
        """Correct the curve until it keeps to the level set of itself at increasing times.

        It is looked at near the middles of ever smaller parts, one gradient or two for each. A time
        that was looked at is done, so that none costs more than it would by itself.
        """
        parts = [(0.0, self.duration, 0, len(times), math.inf)]
        while parts:
            begin, end, first, last, before = parts.pop()
            if first == last:
                continue
            middle = (begin + end) / 2
            i = min(bisect.bisect_left(times, middle, first, last), last - 1)
            if i > first and middle - times[i - 1] < abs(times[i] - middle):
                i -= 1
            time, guess = times[i], self._curve(times[i])
            state, projection = self.flow.project(guess)
            self.n_newton += projection.iterations
            # Free of charge from where its last iteration ended.
            step = self._newton(state, 0.0)
            found = state.flat if step is None else state.flat + step
            self._correct(time, found)
            off = float(torch.linalg.vector_norm(found - guess)) / self._tolerance(state)
            # By chance alone a curve is near where the part before was far off.
            if max(off, before / FALLS) > CLOSE:
                parts += [(time, end, i + 1, last, off), (begin, time, first, i, off)]

    def _tolerance(self, state: State) -> float:
        """How far from the level set a point may be, in units of θ."""
        _, gradients = state.evaluated
        return normal_space(gradients).distance(self.flow.level_set.tolerances)

    def _reproject(self, time: float) -> State:
        """State on the level set at a time."""
        if self.interpolant is None:
            state, iterations = self.shorter(time)
        else:
            state, projection = self.flow.project(self._curve(time))
            iterations = projection.iterations
            self._correct(time, state.flat)
        self.n_newton += iterations
        return state

    def _correct(self, time: float, flat: Tensor) -> None:
        assert self.interpolant is not None, "a step without one is made again"
        self.corrections[time] = flat - self.interpolant(time)

    def _curve(self, time: float) -> Tensor:
        """The interpolant with what re-projection is known to add nearby."""
        assert self.interpolant is not None, "a step without one is made again"
        if not self.corrections:
            for end, state in self.ends.items():
                self.corrections[end] = self._newton(state, 1.0)
        flat = self.interpolant(time)
        nodes = self._around(time)
        for node in nodes:
            correction = self.corrections[node]
            if correction is not None:
                others = np.array([other for other in nodes if other != node])
                weight = float(np.prod((time - others) / (node - others)))
                flat.add_(correction, alpha=weight)
        return flat

    def _around(self, time: float) -> list[float]:
        """Where corrections are known: two times on each side, apart as the inner two are.

        Through two that lie closer together a polynomial would carry their rounding far.
        """
        known = sorted(self.corrections)
        right = min(max(bisect.bisect_left(known, time), 1), len(known) - 1)
        left = right - 1
        apart = (known[right] - known[left]) / 2
        before = bisect.bisect_right(known, known[left] - apart) - 1
        after = bisect.bisect_left(known, known[right] + apart)
        return [known[i] for i in (before, left, right, after) if 0 <= i < len(known)]

    def _newton(self, state: State, close: float) -> Tensor | None:
        """Newton's step to the level set; None where a state is ``close`` tolerances from it."""
        loss, gradients = state.evaluated
        level_set = self.flow.level_set
        residuals = level_set.residuals(loss)
        if (abs(residuals) <= close * level_set.tolerances).all():
            return None
        step = torch.zeros_like(state.flat)
        # Of a state that holds more than θ, θ alone is moved.
        step[: gradients.shape[-1]] = -normal_space(gradients).step(residuals)
        return step
