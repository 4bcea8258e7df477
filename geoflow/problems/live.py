"""What a function of θ uses beside θ: parameters of modules, which stay while θ moves."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.problems import displaced
from geoflow.problems.graph import children, leaf_of, nodes
from geoflow.problems.modules import parameters_by_name, unwrap
from geoflow.problems.reach import reachable

# Modules of users that a problem has been made of, with the names of the parameters that are its θ:
# where a function uses one, θ is meant.
_THETAS: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
_LOCK = threading.RLock()

_REMEDY = (
    "use those of θ (problem.unflatten(theta), torch.func.functional_call), or those of a copy "
    "where they are data (copy.deepcopy(module).requires_grad_(False))"
)


def remember(module: nn.Module, names: Iterable[str]) -> None:
    """Remember a user's module of which these parameters are θ, as long as it is there.

    Not before the problem is made: of one that is refused they are none.
    """
    with _LOCK:
        _THETAS.setdefault(unwrap(module), set()).update(names)


def _thetas() -> list[tuple[nn.Module, set[str]]]:
    # Another thread may be making a problem.
    with _LOCK:
        return [(module, set(names)) for module, names in _THETAS.items()]


def check_alone(function: Callable[[Tensor], Tensor], theta0: Tensor, name: str) -> None:
    """Refuse a function of flat θ that uses parameters of a problem's module, in any way.

    They are constants in θ, and others as soon as whoever has the module changes it, as
    ``load_into`` does. Of another module they may be meant to stay, as a reference's are, and a
    warning says that they do. What was computed of parameters before is a number like any other,
    and so are frozen ones; other leaves, as the points of a physics-informed loss, are no
    parameters. Two evaluations, with the graph and without.

    Parameters
    ----------
    function : callable
        Tensor (P,) → scalar Tensor.
    theta0 : Tensor, shape (P,)
        Where.
    name : str
        The argument that it is.

    Raises
    ------
    InputError
        Names one of them by its shape.
    """
    with torch.enable_grad():
        value = function(theta0.detach().clone().requires_grad_())
        graph = nodes(value)
        if any(_parameters(node) for node in graph):
            _check_graph(graph, nodes(function(theta0.detach().clone().requires_grad_())), name)
    _check_values(function, theta0, value, name)


def _check_graph(graph: list[Any], again: list[Any], name: str) -> None:
    """Refuse parameters in the graph of two evaluations, or warn of them."""
    # A node that both evaluations have is of neither: it was there before.
    before = {id(node) for node in graph}
    found = [p for node in again if id(node) not in before for p in _parameters(node)]
    if not found:
        return
    of_theta = {id(p) for module, _ in _thetas() for p in module.parameters()}
    for parameter in found:
        if id(parameter) in of_theta:
            raise InputError(
                f"{name}: it uses a parameter of shape {tuple(parameter.shape)} of a module "
                f"itself, which stays as it is while θ moves; {_REMEDY}"
            )
    warnings.warn(
        f"{name}: it uses a parameter of shape {tuple(found[0].shape)} that is not of θ, and stays "
        "as it is while θ moves; say so by requires_grad_(False) or detach(), or use those of θ "
        "(problem.unflatten(theta), torch.func.functional_call)",
        stacklevel=4,
    )


def _check_values(
    function: Callable[[Tensor], Tensor], theta0: Tensor, value: Tensor, name: str
) -> None:
    """Refuse a function that changes with those parameters out of its graph.

    Only those that it can come to are moved: whoever trains another module meanwhile is left alone.
    """
    held = list(reachable(function))
    modules = {id(one) for one in held if isinstance(one, nn.Module)}
    places = {place for one in held if (place := _place(one)) is not None}
    moving: list[nn.Parameter] = []
    for module, names in _thetas():
        own = parameters_by_name(module)
        # Frozen ones have been said to be data.
        ours = [own[n] for n in names if n in own and own[n].requires_grad]
        whole = any(id(child) in modules for child in module.modules())
        moving += [p for p in ours if whole or _place(p) in places]

    def evaluate() -> Tensor:
        with torch.enable_grad():
            return function(theta0.detach().clone().requires_grad_())

    if displaced.has_part(moving, evaluate, value):
        raise InputError(
            f"{name}: it changes with the parameters of a module itself, out of the graph (detach, "
            "item, NumPy, state_dict), which stay as they are while θ moves; "
            f"{_REMEDY}"
        )


def _place(one: Any) -> int | None:
    """Where the memory of a tensor or an array begins, of views that of the whole."""
    if isinstance(one, Tensor):
        return one.untyped_storage().data_ptr() if one.layout == torch.strided else None
    if isinstance(one, np.ndarray):
        while isinstance(one.base, np.ndarray):
            one = one.base
        # Of a tensor NumPy has, the tensor is the base of.
        return _place(one.base) if isinstance(one.base, Tensor) else int(one.ctypes.data)
    return None


def _parameters(node: Any) -> list[nn.Parameter]:
    """Those that a node takes as they are."""
    leaves = map(leaf_of, children(node))
    return [leaf for leaf in leaves if isinstance(leaf, nn.Parameter)]
