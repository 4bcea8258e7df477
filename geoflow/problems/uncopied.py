"""What a module holds that has no copy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from geoflow.errors import InputError
from geoflow.system.translation import reason


def refused(module: nn.Module, of: str, error: Exception, known: dict[int, Any]) -> InputError:
    """What to say of a module that cannot be copied.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    of : str
        The argument that it is.
    error : Exception
        Why.
    known : dict
        Copies that there were before, as ``copy.deepcopy`` remembers them; not changed.
    """
    where, kind = _attribute(module, known), type(module).__name__
    # What torch says goes on about a function of its own.
    if "graph leaves" in str(error):
        return InputError(
            f"{of}: {kind} cannot be copied with what it has computed and keeps "
            f"{f'in {where}' if where else 'beside its parameters'}; empty that, as module.eval() "
            "and then module.train() empty the cache of a library, or give a new module that has "
            "loaded the state_dict() of this one"
        )
    return InputError(
        f"{of}: {kind} cannot be copied ({reason(error)}); remove "
        f"{f'{where}, which' if where else 'what'} it keeps beside its parameters"
    )


def _attribute(module: nn.Module, known: dict[int, Any]) -> str | None:
    """The first attribute that cannot be copied by itself, as ``layer.cache``; None: there is none.

    A layer is none, since its own come by themselves, and so do those of one that refers to it.
    """
    known = {**known, **{id(layer): layer for layer in module.modules()}}
    for where, layer in module.named_modules():
        for key, value in vars(layer).items():
            if not _has_copy(value, known):
                return f"{where}.{key}" if where else key
    return None


def _has_copy(value: Any, known: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(known))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    # Whatever a module holds on to may refuse in its own way.
    except Exception:
        return False
    return True
