"""Power spectra of scalars of a walk, along flow time or arc length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from geoflow.analysis.series.lomb_scargle import LEVELS, lomb_scargle
from geoflow.analysis.series.scalars import series
from geoflow.analysis.walked import walk_attributes
from geoflow.experiments.prepared import check_seed
from geoflow.system import kinds
from geoflow.trajectories import schema

SCALARS = ("angle", "tangent_norm")


def along(
    ds: xr.Dataset,
    scalars: Sequence[str | xr.DataArray] = SCALARS,
    *,
    against: str = "time",
    detrend: str = "mean",
    oversampling: float = 5.0,
    max_frequency: float | None = None,
    levels: kinds.Reals = LEVELS,
    n_simulations: int = 999,
    seed: int = 0,
) -> xr.Dataset:
    """Periodograms of scalars of a walk along flow time or arc length.

    The samples are the walk's own steps, or its snapshots if a scalar is known there only: nothing
    is resampled.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory in schema 1.0 to 1.2.
    scalars, against
        See :func:`geoflow.analysis.series.scalars.series`.
    detrend, oversampling, max_frequency, levels, n_simulations, seed
        See :func:`~geoflow.analysis.series.lomb_scargle.lomb_scargle`.

    Returns
    -------
    xarray.Dataset
        What a :class:`~geoflow.analysis.series.lomb_scargle.Spectrum` has, by ``frequency``,
        ``scalar`` and ``level``; and ``value`` and ``background`` by ``sample``, with its
        ``time`` or ``arc_length``.

    Raises
    ------
    InputError
        An argument that cannot be used.
    """
    seed = check_seed(seed)
    found = series(ds, scalars, against)
    spectrum = lomb_scargle(
        found.clock,
        found.values,
        detrend=detrend,
        oversampling=oversampling,
        max_frequency=max_frequency,
        levels=levels,
        n_simulations=n_simulations,
        seed=seed,
    )
    variables: dict[str, Any] = {
        name: (DIMENSIONS[name], getattr(spectrum, name), {"long_name": text, "units": "1"})
        for name, text in LONG_NAMES.items()
    }
    variables["value"] = (
        ("sample", "scalar"),
        found.values,
        {"long_name": "scalar", "units": "1", "units_of_scalars": " ".join(found.units)},
    )
    spec = schema.STEP_COORDINATES[against]
    clock = {"long_name": spec.long_name, "units": spec.units}
    return xr.Dataset(
        variables,
        coords={
            "frequency": (
                "frequency",
                spectrum.frequency,
                {"long_name": f"cycles in a unit of {clock['long_name']}", "units": "1"},
            ),
            "scalar": ("scalar", found.names, {"long_name": "scalar", "units": "1"}),
            "level": (
                "level",
                np.asarray(levels, float),
                {"long_name": "1 − probability under red noise", "units": "1"},
            ),
            against: ("sample", found.clock, clock),
        },
        attrs={
            "title": f"Periodogram along {clock['long_name']}",
            "kind": "periodogram",
            **walk_attributes(ds),
            "seed": seed,
            "against": against,
            "samples": found.samples,
            "detrend": detrend,
            "n_simulations": n_simulations,
            "normalisation": "part of the variance about the background, 0 to 1",
            "resolution": 1 / float(found.clock[-1] - found.clock[0]),
        },
    )


LONG_NAMES = {
    "power": "Lomb–Scargle power, part of the variance",
    "red_noise": "expected power of the red noise fitted",
    "local_p_value": "p-value of the power at this frequency alone",
    "local_level": "power that red noise exceeds at this frequency with probability 1 − level",
    "global_level": "power that red noise exceeds at any frequency with probability 1 − level",
    "peak_frequency": "frequency of the highest peak above the red noise",
    "peak_power": "power of the highest peak above the red noise",
    "p_value": "p-value of the highest peak among all frequencies",
    "time_constant": "time constant of the red noise fitted",
    "background": "background taken off the scalar",
}
DIMENSIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("power", "red_noise", "local_p_value"), ("frequency", "scalar")),
    **dict.fromkeys(("local_level", "global_level"), ("level", "frequency", "scalar")),
    **dict.fromkeys(("peak_frequency", "peak_power", "p_value", "time_constant"), ("scalar",)),
    "background": ("sample", "scalar"),
}
