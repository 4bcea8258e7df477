"""Points of a path as they are recorded, kept while it is followed, and taken up again."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import xarray as xr

from geoflow.archive.pieces import Pieces, folder_beside
from geoflow.errors import ArchiveError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.paths.branch import Reached
from geoflow.paths.continuation import Continuation, at_level
from geoflow.paths.learned import Learned
from geoflow.trajectories import path_dataset, path_schema
from geoflow.trajectories.path_dataset import PathPoint
from geoflow.trajectories.records import Observable, Snapshot
from geoflow.walking.counting import APART, counts_of, spent, uncounted
from geoflow.walking.fitting import EARLIER_UNITS, differences, observed_otherwise

# Of the smallest eigenvalue, relative to the range of the spectrum; and its seed.
EIGENVALUE_TOL, EIGENVALUE_SEED = 1e-6, 0

# Evaluations that a level may take before it is given up: so many times those of the first walk, or
# of a level so far if that takes more, and at the least.
PROPORTION, AT_LEAST = 2, 1000


class Recording:
    """The points so far; each is kept beside the archive as soon as it is reached.

    With a point goes what the next one is found with, so that a path that is taken up again becomes
    what it would have been. That is written first: a point that is there can be gone on from.

    Parameters
    ----------
    continuation : Continuation
        Finds the points.
    observables : mapping of str to callable
        Functions θ → float.
    eigenvalues : bool
        Compute the smallest eigenvalue of A at each point.
    header : mapping
        Global attributes.
    budget : int
        Evaluations that the whole path may make.
    pieces : Pieces
        Where points are kept.

    Attributes
    ----------
    points : list of PathPoint
        As they are recorded.
    reached : list of Reached
        As they can be gone on from.
    """

    def __init__(
        self,
        continuation: Continuation,
        observables: Mapping[str, Observable],
        eigenvalues: bool,
        header: Mapping[str, Any],
        budget: int,
        pieces: Pieces,
    ) -> None:
        self.continuation, self.flow = continuation, continuation.flow
        self.observables = {n: uncounted(self.flow, f) for n, f in observables.items()}
        self.eigenvalues = eigenvalues
        self.header, self.budget, self.pieces = header, budget, pieces
        self.points: list[PathPoint] = []
        self.reached: list[Reached] = []
        self._go_on_from(dict.fromkeys(counts_of(self.flow), 0), 0.0)

    def take(self, points: Sequence[PathPoint]) -> None:
        """Take up the points of a path that has ended: it goes on from them."""
        for number, point in enumerate(points):
            is_last = number == len(points) - 1
            self.reached.append(self._taken_up(point, None, number, is_last=is_last))
            self.points.append(point)

    def next(self, level: float | None, nearest: int) -> None:
        """Add the point on a level, the one that is kept or a new one.

        Parameters
        ----------
        level : float, optional
            None: the first point, on the flow's own level.
        nearest : int
            The point from which it is reached.
        """

        def make() -> Reached:
            if level is None:
                return self.continuation.start()
            return self.continuation.to(level, self.reached[nearest], self.allowed)

        self._add(make, self.flow.level_set.level if level is None else level)

    def round(self, at: Reached, goal: float, stops: Sequence[float]) -> None:
        """Add the next point along the arc of the branch, the one that is kept or a new one.

        See :meth:`geoflow.paths.continuation.Continuation.round`.
        """
        self._add(lambda: self.continuation.round(at, goal, stops, self.allowed), None)

    @property
    def allowed(self) -> int:
        """Evaluations that the next level may take: in proportion to what was spent so far."""
        values = [self.points[number].values for number in (0, -1)]
        first, last = (v["n_gradient"] + 2 * v["n_hvp"] for v in values)
        mean = (last - first) // max(len(self.points) - 1, 1)
        return max(PROPORTION * max(first, mean), AT_LEAST)

    @property
    def goes_round(self) -> bool:
        """Whether the next point is kept, and was reached along the arc of the branch."""
        name = f"point-{len(self.points):06d}"

        def damaged() -> xr.Dataset:
            raise self.pieces.damaged(name)

        there = not self.pieces.missing([name]) and self.pieces.target is not None
        return there and self.pieces.compute(name, damaged)["method"].values[0] == "arclength"

    def _add(self, make: Callable[[], Reached], level: float | None) -> None:
        """Add a point; a level of None is whatever it comes to."""
        number = len(self.points)
        made = []

        def record() -> xr.Dataset:
            made.append(make())
            self.pieces.keep(f"memory-{number:06d}", self.continuation.memory.pack())
            return self.dataset([self._record(made[0])], path_schema.STATUSES[0], "")

        ds = self.pieces.compute(f"point-{number:06d}", record)
        self.pieces.drop(f"memory-{number - 1:06d}")
        point = points_of(ds)[0]
        if not made:
            is_last = bool(self.pieces.missing([f"point-{number + 1:06d}"]))
            made.append(self._taken_up(point, level, number, is_last=is_last))
        self.points.append(point)
        self.reached.append(made[0])

    def dataset(self, points: Sequence[PathPoint], status: str, message: str) -> xr.Dataset:
        """Assemble points to a path."""
        attributes = {**self.header, "status": status, "status_message": message}
        return path_dataset.to_dataset(
            self.flow.problem, points, sorted(self.observables), attributes
        )

    def _record(self, reached: Reached) -> PathPoint:
        state, flow = reached.state, reached.flow
        of_flow = flow.values(state)
        values: dict[str, Any] = {
            "level": reached.c,
            "penalty": 1 / state.multiplier,
            **{name: of_flow[name] for name in path_schema.OF_FLOW},
            "kkt_residual": state.kkt_residual,
            "method": reached.method,
            "n_between": reached.n_between,
            "n_correction": reached.n_corrections,
        }
        if self.eigenvalues:
            with self.continuation.budget():
                values["smallest_eigenvalue"] = _smallest_eigenvalue(flow, state)
        kept = Snapshot(len(self.points), 0.0, state.theta, self.observables)
        counts = counts_of(self.flow)
        values |= kept.values
        values |= {f"n_{name}": counts[name] - self._counts0[name] for name in counts}
        values["wall_time"] = clock.perf_counter() - self._clock0
        return PathPoint(values, kept.theta)

    def _taken_up(
        self, point: PathPoint, level: float | None, number: int, *, is_last: bool
    ) -> Reached:
        """A point that is kept, as it can be gone on from."""
        values, like = point.values, self.flow.problem.theta0
        own = values["level"] if level is None else level
        if values["level"] != own or point.theta.shape != tuple(like.shape):
            raise self.pieces.damaged(f"point-{number:06d}")
        theta = torch.from_numpy(point.theta.copy()).to(like)
        flow = at_level(self.flow, own)
        state = flow.evaluate(theta)
        self._check_same(flow, state, values, number)
        if is_last:
            self._check_observables(point, number)
        # What the check took is not counted.
        self._go_on_from(
            {name: int(values[f"n_{name}"]) for name in counted(values)},
            float(values["wall_time"]),
        )
        if not self.pieces.missing([f"point-{number:06d}"]) and self.pieces.missing(
            [f"point-{number + 1:06d}"]
        ):
            kept = self.pieces.kept(f"memory-{number:06d}")
            self.continuation.memory = Learned.unpack(kept, like)
        return Reached(
            state, flow, values["method"], int(values["n_between"]), int(values["n_correction"])
        )

    def _check_same(
        self, flow: RegularizingFlow, state: FlowState, then: Mapping[str, Any], number: int
    ) -> None:
        """Refuse a flow whose scalars at a point are not those that were recorded there."""
        different = _differences(flow, state, then)
        once = flow.earlier_state(state) if different else None
        loss = {"train_loss": state.loss}
        earlier = (
            once is not None
            and not _differences(flow, once, then, EARLIER_UNITS)
            and not differences(loss, then, flow.problem.dtype)
        )
        if different and not earlier:
            raise ArchiveError(
                f"flow: {different[0]} on the level {then['level']:.9g}; go on with the network, "
                "the loss function and the regularisation function that the path started with"
                f"{self._or_over(number)}"
            )

    def _check_observables(self, point: PathPoint, number: int) -> None:
        """Refuse functions whose values at a point are not those that were recorded there."""
        values = {n: [p.values[n] for p in (*self.points, point)] for n in self.observables}
        sizes = {n: max(map(abs, filter(math.isfinite, v)), default=0.0) for n, v in values.items()}
        different = observed_otherwise(
            self.observables, point.theta, self.flow.problem.theta0, point.values, sizes
        )
        if different:
            raise ArchiveError(
                f"{different} on the level {point.values['level']:.9g}; go on with the functions "
                f"that the path started with{self._or_over(number)}"
            )

    def _or_over(self, number: int) -> str:
        """How else to go on, where a point is a piece."""
        if self.pieces.target is None or self.pieces.missing([f"point-{number:06d}"]):
            return ""
        return f", or remove the folder {folder_beside(self.pieces.target)} to start over"

    def _go_on_from(self, counts: Mapping[str, int], wall_time: float) -> None:
        # Points of before have not what the problems of R cost.
        now = counts_of(self.flow)
        self._counts0 = {name: n - counts.get(name, 0) for name, n in now.items()}
        self._clock0 = clock.perf_counter() - wall_time
        costs = spent(counts)
        self.continuation.left = self.budget - costs["gradient"]
        self.continuation.left_of_r = self.budget - costs.get(APART, 0)


def counted(values: Mapping[str, Any]) -> list[str]:
    """What a point has counted, by the names of its variables without ``n_``."""
    return [name for name in ("gradient", "hvp", APART) if f"n_{name}" in values]


def points_of(ds: xr.Dataset) -> list[PathPoint]:
    """The points of a path's dataset."""
    columns = {
        str(name): variable.values
        for name, variable in ds.variables.items()
        if variable.dims == ("level",)
    }
    theta = ds["theta"].values
    return [
        PathPoint(
            {
                name: column[i].item() if column.dtype.kind in "fi" else column[i]
                for name, column in columns.items()
            },
            theta[i],
        )
        for i in range(len(theta))
    ]


def _smallest_eigenvalue(flow: RegularizingFlow, state: FlowState) -> float:
    """Of A on the tangent space; NaN where it does not converge."""
    # Imported here, as SciPy comes with it.
    from geoflow.analysis.curvature import tangent_hessian
    from geoflow.analysis.curvature.matrix_free import extreme_eigenvalues

    operator = tangent_hessian(flow, state)
    found = extreme_eigenvalues(
        operator, 1, which="smallest", tol=EIGENVALUE_TOL, seed=EIGENVALUE_SEED
    )
    return float(found.values[0])


def _differences(
    flow: RegularizingFlow, state: FlowState, then: Mapping[str, Any], units: float = 1.0
) -> list[str]:
    """Say in what the flow's scalars at a point differ from those that were recorded there."""
    now, dtype = flow.values(state), flow.problem.dtype
    different = differences({n: now[n] for n in path_schema.OF_FLOW}, then, dtype, units)
    # A path has no gradient norms; what it has says which way ∇R points, and how long it is.
    rtol = units * math.sqrt(torch.finfo(dtype).eps)
    for name, value, atol in (
        ("multiplier", now["multiplier"], 0.0),
        ("kkt_residual", state.kkt_residual, rtol),
    ):
        if not math.isclose(value, then[name], rel_tol=rtol, abs_tol=atol):
            different.append(f"the {name} is {value:.9g} where {then[name]:.9g} was recorded")
    return different
