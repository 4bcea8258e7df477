"""A path's archive: streamed, gone on with, validated."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.archive import pieces, seal
from geoflow.errors import ArchiveError
from geoflow.trajectories import path_schema

LEVELS = (1.2, 1.5, 2.0, 3.0)


def _loss(theta):
    scales = torch.logspace(0, 2, theta.numel(), dtype=theta.dtype)
    return (scales * (theta - 1) ** 2).mean() + 0.05 * (theta**4).mean() + 0.1


def _flow(n=6, level=0.5):
    problem = gf.Problem.from_function(_loss, torch.full((n,), 1.3, dtype=torch.float64))
    return gf.RegularizingFlow(gf.LevelSet(problem, level), gf.regularizers.squared_norm)


class _Counting:
    """An observable that is interrupted at its n-th value."""

    def __init__(self, until=10**9, error=KeyboardInterrupt):
        self.until, self.error, self.n = until, error, 0

    def __call__(self, theta):
        self.n += 1
        # The first is the check of the arguments.
        if self.n > self.until + 1:
            raise self.error
        return float(theta.sum())


def _path(archive=None, levels=LEVELS, observable=None, flow=None, **options):
    observables = {"total": observable or _Counting()}
    return gf.regularization_path(
        flow or _flow(), levels, observables=observables, archive=archive, **options
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    file = tmp_path_factory.mktemp("path") / "path.nc"
    _path(file).close()
    return file


def _same(a, b):
    return [d for d in gf.diff(a, b) if not d.agrees]


@pytest.mark.parametrize("points", [1, 2, 4])
def test_a_path_that_was_cut_off_becomes_what_it_would_have_been(tmp_path, written, points):
    file = tmp_path / "path.nc"
    with pytest.raises(KeyboardInterrupt):
        _path(file, observable=_Counting(points))
    assert not file.exists()
    assert pieces.are_kept(file)
    flow = _flow()
    before = flow.problem.counts["gradient"]
    with _path(file, flow=flow) as ds, gf.open_path(written) as whole:
        assert not _same(whole, ds)
        spent = flow.problem.counts["gradient"] - before
        saved = int(whole["n_gradient"][points - 1])
        # Those of the points that are kept, one each, and of those that were missing.
        assert spent == int(whole["n_gradient"][-1]) - saved + points
    assert not pieces.are_kept(file)


def test_whole_numbers_are_as_good_as_floats_and_the_path_is_written(tmp_path):
    flow = _flow()
    path = gf.regularization_path(flow, [1, 2], degrees=150, archive=tmp_path / "path.nc")
    assert path.attrs["degrees"] == 150.0
    assert path["level"].values[1:].tolist() == [1.0, 2.0]
    assert gf.validate(tmp_path / "path.nc") == []
    path.close()


def test_nothing_is_left_where_no_point_was_reached(tmp_path):
    file = tmp_path / "path.nc"
    with pytest.raises(KeyboardInterrupt):
        _path(file, observable=_Counting(0))
    assert list(tmp_path.iterdir()) == []


def test_another_path_does_not_take_up_what_is_kept(tmp_path):
    file = tmp_path / "path.nc"
    with pytest.raises(KeyboardInterrupt):
        _path(file, observable=_Counting(2))
    with pytest.raises(gf.InputError, match="other settings"):
        _path(file, levels=[1.2, 1.6])
    with pytest.raises(gf.InputError, match="other settings"):
        _path(file, flow=_flow(level=0.6))
    with _path(file, levels=[1.2, 1.6], overwrite=True) as ds:
        np.testing.assert_array_equal(ds["level"], [0.5, 1.2, 1.6])


@pytest.mark.parametrize("name", ["point-000001.nc", "memory-000001.npz"])
def test_what_is_kept_and_damaged_says_how_to_start_over(tmp_path, written, name):
    file = tmp_path / "path.nc"
    with pytest.raises(KeyboardInterrupt):
        _path(file, observable=_Counting(2))
    folder = pieces.folder_beside(file)
    last = folder / name
    last.write_bytes(last.read_bytes()[:100])
    for overwrite in (False, True):
        with pytest.raises(gf.ArchiveError) as refused:
            _path(file, overwrite=overwrite)
        assert f"{last.stem} of what is kept" in str(refused.value)
        assert f"remove the folder {folder} to start over" in str(refused.value)
    shutil.rmtree(folder)
    with _path(file) as ds, gf.open_path(written) as whole:
        assert not _same(whole, ds)


def test_settings_that_differ_are_said_to(tmp_path):
    file = tmp_path / "path.nc"
    with pytest.raises(KeyboardInterrupt):
        _path(file, observable=_Counting(2))
    with pytest.raises(gf.InputError, match=r"degrees: 175\.0, not 170\.0"):
        _path(file, degrees=170.0)
    with pytest.raises(gf.InputError, match=r"max_evaluations: \d+, not 1234"):
        _path(file, max_evaluations=1234)


def test_a_budget_that_is_spent_changes_no_file(tmp_path):
    file = tmp_path / "path.nc"
    _path(file).close()
    before = file.read_bytes()
    with pytest.raises(gf.InputError, match=r"max_evaluations=3: the path has spent \d+ already"):
        gf.resume_path(file, _flow(), [3.5], observables={"total": _Counting()}, max_evaluations=3)
    assert file.read_bytes() == before
    assert not pieces.are_kept(file)


def test_a_path_that_spent_its_budget_goes_on_with_a_larger_one_alone(tmp_path):
    file = tmp_path / "path.nc"
    with gf.open_path(_written(file)) as whole:
        budget = int(whole["n_gradient"][2]) + 1
    with _path(file, max_evaluations=budget, overwrite=True) as ds:
        assert ds.attrs["status"] == "max_evaluations"
    for given in (None, budget):
        with pytest.raises(gf.InputError, match=f"max_evaluations={budget}: .* allow more"):
            gf.resume_path(file, _flow(), observables={"total": _Counting()}, max_evaluations=given)
    more = {"observables": {"total": _Counting()}, "max_evaluations": np.int64(10 * budget)}
    with gf.resume_path(file, _flow(), **more) as ds:
        assert ds.attrs["status"] == "complete"
        assert set(ds["level"].values) == {0.5, *LEVELS}


def _written(file):
    _path(file).close()
    return file


def test_a_level_that_was_not_reached_and_is_not_asked_for_again_is_given_up(tmp_path):
    file = tmp_path / "path.nc"
    highest = float(_loss(torch.zeros(6, dtype=torch.float64)))
    with _path(file, levels=[1.2, 2 * highest, 1.5]) as ds:
        assert ds.attrs["status"] not in ("complete", "max_evaluations")
    options = {"observables": {"total": _Counting()}}
    with gf.resume_path(file, _flow(), np.array([1.5]), **options) as ds:
        assert ds["level"].values.tolist() == [0.5, 1.2, 1.5]
        assert ds.attrs["status_message"] == "all 2 levels were reached"
        assert json.loads(ds.attrs["config"])["levels"] == [1.2, 1.5]
    assert gf.validate(file) == []
    with pytest.raises(gf.InputError, match="levels="):
        gf.resume_path(file, _flow(), np.array(1.0), **options)


def test_without_an_archive_an_interrupted_path_is_returned():
    ds = _path(observable=_Counting(2))
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["level"] == 2


def test_an_observable_that_fails_ends_the_path_and_its_points_are_kept(tmp_path):
    with _path(tmp_path / "path.nc", observable=_Counting(3, ValueError)) as ds:
        assert ds.attrs["status"] == "observable_failed"
        assert ds.sizes["level"] == 3
    assert gf.validate(tmp_path / "path.nc") == []


@pytest.mark.parametrize("error", [ValueError, ArchiveError("of a file of the user's own")])
def test_without_an_archive_a_path_that_fails_is_returned(error):
    ds = _path(observable=_Counting(3, error))
    assert ds.attrs["status"] == "observable_failed"
    assert ds.sizes["level"] == 3


@pytest.mark.parametrize("raised", [ValueError, ArchiveError])
def test_a_path_in_memory_outlives_what_its_regulariser_raises(raised):
    reached = []

    def regularizer(theta):
        if len(reached) > 1:
            raise raised("of the user's own")
        return (theta * theta).sum()

    problem = gf.Problem.from_function(_loss, torch.full((6,), 1.3, dtype=torch.float64))
    flow = gf.RegularizingFlow(gf.LevelSet(problem, 0.5), regularizer)
    ds = gf.regularization_path(
        flow, LEVELS, observables={"total": lambda t: reached.append(1) or float(t.sum())}
    )
    assert "own" in ds.attrs["status_message"]
    assert ds.sizes["level"] == 1


def test_a_sound_file_has_no_defect(written):
    assert gf.validate(written) == []


def test_a_changed_byte_is_found(written, tmp_path):
    file = tmp_path / "path.nc"
    content = bytearray(written.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert gf.validate(file) == [seal.BROKEN]


@pytest.mark.parametrize(
    ("name", "index", "value", "defect"),
    [
        ("penalty", 1, 7.0, "penalty is not 1/multiplier"),
        ("kkt_residual", 1, 0.5, "kkt_residual is above that of 175 degrees"),
        ("angle", 1, 150.0, "kkt_residual is not the sine of the angle"),
        ("level_residual", 1, 0.5, "level_residual is not train_loss less the level"),
        ("n_gradient", 1, 0, "n_gradient falls"),
        ("theta", (2, 3), np.nan, "theta is not finite at level 2"),
        ("multiplier", 2, np.inf, "multiplier is not finite at level 2"),
        ("tensor_offset", 0, 3, "tensor_offset of tensor 0"),
    ],
)
def test_values_that_do_not_fit_are_named(written, tmp_path, name, index, value, defect):
    file = tmp_path / "path.nc"
    file.write_bytes(written.read_bytes())
    with netCDF4.Dataset(file, "a") as ds:
        ds.variables[name][index] = value
    seal.append(file)
    assert any(line.startswith(defect) for line in gf.validate(file))


@pytest.mark.parametrize(("name", "said"), [("level", "level_residual is not"), ("", "the first")])
def test_a_path_whose_levels_were_changed_is_not_gone_on_with(written, tmp_path, name, said):
    file = tmp_path / "path.nc"
    file.write_bytes(written.read_bytes()[: -seal.LENGTH])
    with netCDF4.Dataset(file, "a") as ds:
        if name:
            ds.variables[name][1] *= 1.01
        else:
            ds.setncattr("level", 1.01 * ds.getncattr("level"))
    seal.append(file)
    before = file.read_bytes()
    assert len([line for line in gf.validate(file) if line.startswith(said)]) == 1
    with pytest.raises(gf.ArchiveError, match=said):
        gf.resume_path(file, _flow(), [0.05])
    assert file.read_bytes() == before


def test_a_residual_may_be_rounded_as_the_loss_is_wherever_it_is_looked_at(written, tmp_path):
    """Of a loss far above its level, one last place is more than 10⁻¹² of the level."""
    with gf.open_path(written) as ds:
        path = ds.load()
    loss, level = 5.0, 1e-5
    for off, said in ((np.spacing(loss), False), (1e-9, True)):
        changed = path.copy(deep=True)
        changed["train_loss"][1], changed["level_residual"][1] = loss, loss - level + off
        levels = np.where(np.arange(path.sizes["level"]) == 1, level, path["level"].values)
        changed = changed.assign_coords(level=("level", levels, path["level"].attrs))
        found = path_schema.inconsistencies(changed)
        assert ("level_residual is not train_loss less the level" in found) == said
        assert path_schema.level_defects(changed) == found


def test_a_walk_is_no_path_and_a_path_no_walk(written, tmp_path):
    gf.walk(_flow(), archive=tmp_path / "walk.nc").close()
    with pytest.raises(gf.ArchiveError, match=r"it is a walk, which gf.open_trajectory opens"):
        gf.open_path(tmp_path / "walk.nc")
    with pytest.raises(
        gf.ArchiveError, match=r"is a regularisation path, which gf.open_path opens"
    ):
        gf.open_trajectory(written)


@pytest.mark.parametrize("extended", [False, True])
def test_points_of_another_number_of_threads_are_kept_and_not_gone_on_with(tmp_path, extended):
    file = tmp_path / "path.nc"
    cut = {"total": _Counting(1)}
    if extended:
        _path(file, LEVELS[:1]).close()
        go = functools.partial(gf.resume_path, file, _flow(), levels=LEVELS[1:])
    else:
        go = functools.partial(gf.regularization_path, _flow(), LEVELS, archive=file)
    with pytest.raises(KeyboardInterrupt):
        go(observables=cut)
    kept = {p: p.read_bytes() for p in pieces.folder_beside(file).glob("*.*")}
    assert len(kept) >= 2
    threads, observables = torch.get_num_threads(), {"total": _Counting()}
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(gf.InputError, match=rf"threads={threads}, and torch has"):
            gf.resume_path(file, _flow(), observables=observables)
    finally:
        torch.set_num_threads(threads)
    assert kept == {p: p.read_bytes() for p in kept}
    with gf.resume_path(file, _flow(), observables=observables) as ds:
        assert ds.attrs["status"] == "complete"


def test_a_path_keeps_its_absolute_tolerance_and_goes_on_with_that_alone(tmp_path):
    file = tmp_path / "path.nc"

    def loose(level_atol):
        level_set = gf.LevelSet(_flow().problem, 0.5, level_atol=level_atol)
        return gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)

    with _path(file, LEVELS[:2], flow=loose(1e-3)) as ds:
        assert (abs(ds["level_residual"]) <= 1e-3 + 1e-6 * ds["level"]).all()
        assert (abs(ds["level_residual"]) > 1e-6 * ds["level"]).any()
    observables = {"total": _Counting()}
    for other in (0.0, 1e-4):
        with pytest.raises(gf.InputError, match=rf"level_atol is {other}, the path's is 0.001"):
            gf.resume_path(file, loose(other), levels=[3.0], observables=observables)
    with gf.resume_path(file, loose(1e-3), levels=[3.0], observables=observables) as ds:
        assert ds.sizes["level"] == 4
    assert not gf.validate(file)


KILLED = """
import os, signal, sys
import torch
sys.path.insert(0, {folder!r})
from test_path_archive import _path

class Killing:
    n = 0
    def __call__(self, theta):
        self.n += 1
        if self.n > 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(theta.sum())

torch.set_num_threads({threads})
_path({file!r}, observable=Killing())
"""


def test_a_process_that_is_killed_loses_no_more_than_the_point_in_progress(tmp_path, written):
    file = tmp_path / "path.nc"
    script = KILLED.format(
        folder=str(Path(__file__).parent), file=str(file), threads=torch.get_num_threads()
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    kept = sorted(part.name for part in pieces.folder_beside(file).glob("point-*.nc"))
    assert kept == ["point-000000.nc", "point-000001.nc"]
    observable = _Counting()
    with _path(file, observable=observable) as ds, gf.open_path(written) as whole:
        assert not _same(whole, ds)
    # The check of the arguments, that of the last point that was kept, and the points missing.
    assert observable.n == 2 + whole.sizes["level"] - 2


def _of(loss=_loss, regularizer=gf.regularizers.squared_norm, n=6):
    problem = gf.Problem.from_function(loss, torch.full((n,), 1.3, dtype=torch.float64))
    return gf.RegularizingFlow(gf.LevelSet(problem, 0.5), regularizer)


def _other_loss(theta):
    return _loss(theta) + 0.01 * theta.sum()


def _named(function, name="squared_norm"):
    function.__name__ = function.__qualname__ = name
    return function


def _as_named(regularizer):
    """A flow down another R of the same name as that of the path."""
    flow = _of(regularizer=regularizer)
    name = gf.regularizers.squared_norm
    assert flow.regularizer_name == _of(regularizer=name).regularizer_name
    return flow


def _another_gradient(points):
    """R of the path's name and, at the points, of its value, with another gradient."""

    def squared_norm(theta):
        away = [theta[0] - float(point[0]) for point in points]
        return gf.regularizers.squared_norm(theta) + torch.stack(away).prod()

    return squared_norm


OTHERS = [
    (lambda _: _of(_other_loss), "flow: the loss is .* on the level 0.5; go on with"),
    (
        lambda _: _as_named(_named(lambda t: 2 * t.square().sum())),
        "flow: the regularisation function is .* was recorded",
    ),
    (lambda points: _as_named(_another_gradient(points)), "flow: the multiplier is"),
    (
        lambda _: _of(n=7),
        r"flow: its network's tensors are not .* \(\['theta', \[7\]\] and \['theta', \[6\]\]\)",
    ),
]


@pytest.mark.parametrize(("flow", "message"), OTHERS)
@pytest.mark.parametrize("cut", [False, True])
def test_a_path_goes_on_only_with_what_it_began_with(tmp_path, written, cut, flow, message):
    file, options = tmp_path / "path.nc", {"observables": {"total": _Counting()}}
    with gf.open_path(written) as ds:
        points = ds["theta"].values
    if cut:
        with pytest.raises(KeyboardInterrupt):
            _path(file, observable=_Counting(2))
        points = points[:1]
    else:
        file.write_bytes(written.read_bytes())
        options["levels"] = [4.0]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises((gf.ArchiveError, gf.InputError), match=message):
        gf.resume_path(file, flow(points), **options)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert pieces.are_kept(file) == cut
    with gf.resume_path(file, _flow(), **options) as ds:
        assert ds.attrs["status"] == "complete"
        if cut:
            with gf.open_path(written) as whole:
                assert not _same(whole, ds)


def test_what_is_kept_of_another_loss_is_not_taken_for_ones_own(tmp_path):
    file = tmp_path / "path.nc"
    with pytest.raises(KeyboardInterrupt):
        _path(file, observable=_Counting(2))
    folder = pieces.folder_beside(file)
    with pytest.raises(gf.ArchiveError, match=f"the loss is .* remove the folder {folder}"):
        _path(file, flow=_of(_other_loss), overwrite=True)


LEFT_OUT = "left out"
CONFIGS = [
    *(({"levels": x}, "levels") for x in (LEFT_OUT, None, -1, "abc", [None], 1e308, {}, [])),
    *(({"levels": x}, "levels") for x in ([float("inf")], [10**400], [0.0], [True], [1.2, 1.2])),
    *(({"smallest_eigenvalue": x}, "smallest_eigenvalue") for x in (LEFT_OUT, "abc", 1, True)),
    *(({"observables": x}, "observables") for x in (LEFT_OUT, None, "total", [], ["other"])),
    *(({"max_evaluations": x}, "max_evaluations") for x in (LEFT_OUT, None, 0, "9", 1.5, True)),
    *(({"threads": x}, "threads") for x in (LEFT_OUT, 0)),
    *(({"degrees": x}, "degrees") for x in (LEFT_OUT, 174.0, None)),
    *(({"provenance": x}, "provenance") for x in (LEFT_OUT, [])),
    *(({"degrees": x}, "attribute degrees") for x in (300.0, float("nan"))),
]


def _with(config, change):
    config = json.loads(config) | change
    return json.dumps({name: value for name, value in config.items() if value != LEFT_OUT})


@pytest.mark.parametrize(("change", "message"), CONFIGS)
def test_a_path_whose_settings_cannot_be_used_is_not_gone_on_with(
    tmp_path, written, change, message
):
    file = tmp_path / "path.nc"
    file.write_bytes(written.read_bytes()[: -seal.LENGTH])
    with netCDF4.Dataset(file, "a") as ds:
        ds.setncattr("config", _with(ds.getncattr("config"), change))
        if message.startswith("attribute"):
            ds.setncattr("degrees", change["degrees"])
    seal.append(file)
    before = file.read_bytes()
    assert any(message in line for line in gf.validate(file)), gf.validate(file)
    options = {"levels": [4.0], "observables": {"total": _Counting()}}
    with pytest.raises(gf.ArchiveError, match=message):
        gf.resume_path(file, _flow(), **options)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


SETTINGS = [
    ("x", "settings.json is not what an analysis keeps, remove its folder to start over"),
    ("[1]", "settings.json is not what an analysis keeps, remove its folder to start over"),
    ('{"geoflow_path": 1}', "settings.json is not of a path: attribute geoflow_path is 1"),
    ('{"geoflow_path": 1, "config": "{}"}', "settings.json is not of a path: attribute"),
    ({"status": "complete"}, "attribute status is there already; remove its folder"),
    ({"level": "0.5"}, "attribute level is not of type float; remove its folder"),
    ({"config": "{}"}, r"its config has no 'observables'; remove the folder .*path\.nc\.pieces"),
    ({"tensors": None}, "its tensors are no list; remove its folder"),
    ({"tensors": [3]}, r"flow: its network's tensors are not .* \(\['theta', \[6\]\] and 3\)"),
]


@pytest.mark.parametrize(("content", "message"), SETTINGS)
def test_kept_settings_that_cannot_be_used_are_said_to_be_so(tmp_path, content, message):
    file = tmp_path / "path.nc"
    with pytest.raises(KeyboardInterrupt):
        _path(file, observable=_Counting(2))
    settings = pieces.folder_beside(file) / pieces.SETTINGS
    if not isinstance(content, str):
        content = json.dumps(json.loads(settings.read_text()) | content)
    settings.write_text(content)
    with pytest.raises((gf.ArchiveError, gf.InputError), match=message) as refused:
        gf.resume_path(file, _flow(), observables={"total": _Counting()})
    assert len(str(refused.value).splitlines()) == 1
    assert settings.read_text() == content


@pytest.mark.parametrize("size", [0, 4])
def test_a_theta_that_the_tensors_do_not_fill_is_not_opened(tmp_path, written, size):
    file = tmp_path / "path.nc"
    with gf.open_path(written) as ds:
        ds.load().isel(parameter=slice(size)).to_netcdf(file)
    with pytest.raises(gf.ArchiveError, match=f"the tensors hold 6 parameters, theta {size}"):
        gf.open_path(file)
