"""What a problem can be made of, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from geoflow.errors import GeoflowError, InputError
from geoflow.problems import data, inner
from geoflow.problems.data import Tree
from geoflow.problems.derivatives import check_derivatives
from geoflow.system import kinds
from geoflow.system.translation import reason

# How torch says that it wants whole numbers, and that it has got some beside others.
_WHOLE_WANTED = re.compile(
    r"(target dtype|expected scalar type)( to be)? (Long|Byte|Int)\b|for index\b|'indices'"
    r"|used as indices|index tensor"
)
_WHOLE_GIVEN = re.compile(
    r"(got|and|found|type|dtype|!=):? (Long|Int|Short|Char|Byte|Bool|UInt\d+|long int|int)\b"
    r"|\bwith (two|a) bool tensor"
)


class Division(NamedTuple):
    """Examples that are evaluated some at a time, as messages speak of it.

    Attributes
    ----------
    size : int
        Examples at a time.
    asked : str
        What asks for it: an argument and its value.
    instead : str
        What goes without.
    """

    size: int
    asked: str
    instead: str

    @classmethod
    def of(cls, batch_size: int) -> Division:
        """Of a problem in chunks."""
        return cls(batch_size, f"batch_size={batch_size}", "batch_size=None")


class OtherDtype(NamedTuple):
    """What is not in the dtype that a loss is evaluated in, as messages speak of it.

    Attributes
    ----------
    what : str
        Where it is, and its dtype.
    remedy : str
        What to do.
    """

    what: str
    remedy: str


def check_device_and_dtype(device: torch.device | str, dtype: torch.dtype) -> torch.device:
    """Return the device, or refuse a device or dtype that cannot be computed with.

    Raises
    ------
    InputError
        Neither float64 nor float32, or no such device here.
    """
    kinds.check_kind(dtype, torch.dtype, "dtype", "torch.float64 or torch.float32")
    kinds.check_kind(device, str | torch.device, "device", "the name of one, such as 'cpu'")
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype={dtype}; use torch.float64 or torch.float32")
    try:
        device = torch.device(device)
        float(torch.zeros(1, device=device)[0])
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        named, said = kinds.shown(str(device)), reason(error)
        raise InputError(f"device={named} cannot be used ({said}); use 'cpu'") from None
    return device


def check_like(theta: Tensor, reference: Tensor, name: str = "theta") -> None:
    """Refuse a vector that is none of a problem's.

    Raises
    ------
    InputError
        Another shape, dtype, device or layout.
    """
    kinds.check_kind(theta, Tensor, name, "a flat torch.Tensor, such as problem.theta0")
    for what in ("shape", "dtype", "device", "layout"):
        if getattr(theta, what) != getattr(reference, what):
            raise InputError(
                f"{name} has {what} {getattr(theta, what)}; "
                f"the problem has {what} {getattr(reference, what)}: convert it first"
            )


def check_data(inputs: Tree, targets: Tree, batch_size: int | None) -> None:
    """Refuse data that no loss can be computed of.

    Raises
    ------
    InputError
        Numbers of examples that differ, non-finite values, or a batch size below 1.
    """
    if batch_size is not None:
        # True is a whole number to Python.
        kind = type(None) if isinstance(batch_size, bool) else int | np.integer
        kinds.check_kind(batch_size, kind, "batch_size", "a whole number or None")
    named = {"inputs": list(data.leaves(inputs, "inputs"))}
    named["targets"] = list(data.leaves(targets, "targets"))
    if not named["inputs"]:
        raise InputError(f"inputs={kinds.shown(inputs)} holds nothing; give the examples")
    found = [*named["inputs"], *named["targets"]]
    for where, tensor in found:
        check_form(tensor, where)
        if tensor.layout != torch.strided:
            raise InputError(
                f"{where} are {tensor.layout}, of which no examples can be taken; give "
                ".to_dense(), or put it into a batch of Problem.from_batches, or into the module "
                "as a buffer"
            )
    lengths = {_n_examples(t) for _, t in found}
    if len(lengths) != 1 or lengths <= {-1, 0}:
        shapes = [f"{name} have shape {tuple(t.shape)}" for name, t in found]
        said = " and ".join(shapes[:4]) + (" and so on" if len(shapes) > 4 else "")
        for name, other in (("inputs", "targets"), ("targets", "inputs")):
            if _is_list_of_examples(named[name], named[other]):
                said += f"; {name} are taken for several of each example, so give one tensor"
                raise InputError(f"{said}, torch.stack({name})")
        raise InputError(
            f"{said}; all need the same, non-zero number of examples first: a graph, or examples "
            "of several lengths, go into Problem.from_batches, as a list of one batch; a set of "
            "points may be one example, x[None]"
        )
    check_finite(inputs, "inputs")
    check_finite(targets, "targets")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size={batch_size}; use a positive number or None")


def _n_examples(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else -1


def _is_list_of_examples(
    tensors: list[tuple[str, Tensor]], others: list[tuple[str, Tensor]]
) -> bool:
    """Whether there is a tensor for each example, where one of all of them is wanted."""
    alike = len({t.shape for _, t in tensors}) == 1 < len(tensors)
    return alike and len(tensors) in (len(others), *(_n_examples(t) for _, t in others))


def check_finite(tree: Tree, name: str) -> None:
    """Refuse data with infinities or NaN.

    Raises
    ------
    InputError
        Says where, and how many; or tensors without values. What an object of another kind holds,
        its library may have put there for no loss to use.
    """
    for where, tensor in data.leaves(tree, name):
        check_form(tensor, where)
        # torch knows no isfinite of dtypes of a byte.
        narrow = tensor.is_floating_point() and tensor.element_size() < 2
        stored = data.stored(tensor.float() if narrow else tensor)
        bad = sum(int((~torch.isfinite(one)).sum()) for one in stored)
        if bad:
            raise InputError(f"{where} have {bad} non-finite values; remove or impute them")


def check_form(tensor: Tensor, where: str) -> None:
    """Refuse a tensor whose values are not there, or not one by one.

    Raises
    ------
    InputError
        It is on the device 'meta', nested or quantized, or of a library's own layout.
    """
    if tensor.is_meta:
        raise InputError(f"{where} are on the device 'meta', without values; give the values")
    if tensor.is_nested:
        raise InputError(f"{where} are nested; give .to_padded_tensor(0.0), and a mask if need be")
    if tensor.is_quantized:
        raise InputError(f"{where} are quantized; give .dequantize()")
    if tensor.layout not in (torch.strided, *data.SPARSE):
        raise InputError(f"{where} are {tensor.layout}; give .to_dense()")


def check_mode(module: nn.Module, batch_size: int | None) -> None:
    """Refuse a module whose loss is random, stateful, or depends on how examples are batched.

    Raises
    ------
    InputError
        Names the layer.
    """
    norms = nn.modules.batchnorm._NormBase
    random = (nn.modules.dropout._DropoutNd, nn.RReLU)
    for name, child in module.named_modules():
        where = name or type(module).__name__
        # Without running statistics it computes the same in either mode; over processes it may not.
        stateful = isinstance(child, nn.SyncBatchNorm) or (
            isinstance(child, norms) and child.running_var is not None
        )
        drops = isinstance(child, random) and getattr(child, "p", None) != 0
        if child.training and (stateful or drops):
            raise InputError(
                f"module: {where} ({type(child).__name__}) is in training mode, which makes the "
                "loss random or stateful; call module.eval()"
            )
        per_batch = isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_var is None
        if per_batch and batch_size is not None:
            raise InputError(
                f"batch_size={batch_size}: {where} normalises by batch statistics, so chunks "
                "would change the loss; use batch_size=None"
            )


@contextmanager
def naming_padding(parts: Any) -> Iterator[None]:
    """Add to a gradient that is refused an embedding whose ``padding_idx`` may be why."""
    try:
        yield
    except InputError as error:
        held = parts[0] if isinstance(parts, tuple) else getattr(parts, "bound", None)
        module = getattr(held, "module", None)
        for name, child in module.named_modules() if isinstance(module, nn.Module) else ():
            if isinstance(child, nn.Embedding | nn.EmbeddingBag) and child.padding_idx is not None:
                raise InputError(
                    f"{error}; {name or 'module'} ({type(child).__name__}) has "
                    f"padding_idx={child.padding_idx}, a row without a gradient: set it to None"
                ) from None
        raise


@contextmanager
def explained(
    dtype: torch.dtype,
    of: str = "loss",
    *,
    division: Division | None = None,
    remedy: str = "",
    beside: Callable[[], OtherDtype | None] = lambda: None,
) -> Iterator[None]:
    """Say of a first evaluation that fails what is likely to be the matter.

    Parameters
    ----------
    dtype : torch.dtype
        In which it is evaluated.
    of : str
        The argument that is evaluated.
    division : Division, optional
        Where not all examples are evaluated at a time.
    remedy : str
        Of a function of flat θ, what gives it another dtype; empty for a network's loss.
    beside : callable
        Finds what is not in that dtype, where it is known.

    Raises
    ------
    InputError
        In place of whatever the user's code raised.
    """
    check_derivatives(of)
    try:
        yield
    except GeoflowError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        fewer = ", or evaluate fewer examples at once (batch_size=)" if of == "loss" else ""
        raise InputError(
            f"{of}: its first evaluation failed ({reason(error)}); free memory{fewer}"
        ) from error
    except Exception as error:
        said = reason(error)
        name = str(dtype).removeprefix("torch.")
        if of == "loss" and _WHOLE_WANTED.search(said):
            raise InputError(
                f"{of}: it wants whole numbers, as class labels and indices are, and has been "
                f"given others ({said}); give them as .long()"
            ) from error
        if of == "loss" and _WHOLE_GIVEN.search(said):
            numbers = ".to(theta.dtype)" if remedy else ".float(), which is converted"
            raise InputError(
                f"{of}: it has been given whole numbers beside {name} ({said}); give them as "
                f"{numbers}"
            ) from error
        if "cannot assign" in said and "as parameter" in said:
            raise InputError(
                f"{of}: forward gives the module parameters of its own making ({said}); tie them "
                "once, where the module is made, as in self.b.weight = self.a.weight"
            ) from error
        if any(word in said for word in ("dtype", "scalar type", "Float", "Double", "BFloat16")):
            like = "θ (theta.dtype" if remedy else "the inputs (x.dtype"
            if (found := beside()) is not None:
                raise InputError(
                    f"{of}: evaluated in {name}, and {found.what} ({said}); {found.remedy}"
                ) from error
            other = torch.float64 if dtype == torch.float32 else torch.float32
            raise InputError(
                f"{of}: evaluated in {name}, and a tensor of yours is of another dtype ({said}); "
                f"make it in the dtype of {like}, not .float()), or {remedy or 'give dtype='}"
                f"{other}"
            ) from error
        if division is not None:
            raise InputError(
                f"{division.asked}: the loss fails on {division.size} of the examples "
                f"({said}); if it works on all of them use {division.instead}, or "
                "Problem.from_batches, whose batch_loss gives each batch's sum and weight"
            ) from error
        instead = f"; {inner.REMEDY}" if inner.is_missing(error) else ""
        raise InputError(f"{of}: its first evaluation failed ({said}){instead}") from error


def no_loss(function: str, value: Any, remedy: str) -> InputError:
    """What to say of a function that gave no tensor where its loss is wanted."""
    hint = ""
    if isinstance(value, Mapping):
        hint = " (add up those it holds)"
    elif isinstance(value, tuple | list):
        hint = " (leave out what is beside it)"
    elif isinstance(value, int | float | np.number):
        hint = " (without .item() or float(), which leave its derivative out)"
    elif value is None:
        hint = " (a return is missing)"
    kind = "None" if value is None else f"a {type(value).__name__}"
    return InputError(f"{function} returned {kind}; {remedy}{hint}")


def check_deterministic(first: Any, second: Any) -> None:
    """Refuse a loss that differs from one evaluation to the next.

    Raises
    ------
    InputError
        It is not finite, or two evaluations differ.
    """
    if not torch.isfinite(first):
        raise InputError(f"loss at theta0 is {float(first)}; it must be finite")
    if not torch.equal(first, second):
        raise InputError(
            "loss: two evaluations at theta0 differ, so L(θ) is random or stateful; "
            "remove the randomness (for a module, call module.eval()), on a GPU also operations "
            "that add in any order (cross_entropy of more than two dimensions: flatten them)"
        )


def check_repeatable(first: Tensor, second: Tensor) -> None:
    """Refuse a gradient that differs from one evaluation to the next.

    Some of PyTorch's operations on GPUs add in whatever order their threads come, and have no
    other form.

    Raises
    ------
    InputError
        Two evaluations differ, or it is not finite.
    """
    if not torch.isfinite(first).all():
        raise InputError("loss: its gradient at theta0 is not finite; start elsewhere")
    if not torch.equal(first, second):
        raise InputError(
            "loss: two evaluations of its gradient at theta0 differ, by up to "
            f"{float((first - second).abs().max()):.1e}; torch.use_deterministic_algorithms(True) "
            "names the operation: write it another way"
        )
