"""The loss on a plane through a walk: a slice of the landscape, and the walk's distance from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from geoflow.analysis.landscape.planes import Plane, principal
from geoflow.analysis.landscape.slice_dataset import (
    KIND,
    LOSS,
    ON_THE_WALK,
    assemble,
    beside,
    check_observables,
)
from geoflow.analysis.walked import check_walked, loss_rtol
from geoflow.archive.pieces import Pieces, fingerprint, folder_beside
from geoflow.errors import ArchiveError, GeoflowError, InputError, ObservableError
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.regularizers.measured import as_function
from geoflow.problems import arithmetic
from geoflow.problems.dtypes import dtype_name
from geoflow.problems.problem import Problem
from geoflow.problems.protocol import ProblemLike
from geoflow.system import kinds, translation
from geoflow.system.limits import EVALUATIONS, check_work
from geoflow.system.memory import check_memory
from geoflow.system.messages import note
from geoflow.system.progress import duration, progress_bar
from geoflow.trajectories.dataset import at_snapshots
from geoflow.trajectories.given import kept_theta
from geoflow.trajectories.records import Observable, Observed
from geoflow.walking.fitting import observed_otherwise

Floats = NDArray[np.float64]
Evaluation = Callable[[Sequence[Tensor]], list[float]]

# Points evaluated at once. studies/batched_slices.py: more are no faster on a processor.
BATCH = 8
# Bytes that the points evaluated at once may take.
MEMORY = 2**30

# Extents of the walk: beyond, the loss of what is drawn overflows.
LARGEST_MARGIN = 1e9


@arithmetic.without_autocast()
def on_plane(
    ds: xr.Dataset,
    flow: RegularizingFlow,
    plane: Plane | None = None,
    *,
    points: int = 41,
    margin: float = 0.25,
    observables: Mapping[str, Observed] | None = None,
    batch_size: int | None = None,
    archive: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Evaluate the loss on a grid of a plane around a walk, and project the walk on it.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory in schema 1.0 to 1.2.
    flow : RegularizingFlow
        The flow it is a walk of, with the same problem; of several constraints their mean is seen.
    plane : Plane, optional
        See :mod:`geoflow.analysis.planes`. None: that of the first two principal components.
    points : int
        Along each of the two directions.
    margin : float
        What is seen beyond the walk's projection on each side, as a fraction of the greater of
        its two extents.
    observables : mapping of str to Problem or callable, optional
        Further functions of θ to evaluate: a :class:`~geoflow.Problem`, such as the loss
        on the test set, is evaluated in batches; a function θ → float point by point, and so is
        one of ``gf.regularizers``, made for the flow's problem. They are
        evaluated at the snapshots too, whatever the walk recorded under their names.
    batch_size : int, optional
        Points evaluated at once, by ``torch.func.vmap``. None: 8, or fewer where those would take
        more than 1 GiB; 1 where the problem evaluates its examples in chunks, or vmap cannot take
        what its loss does. Another number changes values by rounding.
    archive : str or Path, optional
        Write the result here. Each row of the grid is kept beside it once it is done, so that the
        same call goes on where it was interrupted.
    overwrite : bool
        Replace the archive where it exists, and start over where an unfinished analysis with
        other settings lies beside it.
    progress : bool
        Say on standard error how long it will take, and show a bar there if it is a terminal.

    Returns
    -------
    xarray.Dataset
        ``loss(alpha, beta)`` and one variable for each observable; ``walk_alpha``, ``walk_beta``
        and ``off_plane_distance`` of each snapshot; ``walk_loss`` at the snapshots, as the walk
        recorded it, and ``projected_loss`` at their projections on the plane; and so for each
        observable, both evaluated. A walk on the level set leaves the plane, so that its
        projections are not on the contour of the level: the last three say by how much.

    Raises
    ------
    InputError
        An argument that cannot be used, or a flow that the dataset is not a walk of.
    ObservableError
        An observable raised an error; the rows that were done are kept where there is an archive.
    ArchiveError
        The archive cannot be written, or rows were done with other observables; they are kept.
    """
    kinds.check_dataset(ds, "snapshot", "theta")
    kinds.check_kind(flow, RegularizingFlow, "flow", kinds.A_FLOW)
    kinds.check_kind(plane, Plane | None, "plane", "one of planes.principal, random or through")
    kinds.check_kind(observables, Mapping | None, "observables", "a dict of functions or problems")
    problem = flow.problem
    given = {name: as_function(f, problem) for name, f in (observables or {}).items()}
    points, margin = kinds.as_whole(points, "points"), kinds.as_number(margin, "margin")
    batch_size = None if batch_size is None else kinds.as_whole(batch_size, "batch_size")
    kinds.check_switch(overwrite, "overwrite")
    kinds.check_switch(progress, "progress")
    _check(points, margin, batch_size)
    check_observables(given)
    check_walked(ds, problem)
    if plane is None:
        plane = principal(ds)
    if plane.directions.shape != (2, problem.n_parameters):
        raise InputError(
            f"plane has directions of shape {plane.directions.shape}; the flow needs "
            f"(2, {problem.n_parameters})"
        )
    functions = {LOSS: _in_batches(problem, problem, batch_size)}
    for name, f in given.items():
        each = _one_by_one(f, name) if callable(f) else _in_batches(f, problem, batch_size)
        functions[name] = _named(each, name)
    train_loss = at_snapshots(ds, "train_loss")
    recorded = {n: ds[n].values for n in given if n in ds and ds[n].dims == ("snapshot",)}
    _check_cost(problem, points, len(functions))
    walk, n = _projected(ds, plane), ds.sizes["snapshot"]
    alpha, beta = _grid(walk, plane, points, margin)

    def tensor(theta: Floats) -> Tensor:
        return torch.as_tensor(theta, dtype=problem.dtype, device=problem.device)

    def row(index: int) -> xr.Dataset:
        thetas = [tensor(plane.at(alpha[index], b)) for b in beta]
        return xr.Dataset({name: ("beta", f(thetas)) for name, f in functions.items()})

    def of_the_walk() -> xr.Dataset:
        values: dict[str, Any] = {}
        for name, f in functions.items():
            ends = zip(walk["walk_alpha"], walk["walk_beta"], strict=True)
            # One at a time: there may be many, and each has P numbers.
            at_snapshot, projected = beside(name)
            values[projected] = [f([tensor(plane.at(*end))])[0] for end in ends]
            if name == LOSS:
                values[at_snapshot] = train_loss
                continue
            found = np.array([f([tensor(kept_theta(ds, i))])[0] for i in range(n)])
            # Of an observable the walk has the name alone: it may have been another function. Where
            # it is this one, the record is of θ before that was rounded to be kept.
            there = recorded.get(name, found)
            values[at_snapshot] = there if _same(there, found, loss_rtol(ds, problem)) else found
        return xr.Dataset({name: ("snapshot", v) for name, v in values.items()})

    settings = {
        "analysis": KIND,
        **plane.attributes,
        "names": plane.names,
        "points": points,
        "margin": margin,
        "quantities": list(functions),
        "batch_size": batch_size,
        "walk": fingerprint(ds),
        "device": str(problem.device),
        "dtype": dtype_name(problem.dtype),
        "version": version("geoflow"),
    }
    with Pieces(archive, settings, overwrite=overwrite, of=ds) as pieces:
        names = [f"row-{index:05d}" for index in range(points)]
        todo = len(pieces.missing(names))
        if progress and todo:
            _announce(functions, tensor(plane.origin), points * todo)
        is_begun = not pieces.missing(["walk"])
        of_walk = pieces.compute("walk", of_the_walk)
        if is_begun and todo and archive is not None:
            end = tensor(plane.at(walk["walk_alpha"][-1], walk["walk_beta"][-1]))
            named = {name: functions[name] for name in given}
            _check_observables(named, end, of_walk, folder_beside(Path(archive)))
        shown = progress_bar(progress, range(points), "slice", unit="row")
        rows = [pieces.compute(names[index], partial(row, index)) for index in shown]
        grid = {name: np.stack([r[name].values for r in rows]) for name in functions}
        found = assemble(ds, plane, (alpha, beta), grid, walk | _values(of_walk))
        # At the snapshots the loss is known.
        evaluations = len(functions) * (points**2 + n) + len(given) * n
        found.attrs |= {
            "level": float(flow.level_set.levels.mean()),
            "margin": margin,
            "evaluations": evaluations,
        }
        pieces.finish(found)
    return found


def _check_observables(
    functions: Mapping[str, Evaluation], theta: Tensor, of_walk: xr.Dataset, folder: Path
) -> None:
    """Refuse to go on with other functions than those of the rows that are done.

    They are compared at the projection of the last snapshot, ``theta``.
    """
    values = {name: of_walk[beside(name)[1]].values for name in functions}

    def at_one(evaluate: Evaluation) -> Observable:
        return lambda at: evaluate([at])[0]

    different = observed_otherwise(
        {name: at_one(evaluate) for name, evaluate in functions.items()},
        theta.cpu().numpy(),
        theta,
        {name: float(v[-1]) for name, v in values.items()},
        {name: float(np.abs(v[np.isfinite(v)]).max(initial=0)) for name, v in values.items()},
    )
    if different:
        raise ArchiveError(
            f"{different} at the projection of the last snapshot; go on with the functions that "
            f"the slice was begun with, or remove the folder {folder} to start over"
        )


def _same(recorded: Floats, evaluated: Floats, rtol: float) -> bool:
    """Whether two series agree to rounding, which is relative to the largest of a series."""
    largest = float(np.abs(recorded[np.isfinite(recorded)]).max(initial=0))
    return np.allclose(recorded, evaluated, rtol=0, atol=rtol * largest, equal_nan=True)


def _values(ds: xr.Dataset) -> dict[str, Floats]:
    return {str(name): variable.values for name, variable in ds.data_vars.items()}


def _check(points: int, margin: float, batch_size: int | None) -> None:
    if points < 2:
        raise InputError(f"points={points}; use at least 2 along each direction")
    if not 0 <= margin <= LARGEST_MARGIN:
        raise InputError(f"margin={margin}; use a number from 0 to {LARGEST_MARGIN:g}")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size={batch_size}; use a positive number or None")


def _check_cost(problem: ProblemLike, points: int, n_functions: int) -> None:
    """Refuse a grid that memory cannot hold, or that would take days."""
    theta = problem.theta0
    # The parameters of a row; the values by row, on the grid, and as they are written.
    needed = points * theta.numel() * theta.element_size() + 4 * 8 * points**2 * n_functions
    check_memory(needed, f"points={points}: the points of the grid", "use fewer points")
    check_work(points**2 * n_functions, EVALUATIONS, f"points={points}", "evaluations of a loss")


def _projected(ds: xr.Dataset, plane: Plane) -> dict[str, Floats]:
    """Coordinates of each snapshot on the plane, and its distance from it."""
    n = ds.sizes["snapshot"]
    found = np.array([plane.coordinates(kept_theta(ds, i)) for i in range(n)])
    return dict(zip(ON_THE_WALK, found.T, strict=True))


def _grid(
    walk: Mapping[str, Floats], plane: Plane, points: int, margin: float
) -> tuple[Floats, Floats]:
    """Even α and β that hold the walk's projection, with a margin around it."""
    ends = [(walk[n].min(), walk[n].max()) for n in ("walk_alpha", "walk_beta")]
    # In units of θ, since directions may be of different lengths.
    extents = [(high - low) * norm for (low, high), norm in zip(ends, plane.norms, strict=True)]
    around = margin * max(extents)
    axes = []
    for (low, high), norm in zip(ends, plane.norms, strict=True):
        low = min(low - around / norm, -plane.least_extent)
        high = max(high + around / norm, plane.least_extent)
        if not high > low:
            raise InputError(
                f"margin={margin}: the walk's projection has no extent, so nothing would be seen; "
                "use a margin and another plane"
            )
        axes.append(np.linspace(low, high, points))
    return axes[0], axes[1]


def _one_by_one(function: Observable, name: str) -> Evaluation:
    named = f"observables[{name!r}](θ)"
    # A copy, since other functions get the same points.
    return lambda thetas: [kinds.as_number(function(theta.clone()), named) for theta in thetas]


def _named(evaluate: Evaluation, name: str) -> Evaluation:
    """Say of what an observable raises that it did, in one line."""

    def guarded(thetas: Sequence[Tensor]) -> list[float]:
        try:
            return evaluate(thetas)
        except GeoflowError:
            raise
        except Exception as error:
            raise ObservableError(
                f"observables[{name!r}] raised {translation.kind_and_reason(error)}; with "
                "archive=… the rows done are kept"
            ) from error

    return guarded


def _in_batches(problem: ProblemLike, walked: ProblemLike, batch_size: int | None) -> Evaluation:
    """Evaluate a loss at several points at once where that serves."""
    if problem.n_parameters != walked.n_parameters:
        raise InputError(
            f"observables: a problem of {problem.n_parameters} parameters; the flow has "
            f"{walked.n_parameters}"
        )
    if not isinstance(problem, Problem):
        return lambda thetas: [float(problem.loss(theta).mean()) for theta in thetas]
    at_once = _points_at_once(problem) if batch_size is None else batch_size
    if at_once == 1:
        return lambda thetas: [float(problem.loss(theta).mean()) for theta in thetas]

    def evaluate(thetas: Sequence[Tensor]) -> list[float]:
        values: list[float] = []
        for start in range(0, len(thetas), at_once):
            batch = thetas[start : start + at_once]
            try:
                values += problem.losses(torch.stack(list(batch))).double().cpu().tolist()
            except torch.OutOfMemoryError:
                raise
            # What vmap takes of two points it need not take of more, nor with the user's number.
            except RuntimeError:
                values += [float(problem.loss(theta)) for theta in batch]
        return values

    return evaluate


def _points_at_once(problem: Problem) -> int:
    """Of how many points the loss is evaluated at once, from nothing that varies between runs."""
    if problem.n_chunks > 1:
        return 1
    theta = problem.theta0
    try:
        # Of one point alone the memory is as outside of vmap.
        problem.losses(torch.stack([theta, theta]))
    except RuntimeError:
        return 1
    with _LargestTensor() as seen:
        problem.loss(theta)
    # The points, their stack, and an operation's inputs and output.
    each = 2 * theta.numel() * theta.element_size() + 3 * seen.nbytes
    return max(1, min(BATCH, MEMORY // each))


class _LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is computed inside the block."""

    nbytes = 0

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func, types, args=(), kwargs=None
    ):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
        return result


def _announce(functions: Mapping[str, Evaluation], theta: Tensor, n: int) -> None:
    """Say on standard error how long it will take, from one timed batch."""
    thetas = [theta] * min(n, BATCH)
    for f in functions.values():
        # The first of a process takes longer.
        f(thetas)
    before = time.perf_counter()
    for f in functions.values():
        f(thetas)
    seconds = (time.perf_counter() - before) / len(thetas) * n
    note(f"slice: about {duration(seconds)} for {' and '.join(functions)} at {n:,} points")
