import math

import numpy as np
import pytest
import torch

import crashes
import geoflow as gf
import invariants
import own_flow
from geoflow.archive.checkpoint import Checkpoint
from geoflow.errors import ArchiveError, InputError
from geoflow.trajectories import schema


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "walk.nc"
    own_flow.walk(path, checkpoint_seconds=0).close()
    return path


def test_a_geodesic_is_walked_at_constant_speed_round_a_great_circle():
    flow, exact = own_flow.great_circle()
    ds = own_flow.walk(snapshot_times=[0.5, 1.0, 2.0])
    assert ds.attrs["status"] == "t_end"
    for theta, time in zip(ds["theta"].values, ds["snapshot_time"].values, strict=True):
        assert np.allclose(theta, exact(float(time)), rtol=0, atol=3e-7)
    assert np.allclose(ds["energy"], ds["energy"][0], rtol=1e-7)
    assert abs(ds["level_residual"]).max() <= flow.level_set.tolerance


def test_its_dataset_has_the_scalars_the_flow_records_and_no_others(walked):
    assert gf.validate(walked) == []
    with gf.open_trajectory(walked) as ds:
        assert ds["energy"].attrs == {"long_name": "kinetic energy", "units": "1"}
        assert "angle" not in ds
        assert ds.attrs["flow"] == "GeodesicFlow"
        assert ds.attrs["regularizer_name"] == ""
        assert schema.defects(ds.drop_vars("energy")) == ["variable energy is missing"]


@pytest.mark.parametrize("step", [1, 7])
def test_killed_and_resumed_it_is_the_same_bit_for_bit(tmp_path, walked, step):
    path = tmp_path / "walk.nc"
    process, _ = crashes.start(own_flow.die_at_step, step, path)
    process.join(60)
    assert process.exitcode == -9
    assert not path.exists()
    with (
        gf.resume(path, own_flow.great_circle()[0]) as resumed,
        gf.open_trajectory(walked) as whole,
    ):
        assert whole.sizes["step"] > step
        assert invariants.same(resumed, whole)


def test_a_finished_one_goes_further_with_its_momentum(tmp_path, walked):
    path = tmp_path / "walk.nc"
    path.write_bytes(walked.read_bytes())
    flow, exact = own_flow.great_circle()
    with gf.resume(path, flow, t_end=3.0) as ds:
        assert float(ds["time"][-1]) == 3.0
        assert np.allclose(ds["theta"][-1], exact(3.0), rtol=0, atol=3e-7)


def test_another_kind_of_flow_does_not_go_on_with_it(tmp_path, walked):
    path = tmp_path / "walk.nc"
    path.write_bytes(walked.read_bytes())
    other = gf.RegularizingFlow(own_flow.great_circle()[0].level_set, lambda theta: theta[0])
    with pytest.raises(ArchiveError, match="flow: its"):
        gf.resume(path, other, t_end=3.0)


def test_a_checkpoint_keeps_every_tensor_of_the_state():
    flow, _ = own_flow.great_circle()
    state = flow.evaluate(torch.cat([flow.problem.theta0, flow.momentum]))
    before = Checkpoint(3, state.tensors, {"step_size": 0.1}, {"gradient": 4, "hvp": 5})
    arrays, plain = before.pack()
    assert sorted(arrays) == ["state_momentum", "theta"]
    after = Checkpoint.unpack(arrays, plain)
    assert list(after.tensors) == ["theta", "momentum"]
    assert all(torch.equal(after.tensors[n], before.tensors[n]) for n in before.tensors)
    assert after.carry == before.carry


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"solver": "exponential"},
            "'exponential' needs .* a linearization .*GeodesicFlow has not",
        ),
        ({"solver": "rkc"}, "'rkc' needs a flow with a regularizer that it descends"),
        ({"stop": gf.Stationary()}, "stop=Stationary looks at tangent_norm, multiplier"),
        ({"observables": {"energy": float}}, "observables: 'energy' is taken by the flow"),
    ],
)
def test_what_does_not_fit_the_flow_is_refused_before_any_evaluation(kwargs, message, tmp_path):
    flow, _ = own_flow.great_circle()
    before = flow.problem.evaluations
    path = tmp_path / "walk.nc"
    with pytest.raises(InputError, match=message):
        gf.walk(flow, **{"solver": "dopri5", "stop": None, "t_end": 1.0, **kwargs}, archive=path)
    assert flow.problem.evaluations == before
    assert list(tmp_path.iterdir()) == []


def test_a_flow_may_not_record_what_the_walk_records(monkeypatch):
    flow, _ = own_flow.great_circle()
    monkeypatch.setattr(flow, "scalars", {"time": ("a clock", "s")}, raising=False)
    with pytest.raises(InputError, match="the scalar 'time' of GeodesicFlow is taken"):
        gf.walk(flow, "dopri5", stop=None, t_end=1.0)


def test_attributes_that_do_not_say_what_was_recorded_are_a_defect(walked):
    with gf.open_trajectory(walked) as ds:
        for text in ("nonsense", '{"energy": 3}', '{"time": ["clock", "s"]}', "[" * 100_000):
            spoiled = ds.assign_attrs(flow_scalars=text)
            assert schema.defects(spoiled) == ["attribute flow_scalars cannot be used; run again"]


def test_the_momentum_starts_tangent():
    flow, _ = own_flow.great_circle()
    state, _ = flow.start(flow.problem.theta0)
    assert abs(float(state.momentum @ state.gradient)) < 1e-13
    assert math.isclose(
        float(state.momentum @ state.momentum) / 2, flow.values(state)["energy"], rel_tol=1e-15
    )


def test_another_regularizer_of_the_same_name_does_not_go_on_with_a_walk(tmp_path):
    path = tmp_path / "walk.nc"
    level_set = own_flow.great_circle()[0].level_set
    flows = [gf.RegularizingFlow(level_set, lambda theta, k=k: k + theta[0]) for k in (3.0, 4.0)]
    gf.walk(flows[0], "dopri5", stop=None, t_end=0.5, archive=path).close()
    with pytest.raises(ArchiveError, match=r"the regularisation function is .* was recorded"):
        gf.resume(path, flows[1], t_end=1.0)
    with gf.resume(path, flows[0], t_end=1.0) as ds:
        assert ds.attrs["status"] == "t_end"
