"""Rates of the slow approach to a KKT point, beside the smallest eigenvalues of A."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from geoflow.analysis.curvature import spectra
from geoflow.analysis.curvature.operators import tangent_hessian
from geoflow.analysis.curvature.spectra_dataset import in_ranks
from geoflow.analysis.series.exponentials import (
    FITTED,
    ExponentialFit,
    checked_confidence,
    checked_terms,
    fit,
    refused,
)
from geoflow.analysis.series.scalars import series
from geoflow.analysis.walked import state_at, walk_attributes
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems import arithmetic
from geoflow.problems.scaling import power_of_two
from geoflow.system import kinds
from geoflow.trajectories.dataset import at_snapshots
from geoflow.trajectories.given import check_walk, kept_dtype

Floats = NDArray[np.float64]

SCALARS = ("tangent_norm", "regularizer", "arc_length")

# A curve without noise has an interval far narrower than what its other exponentials leave in it.
CLOSE = 0.01

# The multiplier of a snapshot, computed again, differs by rounding: in parts of ‖∇R‖/‖∇L‖.
MULTIPLIER_RTOL = {torch.float64: 1e-6, torch.float32: 1e-2}


@arithmetic.without_autocast()
def along(
    ds: xr.Dataset,
    *,
    scalars: Sequence[str | xr.DataArray] = SCALARS,
    start: float | None = None,
    n_terms: int = 1,
    confidence: float = 0.95,
    curvature: RegularizingFlow | xr.Dataset | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Relaxation rates at the end of a walk, beside what the curvature there predicts.

    Near a KKT point θ* that is a minimum of R on the level set the flow is dθ/dt = −A(θ − θ*). So
    at the very end θ, its arc length and ‖Π∇R‖ approach their limits at the smallest eigenvalue of
    A, and R, which is stationary there, at twice that. The limit of ``tangent_norm`` is known,
    zero; those of the others are fitted.

    Before the very end, the rate at which ‖Π∇R‖ falls is exactly the Rayleigh quotient vᵀAv/vᵀv of
    the velocity v, since along the flow dv/dt = −Av within the tangent space.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory in schema 1.0 to 1.2.
    scalars : sequence of str or DataArray
        See :func:`geoflow.analysis.series.scalars.series`. θ itself is there as ``arc_length``, or
        as PCA scores.
    start : float, optional
        Flow time at which the window begins that ends with the walk. None: half of the flow time
        at which ``ds`` ends, whatever part of the walk it holds.
    n_terms, confidence
        See :func:`fit`.
    curvature : RegularizingFlow or Dataset, optional
        The walk's own flow, or what :func:`geoflow.analysis.spectra.along` made of the walk, with
        the operator ``tangent`` of all parameters at the last snapshot. None: no comparison. Where
        the walk kept no snapshot at its very end, the verdict names the time of the last one.
    seed : int
        Of the Lanczos iteration, where a flow is given.

    Returns
    -------
    xarray.Dataset
        By ``scalar`` and ``term``: ``rate`` with ``rate_low`` and ``rate_high``, ``amplitude``. By
        scalar: ``late_rate``, of the later half of the window alone, ``limit``, ``noise_time``,
        ``predicted_rate``, ``status`` and ``verdict``, in words. By ``sample`` of the window:
        ``value`` and ``fitted``. ``smallest_eigenvalue`` of A and its error bound,
        ``velocity_rate`` (the Rayleigh quotient; NaN unless a flow is given). What cannot be said
        is NaN: where a curve is no decay, the window too short or the rate uncertain by more than
        a factor of four, ``status`` says so.

    Raises
    ------
    InputError
        An argument that cannot be used, or a curvature at a snapshot outside the window.
    """
    seed = check_seed(seed)
    # Before a curve is refused, which is not looked at any further.
    n_terms, confidence = checked_terms(n_terms), checked_confidence(confidence)
    found = series(ds, scalars)
    check_walk(ds, attributes=("status",))
    if (n := len(found.time)) < 2:
        more = "further" if found.samples == "step" else "again with more snapshots"
        plural = "" if n == 1 else "s"
        raise InputError(
            f"ds holds {n} {found.samples}{plural}, and a rate takes two or more; walk {more}"
        )
    begin = float(found.time[-1]) / 2 if start is None else kinds.as_number(start, "start")
    window = found.time >= begin
    if window.sum() < 2:
        raise InputError(f"start={begin:g}: the walk ends at {found.time[-1]:.6g}; begin earlier")
    t = found.time[window]
    late = t >= (t[0] + t[-1]) / 2

    def fitted(part: NDArray[np.bool_] | slice) -> list[ExponentialFit]:
        return [
            _fit(name, t[part], found.values[window, k][part], n_terms, confidence)
            for k, name in enumerate(found.names)
        ]

    fits, later = fitted(slice(None)), fitted(late)
    smallest, residual, velocity_rate, when = _curvature(ds, t, curvature, seed)
    where = "" if math.isnan(when) or _same(when, t[-1]) else f" at t = {when:.6g}"
    multiple = np.array([2.0 if name == "regularizer" else 1.0 for name in found.names])
    # NaN unless it is sure that none is smaller.
    lowest = smallest[0] if smallest[0] > 0 else math.nan
    verdicts = [
        _verdict(one, other.rate[0], m, smallest[0], residual[0], curvature is not None, where)
        for one, other, m in zip(fits, later, multiple, strict=True)
    ]
    return _dataset(
        found.names,
        t,
        found.values[window],
        fits,
        {
            "late_rate": (("scalar",), np.array([one.rate[0] for one in later])),
            "predicted_rate": (("scalar",), multiple * lowest),
            "multiple": (("scalar",), multiple),
            "verdict": (("scalar",), verdicts),
            "smallest_eigenvalue": (("rank",), smallest),
            "smallest_residual": (("rank",), residual),
            "velocity_rate": ((), velocity_rate),
        },
        {
            "title": "Relaxation rates at the end of a walk",
            "kind": "relaxation",
            **walk_attributes(ds),
            "seed": seed,
            "start": begin,
            "n_terms": n_terms,
            "confidence": confidence,
            "walk_status": ds.attrs["status"],
            "curvature_time": when,
            "final_angle": _final_angle(ds, found.samples),
        },
    )


def _final_angle(ds: xr.Dataset, samples: str) -> float:
    """Angle where the samples end, which a walk cut along its snapshots may not be."""
    # A flow of one's own need not record it.
    if "angle" not in ds:
        return math.nan
    return float((at_snapshots(ds, "angle") if samples == "snapshot" else ds["angle"].values)[-1])


def _fit(name: str, times: Floats, y: Floats, n_terms: int, confidence: float) -> ExponentialFit:
    limit = 0.0 if name == "tangent_norm" else None
    if limit is not None and not (y > limit).all():
        return refused(f"no decay: {name} is at its limit, {limit:g}, already", len(y), n_terms)
    return fit(times, y, n_terms=n_terms, limit=limit, confidence=confidence)


def _same(time: float, other: float) -> bool:
    """Whether two flow times are one, one of them interpolated perhaps."""
    return math.isclose(time, other, rel_tol=1e-12)


def _last_snapshot(ds: xr.Dataset, window: Floats) -> int:
    """Index of the latest snapshot, after making sure that it lies within the window.

    Snapshots may have been cut apart from the steps, or put into another order.
    """
    check_walk(ds, "snapshot_time", "snapshot_step")
    if not ds.sizes["snapshot"]:
        raise InputError("ds holds no snapshot; walk again with snapshots")
    index = int(ds["snapshot_time"].values.argmax())
    when = float(ds["snapshot_time"][index])
    if when < window[0] or (when > window[-1] and not _same(when, window[-1])):
        raise InputError(
            f"curvature: the last snapshot of ds is at t = {when:.6g}, and the rates are from "
            f"t = {window[0]:.6g} to {window[-1]:.6g}; give the walk whole, cut it along snapshot "
            "and step alike, or leave curvature out"
        )
    return index


def _curvature(
    ds: xr.Dataset, window: Floats, curvature: RegularizingFlow | xr.Dataset | None, seed: int
) -> tuple[Floats, Floats, float, float]:
    """Smallest eigenvalues of A at the end, their error bounds, the velocity's quotient, and when.

    What is not asked for is NaN.
    """
    if curvature is None:
        return np.array([math.nan]), np.array([math.nan]), math.nan, math.nan
    kinds.check_kind(
        curvature,
        RegularizingFlow | xr.Dataset,
        "curvature",
        "a RegularizingFlow or what spectra.along returned",
    )
    last = _last_snapshot(ds, window)
    velocity_rate = math.nan
    if isinstance(curvature, RegularizingFlow):
        flow = curvature
        # What along needs beside the eigenvalues costs little at these settings.
        found = spectra.along(
            ds,
            flow,
            snapshots=[last],
            operators=["tangent"],
            k=max(1, min(5, flow.problem.n_parameters - 1)),
            n_probes=2,
            n_steps=8,
            n_trace=6,
            seed=seed,
        )
        state = state_at(ds, flow, last)
        operator = tangent_hessian(flow, state)
        v = operator.subspace.coordinates(state.velocity)
        v = v * power_of_two(float(v.abs().max()), v.dtype)
        velocity_rate = float(torch.dot(v, operator(v)) / torch.dot(v, v))
    else:
        found = curvature
    cell = _at_the_end(ds, last, found)
    values, errors = cell["smallest_eigenvalue"].values, cell["smallest_residual"].values
    return values, errors, velocity_rate, float(cell["snapshot_time"])


def _at_the_end(ds: xr.Dataset, last: int, curvature: xr.Dataset) -> xr.Dataset:
    """Spectrum of A at the last snapshot of a walk, after making sure that it is that walk's."""
    again = "make it with spectra.along(ds, flow, snapshots=[-1], operators=['tangent'])"
    if curvature.attrs.get("kind") == "spectra":
        dims = ("snapshot", "operator", "rank")
        curvature = in_ranks(kinds.as_made(curvature, dims, "spectra", "curvature"))
        if (first := int(curvature["rank"][0])) > 0:
            raise InputError(
                f"curvature: its smallest eigenvalues begin at rank {first}, and the smallest is "
                "what a rate is compared with; keep rank 0"
            )
    names = curvature["operator"].values.tolist() if "operator" in curvature.coords else []
    step, when = int(ds["snapshot_step"][last]), float(ds["snapshot_time"][last])
    at: list[int] = []
    if "tangent" in names:
        # Within one step there may be several snapshots.
        here = (curvature["snapshot_step"] == step) & (curvature["snapshot_time"] == when)
        at = np.flatnonzero(here.values).tolist()
    if not at:
        raise InputError(
            f"curvature holds no operator 'tangent' at the last snapshot of this walk; {again}"
        )
    some = curvature.attrs.get("tensors", "").split()
    if some and set(some) != set(ds["tensor_name"].values.tolist()):
        raise InputError(f"curvature is of tensors={some!r} alone; {again}")
    walk = walk_attributes(ds)
    for name in ("experiment", "walk_seed"):
        if (there := curvature.attrs.get(name, walk[name])) != walk[name]:
            raise InputError(
                f"curvature is of another walk, whose {name} is {there!r} and not {walk[name]!r}; "
                f"{again}"
            )
    cell = curvature.isel(snapshot=at[0])
    # Within a step nothing is recorded.
    if "multiplier" in ds and step < ds.sizes["step"] and float(ds["time"][step]) == when:
        own, slope, tangent = (
            float(ds[name][step]) for name in ("multiplier", "gradient_norm", "tangent_norm")
        )
        there = float(cell["multiplier"])
        single = ds.attrs.get("dtype") == "float32" or kept_dtype(ds) == torch.float32
        rtol = MULTIPLIER_RTOL[torch.float32 if single else torch.float64]
        if abs(there - own) * slope > rtol * math.hypot(tangent, own * slope):
            raise InputError(
                f"curvature is of another walk, whose multiplier is {there:.9g} at the last "
                f"snapshot and not {own:.9g}; {again}"
            )
    return cell.sel(operator="tangent")


def _verdict(
    one: ExponentialFit,
    late: float,
    multiple: float,
    smallest: float,
    error: float,
    asked: bool,
    where: str,
) -> str:
    parts = [one.status]
    fitted = one.status == FITTED
    if fitted and not _between(late, one, CLOSE * late):
        parts.append("the rate drifts, so this is no exponential yet")
    if asked and not math.isfinite(smallest):
        parts.append(f"the smallest eigenvalue of A{where} has not converged")
    elif asked and smallest < -error:
        parts.append(f"not asymptotic: A{where} has the eigenvalue {smallest:.3g}")
    elif asked and fitted:
        expected = multiple * smallest
        if _between(expected, one, max(multiple * error, CLOSE * expected)):
            parts.append(f"agrees with the smallest eigenvalue of A{where}")
        else:
            ratio = one.rate[0] / expected
            parts.append(f"{ratio:.3g} times what the smallest eigenvalue of A{where} predicts")
    return "; ".join(parts)


def _between(rate: float, one: ExponentialFit, slack: float) -> bool:
    """Whether a rate lies within an interval; one that is not known does."""
    return not (rate < one.rate_low[0] - slack or rate > one.rate_high[0] + slack)


def _dataset(
    names: list[str],
    times: Floats,
    values: Floats,
    fits: list[ExponentialFit],
    more: dict[str, Any],
    attributes: dict[str, Any],
) -> xr.Dataset:
    by_term, by_scalar = ("scalar", "term"), ("scalar",)
    variables: dict[str, Any] = {
        name: (by_term, np.stack([getattr(one, name) for one in fits]))
        for name in ("rate", "rate_low", "rate_high", "amplitude")
    }
    variables |= {
        "limit": (by_scalar, np.array([one.limit for one in fits])),
        "noise_time": (by_scalar, np.array([one.noise_time for one in fits])),
        "status": (by_scalar, [one.status for one in fits]),
        "value": (("sample", "scalar"), values),
        "fitted": (("sample", "scalar"), np.stack([one.fitted for one in fits], axis=1)),
        **more,
    }
    coordinates: dict[str, Any] = {
        "scalar": (by_scalar, names),
        "term": (("term",), np.arange(1, len(fits[0].rate) + 1)),
        "time": (("sample",), times),
    }

    def described(contents: dict[str, Any]) -> dict[str, Any]:
        return {
            name: (*content, {"long_name": LONG_NAMES[name], "units": "1"})
            for name, content in contents.items()
        }

    return xr.Dataset(described(variables), described(coordinates), attributes)


LONG_NAMES = {
    "rate": "relaxation rate, in units of 1/flow time",
    "rate_low": "lower end of the confidence interval of rate",
    "rate_high": "upper end of the confidence interval of rate",
    "amplitude": "amplitude at the start of the window",
    "late_rate": "slowest rate fitted to the later half of the window alone",
    "limit": "limit of the scalar",
    "noise_time": "time constant of the residuals as red noise",
    "status": "fitted, or why there is no rate",
    "verdict": "the rate beside the smallest eigenvalue of A",
    "value": "scalar",
    "fitted": "fitted curve",
    "predicted_rate": "rate that the smallest eigenvalue of A predicts",
    "multiple": "predicted rate over the smallest eigenvalue",
    "smallest_eigenvalue": "smallest eigenvalues of A at the last snapshot, rising",
    "smallest_residual": "bound on the error of smallest_eigenvalue",
    "velocity_rate": "Rayleigh quotient of A for the velocity at the last snapshot",
    "scalar": "scalar",
    "term": "exponential, the slowest first",
    "time": "flow time",
}
