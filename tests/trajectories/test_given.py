"""Walks that are given back after being cut: right, or refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.analysis import landscape, pca, periodogram, planes, predictions, relaxation, spectra
from geoflow.sweeps import ensemble
from geoflow.trajectories.dataset import at_snapshots
from geoflow.trajectories.given import check_placed

CUT = "its snapshots name other steps than it has.*cut it along snapshot only, or open it anew"


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
    return torch.nn.Sequential(*layers).double()


@pytest.fixture(scope="module")
def flow(network):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(10, n, generator=generator, dtype=torch.float64) for n in (3, 1))
    problem = gf.Problem.from_module(network, torch.nn.functional.mse_loss, x, y)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


@pytest.fixture(scope="module")
def ds(flow):
    return gf.walk(
        flow, rtol=1e-6, stop=None, t_end=0.3, observables={"first": lambda t: float(t[0])}
    )


@pytest.fixture(scope="module")
def calls(flow, network):
    """By name: what an analysis makes of a walk, as numbers."""
    examples = {"x": torch.zeros(2, 3, dtype=torch.float64)}
    few = {"k": 2, "n_probes": 2, "n_steps": 4, "n_trace": 6, "operators": ["hessian"]}

    def of(ds, *names):
        return [ds[name].values for name in names]

    return {
        "interpolate": lambda ds: [gf.interpolate(ds, [0.07, 0.2], flow).values],
        "spectra": lambda ds: of(
            spectra.along(ds, flow, **few), "largest_eigenvalue", "snapshot_time"
        ),
        "slice": lambda ds: of(
            landscape.on_plane(ds, flow, points=2), "loss", "walk_loss", "snapshot_arc_length"
        ),
        "pca": lambda ds: of(pca.along(ds, 3), "scores", "arc_length"),
        "predictions": lambda ds: of(
            predictions.along(ds, network, examples, classification=False),
            *("output_distance", "arc_length_difference"),
        ),
        "mixed": lambda ds: of(
            relaxation.along(ds, scalars=["first", "tangent_norm"], start=0.0), "value"
        ),
    }


ANALYSES = ["interpolate", "spectra", "slice", "pca", "predictions", "mixed"]
# Along steps alone, so that their indices fit no longer, or fit and are those of others.
CUTS = {
    "every other": {"step": slice(None, None, 2)},
    "the last": {"step": [-1]},
    "no first": {"step": slice(1, None)},
    "none": {"step": slice(0, 0)},
    "others": {"step": slice(1, None), "snapshot": slice(0, 8)},
}


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("cut", CUTS)
def test_a_walk_cut_along_its_steps_is_refused(name, cut, ds, calls):
    given = ds.isel(CUTS[cut])
    if name == "interpolate" and cut == "others":
        given = given.isel(snapshot=slice(0, 6))
    with pytest.raises(gf.InputError, match=f"{CUT}|ds holds no step") as caught:
        calls[name](given)
    assert "\n" not in str(caught.value)


def test_a_scalar_is_not_taken_from_another_step(ds):
    arc = at_snapshots(ds, "arc_length")
    with pytest.raises(gf.InputError, match=CUT):
        at_snapshots(ds.isel(CUTS["others"]), "arc_length")
    # What is left is whole.
    assert np.array_equal(at_snapshots(ds.isel(snapshot=[0, 5, -1]), "arc_length"), arc[[0, 5, -1]])
    early = ds.isel(snapshot=slice(0, 6))
    early = early.isel(step=slice(0, int(early["snapshot_step"][-1]) + 1))
    assert np.array_equal(at_snapshots(early, "arc_length"), arc[:6])


@pytest.mark.parametrize("name", ANALYSES)
def test_a_walk_cut_at_both_and_one_of_other_order_is_as_good(name, ds, calls):
    n = 1 + int(np.searchsorted(ds["snapshot_time"], 0.299))
    last = int(ds["snapshot_step"][n - 1])
    both = ds.isel(snapshot=slice(0, n), step=slice(0, last + 1))
    for given, like in ((both, ds.isel(snapshot=slice(0, n))), (ds.transpose(), ds)):
        for found, wanted in zip(calls[name](given), calls[name](like), strict=True):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.drop_attrs(), "ds has no attribute '[a-z]*'; give what gf.walk"),
        (lambda ds: ds.drop_vars("theta"), "ds has no 'theta'; give what gf.walk"),
        (lambda ds: ds.drop_vars("time"), "ds has no 'time'; give what gf.walk"),
        (lambda ds: ds.isel(step=-1), "'step'|dimensions"),
        (lambda ds: ds.isel(snapshot=-1), r"ds has no 'snapshot'|use|dimensions|not a scalar"),
    ],
)
def test_what_a_walk_is_without_is_named(name, change, message, ds, calls):
    if name == "mixed" and message.startswith("ds has no 'theta'"):
        return
    with pytest.raises(gf.InputError, match=message) as caught:
        calls[name](change(ds))
    assert "\n" not in str(caught.value)


def test_series_of_steps_need_no_snapshots(ds):
    for given in (ds.isel(step=slice(None, None, 2)), ds.drop_vars("theta")):
        relaxation.along(given, scalars=["tangent_norm"])
        periodogram.along(given, n_simulations=19)
    # The clock's own attributes are not asked for.
    bare = ds.assign_coords(time=("step", ds["time"].values))
    found = periodogram.along(bare, n_simulations=19)
    assert found["time"].attrs["long_name"] == "flow time"
    with pytest.raises(gf.InputError, match="ds has no attribute 'experiment'"):
        periodogram.along(ds.drop_attrs())


def test_interpolation_wants_the_snapshots_in_order(ds, flow):
    for order in (slice(None, None, -1), [0, 9, 3, -1]):
        with pytest.raises(gf.InputError, match="not in the order of the walk"):
            gf.interpolate(ds.isel(snapshot=order), [0.3], flow)


def test_theta_of_another_dtype_is_refused(ds, flow):
    given = ds.assign(theta=ds["theta"].astype("float16"))
    for call in (
        lambda: spectra.along(given, flow, snapshots=[0]),
        lambda: gf.interpolate(given, [0.1], flow),
    ):
        with pytest.raises(gf.InputError, match="ds: theta is of dtype float16"):
            call()


def test_the_plane_of_a_transposed_walk_is_that_of_the_walk(ds):
    turned = planes.principal(ds.transpose())
    assert np.array_equal(turned.directions, planes.principal(ds).directions)


def test_walks_without_attributes_are_not_joined(ds):
    with pytest.raises(gf.InputError, match="ds has no attribute 'experiment'"):
        ensemble.resample([ds.drop_attrs()])


def test_steps_counted_from_the_end_name_none():
    theta0 = torch.tensor([-1.2, 1.6], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: t @ t, theta0)
    ds = gf.walk(gf.RegularizingFlow(gf.LevelSet(problem), lambda t: -t[0]), t_end=0.1, stop=None)
    ds["snapshot_step"] = ds["snapshot_step"] - ds.sizes["step"]
    with pytest.raises(gf.InputError, match=CUT):
        check_placed(ds)
