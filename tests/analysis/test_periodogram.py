import functools

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from scipy.signal import lombscargle

import geoflow as gf
import references
from geoflow import cli, plots
from geoflow.analysis import lomb_scargle
from geoflow.analysis.components import pca
from geoflow.analysis.series import exponentials, periodogram, red_noise
from geoflow.analysis.series.lomb_scargle import _Design, _explained, frequency_grid
from geoflow.analysis.series.scalars import series
from geoflow.cli import terminal
from geoflow.errors import InputError


def uneven(n=80, span=10.0, seed=0):
    """Times with gaps of one order of magnitude, as of an adaptive solver."""
    t = np.cumsum(np.random.default_rng(seed).gamma(1.0, 1.0, n) + 0.02)
    return span * (t - t[0]) / (t[-1] - t[0])


def noise(t, tau, seed, count=1):
    return red_noise.draw(t, tau, count, np.random.default_rng(seed))


@pytest.mark.parametrize("even", [False, True])
def test_power_is_that_of_scipy(even):
    t = np.linspace(0, 10, 81) if even else uneven()
    y = 3 + noise(t, 0.5, 1)[:, 0]
    found = lomb_scargle(t, y, n_simulations=19)
    omega = 2 * np.pi * found.frequency
    expected = lombscargle(t, y, omega, normalize=True, floating_mean=True)
    # At the Nyquist frequency of even samples the sine vanishes and cannot be fitted.
    inner = slice(0, -1 if even else None)
    assert np.abs(found.power[inner, 0] - expected[inner]).max() < 1e-10


def test_power_beside_a_trend_is_the_gain_of_least_squares():
    t = uneven()
    y = 2 * t + noise(t, 0.5, 2)[:, 0]
    found = lomb_scargle(t, y, detrend="linear", n_simulations=19)
    line = np.column_stack([np.ones_like(t), t])

    def left(columns):
        return ((y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]) ** 2).sum()

    for k in (0, 7, 100):
        phase = 2 * np.pi * found.frequency[k] * t
        both = np.column_stack([line, np.cos(phase), np.sin(phase)])
        assert found.power[k, 0] == pytest.approx(1 - left(both) / left(line), rel=1e-8)


def test_the_grid_runs_from_one_cycle_to_half_the_median_rate():
    t = uneven()
    grid = frequency_grid(t)
    assert grid[0] == pytest.approx(0.1)
    assert np.allclose(np.diff(grid), 0.02)
    assert 0 <= 0.5 / np.median(np.diff(t)) - grid[-1] < 0.02
    assert frequency_grid(t, max_frequency=2.0)[-1] == pytest.approx(2.0)


@pytest.mark.parametrize("times", [[3.0, 2.0, 1.0], [3.0], [], [1.0, 1.0, 1.0], np.eye(3)])
def test_there_is_no_grid_for_times_that_do_not_increase(times):
    with pytest.raises(InputError, match="times: give two or more increasing numbers"):
        frequency_grid(np.array(times))


def test_covariance_is_that_of_the_process():
    t = uneven(30)
    sigma = np.exp(-np.abs(t[:, None] - t) / 0.7)
    product = red_noise.covariance_product(t, 0.7, np.eye(30))
    assert np.abs(product - sigma).max() < 1e-14
    drawn = noise(t, 0.7, 0, count=40_000)
    # The standard error of a covariance is at most √(2/40,000).
    assert np.abs(drawn @ drawn.T / 40_000 - sigma).max() < 5 * np.sqrt(2 / 40_000)


def test_the_likelihood_is_the_restricted_one_and_its_maximum_is_found():
    t = uneven(40)
    y, ones = noise(t, 0.6, 3), np.ones((40, 1))

    def restricted(tau):
        sigma = np.exp(-np.abs(t[:, None] - t) / tau)
        inverse = np.linalg.inv(sigma)
        fixed = ones.T @ inverse @ ones
        p = inverse - inverse @ ones @ np.linalg.inv(fixed) @ ones.T @ inverse
        rss = (y.T @ p @ y).item()
        dets = np.linalg.slogdet(sigma)[1] + np.linalg.slogdet(fixed)[1]
        return 39 * np.log(rss) + dets

    found = red_noise.fit(t, y, ones)
    taus = np.geomspace(0.3, 6, 300)
    exact = taus[np.argmin([restricted(tau) for tau in taus])]
    # A parabola between grid points a factor of 1.3 apart.
    assert found.time_constant[0] == pytest.approx(exact, rel=0.05)


def test_time_constants_are_found():
    t = uneven(400, span=100.0)
    for tau in (0.5, 2.0):
        found = red_noise.fit(t, noise(t, tau, 4, count=200), np.ones((400, 1)))
        assert np.median(found.time_constant) == pytest.approx(tau, rel=0.05)
        assert np.median(found.variance) == pytest.approx(1.0, rel=0.1)


def sampled_as(name):
    return {"uneven": uneven(60), "as of a walk": np.cumsum(np.geomspace(1e-4, 1, 60))}[name]


@pytest.mark.parametrize("samples", ["uneven", "as of a walk"])
@pytest.mark.parametrize("spans", [0.005, 0.05, 1.0, 10.0])
def test_expected_power_is_the_mean_over_red_noise(samples, spans):
    t = sampled_as(samples)
    tau = spans * (t[-1] - t[0])
    drawn = noise(t, tau, 5, count=4000)
    residual = drawn - drawn.mean(axis=0)
    design = _Design(t, np.ones((60, 1)), frequency_grid(t, max_frequency=4.0))
    ((_, waves),) = design.blocks()
    expected = red_noise.expected_part(t, tau, design.q, waves)
    power = _explained(residual, waves) / (residual**2).sum(axis=0)[:, None]
    error = power.std(axis=0) / np.sqrt(4000)
    # Of some 200 frequencies, not independent, none is beyond 5 standard errors.
    assert np.abs((power.mean(axis=0) - expected) / error).max() < 5
    # On the grid of time constants, where one process is many, the ratio of expectations.
    grid = np.log(red_noise.grid(t))
    position = np.interp(np.log(tau), grid, np.arange(len(grid)))
    ratio = design.expected_at(np.array([position]), slice(None))[0]
    explained = _explained(residual, waves).mean(axis=0)
    assert np.abs(explained / (residual**2).sum(axis=0).mean() / ratio - 1).max() < 0.12


def test_expected_power_is_exact():
    # Of white noise about a mean, each wave has its part of the N − 1 that are left.
    t = np.arange(20.0)
    design = _Design(t, np.ones((20, 1)), np.array([0.2, 0.5]))
    ((_, waves),) = design.blocks()
    found = red_noise.expected_part(t, 1e-3, design.q, waves)
    assert found == pytest.approx([2 / 19, 1 / 19], rel=2e-5)

    # Of red noise about a trend, against the integral in the eigenbasis of all of its covariance.
    t, tau = uneven(30), 4.0
    q = np.linalg.qr(np.column_stack([np.ones_like(t), t]))[0]
    design = _Design(t, q, np.array([0.1, 0.7, 3.0]))
    ((_, waves),) = design.blocks()
    root = np.linalg.cholesky(np.exp(-np.abs(t[:, None] - t) / tau))
    size, modes = np.linalg.eigh(root.T @ (np.eye(30) - q @ q.T) @ root)
    size = np.maximum(size, 0)
    seen = (np.einsum("nfk,nm->fkm", waves, root @ modes) ** 2).sum(axis=1)
    log_s = np.linspace(-20, 25, 20_001)
    weight = np.exp(log_s - 0.5 * np.log1p(2 * np.exp(log_s)[:, None] * size).sum(axis=1))
    parts = weight / (1 + 2 * np.exp(log_s) * size[:, None])
    exact = seen @ np.trapezoid(parts, log_s, axis=1)
    assert red_noise.expected_part(t, tau, design.q, waves) == pytest.approx(exact, rel=2e-5)


def test_the_curve_of_red_noise_is_that_of_the_process_fitted():
    t = uneven(60)
    y = np.column_stack([noise(t, 0.5, 6)[:, 0], np.cumsum(noise(t, 1e-4, 7)[:, 0])])
    found = lomb_scargle(t, y, n_simulations=99)
    design = _Design(t, np.ones((60, 1)), found.frequency)
    ((_, waves),) = design.blocks()
    for k in range(2):
        drawn = noise(t, found.time_constant[k], 8, count=4000)
        residual = drawn - drawn.mean(axis=0)
        power = _explained(residual, waves) / (residual**2).sum(axis=0)[:, None]
        error = power.std(axis=0) / np.sqrt(4000)
        assert np.abs((power.mean(axis=0) - found.red_noise[:, k]) / error).max() < 5
        # The level of any frequency is the same multiple of it everywhere.
        height = found.global_level[:, :, k] / found.red_noise[:, k]
        assert np.ptp(height, axis=1).max() < 1e-9 * height.max()


def test_a_planted_oscillation_is_found_within_2_percent_and_significant():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        t = uneven(80, seed=seed)
        frequency = rng.uniform(0.5, 3)
        wave = 2 * np.sin(2 * np.pi * frequency * t + rng.uniform(0, 2 * np.pi))
        y = noise(t, 0.5, seed + 1000)[:, 0] + wave
        found = lomb_scargle(t, y, n_simulations=199, seed=seed)
        assert found.peak_frequency[0] == pytest.approx(frequency, rel=0.02)
        assert found.p_value[0] <= 0.01


@functools.cache
def _false_positives(detrend):
    """P-values of 200 series of red noise, on ten sets of uneven times, white to nearly brown."""
    p = []
    for k, tau in enumerate([0.05, 0.1, 0.3, 1.0, 3.0] * 2):
        t = uneven(60, seed=k)
        y = noise(t, tau, 100 + k, count=20)
        p.append(lomb_scargle(t, y, detrend=detrend, n_simulations=199, seed=k))
    return p


@pytest.mark.slow
@pytest.mark.parametrize("detrend", ["mean", "linear"])
def test_red_noise_is_significant_as_often_as_said(detrend):
    found = _false_positives(detrend)
    p = np.concatenate([one.p_value for one in found])
    assert len(p) == 200
    assert 0.03 <= np.mean(p <= 0.05) <= 0.07
    # At one frequency: averaged over all of them.
    local = np.mean([np.mean(one.local_p_value <= 0.05) for one in found])
    assert 0.04 <= local <= 0.06


def test_levels_and_p_values_say_the_same():
    t = uneven(60)
    y = np.column_stack([noise(t, 0.5, 6)[:, 0], np.sin(2 * np.pi * t) + noise(t, 0.5, 7)[:, 0]])
    found = lomb_scargle(t, y, n_simulations=999)
    for k in range(2):
        over = found.power[:, k] / found.global_level[0, :, k]
        assert (over.max() > 1) == (found.p_value[k] < 0.05)
        assert (found.local_level[:, :, k] < found.global_level[:, :, k]).all()
    assert (np.diff(found.global_level, axis=0) > 0).all()


@pytest.mark.parametrize("tau", [0.5, 8.0])
def test_of_simulations_too_the_power_is_beside_red_noise_fitted_to_each(tau):
    t = uneven(40)
    y = noise(t, tau, 3)[:, 0]
    found = lomb_scargle(t, y, n_simulations=99, seed=5)
    ones, at = np.ones((len(t), 1)), float(found.time_constant[0])
    simulated = red_noise.draw(t, at, 99, np.random.default_rng(5))
    simulated -= simulated.mean(axis=0)
    design = _Design(t, ones, found.frequency)
    (_, waves), *_ = design.blocks()

    def of_sums(tau):
        """Expected sums of squares: of each frequency, over that of all."""
        explained = (waves * red_noise.covariance_product(t, tau, waves)).sum(axis=(0, 2))
        q = design.q
        return explained / (len(t) - (q * red_noise.covariance_product(t, tau, q)).sum())

    expected, highest = found.red_noise[:, 0] / of_sums(at), []
    for x in simulated.T:
        fitted = float(red_noise.fit(t, x[:, None], ones).time_constant[0])
        power = _explained(x[:, None], waves)[0] / (x @ x)
        highest.append((power / (expected * of_sums(fitted))).max())
    level = (found.global_level[0, :, 0] / found.red_noise[:, 0]).max()
    assert level == pytest.approx(np.quantile(highest, 0.95), rel=0.02)
    peak = (found.power[:, 0] / found.red_noise[:, 0]).max()
    assert found.p_value[0] == pytest.approx((1 + np.sum(highest >= peak)) / 100, abs=0.02)


def test_the_seed_decides_and_a_series_does_not_depend_on_its_company():
    t = uneven(40)
    y = noise(t, 0.5, 8, count=2)
    both, again = (lomb_scargle(t, y, n_simulations=99, seed=3) for _ in range(2))
    alone = lomb_scargle(t, y[:, 1], n_simulations=99, seed=3)
    other = lomb_scargle(t, y, n_simulations=99, seed=4)
    assert np.array_equal(both.global_level, again.global_level)
    assert both.p_value[1] == alone.p_value[0]
    assert not np.array_equal(both.global_level, other.global_level)


def test_power_does_not_depend_on_units():
    t = uneven(40)
    y = noise(t, 0.5, 9)[:, 0]
    one = lomb_scargle(t, y, n_simulations=99)
    scaled = lomb_scargle(1000 * t - 5, 1e-6 * y + 1e-3, n_simulations=99)
    assert np.allclose(scaled.power, one.power, rtol=1e-6)
    assert np.allclose(scaled.frequency, one.frequency / 1000)
    assert scaled.p_value == one.p_value


def test_a_relaxation_is_taken_off():
    t = uneven(80)
    wave = 0.05 * np.sin(2 * np.pi * 1.3 * t)
    y = 4 + 3 * np.exp(-0.6 * t) + wave + 0.01 * noise(t, 0.3, 10)[:, 0]
    found = lomb_scargle(t, y, detrend="relaxation", n_simulations=199)
    assert found.peak_frequency[0] == pytest.approx(1.3, rel=0.02)
    assert found.p_value[0] == 0.005
    assert np.abs(found.background[:, 0] - (4 + 3 * np.exp(-0.6 * t))).max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"times": np.zeros(40)}, "increasing"),
        ({"times": np.arange(9.0), "values": np.arange(9.0)}, "at least 10"),
        ({"values": np.full(40, np.nan)}, "not finite"),
        ({"values": np.ones(40)}, "no variance"),
        ({"detrend": "cubic"}, "mean, linear, relaxation"),
        ({"detrend": "relaxation"}, "does not fit"),
        ({"levels": (1.5,)}, "between 0 and 1"),
        ({"n_simulations": 5}, "at least 19"),
        ({"seed": -1}, "positive"),
        ({"max_frequency": 0.1}, "use more"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    t = uneven(40)
    good = {"times": t, "values": noise(t, 0.5, 11)[:, 0], "n_simulations": 19}
    with pytest.raises(InputError, match=message):
        lomb_scargle(**(good | arguments))


def test_scalars_of_a_walk_and_its_scores(ds):
    few = {"n_simulations": 19}
    steps = periodogram.along(ds, ["angle", "regularizer"], against="arc_length", **few)
    assert steps.attrs["kind"] == "periodogram"
    assert steps.attrs["samples"] == "step"
    assert steps["scalar"].values.tolist() == ["angle", "regularizer"]
    assert np.array_equal(steps["arc_length"], ds["arc_length"])
    alone = lomb_scargle(ds["arc_length"].values, ds["angle"].values, **few)
    assert np.allclose(steps["power"].sel(scalar="angle"), alone.power[:, 0], rtol=1e-9)
    assert all({"long_name", "units"} <= set(steps[n].attrs) for n in steps.variables)
    n = ds.sizes["snapshot"]
    scores = xr.DataArray(
        np.random.default_rng(0).standard_normal((n, 2)),
        dims=("snapshot", "component"),
        coords={"component": [1, 2]},
        name="score",
    )
    at_snapshots = periodogram.along(ds, ["angle", scores], **few)
    assert at_snapshots["scalar"].values.tolist() == ["angle", "score 1", "score 2"]
    assert at_snapshots.attrs["samples"] == "snapshot"
    assert np.array_equal(at_snapshots["time"], ds["snapshot_time"])
    assert np.array_equal(
        at_snapshots["value"].sel(scalar="angle"), ds["angle"][ds["snapshot_step"].values]
    )


def test_scores_go_by_their_names(ds):
    found = series(ds, ["pc2", "angle", "pc1"])
    assert found.names == ["pc2", "angle", "pc1"]
    scores = pca.along(ds, 2)["scores"].values
    assert np.array_equal(found.values[:, [2, 0]], scores)


@pytest.mark.parametrize(
    ("scalars", "against", "message"),
    [
        (["speed"], "time", "'speed' is not a scalar of this walk; choose from angle"),
        (["theta"], "time", "is not a scalar"),
        (["angle", "angle"], "time", "given twice"),
        ([], "time", "none is given"),
        (["angle"], "step", "choose from time, arc_length"),
        ([xr.DataArray(np.zeros(3), dims="snapshot")], "time", "3 snapshots"),
        ([xr.DataArray(np.zeros(3), dims="x")], "time", "dimensions"),
    ],
)
def test_bad_scalars_are_refused(ds, scalars, against, message):
    with pytest.raises(InputError, match=message):
        periodogram.along(ds, scalars, against=against, n_simulations=19)


@pytest.fixture(scope="module")
def oscillating(ds):
    """A walk's dataset in which a scalar oscillates."""
    t = ds["time"].values
    return ds.assign(test_wave=("step", np.sin(2 * np.pi * 5 * t / (t[-1] - t[0]))))


def test_figures_mark_what_is_significant(oscillating):
    found = periodogram.along(oscillating, ["test_wave"], n_simulations=99)
    assert found["p_value"].item() == 0.01
    ax = plots.periodogram(found)
    assert isinstance(ax, Axes)
    named = [float(text.get_text()) for text in ax.texts]
    assert named[0] * np.ptp(oscillating["time"].values) == pytest.approx(5, rel=0.05)
    assert "power over red noise" in plots.significance(found).get_ylabel()
    with pytest.raises(InputError, match="no periodogram"):
        plots.periodogram(oscillating)
    with pytest.raises(InputError, match="choose from test_wave"):
        plots.periodogram(found, "angle")


def test_the_command_prints_keeps_and_draws(path, tmp_path, capsys):
    out = tmp_path / "found.nc"
    arguments = ["periodogram", str(path), "--scalar", "angle,pc1", "--simulations", "19"]
    more = ["--out", str(out), "--figures", str(tmp_path)]
    assert cli.main([*arguments, *more]) == terminal.DONE
    printed = capsys.readouterr().out
    assert "angle" in printed
    assert "pc1" in printed
    assert len(list(tmp_path.glob("*.png"))) == 1
    with xr.open_dataset(out) as found, gf.open_trajectory(path) as ds:
        assert found.attrs["kind"] == "periodogram"
        assert np.allclose(found["time"], ds["snapshot_time"])
    assert cli.main([*arguments, *more]) == terminal.BAD_INPUT
    assert cli.main([*arguments, *more[:2], "--force", "--quiet"]) == terminal.DONE
    capsys.readouterr()
    assert cli.main(["periodogram", str(path), "--scalar", "speed"]) == terminal.BAD_INPUT
    assert "speed" in capsys.readouterr().err


def test_at_the_nyquist_frequency_of_even_samples_there_is_one_wave_and_no_rounding():
    times = np.arange(20.0)
    waves = _Design(times, np.ones((20, 1)), np.array([0.2])).waves(np.array([0.2, 0.5]))
    assert np.allclose(np.linalg.norm(waves, axis=0), [[1, 1], [1, 0]])


def test_arrays_are_taken_by_their_names_and_snapshots_are_no_scalars():
    flow = references.small_network()
    ds = gf.walk(flow, t_end=0.5, stop=None, max_snapshots=8)
    scores = xr.DataArray(
        np.random.default_rng(0).normal(size=(ds.sizes["snapshot"], 2)),
        dims=("snapshot", "component"),
        name="score",
    )
    found = series(ds, [scores.transpose("component", "snapshot")])
    assert found.names == ["score 1", "score 2"]
    assert np.array_equal(found.values, scores.values)
    with pytest.raises(InputError, match="'snapshot_step' is not a scalar of this walk"):
        series(ds, ["snapshot_step"])
    # A clock that stands for a step is none.
    arc = ds["arc_length"].values.copy()
    arc[3] = arc[2]
    standing = ds.assign(arc_length=ds["arc_length"].copy(data=arc))
    with pytest.raises(InputError, match="arc_length does not increase at every step"):
        series(standing, ["angle"], "arc_length")


@pytest.mark.parametrize("step", [1.0, 0.1, 1 / 3])
def test_frequencies_that_even_samples_do_not_see_are_refused(step):
    t = step * np.arange(20.0)
    y = np.random.default_rng(0).standard_normal(20)
    for most in (1 / step, 1.2 / step):
        for detrend in ("mean", "linear"):
            with pytest.raises(InputError, match=f"see no wave of the frequency {1 / step:g}; use"):
                lomb_scargle(t, y, max_frequency=most, detrend=detrend, n_simulations=19)
    # Up to there, it is what it was below half the rate, mirrored.
    found = lomb_scargle(t, y, max_frequency=0.99 / step, n_simulations=19)
    alone = lomb_scargle(t, y, n_simulations=19)
    at = found.frequency[-1]
    mirrored = lombscargle(
        t, y, 2 * np.pi * np.array([1 / step - at]), normalize=True, floating_mean=True
    )
    assert found.power[-1, 0] == pytest.approx(mirrored.item(), rel=1e-9)
    assert np.allclose(found.power[: len(alone.power)], alone.power, rtol=1e-12)


@pytest.mark.parametrize("detrend", ["mean", "relaxation"])
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-162, 1e-160, 1e-155, 1e155, 1e160, 1e300])
def test_nothing_depends_on_the_size_of_a_series(scale, detrend):
    t = uneven(40)
    y = noise(t, 0.2, 9)[:, 0] + 2 + 9 * np.exp(-0.8 * t)
    one = lomb_scargle(t, y, detrend=detrend, n_simulations=19)
    # Beside another, which is of another size.
    both = np.column_stack([y, scale * y])
    two = lomb_scargle(t, both, detrend=detrend, n_simulations=19)
    for name in ("power", "local_level", "time_constant", "p_value", "peak_frequency"):
        there = getattr(two, name)
        assert np.allclose(there[..., 0], getattr(one, name)[..., 0], rtol=1e-12)
        assert np.allclose(there[..., 1], getattr(one, name)[..., 0], rtol=1e-6)
    assert np.allclose(two.background[:, 1] / scale, one.background[:, 0], rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_a_peak_is_found_between_frequencies_whatever_the_unit_of_time(unit):
    t = uneven(80)
    y = np.sin(2 * np.pi * 1.234 * t) + 0.1 * noise(t, 0.3, 10)[:, 0]
    one = lomb_scargle(t, y, n_simulations=19)
    found = lomb_scargle(unit * t, y, n_simulations=19)
    assert found.peak_frequency[0] * unit == pytest.approx(one.peak_frequency[0], rel=1e-7)
    assert found.peak_power[0] == pytest.approx(one.peak_power[0], rel=1e-9)


@pytest.mark.parametrize("times", [3.0, [0.0, 1.0, 2.0, np.inf], [0.0, np.nan, 2.0, 3.0]])
def test_there_is_no_grid_for_one_number_or_for_times_that_are_not_finite(times):
    with pytest.raises(InputError, match="times: give two or more increasing numbers"):
        frequency_grid(times)


def test_a_table_without_a_series_and_an_infinite_time_are_refused():
    t = uneven(40)
    with pytest.raises(InputError, match="values: there is no series in them; give one or more"):
        lomb_scargle(t, np.empty((40, 0)))
    late = np.r_[t[:-1], np.inf]
    with pytest.raises(InputError, match="times: give increasing numbers, and values of shape"):
        lomb_scargle(late, t)
    with pytest.raises(InputError, match="times: give increasing numbers, and as many values"):
        exponentials.fit(late, t)
