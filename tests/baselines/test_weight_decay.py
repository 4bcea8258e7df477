from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import geoflow as gf
from geoflow import baselines, cli, experiments
from geoflow.cli import terminal
from geoflow.errors import ArchiveError, InputError
from geoflow.experiments import training

TWO = {"penalties": [0.0, 10.0], "seeds": [0, 3], "epochs": 4, "record_every": 3}


@pytest.fixture(scope="module")
def iris():
    return baselines.weight_decay("iris_ff", **TWO)


def test_the_papers_penalties_are_the_default():
    assert baselines.PENALTIES[:3] == (0.0, 1e-6, 1e-5)
    assert len(baselines.PENALTIES) == 14
    assert baselines.PENALTIES[-1] == 1e6


def test_without_penalty_a_run_is_the_training_of_the_walk_of_its_seed(iris):
    for seed in (0, 3):
        prepared = gf.experiments.get("iris_ff").prepare(seed, epochs=4)
        theta = iris["theta"].sel(penalty=0.0, run=seed).values
        assert np.allclose(theta, prepared.problem.theta0.numpy(), rtol=0, atol=1e-12)
        last = iris.sel(penalty=0.0, run=seed).isel(epoch=-1)
        for name, function in prepared.observables.items():
            assert float(last[name]) == pytest.approx(function(prepared.problem.theta0), rel=1e-10)


def test_the_penalty_is_on_the_kernels_and_not_on_the_biases():
    # One step of Adam from zero moments moves by lr·g/(|g| + eps): with a huge penalty each weight
    # goes towards zero, and each bias, which starts at zero, where the loss alone sends it.
    e = gf.experiments.get("iris_ff")
    start = e.start(0)
    first = torch.cat([p.detach().reshape(-1) for p in start.module.parameters()]).numpy()
    free, tied = (
        baselines.weight_decay("iris_ff", penalties=[p], seeds=[0], epochs=1)["theta"].values[0, 0]
        for p in (0.0, 1e9)
    )
    for spec in e.prepare(0, epochs=1).problem.tensors:
        part = slice(spec.offset, spec.offset + int(np.prod(spec.shape)))
        if len(spec.shape) == 2:
            large = np.abs(first[part]) > 0.01
            assert (np.abs(tied[part])[large] < np.abs(first[part])[large]).all()
        else:
            # Biases move with the loss in both, at most the four steps of 1e-3.
            assert np.abs(tied[part]).max() <= 4.1e-3
            assert np.any(free[part] != 0)


def test_the_dataset_has_its_dimensions_units_and_provenance(iris):
    assert dict(iris.sizes) == {
        "penalty": 2,
        "run": 2,
        "epoch": 2,
        "parameter": 31_103,
        "tensor": 10,
    }
    assert iris["epoch"].values.tolist() == [3, 4]
    assert all({"long_name", "units"} <= set(v.attrs) for v in iris.variables.values())
    assert iris.attrs["experiment"] == "iris_ff"
    assert iris.attrs["n_train"] == 120
    norms = np.square(iris["theta"].values).sum(axis=2)
    assert np.allclose(iris["regularizer"], norms)
    assert np.isfinite(iris["validation_loss"]).all()


def test_runs_do_not_depend_on_the_runs_beside_them(iris):
    alone = baselines.weight_decay("iris_ff", **(TWO | {"seeds": [3], "penalties": [10.0]}))
    beside = iris.sel(run=[3], penalty=[10.0])
    for name in ("train_loss", "validation_loss", "theta"):
        assert np.allclose(alone[name], beside[name], rtol=1e-9, atol=1e-12)


def test_what_is_held_out_is_not_trained_on():
    e = gf.experiments.get("iris_ff")
    start = e.start(0)
    ds = baselines.weight_decay("iris_ff", penalties=[0.0], seeds=[0], epochs=2, validation=0.25)
    inputs, targets = start.train
    training.train(
        start.module, e.loss_fn, inputs[:90], targets[:90], epochs=2, generator=start.shuffling
    )
    outputs = start.module(inputs[90:])
    expected = float(e.loss_fn(outputs, targets[90:]).detach())
    assert float(ds["validation_loss"][0, 0, -1]) == pytest.approx(expected, rel=1e-10)
    nothing = baselines.weight_decay(
        "iris_ff", penalties=[0.0], seeds=[0], epochs=1, validation=0.0
    )
    assert np.isnan(nothing["validation_loss"]).all()
    with pytest.raises(InputError, match="it has no values"):
        baselines.best_penalty(nothing)


def test_regression_has_no_accuracies():
    ds = baselines.weight_decay("mpg_ff", penalties=[0.0], seeds=[0], epochs=1)
    assert "test_loss" in ds
    assert "test_accuracy" not in ds


@pytest.mark.slow
def test_convolutions_are_trained_too():
    e = gf.experiments.get("mnist_conv")
    ds = baselines.weight_decay("mnist_conv", penalties=[0.0], seeds=[1], epochs=1, validation=0)
    theta = e.prepare(1, epochs=1).problem.theta0.numpy()
    assert np.allclose(ds["theta"].values[0, 0], theta, rtol=0, atol=1e-10)


def test_the_best_penalty_is_the_best_on_average():
    def baseline(values):
        dims = ("penalty", "run", "epoch")
        curve = np.array(values, dtype=float)[:, :, None]
        return xr.Dataset(
            {"test_loss": (dims, curve), "test_accuracy": (dims, 1 - curve)},
            {"penalty": [0.0, 0.1, 1.0]},
        )

    ds = baseline([[0.3, 0.3], [0.0, 0.5], [0.9, 0.1]])
    assert baselines.best_penalty(ds, "test_loss") == 0.1
    assert baselines.best_penalty(ds, "test_accuracy") == 0.1
    # A penalty with a diverged run is not the best.
    diverged = baseline([[0.3, 0.3], [0.0, np.nan], [0.9, 0.1]])
    assert baselines.best_penalty(diverged, "test_loss") == 0.0
    with pytest.raises(InputError, match="by='theta'"):
        baselines.best_penalty(ds, "theta")


def test_files_of_single_penalties_join_to_the_whole(iris, tmp_path):
    baselines.save_weight_decay(iris, tmp_path / "all.nc")
    for penalty in (10.0, 0.0):
        part = iris.sel(penalty=[penalty])
        baselines.save_weight_decay(part, tmp_path / f"{penalty}.nc")
    with (
        baselines.open_weight_decay([tmp_path / "10.0.nc", tmp_path / "0.0.nc"]) as joined,
        baselines.open_weight_decay(tmp_path / "all.nc") as whole,
    ):
        assert joined.equals(whole)
        assert whole.equals(iris)
    with pytest.raises(InputError, match="--force"):
        baselines.save_weight_decay(iris, tmp_path / "all.nc")
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


def test_files_that_do_not_belong_together_are_refused(iris, tmp_path):
    baselines.save_weight_decay(iris, tmp_path / "a.nc")
    other = baselines.weight_decay("iris_ff", penalties=[1.0], seeds=[1], epochs=4, validation=0)
    baselines.save_weight_decay(other, tmp_path / "b.nc")
    with pytest.raises(ArchiveError, match=r"b.nc is not of the same experiment, runs"):
        baselines.open_weight_decay([tmp_path / "a.nc", tmp_path / "b.nc"])
    part = iris.sel(penalty=[0.0]).assign_attrs(validation=0.5)
    baselines.save_weight_decay(part, tmp_path / "part.nc")
    baselines.save_weight_decay(iris.sel(penalty=[10.0]), tmp_path / "rest.nc")
    with pytest.raises(ArchiveError, match=r"rest.nc is not of the same .* part held out"):
        baselines.open_weight_decay([tmp_path / "part.nc", tmp_path / "rest.nc"])
    with pytest.raises(ArchiveError, match="is not a file"):
        baselines.open_weight_decay(tmp_path / "c.nc")
    xr.Dataset({"x": 1}).to_netcdf(tmp_path / "x.nc")
    with pytest.raises(ArchiveError, match="not a weight-decay baseline"):
        baselines.open_weight_decay(tmp_path / "x.nc")


def test_the_command_writes_the_dataset(tmp_path, capsys):
    path = tmp_path / "b.nc"
    arguments = ["baseline", "iris_ff", "--out", str(path), "--penalties", "0,1e-3", "--runs", "2"]
    assert cli.main([*arguments, "--epochs", "2", "--seed", "4"]) == terminal.DONE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "best by validation_loss:" in captured.err
    with baselines.open_weight_decay(path) as ds:
        assert ds["run"].values.tolist() == [4, 5]
        assert ds["penalty"].values.tolist() == [0.0, 1e-3]
    assert cli.main(arguments) == terminal.BAD_INPUT
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalties": [-1.0]}, "penalties="),
        ({"penalties": []}, "penalties="),
        ({"penalties": [1.0, 1.0]}, "penalties="),
        ({"seeds": []}, "seeds="),
        ({"seeds": [1, 1]}, "seeds="),
        ({"seeds": [-1]}, "seed=-1"),
        ({"epochs": 0}, "epochs=0"),
        ({"record_every": 0}, "record_every=0"),
        ({"validation": 0.9}, "validation=0.9"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        baselines.weight_decay("iris_ff", **options)


def test_a_part_that_holds_out_no_example_is_refused_before_training(tmp_path, capsys):
    path = tmp_path / "b.nc"
    options = ["--validation", "1e-9", "--epochs", "1", "--runs", "1", "--penalties", "0"]
    assert cli.main(["baseline", "iris_ff", "--out", str(path), *options]) == terminal.BAD_INPUT
    error = capsys.readouterr().err
    assert "validation=1e-09: of " in error
    assert "examples that is none; use " in error
    assert not path.exists()


def test_an_experiment_less_what_is_held_out_is_trained_as_the_validation_trainings_are():
    experiment = experiments.registry.of_paper("iris_ff")

    def split(rng, data):
        whole = experiment.split(rng, data)
        inputs, targets = whole.train_inputs[:96], whole.train_targets[:96]
        return whole._replace(train_inputs=inputs, train_targets=targets)

    settings = {"penalties": [0.1], "seeds": [3], "epochs": 2}
    found = baselines.weight_decay(replace(experiment, split=split), validation=0.0, **settings)
    start = experiment.start(3)
    torch.nn.utils.vector_to_parameters(
        torch.from_numpy(found["theta"].values[0, 0]), start.module.parameters()
    )
    with torch.no_grad():
        outputs = start.module(start.train.inputs[96:])
    loss = float(experiment.loss_fn(outputs, start.train.targets[96:]))
    expected = baselines.weight_decay("iris_ff", validation=0.2, **settings)["validation_loss"]
    assert loss == pytest.approx(float(expected[0, 0, -1]), rel=1e-12)
    assert found.attrs["n_train"] == 96
