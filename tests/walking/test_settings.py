import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import geoflow as gf
import references
from geoflow.cli import parser
from geoflow.errors import InputError
from geoflow.walking.recorder import Memory
from geoflow.walking.settings import DEFAULTS, OPTIONS, WalkSettings

positive = st.floats(1e-6, 1e6)
rising = st.lists(positive, min_size=1, unique=True).map(sorted)
kept = st.one_of(
    st.fixed_dictionaries({"max_snapshots": st.integers(2, 10**6)}),
    st.fixed_dictionaries({"snapshot_every": positive}),
    st.fixed_dictionaries({"snapshot_times": rising}),
)
settings = st.fixed_dictionaries(
    {},
    optional={
        "solver": st.sampled_from([n for n in gf.solvers.names() if n != "cvode"]),
        "rtol": st.floats(1e-12, 1),
        "atol": st.floats(0, 1),
        "t_end": st.none() | positive,
        "stop": st.none() | st.floats(91, 179).map(gf.Stationary) | positive.map(gf.Plateau),
        "max_evaluations": st.none() | st.integers(1, 10**9),
        "theta_dtype": st.sampled_from([None, "float32", "float64"]),
    },
)


@given(settings, kept)
def test_json_gives_the_settings_back(a, b):
    written = WalkSettings(**a, **b)
    assert WalkSettings.from_config(json.loads(json.dumps(written.config))) == written
    assert eval(repr(written)) == written


@pytest.mark.parametrize("function", [gf.walk, gf.sweep])
def test_every_setting_has_its_one_default_in_python(function):
    parameters = inspect.signature(function).parameters
    for name in vars(DEFAULTS):
        assert parameters[name].default is getattr(DEFAULTS, name), name
        assert name in OPTIONS


@pytest.mark.parametrize(
    "command", [["run", "iris_ff"], ["sweep", "iris_ff", "--seeds=0", "--out=x"]]
)
def test_every_setting_has_its_option_and_no_other_default(command):
    given = vars(parser._parser(command).parse_args(command))
    assert {name: given[name] for name in OPTIONS} == dict.fromkeys(OPTIONS)
    assert {setting for setting, _ in OPTIONS.values()} == set(vars(DEFAULTS))
    assert DEFAULTS.changed() == DEFAULTS
    # A solver keeps its own time between re-projections.
    assert set(DEFAULTS.config) == set(vars(DEFAULTS)) - {"reproject_every"}


def test_configs_written_earlier_are_read():
    data = Path(__file__).parents[1] / "data"
    # A path's file has levels, and no settings of a walk.
    paths = sorted(path for path in data.rglob("*.nc") if not path.match("path-*.nc"))
    assert paths
    for path in paths:
        with xr.open_dataset(path) as ds:
            config = json.loads(ds.attrs["config"])
        now = WalkSettings.from_config(config).config
        assert now == {name: config[name] for name in now}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rtol": "x"}, "rtol='x'"),
        ({"max_evaluations": 1.5}, "max_evaluations=1.5"),
        ({"theta_dtype": "float16"}, "theta_dtype='float16'"),
        ({"snapshot_times": 3}, "snapshot_times=3"),
        ({"solver": 3}, "solver=3"),
        ({"stop": 3}, "stop=3"),
    ],
)
def test_bad_values_are_refused_by_name(bad, message):
    with pytest.raises(InputError, match=message):
        WalkSettings(**bad)


def test_as_many_evaluations_as_a_whole_number_of_the_machine_are_allowed(network):
    """The usual way to say that there is no limit; no float holds it."""
    assert WalkSettings(max_evaluations=sys.maxsize).goals().max_evaluations == 2**63 - 1
    ds = gf.walk(network, t_end=0.01, max_evaluations=sys.maxsize)
    assert json.loads(ds.attrs["config"])["max_evaluations"] == sys.maxsize
    with pytest.raises(InputError, match=r"max_evaluations=\d+\D*\d+; use a whole number below"):
        WalkSettings(max_evaluations=2**63)
    levels = [0.99 * network.level_set.level]
    with pytest.raises(InputError, match=r"max_evaluations=\d+\D*\d+; use a whole number below"):
        gf.regularization_path(network, levels, max_evaluations=2**63)
    assert WalkSettings(max_evaluations=10.0) == WalkSettings(max_evaluations=np.int32(10))


@pytest.mark.parametrize("recorder", [3, Memory, object()])
def test_what_is_no_recorder_is_named_with_what_it_lacks(network, recorder):
    with pytest.raises(InputError, match=r"recorder=.* is a \w+( without|, no instance)"):
        gf.walk(network, t_end=0.1, recorder=recorder)


@pytest.mark.parametrize(
    "complex_number",
    [{name: np.complex128(1 + 2j)} for name in ("rtol", "t_end", "max_evaluations")]
    + [{"snapshot_times": np.array([0.5 + 1j])}, {"snapshot_every": 1 + 0j}],
)
def test_complex_numbers_are_refused(complex_number):
    (name,) = complex_number
    with pytest.raises(InputError, match=name):
        WalkSettings(**complex_number)


def test_times_beyond_the_end_keep_no_snapshot(network, tmp_path):
    assert gf.walk(network, t_end=0.1, snapshot_times=[5.0, 6.0]).sizes["snapshot"] == 0
    # The end itself is no time beyond it, and a walk that has later ones too goes on to them.
    path = tmp_path / "walk.nc"
    settings = {"stop": None, "snapshot_times": [0.1, 0.2], "archive": path}
    gf.walk(network, t_end=0.1, **settings).close()
    with gf.resume(path, references.small_network(), t_end=0.15) as ds:
        assert ds["snapshot_time"].values.tolist() == [0.1]
    gf.walk(network, max_evaluations=3, **settings, overwrite=True).close()
    with gf.resume(path, references.small_network(), t_end=0.05, max_evaluations=1000) as ds:
        assert ds.attrs["status"] == "t_end"


def test_a_recorder_of_ones_own_receives_every_record(network, tmp_path):
    class Counting(Memory):
        times: list[float] = []  # noqa: RUF012

        def record(self, record, dropped):
            self.times.append(record["time"])
            super().record(record, dropped)

    expected = gf.walk(network, t_end=0.1, stop=None)
    recorder = Counting(network.problem, [], expected.attrs)
    ds = gf.walk(references.small_network(), t_end=0.1, stop=None, recorder=recorder)
    assert recorder.times == expected["time"].values.tolist() == ds["time"].values.tolist()
    with pytest.raises(InputError, match="recorder and archive"):
        gf.walk(network, recorder=recorder, archive=tmp_path / "x.nc")


def test_one_way_to_keep_theta_takes_the_place_of_another():
    times = DEFAULTS.changed(snapshot_times=[0.0, 1.0])
    every = times.changed(snapshot_every=0.5)
    assert (every.snapshot_times, every.snapshot_every) == (None, 0.5)
    most = every.changed(max_snapshots=7)
    assert (most.snapshot_every, most.max_snapshots) == (None, 7)
    assert times.changed(rtol=1e-4).snapshot_times == (0.0, 1.0)


def test_another_solver_brings_its_own_re_projections():
    rare = DEFAULTS.changed(solver="dopri5", reproject_every=0.5)
    assert rare.make_solver().reproject_every == 0.5
    assert rare.changed(reproject_every=0.25).make_solver().reproject_every == 0.25
    assert rare.changed(solver="bosh3").make_solver().reproject_every is None
    with pytest.raises(InputError, match=r"reproject_every=0.1: bdf re-projects at every step"):
        DEFAULTS.changed(reproject_every=0.1)
