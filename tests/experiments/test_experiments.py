import gzip
import json
import os
import struct
import tracemalloc
from math import prod

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import DataError, InputError
from geoflow.experiments import formats, networks, synthetic
from geoflow.problems import data
from geoflow.problems.earlier import same_data
from geoflow.walking.rerunning import like


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [
        ("iris_ff", 31_103),
        ("mpg_ff", 31_401),
        ("mnist_ff", 99_710),
        ("mnist_conv", 54_930),
        ("cifar10_conv", 685_450),
    ],
)
def test_the_networks_are_the_papers(name, n_parameters):
    assert gf.experiments.get(name).n_parameters == n_parameters
    assert name in gf.experiments.names()


def test_weights_are_glorot_normal_and_biases_zero():
    module = networks.feed_forward([784, 300, 10]).double()
    networks.initialise(module, torch.Generator().manual_seed(0))
    weight = module[1].weight.detach()
    std = (2 / (784 + 300)) ** 0.5
    assert abs(float(weight.std()) / std - 1) < 0.01
    assert float(weight.abs().max()) <= 2 * std / networks.TRUNCATED_STD
    assert not module[1].bias.any()


def split(name, seed=0, data=None):
    return gf.experiments.get(name).split(np.random.default_rng(seed), data)


def test_iris_is_standardised_by_its_training_part():
    s = split("iris_ff")
    assert s.train_inputs.shape == (120, 4)
    assert s.test_inputs.shape == (30, 4)
    assert np.allclose(s.train_inputs.mean(axis=0), 0, atol=1e-12)
    assert np.allclose(s.train_inputs.std(axis=0), 1, rtol=1e-12)
    assert np.abs(s.test_inputs.mean(axis=0)).max() > 1e-3
    assert sorted(np.unique(s.train_targets)) == [0, 1, 2]


def test_mpg_has_nine_features_the_last_three_one_hot():
    s = split("mpg_ff")
    assert s.train_inputs.shape == (313, 9)
    assert s.test_inputs.shape == (79, 9)
    assert np.array_equal(s.train_inputs[:, 6:].sum(axis=1), np.ones(313))
    assert np.isfinite(s.train_inputs).all()
    assert 9 <= s.train_targets.min() < s.train_targets.max() <= 46.6


def test_mnist_is_a_thousand_real_images():
    s = split("mnist_ff")
    assert s.train_inputs.shape == (1000, 1, 28, 28)
    assert s.test_inputs.shape == (4000, 1, 28, 28)
    assert (s.train_inputs.min(), s.train_inputs.max()) == (0, 1)
    assert "5,000 images" in s.source


def test_seeds_tell_splits_apart():
    assert np.array_equal(split("iris_ff", 1).train_inputs, split("iris_ff", 1).train_inputs)
    assert not np.array_equal(split("iris_ff", 1).train_inputs, split("iris_ff", 2).train_inputs)


def test_preparing_is_seed_exact_and_leaves_the_global_generators_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a, b, c = (gf.experiments.get("iris_ff").prepare(s, epochs=2) for s in (0, 0, 1))
    assert torch.equal(a.problem.theta0, b.problem.theta0)
    assert not torch.equal(a.problem.theta0, c.problem.theta0)
    assert a.provenance == b.provenance
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_iris_is_trained_to_near_zero_loss():
    prepared = gf.experiments.get("iris_ff").prepare(0)
    theta = prepared.problem.theta0
    assert float(prepared.problem.loss(theta)) < 0.08
    values = {name: f(theta) for name, f in prepared.observables.items()}
    assert set(values) == {"test_loss", "test_accuracy", "train_accuracy"}
    assert values["test_accuracy"] > 0.9
    outputs = prepared.module(prepared.test.inputs)
    loss = torch.nn.functional.cross_entropy(outputs, prepared.test.targets)
    assert np.isclose(values["test_loss"], float(loss.detach()), rtol=1e-13)
    p = json.loads(json.dumps(prepared.provenance))
    assert (p["experiment"], p["seed"], p["n_train"]) == ("iris_ff", 0, 120)
    assert p["data_sha256"] == prepared.problem.data_sha256


def test_float32_starts_from_the_same_weights():
    a = gf.experiments.get("mpg_ff").prepare(3, epochs=1)
    b = gf.experiments.get("mpg_ff").prepare(3, epochs=1, dtype=torch.float32)
    assert b.problem.dtype == torch.float32
    assert torch.allclose(a.problem.theta0, b.problem.theta0.double(), atol=1e-3)


# As many pixels, fewer, and none at all, of which any number of images costs nothing.
OTHER_SHAPES = ((14, 56), (5, 5), (0, 0))


def reshape_images(folder, shape):
    (folder / "train-images-idx3-ubyte.gz").unlink()
    images = np.zeros((1050, *shape), np.uint8)
    write_idx(folder / "train-images-idx3-ubyte", images, formats.IDX_IMAGES)


def write_idx(path, array, magic):
    content = struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def mnist_folder(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1050, 28, 28)).astype(np.uint8)
    labels = rng.integers(0, 10, 1050).astype(np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images, formats.IDX_IMAGES)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels, formats.IDX_LABELS)
    return tmp_path, images, labels


def test_idx_files_are_read_gzipped_or_not(mnist_folder):
    folder, images, labels = mnist_folder
    read_images, read_labels = formats.read_mnist(folder)
    assert np.array_equal(images, read_images)
    assert np.array_equal(labels, read_labels)
    s = split("mnist_ff", data=str(folder))
    assert len(s.train_inputs) == 1000
    assert len(s.test_inputs) == 50


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train-labels-idx1-ubyte").unlink(), "train-labels-idx1-ubyte is missing"),
        (lambda f: cut(f / "train-labels-idx1-ubyte"), "1057 bytes, but its header says 1058"),
        (lambda f: cut(f / "train-images-idx3-ubyte.gz"), "damaged gzip file"),
        (lambda f: spoil_deflated(f / "train-images-idx3-ubyte.gz"), "damaged gzip file"),
        (lambda f: (f / "train-labels-idx1-ubyte").write_bytes(b"\x80\x04."), "not an IDX file"),
        (
            lambda f: (f / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0"),
            "ends within its header",
        ),
        (lambda f: swap_label(f / "train-labels-idx1-ubyte"), "label 77 is not a digit"),
        *((lambda f, s=s: reshape_images(f, s), "not .N, 28, 28. and") for s in OTHER_SHAPES),
    ],
)
def test_damaged_idx_files_are_named_with_the_remedy(mnist_folder, damage, message):
    damage(mnist_folder[0])
    with pytest.raises(DataError, match=message) as failure:
        formats.read_mnist(mnist_folder[0])
    assert "--data" in str(failure.value)
    assert "\n" not in str(failure.value)


def spoil_deflated(path):
    content = bytearray(path.read_bytes())
    content[10:40] = b"\xff" * 30
    path.write_bytes(content)


def bomb(path):
    """More than the header says, without an end that is worth its memory."""
    with gzip.open(path, "wb", 1) as file:
        file.write(struct.pack(">4I", formats.IDX_IMAGES, 10, 28, 28))
        for _ in range(64):
            file.write(bytes(2**20))


def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    bomb(path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="7857 bytes, but its header says 7856"):
            formats.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_header_that_claims_more_than_numbers_hold_is_refused(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    for lengths in ((2**31, 2**31, 4), (2**32 - 1,) * 3):
        path.write_bytes(struct.pack(">4I", formats.IDX_IMAGES, *lengths))
        with pytest.raises(DataError, match=f"16 bytes, but its header says {16 + prod(lengths)}"):
            formats.read_idx(path)


def test_data_in_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "data_batch_1.bin")
    with pytest.raises(DataError, match="it is no regular file"):
        formats.read_cifar10(tmp_path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def swap_label(path):
    path.write_bytes(path.read_bytes()[:-1] + bytes([77]))


@pytest.fixture
def cifar_folder(tmp_path):
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (6, 200, formats.CIFAR_RECORD)).astype(np.uint8)
    records[:, :, 0] %= 10
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    for name, batch in zip(names, records, strict=True):
        (inner / name).write_bytes(batch.tobytes())
    return tmp_path, records


def test_cifar_batches_are_read_in_order(cifar_folder):
    folder, records = cifar_folder
    images, labels = formats.read_cifar10(folder)
    assert images.shape == (1200, 3, 32, 32)
    assert np.array_equal(labels, records[:, :, 0].ravel())
    assert np.array_equal(images[200].ravel(), records[1, 0, 1:])
    assert split("cifar10_conv", data=str(folder)).test_inputs.shape == (200, 3, 32, 32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "data_batch_3.bin").unlink(), "data_batch_3.bin: No such file"),
        (lambda f: cut(f / "test_batch.bin"), "test_batch.bin: 614599 bytes, not a multiple"),
        (
            lambda f: (f / "data_batch_1.bin").write_bytes(b"\xff" * formats.CIFAR_RECORD),
            "label 255 above 9",
        ),
    ],
)
def test_damaged_cifar_files_are_named_with_the_remedy(cifar_folder, damage, message):
    damage(cifar_folder[0] / "cifar-10-batches-bin")
    with pytest.raises(DataError, match=message) as failure:
        formats.read_cifar10(cifar_folder[0])
    assert "cifar-10-binary.tar.gz" in str(failure.value)


def test_files_as_long_as_the_published_ones_must_be_those(tmp_path):
    labels = tmp_path / "train-labels-idx1-ubyte"
    write_idx(labels, np.zeros(60_000, np.uint8), formats.IDX_LABELS)
    with pytest.raises(DataError, match=r"labels-idx1-ubyte: altered: its MD5 is [0-9a-f]{32}"):
        formats.read_idx(labels)
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(10_000 * formats.CIFAR_RECORD))
    with pytest.raises(DataError, match=r"data_batch_1.bin: altered: its SHA1 .*--data"):
        formats.read_cifar10(tmp_path)


def test_cifar_that_cannot_be_fetched_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("pooch.retrieve", offline)
    with pytest.raises(DataError, match=r"no route to host.*--data synthetic"):
        split("cifar10_conv")


@pytest.mark.slow
def test_synthetic_images_are_seeded_and_say_that_they_are_not_cifar():
    images, labels = synthetic.textured_images(40, 1)
    assert images.shape == (40, 3, 32, 32)
    assert set(labels) <= set(range(10))
    again = synthetic.textured_images(40, 1)
    assert np.array_equal(images, again[0])
    assert np.array_equal(labels, again[1])
    assert not np.array_equal(images, synthetic.textured_images(40, 2)[0])
    assert "NOT CIFAR-10" in split("cifar10_conv", data="synthetic").source


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gf.experiments.get("mnist"), InputError, "experiment 'mnist' is not known"),
        (lambda: gf.experiments.get("iris_ff").prepare(-1), InputError, "seed=-1"),
        (lambda: gf.experiments.get("iris_ff").prepare(0, epochs=0), InputError, "epochs=0"),
        (lambda: split("iris_ff", data="x"), InputError, "iris_ff carries its own data"),
        (lambda: split("mnist_ff", data="no/folder"), DataError, "not a folder"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_walk_with_the_hash_of_converted_data_goes_on(tmp_path):
    """As archives have it that were written before the hash was that of the data as given."""
    prepared = gf.experiments.get("iris_ff").prepare(0, epochs=2, dtype=torch.float32)
    problem, now = prepared.problem, prepared.problem.data_sha256
    before = data.sha256(*prepared.train)
    assert before != now == gf.experiments.get("iris_ff").prepare(0, epochs=1).problem.data_sha256
    problem.data_sha256 = before
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    paths = [tmp_path / name for name in ("flow.nc", "file.nc", "other.nc")]
    options = {"t_end": 1e-3, "stop": None, "rtol": 1e-2, "provenance": prepared.provenance}
    for path in paths:
        gf.walk(flow, observables=prepared.observables, archive=path, **options)

    problem.data_sha256 = now
    ends = [
        gf.resume(paths[0], flow, t_end=2e-3, observables=prepared.observables),
        gf.resume(paths[1], t_end=2e-3),
    ]
    for ds in ends:
        assert ds.attrs["status"] == "t_end"
        assert ds.attrs["data_sha256"] == before
    assert np.array_equal(*(ds["theta"][-1] for ds in ends))
    for dtype in (torch.float32, torch.float64):
        run = like(paths[0])
        run.preparation |= {"dtype": dtype, "epochs": 1}
        assert run.prepare().problem.data_sha256 == now
    other = gf.experiments.get("iris_ff").prepare(1, epochs=1, dtype=torch.float32)
    wrong = gf.RegularizingFlow(gf.LevelSet(other.problem), gf.regularizers.squared_norm)
    with pytest.raises(gf.ArchiveError, match=r"its data \(SHA-256\) is not that of the walk"):
        gf.resume(paths[2], wrong, t_end=2e-3, observables=other.observables)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_the_hash_of_converted_data_is_that_of_all_chunks(batch_size):
    x, y = torch.linspace(0, 1, 60, dtype=torch.float64).reshape(20, 3), torch.arange(20) % 2
    module = torch.nn.Linear(3, 2)
    problem = gf.Problem.from_module(
        module, torch.nn.functional.cross_entropy, x, y, batch_size, dtype=torch.float32
    )
    assert problem.data_sha256 == data.sha256(x, y)
    assert same_data(problem, data.sha256(x, y))
    assert same_data(problem, data.sha256(x.float(), y))
    assert not same_data(problem, data.sha256(x.float() + 1e-6, y))
    function = gf.Problem.from_function(torch.sum, x[0])
    assert same_data(function, "")
    assert not same_data(function, "0" * 64)


def test_the_hash_of_batches_of_more_than_tensors_was_that_of_the_tensors():
    x, y = torch.linspace(0, 1, 60, dtype=torch.float64).reshape(20, 3), torch.arange(20) % 2

    def problem(scale):
        batches = [(x[:10], y[:10], scale), (x[10:], y[10:], np.full(2, scale))]
        return gf.Problem.from_batches(
            torch.nn.Linear(3, 2).double(),
            lambda module, batch: (
                torch.nn.functional.cross_entropy(module(batch[0]), batch[1]),
                1.0,
            ),
            batches,
        )

    former = data.sha256(x[:10], y[:10], x[10:], y[10:])
    assert problem(1.0).data_sha256 not in (former, problem(2.0).data_sha256)
    assert same_data(problem(1.0), former)
    assert not same_data(problem(1.0), problem(2.0).data_sha256)


def test_the_flow_of_a_walk_is_made_again_without_training():
    prepared = gf.experiments.get("iris_ff").prepare(1, epochs=2)
    flow = gf.RegularizingFlow(
        gf.LevelSet(prepared.problem, level_rtol=1e-7), gf.regularizers.quartic_norm
    )
    ds = gf.walk(flow, t_end=1e-3, max_snapshots=2, provenance=prepared.provenance)
    rebuilt = gf.experiments.rebuild(ds.attrs)
    again = rebuilt.flow
    theta = torch.from_numpy(ds["theta"].values[-1])
    assert torch.equal(again.evaluate(theta).velocity, flow.evaluate(theta).velocity)
    for name, observable in prepared.observables.items():
        assert rebuilt.observables[name](theta) == observable(theta)
    assert (again.level_set.level, again.level_set.level_rtol) == (flow.level_set.level, 1e-7)

    for attribute, value, message in (
        ("experiment", "", "of no experiment"),
        ("regularizer_name", "mine", "'mine' is not one of geoflow's own"),
        ("data_sha256", "0", "seed 1, are not those of the walk"),
        ("seed", 2, "seed 2, are not those of the walk"),
    ):
        with pytest.raises(gf.InputError, match=message):
            gf.experiments.rebuild(ds.attrs | {attribute: value})
