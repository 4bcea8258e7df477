"""Arguments of a sweep, checked before a process is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr

from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.problems.dtypes import DTYPES
from geoflow.system import kinds
from geoflow.walking.configuration import MOST_THREADS


def several(values: Any, name: str) -> list[Any]:
    """List a sequence, and refuse what is none, or one of letters or names.

    Raises
    ------
    InputError
        It is no sequence, or has more than runs can be made of.
    """
    give = "numbers in a list"
    if isinstance(values, str | bytes | Mapping | xr.Dataset):
        raise InputError(f"{name}={kinds.shown(values)}; give {give}")
    return kinds.listed(values, name, give)


def checked_seeds(seeds: kinds.Wholes) -> list[int]:
    """Return seeds that can be used.

    Raises
    ------
    InputError
        None, one that cannot be used, or one that is there twice.
    """
    checked = [check_seed(seed) for seed in several(seeds, "seeds")]
    if not checked or len(set(checked)) < len(checked):
        raise InputError(f"seeds={kinds.shown(checked)}; use at least one, each once")
    return checked


def check_common(
    dtype: Any, device: Any, epochs: Any, data: Any, scheduler: Any, workers: Any, threads: Any
) -> tuple[int | None, int | None, int]:
    """Refuse arguments of the wrong kind that all sweeps have.

    Returns
    -------
    tuple of int
        The epochs, the workers and the threads, as Python's own numbers: manifests hold them.

    Raises
    ------
    InputError
        One is of another, or there are more threads than a machine can have.
    """
    kinds.check_kind(dtype, str | None, "dtype", "'float64' or 'float32'")
    kinds.check_kind(device, str | None, "device", "the name of one, such as 'cpu'")
    epochs = None if epochs is None else kinds.as_whole(epochs, "epochs")
    kinds.check_kind(data, str | None, "data", "a folder's name, or None")
    kinds.check_kind(scheduler, str | None, "scheduler", "an address, such as tcp://host:8786")
    # Where nothing is missing, and no worker is started, too.
    if workers is not None:
        workers = kinds.as_whole(workers, "workers", least=1)
    threads = kinds.as_whole(threads, "threads", least=1)
    if threads > MOST_THREADS:
        raise InputError(f"threads={threads}; use 1 to {MOST_THREADS}")
    return epochs, workers, threads


def named_dtype(name: str) -> torch.dtype:
    """Return the dtype of this name.

    Raises
    ------
    InputError
        It is neither float64 nor float32.
    """
    if name not in DTYPES:
        raise InputError(f"dtype={name!r}; use 'float64' or 'float32'")
    return DTYPES[name]
