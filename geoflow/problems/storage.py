"""Parameters that lie in one memory, where θ would hold each of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from geoflow.errors import InputError


def check_memory(moving: Mapping[str, Tensor], beside: Mapping[str, Tensor]) -> None:
    """Refuse parameters that are stored in one memory: each would be a coordinate of its own.

    Parameters
    ----------
    moving : mapping of str to Tensor
        Parameters that are to move.
    beside : mapping of str to Tensor
        Those, and whatever else could share their memory. A parameter under two names is one.

    Raises
    ------
    InputError
        Two of them share memory, or one has elements that do.
    """
    held = {**beside, **moving}
    by_storage: dict[tuple[str, int], dict[int, str]] = {}
    for name, tensor in held.items():
        if tensor.numel() and tensor.layout == torch.strided:
            storage = (str(tensor.device), tensor.untyped_storage().data_ptr())
            by_storage.setdefault(storage, {}).setdefault(id(tensor), name)
    for name, tensor in moving.items():
        if _has_element_twice(tensor):
            raise InputError(
                f"module: {name} has elements that share memory (expand), and θ would hold each; "
                "make the parameter of those that differ, and expand it in forward"
            )
    for sharing in by_storage.values():
        names = sorted(sharing.values(), key=lambda name: _extent(held[name]))
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                if _extent(held[second])[0] >= _extent(held[first])[1]:
                    break
                moves = first in moving or second in moving
                # Columns of one matrix lie between one another.
                if moves and torch.isin(_places(held[first]), _places(held[second])).any():
                    raise InputError(
                        f"module: {first} and {second} share memory without being one parameter, "
                        "and θ would hold it twice; tie them as one nn.Parameter under both names"
                    )


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage that a tensor begins and ends at."""
    size, start = tensor.element_size(), int(tensor.storage_offset())
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return size * start, size * (start + int(last) + 1)


def _places(tensor: Tensor) -> Tensor:
    """The byte of its storage that each element of a tensor begins at, flat."""
    places = torch.tensor(tensor.storage_offset(), device="cpu")
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places[..., None] + torch.arange(n, device="cpu") * stride
    return tensor.element_size() * places.reshape(-1)


def _has_element_twice(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or not tensor.numel():
        return False
    reach = 0
    for stride, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        # Each dimension steps over all that those before it reach.
        if n > 1 and stride <= reach:
            return len(_places(tensor).unique()) < tensor.numel()
        reach += (n - 1) * stride
    return False
