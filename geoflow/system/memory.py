"""What does not fit into memory is refused before any work is done."""

from __future__ import annotations

import psutil
import torch

from geoflow.errors import InputError

CPU = torch.device("cpu")


def available_memory(device: torch.device = CPU) -> int | None:
    """Bytes that are to be had on a device; None where the device does not say."""
    if device.type == "cuda":
        # What torch has reserved and does not use serves as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None


def check_memory(needed: int, what: str, remedy: str, device: torch.device = CPU) -> None:
    """Refuse what does not fit into memory.

    What an allocator keeps beside what is asked of it is not counted. The C library of Linux keeps
    freed blocks below 32 MiB: that can be as much again, where vectors are smaller than that.

    Parameters
    ----------
    needed : int
        Bytes.
    what, remedy : str
        What needs them, in the plural, and what to do about it.
    device : torch.device
        Where.

    Raises
    ------
    InputError
        More bytes are needed than are available.
    """
    available = available_memory(device)
    if available is not None and needed > available:
        where = "" if device.type == "cpu" else f" on {device}"
        gib = min(needed, 10**300) / 2**30
        need = f"{gib:.1f}" if gib < 1e6 else f"{gib:.2g}"
        raise InputError(
            f"{what} need {need} GiB of memory and {available / 2**30:.1f} GiB are available"
            f"{where}; {remedy}"
        )
