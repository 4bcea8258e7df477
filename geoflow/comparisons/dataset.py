"""The dataset of a comparison of solvers: assembled and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.manifold.flows import RegularizingFlow
from geoflow.trajectories import dataset
from geoflow.walking.settings import DEFAULTS

SCHEMA_VERSION = "1.0"

# The tolerance of the walk that estimates the reference's error, over the reference's own.
TIGHTER = 0.1
# So that rtol alone says how tight a walk is.
ATOL_OVER_RTOL = DEFAULTS.atol / DEFAULTS.rtol
# What the label of a solver ends in where it walks in float32.
FLOAT32 = ":float32"
# Of these the deviation over the runs is kept beside the mean.
SPREAD = ("theta_error", "evaluations")

Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Run:
    """One walk: what it has at the flow times it came to, and how it ended.

    Attributes
    ----------
    status, message : str
        How it ended.
    theta : ndarray, shape (S, P)
        At the S flow times it came to.
    values : dict of str to ndarray, shape (S,)
        Scalars there, by name.
    spent, n_steps, n_rejected : int
        Evaluations, accepted steps and rejected attempts of the whole walk.
    worst : float
        Largest |L − c|/|c| over its steps, L as the walk evaluated it.
    """

    status: str
    message: str
    theta: NDArray[np.float64]
    values: Values
    spent: int = 0
    n_steps: int = 0
    n_rejected: int = 0
    worst: float = math.nan


def _errors(run: Run, reference: Run, names: Sequence[str]) -> Values:
    """Errors at the flow times that both came to: of θ relative, of every scalar absolute."""
    n = min(len(run.theta), len(reference.theta))
    exact = reference.theta[:n]
    distance = np.linalg.norm(run.theta[:n] - exact, axis=1)
    found = {"theta_error": distance / np.linalg.norm(exact, axis=1)}
    for name in names:
        if n:
            found[f"{name}_error"] = np.abs(run.values[name][:n] - reference.values[name][:n])
    return found


def to_dataset(
    observables: Sequence[str],
    labels: list[str],
    grid: list[float],
    times: list[float],
    runs: Mapping[tuple[str, float], Sequence[Run]],
    references: Sequence[Run],
    header: Mapping[str, Any],
) -> xr.Dataset:
    """Assemble the dataset of :func:`geoflow.comparisons.work_precision.compare`.

    Parameters
    ----------
    observables, labels : sequence of str
        Names of the observables and of the solvers.
    grid, times : list of float
        Tolerances and flow times.
    runs : mapping of tuple to sequence of Run
        By label and tolerance; those that are missing were not run.
    references : sequence of Run
        The reference, and the walk that estimates its error.
    header : mapping
        Attributes.
    """
    scalars = ["regularizer", "angle", *observables]
    texts = {n: n.replace("_", " ") for n in observables}
    texts |= {"regularizer": "R", "angle": "the angle between grad R and grad L"}
    units = {"angle": "degree", "angle_error": "degree", "wall_time": "s"}
    about = {"theta_error": "distance from the reference over the reference's norm"}
    about |= {f"{n}_error": f"absolute error of {texts[n]}" for n in scalars}
    about |= {
        "level_error": "constraint error |L - c|/|c|, L evaluated in float64",
        "level_distance": "first-order distance |L - c|/|grad L| from the level set",
        "evaluations": "gradient evaluations up to the snapshot, an HVP counting 2",
        "wall_time": "wall time up to the snapshot",
    }
    spread = {f"{n}_deviation": f"deviation over the runs: {about[n]}" for n in SPREAD}
    dims = ("solver", "rtol", "snapshot")
    shape = (len(labels), len(grid), len(times))
    arrays = {name: np.full(shape, np.nan) for name in (*about, *spread)}
    worst = np.full(shape[:2], np.nan)
    status = np.full(shape[:2], "not_run", dtype=object)
    message = np.full(shape[:2], "", dtype=object)
    counts = {
        "evaluations_spent": "gradient evaluations of the whole walk, an HVP counting 2",
        "n_steps": "accepted steps",
        "n_rejected": "rejected attempts",
    }
    numbers = {name: np.zeros(shape[:2], dtype=np.int64) for name in counts}
    reference, tighter = references
    for (label, rtol), several in runs.items():
        cell = labels.index(label), grid.index(rtol)
        # The one that came least far says how it ended.
        run = min(several, key=lambda run: (run.status != "interrupted", len(run.theta)))
        status[cell], message[cell] = run.status, run.message
        numbers["evaluations_spent"][cell] = round(np.mean([r.spent for r in several]))
        numbers["n_steps"][cell] = round(np.mean([r.n_steps for r in several]))
        numbers["n_rejected"][cell] = round(np.mean([r.n_rejected for r in several]))
        worst[cell] = max(r.worst for r in several)
        # As far as all of them came; an interrupted one may have come farther than the others.
        n = min(len(r.theta) for r in several)
        found = [r.values | _errors(r, reference, scalars) for r in several]
        for name in about if n else ():
            values = np.array([one[name][:n] for one in found if name in one])
            if len(values):
                arrays[name][cell][: values.shape[1]] = values.mean(axis=0)
            if name in SPREAD and len(values) > 1:
                arrays[f"{name}_deviation"][cell][: values.shape[1]] = values.std(axis=0, ddof=1)

    def described(where: tuple[str, ...], values: Any, text: str, unit: str = "1") -> Any:
        return where, values, {"long_name": text, "units": unit}

    variables = {
        n: described(dims, arrays[n], what, units.get(n, "1"))
        for n, what in (about | spread).items()
    }
    text = "worst constraint error |L - c|/|c| over the steps of the walk"
    variables["level_error_worst"] = described(dims[:2], worst, text)
    variables |= {n: described(dims[:2], numbers[n], counts[n]) for n in counts}
    variables["status"] = described(dims[:2], status, "how the walk ended")
    variables["status_message"] = described(dims[:2], message, "how the walk ended, in words")
    own = _errors(tighter, reference, scalars)
    for name in ("theta_error", *(f"{n}_error" for n in scalars)):
        text = f"the reference's own: {about[name]}, by a walk at a tenth of its rtol"
        values = _padded(own.get(name, np.empty(0)), len(times))
        unit = units.get(name, "1")
        variables[f"reference_{name}"] = described(("snapshot",), values, text, unit)
    for name in (*scalars, "level_error", "evaluations", "wall_time"):
        text = f"of the reference: {about.get(name) or texts[name]}"
        values = _padded(reference.values[name], len(times))
        unit = units.get(name, "1")
        variables[f"reference_{name}"] = described(("snapshot",), values, text, unit)
    dtypes = ["float32" if label.endswith(FLOAT32) else "float64" for label in labels]
    atols = ATOL_OVER_RTOL * np.array(grid)
    coordinates = {
        "solver": described(("solver",), np.array(labels, dtype=object), "solver"),
        "dtype": described(("solver",), np.array(dtypes, dtype=object), "dtype of the walk"),
        "rtol": described(("rtol",), grid, "local error allowed, relative to the norm of theta"),
        "atol": described(("rtol",), atols, "local error allowed, absolute"),
        "snapshot_time": described(("snapshot",), times, "flow time of the snapshot"),
    }
    return xr.Dataset(variables, coordinates, header)


def _padded(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return np.append(values, np.full(length - len(values), np.nan))


def attributes(
    flow: RegularizingFlow,
    config: Mapping[str, Any],
    solver: str,
    rtol: float,
    references: Sequence[Run],
) -> dict[str, Any]:
    """Global attributes of a comparison, but for its status."""
    atol = ATOL_OVER_RTOL * rtol
    of_walk = dataset.attributes(flow, solver=solver, rtol=rtol, atol=atol, config=config)
    # What is said of the reference is named so, and a comparison is no trajectory.
    header = {"geoflow_comparison": SCHEMA_VERSION}
    for name, value in of_walk.items():
        if name in ("solver", "rtol", "atol"):
            header[f"reference_{name}"] = value
        elif name not in ("geoflow_schema", "history", "dtype"):
            header[name] = value
    named = f"{header['experiment']}, seed {header['seed']}: " if header["experiment"] else ""
    return header | {
        "kind": "comparison",
        "title": f"{named}solvers and tolerances compared",
        "config": json.dumps(config, sort_keys=True),
        "reference_status": references[0].status,
        "reference_check_rtol": TIGHTER * rtol,
        "reference_check_status": references[1].status,
    }
