"""Readers of the IDX and CIFAR-10 binary formats; they check every byte count."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import DataError

IDX_IMAGES, IDX_LABELS = 0x00000803, 0x00000801
CIFAR_RECORD = 1 + 3 * 32 * 32

MNIST_SOURCE = "get the four IDX files of MNIST and name their folder with --data"
CIFAR_SOURCE = (
    "get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and "
    "name its folder with --data"
)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Raises
    ------
    DataError
        The file is missing, not IDX, truncated or too long.
    """
    content = _read(path, MNIST_SOURCE)
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: damaged gzip file ({error}); {MNIST_SOURCE}") from None
    magic = struct.unpack(">I", content[:4])[0] if len(content) >= 4 else -1
    if magic not in (IDX_IMAGES, IDX_LABELS):
        raise DataError(f"{path}: not an IDX file of images or labels; {MNIST_SOURCE}")
    n_dims = magic & 0xFF
    header = 4 + 4 * n_dims
    if len(content) < header:
        raise DataError(f"{path}: ends within its header; {MNIST_SOURCE}")
    shape = struct.unpack(f">{n_dims}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise DataError(
            f"{path}: {len(content)} bytes, but its header says {expected}; {MNIST_SOURCE}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_mnist(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read MNIST's training images (N, 28, 28) and labels (N,) from a folder of IDX files.

    Raises
    ------
    DataError
        A file is missing or damaged, or the two do not belong together.
    """
    paths = [
        _find(folder, f"train-{part}", MNIST_SOURCE) for part in ("images-idx3", "labels-idx1")
    ]
    images, labels = (read_idx(path) for path in paths)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{paths[0]} has shape {images.shape} and {paths[1].name} {labels.shape}; "
            f"{MNIST_SOURCE}"
        )
    if labels.size and labels.max() > 9:
        raise DataError(f"{paths[1]}: label {labels.max()} is not a digit; {MNIST_SOURCE}")
    return images, labels


def read_cifar10(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read CIFAR-10's images (N, 3, 32, 32) and labels (N,) from its binary version.

    All five training batches, then the test batch.

    Raises
    ------
    DataError
        A file is missing, of the wrong length, or has a label above 9.
    """
    inner = folder / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else folder
    records = []
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        content = _read(folder / name, CIFAR_SOURCE)
        if not content or len(content) % CIFAR_RECORD:
            raise DataError(
                f"{folder / name}: {len(content)} bytes, not a multiple of {CIFAR_RECORD}: "
                f"truncated or not the binary version; {CIFAR_SOURCE}"
            )
        batch = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
        if batch[:, 0].max() > 9:
            raise DataError(f"{folder / name}: label {batch[:, 0].max()} above 9; {CIFAR_SOURCE}")
        records.append(batch)
    table = np.concatenate(records)
    return table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0]


def _find(folder: Path, prefix: str, remedy: str) -> Path:
    """Either spelling of the format's own file names, gzipped or not."""
    dotted = prefix.replace("-idx", ".idx")
    for stem in (prefix, dotted):
        for ending in ("-ubyte", "-ubyte.gz"):
            if (folder / (stem + ending)).is_file():
                return folder / (stem + ending)
    raise DataError(f"{folder / (prefix + '-ubyte')} is missing; {remedy}")


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {remedy}") from None
