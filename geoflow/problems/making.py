"""From a user's network, loss and data to the parts of a problem."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.problems import (
    alone,
    arithmetic,
    checks,
    contents,
    data,
    dependence,
    inner,
    modules,
    unconverted,
)
from geoflow.problems.data import Tree
from geoflow.problems.division import divided
from geoflow.problems.parts import (
    BatchPart,
    BatchParts,
    Bound,
    FunctionPart,
    LossPart,
    ModulePart,
    Parameters,
    TensorSpec,
    laid_out,
)
from geoflow.problems.weighted import as_weight
from geoflow.system import kinds
from geoflow.system.translation import reason

Made = tuple[Iterable[LossPart], Tensor, tuple[TensorSpec, ...], str]


def of_module(
    module: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Tree,
    targets: Tree,
    batch_size: int | None,
    parameters: str | Sequence[str] | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Made:
    """What :meth:`geoflow.Problem.from_module` is made of; see there."""
    device = checks.check_device_and_dtype(device, dtype)
    kinds.check_kind(module, nn.Module, "module", "a torch.nn.Module")
    _check_loss(loss_fn)
    given = inputs, targets
    inputs = data.tensors(inputs, "inputs")
    targets = None if targets is None else data.tensors(targets, "targets")
    checks.check_data(inputs, targets, batch_size)
    checks.check_mode(module, batch_size)
    digest = data.sha256(inputs, targets)
    memo: modules.Memo = {}
    network = modules.network(module, parameters, dtype, device, memo)
    own_loss = loss_fn
    if isinstance(loss_fn, nn.Module):
        own_loss = modules.loss(loss_fn, dtype, device, memo)
    x = data.owned(data.convert(inputs, dtype, device), given)
    # PyTorch's losses want class indices as int64.
    y = data.mapped(
        data.owned(data.convert(targets, dtype, device), given),
        lambda t: t.long() if t.dtype in data.WHOLE else t,
    )
    size = batch_size or data.length(x)
    some = checks.Division.of(batch_size) if batch_size and size < data.length(x) else None
    guard = checks.explained(
        dtype, division=some, beside=lambda: unconverted.of_module(network.module, dtype)
    )
    with guard, arithmetic.exact(device), torch.enable_grad():
        first = data.chunk(x, 0, size), data.chunk(y, 0, size)

        def loss(own: nn.Module, at: Parameters, loss_module: nn.Module | None) -> Tensor:
            called = own_loss if loss_module is None else loss_module
            part = ModulePart(own, network.fixed, *first, called)
            return part.sum_and_weight(at)[0]

        held = own_loss if isinstance(own_loss, nn.Module) else None
        dependence.check(module, network, loss, held)
        # Not before: copies of the module's own weights would be taken for data.
        if not isinstance(loss_fn, nn.Module):
            own_loss = _with_own_arguments(loss_fn)
        whole = fresh = ModulePart(network.module, network.fixed, x, y, own_loss)
        if some is not None:
            # Of what keeps something of the first examples it sees.
            memo = {}
            unused = modules.network(module, parameters, dtype, device, memo)
            fresh = replace(whole, module=unused.module, fixed=unused.fixed)
            if isinstance(loss_fn, nn.Module):
                fresh = replace(fresh, loss_fn=modules.loss(loss_fn, dtype, device, memo))
        parts = divided(whole, batch_size, network.moving, fresh)
    return parts, *flat(network.moving), digest


def _with_own_arguments(loss_fn: Any) -> Any:
    """A ``functools.partial`` with copies of the tensors and arrays among its arguments.

    As those of a loss module are: nothing that happens to a user's later is of effect. What else
    they are it goes on sharing.
    """
    if type(loss_fn) is not functools.partial:
        return loss_fn
    arguments = [_own(value) for value in loss_fn.args]
    keywords = {name: _own(value) for name, value in loss_fn.keywords.items()}
    own = functools.partial(_with_own_arguments(loss_fn.func), *arguments, **keywords)
    vars(own).update(vars(loss_fn))
    return own


def _own(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    # Containers too, which the loss may write into.
    return value


def _check_loss(loss_fn: Any) -> None:
    kinds.check_kind(loss_fn, Callable, "loss_fn", "a function of (outputs, targets)")
    if isinstance(loss_fn, type) and issubclass(loss_fn, nn.Module):
        name = loss_fn.__name__
        raise InputError(f"loss_fn={name} is a class; give one that is made of it, {name}()")


def of_batches(
    module: nn.Module,
    batch_loss: Callable[[nn.Module, Any], tuple[Tensor, float]],
    batches: Iterable[Any],
    parameters: str | Sequence[str] | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Made:
    """What :meth:`geoflow.Problem.from_batches` is made of; see there."""
    device = checks.check_device_and_dtype(device, dtype)
    kinds.check_kind(module, nn.Module, "module", "a torch.nn.Module")
    kinds.check_kind(batch_loss, Callable, "batch_loss", "a function of (module, batch)")
    give = "a list of batches or a DataLoader"
    if not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        kinds.check_kind(batches, Iterable, "batches", give)
    checks.check_mode(module, None)
    try:
        first, second = iter(batches), iter(batches)
    except TypeError:  # NumPy's numbers and arrays without dimensions have the methods all the same
        raise InputError(f"batches={kinds.shown(batches)}; give {give}") from None
    if first is second:
        raise InputError(
            f"batches: a {type(batches).__name__} can be iterated once only; give a list or a "
            "DataLoader"
        )
    with data.read_through("batches"):
        digest = hash_of(first)
        if digest != hash_of(second):
            raise _other_batches(batches)
    if type(batches) in (list, tuple):
        # What an evaluation leaves in an object would be data to whoever hashes it again. One copy
        # for all evaluations: it may keep there what it needs each time.
        batches = [data.mapped(batch, lambda t: t, contents.copied) for batch in batches]
    network = modules.network(module, parameters, dtype, device)
    parts = BatchParts(Bound(network.module, batch_loss), network.fixed, batches, dtype, device)
    # What the function does to it is not done to the user's.
    one = data.mapped(data.convert(next(iter(batches)), dtype, device), torch.clone)

    def beside() -> checks.OtherDtype | None:
        return unconverted.of_batch(one, dtype) or unconverted.of_module(network.module, dtype)

    guard = checks.explained(dtype, beside=beside)
    with guard, _naming_arrays(one), arithmetic.exact(device), torch.enable_grad():

        def loss(own: nn.Module, at: Parameters, _: nn.Module | None) -> Tensor:
            bound = Bound(own, parts.bound.batch_loss)
            total, weight = BatchPart(bound, network.fixed, one).sum_and_weight(at)
            # At every evaluation a GPU would be waited for.
            as_weight(float(weight))
            return total

        held = batch_loss if isinstance(batch_loss, nn.Module) else None
        try:
            dependence.check(module, network, loss, held, "batch_loss")
        except RuntimeError as error:
            # What a module holds would have to go where the network goes.
            if (held is not None and held.state_dict()) or not inner.is_missing(error):
                raise
            # One that has not been evaluated yet, not even in part.
            network = modules.network(module, parameters, dtype, device)
            of_module = inner.OfModule(batch_loss, tuple(network.moving))
            parts = replace(parts, bound=Bound(network.module, of_module), fixed=network.fixed)
            dependence.check(module, network, loss, held, "batch_loss")
    return parts, *flat(network.moving), digest


@contextmanager
def _naming_arrays(batch: Any) -> Iterator[None]:
    """Say of a first evaluation that fails on NumPy arrays that a batch is given as it is."""
    try:
        yield
    except (TypeError, RuntimeError) as error:
        # In whose place torch's own functions may look for a method of a tensor.
        named = isinstance(error, TypeError) or "numpy" in str(error)
        leaves = (leaf for _, leaf in contents.leaves(batch, ""))
        if not (named and any(isinstance(one, np.ndarray) for one in leaves)):
            raise
        raise InputError(
            "batches: they hold NumPy arrays, which are not converted, and the first evaluation "
            f"failed ({reason(error)}); give torch.from_numpy(array), or convert them in batch_loss"
        ) from error


def of_function(loss: Callable[[Tensor], Tensor], theta0: Tensor) -> Made:
    """What :meth:`geoflow.Problem.from_function` is made of; see there."""
    kinds.check_kind(loss, Callable, "loss", "a function of a flat tensor")
    kinds.check_kind(theta0, Tensor, "theta0", "a flat torch.Tensor")
    if theta0.ndim != 1 or not theta0.is_floating_point() or not theta0.numel():
        raise InputError(
            f"theta0 has shape {tuple(theta0.shape)} and dtype {theta0.dtype}; "
            "pass a flat floating-point tensor"
        )
    checks.check_device_and_dtype(theta0.device, theta0.dtype)
    if not torch.isfinite(theta0).all():
        raise InputError("theta0 has non-finite entries; remove them")
    theta0 = theta0.detach().clone()
    guard = checks.explained(theta0.dtype, remedy="give theta0 in ")
    loss = alone.Alone(loss)
    with guard, torch.no_grad(), arithmetic.exact(theta0.device):
        try:
            value = loss(theta0.clone())
        except RuntimeError as error:
            if not inner.is_missing(error):
                raise
            loss = inner.OfTheta(loss)
            value = loss(theta0)
    if not isinstance(value, Tensor):
        raise checks.no_loss("loss", value, "it must return a scalar tensor")
    if value.shape != () or value.is_complex():
        what = f"shape {tuple(value.shape)}" if value.ndim else f"a {value.dtype}"
        raise InputError(f"loss returned {what}; it must return a scalar tensor, a real one")
    return (FunctionPart(loss),), theta0, (TensorSpec("theta", 0, tuple(theta0.shape)),), ""


def flat(moving: dict[str, Tensor]) -> tuple[Tensor, tuple[TensorSpec, ...]]:
    """θ0, and where each tensor lies in it."""
    return torch.cat([p.reshape(-1) for p in moving.values()]), laid_out(moving)


def hash_of(batches: Iterator[Any]) -> str:
    """SHA-256 of all batches, in their order.

    Raises
    ------
    InputError
        There is none, or one holds numbers that are not finite, or nothing that could be found.
    """
    # A batch may be None, of a loss that has its examples itself.
    first = list(itertools.islice(batches, 1))
    if not first:
        raise InputError("batches: there is none; give one at least")

    # One after the other: all together they may not fit into memory.
    digest = hashlib.sha256()
    for i, batch in enumerate(itertools.chain(first, batches)):
        _check_known(batch, f"batches[{i}]")
        checks.check_finite(batch, f"batches[{i}]")
        data.update(digest, batch)
    return digest.hexdigest()


def _other_batches(batches: Iterable[Any]) -> InputError:
    """What to say of batches that differ from one pass to the next: where they do, if once more."""
    found = None
    for i, (one, other) in enumerate(zip(batches, batches, strict=False)):
        found = contents.first_difference(one, other, f"batches[{i}]", data.update)
        if found is not None:
            break
    where, value = found or ("", None)
    # A time or a number of its own, which no shuffling makes another.
    if where and not isinstance(value, Tensor | np.ndarray):
        return InputError(
            f"batches: two passes gave different batches: {where}, {kinds.shown(value)} in one of "
            "them, is another in the next; leave it out, or make the DataLoader with shuffle=False"
        )
    return InputError(
        "batches: two passes gave different batches"
        + (f", first in {where}" if where else "")
        + "; make the DataLoader with shuffle=False and data without random augmentation"
    )


def _check_known(batch: Any, name: str) -> None:
    """Refuse a batch whose data are not to be found, and so not to be told from others.

    Of one that holds nothing, as None or an empty tuple, the examples are the loss's own.
    """
    if next(contents.leaves(batch, name), None) is not None:
        return
    if (found := contents.first_object(batch)) is not None:
        raise InputError(
            f"{name}: a {type(found).__name__}, in which no data are found; give a tuple or dict "
            "of tensors"
        )
