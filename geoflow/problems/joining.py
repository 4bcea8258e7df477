"""What a network gives of chunks of the examples, put together as of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from geoflow.errors import InputError
from geoflow.problems import data
from geoflow.problems.data import Tree
from geoflow.system.translation import reason


class Unjoined:
    """What has no meaning of several chunks together: whatever uses it gets an error that says why.

    A loss need not use all that a network gives, as caches and states beside the outputs.

    Parameters
    ----------
    why : str
        What it is of, and why it cannot be joined.

    Raises
    ------
    InputError
        At any use.
    """

    def __init__(self, why: str) -> None:
        self.__dict__["_why"] = why

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"module: its outputs {self._why}; use batch_size=None and one process, or "
            "Problem.from_batches"
        )

    def __getattr__(self, name: str) -> Any:
        # By these Python and its libraries ask what a thing can do.
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> NoReturn:
        """Refuse as an argument of one of PyTorch's functions."""
        given = tree_leaves((arguments, keywords))
        next(leaf for leaf in given if isinstance(leaf, cls))._refuse()

    __getitem__ = __iter__ = __len__ = __bool__ = __call__ = __float__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __neg__ = __matmul__ = __rmatmul__ = __pow__ = _refuse


def detached(outputs: Tree) -> Tree:
    """The outputs of a chunk without a graph, which what is no tree of tensors would hold on to."""
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, PackedSequence):
        # Its rows go by steps of time: of two together they are those of no sequence, and PyTorch
        # writes beyond its memory where it unpacks them.
        return _of_a_kind("PackedSequence", ": unpack it in forward (pad_packed_sequence)")
    if isinstance(outputs, Mapping):
        return data.with_items(outputs, {k: detached(v) for k, v in outputs.items()})
    if isinstance(outputs, tuple | list):
        return data.with_values(outputs, [detached(value) for value in outputs])
    if data.is_record(outputs):
        fields = data.fields_of(outputs)
        return data.with_fields(outputs, {k: detached(v) for k, v in fields.items()})
    if isinstance(outputs, data.Constant):
        return outputs
    cache = type(outputs).__name__.endswith("Cache")
    remedy = ": leave it out (model.config.use_cache = False)" if cache else ""
    return _of_a_kind(type(outputs).__name__, remedy)


def joined(found: list[Tree]) -> Tree:
    """Put chunks together; whatever in them does not fit together is an :class:`Unjoined`."""
    first = found[0]
    for one in found:
        if isinstance(one, Unjoined):
            return one
    try:
        if isinstance(first, Tensor):
            return _one_tensor(found)
        if isinstance(first, Mapping):
            return data.with_items(first, {k: joined([f[k] for f in found]) for k in first})
        if isinstance(first, tuple | list):
            each = zip(*found, strict=True)
            return data.with_values(first, [joined(list(values)) for values in each])
        if data.is_record(first):
            fields = [data.fields_of(f) for f in found]
            return data.with_fields(first, {k: joined([f[k] for f in fields]) for k in fields[0]})
    except torch.OutOfMemoryError:
        raise
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        return Unjoined(
            f"cannot be joined over chunks ({reason(error)}), as those padded to the longest of a "
            "chunk, or with the examples not in their first dimension"
        )
    if all(type(one) is type(first) and one == first for one in found):
        return first
    return Unjoined(f"hold a {type(first).__name__} that is another in each chunk")


def _one_tensor(found: list[Tensor]) -> Tree:
    first = found[0]
    if not first.ndim:
        return Unjoined("hold a number of all examples, which has no part in each chunk")
    if first.is_nested or first.layout != torch.strided:
        return _of_a_kind("nested tensor" if first.is_nested else f"{first.layout} tensor")
    return torch.cat(found)


def _of_a_kind(kind: str, remedy: str = "") -> Unjoined:
    return Unjoined(f"hold a {kind}, which cannot be joined over chunks{remedy}")
