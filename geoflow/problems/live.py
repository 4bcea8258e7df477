"""What a function of θ uses beside θ: parameters of modules, which stay while θ moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.problems.graph import children, leaf_of, nodes


def check_alone(function: Callable[[Tensor], Tensor], theta0: Tensor, name: str) -> None:
    """Refuse a function of flat θ whose graph has parameters of a module in it.

    They are constants in θ, and others as soon as whoever has the module changes it. What was
    computed of parameters before is a number like any other, and so are frozen ones; other leaves,
    as the points of a physics-informed loss, are no parameters.

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
    if found:
        raise InputError(
            f"{name}: it uses a parameter of shape {tuple(found[0].shape)} of a module itself, "
            "which stays as it is while θ moves; use those of θ (problem.unflatten(theta), "
            "torch.func.functional_call), or freeze it by requires_grad_(False)"
        )


def _parameters(node: Any) -> list[nn.Parameter]:
    """Those that a node takes as they are."""
    leaves = map(leaf_of, children(node))
    return [leaf for leaf in leaves if isinstance(leaf, nn.Parameter)]
