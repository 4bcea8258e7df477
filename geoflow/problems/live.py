"""What a function of θ uses beside θ: parameters of modules, which stay while θ moves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.problems.graph import children, leaf_of, nodes

# Modules of users that a problem has been made of: where a function uses one, θ is meant.
_THETAS: WeakSet[nn.Module] = WeakSet()


def remember(module: nn.Module) -> None:
    """Remember a user's module whose parameters are θ, as long as it is there."""
    _THETAS.add(module)


def check_alone(function: Callable[[Tensor], Tensor], theta0: Tensor, name: str) -> None:
    """Refuse a function of flat θ whose graph has parameters of a problem's module in it.

    They are constants in θ, and others as soon as whoever has the module changes it. Of another
    module they may be meant to stay, as a reference's are, and a warning says that they do. What
    was computed of parameters before is a number like any other, and so are frozen ones; other
    leaves, as the points of a physics-informed loss, are no parameters.

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
        graph = nodes(function(theta0.detach().clone().requires_grad_()))
        if not any(_parameters(node) for node in graph):
            return
        again = nodes(function(theta0.detach().clone().requires_grad_()))
    # A node that both evaluations have is of neither: it was there before.
    before = {id(node) for node in graph}
    found = [p for node in again if id(node) not in before for p in _parameters(node)]
    if not found:
        return
    of_theta = {id(p) for module in _THETAS for p in module.parameters()}
    for parameter in found:
        if id(parameter) in of_theta:
            raise InputError(
                f"{name}: it uses a parameter of shape {tuple(parameter.shape)} of a module "
                "itself, which stays as it is while θ moves; use those of θ "
                "(problem.unflatten(theta), torch.func.functional_call), or freeze it by "
                "requires_grad_(False), or detach it where it is data"
            )
    warnings.warn(
        f"{name}: it uses a parameter of shape {tuple(found[0].shape)} that is not of θ, and stays "
        "as it is while θ moves; say so by requires_grad_(False) or detach(), or use those of θ "
        "(problem.unflatten(theta), torch.func.functional_call)",
        stacklevel=3,
    )


def _parameters(node: Any) -> list[nn.Parameter]:
    """Those that a node takes as they are."""
    leaves = map(leaf_of, children(node))
    return [leaf for leaf in leaves if isinstance(leaf, nn.Parameter)]
