"""Datasets by formula, for figures that must look the same on every machine."""

import numpy as np
import xarray as xr

N, P, SNAPSHOTS = 40, 30, 20


def walk(seed=0):
    """A trajectory as far as figures go: curves like those of a walk, θ on an arc in R^P."""
    rng = np.random.default_rng(seed)
    time = 2 * np.linspace(0, 1, N) ** 2
    kept = np.linspace(0, N - 1, SNAPSHOTS).round().astype(int)
    shape = np.stack([np.cos(time[kept]), np.sin(time[kept]), 0.1 * np.sin(5 * time[kept])])
    frame = np.linalg.qr(rng.standard_normal((P, 3)))[0]
    late = 1 - np.exp(-2 * time)
    scalars = {
        "angle": 91 + 84 * late,
        "regularizer": 25 + 300 * np.exp(-3 * time),
        "train_loss": np.full(N, 0.04),
        "level_residual": 4e-9 * np.cos(np.arange(N)),
        "multiplier": 500 * late,
        "tangent_norm": np.exp(-2 * time),
        "step_size": np.gradient(time),
    }
    observables = {
        "test_loss": (0.3 - 0.1 * late[kept]) * (1 + 0.05 * seed),
        "test_accuracy": np.round(0.9 + 0.05 * late[kept], 2),
    }
    return xr.Dataset(
        {name: ("step", values) for name, values in scalars.items()}
        | {name: ("snapshot", values) for name, values in observables.items()}
        | {"theta": (("snapshot", "parameter"), (frame @ shape).T)},
        {
            "time": ("step", time),
            "arc_length": ("step", time),
            "snapshot_time": ("snapshot", time[kept]),
            "snapshot_step": ("snapshot", kept),
        },
        {
            "geoflow_schema": "1.0",
            "geoflow_version": "0.1.0",
            "experiment": "by formula",
            "title": "by formula",
            "seed": seed,
            "level": 0.04,
            "level_rtol": 1e-6,
            "solver": "exact",
            "rtol": 1e-3,
            "status": "stationary",
        },
    )


def ensemble(n=4):
    """What open_sweep would give of n such walks."""
    runs = [walk(seed) for seed in range(n)]
    names = ("angle", "regularizer")
    stacked = {k: (("run", "time"), np.stack([ds[k].values for ds in runs])) for k in names}
    at = runs[0]["time"].values
    for name in ("test_loss", "test_accuracy"):
        rows = [np.interp(at, ds["snapshot_time"], ds[name]) for ds in runs]
        stacked[name] = (("run", "time"), np.stack(rows))
    attributes = {"kind": "ensemble", "along": "time", "experiment": "by formula"}
    return xr.Dataset(stacked, {"run": range(n), "time": at}, attributes)


def comparison():
    """A work–precision dataset: errors falling with the evaluations, one walk not arrived."""
    rtol = np.array([1e-2, 1e-3, 1e-4])
    error = np.stack([rtol, 0.1 * rtol])[:, :, None]
    error[1, 0] = np.nan
    evaluations = np.array([[200, 600, 1800], [900, 1200, 1600]])[:, :, None]
    return xr.Dataset(
        {
            "theta_error": (("solver", "rtol", "snapshot"), error),
            "evaluations": (("solver", "rtol", "snapshot"), evaluations),
            "status": (("solver", "rtol"), np.full((2, 3), "t_end")),
            "reference_theta_error": ("snapshot", [1e-6]),
        },
        {"solver": ["exponential", "dopri5"], "rtol": rtol, "snapshot_time": ("snapshot", [1.0])},
        {"kind": "comparison", "title": "by formula"},
    )
