"""The section of a page about solvers compared: the work–precision diagram and its numbers."""

from __future__ import annotations

import xarray as xr

from geoflow import plots
from geoflow.report.parts import Row, Section, Table, picture


def comparison_section(ds: xr.Dataset, number: int = 0) -> Section:
    """Make the section of one comparison.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.comparisons.compare`.
    number : int
        Tells the parts of several sections apart.
    """
    subject = ds.attrs.get("experiment") or "walk"
    section = Section(f"{subject}: solvers compared")
    last = float(ds["snapshot_time"][-1]) if "snapshot_time" in ds.coords else None
    where = f" at t = {last:g}" if last is not None else ""
    names = ", ".join(map(str, ds["solver"].values))
    section.summary = (
        f"{names} at {ds.sizes['rtol']} tolerances: the error of θ{where}, by a reference that is "
        "much tighter, against what it cost."
    )
    axes = plots.work_precision(ds)
    caption = "Relative error of θ against gradient evaluations; a point a tolerance."
    alt = f"Error against gradient evaluations of {names}"
    figure = axes.get_figure(root=True)
    assert figure is not None
    section.parts.append(picture(f"work-precision-{number}", figure, alt, caption))
    section.parts.append(_numbers(ds, number))
    return section


def _numbers(ds: xr.Dataset, number: int) -> Table:
    rows = []
    for solver in ds["solver"].values:
        for rtol in ds["rtol"].values:
            at = ds.sel(solver=solver, rtol=rtol).isel(snapshot=-1)
            if str(at["status"].values) == "not_run":
                continue
            error = float(at["theta_error"])
            cells = [
                str(solver),
                f"{float(rtol):.0e}",
                "–" if error != error else f"{error:.2e}",
                f"{float(at['evaluations']):,.0f}",
                str(at["status"].values),
            ]
            rows.append(Row(cells))
    head = ["solver", "rtol", "error of θ", "evaluations", "end"]
    return Table(f"comparison-{number}", "Every solver at every tolerance.", head, rows)
