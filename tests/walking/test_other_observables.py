"""An observable of the same name is taken up only where its values are those recorded."""

import itertools
import math

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.analysis.landscape import slices
from geoflow.archive import parts, pieces
from geoflow.errors import ArchiveError
from geoflow.walking import resuming
from geoflow.walking.stream import Stream

SETTINGS = {"stop": None, "t_end": 0.3, "rtol": 1e-4}


def flow(dtype=torch.float64):
    theta0 = torch.tensor([1.0, 0.5, 0.6], dtype=dtype)
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=dtype)
    problem = gf.Problem.from_function(lambda t: (weights * (t - 1) ** 2).sum(), theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


def first(theta):
    return float(theta[0])


def other(theta):
    return float(theta[0] + 1e-3)


@pytest.fixture
def walked(tmp_path):
    path = tmp_path / "walk.nc"
    gf.walk(flow(), archive=path, observables={"o": first}, **SETTINGS).close()
    return path


def further(path, function, of=None):
    with gf.resume(path, of or flow(), t_end=0.6, observables={"o": function}) as ds:
        return ds.load()


def test_a_walk_goes_on_with_the_function_that_it_had_alone(walked, tmp_path):
    before = walked.read_bytes()
    with pytest.raises(ArchiveError, match=r"observables\['o'\] is .* where .* was recorded; go"):
        further(walked, other)
    assert walked.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [walked.name]
    ds = further(walked, first)
    assert np.array_equal(ds["o"], ds["theta"][:, 0])


def test_so_does_one_that_was_cut_off(tmp_path, monkeypatch):
    path, accepted = tmp_path / "walk.nc", Stream.accepted

    def dying(self, checkpoint):
        self.interval = 0
        accepted(self, checkpoint)
        if self.n_steps == 4:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "accepted", dying)
        with pytest.raises(SystemExit):
            gf.walk(flow(), archive=path, observables={"o": first}, **SETTINGS)
    with pytest.raises(ArchiveError, match=r"observables\['o'\] is .* where .* was recorded"):
        gf.resume(path, flow(), observables={"o": other})
    assert parts.is_resumable(path)
    with gf.resume(path, flow(), observables={"o": first}) as ds:
        whole = gf.walk(flow(), observables={"o": first}, **SETTINGS)
        assert np.array_equal(ds["o"], whole["o"])
        assert np.array_equal(ds["theta"], whole["theta"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kept", [pytest.param(None, marks=pytest.mark.slow), "float32"])
def test_rounding_is_no_other_function(dtype, kept, tmp_path):
    """Of θ that is kept in float32, of numbers that cancel, and of steps."""
    level = flow(dtype).level_set.level
    same = {
        "o": lambda t: float((t * t).sum()),
        "cancelled": lambda t: float(flow(dtype).problem.loss(t)) - level,
        "share": lambda t: float((t.repeat(100) > 0.1).double().mean()),
    }
    rounded = {
        "o": lambda t: same["o"](t) * (1 + 10 * torch.finfo(dtype).eps),
        "cancelled": lambda t: same["cancelled"](t) + torch.finfo(dtype).eps * level,
        "share": same["share"],
    }
    path = tmp_path / "walk.nc"
    settings = {**SETTINGS, "theta_dtype": kept}
    gf.walk(flow(dtype), archive=path, observables=same, **settings).close()
    gf.resume(path, flow(dtype), t_end=0.6, observables=rounded).close()
    for name in ("o", "share"):
        with pytest.raises(ArchiveError, match=rf"observables\['{name}'\] is .* was recorded"):
            gf.resume(path, flow(dtype), t_end=0.9, observables={**same, name: lambda t: 0.123})


def test_a_function_is_compared_where_it_was_measured(tmp_path):
    """Not where θ has been rounded to, which changes the logarithm of nothing by hundreds."""
    loss, level = flow().problem.loss, flow().level_set.level

    def digits(theta):
        return math.log10(abs(float(loss(theta)) - level) + 1e-300)

    path = tmp_path / "walk.nc"
    # The start is on the level set to the last bit.
    settings = {**SETTINGS, "t_end": 1e-9, "max_evaluations": 1, "theta_dtype": "float32"}
    with gf.walk(flow(), archive=path, observables={"o": digits}, **settings) as ds:
        assert ds["o"][-1] == -300
    with pytest.raises(ArchiveError, match="was recorded"):
        gf.resume(path, flow(), max_evaluations=100, observables={"o": lambda t: 0.123})
    gf.resume(path, flow(), max_evaluations=100, observables={"o": digits}).close()


def test_noise_is_taken_as_it_is(walked, tmp_path):
    draws = np.random.default_rng(0)
    path = tmp_path / "noisy.nc"

    def noisy(theta):
        return draws.normal()

    gf.walk(flow(), archive=path, observables={"o": noisy}, **SETTINGS).close()
    for t_end in (0.6, 0.9, 1.2):
        gf.resume(path, flow(), t_end=t_end, observables={"o": noisy}).close()


def test_what_cannot_be_evaluated_or_was_not_is_not_compared(walked, tmp_path):
    calls = itertools.count()

    def fails(theta):
        # At each snapshot that is compared, and later in the walk.
        if next(calls) in (*range(resuming.COMPARED), 7, 8):
            raise RuntimeError("no data")
        return first(theta)

    ds = further(walked, fails)
    assert ds.attrs["status"] == "observable_failed"
    # Where the last one is unknown, the one before it is compared.
    late = tmp_path / "late.nc"
    known = float(ds["theta"][1, 0])

    def unknown_later(theta):
        return first(theta) if theta[0] >= known else math.nan

    with gf.walk(flow(), archive=late, observables={"o": unknown_later}, **SETTINGS) as ds:
        assert math.isnan(ds["o"][-1])
        assert not math.isnan(ds["o"][1])
    with pytest.raises(ArchiveError, match="was recorded"):
        further(late, other)
    further(late, first)
    never = tmp_path / "never.nc"
    gf.walk(flow(), archive=never, observables={"o": lambda t: math.nan}, **SETTINGS).close()
    further(never, first)


def test_a_walk_without_a_snapshot_or_an_observable_goes_on(tmp_path):
    path, none = tmp_path / "walk.nc", tmp_path / "none.nc"
    settings = {**SETTINGS, "snapshot_times": [0.2], "max_evaluations": 6}
    with gf.walk(flow(), archive=path, observables={"o": first}, **settings) as ds:
        assert ds.sizes["snapshot"] == 0
    gf.resume(path, flow(), max_evaluations=300, observables={"o": other}).close()
    gf.walk(flow(), archive=none, **SETTINGS).close()
    gf.resume(none, flow(), t_end=0.6).close()


def test_the_comparison_costs_the_walk_nothing(walked, tmp_path):
    at_once = gf.walk(flow(), observables={"o": first}, **{**SETTINGS, "t_end": 0.6})
    problem = flow()
    costly = gf.walk(
        problem,
        observables={"o": lambda t: float(problem.problem.loss(t))},
        archive=tmp_path / "costly.nc",
        stop=None,
        t_end=10.0,
        max_evaluations=20,
    )
    costly.close()
    for limit in (30, 40):
        problem = flow()
        function = {"o": lambda t, of=problem: float(of.problem.loss(t))}
        path = tmp_path / "costly.nc"
        with gf.resume(path, problem, observables=function, max_evaluations=limit) as ds:
            assert int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1]) <= limit
            whole = gf.walk(flow(), stop=None, t_end=10.0, max_evaluations=limit)
            assert np.array_equal(ds["n_gradient"], whole["n_gradient"])
            assert np.array_equal(ds["theta"][-1], whole["theta"][-1])
    assert at_once.sizes["snapshot"] > 2


def path_of(file, levels, function, **more):
    return gf.regularization_path(flow(), levels, 179.0, {"o": function}, file, **more)


def test_so_is_a_path_that_is_extended_or_was_cut_off(tmp_path):
    done, cut = tmp_path / "done.nc", tmp_path / "cut.nc"
    level = flow().level_set.level
    path_of(done, [2 * level], first).close()
    before = done.read_bytes()
    with pytest.raises(ArchiveError, match=r"observables\['o'\] is .* was recorded on the level"):
        gf.resume_path(done, flow(), [3 * level], observables={"o": other})
    assert done.read_bytes() == before
    gf.resume_path(done, flow(), [3 * level], observables={"o": first}).close()

    calls = itertools.count()

    def interrupted(theta):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return first(theta)

    levels = [2 * level, 3 * level]
    with pytest.raises(KeyboardInterrupt):
        path_of(cut, levels, interrupted)
    folder = pieces.folder_beside(cut)
    assert len(list(folder.glob("point-*.nc"))) == 2
    for again in (
        lambda: path_of(cut, levels, other),
        lambda: gf.resume_path(cut, flow(), observables={"o": other}),
    ):
        with pytest.raises(ArchiveError, match=rf"was recorded .* or remove the folder {folder}"):
            again()
    with path_of(cut, levels, first) as ds:
        whole = path_of(None, levels, first)
        assert np.array_equal(ds["theta"], whole["theta"])
        assert np.array_equal(ds["o"], whole["o"])


def test_so_is_a_slice_that_was_cut_off(tmp_path):
    ds = gf.walk(flow(), **SETTINGS)
    file = tmp_path / "slice.nc"
    calls = itertools.count()

    def interrupted(theta):
        if next(calls) == 2 * ds.sizes["snapshot"] + 5:
            raise KeyboardInterrupt
        return first(theta)

    arguments = {"points": 4, "archive": file}
    with pytest.raises(KeyboardInterrupt):
        slices.on_plane(ds, flow(), observables={"o": interrupted}, **arguments)
    with pytest.raises(ArchiveError, match=r"observables\['o'\] is .* remove the folder .*pieces"):
        slices.on_plane(ds, flow(), observables={"o": other}, **arguments)
    found = slices.on_plane(ds, flow(), observables={"o": first}, **arguments)
    whole = slices.on_plane(ds, flow(), observables={"o": first}, points=4)
    assert np.array_equal(found["o"], whole["o"])


def test_one_that_takes_few_values_is_compared_at_several_snapshots(tmp_path):
    path = tmp_path / "walk.nc"
    middle = float(gf.walk(flow(), **SETTINGS)["theta"][:, 1].median())

    def coarse(theta):
        return float(theta[1] > middle)

    with gf.walk(flow(), archive=path, observables={"o": coarse}, **SETTINGS) as ds:
        values = ds["o"].values
    assert set(values) == {0.0, 1.0}
    for constant in values[[0, -1]].tolist():
        with pytest.raises(ArchiveError, match=r"observables\['o'\] is .* was recorded"):
            further(path, lambda theta, c=constant: c)
    ds = further(path, coarse)
    assert np.array_equal(ds["o"], ds["theta"][:, 1] > middle)
