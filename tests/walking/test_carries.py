"""What a checkpoint carries of a solver is what that solver can have made, or the file stays."""

import json
import math
import re
import shutil

import netCDF4
import numpy as np
import pytest
import torch

import crashes
import geoflow as gf
import invariants
from geoflow import solvers
from geoflow.archive import parts, seal
from geoflow.archive.checkpoint import Checkpoint
from geoflow.errors import ArchiveError, StepSizeError
from geoflow.solvers.base import StepResult, Tolerance
from references import ellipsoid, small_network

SOLVERS = ("exponential", "bdf", "rkc", "dopri5", "rk4")
NO_NUMBER = [math.inf, math.nan, -1.0, 10**400, "x"]
NO_STEP = [(name, "step_size", value) for name in SOLVERS for value in [*NO_NUMBER, None]]
NUMBERS = [
    *NO_STEP,
    ("exponential", "step_size", 0.0),
    ("exponential", "radius", math.nan),
    ("rkc", "radius", -1.0),
    ("dopri5", "since_projection", math.nan),
    *(("bdf", "order", value) for value in (0, 6, 1.5, "5")),
    ("bdf", "n_since_order", -1),
    ("bdf", "in_vain", math.inf),
    ("bdf", "aside", 0),
]
TENSORS = [
    ("exponential", "owed", lambda a: a[:-1], r"is torch.float64 of shape \(49,\), not"),
    ("exponential", "owed", lambda a: a.astype("f4"), "is torch.float32 of shape"),
    ("exponential", "owed", lambda a: a * np.nan, "is not finite"),
    ("rkc", "vector", lambda a: a[None], r"of shape \(1, 50\), not torch.float64 of shape \(50\)"),
    ("rkc", "vector", lambda a: a * np.inf, "is not finite"),
    ("bdf", "points", lambda a: a[:, 1:], r"of shape \(\d, 49\), not torch.float64 of"),
    ("bdf", "ages", lambda a: a[::-1].copy(), "does not increase from 0"),
    ("bdf", "ages", lambda a: a[:1], r"of shape \(1,\)"),
    ("bdf", "pairs_0", lambda a: a.astype("f8"), "is torch.float64"),
    ("bdf", "pairs_0", lambda a: a[1:], "not torch.float32"),
    ("bdf", "pair_products", lambda a: a[1:, 1:], "is of no pairs"),
    ("bdf", "pair_products", lambda a: a * np.nan, "is not finite"),
    ("bdf", "pair_unit", lambda a: a * np.nan, "is tensor"),
]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Archived walks of the small network by each solver, and what each becomes further on."""
    folder = tmp_path_factory.mktemp("carries")
    for solver in SOLVERS:
        budget = {"max_evaluations": 60, "stop": None}
        gf.walk(small_network(), solver, archive=folder / f"{solver}.nc", **budget).close()
    return folder


@pytest.fixture
def copied(walked, tmp_path):
    def copy(solver):
        path = tmp_path / "walk.nc"
        shutil.copyfile(walked / f"{solver}.nc", path)
        return path

    return copy


def spoil(path, change):
    """Change a checkpoint, as arrays and what JSON holds of it, and seal the file again."""
    content = path.read_bytes()
    path.write_bytes(content[: -seal.LENGTH])
    with netCDF4.Dataset(path, "a") as file:
        group = file["checkpoint"]
        arrays = {name: np.asarray(variable[...]) for name, variable in group.variables.items()}
        state = json.loads(group.state)
        before = dict(arrays)
        change(arrays, state)
        for i, (name, array) in enumerate(arrays.items()):
            if array is not before[name]:
                group.renameVariable(name, f"former_{name}")
                dims = [f"new_{i}_{n}" for n in range(array.ndim)]
                for dim, n in zip(dims, array.shape, strict=True):
                    group.createDimension(dim, n)
                group.createVariable(name, array.dtype, dims)[...] = array
        group.state = json.dumps(state)
    seal.append(path)


def check_refused(path, message, flow=small_network):
    before = path.read_bytes()
    (defect,) = gf.validate(path)
    assert message(defect), defect
    with pytest.raises(ArchiveError) as failure:
        gf.resume(path, flow(), max_evaluations=120)
    assert defect in str(failure.value)
    assert str(path) in str(failure.value)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# Of so many the default run takes every second.
@pytest.mark.parametrize(
    ("solver", "entry", "value"),
    [pytest.param(*c, marks=[pytest.mark.slow] * (i % 2)) for i, c in enumerate(NUMBERS)],
)
def test_a_number_that_a_solver_never_carries_is_found_and_the_file_stays(
    copied, solver, entry, value
):
    path = copied(solver)

    def change(arrays, state):
        assert state["carry"].pop(entry) is not None
        state["carry"] |= {} if value is None else {entry: value}

    spoil(path, change)
    begins = f"{entry} of its checkpoint, carried by the solver, is "
    check_refused(path, lambda defect: defect.startswith(begins))


@pytest.mark.parametrize(("solver", "entry", "change", "message"), TENSORS)
def test_a_tensor_that_a_solver_never_carries_is_found_and_the_file_stays(
    copied, solver, entry, change, message
):
    path = copied(solver)
    name = f"carry_{entry}"
    spoil(path, lambda arrays, state: arrays.update({name: change(arrays[name])}))
    wanted = re.compile(f"{entry} of its checkpoint, carried by the solver, .*{message}")
    check_refused(path, lambda defect: wanted.match(defect))


def test_an_entry_that_no_solver_can_carry_is_the_files(copied):
    path = copied("exponential")
    spoil(path, lambda arrays, state: state["carry"].update(other=[1]))
    check_refused(path, lambda defect: "TypeError: carry['other'] is a list" in defect)


@pytest.mark.parametrize("solver", ["exponential", "bdf", "rkc"])
def test_a_carry_of_a_gpu_is_looked_at_and_gone_on_with_where_the_flow_is(copied, solver, walked):
    path = copied(solver)
    spoil(
        path, lambda arrays, state: state.update(devices=dict.fromkeys(state["devices"], "cuda:3"))
    )
    assert gf.validate(path) == []
    whole = shutil.copyfile(walked / f"{solver}.nc", path.with_name("whole.nc"))
    with (
        gf.resume(path, small_network(), max_evaluations=120) as found,
        gf.resume(whole, small_network(), max_evaluations=120) as expected,
    ):
        assert found.sizes["step"] > gf.open_trajectory(walked / f"{solver}.nc").sizes["step"]
        assert invariants.same(found, expected)


def test_where_tensors_were_is_kept_until_the_walk_goes_on():
    carry = {"vector": torch.ones(2, dtype=torch.float64), "apart": torch.ones(1)}
    tensors = {"theta": torch.zeros(2, dtype=torch.float64)}
    arrays, state = Checkpoint(1, tensors, carry, {"gradient": 1, "hvp": 0}).pack()
    state["devices"]["vector"] = "cuda:0"
    read = Checkpoint.unpack(arrays, state)
    assert read.carry["vector"].device.type == "cpu"
    assert read.pack()[1]["devices"] == {"vector": "cuda:0", "apart": "cpu"}

    class Own:
        pass

    taken = read.carry_for(Own(), torch.zeros(2, device="meta"))
    assert {name: value.device.type for name, value in taken.items()} == {
        "vector": "meta",
        "apart": "cpu",
    }


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """The parts of a walk that was cut off."""
    folder = tmp_path_factory.mktemp("cut")

    class CutError(BaseException):
        pass

    def observe(theta, calls=[]):  # noqa: B006
        calls.append(0)
        if len(calls) > 5:
            raise CutError
        return float(theta.norm())

    with pytest.raises(CutError):
        gf.walk(
            ellipsoid(), "exponential", observables={"norm": observe}, archive=folder / "walk.nc",
            checkpoint_seconds=0.0, t_end=1.0, stop=None,
        )  # fmt: skip
    return folder / ".walk.nc.parts"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, s: s["carry"].pop("step_size"), "step_size of its checkpoint, .* is missing"),
        (lambda a, s: s["carry"].update(radius=math.inf), "radius of its checkpoint, .* is inf"),
        (lambda a, s: s.update(n_steps=math.inf), "cannot be used .OverflowError"),
        (lambda a, s: s.update(n_steps=-1), "its checkpoint is that of another walk"),
        (lambda a, s: s.update(n_steps=0), "its checkpoint is that of another walk"),
        (lambda a, s: s["counts"].update(gradient=math.inf), "cannot be used .OverflowError"),
        (lambda a, s: s["counts"].update(gradient=0), "counts fewer evaluations than n_gradient"),
        (lambda a, s: a.update(theta=a["theta"].astype(complex)), "is torch.complex128, not float"),
        (lambda a, s: a.update(theta=a["theta"][1:]), "its checkpoint is that of another walk"),
        (lambda a, s: a.update(theta=a["theta"] * np.nan), "theta of its checkpoint is not finite"),
        (
            lambda a, s: s["devices"].update(owed="lazier"),
            "cannot be used .RuntimeError: [^\n]{9,400}$",
        ),
    ],
)
def test_parts_of_a_walk_that_cannot_be_gone_on_with_stay(cut, tmp_path, change, message):
    folder = tmp_path / ".walk.nc.parts"
    shutil.copytree(cut, folder)
    arrays = parts.read(folder / parts.CHECKPOINT)
    state = json.loads(arrays["state"].tobytes())
    change(arrays, state)
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    parts.write(folder / parts.CHECKPOINT, arrays)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".npz"}
    with pytest.raises(ArchiveError, match=message):
        crashes.resume(tmp_path / "walk.nc")
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".npz"} == before


@pytest.mark.parametrize("carry", [{"step_size": math.inf}, {"step_size": 1.0, "radius": math.nan}])
def test_an_exponential_step_of_numbers_that_are_none_ends(carry):
    flow = small_network()
    state, _ = flow.start(flow.problem.theta0)
    with pytest.raises(StepSizeError, match="is not finite"):
        solvers.Exponential().step(flow, state, carry, Tolerance(1e-4, 0.0), math.inf)


class Forgetful:
    """A solver of one's own that wants of its carry what is not in every file."""

    name, order, vectors = "forgetful", 1, 2
    options = {}  # noqa: RUF012

    def init(self, flow, state, tolerance):
        return {"step_size": 1e-3}

    def step(self, flow, state, carry, tolerance, max_time):
        step = min(carry["step_size"], max_time)
        end, projection = flow.project(state.flat + step * state.velocity)
        return StepResult(end, carry, step, math.nan, 0, projection.iterations)


def test_where_a_solver_of_ones_own_fails_at_its_carry_the_file_stays(tmp_path):
    path = tmp_path / "walk.nc"
    gf.walk(small_network(), Forgetful(), archive=path, t_end=2e-3, stop=None).close()
    with gf.resume(path, small_network(), solver=Forgetful(), t_end=3e-3) as ds:
        assert ds.sizes["step"] == 4
    spoil(path, lambda arrays, state: state["carry"].clear())
    before = path.read_bytes()
    with pytest.raises(KeyError, match="step_size"):
        gf.resume(path, small_network(), solver=Forgetful(), t_end=4e-3)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]
