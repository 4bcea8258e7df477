"""One walk of a comparison: walked to the flow times asked for, and measured there in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from geoflow.comparisons.dataset import ATOL_OVER_RTOL, Run, Values
from geoflow.errors import ConvergenceError, CriticalPointError, InputError
from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems.counting import own_evaluations
from geoflow.solvers import Solver
from geoflow.system import kinds
from geoflow.system.translation import kind_and_reason
from geoflow.trajectories.records import Observable
from geoflow.walking.loop import walk


class Judge:
    """Measures every walk by the reference's own flow and observables.

    Parameters
    ----------
    flow : RegularizingFlow
        In float64.
    observables : mapping of str to callable
        Functions θ → float.
    """

    def __init__(self, flow: RegularizingFlow, observables: Mapping[str, Observable]) -> None:
        self.flow, self.observables = flow, observables

    def walk(
        self,
        flow: RegularizingFlow,
        solver: Solver,
        rtol: float,
        times: list[float],
        max_evaluations: float | None,
    ) -> Run:
        """Walk to each of the times; whatever ends the walk is no error here."""
        nothing = np.empty((0, flow.problem.n_parameters))
        before = own_evaluations(flow.problem)
        try:
            return self.reference(flow, solver, rtol, times, max_evaluations)
        except InputError as error:
            return Run("not_resolved", str(error), nothing, {})
        except (ConvergenceError, CriticalPointError) as error:
            critical = isinstance(error, CriticalPointError)
            status = "critical_point" if critical else "projection_failed"
            return Run(status, str(error), nothing, {}, own_evaluations(flow.problem) - before)

    def reference(
        self,
        flow: RegularizingFlow,
        solver: Solver,
        rtol: float,
        times: list[float],
        max_evaluations: float | None = None,
    ) -> Run:
        """Walk to each of the times, where without a start there is nothing to compare.

        Raises
        ------
        InputError, ConvergenceError, CriticalPointError
            The walk has no start.
        """
        before = own_evaluations(flow.problem)
        ds = walk(
            flow,
            solver,
            rtol=rtol,
            atol=ATOL_OVER_RTOL * rtol,
            t_end=times[-1],
            stop=None,
            max_evaluations=max_evaluations,
            snapshot_times=times,
        )
        spent = own_evaluations(flow.problem) - before
        at = ds.isel(step=ds["snapshot_step"].values)
        values, failed = self.measure(ds["theta"].values.astype(float))
        values["evaluations"] = (at["n_gradient"] + 2 * at["n_hvp"]).values.astype(float)
        values["wall_time"] = at["wall_time"].values
        return Run(
            ds.attrs["status"],
            "; ".join([ds.attrs["status_message"], *failed]),
            ds["theta"].values.astype(float),
            values,
            spent,
            ds.sizes["step"] - 1,
            int(ds["n_rejected"][-1]),
            float(abs(ds["level_residual"]).max()) / abs(flow.level_set.level),
        )

    def measure(self, thetas: NDArray[np.float64]) -> tuple[Values, list[str]]:
        """Scalars and observables at each θ of shape (S, P), by name, and what failed.

        An observable that raises is NaN there.
        """
        level_set = self.flow.level_set
        rows, failed = [], dict[str, str]()
        for row in thetas:
            theta = torch.as_tensor(row, device="cpu").to(self.flow.problem.theta0)
            state = self.flow.evaluate(theta)
            residual = abs(level_set.residual(state.loss))
            values = {
                "regularizer": state.regularizer,
                "angle": state.angle,
                "level_error": residual / abs(level_set.level),
                "level_distance": residual / state.gradient_norm,
            }
            for name, function in self.observables.items():
                try:
                    values[name] = kinds.real(function(theta.clone()))
                except Exception as error:
                    values[name] = math.nan
                    failed[name] = f"observables[{name!r}] raised {kind_and_reason(error)}"
            rows.append(values)
        names = ("regularizer", "angle", "level_error", "level_distance", *self.observables)
        found = {name: np.array([row[name] for row in rows], dtype=float) for name in names}
        return found, list(failed.values())
