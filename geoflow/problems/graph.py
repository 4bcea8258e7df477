"""The graph that PyTorch keeps of how a value was computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def nodes(value: Any) -> list[Any]:
    """Every node of a value's graph, each once; none of what has no derivative.

    As long as they are kept each is the same object.
    """
    start = getattr(value, "grad_fn", None)
    found: list[Any] = [] if start is None else [start]
    seen = {id(node) for node in found}
    for node in found:
        for child in children(node):
            if id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


def children(node: Any) -> Iterator[Any]:
    """The nodes that a node takes derivatives on to."""
    return (child for child, _ in node.next_functions if child is not None)


def leaf_of(node: Any) -> Tensor | None:
    """The tensor that a node gathers the gradient of, where it is the end of a graph."""
    found: Tensor | None = getattr(node, "variable", None)
    return found


def leaf_ids(value: Tensor) -> set[int]:
    """Identities of the tensors that the graph of a value ends in; its own where it is one."""
    found = {id(leaf) for node in nodes(value) if (leaf := leaf_of(node)) is not None}
    return found | {id(value)} if value.is_leaf else found
