"""Readers of the IDX and CIFAR-10 binary formats; they check every byte count."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import DataError
from geoflow.system import files
from geoflow.system.translation import reason

IDX_IMAGES, IDX_LABELS = 0x00000803, 0x00000801
# Of three dimensions; and bytes of a file, some ten times the largest of those published.
LONGEST_HEADER, LARGEST = 16, 2**29
CIFAR_RECORD = 1 + 3 * 32 * 32

MNIST_SOURCE = "get the four IDX files of MNIST and name their folder with --data"
CIFAR_SOURCE = (
    "get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it and "
    "name its folder with --data"
)

# Length and checksum (MD5 of MNIST's, SHA-1 of CIFAR-10's) of the published files, unpacked. A
# file as long as the published one must be it; extracts are checked for their format alone.
PUBLISHED = {
    "train-images-idx3": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1": (60_008, "a25bea736e30d166cdddb491f175f624"),
    "data_batch_1": (30_730_000, "aadd24acce27caa71bf4b10992e9e7b2d74c2540"),
    "data_batch_2": (30_730_000, "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795"),
    "data_batch_3": (30_730_000, "1dd00a74ab1d17a6e7d73e185b69dbf31242f295"),
    "data_batch_4": (30_730_000, "aab85764eb3584312d3c7f65fd2fd016e36a258e"),
    "data_batch_5": (30_730_000, "26e2849e66a845b7f1e4614ae70f4889ae604628"),
    "test_batch": (30_730_000, "67eb016db431130d61cd03c7ad570b013799c88c"),
}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Raises
    ------
    DataError
        The file is missing, not IDX, truncated, too long, or altered.
    """
    content = _read(path, MNIST_SOURCE)
    if path.suffix == ".gz":
        content = _unpacked(path, content)
    magic = struct.unpack(">I", content[:4])[0] if len(content) >= 4 else -1
    if magic not in (IDX_IMAGES, IDX_LABELS):
        raise DataError(f"{path}: not an IDX file of images or labels; {MNIST_SOURCE}")
    n_dims = magic & 0xFF
    header = 4 + 4 * n_dims
    if len(content) < header:
        raise DataError(f"{path}: ends within its header; {MNIST_SOURCE}")
    shape = struct.unpack(f">{n_dims}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: {len(content)} bytes, but its header says {expected}; {MNIST_SOURCE}"
        )
    _check_published(path, content, MNIST_SOURCE)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_mnist(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read MNIST's training images (N, 28, 28) and labels (N,) from a folder of IDX files.

    Raises
    ------
    DataError
        A file is missing or damaged, or the two are of other shapes or do not belong together.
    """
    paths = [
        _find(folder, f"train-{part}", MNIST_SOURCE) for part in ("images-idx3", "labels-idx1")
    ]
    images, labels = (read_idx(path) for path in paths)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{paths[0]} has shape {images.shape} and {paths[1].name} {labels.shape}, not "
            f"(N, 28, 28) and (N,); {MNIST_SOURCE}"
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
        A file is missing, of the wrong length, altered, or has a label above 9.
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
        _check_published(folder / name, content, CIFAR_SOURCE)
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


def _check_published(path: Path, content: bytes, remedy: str) -> None:
    """Refuse a file that is as long as the published one of its name, but another."""
    stem = path.name.replace(".idx", "-idx").split(".")[0].removesuffix("-ubyte")
    length, expected = PUBLISHED.get(stem, (-1, ""))
    if len(content) != length:
        return
    kind = "md5" if len(expected) == 32 else "sha1"
    found = hashlib.new(kind, content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: altered: its {kind.upper()} is {found}, that of the published file "
            f"{expected}; {remedy}"
        )


def _unpacked(path: Path, content: bytes) -> bytes:
    """Unpack a gzip file, as far as its own header says that it is long, and a byte more."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            start = file.read(LONGEST_HEADER)
            n_dims = start[3] if len(start) > 3 else 0
            shape = struct.unpack_from(f">{min(n_dims, 3)}I", start.ljust(LONGEST_HEADER), 4)
            expected = min(4 + 4 * n_dims + math.prod(shape), LARGEST)
            return start + file.read(max(expected - len(start), 0) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({reason(error)}); {MNIST_SOURCE}") from None


def _read(path: Path, remedy: str) -> bytes:
    try:
        return files.content(path, LARGEST)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {reason(error)}; {remedy}") from None
