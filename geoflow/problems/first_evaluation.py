"""What a module's first evaluation sets: its loss is then not that of the module as it is given."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from geoflow.errors import InputError


def changed(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: Iterable[str]
) -> list[str]:
    """The names of those tensors that an evaluation has set to something else."""

    def same(one: Tensor, other: Tensor) -> bool:
        # A sparse matrix is data.
        if one.layout != torch.strided or other.layout != torch.strided:
            return True
        if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
            return False
        for dim, (stride, beside) in enumerate(zip(one.stride(), other.stride(), strict=True)):
            if stride == beside == 0:
                # Of an expanded one a single number stands for all.
                one, other = (t.narrow(dim, 0, min(t.shape[dim], 1)) for t in (one, other))
        if torch.equal(one, other):
            return True
        # A mask may hold NaN.
        if one.is_quantized:
            return False
        return bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())

    return [n for n in names if n in after and not same(before[n].detach(), after[n].detach())]


def copy_of(buffer: Tensor) -> Tensor:
    """A buffer of the same values, in the memory that it takes."""
    # A clone of an expanded one would be written out, and a copy of a sparse one cannot be made.
    return copy.deepcopy(buffer) if buffer.layout == torch.strided else buffer.clone()


def of_first_data(names: list[str]) -> InputError:
    """What to say of a module that sets these itself when it is called for the first time."""
    return InputError(
        f"module: its first evaluation sets {listed(names)}, as a layer does that is initialised "
        "by the first data it sees, so its loss is not that of the module as it is given; call "
        "module(inputs) once before, or remove what writes there if it does so at every evaluation"
    )


def listed(names: list[str]) -> str:
    """The first few of some names."""
    return ", ".join([*names[:4], *(["…"] if len(names) > 4 else [])])
