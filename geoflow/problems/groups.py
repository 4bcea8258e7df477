"""What a loss is of each group of some examples: of one after the other, or of all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, grad_and_value

from geoflow.errors import InputError
from geoflow.problems import alone, data
from geoflow.problems.derivatives import hessian_product, twice_differentiable
from geoflow.problems.each import each
from geoflow.problems.flattening import together
from geoflow.problems.parts import ModulePart, Parameters, TensorSpec
from geoflow.system import kinds

# Gradients of single examples that are computed at once: as many as take so many bytes.
BYTES_AT_ONCE = 2**28


class Groups:
    """The examples of n groups.

    Parameters
    ----------
    inputs, targets
        The examples.
    groups : sequence of ndarray of int
        Those of each group, by their number.
    alike : bool
        Whether those of a group are equal. The first stands for them, and ``torch.func.vmap``
        evaluates all groups at once.
    """

    def __init__(
        self, inputs: Any, targets: Any, groups: Sequence[NDArray[np.intp]], alike: bool
    ) -> None:
        self._together: tuple[Any, Any] | None = None
        self._apart: list[tuple[Any, Any]] = []
        if alike:
            firsts = np.array([group[0] for group in groups])
            self._together = _taken(inputs, firsts), _taken(targets, firsts)
        else:
            self._apart = [(_taken(inputs, group), _taken(targets, group)) for group in groups]
        self._n = len(groups)
        # Where vmap does not take what second derivatives are made of.
        self._products_apart = False

    def __len__(self) -> int:
        return self._n

    def take_apart(self) -> None:
        """Evaluate one after the other from here on."""
        if self._together is not None:
            self._apart = list(self._ones())
            self._together = None

    def _ones(self) -> Iterator[tuple[Any, Any]]:
        """Each group's examples, one after the other."""
        if self._together is None:
            yield from self._apart
            return
        x, y = self._together
        for i in range(self._n):
            one = np.array([i])
            yield _taken(x, one), _taken(y, one)

    def values(self, part: ModulePart, parameters: Parameters) -> Tensor:
        """What a part's loss is of each group, shape (n,)."""
        if self._together is None:
            return torch.stack([_loss(part, parameters, *group) for group in self._apart])
        of_one = partial(_loss_of_one, part)
        return each(of_one, (None, *_batched(self._together)))(parameters, *self._together)

    def values_and_gradients(
        self,
        part: ModulePart,
        unflatten: Callable[[Tensor], Parameters],
        theta: Tensor,
        tensors: Sequence[TensorSpec],
        first: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The losses, shape (n,), and their gradients in flat θ, shape (n, P).

        Parameters
        ----------
        part : ModulePart
            The network and the loss.
        unflatten : callable
            Flat θ → parameters by name.
        theta : Tensor, shape (P,)
            Where.
        tensors : sequence of TensorSpec
            Where those parameters lie in θ.
        first : int, optional
            Of so many at the beginning; of those that are evaluated one by one, of all.
        """
        if self._together is not None:
            some = self._together
            if first is not None:
                some = data.chunk(some[0], 0, first), data.chunk(some[1], 0, first)
            of_one = grad_and_value(partial(_loss_of_one, part))
            parameters = unflatten(theta.detach())
            found, losses = _each_of(of_one, parameters, some, theta)
            return losses.detach(), _rows(found, theta, tensors)
        values, gradients = [], []
        for group in self._apart:
            with torch.enable_grad():
                value = _loss(part, unflatten(theta), *group)
                (gradient,) = torch.autograd.grad(value, theta)
            values.append(value.detach())
            gradients.append(gradient)
        return torch.stack(values), torch.stack(gradients)

    def hessian_products(
        self,
        part: ModulePart,
        at: Parameters,
        along: Parameters,
        theta: Tensor,
        tensors: Sequence[TensorSpec],
    ) -> Tensor:
        """The Hessians of the losses times one vector, shape (n, P), by second derivatives.

        Parameters
        ----------
        part : ModulePart
            The network and the loss.
        at, along : mapping of str to Tensor
            Where, and the vector, both by name.
        theta : Tensor, shape (P,)
            Like it the products are.
        tensors : sequence of TensorSpec
            Where those parameters lie in θ.
        """
        if self._together is not None and not self._products_apart:
            product = partial(_product_of_one, part, along)
            try:
                with twice_differentiable():
                    # Two gradients of each are there at a time.
                    found = _each_of(product, at, self._together, theta, held=2)
                return _rows(found, theta, tensors)
            except (torch.OutOfMemoryError, MemoryError):
                raise
            # It refuses in many ways what has no rule.
            except Exception:
                self._products_apart = True
        products = []
        for x, y in self._ones():

            def weighted(parameters: Parameters, x: Any = x, y: Any = y) -> tuple[Tensor, Tensor]:
                return _loss(part, parameters, x, y), theta.new_ones(())

            products.append(together(hessian_product(weighted, at, along)[0]))
        return torch.stack(products)


def checked(groups: Any, n: int) -> list[NDArray[np.intp]]:
    """Groups that hold each of n examples once.

    Raises
    ------
    InputError
        They do not, or there are fewer than two.
    """
    kinds.check_kind(groups, Sequence, "groups", "the numbers of the examples of each group")
    found = [np.asarray(group) for group in groups]
    if len(found) < 2:
        raise InputError(
            f"groups: there is {len(found)} of examples; several constraints take two or more"
        )
    for number, group in enumerate(found):
        if group.ndim != 1 or not len(group) or group.dtype.kind not in "iu":
            raise InputError(
                f"groups[{number}]={kinds.shown(groups[number])}; give the numbers of its "
                "examples, one or more"
            )
    examples, times = np.unique(np.concatenate(found), return_counts=True)
    if not np.array_equal(examples, np.arange(n)) or times.max() > 1:
        missing = np.setdiff1d(np.arange(n), examples)
        beyond = examples[(examples < 0) | (examples >= n)]
        what = (
            f"there is no example {beyond[0]}"
            if len(beyond)
            else f"example {missing[0]} is in none"
            if len(missing)
            else f"example {examples[times > 1][0]} is in two"
        )
        raise InputError(f"groups: {what}; have each of the {n} examples in one group")
    return [group.astype(np.intp) for group in found]


def _each_of(
    of_one: Callable[..., Any],
    parameters: Parameters,
    examples: tuple[Any, Any],
    theta: Tensor,
    held: int = 1,
) -> Any:
    """A function of parameters and one example, of many at once: as the memory of θ allows."""
    n = data.length(examples[0])
    at_once = max(BYTES_AT_ONCE // (held * theta.numel() * theta.element_size()), 1)
    made: Callable[..., Any] = each(
        of_one,
        (None, *_batched(examples)),
        # All in one are returned as they are, one chunk would be copied.
        chunk_size=at_once if at_once < n else None,
    )
    # By tensors: a slice of θ would have a gradient as long as θ.
    return made(parameters, *examples)


def _rows(found: Parameters, theta: Tensor, tensors: Sequence[TensorSpec]) -> Tensor:
    """What there is of each example, by tensors, in flat order: shape (n, P)."""
    n = len(next(iter(found.values())))
    rows = theta.new_empty((n, theta.numel()))
    for t in tensors:
        # Those of weights come transposed, which a copy undoes faster than a concatenation.
        of_tensor = found[t.name]
        size = of_tensor[0].numel()
        rows.narrow(1, t.offset, size).view(of_tensor.shape).copy_(of_tensor)
    return rows


@alone.in_turn
def _loss(part: ModulePart, parameters: Parameters, x: Any, y: Any) -> Tensor:
    """What a part's loss is of these examples."""
    of_them = replace(part, inputs=x, targets=y)
    with part.lock:
        return of_them.sum_of_outputs(of_them.outputs(parameters))


def _loss_of_one(part: ModulePart, parameters: Parameters, x: Any, y: Any) -> Tensor:
    """Of an example without the dimension that goes along them."""
    x, y = (data.mapped(tree, lambda t: t[None]) for tree in (x, y))
    return _loss(part, parameters, x, y)


def _product_of_one(
    part: ModulePart, along: Parameters, parameters: Parameters, x: Any, y: Any
) -> Parameters:
    """The Hessian of an example's loss times a vector."""

    def slope(at: Parameters) -> Tensor:
        gradients = grad(partial(_loss_of_one, part))(at, x, y)
        return torch.stack([(gradients[n] * v).sum() for n, v in along.items()]).sum()

    found: Parameters = grad(slope)(parameters)
    return found


def _taken(tree: Any, order: NDArray[np.intp]) -> Any:
    numbers = torch.from_numpy(order)
    return data.mapped(tree, lambda t: t[numbers.to(t.device)])


def _batched(examples: tuple[Any, Any]) -> tuple[Any, Any]:
    """Dimensions that vmap goes along: the first of every tensor, none of a constant."""
    x, y = (_dimensions(tree) for tree in examples)
    return x, y


def _dimensions(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _dimensions(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(_dimensions(value) for value in tree)
    return 0 if isinstance(tree, Tensor) else None
