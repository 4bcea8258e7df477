"""Datasets by formula, for figures that must look the same on every machine."""

import numpy as np
import xarray as xr

from geoflow.analysis.components import pca
from geoflow.trajectories import path_schema

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
            "tensor_name": ("tensor", ["theta"]),
            "tensor_offset": ("tensor", [0]),
            "tensor_shape": ("tensor", [f"[{P}]"]),
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


def path(observables=("test_loss", "test_accuracy"), status="complete"):
    """A path that turns once, up and then down, of two layers with three singular values each."""
    level = 0.04 * 2.0 ** np.array([0, 1, 2, 3, -1, -2])
    penalty = np.array([2e-3, 1e-2, 3e-2, 1e-1, 2.4e-3, 1e-3])
    left, right = np.eye(4, 3), np.eye(5, 3)
    fall = (penalty[0] / penalty[:, None]) ** np.array([0.1, 0.5, 1.0])
    conv, dense = left @ (fall[..., None] * right.T), left @ (2 * fall[..., None] * np.eye(3))
    theta = np.concatenate([conv.reshape(6, -1), dense.reshape(6, -1), np.ones((6, 3))], axis=1)
    scalars = {
        "penalty": penalty,
        "multiplier": 1 / penalty,
        "regularizer": (theta[:, :32] ** 2).sum(axis=1),
        "train_loss": level * (1 + 1e-9),
        "level_residual": 1e-9 * level,
        "level_distance": 1e-9 * level,
        "angle": np.full(6, 175.5),
        "kkt_residual": np.full(6, 0.078),
        "method": np.array(["walk", *["corrector"] * 5], dtype=object),
        "n_between": np.zeros(6, dtype=np.int64),
        "n_correction": np.arange(6),
        "n_gradient": 200 + 30 * np.arange(6),
        "n_hvp": 10 * np.arange(6),
        "wall_time": np.arange(6.0),
    }
    values = {
        "test_loss": 0.3 + 0.1 * (np.log(level) - np.log(0.08)) ** 2,
        "test_accuracy": 0.97 - 0.01 * np.arange(6) / 3,
    }
    scalars |= {name: values[name] for name in observables}

    def described(name):
        spec = path_schema.VARIABLES.get(name, path_schema.OBSERVABLE)
        return {"long_name": spec.long_name or name, "units": spec.units}

    named = {
        "tensor_name": np.array(["conv.weight", "dense.weight", "dense.bias"], dtype=object),
        "tensor_offset": np.array([0, 20, 32]),
        "tensor_shape": np.array(["[4, 1, 1, 5]", "[4, 3]", "[3]"], dtype=object),
    }
    ds = xr.Dataset(
        {n: ("level", v, described(n)) for n, v in {"level": level, **scalars}.items()}
        | {n: ("tensor", v, described(n)) for n, v in named.items()}
        | {"theta": (("level", "parameter"), theta, described("theta"))},
        attrs={
            "geoflow_path": "1.0",
            "geoflow_version": "0.1.0",
            "Conventions": "CF-1.11",
            "kind": "path",
            "title": "by formula",
            "created": "",
            "experiment": "by formula",
            "seed": 0,
            "level": 0.04,
            "level_rtol": 1e-6,
            "dtype": "float64",
            "device": "cpu",
            "regularizer_name": "squared_norm:tensors=*.weight",
            "config": "{}",
            "degrees": 175.0,
            "data_sha256": "",
            "status": status,
            "status_message": "by formula",
            **{f"{n}_version": "1" for n in ("python", "torch", "torchdiffeq", "numpy", "xarray")},
        },
    )
    return ds.set_coords(["level", *named])


def trainings(of):
    """Two trainings with weight decay at each of four penalties, ends near those of a path."""
    penalty = np.array([0.0, 1e-2, 1e-1, 1e3])
    theta = of["theta"].values[[0, 1, 3, 3]][:, None] * np.array([1.0, 1.1])[None, :, None]
    loss = np.array([0.4, 0.3, 0.5, 9.0])[:, None, None] * np.array([1.0, 1.2])[None, :, None]
    dims = ("penalty", "run", "epoch")
    return xr.Dataset(
        {
            "train_loss": (dims, 0.5 * loss),
            "test_loss": (dims, loss),
            "validation_loss": (dims, np.full(loss.shape, np.nan)),
            "theta": (("penalty", "run", "parameter"), theta),
            "regularizer": (("penalty", "run"), (theta**2).sum(axis=2)),
            **{n: ("tensor", of[n].values) for n in ("tensor_name", "tensor_offset")},
            "tensor_shape": ("tensor", of["tensor_shape"].values),
        },
        {"penalty": penalty, "run": [0, 1], "epoch": [200]},
        {"kind": "baseline"},
    )


LOOKED_AT = {"experiment": "by formula", "walk_seed": 0, "title": "by formula"}


def components():
    """Principal components of two walks, no null models: those are drawn at random."""
    found = pca.along([walk(0), walk(1)], 3)
    return found.assign_attrs(experiment="by formula")


def spectra():
    """Three snapshots of two operators: a bulk at zero, and outliers that grow."""
    grow, operator = np.array([1.0, 1.5, 2.0])[:, None, None], np.array([1.0, 1e4])[None, :, None]
    bulk = 1e-3 * np.linspace(-1, 1, 16) ** 3
    node = grow * operator * np.concatenate([bulk, [0.1, 0.3, 0.6, 1.0]])
    weight = np.broadcast_to(np.concatenate([np.full(16, 0.06), [0.01] * 4]), node.shape)
    largest, smallest = node[..., [-1, -2, -3]], node[..., [0, 1, 2]]
    dims = ("snapshot", "operator", "probe", "lanczos")
    ranked = ("snapshot", "operator", "rank")
    return xr.Dataset(
        {
            "node": (dims, node[:, :, None, :]),
            "weight": (dims, weight[:, :, None, :]),
            "largest_eigenvalue": (ranked, largest),
            "largest_residual": (ranked, 0.02 * largest),
            "smallest_eigenvalue": (ranked, smallest),
            "smallest_residual": (ranked, 0.2 * abs(smallest)),
        },
        {
            "operator": ["hessian", "tangent"],
            "dimension": ("operator", [500, 499]),
            "snapshot_time": ("snapshot", [0.0, 0.5, 2.0]),
            "snapshot_step": ("snapshot", [0, 10, 20]),
        },
        {"kind": "spectra", **LOOKED_AT},
    )


def periodogram():
    """Red noise with one peak that it has not, in one of two scalars."""
    frequency = np.linspace(0.5, 20, 80)
    red = 0.3 / (1 + (frequency / 2) ** 2)
    ripple = 1 + 0.6 * np.sin(5 * frequency)
    peak = 0.5 * np.exp(-(((frequency - 10) / 0.3) ** 2))
    power = np.stack([red * ripple + peak, red * ripple])
    level, both = np.array([0.95, 0.99]), ("scalar", "frequency")
    high = np.array([8.0, 11.0])[None, :, None] * red
    return xr.Dataset(
        {
            "power": (both, power),
            "red_noise": (both, np.stack([red, red])),
            "global_level": (("scalar", "level", "frequency"), np.repeat(high, 2, axis=0)),
            "local_level": (("scalar", "level", "frequency"), np.repeat(0.4 * high, 2, axis=0)),
            "p_value": ("scalar", [0.001, 0.4]),
        },
        {"scalar": ["angle", "tangent_norm"], "frequency": frequency, "level": level},
        {"kind": "periodogram", "against": "time", **LOOKED_AT},
    )


def relaxation():
    """One scalar that decays to its limit, and one that could not be fitted."""
    time = np.linspace(2, 5, 25)
    fitted = 1 + 3 * np.exp(-1.5 * (time - 2))
    values = np.stack([fitted * (1 + 0.002 * np.cos(7 * time)), time])
    one = ("scalar", "term")
    return xr.Dataset(
        {
            "value": (("scalar", "sample"), values),
            "fitted": (("scalar", "sample"), np.stack([fitted, np.full(25, np.nan)])),
            "status": ("scalar", ["fitted", "no decay: it rises"]),
            "limit": ("scalar", [1.0, np.nan]),
            "amplitude": (one, [[3.0], [np.nan]]),
            "rate": (one, [[1.5], [np.nan]]),
            "predicted_rate": ("scalar", [1.4, np.nan]),
        },
        {"scalar": ["regularizer", "angle"], "term": [1], "time": ("sample", time)},
        {"kind": "relaxation", **LOOKED_AT},
    )


def predictions():
    """Distances that grow as the points part, on two sets."""
    place = np.linspace(0, 1, 6) ** 2
    apart = abs(place[:, None] - place)
    dims, pair = ("set", "snapshot", "snapshot_other"), ("snapshot", "snapshot_other")
    return xr.Dataset(
        {
            "output_distance": (dims, np.stack([0.1 * apart, apart])),
            "js_divergence": (dims, np.stack([0.01 * apart**2, 0.1 * apart**2])),
            "disagreement": (dims, np.stack([0 * apart, np.round(0.1 * apart, 2)])),
            "parameter_distance": (pair, 20 * apart),
        },
        {"set": ["train", "test"], "snapshot_time": ("snapshot", 2 * place)},
        {"kind": "predictions", **LOOKED_AT},
    )


def slice_():
    """Two bowls, the level a circle of one, and a walk towards its inside."""
    alpha, beta = np.linspace(-2, 2, 21), np.linspace(-1.5, 1.5, 21)
    a, b = np.meshgrid(alpha, beta, indexing="ij")
    time = np.linspace(0, 2, 9)
    walk_alpha, walk_beta = 1.5 - 0.8 * time, 0.6 * np.sin(2 * time)
    off = 0.2 * np.sin(time)
    both = ("alpha", "beta")
    return xr.Dataset(
        {
            "loss": (both, 0.1 + a**2 + b**2),
            "test_loss": (both, 0.3 + (a - 0.3) ** 2 + b**2),
            "walk_alpha": ("snapshot", walk_alpha),
            "walk_beta": ("snapshot", walk_beta),
            "off_plane_distance": ("snapshot", off),
            "walk_loss": ("snapshot", np.ones(9)),
            "projected_loss": ("snapshot", 0.1 + walk_alpha**2 + walk_beta**2),
            "walk_test_loss": ("snapshot", 1.3 - 0.1 * time),
            "projected_test_loss": ("snapshot", 0.3 + (walk_alpha - 0.3) ** 2 + walk_beta**2),
            "direction_norm": ("direction", [1.0, 1.0]),
        },
        {
            "alpha": alpha,
            "beta": beta,
            "direction": ["PC 1", "PC 2"],
            "snapshot_time": ("snapshot", time),
        },
        {"kind": "slice", "level": 1.0, "direction_cosine": 0.0, **LOOKED_AT},
    )
