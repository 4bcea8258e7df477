"""What a recorder is given it hands back: in memory, and streamed beside an archive."""

import math
import signal

import numpy as np
import pytest
import torch

import geoflow as gf
import recorded
from geoflow.trajectories import schema
from geoflow.trajectories.records import Snapshot, StepRecords
from geoflow.walking import stream
from geoflow.walking.recorder import Memory
from geoflow.walking.snapshots import Thinned


@pytest.fixture(params=["memory", "stream"])
def recorder(request, tmp_path):
    if request.param == "memory":
        yield Memory(recorded.FLOW.problem, list(recorded.OBSERVABLES), recorded.HEADER)
        return
    settings = {"look_back": 0.0, "interval": math.inf, "overwrite": False}
    path = tmp_path / "walk.nc"
    with stream.Stream.create(
        path, recorded.FLOW.problem, recorded.HEADER, **settings
    ) as streaming:
        yield streaming


def finished(recorder):
    with recorder.finish(recorded.checkpoint(recorder.n_steps - 1), recorded.END) as ds:
        return ds.load()


def test_every_step_is_recorded_in_its_column(recorder):
    recorded.take(recorder, range(5))
    assert recorder.n_steps == 5
    ds = finished(recorder)
    assert schema.defects(ds) == []
    rows = [recorded.record(recorder.records.columns, step) for step in range(5)]
    assert len(rows[0]) > 15
    for name in rows[0]:
        assert ds[name].values.tolist() == [row[name] for row in rows]


def test_the_furthest_is_that_of_all_records_and_of_those_that_are_numbers():
    records = StepRecords()
    row = dict.fromkeys(records.columns, 0)
    for residuals in ([0.0, -3.0], [1.0, math.nan], [2.0]):
        columns = {name: np.zeros(len(residuals)) for name in records.columns}
        if len(residuals) > 1:
            for residual in residuals:
                records.append(row | {"level_residual": residual})
        else:
            records.extend(columns | {"level_residual": np.array(residuals)})
        assert records.furthest.tolist() == [3.0]
    # Ctrl-C may come while a step is recorded.
    records.columns["time"].append(1.0)
    assert len(records) == 5


def test_theta_that_is_kept_is_a_copy():
    theta = torch.ones(3, dtype=torch.float64)
    snapshot = Snapshot(0, 0.0, theta, {})
    theta.zero_()
    assert snapshot.theta.tolist() == [1.0, 1.0, 1.0]


def test_theta_and_observables_are_kept_where_the_rule_keeps_them(recorder):
    recorded.take(recorder, range(9), Thinned(5))
    ds = finished(recorder)
    assert ds["snapshot_step"].values.tolist() == [0, 4, 8]
    assert ds["snapshot_time"].values.tolist() == [0.0, 4.0, 8.0]
    expected = np.stack([recorded.theta(step).numpy() for step in (0, 4, 8)])
    assert np.array_equal(ds["theta"], expected)
    assert ds["first"].values.tolist() == expected[:, 0].tolist()


def test_the_step_kept_last_is_known_and_the_one_before_it_where_it_is_dropped(recorder):
    assert recorder.last_kept == -1
    recorded.take(recorder, range(3))
    assert recorder.last_kept == 2
    recorder.record(recorded.record(recorder.records.columns, 3), [0, 2])
    assert recorder.last_kept == 1
    recorder.record(recorded.record(recorder.records.columns, 4), [1])
    assert recorder.last_kept == -1


def test_a_walk_of_which_nothing_is_kept_has_a_theta_without_rows(recorder):
    for step in range(2):
        recorder.record(recorded.record(recorder.records.columns, step), [])
    ds = finished(recorder)
    assert ds.sizes == {"step": 2, "snapshot": 0, "parameter": 6, "tensor": 1}
    assert ds["first"].shape == (0,)


def test_the_attributes_are_the_header_and_how_the_walk_ended(recorder):
    recorded.take(recorder, range(2))
    assert finished(recorder).attrs == {**recorded.HEADER, **recorded.END}


def test_how_a_walk_ended_stands_above_what_the_header_has_of_it():
    header = {**recorded.HEADER, "status": "interrupted", "status_message": "earlier"}
    memory = Memory(recorded.FLOW.problem, list(recorded.OBSERVABLES), header)
    recorded.take(memory, range(2))
    assert finished(memory).attrs == {**header, **recorded.END}


class Pressed(Memory):
    """Ctrl-C comes while the fourth record is taken."""

    def __init__(self):
        super().__init__(recorded.FLOW.problem, [], recorded.HEADER)
        self.taken = []

    def record(self, record, dropped):
        if self.n_steps == 3:
            signal.raise_signal(signal.SIGINT)
        super().record(record, dropped)

    def accepted(self, checkpoint):
        self.taken.append(checkpoint.n_steps)


def test_ctrl_c_while_a_step_is_recorded_leaves_it_recorded_whole():
    recorder = Pressed()
    ds = gf.walk(recorded.FLOW, "rk4", stop=None, t_end=1.0, recorder=recorder)
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["step"] == 4
    assert ds["snapshot_step"].values.tolist() == [0, 1, 2, 3]
    assert recorder.taken == [1, 2, 3, 4]
