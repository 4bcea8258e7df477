"""Files that are damaged, hostile or old."""

import json
import random
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import geoflow as gf
import invariants
from geoflow import cli
from geoflow.archive import inputs, seal, trajectory_files
from geoflow.cli import terminal
from geoflow.errors import ArchiveError, InputError
from geoflow.trajectories import consistency, migrations, schema

DATA = Path(__file__).parents[1] / "data"


def test_a_file_just_written_has_no_defect(path, ds, capsys):
    assert gf.validate(path) == []
    assert cli.main(["validate", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert ds.sizes["snapshot"] == ds.sizes["step"] == 21


def test_a_file_is_named_once_whatever_link_it_is_named_by(tmp_path):
    first, second, link = (tmp_path / f"{name}.nc" for name in ("a", "b", "link"))
    first.touch()
    second.touch()
    link.symlink_to(first)
    assert inputs.expand([link, second, first]) == [link, second]
    assert inputs.expand([second, tmp_path]) == [second, first]
    with pytest.raises(InputError, match="'' names no file"):
        inputs.expand([""])


# Damage.


@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_a_file_that_was_cut_is_refused(path, percent, tmp_path, capsys):
    cut = tmp_path / "cut.nc"
    content = path.read_bytes()
    cut.write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(ArchiveError, match="not a readable netCDF-4 file"):
        gf.open_trajectory(cut)
    assert gf.validate(cut)[0] == seal.MISSING
    for command in (["info"], ["validate"], ["resume"], ["plot", "--out", str(tmp_path / "p")]):
        assert cli.main([command[0], str(cut), *command[1:]]) == terminal.BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_without_its_last_bytes_is_found(path, tmp_path):
    cut = tmp_path / "cut.nc"
    cut.write_bytes(path.read_bytes()[:-1])
    assert gf.validate(cut) == [seal.MISSING]


def test_every_flipped_bit_is_found(path, tmp_path):
    content = path.read_bytes()
    flipped = tmp_path / "flipped.nc"
    rng = random.Random(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        flipped.write_bytes(damaged)
        assert gf.validate(flipped) in ([seal.BROKEN], [seal.MISSING])


def flip_in(content, values):
    """Flip a bit of values where they lie in a file."""
    damaged = bytearray(content)
    damaged[content.index(values.tobytes()) + 5] ^= 4
    return damaged


def test_the_checksum_of_a_variable_is_verified(path, ds, tmp_path, capsys):
    """As another program would have written the file: without the seal."""
    damaged = tmp_path / "damaged.nc"
    content = path.read_bytes()[: -seal.LENGTH]
    damaged.write_bytes(flip_in(content, ds["theta"].values[7]))
    with gf.open_trajectory(damaged) as opened, pytest.raises(RuntimeError, match="HDF error"):
        opened["theta"].load()
    missing, checksum = gf.validate(damaged)
    assert missing == seal.MISSING
    assert checksum.startswith("variable 'theta': its checksum differs from its values")
    assert cli.main(["validate", str(damaged)]) == terminal.BAD_INPUT
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{damaged}: {missing}", f"{damaged}: {checksum}"]


def test_variables_without_a_checksum_are_named(ds, tmp_path):
    path = tmp_path / "plain.nc"
    plain = ds.copy()
    for variable in plain.variables.values():
        variable.encoding = {}
    plain.to_netcdf(path)
    found = gf.validate(path)
    assert found[0] == seal.MISSING
    assert "variable theta carries no checksum: damage to it would not be seen" in found
    with gf.open_trajectory(path) as opened:
        assert opened.load().equals(ds)


# What does not fit together.


def attribute(name, value):
    return lambda ds: ds.assign_attrs({name: value})


DEFECTS = [
    (lambda ds: ds.drop_vars("angle"), "variable angle is missing"),
    (lambda ds: ds.assign(angle=ds["angle"].astype("f4")), "variable angle has dtype float32"),
    (lambda ds: ds.rename({"tensor": "layer"}), "variable tensor_name has dimensions"),
    (lambda ds: ds.assign(extra=("step", np.zeros(21))), "variable extra has dimensions"),
    (invariants.spoil("time", 3, 0.0), "time does not increase"),
    (invariants.spoil("n_gradient", 3, 10**6), "n_gradient falls"),
    (invariants.spoil("snapshot_step", 3, 99), "snapshot_step names a step that is not there"),
    (invariants.spoil("snapshot_time", 3, 0.5), "snapshot_time differs from the time of its step"),
    (invariants.spoil("angle", 3, 181.0), "angle is above 180 degrees"),
    (invariants.spoil("angle", 3, np.nan), "angle is not finite at step 3"),
    (invariants.spoil("level_residual", 3, 1.0), "level_residual is not train_loss less the level"),
    (invariants.spoil("level_distance", 3, 1.0), "level_distance is not"),
    (invariants.spoil("gradient_norm", 3, -1.0), "gradient_norm is negative"),
    (invariants.spoil("arc_length", 0, 1e-9), "arc_length is 1e-09 at the start, not 0"),
    (invariants.spoil("step_size", 3, 0.0), "step_size is not positive"),
    (invariants.spoil("theta", (3, 1), np.inf), "theta is not finite at snapshot 3"),
    (invariants.spoil("tensor_offset", 0, 1), "tensor_offset of tensor 0"),
    (invariants.spoil("tensor_shape", 0, "[5]"), "the tensors hold 5 parameters, theta 4"),
    (
        invariants.spoil("tensor_shape", 0, "[" * 100_000),
        "tensor_shape of tensor 0 is not a JSON list",
    ),
    (
        attribute("geoflow_schema", "0.3"),
        "attribute geoflow_schema is '0.3', not one of 1.0, 1.1, 1.2",
    ),
    (attribute("seed", "0"), "attribute seed is not of type int"),
    (attribute("status", "asleep"), "attribute status is 'asleep'"),
    (attribute("created", "yesterday"), "attribute created is not a time"),
    (attribute("config", "[]"), "attribute config is not a JSON object"),
    (attribute("config", "[" * 100_000), "attribute config is not a JSON object"),
    (attribute("config", "9" * 100_000), "attribute config is not a JSON object"),
    (attribute("config", " " * 2**21), "attribute 'config' is too long"),
    (attribute("dtype", "float32"), "theta is float64, finer than the walk's float32"),
    (attribute("data_sha256", "../../etc"), "attribute data_sha256 is no SHA-256"),
    (attribute("rtol", np.inf), "attribute rtol is not finite"),
]


@pytest.mark.parametrize(("change", "message"), DEFECTS, ids=[m for _, m in DEFECTS])
def test_validate_finds_what_does_not_fit_together(ds, change, message, tmp_path):
    path = tmp_path / "changed.nc"
    change(ds).to_netcdf(path)
    # A seal is no signature: the one who changes a file can make a new one.
    seal.append(path)
    assert any(message in defect for defect in gf.validate(path)), gf.validate(path)


def test_each_number_that_cannot_be_is_named_and_no_other(ds):
    assert consistency.inconsistencies(ds) == []
    distance = float(ds["level_distance"][3])
    for name, index, value, said in (
        ("error_estimate", 3, np.nan, []),
        ("n_rejected", 3, -1, ["n_rejected is negative"]),
        ("step_size", 0, 0.1, ["step_size is 0.1 at the start, not 0"]),
        ("angle", 3, 180.5, ["angle is above 180 degrees"]),
        (
            *("level_distance", 3, distance * (1 + 1e-8)),
            ["level_distance is not |level_residual|/gradient_norm"],
        ),
    ):
        assert consistency.inconsistencies(invariants.spoil(name, index, value)(ds)) == said
    without = consistency.inconsistencies(ds.drop_vars("norm"))
    assert without == ["the observables are not those that its config names"]


@pytest.mark.parametrize("size", [0, 3])
def test_a_theta_that_the_tensors_do_not_fill_is_not_opened(ds, tmp_path, size, capsys):
    path = tmp_path / "walk.nc"
    ds.isel(parameter=slice(size)).to_netcdf(path)
    message = f"the tensors hold 4 parameters, theta {size}"
    with pytest.raises(ArchiveError, match=message):
        gf.open_trajectory(path)
    for command in (["pca"], ["periodogram", "--scalar", "pc1"]):
        assert cli.main([command[0], str(path), *command[1:]]) == terminal.BAD_INPUT
        assert message in capsys.readouterr().err


def test_a_theta_without_parameters_is_not_opened(ds, tmp_path):
    path = tmp_path / "walk.nc"
    empty = ds.isel(parameter=slice(0)).copy(deep=True)
    empty["tensor_shape"][:] = "[0]"
    empty.to_netcdf(path)
    with pytest.raises(ArchiveError, match="theta has no parameter"):
        gf.open_trajectory(path)


# Hostile files.


def huge(path, ds):
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts(ds.attrs)
        for name, size in (("step", 21), ("snapshot", 10**6), ("parameter", 10**6), ("tensor", 1)):
            file.createDimension(name, size)
        for name, spec in schema.VARIABLES.items():
            dtype = str if spec.dtype == "U" else "f8" if spec.dtype == "f" else spec.dtype
            variable = file.createVariable(name, dtype, spec.dims, fill_value=False)
            variable.setncatts({"units": spec.units, "long_name": "x"})


def from_dataset(change):
    return lambda path, ds: change(ds).to_netcdf(path)


HOSTILE = {
    "huge dimensions": huge,
    "a name with a path": from_dataset(
        lambda ds: ds.rename(norm="rm -rf .."),
    ),
    "text for numbers": from_dataset(lambda ds: ds.assign_attrs(level="../../etc/passwd")),
    "a date": from_dataset(
        lambda ds: ds.assign(time=ds["time"].assign_attrs(units="days since 1-1-1"))
    ),
    "a JSON bomb": from_dataset(lambda ds: ds.assign_attrs(config='{"a":' * 90_000)),
    "endless JSON": from_dataset(lambda ds: ds.assign_attrs(config="[" * 2**21)),
    "a pickle": lambda path, ds: path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR."),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_in_one_line(make, ds, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.nc"
    make(path, ds)
    seal.append(path)
    commands = [["info"], ["resume"], ["plot", "--out", "p"], ["run", "--like"], ["diff", "x.nc"]]
    for name, *rest in commands:
        arguments = [name, *rest, str(path)] if name != "plot" else [name, str(path), *rest]
        assert cli.main(arguments) == terminal.BAD_INPUT
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("geoflow: error: ")
        assert captured.err.count("\n") == 1
    assert cli.main(["validate", str(path)]) == terminal.BAD_INPUT
    assert [p.name for p in tmp_path.iterdir()] == ["hostile.nc"]


CONFIGS = [
    {},
    {"provenance": 3},
    {"provenance": {"experiment": "../../etc/passwd"}},
    {"provenance": {"experiment": "iris_ff", "seed": "zero", "data": None}},
    {"provenance": {"experiment": ["iris_ff"]}},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_config_that_lies_runs_nothing(path, ds, config, tmp_path, capsys):
    lying = tmp_path / "lying.nc"
    checkpoint = trajectory_files.read_checkpoint(path, ds)
    changed = ds.assign_attrs(config=json.dumps(config))
    trajectory_files.write(changed, lying, checkpoint)
    assert cli.main(["run", "--like", str(lying)]) == terminal.BAD_INPUT
    assert cli.main(["resume", str(lying), "--t-end", "2"]) == terminal.BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["lying.nc"]


def test_text_from_a_file_is_shown_as_text(ds, tmp_path, capsys):
    path = tmp_path / "escapes.nc"
    title = "[bold]\x1b[2J\x07[/] and [/nothing]"
    gf.save_trajectory(ds.assign_attrs(title=title), path)
    assert cli.main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    # Rich leaves the bell out, the rest is marked.
    assert "[bold]�[2J[/] and [/nothing]" in shown


# The schema, now and later.


def test_a_file_of_schema_1_0_is_still_read():
    assert gf.validate(DATA / "schema-1.0.nc") == []
    with gf.open_trajectory(DATA / "schema-1.0.nc") as ds:
        assert dict(ds.sizes) == {"step": 5, "snapshot": 3, "parameter": 4, "tensor": 1}
        assert ds.attrs["status"] == "t_end"
        assert ds["snapshot_time"].values.tolist() == [0.0, 0.1, 0.2]
        assert ds["theta"].values[0].tolist() == [
            -0.48678075071242677,
            -0.6038215878840039,
            -0.5580962308236769,
            0.6675243015344896,
        ]


def test_a_migration_brings_an_old_file_to_a_schema_that_is_read(monkeypatch):
    """As if 1.2 had changed what those before it mean."""
    monkeypatch.setattr(schema, "VERSIONS", ("1.2",))
    steps = {
        "1.0": lambda ds: ds.assign_attrs(geoflow_schema="1.1", passed="through 1.1"),
        "1.1": lambda ds: ds.assign_attrs(geoflow_schema="1.2"),
    }
    with pytest.raises(ArchiveError, match=r"geoflow_schema is '1.0', not one of 1.2"):
        gf.open_trajectory(DATA / "schema-1.0.nc")
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    with gf.open_trajectory(DATA / "schema-1.0.nc") as ds:
        assert ds.attrs["geoflow_schema"] == "1.2"
        assert ds.attrs["passed"] == "through 1.1"
    assert gf.validate(DATA / "schema-1.0.nc") == []


finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@st.composite
def trajectories(draw):
    """Any dataset that obeys the schema."""
    n_step, n_parameter = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    n_snapshot = draw(st.integers(0, n_step))
    step = sorted(draw(st.permutations(range(n_step)))[:n_snapshot])
    time = np.cumsum(draw(hnp.arrays(float, n_step, elements=st.floats(1e-3, 1e3))))
    columns = {}
    for name, spec in schema.VARIABLES.items():
        if spec.dims == ("step",) and spec.dtype == "f8":
            elements = st.floats(width=64) if name not in ("arc_length", "wall_time") else finite
            columns[name] = draw(hnp.arrays(float, n_step, elements=elements))
        elif spec.dims == ("step",):
            columns[name] = draw(hnp.arrays(np.int64, n_step, elements=st.integers(0, 2**62)))
    for name in ("arc_length", "wall_time", *(n for n in columns if n.startswith("n_"))):
        columns[name] = np.sort(columns[name])
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    columns |= {
        "time": time,
        "snapshot_step": np.array(step, np.int64),
        "snapshot_time": time[step],
        "tensor_name": np.array([draw(text)], object),
        "tensor_offset": np.array([0]),
        "tensor_shape": np.array([f"[{n_parameter}]"], object),
        "theta": draw(hnp.arrays(dtype, (n_snapshot, n_parameter))),
    }
    variables = {
        name: (spec.dims, columns[name], {"long_name": spec.long_name, "units": spec.units})
        for name, spec in schema.VARIABLES.items()
    }
    values = draw(hnp.arrays(float, n_snapshot))
    variables["test_loss"] = (("snapshot",), values, {"long_name": "test loss", "units": "1"})
    kinds = {str: text, int: st.integers(-(2**62), 2**62), float: st.floats(width=64)}
    attributes = {name: draw(kinds[kind]) for name, kind in schema.ATTRIBUTES.items()}
    attributes |= {
        "geoflow_schema": schema.SCHEMA_VERSION,
        "config": json.dumps(draw(st.dictionaries(text, finite, max_size=3))),
        "status": draw(st.sampled_from(schema.STATUSES)),
    }
    coordinates = schema.STEP_COORDINATES | schema.SNAPSHOT_COORDINATES | schema.TENSOR_COORDINATES
    return xr.Dataset(variables, attrs=attributes).set_coords(list(coordinates))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(trajectories())
def test_what_is_saved_is_what_is_opened(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("round") / "trip.nc"
    gf.save_trajectory(written, path)
    with gf.open_trajectory(path) as opened:
        xr.testing.assert_identical(opened.load(), written)
        for name, variable in written.variables.items():
            if variable.dtype.kind != "O":
                assert opened[name].dtype == variable.dtype
                # To the last bit, signs of zeros and payloads of NaNs too.
                assert opened[name].values.tobytes() == variable.values.tobytes()
