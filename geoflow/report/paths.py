"""The section of a page about a regularisation path: what came out, two figures, every point."""

from __future__ import annotations

import numpy as np
import xarray as xr

from geoflow import plots
from geoflow.plots.path import checked, first_walked, has_matrices, observables
from geoflow.report.parts import Row, Section, Table, picture, synthetic


def path_section(
    subject: str, ds: xr.Dataset, baseline: xr.Dataset | None, number: int = 0
) -> Section:
    """Make the section of one path.

    Parameters
    ----------
    subject : str
        What it is a path of.
    ds : xarray.Dataset
        From :func:`geoflow.regularization_path`.
    baseline : xarray.Dataset or None
        Trainings with weight decay of the same subject, drawn beside the path where its R is a
        squared norm as theirs is.
    number : int
        Tells the parts of several sections apart.
    """
    ds = checked(ds, "level")
    a = ds.attrs
    seed = f", seed {a['seed']}" if a["seed"] >= 0 else ""
    section = Section(f"{subject}{seed}: regularisation path, R = {a['regularizer_name']}")
    section.summary = summary(ds)
    section.warnings += synthetic(subject)
    if a["status"] != "complete":
        section.warnings.append(f"The path ended early: {a['status']}, {a['status_message']}.")
    like_decay = str(a["regularizer_name"]).partition(":")[0] == "squared_norm"
    beside = baseline if like_decay else None
    caption = (
        "Observables, R and the training loss, which is the level, against penalty 1/λ, in the "
        "order of the levels; ringed: the end of the first walk."
    )
    if beside is not None:
        caption += (
            " Squares: training with weight decay, mean ± standard deviation over the runs, at the "
            "penalties near the path. It penalises the kernels alone."
        )
    figure = plots.regularization_path(ds, beside)
    section.parts.append(picture(f"path-{number}", figure, "The path against penalty", caption))
    if has_matrices(ds):
        caption = (
            "The largest singular values of each layer's weights against penalty, kernels of "
            "convolutions flattened to (outputs, rest)."
        )
        alt = "Singular values along the path"
        figure = plots.singular_values(ds)
        section.parts.append(picture(f"singular-values-{number}", figure, alt, caption))
    section.parts.append(_points(ds, number))
    return section


def summary(ds: xr.Dataset) -> str:
    """Levels, penalties and evaluations of a path, and its least test loss, as sentences.

    Of a path that was cut, what is there: nothing of its first walk where that point is not.
    """
    ds = checked(ds, "level")
    level, penalty = ds["level"].values, ds["penalty"].values
    n, spent = len(level), _evaluations(ds)
    said = (
        f"{n} level{'s' if n > 1 else ''} from {level.min():.3g} to {level.max():.3g}, "
        f"at penalties from {penalty.min():.3g} to {penalty.max():.3g}, "
        f"for {spent[-1]:,} gradient evaluations"
    )
    walked = np.flatnonzero(first_walked(ds))
    said += f", {spent[walked[0]]:,} of them for the first." if len(walked) else "."
    best = _best(ds)
    if best is not None:
        losses = ds["test_loss"].values
        least, first = float(losses[best]), float(losses[walked[0]]) if len(walked) else np.nan
        said += (
            f" The least test loss is {least:.4g}, at level {level[best]:.3g} and penalty "
            f"{penalty[best]:.3g}"
        )
        said += "." if np.isnan(first) else f"; at the end of the first walk it is {first:.4g}."
    return said


def _best(ds: xr.Dataset) -> int | None:
    if "test_loss" not in ds or not np.isfinite(ds["test_loss"].values).any():
        return None
    return int(np.nanargmin(ds["test_loss"].values))


def _evaluations(ds: xr.Dataset) -> list[int]:
    return [int(n) for n in ds["n_gradient"].values + 2 * ds["n_hvp"].values]


def _points(ds: xr.Dataset, number: int) -> Table:
    """Every point, in the order reached."""
    names = observables(ds)
    scalars = ["level", "penalty", "regularizer", *names, "angle", "kkt_residual"]
    head = ["level c", "penalty 1/λ", "R", *(n.replace("_", " ") for n in names), "angle / °"]
    head += ["‖Π∇R‖/‖∇R‖"]
    if "smallest_eigenvalue" in ds:
        scalars.append("smallest_eigenvalue")
        head.append("smallest eigenvalue")
    spent, best = _evaluations(ds), _best(ds)
    rows = []
    for i in range(ds.sizes["level"]):
        cells = [_cell(n, float(ds[n].values[i])) for n in scalars]
        cells += [str(ds["method"].values[i]), f"{spent[i]:,}"]
        rows.append(Row(cells, marked=i == best))
    caption = "The points in the order reached, evaluations added up; bold: the least test loss."
    return Table(f"points-{number}", caption, [*head, "by", "evaluations"], rows)


def _cell(name: str, value: float) -> str:
    if np.isnan(value):
        return "–"
    if name.endswith("accuracy"):
        return f"{100 * value:.1f}%"
    return f"{value:.2f}" if name == "angle" else f"{value:.4g}"
