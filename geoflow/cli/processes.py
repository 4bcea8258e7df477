"""One walk in several processes, as torchrun starts them."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from geoflow.archive import parts
from geoflow.errors import InputError
from geoflow.experiments import PreparedExperiment
from geoflow.manifold.flows import RegularizingFlow, check_single
from geoflow.manifold.level_set import LevelSet
from geoflow.problems.distributed import DistributedProblem
from geoflow.system.translation import reason

Options = argparse.Namespace


def number() -> int:
    """How many processes were started for this command."""
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"WORLD_SIZE={text!r} is no number of processes; start them by torchrun")
    return int(text)


def check_number(args: Options) -> None:
    """Refuse several processes for what only one does.

    Raises
    ------
    InputError
        Another command than ``run`` and ``resume``.
    """
    if number() > 1 and args.command.__name__ not in ("run", "resume"):
        raise InputError(
            f"WORLD_SIZE={number()}: only run and resume divide their data over processes; start "
            "this command by itself"
        )


@contextmanager
def joined(args: Options, device: str) -> Iterator[Options]:
    """Join the processes; give the options to go by, in all but the first without an output.

    The others write into a folder that goes at the end, so that all do the same.

    Raises
    ------
    InputError
        torchrun has not said where the others are.
    """
    if number() == 1:
        yield args
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"WORLD_SIZE={number()}: the processes cannot be joined ({reason(error)}); start them "
            "by torchrun"
        ) from None
    try:
        with tempfile.TemporaryDirectory(prefix="geoflow-") as folder:
            given, own = vars(args), dict[str, Any]()
            if "file" in given:
                own["file"] = str(_copied(Path(args.file), Path(folder)))
            if dist.get_rank():
                out = f"{folder}/walk.nc" if given.get("out") is not None else None
                own |= {"quiet": True, "figures": None, "out": out}
            yield Options(**{**given, **own})
    finally:
        dist.destroy_process_group()


def divided(prepared: PreparedExperiment) -> PreparedExperiment:
    """Return the same with its data divided over the processes, where there are several."""
    if number() == 1:
        return prepared
    return replace(prepared, problem=_distributed(prepared.problem))


def divided_flow(flow: RegularizingFlow) -> RegularizingFlow:
    """Return the same flow, likewise."""
    check_single(flow, "a walk over several processes")
    level_set = flow.level_set
    return RegularizingFlow(
        LevelSet(_distributed(level_set.problem), level_set.level, level_set.level_rtol),
        flow.regularizer,
    )


def _copied(path: Path, folder: Path) -> Path:
    """A copy of a walk, finished or not, in each process but the first; the first has its own."""
    sent: list[dict[str, bytes] | None] = [None]
    first = dist.get_rank() == 0
    if first:
        beside = parts.folder_beside(path)
        found = [p for p in (path, *sorted(beside.glob("*.npz"))) if p.is_file()]
        sent = [{p.name: p.read_bytes() for p in found}]
    dist.broadcast_object_list(sent, src=0)
    if first:
        return path
    target = folder / path.name
    beside = parts.folder_beside(target)
    for name, content in (sent[0] or {}).items():
        where = target if name == path.name else beside / name
        where.parent.mkdir(exist_ok=True)
        where.write_bytes(content)
    return target


def _distributed(problem: object) -> DistributedProblem:
    return DistributedProblem(problem)  # type: ignore[arg-type]
