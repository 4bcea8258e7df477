"""A user's network made ready: unwrapped, copied, converted, its moving parameters picked out."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.problems import alone, data, displaced, uncopied
from geoflow.problems.storage import check_memory
from geoflow.system import kinds

Layer = TypeVar("Layer", bound=nn.Module)

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)

# What ``copy.deepcopy`` remembers of the objects it has copied.
Memo = dict[int, Any]


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


# In evaluation mode, which a problem asks for, they give what they get.
DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def network(
    module: nn.Module,
    parameters: str | Sequence[str] | None,
    dtype: torch.dtype,
    device: torch.device,
    memo: Memo | None = None,
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
    memo : dict, optional
        Of :func:`duplicate`.

    Raises
    ------
    InputError
        Nothing to move, or a module that cannot be evaluated at parameters other than its own.
    """
    copied = plain(module, memo)
    convert(copied, dtype, device)
    moving = {n: p.detach() for n, p in moving_parameters(copied, parameters).items()}
    for name, tensor in moving.items():
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise InputError(f"module: {name} has {bad} non-finite values in {dtype}; set them")
    own, buffers = parameters_by_name(module), dict(unwrap(module).named_buffers())
    check_memory({n: own[n] for n in moving if n in own}, {**own, **buffers})
    for name, child in copied.named_modules():
        moves = (f"{name}.weight" if name else "weight") in moving
        if moves and isinstance(child, nn.Embedding | nn.EmbeddingBag) and child.sparse:
            raise InputError(
                f"module: {name or 'module'} ({type(child).__name__}) has sparse=True, and θ is "
                "dense; set sparse=False"
            )
    fixed = {n: p.detach() for n, p in copied.named_parameters() if n not in moving}
    fixed.update({n: b.detach() for n, b in copied.named_buffers()})
    return Network(copied, moving, fixed)


def plain(module: nn.Module, memo: Memo | None = None) -> nn.Module:
    """Copy a module without the wrappers of ``torch.compile`` and ``DataParallel`` around or in it.

    Its parameters then have the names that problems give them, and can be replaced.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    memo : dict, optional
        Of :func:`duplicate`.

    Raises
    ------
    InputError
        A wrapper that computes something, or parameters that cannot be replaced from outside.
    """
    check_kind(unwrap(module))
    return _unwrapped_copy(module, "module", memo)


def loss(module: nn.Module, dtype: torch.dtype, device: torch.device, memo: Memo) -> nn.Module:
    """Copy a loss that is a module into a dtype, as the network that it belongs to.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed. Wrappers are taken off, as those of a network are: what a compiled one has as
        its ``reduction`` is a copy, that of the one inside counts.
    dtype, device
        Of the copy.
    memo : dict
        Of the network's copy: what the two share, the copies share.

    Raises
    ------
    InputError
        It cannot be copied, has parameters that are not there yet, or a wrapper that computes
        something.
    """
    _check_initialised(dict(unwrap(module).named_parameters()), "loss_fn")
    copied = _unwrapped_copy(module, "loss_fn", memo)
    convert(copied, dtype, device)
    return copied


def _unwrapped_copy(module: nn.Module, of: str, memo: Memo | None) -> nn.Module:
    """A copy without wrappers around or in it; ``of`` is the argument's name."""
    check_wrappers(module, of)
    copied = duplicate(unwrap(module), of, memo)
    for child in list(copied.modules()):
        for key, grandchild in list(child.named_children()):
            if (inner := unwrap(grandchild)) is not grandchild:
                setattr(child, key, inner)
    return copied


def unwrap(module: nn.Module) -> nn.Module:
    """Take off what ``torch.compile`` and ``DataParallel`` put around a module.

    Not what a class of a user's own puts there: what that computes beside is part of the network.
    """
    while (inner := _inside(module)) is not None:
        module = inner
    return module


def _inside(wrapper: nn.Module) -> nn.Module | None:
    for parallel in PARALLEL:
        if isinstance(wrapper, parallel) and type(wrapper).forward is parallel.forward:
            return wrapper.module
    # Where nothing was compiled it is not loaded, and takes a second.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is not None and type(wrapper) is compiler.OptimizedModule:
        compiled: nn.Module = wrapper.__dict__["_modules"]["_orig_mod"]
        return compiled
    return None


def check_wrappers(module: nn.Module, of: str = "module") -> None:
    """Refuse wrappers that compute something beside what they wrap, by the argument's name.

    Raises
    ------
    InputError
        One has a hook, or a forward pass of its own.
    """
    for name, child in module.named_modules():
        where = f"{name or of} ({type(child).__name__})"
        if _inside(child) is not None:
            if child._forward_hooks or child._forward_pre_hooks:
                raise InputError(
                    f"{of}: {where} has a forward hook, and is taken off; register it on the "
                    "module inside"
                )
        elif isinstance(child, PARALLEL):
            raise InputError(
                f"{of}: {where} has a forward pass of its own, which is lost where it is taken "
                "off; make it a plain nn.Module around the one inside"
            )


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
    _check_initialised(dict(module.named_parameters()), "module")
    for name, parameter in module.named_parameters():
        if parameter.is_complex():
            raise InputError(
                f"module: {name} is complex, and θ is real; keep its real and imaginary parts as "
                "two real parameters"
            )


def _check_initialised(parameters: Mapping[str, nn.Parameter], of: str) -> None:
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            run = "the module" if of == "module" else "it"
            raise InputError(f"{of}: {name} is not initialised yet; run {run} once")


@alone.in_turn
def duplicate(module: Layer, of: str = "module", memo: Memo | None = None) -> Layer:
    """Copy a module, also one that keeps what it has computed.

    Tensors inside a graph cannot be copied, nor sparse ones by rows or columns; of those the values
    are.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    of : str
        The argument that it is, for the message.
    memo : dict, optional
        As ``copy.deepcopy`` has it. What two modules share, their copies by one memo share too.

    Raises
    ------
    InputError
        It cannot be copied.
    """
    memo = {} if memo is None else memo
    known = dict(memo)
    try:
        with displaced.in_place(), alone.at_rest(module):
            for child in module.modules():
                for value in _tensors(vars(child)):
                    by_rows = value.layout not in (torch.strided, torch.sparse_coo)
                    if not value.is_leaf or (by_rows and not isinstance(value, nn.Parameter)):
                        memo.setdefault(id(value), value.detach().clone())
            known = dict(memo)
            return copy.deepcopy(module, memo)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    # Whatever a module holds on to may refuse in its own way.
    except Exception as error:
        raise uncopied.refused(module, of, error, known) from None


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


def convert(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Convert in place; complex buffers stay complex."""
    module._apply(lambda tensor: data.converted(tensor, dtype, device))


def tied_names(module: nn.Module) -> dict[str, str]:
    """Other names of parameters that are in several places, each with the first."""
    first: dict[int, str] = {}
    named = parameters_by_name(module).items()
    found = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    return {name: own for name, own in found.items() if name != own}


def matching_names(names: Iterable[str], ties: Mapping[str, str], pattern: str) -> set[str]:
    """Those of the names that match a pattern, or have a tied one that does."""
    found = {name for name in names if fnmatchcase(name, pattern)}
    return found | {
        own for other, own in ties.items() if own in names and fnmatchcase(other, pattern)
    }


def moving_parameters(
    module: nn.Module, patterns: str | Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Those that make up the θ of a problem of the module, by their names there and in their order.

    Parameters
    ----------
    module : torch.nn.Module
        Whatever is wrapped around modules.
    patterns : str or sequence of str, optional
        As the ``parameters`` of :meth:`geoflow.Problem.from_module`.

    Raises
    ------
    InputError
        There is none, a pattern is the name of none, or one is not initialised yet.
    """
    named, ties = parameters_by_name(module), tied_names(module)
    free = {n: p for n, p in named.items() if n not in ties and p.requires_grad}
    _check_initialised(free, "module")
    return {n: free[n] for n in _matching(list(free), patterns, ties)}


def _matching(
    names: list[str], patterns: str | Sequence[str] | None, ties: Mapping[str, str]
) -> list[str]:
    if patterns is None:
        if not names:
            raise InputError("module has no trainable parameter; set requires_grad=True on some")
        return names
    give = "patterns of names, or None"
    kinds.check_kind(patterns, Iterable, "parameters", give)
    one = isinstance(patterns, str)
    patterns = [str(patterns)] if one else kinds.listed(patterns, "parameters", give)
    if not patterns:
        raise InputError("parameters is empty; give patterns of names, or None for all")
    for pattern in patterns:
        kinds.check_kind(pattern, str, "parameters", give)
    chosen: set[str] = set()
    for pattern in patterns:
        found = matching_names(names, ties, pattern)
        if not found:
            known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise InputError(
                f"parameters={kinds.shown(pattern)} is the name of no parameter that "
                f"requires_grad; there are {known or 'none'}"
            )
        chosen |= found
    return [n for n in names if n in chosen]


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by the name that problems give it, whatever is wrapped around modules.

    Tied parameters are there under each of their names.
    """
    inner = unwrap(module)
    found = dict(inner.named_parameters(recurse=False, remove_duplicate=False))
    for name, child in inner._modules.items():
        if child is not None:
            found.update({f"{name}.{n}": p for n, p in parameters_by_name(child).items()})
    return found
