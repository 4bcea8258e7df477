"""Points of the level set inside a step that has been made: dense output, re-projected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoflow.manifold.protocol import Flow, State
from geoflow.solvers import StepResult

# A shorter step from the same start, which ends at the flow time asked for.
Shorter = Callable[[float], tuple[Any, int]]

# So many points of a step are worth evaluating each by itself.
FEW = 3
# Where the curve is looked at, as parts of the step, until so many in a row lie where they should.
LOOKED_AT = (1 / 2, 3 / 4, 1 / 4, 7 / 8, 1 / 8, 5 / 8, 3 / 8, 15 / 16, 1 / 16)
IN_A_ROW = 2
# Least distance of two times where a correction is known, as a part of the step.
APART = 0.05


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
            self.known[time] = self._reproject(time)[0]
        return self.known[time]

    def flats(self, times: Sequence[float]) -> Iterator[Tensor]:
        """``state.flat`` on the level set at increasing flow times, to within its tolerance.

        Many cost hardly more gradients than a few: some six for each step.

        Raises
        ------
        ConvergenceError, CriticalPointError
            Re-projection fails.
        """
        on_curve = bool(times) and self._follows()
        for time in times:
            yield self._curve(time) if on_curve else self._reproject(time)[0].flat

    def _follows(self) -> bool:
        """Correct the curve until it keeps to the level set of itself; whether it does."""
        in_a_row = 0
        for part in LOOKED_AT if self.interpolant else ():
            # A point that needs no correction is one where the curve was right before.
            in_a_row = 0 if self._reproject(part * self.duration)[1] else in_a_row + 1
            if in_a_row == IN_A_ROW:
                return True
        return False

    def _reproject(self, time: float) -> tuple[State, int]:
        """State on the level set at a time, and the corrections that took."""
        if self.interpolant is None:
            state, iterations = self.shorter(time)
        else:
            state, projection = self.flow.project(self._curve(time))
            iterations = projection.iterations
            # Through nodes that lie close together a polynomial carries their rounding far.
            apart = min(abs(time - node) for node in self.corrections) >= APART * self.duration
            if iterations and apart:
                self.corrections[time] = state.flat - self.interpolant(time)
        self.n_newton += iterations
        return state, iterations

    def _curve(self, time: float) -> Tensor:
        """The interpolant with what re-projection is known to add."""
        assert self.interpolant is not None, "a step without one is made again"
        if not self.corrections:
            self.corrections = {t: self._at_end(state) for t, state in self.ends.items()}
        flat = self.interpolant(time)
        nodes = np.array(list(self.corrections))
        for i, correction in enumerate(self.corrections.values()):
            if correction is not None:
                others = np.delete(nodes, i)
                weight = float(np.prod((time - others) / (nodes[i] - others)))
                flat.add_(correction, alpha=weight)
        return flat

    def _at_end(self, state: State) -> Tensor | None:
        """What one Newton step adds at an end; None for nothing, where that is on the level set."""
        level_set = self.flow.level_set
        loss, gradient = state.evaluated
        residual = level_set.residual(loss)
        if abs(residual) <= level_set.tolerance:
            return None
        square = float(torch.dot(gradient, gradient))
        # Of a state that holds more than θ, θ alone is moved.
        added = torch.zeros_like(state.flat)
        added[: gradient.numel()] = gradient * (-residual / square)
        return added
