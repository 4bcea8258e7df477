"""Evaluations and wall time that each method takes to each angle, in one process."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr

from geoflow import solvers
from geoflow.baselines import predictor_corrector
from geoflow.experiments import registry
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.manifold.regularizers import squared_norm
from geoflow.problems import arithmetic
from geoflow.system import kinds
from geoflow.walking.loop import walk
from geoflow.walking.settings import WalkSettings
from geoflow.walking.stopping import Stationary

ANGLES = (120, 150, 175, 179)
SOLVERS = {"dopri5": 1e-4, "bosh3": 1e-3, "rkc": 1e-4, "exponential": 1e-3, "bdf": 1e-3}
# The peer, where it is installed; at looser tolerances it leaves the level set or crawls.
PEER = {"cvode": 1e-6}


@arithmetic.without_autocast()
def bench(
    experiment: str,
    seed: int = 0,
    max_evaluations: float = 20_000,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Walk one experiment with every method, from the same start.

    The paper's loop has the step sizes and the number of steps that the paper gives it; on an
    experiment of one's own its usual ones, and no number but ``max_evaluations``.

    A Hessian-vector product counts 2 evaluations, a difference of gradients 1.

    Parameters
    ----------
    experiment : str
        Name of an experiment.
    seed : int
        Decides the problem.
    max_evaluations : int or float
        Cap for each method.
    note : callable, optional
        Told the name of each method as it starts.

    Returns
    -------
    dict
        A JSON-able entry for each method; None where an angle, or the R that the paper's loop
        ends with, was not reached.

    Raises
    ------
    InputError
        An argument that cannot be used.
    KeyboardInterrupt
        Ctrl-C came during one of them: what was counted of it is not what it takes.
    """
    kinds.check_kind(max_evaluations, Real, "max_evaluations", "a whole number")
    budget = WalkSettings(max_evaluations=max_evaluations).goals().max_evaluations
    kinds.check_kind(note, Callable | None, "note", "a function of a text")
    chosen = registry.get(experiment)
    of_paper: dict[str, Any] = {}
    if isinstance(chosen, registry.Experiment):
        of_paper = {
            "steps": chosen.paper_steps,
            "predictor_min": chosen.predictor_min,
            "corrector_min": chosen.corrector_min,
        }
    prepared = chosen.prepare(seed)
    flow = RegularizingFlow(LevelSet(prepared.problem), squared_norm)
    stop = Stationary(float(ANGLES[-1]))
    report = note or (lambda name: None)
    report("predictor_corrector")
    paper = predictor_corrector(flow, stop=stop, max_evaluations=budget, **of_paper)
    _check_whole(paper)
    target = float(paper["regularizer"].min())
    entries = {"predictor_corrector": summarise(paper, target)}
    known = SOLVERS | {name: rtol for name, rtol in PEER.items() if solvers.is_installed(name)}
    for name, rtol in known.items():
        report(name)
        ds = walk(flow, name, rtol=rtol, stop=stop, max_evaluations=budget, max_snapshots=2)
        _check_whole(ds)
        entries[name] = summarise(ds, target)
    return entries


def _check_whole(ds: xr.Dataset) -> None:
    """Pass on the Ctrl-C that a walk has taken as its end."""
    if ds.attrs["status"] == "interrupted":
        raise KeyboardInterrupt


def summarise(ds: xr.Dataset, target: float) -> dict[str, Any]:
    """Say what one walk took to each angle and to R ≤ ``target``."""
    evaluations = (ds["n_gradient"] + 2 * ds["n_hvp"]).values
    angles, r = ds["angle"].values, ds["regularizer"].values

    def first(reached: Any, values: Any) -> Any:
        return values[int(np.argmax(reached))].item() if reached.any() else None

    level = abs(ds.attrs["level"])
    return {
        "rtol": ds.attrs["rtol"],
        "evaluations": {str(a): first(angles >= a, evaluations) for a in ANGLES},
        "wall_time": {str(a): first(angles >= a, ds["wall_time"].values) for a in ANGLES},
        "to_regularizer": {"target": target, "evaluations": first(r <= target, evaluations)},
        "worst_level_residual": float(np.abs(ds["level_residual"]).max()) / level,
        "worst_level_distance": float(ds["level_distance"].max()),
        "final": {
            "angle": float(angles[-1]),
            "regularizer": float(r[-1]),
            "evaluations": int(evaluations[-1]),
            "status": ds.attrs["status"],
        },
    }
