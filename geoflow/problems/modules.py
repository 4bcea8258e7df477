"""A user's network made ready: unwrapped, copied, converted, its moving parameters picked out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.system import kinds

Layer = TypeVar("Layer", bound=nn.Module)

COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


class Network(NamedTuple):
    """A module of which everything but ``moving`` stays as it is.

    Attributes
    ----------
    module : torch.nn.Module
        A copy, in the dtype and on the device of the evaluation.
    moving, fixed : dict of str to Tensor
        The parameters that make up θ, and every other parameter and buffer, by name.
    """

    module: nn.Module
    moving: dict[str, Tensor]
    fixed: dict[str, Tensor]


def network(
    module: nn.Module,
    parameters: str | Sequence[str] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Network:
    """Copy a module into a dtype, with the parameters named free to move.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed. Wrappers of ``torch.compile`` and ``DataParallel`` are taken off.
    parameters : str or sequence of str, optional
        Patterns of names, as ``"head.*"``, of tied parameters of any of theirs. None: all with
        ``requires_grad``.
    dtype, device
        Of the copy.

    Raises
    ------
    InputError
        Nothing to move, or a module that cannot be evaluated at parameters other than its own.
    """
    plain = unwrap(module)
    check_kind(plain)
    plain = duplicate(plain)
    for child in list(plain.modules()):
        for key, grandchild in list(child.named_children()):
            if (inner := unwrap(grandchild)) is not grandchild:
                setattr(child, key, inner)
    _convert(plain, dtype, device)
    free = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    chosen = _matching(list(free), parameters, tied_names(plain))
    moving = {n: free[n].detach() for n in chosen}
    for name, child in plain.named_modules():
        moves = (f"{name}.weight" if name else "weight") in moving
        if moves and isinstance(child, nn.Embedding | nn.EmbeddingBag) and child.sparse:
            raise InputError(
                f"module: {name or 'module'} ({type(child).__name__}) has sparse=True, and θ is "
                "dense; set sparse=False"
            )
    fixed = {n: p.detach() for n, p in plain.named_parameters() if n not in moving}
    fixed.update({n: b.detach() for n, b in plain.named_buffers()})
    return Network(plain, moving, fixed)


def unwrap(module: nn.Module) -> nn.Module:
    """Take off what ``torch.compile`` and ``DataParallel`` put around a module."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def check_kind(module: nn.Module) -> None:
    """Refuse modules whose parameters cannot be replaced from outside.

    Raises
    ------
    InputError
        Scripted or traced, lazy and not yet run, or with complex parameters.
    """
    for name, child in module.named_modules():
        where = f"{name or 'module'} ({type(child).__name__})"
        if isinstance(child, torch.jit.ScriptModule):
            raise InputError(
                f"module: {where} is scripted or traced, so its parameters cannot be replaced; "
                "give the module it was made from"
            )
        if getattr(child, "max_norm", None) is not None and isinstance(
            child, nn.Embedding | nn.EmbeddingBag
        ):
            raise InputError(
                f"module: {where} has max_norm={child.max_norm}, which changes the parameters "
                "while the loss is evaluated; set max_norm=None"
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise InputError(f"module: {name} is on the device 'meta', without values; load them")
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(f"module: {name} is not initialised yet; run the module once")
        if parameter.is_complex():
            raise InputError(
                f"module: {name} is complex, and θ is real; keep its real and imaginary parts as "
                "two real parameters"
            )


def duplicate(module: nn.Module) -> nn.Module:
    """Copy a module, also one that keeps what it has computed.

    Tensors inside a graph cannot be copied; of those the values are.
    """
    kept = {
        id(value): value.detach().clone()
        for child in module.modules()
        for value in _tensors(vars(child))
        if not value.is_leaf
    }
    try:
        return copy.deepcopy(module, dict(kept))
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"module: {type(module).__name__} cannot be copied "
            f"({str(error).splitlines()[0]}); remove what it keeps beside its parameters"
        ) from None


def computes_as(module: nn.Module, layers: tuple[type[Layer], ...]) -> TypeGuard[Layer]:
    """Whether a module is one of PyTorch's layers, and does what that does and nothing else.

    A subclass may compute anything, as one with a parametrization does, and so may a hook. One of
    ``nn.Sequential`` that has no forward pass of its own is one.
    """
    own = type(module)
    in_order = isinstance(module, nn.Sequential) and own.forward is nn.Sequential.forward
    plain = own in layers or (in_order and nn.Sequential in layers)
    return plain and not (module._forward_hooks or module._forward_pre_hooks)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item)


def _convert(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Convert in place; complex buffers stay complex."""

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, COMPLEX[dtype])
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    module._apply(converted)


def tied_names(module: nn.Module) -> dict[str, str]:
    """Other names of parameters that are in several places, each with the first."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    found = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    return {name: own for name, own in found.items() if name != own}


def matching_names(names: Iterable[str], ties: Mapping[str, str], pattern: str) -> set[str]:
    """Those of the names that match a pattern, or have a tied one that does."""
    found = {name for name in names if fnmatchcase(name, pattern)}
    return found | {
        own for other, own in ties.items() if own in names and fnmatchcase(other, pattern)
    }


def _matching(
    names: list[str], patterns: str | Sequence[str] | None, ties: Mapping[str, str]
) -> list[str]:
    if patterns is None:
        if not names:
            raise InputError("module has no trainable parameter; set requires_grad=True on some")
        return names
    kinds.check_kind(patterns, Iterable, "parameters", "patterns of names, or None")
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise InputError("parameters is empty; give patterns of names, or None for all")
    for pattern in patterns:
        kinds.check_kind(pattern, str, "parameters", "patterns of names, or None")
    chosen: set[str] = set()
    for pattern in patterns:
        found = matching_names(names, ties, pattern)
        if not found:
            known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise InputError(
                f"parameters={pattern!r} is the name of no parameter that requires_grad; "
                f"there are {known or 'none'}"
            )
        chosen |= found
    return [n for n in names if n in chosen]


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by the name that problems give it, whatever is wrapped around modules.

    Tied parameters are there under each of their names.
    """
    named = unwrap(module).named_parameters(remove_duplicate=False)
    return {name.replace("_orig_mod.", ""): parameter for name, parameter in named}
