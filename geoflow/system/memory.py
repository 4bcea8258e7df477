"""What does not fit into memory is refused before any work is done."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from geoflow.errors import InputError

CPU = torch.device("cpu")
CGROUPS = Path("/sys/fs/cgroup")


def available_memory(device: torch.device = CPU) -> int | None:
    """Bytes that are to be had on a device; None where the device does not say."""
    if device.type == "cuda":
        # What torch has reserved and does not use serves as well.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu":
        return None
    available = int(psutil.virtual_memory().available)
    allowed = left_in_cgroup(CGROUPS, Path("/proc/self/cgroup"))
    return available if allowed is None else min(available, allowed)


def left_in_cgroup(root: Path, own: Path) -> int | None:
    """Bytes that a container or a batch job still allows this process; None where it sets no limit.

    Parameters
    ----------
    root, own : Path
        Where Linux has its control groups, version 2, and in which this process is.
    """
    try:
        entry = next(line for line in own.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):
        return None
    left = []
    group = root / entry.removeprefix("0::/")
    # A limit holds for all below the group it is set for.
    for folder in (group, *group.parents):
        if folder != root and root not in folder.parents:
            break
        try:
            most = (folder / "memory.max").read_text().strip()
            if most != "max":
                used = int((folder / "memory.current").read_text())
                stat = dict(
                    line.split() for line in (folder / "memory.stat").read_text().splitlines()
                )
                # What is cached of files gives way.
                left.append(int(most) - used + int(stat.get("inactive_file", 0)))
        except (OSError, ValueError):
            continue
    return max(0, min(left)) if left else None


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
