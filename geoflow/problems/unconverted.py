"""Tensors of a network and of batches that are not converted to the dtype of a problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.problems import contents, data
from geoflow.problems.checks import OtherDtype
from geoflow.problems.dtypes import dtype_name


def of_module(module: nn.Module, dtype: torch.dtype) -> OtherDtype | None:
    """What a network keeps beside its parameters and buffers; None: nothing."""
    for where, child in module.named_modules():
        for key, value in vars(child).items():
            # Parameters, buffers and layers lie in dictionaries of these names.
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            for place, tensor in data.leaves(value, ".".join(filter(None, (where, key)))):
                if _is_other(tensor, dtype):
                    return OtherDtype(
                        f"the module's {place}, a plain attribute, is {dtype_name(tensor.dtype)}",
                        "make it a buffer by register_buffer, or compute it at every call in the "
                        "dtype of the inputs (x.dtype, not .float())",
                    )
    return None


def of_batch(batch: Any, dtype: torch.dtype) -> OtherDtype | None:
    """An object of a batch that holds tensors of another dtype; None: no such."""
    for kept in _objects(batch):
        for _, tensor in data.tensors_within(kept, ""):
            if _is_other(tensor, dtype):
                return OtherDtype(
                    f"the batch has a {type(kept).__name__}, whose tensors, of "
                    f"{dtype_name(tensor.dtype)}, are not converted",
                    f"convert them in batch_loss, as by batch.x.to({dtype}), or give a tuple or "
                    "dict of tensors",
                )
    return None


def _objects(tree: Any) -> Iterator[Any]:
    """What is in a tree and neither a part of it nor data."""
    if isinstance(tree, Mapping | tuple | list) or data.is_record(tree):
        for value in data.held(tree):
            yield from _objects(value)
    elif contents.is_data(tree) and not isinstance(tree, contents.LEAVES):
        yield tree


def _is_other(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_floating_point() and tensor.dtype != dtype
