"""What memory cannot hold, or hours cannot do, is refused before any of it is done."""

import numpy as np
import pytest

import geoflow as gf
import references
from geoflow.analysis import landscape, spectra
from geoflow.analysis.components import brownian, pca
from geoflow.analysis.series import periodogram
from geoflow.cli import reading
from geoflow.errors import InputError
from geoflow.sweeps.ensemble import resample
from geoflow.system import limits
from geoflow.system.memory import check_memory

HUGE = 10**26


@pytest.fixture(scope="module")
def flow():
    return references.small_network()


@pytest.fixture(scope="module")
def walk(flow):
    return gf.walk(flow, t_end=0.3, stop=None, max_snapshots=12)


@pytest.mark.parametrize("points", [10**9, HUGE])
def test_a_grid_that_memory_cannot_hold(walk, flow, points):
    with pytest.raises(InputError, match=rf"points={points}: the points of the grid need .* GiB"):
        landscape.on_plane(walk, flow, points=points)


def test_a_grid_of_days(walk, flow):
    before = dict(flow.problem.counts)
    with pytest.raises(InputError, match=r"points=5000 takes 25,000,000 evaluations of a loss"):
        landscape.on_plane(walk, flow, points=5000)
    # What tells whether the flow is the walk's own is all that is evaluated.
    assert flow.problem.counts["gradient"] == before["gradient"]


@pytest.mark.parametrize(
    "options",
    [{"n_probes": 10**9}, {"n_probes": HUGE}, {"n_points": HUGE}, {"k": HUGE}],
    ids=lambda options: next(iter(options)),
)
def test_spectra_of_days(walk, flow, options):
    before = dict(flow.problem.counts)
    with pytest.raises(InputError, match=next(iter(options))):
        spectra.along(walk, flow, **options)
    assert dict(flow.problem.counts) == before


@pytest.mark.parametrize(
    "options",
    [
        {"n_simulations": 10**9},
        {"n_simulations": HUGE},
        {"max_frequency": 1e12},
        {"max_frequency": 1e300},
        {"max_frequency": np.nan},
        {"max_frequency": np.inf},
        {"max_frequency": -1.0},
        {"oversampling": np.nan},
        {"oversampling": 1e300},
    ],
    ids=str,
)
def test_periodograms_that_cannot_be(walk, options):
    with pytest.raises(InputError, match=r"n_simulations|max_frequency|oversampling"):
        periodogram.along(walk, ["angle"], **options)


def test_operations_of_hours():
    with pytest.raises(InputError, match=r"n_simulations=5000 of 1000 points takes 2e\+13 op"):
        brownian.check_cost(1000, 5000, 2)
    brownian.check_cost(1000, 999, 2)


@pytest.mark.parametrize("n_simulations", [10**9, HUGE])
def test_null_models_that_memory_cannot_hold(walk, n_simulations):
    with pytest.raises(InputError, match=f"n_simulations={n_simulations}"):
        pca.along(walk, 2, null_models=True, n_simulations=n_simulations)


def test_a_path_and_an_axis_that_memory_cannot_hold(walk):
    with pytest.raises(InputError, match="n_points=1000000000, dimension=1000000"):
        brownian.brownian_path(10**9, 10**6)
    with pytest.raises(InputError, match=f"n={HUGE}: the points of the axis"):
        resample([walk], n=HUGE)


@pytest.mark.parametrize(
    "options",
    [{"epochs": HUGE}, {"epochs": 10**9}, {"seeds": range(10**9)}],
    ids=["huge", "epochs", "seeds"],
)
def test_trainings_of_days(options):
    with pytest.raises(InputError, match="epochs, and a call makes at most 10,000,000"):
        gf.baselines.weight_decay("iris_ff", **options)


def test_a_training_of_days():
    with pytest.raises(InputError, match="epochs=1000000000 takes 1e"):
        gf.experiments.get("iris_ff").prepare(seed=0, epochs=10**9)


def test_a_sweep_of_too_many_runs():
    assert len(reading.seeds("0:100000")) == 100_000
    for text in ("0:1000000000", f"{-HUGE}:{HUGE}"):
        with pytest.raises(Exception, match="a sweep has at most 100,000"):
            reading.seeds(text)


def test_what_is_at_the_limit_is_done():
    limits.check_work(5, 5, "n=5", "steps")
    with pytest.raises(InputError, match="n=6 takes 6 steps, and a call makes at most 5; ask for"):
        limits.check_work(6, 5, "n=6", "steps")


def test_a_need_beyond_all_numbers_is_said_too():
    with pytest.raises(InputError, match=r"things need 9.3e\+290 GiB of memory"):
        check_memory(10**400, "things", "use fewer")
