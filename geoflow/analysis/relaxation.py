"""Rates of the slow approach to a KKT point, beside the smallest eigenvalues of A."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student

from geoflow.analysis import red_noise, spectra
from geoflow.analysis.curvature import tangent_hessian
from geoflow.analysis.scalars import series, walk_attributes
from geoflow.errors import InputError
from geoflow.flows import RegularizingFlow

Floats = NDArray[np.float64]

SCALARS = ("tangent_norm", "regularizer", "arc_length")

# Less than one e-folding within the window, and the limit is extrapolated; rates known to a factor
# of four only, and the curve is not an exponential within the window.
LEAST_DECAY = 1.0
WIDEST = 4.0
SPARE_POINTS = 3

FITTED = "fitted"


@dataclass(frozen=True)
class Relaxation:
    """Exponentials fitted to a curve: y(t) = y∞ + Σ aₖ exp(−rₖ(t − t₀)).

    Attributes
    ----------
    status : str
        ``fitted``, or why there is no rate; then all numbers are NaN.
    rate, rate_low, rate_high : array of float64, shape (K,)
        rₖ, rising, and the ends of its confidence interval.
    amplitude : array of float64, shape (K,)
        aₖ, at the first of the times.
    limit : float
        y∞, fitted or known.
    fitted : array of float64, shape (N,)
        The curve at the times.
    noise_time : float
        Time constant of the residuals, as red noise.
    jacobian : array of float64, shape (N, p)
        Derivatives of the fitted curve, or of its logarithm where the limit is known, by the
        parameters: log rₖ first.
    """

    status: str
    rate: Floats
    rate_low: Floats
    rate_high: Floats
    amplitude: Floats
    limit: float
    fitted: Floats
    noise_time: float
    jacobian: Floats


def fit(
    times: NDArray[np.floating],
    values: NDArray[np.floating],
    *,
    n_terms: int = 1,
    limit: float | None = None,
    confidence: float = 0.95,
) -> Relaxation:
    """Fit a relaxation to a curve by nonlinear least squares.

    With an unknown limit the residuals are absolute; where the limit is known they are those of the
    logarithm of the distance from it, so that every decade counts alike.

    The intervals are of log r, from the covariance (JᵀJ)⁻¹JᵀΣJ(JᵀJ)⁻¹ of the estimate under
    residuals that are an Ornstein–Uhlenbeck process, fitted to them
    (:func:`geoflow.analysis.red_noise.fit`), and Student's t with N − p degrees of freedom. They
    cover what noise does, white or red; where the residuals are a misfit and no noise, as on a walk
    that is not yet close to its end, they are a scale and not a confidence.

    Parameters
    ----------
    times : array, shape (N,)
        Increasing.
    values : array, shape (N,)
        The curve.
    n_terms : int
        Exponentials, 1 or 2.
    limit : float, optional
        y∞, below all values. None: fitted.
    confidence : float
        Of the intervals.

    Raises
    ------
    InputError
        An argument that cannot be used.
    """
    t, y = np.asarray(times, float), np.asarray(values, float)
    if t.ndim != 1 or t.shape != y.shape or len(t) < 2 or not (np.diff(t) > 0).all():
        raise InputError("times: give increasing numbers, and as many values")
    if not np.isfinite(y).all():
        raise InputError("values are not finite; leave those out")
    if n_terms not in (1, 2):
        raise InputError(f"n_terms={n_terms}; use 1 or 2")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence}; use a number between 0 and 1")
    if limit is not None and not (y > limit).all():
        raise InputError(f"limit={limit}: not all values are above it; leave it to be fitted")
    n_parameters = 2 * n_terms + (limit is None)
    if len(t) < n_parameters + SPARE_POINTS:
        return _refused(
            f"too few points: {len(t)}, of {n_parameters + SPARE_POINTS} needed", len(t), n_terms
        )
    span = float(t[-1] - t[0])
    x = (t - t[0]) / span
    scale = float(np.ptp(y)) if limit is None else 1.0
    if scale == 0:
        return _refused("no decay: the curve is constant", len(t), n_terms)
    z = (y - y[-1]) / scale if limit is None else np.log(y - limit)
    if limit is not None and np.polyfit(x, z, 1)[0] >= 0:
        return _refused("no decay: the curve does not fall towards its limit", len(t), n_terms)
    start = _start(x, z, n_terms, limit is None)
    if start is None:
        return _refused("no decay: no sum of exponentials comes near", len(t), n_terms)

    def model(p: Floats) -> tuple[Floats, Floats]:
        """The curve and its derivatives; of its logarithm where the limit is known."""
        rates, rest = np.exp(p[:n_terms]), p[n_terms:]
        decay = np.exp(-np.outer(x, rates))
        if limit is None:
            by_rate = -decay * np.outer(x, rates) * rest[:n_terms]
            curve = decay @ rest[:n_terms] + rest[-1]
            return curve, np.column_stack([by_rate, decay, np.ones_like(x)])
        terms = decay * np.exp(rest)
        total = terms.sum(axis=1)
        parts = terms / total[:, None]
        return np.log(total), np.hstack([-parts * np.outer(x, rates), parts])

    found = least_squares(
        lambda p: model(p)[0] - z,
        start,
        jac=lambda p: model(p)[1],
        bounds=_bounds(x, n_terms, len(start)),
        x_scale="jac",
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
        max_nfev=1000,
    )
    order = np.argsort(found.x[:n_terms])
    p = np.concatenate(
        [found.x[:n_terms][order], found.x[n_terms : 2 * n_terms][order], found.x[2 * n_terms :]]
    )
    curve, jacobian = model(p)
    noise = red_noise.fit(t, (z - curve)[:, None], jacobian)
    error = _log_rate_errors(t, jacobian, noise, n_terms)
    width = float(student.ppf((1 + confidence) / 2, len(t) - n_parameters)) * error
    status = _judge(p[:n_terms], width, limit is None)
    if status != FITTED:
        return _refused(status, len(t), n_terms)
    rate = np.exp(p[:n_terms]) / span
    known = limit is not None
    return Relaxation(
        FITTED,
        rate,
        rate * np.exp(-width),
        rate * np.exp(width),
        np.exp(p[n_terms:]) if known else p[n_terms : 2 * n_terms] * scale,
        float(limit) if limit is not None else float(y[-1] + scale * p[-1]),
        limit + np.exp(curve) if limit is not None else y[-1] + scale * curve,
        float(noise.time_constant[0]),
        jacobian,
    )


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

    Near a KKT point θ* that is a minimum of R on the level set the flow is dθ/dt = −A(θ − θ*). So at
    the very end θ, its arc length and ‖Π∇R‖ approach their limits at the smallest eigenvalue of A,
    and R, which is stationary there, at twice that. The limit of ``tangent_norm`` is known, zero;
    those of the others are fitted.

    Before the very end, the rate at which ‖Π∇R‖ falls is exactly the Rayleigh quotient vᵀAv/vᵀv of
    the velocity v, since along the flow dv/dt = −Av within the tangent space.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory in schema 1.0.
    scalars : sequence of str or DataArray
        See :func:`geoflow.analysis.scalars.series`. θ itself is there as ``arc_length``, or as PCA
        scores.
    start : float, optional
        Flow time at which the window begins that ends with the walk. None: half way.
    n_terms, confidence
        See :func:`fit`.
    curvature : RegularizingFlow or Dataset, optional
        The walk's own flow, or what :func:`geoflow.analysis.spectra.along` made of the walk, with
        the operator ``tangent`` at the last snapshot. None: no comparison.
    seed : int
        Of the Lanczos iteration, where a flow is given.

    Returns
    -------
    xarray.Dataset
        By ``scalar`` and ``term``: ``rate`` with ``rate_low`` and ``rate_high``, ``amplitude``. By
        scalar: ``limit``, ``predicted_rate``, ``status`` and ``verdict``, in words. By ``sample`` of
        the window: ``value`` and ``fitted``. ``smallest_eigenvalue`` of A and its error bound,
        ``velocity_rate`` (the Rayleigh quotient; NaN unless a flow is given). What cannot be said is
        NaN: where a curve is no decay, the window too short or the rate uncertain by more than a
        factor of four, ``status`` says so.

    Raises
    ------
    InputError
        An argument that cannot be used.
    """
    found = series(ds, scalars)
    begin = float(found.time[-1]) / 2 if start is None else start
    window = found.time >= begin
    if window.sum() < 2:
        raise InputError(f"start={begin:g}: the walk ends at {found.time[-1]:.6g}; begin earlier")
    t = found.time[window]
    fits = [
        fit(
            t,
            found.values[window, k],
            n_terms=n_terms,
            limit=0.0 if name == "tangent_norm" else None,
            confidence=confidence,
        )
        for k, name in enumerate(found.names)
    ]
    smallest, residual, velocity_rate = _curvature(ds, curvature, seed)
    multiple = np.array([2.0 if name == "regularizer" else 1.0 for name in found.names])
    lowest = smallest[0] if smallest[0] > 0 else math.nan
    verdicts = [
        _verdict(one, m, smallest[0], residual[0], curvature is not None)
        for one, m in zip(fits, multiple, strict=True)
    ]
    return _dataset(
        found.names,
        t,
        found.values[window],
        fits,
        {
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
            "final_angle": float(ds["angle"][-1]),
        },
    )


def _start(x: Floats, z: Floats, n_terms: int, free: bool) -> Floats | None:
    """Parameters near the best fit: linear least squares at rates of a grid."""
    rates = np.geomspace(0.05, 5 / float(np.diff(x).min()), 60)
    decay = np.exp(-np.outer(x, rates))
    best, chosen = math.inf, None
    # Residuals of the logarithm are relative ones, nearly.
    weight = np.ones_like(z) if free else np.exp(-z)
    target = z if free else np.ones_like(z)
    for pick in itertools.combinations(range(len(rates)), n_terms):
        columns = decay[:, pick] * weight[:, None]
        if free:
            columns = np.column_stack([columns, np.ones_like(x)])
        linear, *_ = np.linalg.lstsq(columns, target, rcond=None)
        if not free and not (linear > 0).all():
            continue
        misfit = float(((columns @ linear - target) ** 2).sum())
        if misfit < best:
            best = misfit
            rest = linear if free else np.log(linear)
            chosen = np.concatenate([np.log(rates[list(pick)]), rest])
    return chosen


def _bounds(x: Floats, n_terms: int, n_parameters: int) -> tuple[Floats, Floats]:
    """Of log rates only: between a straight line and a jump at the first sample."""
    low, high = np.full(n_parameters, -np.inf), np.full(n_parameters, np.inf)
    low[:n_terms] = math.log(1e-3)
    high[:n_terms] = math.log(100 / float(np.diff(x).min()))
    return low, high


def _log_rate_errors(
    times: Floats, jacobian: Floats, noise: red_noise.RedNoise, n_terms: int
) -> Floats:
    """Standard errors of log r under red residuals."""
    inverse = np.linalg.pinv(jacobian)
    spread = red_noise.covariance_product(times, float(noise.time_constant[0]), inverse.T)
    errors: Floats = np.sqrt(np.diagonal(inverse @ spread)[:n_terms] * noise.variance[0])
    return errors


def _judge(log_rates: Floats, width: Floats, free: bool) -> str:
    if free and log_rates[0] < math.log(LEAST_DECAY):
        return "unresolved: less than one e-folding within the window"
    if not (2 * width < math.log(WIDEST)).all():
        return f"unresolved: the rate is uncertain by more than a factor of {WIDEST:g}"
    return FITTED


def _refused(status: str, n: int, n_terms: int) -> Relaxation:
    none, curve = np.full(n_terms, math.nan), np.full(n, math.nan)
    return Relaxation(
        status, none, none, none, none, math.nan, curve, math.nan, np.full((n, 0), math.nan)
    )


def _curvature(
    ds: xr.Dataset, curvature: RegularizingFlow | xr.Dataset | None, seed: int
) -> tuple[Floats, Floats, float]:
    """Smallest eigenvalues of A at the end, their error bounds, and the velocity's quotient."""
    if curvature is None:
        return np.array([math.nan]), np.array([math.nan]), math.nan
    velocity_rate = math.nan
    if isinstance(curvature, RegularizingFlow):
        flow = curvature
        # What along needs beside the eigenvalues costs little at these settings.
        found = spectra.along(
            ds, flow, snapshots=[-1], operators=["tangent"], n_probes=2, n_steps=8, n_trace=6,
            seed=seed,
        )  # fmt: skip
        theta = torch.as_tensor(ds["theta"].isel(snapshot=-1).values)
        state = flow.evaluate(theta.to(dtype=flow.problem.dtype, device=flow.problem.device))
        operator = tangent_hessian(flow, state)
        v = operator.subspace.coordinates(state.velocity)
        velocity_rate = float(torch.dot(v, operator(v)) / torch.dot(v, v))
    else:
        found = curvature
    names = found["operator"].values.tolist() if "operator" in found.coords else []
    last = int(ds["snapshot_step"][-1])
    if "tangent" not in names or int(found["snapshot_step"][-1]) != last:
        raise InputError(
            "curvature holds no operator 'tangent' at the last snapshot of this walk; make it with "
            "spectra.along(ds, flow, snapshots=[-1], operators=['tangent'])"
        )
    cell = found.isel(snapshot=-1).sel(operator="tangent")
    return cell["smallest_eigenvalue"].values, cell["smallest_residual"].values, velocity_rate


def _verdict(one: Relaxation, multiple: float, smallest: float, error: float, asked: bool) -> str:
    if asked and smallest < -error:
        tail = f"A has the eigenvalue {smallest:.3g} at the end: near no minimum of R"
        if one.status == FITTED:
            return f"not asymptotic: {tail}"
        return f"{one.status}; {tail}"
    if one.status != FITTED or not asked:
        return one.status
    if not math.isfinite(smallest):
        return "fitted; the smallest eigenvalue of A has not converged"
    expected, slack = multiple * smallest, multiple * error
    if one.rate_low[0] - slack <= expected <= one.rate_high[0] + slack:
        return "the smallest eigenvalue of A"
    relation = "faster" if one.rate_low[0] > expected else "slower"
    return f"{relation} than the smallest eigenvalue of A"


def _dataset(
    names: list[str],
    times: Floats,
    values: Floats,
    fits: list[Relaxation],
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
