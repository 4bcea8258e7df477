"""What a module keeps beside its parameters: tensors that are plain attributes of its layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from geoflow.problems import arithmetic
from geoflow.problems.first_evaluation import listed
from geoflow.problems.graph import leaf_ids
from geoflow.problems.parts import LossPart, Parameters


def check_used(
    parts: Iterable[LossPart],
    module: nn.Module | None,
    parameters: Parameters,
    gradient: Parameters,
) -> None:
    """Warn of parameters that have no part in a loss, where that is odd.

    A module need not use all of its parameters. A layer that keeps tensors beside its own, or what
    that layer is part of, may keep what it has computed of those without a part, as low-rank
    factors merged outside of training are. What the whole network keeps, as a mask, is of none of
    its layers.

    Parameters
    ----------
    parts : iterable of LossPart
        Evaluated until each parameter without a gradient has been found in one.
    module : torch.nn.Module, optional
        The network, where there is one.
    parameters, gradient : dict of str to Tensor
        Where it is evaluated, and its gradient there.
    """
    at = {n: t.detach().clone().requires_grad_() for n, t in parameters.items()}
    missing = {n: t for n, t in at.items() if t.numel() and not gradient[n].any()}
    if module is None or not names_kept(module, missing):
        return
    device = next(iter(at.values())).device
    with torch.enable_grad(), arithmetic.exact(device):
        for part in parts:
            used = leaf_ids(part.sum_and_weight(at)[0])
            missing = {n: t for n, t in missing.items() if id(t) not in used}
            if not names_kept(module, missing):
                return
    keeps = sorted(names_kept(module, missing))
    keeping = {where for (where, _), _ in tensors_kept(module)}
    missing = {n: t for n, t in missing.items() if not keeping.isdisjoint(_places(n))}
    n = sum(t.numel() for t in missing.values())
    warnings.warn(
        f"module: {listed(list(missing))} ({n:,} parameters of θ) have no part in the loss, and "
        f"it keeps {', '.join(keeps[:4])}: clear that first if it was computed of them, or leave "
        "them out by requires_grad_(False)",
        stacklevel=4,
    )


def tensors_kept(module: nn.Module) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Floating tensors that are plain attributes, by module and name."""
    for where, child in module.named_modules():
        for key, tensor in vars(child).items():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                yield (where, key), tensor


def names_kept(module: nn.Module, names: Iterable[str]) -> set[str]:
    """What the layers that hold some parameters keep, and what those are part of."""
    places = {place for name in names for place in _places(name)}
    return {key for (where, key), _ in tensors_kept(module) if where in places}


def _places(name: str) -> set[str]:
    """The layer that holds a parameter, and what that is part of."""
    path = name.split(".")[:-1]
    return {".".join(path[:n]) for n in range(1, len(path) + 1)} or {""}


@contextmanager
def watched(module: nn.Module) -> Iterator[dict[tuple[str, str], Tensor]]:
    """Have what the module keeps outside of any graph replaced by leaves of one for a while."""
    children = dict(module.named_modules())
    before = {place: t for place, t in tensors_kept(module) if not t.requires_grad}
    leaves = {place: t.detach().clone().requires_grad_() for place, t in before.items()}
    try:
        for (where, key), leaf in leaves.items():
            children[where].__dict__[key] = leaf
        yield leaves
    finally:
        for (where, key), tensor in before.items():
            children[where].__dict__[key] = tensor
