import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from scipy.stats import t as student

import geoflow as gf
import references
from geoflow import cli, plots
from geoflow.analysis.curvature import spectra
from geoflow.analysis.series import exponentials, red_noise, relaxation
from geoflow.archive.netcdf import save_dataset
from geoflow.cli import terminal
from geoflow.errors import InputError

FULL = {"solver": "dopri5", "rtol": 1e-9, "atol": 1e-11, "stop": None}


def times(n=40, seed=0):
    t = np.cumsum(np.random.default_rng(seed).gamma(1.0, 1.0, n) + 0.02)
    return 4 * t / t[-1]


@pytest.fixture(scope="module")
def oja():
    """R = θᵀAθ on a sphere: −1 is the lowest eigenvalue of A and −½ the next; 2·½ is the rate."""
    flow = references.oja().flow
    return flow, gf.walk(flow, t_end=12.0, **FULL).load()


@pytest.mark.parametrize("limit", [None, 0.0])
@pytest.mark.parametrize("tau", [1e-6, 0.1])
def test_a_planted_rate_is_found_and_the_interval_covers_it(limit, tau):
    rate, covered, found = 1.3, [], []
    for seed in range(100):
        t = times(seed=seed)
        noise = red_noise.draw(t, tau, 1, np.random.default_rng(seed))[:, 0]
        y = 3 * np.exp(-rate * t)
        y = y + 2 + 0.02 * noise if limit is None else y * np.exp(0.05 * noise)
        one = exponentials.fit(t, y, limit=limit)
        assert one.status == exponentials.FITTED
        found.append(one.rate[0])
        covered.append(one.rate_low[0] <= rate <= one.rate_high[0])
    assert np.median(np.abs(np.array(found) / rate - 1)) < 0.02
    assert np.mean(found) == pytest.approx(rate, rel=0.005)
    # 95 of 100 are 90 to 99 with three standard errors; red residuals are estimated from 40 points.
    assert (0.90 if tau < 0.01 else 0.88) <= np.mean(covered) <= 0.99


def test_without_noise_everything_planted_is_found():
    t = times()
    one = exponentials.fit(t, 2 - 3 * np.exp(-1.3 * t))
    assert one.rate[0] == pytest.approx(1.3, rel=1e-6)
    assert one.limit == pytest.approx(2, rel=1e-6)
    assert one.amplitude[0] == pytest.approx(-3 * np.exp(-1.3 * t[0]), rel=1e-6)
    for limit, shift in ((None, 2.0), (2.0, 2.0)):
        y = shift + np.exp(-0.9 * t) + 4 * np.exp(-6 * t)
        y = y + 1e-9 * np.cos(40 * t)
        two = exponentials.fit(t, y, n_terms=2, limit=limit)
        assert two.rate == pytest.approx([0.9, 6], rel=1e-4)
        assert two.limit == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize(
    ("curve", "limit", "status"),
    [
        (lambda t: 1 + t, 0.0, "no decay"),
        (lambda t: 1 + 0 * t, None, "no decay"),
        (lambda t: 5 - t, None, "unresolved: less than one e-folding"),
        (lambda t: np.sin(9 * t), None, "unresolved"),
        (lambda t: 2 + np.cos(9 * t), 0.0, ""),
    ],
)
def test_what_is_no_decay_has_no_rate(curve, limit, status):
    t = times()
    one = exponentials.fit(t, curve(t), limit=limit)
    assert one.status != exponentials.FITTED
    assert one.status.startswith(status)
    assert np.isnan([one.rate[0], one.rate_low[0], one.rate_high[0], one.limit]).all()


def test_pure_noise_has_a_rate_hardly_ever():
    t, refused = times(), 0
    for seed in range(50):
        y = red_noise.draw(t, 1e-6, 1, np.random.default_rng(seed))[:, 0]
        refused += exponentials.fit(t, y).status != exponentials.FITTED
    assert refused >= 48


def test_too_few_points_are_refused_in_words():
    one = exponentials.fit(np.arange(5.0), np.exp(-np.arange(5.0)))
    assert one.status == "too few points: 5, of 6 needed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"times": np.zeros(40)}, "increasing"),
        ({"values": np.full(40, np.inf)}, "not finite"),
        ({"n_terms": 3}, "use 1 or 2"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"limit": 0.5}, "not all values are above it"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    good = {"times": times(), "values": np.exp(-times())}
    with pytest.raises(InputError, match=message):
        exponentials.fit(**(good | arguments))


def test_an_exact_flow_relaxes_at_the_smallest_eigenvalue(oja):
    flow, ds = oja
    found = relaxation.along(ds, curvature=flow)
    assert found["smallest_eigenvalue"].values[0] == pytest.approx(1.0, abs=1e-8)
    assert found["velocity_rate"].item() == pytest.approx(1.0, abs=1e-6)
    for scalar, rate in (("tangent_norm", 1), ("regularizer", 2), ("arc_length", 1)):
        one = found.sel(scalar=scalar)
        assert one["rate"].item() == pytest.approx(rate, rel=1e-3)
        assert one["predicted_rate"].item() == pytest.approx(rate, rel=1e-6)
        assert "agrees" in one["verdict"].item()
    # R falls from any start to the lowest eigenvalue of its matrix, on the sphere.
    lowest = -ds["theta"].values[0] @ ds["theta"].values[0]
    assert found["limit"].sel(scalar="regularizer").item() == pytest.approx(lowest, rel=1e-4)


def test_spectra_made_before_do_as_well_as_the_flow(oja):
    flow, ds = oja
    made = spectra.along(ds, flow, snapshots=[0, -1], k=2, n_probes=2, n_steps=4, n_trace=6)
    one = relaxation.along(ds, curvature=made)
    two = relaxation.along(ds, curvature=flow)
    assert np.allclose(one["predicted_rate"], two["predicted_rate"], rtol=1e-8)
    assert np.isnan(one["velocity_rate"])
    hessian = spectra.along(ds, flow, snapshots=[-1], operators=["hessian"], k=2, n_steps=4)
    for wrong in (hessian, made.isel(snapshot=[0]), xr.Dataset()):
        with pytest.raises(InputError, match="no operator 'tangent' at the last snapshot"):
            relaxation.along(ds, curvature=wrong)


def test_spectra_given_back_transposed_are_the_same_and_those_cut_to_one_are_refused(oja):
    flow, ds = oja
    made = spectra.along(ds, flow, snapshots=[0, -1], operators=["hessian", "tangent"], k=2)
    one, two = (relaxation.along(ds, curvature=c) for c in (made, made.transpose()))
    xr.testing.assert_identical(one, two)
    cut = {"snapshot": made.isel(snapshot=-1), "operator": made.sel(operator="tangent")}
    for dim, part in cut.items():
        remedy = rf"curvature: there is no dimension '{dim}'; .* such as curvature.isel\({dim}"
        with pytest.raises(InputError, match=remedy):
            relaxation.along(ds, curvature=part)


def test_the_smallest_eigenvalue_is_that_of_rank_0_wherever_it_stands(oja):
    flow, ds = oja
    made = spectra.along(ds, flow, snapshots=[-1], operators=["tangent"], k=2)
    one, two = (relaxation.along(ds, curvature=c) for c in (made, made.isel(rank=[1, 0])))
    xr.testing.assert_identical(one, two)
    with pytest.raises(InputError, match=r"begin at rank 1, .* keep rank 0"):
        relaxation.along(ds, curvature=made.isel(rank=[1]))
    # Earlier files do not say it.
    xr.testing.assert_identical(relaxation.along(ds, curvature=made.drop_vars("rank")), one)


def test_spectra_count_at_the_last_snapshot_wherever_it_stands_and_of_this_walk_only(oja):
    flow, ds = oja
    settings = {"operators": ["tangent"], "k": 2, "n_probes": 2, "n_steps": 4, "n_trace": 6}
    last_first = spectra.along(ds, flow, snapshots=[-1, 0], **settings)
    one = relaxation.along(ds, curvature=last_first)["smallest_eigenvalue"].values
    assert one == pytest.approx(last_first["smallest_eigenvalue"].values[0, 0], rel=0)
    assert one[0] == pytest.approx(1.0, abs=1e-8)

    # All of them by name.
    named = spectra.along(ds, flow, snapshots=[-1], tensors=["theta"], **settings)
    again = relaxation.along(ds, curvature=named)["smallest_eigenvalue"].values
    assert again == pytest.approx(one, rel=1e-9)
    for name, other in (("experiment", "another"), ("walk_seed", 3)):
        wrong = last_first.assign_attrs({name: other})
        with pytest.raises(InputError, match=f"of another walk, whose {name} is {other!r} and not"):
            relaxation.along(ds, curvature=wrong)
    wrong = last_first.assign(multiplier=1.01 * last_first["multiplier"])
    with pytest.raises(InputError, match="of another walk, whose multiplier is"):
        relaxation.along(ds, curvature=wrong)
    wrong = last_first.assign_coords(snapshot_time=last_first["snapshot_time"] + 1)
    with pytest.raises(InputError, match="no operator 'tangent' at the last snapshot"):
        relaxation.along(ds, curvature=wrong)


def test_the_curvature_is_that_of_the_end_or_says_when(oja):
    flow, ds = oja
    whole = relaxation.along(ds, curvature=flow)
    assert whole.attrs["curvature_time"] == 12
    n, late = ds.sizes["snapshot"], int((ds["snapshot_time"] < 9).sum())
    settings = {"operators": ["tangent"], "k": 2, "n_probes": 2, "n_steps": 4, "n_trace": 6}

    # Snapshots before the window say nothing of the rates in it, whoever made the spectrum.
    for early in (ds.isel(snapshot=slice(3)), ds.isel(snapshot=[2, 0, 1])):
        last = int(early["snapshot_time"].values.argmax())
        made = spectra.along(early, flow, snapshots=[last], **settings)
        for curvature in (flow, made):
            with pytest.raises(InputError, match=r"the last snapshot of ds is at t = .* leave"):
                relaxation.along(early, curvature=curvature)
    # Nor do those after it.
    made = spectra.along(ds, flow, snapshots=[-1], **settings)
    with pytest.raises(InputError, match="the last snapshot of ds is at t = 12, and the rates are"):
        relaxation.along(ds.isel(step=slice(-3)), curvature=made)

    # Within it, the verdict names the time.
    cut = ds.isel(snapshot=slice(late))
    found, when = relaxation.along(cut, curvature=flow), float(cut["snapshot_time"][-1])
    assert found.attrs["curvature_time"] == when
    assert all(f"eigenvalue of A at t = {when:.6g}" in v for v in found["verdict"].values)
    # Cut along both, it is the end.
    last = int(cut["snapshot_step"][-1])
    both = relaxation.along(cut.isel(step=slice(last + 1)), curvature=flow)
    assert both.attrs["curvature_time"] == both["time"].values[-1] == when
    assert not any("at t =" in v for v in both["verdict"].values)

    # The order of the snapshots does not matter.
    turned = ds.isel(snapshot=slice(None, None, -1))
    for curvature in (flow, made):
        again = relaxation.along(turned, curvature=curvature)
        assert again["smallest_eigenvalue"].values[0] == pytest.approx(1.0, abs=1e-8)
        assert again["verdict"].values.tolist() == whole["verdict"].values.tolist()
    with pytest.raises(InputError, match="ds holds no snapshot"):
        relaxation.along(ds.isel(snapshot=slice(n, None)), curvature=made)


def test_the_final_angle_is_that_of_the_last_sample(oja):
    _, ds = oja
    cut = ds.isel(snapshot=slice(-4))
    found = relaxation.along(cut, scalars=["pc1"])
    assert found["time"].values[-1] == cut["snapshot_time"].values[-1]
    at = int(cut["snapshot_step"][-1])
    assert found.attrs["final_angle"] == float(ds["angle"][at])
    assert relaxation.along(cut).attrs["final_angle"] == float(ds["angle"][-1])


def test_spectra_of_part_of_the_parameters_are_not_those_of_the_walk(network):
    ds = gf.walk(network, t_end=0.3)
    some = [str(ds["tensor_name"].values[-1])]
    settings = {"operators": ["tangent"], "k": 1, "n_probes": 2, "n_steps": 4, "n_trace": 6}
    part = spectra.along(ds, network, snapshots=[-1], tensors=some, **settings)
    with pytest.raises(InputError, match=r"curvature is of tensors=\[.*\] alone; make it with"):
        relaxation.along(ds, curvature=part)


def test_a_scalar_at_its_limit_has_no_rate_and_the_others_keep_theirs(oja):
    _, ds = oja
    at_rest = ds.copy(deep=True)
    at_rest["tangent_norm"][-1] = 0
    found, before = relaxation.along(at_rest), relaxation.along(ds)
    for name in ("rate", "late_rate", "limit", "fitted", "status"):
        assert (
            found[name]
            .drop_sel(scalar="tangent_norm")
            .identical(before[name].drop_sel(scalar="tangent_norm"))
        )
    one = found.sel(scalar="tangent_norm")
    assert np.isnan([one["rate"].item(), one["late_rate"].item(), one["limit"].item()]).all()
    assert one["status"].item() == "no decay: tangent_norm is at its limit, 0, already"
    assert isinstance(plots.relaxation(found, "tangent_norm"), Figure)


def test_where_a_walk_is_not_asymptotic_it_says_so(oja):
    flow, ds = oja
    # Started beside a saddle of R, a walk first seems to settle there.
    start = 1e-6 * flow.problem.theta0.clone()
    start[2] = flow.problem.theta0.norm()
    problem = gf.Problem.from_function(references.half_square, start)
    saddle = gf.RegularizingFlow(gf.LevelSet(problem), flow.regularizer)
    stopped = gf.walk(saddle, t_end=3.0, **FULL)
    found = relaxation.along(stopped, curvature=saddle)
    assert found["smallest_eigenvalue"].values[0] == pytest.approx(-2.0, abs=1e-3)
    assert np.isnan(found["predicted_rate"]).all()
    assert all("A has the eigenvalue -2" in v for v in found["verdict"].values)
    # Early on, one exponential does not hold.
    early = relaxation.along(ds.isel(step=ds["time"] < 3), start=0.0, scalars=["regularizer"])
    assert "drifts" in early["verdict"].item() or "unresolved" in early["verdict"].item()


def test_the_window_is_the_last_half_or_what_is_asked_for(oja):
    _, ds = oja
    assert relaxation.along(ds)["time"].values[0] >= 6
    late = relaxation.along(ds, start=9.0)
    assert late["time"].values[0] >= 9
    assert late.sizes["sample"] == int((ds["time"] >= 9).sum())
    with pytest.raises(InputError, match="begin earlier"):
        relaxation.along(ds, start=13.0)
    single = ds.isel(step=[0])
    with pytest.raises(InputError, match="ds holds 1 step, and a rate takes two or more; walk fur"):
        relaxation.along(single)


def test_the_dataset_explains_itself_and_can_be_kept(oja, tmp_path):
    _, ds = oja
    found = relaxation.along(ds)
    assert found.attrs["kind"] == "relaxation"
    assert all({"long_name", "units"} <= set(found[n].attrs) for n in found.variables)
    save_dataset(found, tmp_path / "found.nc")
    with xr.open_dataset(tmp_path / "found.nc") as again:
        assert again["verdict"].values.tolist() == found["verdict"].values.tolist()


def test_figures_of_what_was_fitted_and_what_was_not(oja):
    flow, ds = oja
    found = relaxation.along(ds, curvature=flow)
    figure = plots.relaxation(found, "regularizer")
    assert isinstance(figure, Figure)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["walk", "fit, rate 2", "smallest eigenvalue: 2"]
    assert figure.axes[0].get_yscale() == "log"
    refused = relaxation.along(ds, start=float(ds["time"][-3]))
    assert "too few points" in plots.relaxation(refused).axes[0].texts[0].get_text()
    with pytest.raises(InputError, match="no relaxation"):
        plots.relaxation(ds)


@pytest.mark.slow
def test_the_command_prints_keeps_and_draws(path, tmp_path, capsys):
    out = tmp_path / "found.nc"
    arguments = ["relaxation", str(path), "--scalar", "regularizer", "--from", "0.2"]
    assert cli.main([*arguments, "--out", str(out), "--figures", str(tmp_path)]) == terminal.DONE
    assert "regularizer" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert out.exists()
    assert cli.main([*arguments, "--out", str(out)]) == terminal.BAD_INPUT
    assert cli.main([*arguments[:-1], "99"]) == terminal.BAD_INPUT
    assert "begin earlier" in capsys.readouterr().err


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.99])
def test_an_interval_is_as_wide_as_students_t_on_both_sides(confidence):
    times = np.linspace(0, 3, 60)
    noise = np.random.default_rng(0).standard_normal(60)
    curve = 2 + np.exp(-times) + 0.01 * noise
    widths = []
    for level in (confidence, 0.95):
        found = exponentials.fit(times, curve, confidence=level)
        widths.append(np.log(found.rate_high[0] / found.rate_low[0]))
    # Three parameters are fitted.
    expected = student.ppf((1 + confidence) / 2, 57) / student.ppf(0.975, 57)
    assert widths[0] / widths[1] == pytest.approx(expected)


@pytest.mark.parametrize("rate", [1e-12, 1e-6, 1e-4, 1.9e-4, 1e-2])
def test_a_slow_decay_to_a_known_limit_has_its_own_rate(rate):
    t = np.linspace(0, 5, 50)
    one = exponentials.fit(t, 3 * np.exp(-rate * t), limit=0.0)
    assert one.status == exponentials.FITTED
    assert one.rate[0] == pytest.approx(rate, rel=1e-4)
    assert one.rate_low[0] <= rate * (1 + 1e-6)
    assert one.rate_high[0] >= rate * (1 - 1e-6)


@pytest.mark.parametrize("limit", [None, 0.0])
@pytest.mark.parametrize("value", [0.7, 1.0, 2.0, 3.3])
def test_a_constant_has_no_rate_whatever_its_rounding(limit, value):
    t = np.linspace(0, 5, 50)
    rounded = value * (1 + np.finfo(float).eps * np.random.default_rng(0).integers(-2, 3, 50))
    for curve in (np.full(50, value), rounded):
        assert exponentials.fit(t, curve, limit=limit).status == "no decay: the curve is constant"


def test_noise_about_a_constant_above_a_known_limit_has_a_rate_hardly_ever():
    t, fitted = np.linspace(0, 5, 50), 0
    for seed in range(200):
        noise = np.random.default_rng(seed).standard_normal(50)
        one = exponentials.fit(t, 3 * (1 + 1e-6 * noise), limit=0.0)
        fitted += one.status == exponentials.FITTED
    assert fitted <= 4


def test_what_stays_above_a_known_limit_has_no_slowest_rate():
    t = np.linspace(0, 5, 50)
    one = exponentials.fit(t, 1 + np.exp(-3 * t), limit=0.0, n_terms=2)
    assert one.status == "unresolved: the slowest rate is too small to be told from zero"


@pytest.mark.parametrize("scale", [1e-310, 1e-300, 1e300])
def test_rates_do_not_depend_on_the_size_of_the_curve(scale):
    t = np.linspace(0, 5, 50)
    for limit, shift in ((None, 2.0), (0.0, 0.0)):
        one = exponentials.fit(t, scale * (shift + 3 * np.exp(-1.5 * t)), limit=limit)
        assert one.rate[0] == pytest.approx(1.5, rel=1e-6)
        assert one.amplitude[0] / scale == pytest.approx(3, rel=1e-6)


def test_a_fall_over_more_than_a_float_can_square_has_its_rate():
    t = np.linspace(0, 5, 200)
    one = exponentials.fit(t, np.exp(690 - 200 * t), limit=0.0)
    assert one.status == "no decay: the first sample alone stands out"
    t = np.linspace(0, 5, 2000)
    assert exponentials.fit(t, np.exp(690 - 200 * t), limit=0.0).rate[0] == pytest.approx(200)


@pytest.mark.parametrize("limit", [None, 0.0])
def test_the_jacobian_is_that_of_the_curve_by_its_parameters(limit):
    t = np.linspace(1, 4, 60)

    def curve(log_rate, amplitude, end):
        return amplitude * np.exp(-np.exp(log_rate) * (t - 1)) + end

    at = np.array([np.log(1.5), 300.0, 200.0 if limit is None else 0.0])
    one = exponentials.fit(t, curve(*at), limit=limit)
    assert one.jacobian.shape == (60, 3 if limit is None else 2)
    for k in range(one.jacobian.shape[1]):
        step = 1e-5 * np.eye(3)[k] * np.maximum(1, np.abs(at))
        ahead, behind = curve(*(at + step)), curve(*(at - step))
        if limit is None:
            expected = (ahead - behind) / (2 * step[k])
        else:
            # By log r and log a.
            by = step[k] / at[k] if k else step[k]
            expected = (np.log(ahead) - np.log(behind)) / (2 * by)
        assert np.allclose(one.jacobian[:, k], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("limit", [-np.inf, np.nan, -1.7e308])
def test_a_limit_that_no_float_is_apart_from_the_curve_is_refused(limit):
    with pytest.raises(InputError, match=r"limit=.*; use a number whose distance from values"):
        exponentials.fit(times(), 1e308 * np.exp(-times()), limit=limit)


def slow(strength):
    """R = ½ε(x₁² + x₂²) + ½x₀ on L = (x₀ − 1)²; or R = εx₁ + ½x₀, whose ‖Π∇R‖ is constant."""
    start = torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda x: (x[0] - 1) ** 2 + 0 * x.sum(), start)

    def regularizer(x):
        if strength >= 1:
            return strength * x[1] + 0.5 * x[0]
        return 0.5 * strength * (x[1] ** 2 + x[2] ** 2) + 0.5 * x[0]

    return gf.RegularizingFlow(gf.LevelSet(problem), regularizer)


def test_a_short_walk_near_its_end_relaxes_at_the_eigenvalue_or_not_at_all():
    flow = slow(1e-3)
    ds = gf.walk(flow, stop=None, t_end=0.1, solver="rk4:step_size=0.005")
    found = relaxation.along(ds, start=0.0, curvature=flow).sel(scalar="tangent_norm")
    assert found["rate"].item() == pytest.approx(1e-3, rel=1e-6)
    assert found["predicted_rate"].item() == pytest.approx(1e-3, rel=1e-6)
    assert found["verdict"].item() == "fitted; agrees with the smallest eigenvalue of A"
    for strength in (1.0, 2.0, 3.3):
        ds = gf.walk(slow(strength), stop=None, t_end=5.0, solver="rk4:step_size=0.1")
        found = relaxation.along(ds, start=0.0).sel(scalar="tangent_norm")
        assert found["status"].item() == "no decay: the curve is constant"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_terms": "2"}, "n_terms='2'; give a whole number"),
        ({"n_terms": None}, "n_terms=None; give a whole number"),
        ({"n_terms": 2.0}, "n_terms=2.0; give a whole number"),
        ({"n_terms": True}, "n_terms=True; give a whole number"),
        ({"n_terms": 0}, "n_terms=0; use 1 or 2"),
        ({"n_terms": 3}, "n_terms=3; use 1 or 2"),
        ({"confidence": "x"}, "confidence='x'; give a real number"),
        ({"confidence": 2}, "confidence=2.0; use a number between 0 and 1"),
        ({"confidence": np.nan}, "confidence=nan; use a number between 0 and 1"),
    ],
)
def test_arguments_are_checked_where_no_curve_is_fitted_too(arguments, message, oja):
    at_rest = oja[1].copy(deep=True)
    at_rest["tangent_norm"][-1] = 0
    with pytest.raises(InputError, match=message):
        relaxation.along(at_rest, scalars=["tangent_norm"], **arguments)
