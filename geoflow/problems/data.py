"""Training data as users have them: tensors, NumPy arrays, tuples and dictionaries of either."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.problems import contents

# A tensor, or a tuple, list, mapping or dataclass of such.
Tree = Any

# What a sparse tensor is made of, by how its values lie.
SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}

# What stands beside the tensors by its name, the same for all examples.
Constant = bool | int | float | str | None

WHOLE = (
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
)


@contextmanager
def read_through(name: str) -> Iterator[None]:
    """Refuse data without an end.

    Raises
    ------
    InputError
        It holds itself, or is nested deeper than Python calls functions within each other.
    """
    try:
        yield
    except RecursionError:
        raise InputError(
            f"{name}: a list or dict in it holds itself, or is nested too deep; give tensors, or a "
            "tuple or dict of them"
        ) from None


def tensors(data: Tree, name: str) -> Tree:
    """Return the same tree with every array as a tensor, not copied where it need not be.

    Constants by name, as keyword arguments that are no data, stay as they are.

    Raises
    ------
    InputError
        Something in it is no array, or it holds itself.
    """
    with read_through(name):
        return _tensors(data, name)


def _tensors(data: Tree, name: str) -> Tree:
    if isinstance(data, Tensor):
        return data.detach()
    if isinstance(data, np.ndarray):
        if data.dtype.kind not in "fiubc":
            raise InputError(f"{name} has dtype {data.dtype}; give numbers")
        if np.ma.is_masked(data):
            raise InputError(f"{name} have masked values; leave those examples out, or fill them")
        # torch has nothing wider.
        wide = {np.dtype(np.longdouble): np.float64, np.dtype(np.clongdouble): np.complex128}
        native = data.dtype.newbyteorder("=")
        data = data.astype(wide.get(native, native), copy=False)
        # A copy, since torch cannot take negative strides and warns of read-only arrays.
        return torch.from_numpy(np.array(data))
    if isinstance(data, Mapping):
        return {
            key: value if isinstance(value, Constant) else _tensors(value, f"{name}[{key!r}]")
            for key, value in ((key, _plain(value)) for key, value in data.items())
        }
    if isinstance(data, tuple | list):
        return tuple(_tensors(value, f"{name}[{i}]") for i, value in enumerate(data))
    constant = isinstance(data, Constant) and name.endswith("]")
    named = "; a number, text or None that is no data has a name of its own in a dict"
    raise InputError(
        f"{name} is a {type(data).__name__}; give a tensor, a NumPy array, or a tuple or dict of "
        f"them, or use Problem.from_batches for a DataLoader or a Dataset"
        + (named if constant else "")
    )


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's own, where that is one; whatever else as it is."""
    if isinstance(value, np.generic) and not isinstance(value, Constant):
        return found if isinstance(found := value.item(), Constant) else value
    return value


def leaves(data: Tree, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a tree, with its place for error messages, in fixed order."""
    if isinstance(data, Tensor):
        yield name, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from leaves(value, f"{name}[{key!r}]")
    elif isinstance(data, tuple | list):
        for i, value in enumerate(data):
            yield from leaves(value, f"{name}[{i}]")
    elif is_record(data):
        for key, value in fields_of(data).items():
            yield from leaves(value, f"{name}.{key}")


def tensors_within(data: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """As :func:`leaves`, and those in objects of other kinds too."""
    for place, leaf in contents.leaves(data, name):
        if isinstance(leaf, Tensor):
            yield place, leaf


def mapped(
    data: Tree,
    function: Callable[[Tensor], Tensor],
    other: Callable[[Any], Any] = lambda value: value,
) -> Tree:
    """Apply a function to every tensor of a tree, and another to what is none."""
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, Mapping):
        items = {key: mapped(value, function, other) for key, value in data.items()}
        return with_items(data, items)
    if isinstance(data, tuple | list):
        return with_values(data, [mapped(value, function, other) for value in data])
    if is_record(data):
        fields = fields_of(data).items()
        return with_fields(data, {key: mapped(value, function, other) for key, value in fields})
    return other(data)


def is_record(data: Any) -> bool:
    """Whether it is an object of a dataclass, and no mapping, tuple or list."""
    known = isinstance(data, type | Tensor | nn.Module | Mapping | tuple | list)
    return dataclasses.is_dataclass(data) and not known


def fields_of(record: Any) -> dict[str, Any]:
    """What an object of a dataclass holds, by field."""
    names = [field.name for field in dataclasses.fields(record)]
    return {name: getattr(record, name) for name in names if hasattr(record, name)}


def with_fields(like: Any, values: dict[str, Any]) -> Any:
    """A copy of an object of a dataclass, frozen or not, with other values."""
    filled = copy.copy(like)
    for name, value in values.items():
        object.__setattr__(filled, name, value)
    return filled


def with_items(like: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the kind of another and with its keys, that holds other values.

    What a kind of mapping is made of only itself knows, so it is a copy that is filled. One that
    cannot be is a dictionary.
    """
    if type(like) is dict or not isinstance(like, MutableMapping):
        return items
    filled = copy.copy(like)
    for key, value in items.items():
        filled[key] = value
    return filled


def with_values(like: tuple[Any, ...] | list[Any], values: list[Any]) -> Any:
    """A tuple or list of the kind of another, named tuples too, that holds other values."""
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*values)
    return type(like)(values)


def convert(data: Tree, dtype: torch.dtype, device: torch.device) -> Tree:
    """Every tensor of a tree as :func:`converted` gives it."""
    return mapped(data, lambda tensor: converted(tensor, dtype, device))


def converted(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A floating tensor in a dtype, a complex one in its complex kin, any on a device."""
    if tensor.is_complex():
        return tensor.to(device, dtype.to_complex())
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def owned(data: Tree, given: Tree) -> Tree:
    """Copy the tensors whose memory is that of a tensor in another tree.

    What a user does to his own afterwards is then of no effect.
    """
    users = {t.untyped_storage().data_ptr() for _, t in leaves(given, "")}

    def own(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in users else tensor

    return mapped(data, own)


def stored(tensor: Tensor) -> list[Tensor]:
    """The tensors that one is made of: indices and values of a sparse one, of others itself."""
    return [getattr(tensor, name)() for name in SPARSE.get(tensor.layout, ())] or [tensor]


def versions(data: Tree) -> list[int]:
    """How often each tensor of a tree has been written to."""
    return [0 if t.is_inference() else t._version for _, t in leaves(data, "")]


def sha256(*data: Tree) -> str:
    """SHA-256 of data as they were given: dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for tree in data:
        update(digest, tree)
    return digest.hexdigest()


def update(digest: hashlib._Hash, data: Any, *, objects: bool = True) -> None:
    """Take the data of a tree into a digest: tensors, arrays, numbers and texts, and objects' own.

    The digest of tensors alone is that of older archives: it knows nothing of what holds them.
    Without ``objects`` of other kinds it is that of archives that knew nothing of those.
    """
    if isinstance(data, Tensor):
        _update_tensor(digest, data.detach())
    elif isinstance(data, np.ndarray | np.generic):
        _update_array(digest, np.asarray(data), objects)
    elif isinstance(data, bool | int | float | complex | str | bytes | bytearray):
        said = (
            bytes(data)
            if isinstance(data, bytes | bytearray)
            else str(data).encode("utf-8", "surrogatepass")
        )
        digest.update(f"{type(data).__name__} {len(said)} ".encode())
        digest.update(said)
    elif isinstance(data, Mapping | tuple | list) or is_record(data):
        for value in held(data):
            update(digest, value, objects=objects)
        fields = fields_of(data) if is_record(data) else {}
        if objects and (beside := contents.beside(data, fields)):
            digest.update(b"beside " + contents.sha256(beside, update))
    elif objects and contents.is_data(data):
        digest.update(b"object ")
        digest.update(contents.sha256(data, update))


def _update_tensor(digest: hashlib._Hash, tensor: Tensor) -> None:
    if tensor.is_nested:
        digest.update(b"nested")
        for one in tensor.unbind():
            _update_tensor(digest, one)
        return
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.is_meta:  # has no values
        return
    if tensor.layout in SPARSE:
        digest.update(str(tensor.layout).encode())
        for one in stored(tensor):
            _update_tensor(digest, one)
        return
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    elif tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    # Of a conjugate or negative view the bytes are those of what it is a view of.
    raw = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    if raw.numel() == 1:  # contiguous whatever its strides say, and no view of other bytes
        raw = raw.clone(memory_format=torch.contiguous_format)
    # NumPy has no bfloat16.
    digest.update(raw.view(torch.uint8).numpy().tobytes() if raw.ndim else raw.numpy().tobytes())


def _update_array(digest: hashlib._Hash, array: NDArray[Any], objects: bool) -> None:
    if array.dtype.hasobject:  # its bytes are addresses
        update(digest, array.tolist(), objects=objects)
        return
    digest.update(f"array {array.dtype.str}{array.shape}".encode())
    digest.update(array.tobytes())


def held(data: Any) -> Iterable[Any]:
    """What a tree, or a dataclass, holds; nothing of what is neither."""
    if isinstance(data, Mapping):
        return data.values()
    if isinstance(data, tuple | list):
        return data
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return [getattr(data, field.name, None) for field in dataclasses.fields(data)]
    return ()


def length(data: Tree) -> int:
    """Number of examples: the first dimension of the first tensor."""
    return len(next(iter(leaves(data, "")))[1])


def chunk(data: Tree, start: int, size: int) -> Tree:
    """``size`` examples from ``start`` on."""
    return mapped(data, lambda tensor: tensor[start : start + size])
