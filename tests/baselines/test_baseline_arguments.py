"""Arguments of the baselines: what is none is refused in a line, before any work is done."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import geoflow as gf
from geoflow import baselines
from geoflow.baselines import predictor_corrector, weight_decay
from geoflow.comparisons import bench
from geoflow.errors import ArchiveError, InputError

QUICK = {"penalties": [0.1], "seeds": [0], "epochs": 1, "record_every": 1, "validation": 0}

TRAINING = [
    ({"penalties": 0.1}, "penalties=0.1; give numbers in a list"),
    ({"penalties": np.array(0.1)}, "penalties=array(0.1); give numbers in a list"),
    ({"penalties": None}, "penalties=None; give numbers in a list"),
    ({"penalties": "abc"}, "penalties='abc'; give numbers in a list"),
    ({"penalties": b"ab"}, "penalties=b'ab'; give numbers in a list"),
    ({"penalties": {0.1: 1}}, "penalties={0.1: 1}; give numbers in a list"),
    ({"penalties": iter([0.1])}, "give numbers in a list"),
    ({"penalties": ["0.1"]}, "penalties='0.1'; give a real number"),
    ({"penalties": [True]}, "penalties=True; give a real number"),
    ({"penalties": [float("nan")]}, "penalties=[nan]; use different numbers"),
    ({"seeds": 3}, "seeds=3; give numbers in a list"),
    ({"seeds": "ab"}, "seeds='ab'; give numbers in a list"),
    ({"seeds": [1.7]}, "seed=1.7; use a whole number"),
    ({"seeds": [True]}, "seed=True; use a whole number"),
    ({"seeds": ["1"]}, "seed='1'; use a whole number"),
    ({"seeds": [10**26]}, "use zero or a positive number below 2**63"),
    ({"seeds": range(10**12)}, "and a call makes at most"),
    ({"seeds": range(10**30)}, "give numbers in a list"),
    ({"epochs": 2.5}, "epochs=2.5; give a whole number"),
    ({"epochs": "2"}, "epochs='2'; give a whole number"),
    ({"epochs": True}, "epochs=True; give a whole number"),
    ({"record_every": None}, "record_every=None; give a whole number"),
    ({"record_every": 2.5}, "record_every=2.5; give a whole number"),
    ({"validation": ".2"}, "validation='.2'; give a real number"),
    ({"validation": None}, "validation=None; give a real number"),
    ({"dtype": "float32"}, "dtype='float32' is of type str; give torch.float64 or"),
    ({"device": 3}, "device=3 is of type int"),
    ({"data": 3}, "data=3 is of type int; give a folder's name, or None"),
    ({"progress": "yes"}, "progress='yes' is of type str"),
]


@pytest.mark.parametrize(("given", "message"), TRAINING, ids=[str(m) for _, m in TRAINING])
def test_an_argument_of_trainings_that_is_none_is_refused(given, message, monkeypatch):
    monkeypatch.setattr(baselines.decay_training, "_fit", None)
    with pytest.raises(InputError) as caught:
        weight_decay("iris_ff", **QUICK | given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_arguments_like_any_other():
    usual = weight_decay("iris_ff", **QUICK | {"seeds": [2]})
    given = {"penalties": np.array([0.1]), "seeds": np.array([2]), "epochs": np.int64(1)}
    assert weight_decay("iris_ff", **QUICK | given).equals(usual)
    assert usual["run"].values.tolist() == [2]


def test_what_is_no_baseline_is_refused(tmp_path):
    give = "give what gf.baselines.weight_decay returned"
    ds = weight_decay("iris_ff", **QUICK)
    path = tmp_path / "a.nc"
    refused = [
        (lambda: baselines.best_penalty(3), f"ds=3 is of type int; {give}"),
        (lambda: baselines.best_penalty(xr.Dataset()), f"ds has no 'penalty'; {give}"),
        (lambda: baselines.best_penalty(ds, ["test_loss"]), "by=['test_loss'] is of type list"),
        (lambda: baselines.save_weight_decay(3, path), f"ds=3 is of type int; {give}"),
        (
            lambda: baselines.save_weight_decay(ds.assign_attrs(geoflow_baseline="0"), path),
            f"ds is no weight-decay baseline; {give}",
        ),
        (
            lambda: baselines.save_weight_decay(ds.sel(penalty=0.1), path),
            "ds: its theta has the dimensions ('run', 'parameter'), not ('penalty', 'run', ",
        ),
        (lambda: baselines.save_weight_decay(ds, 3), "path=3 is of type int"),
        (lambda: baselines.open_weight_decay([]), "paths is empty; name at least one file"),
        (lambda: baselines.open_weight_decay(None), "paths=None is of type NoneType"),
        (lambda: baselines.open_weight_decay([3]), "paths=3 is of type int"),
    ]
    for call, message in refused:
        with pytest.raises(InputError) as caught:
            call()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_files_that_have_a_penalty_in_common_are_refused(tmp_path):
    ds = weight_decay("iris_ff", **QUICK | {"penalties": [0.0, 0.01, 1.0]})
    first, second = tmp_path / "a.nc", tmp_path / "b.nc"
    baselines.save_weight_decay(ds.sel(penalty=[0.0, 0.01]), first)
    baselines.save_weight_decay(ds.sel(penalty=[0.01, 1.0]), second)
    with pytest.raises(ArchiveError, match=r"b\.nc has the penalty 0\.01, as .*a\.nc has; give"):
        baselines.open_weight_decay([first, second])
    with pytest.raises(ArchiveError, match=r"a\.nc has the penalty 0, as .*a\.nc has"):
        baselines.open_weight_decay([first, first])
    with baselines.open_weight_decay(iter([str(first)])) as opened:
        assert opened.sel(penalty=0.01)["theta"].shape == (1, ds.sizes["parameter"])


def circle(loss=lambda t: t.square().sum(), r=lambda t: t[0] + 2 * t[1], level=None):
    theta0 = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    return gf.RegularizingFlow(gf.LevelSet(gf.Problem.from_function(loss, theta0), level), r)


LOOP = [
    ({"flow": 3}, "flow=3 is of type int; give a gf.RegularizingFlow"),
    ({"steps": "5"}, "steps='5'; give a whole number"),
    ({"steps": 2.5}, "steps=2.5; give a whole number"),
    ({"steps": True}, "steps=True; give a whole number"),
    ({"predictor_min": None}, "predictor_min=None; give a real number"),
    ({"corrector_min": float("inf")}, "corrector_min=inf; use a positive number"),
    ({"max_evaluations": 2.5}, "max_evaluations=2.5; give a whole number"),
    ({"max_evaluations": True}, "max_evaluations=True; give a whole number"),
    ({"max_evaluations": None}, "max_evaluations=None; give a whole number"),
    ({"stop": 5}, "stop=5 cannot end the loop; use Stationary"),
    ({"stop": gf.Stationary}, "cannot end the loop; use Stationary"),
    ({"stop": gf.Event("regularizer", value=0.0)}, "cannot end the loop; use Stationary"),
]


@pytest.mark.parametrize(("given", "message"), LOOP, ids=[m for _, m in LOOP])
def test_an_argument_of_the_loop_that_is_none_is_refused(given, message):
    flow = circle()
    before = flow.problem.evaluations
    with pytest.raises(InputError) as caught:
        predictor_corrector(**{"flow": flow, "steps": 3} | given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert flow.problem.evaluations == before


def test_a_whole_number_that_is_a_float_is_a_count():
    ds = predictor_corrector(circle(), steps=5.0, max_evaluations=1e3)
    assert ds.attrs["status_message"] == "5 predictor steps are made"
    assert '"max_evaluations": 1000,' in ds.attrs["config"]


BENCH = [
    ({"max_evaluations": "5"}, "max_evaluations='5' is of type str"),
    ({"max_evaluations": 2.5}, "max_evaluations=2.5; give a whole number"),
    ({"max_evaluations": True}, "max_evaluations=True; give a whole number"),
    ({"max_evaluations": None}, "max_evaluations=None is of type NoneType"),
    ({"note": 3}, "note=3 is of type int; give a function of a text"),
    ({"seed": 1.5}, "seed=1.5; use a whole number"),
    ({"experiment": 3}, "experiment=3 is of type int"),
]


@pytest.mark.parametrize(("given", "message"), BENCH, ids=[m for _, m in BENCH])
def test_an_argument_of_bench_that_is_none_is_refused(given, message):
    with pytest.raises(InputError) as caught:
        bench(**{"experiment": "iris_ff"} | given)
    assert message in str(caught.value)


def test_a_folder_may_be_a_path():
    with pytest.raises(InputError, match="iris_ff carries its own data"):
        weight_decay("iris_ff", **QUICK, data=Path("here"))
