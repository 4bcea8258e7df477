"""Problems in other processes: pickled where module, loss and data can be."""

from __future__ import annotations

import copy
import copyreg
import pickle
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cloudpickle
from torch import nn
from torch.nn.utils import parametrize

from geoflow.errors import InputError
from geoflow.problems import alone
from geoflow.problems.counting import Counted
from geoflow.problems.parts import BatchParts, FunctionPart, LossPart, ModulePart
from geoflow.system.translation import reason


class Picklable(Counted):
    """What is made of parts of a loss, and is pickled with them.

    The other end has the same bits, counts that start at zero, and no budget; so has a copy.
    """

    _parts: Iterable[LossPart]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_n_gradient": 0, "_n_hvp": 0}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse what pickle does not take.

        Raises
        ------
        InputError
            The module, the loss or the batches cannot be pickled; says which.
        """
        reduced = _reduced(self)
        for name, value in _given(self._parts).items():
            try:
                with _at_rest(self._parts):
                    pickle.dump(value, _Nowhere())
            # Whatever a user's objects hold on to may refuse in its own way.
            except Exception as error:
                raise InputError(
                    f"{name} of the problem cannot be pickled ({reason(error)}); use functions "
                    "and classes from the top of a module, or cloudpickle"
                ) from None
        return reduced

    def __copy__(self) -> Any:
        new = object.__new__(type(self))
        vars(new).update(self.__getstate__())
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = memo[id(self)] = object.__new__(type(self))
        with _at_rest(self._parts):
            vars(new).update(copy.deepcopy(self.__getstate__(), memo))
        return new

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # It takes functions that pickle does not, as lambdas.
        cloudpickle.CloudPickler.dispatch_table[cls] = _reduced


class _Nowhere:
    """A file that keeps nothing: what is tried may be as large as the training set."""

    def write(self, some: Any) -> int:
        return len(memoryview(some))


def _reduced(problem: Picklable) -> tuple[Any, ...]:
    _check_unparametrized(problem._parts)
    return copyreg.__newobj__, (type(problem),), problem.__getstate__()  # type: ignore[attr-defined]


def _check_unparametrized(parts: Iterable[LossPart]) -> None:
    """Refuse a network whose classes ``torch.nn.utils.parametrize`` has made."""
    for name, value in _given(parts).items():
        inside = value.modules() if isinstance(value, nn.Module) else ()
        if any(parametrize.is_parametrized(one) for one in inside):
            raise InputError(
                f"{name} of the problem has parametrizations (parametrize, weight_norm, "
                "spectral_norm, orthogonal), which neither pickle nor cloudpickle takes; make the "
                "problem anew in the other process, or copy it by copy.deepcopy"
            )


def _at_rest(parts: Iterable[LossPart]) -> AbstractContextManager[None]:
    """No evaluation in the network, whose tensors may be inside a graph there."""
    first: Any = parts.bound if isinstance(parts, BatchParts) else next(iter(parts))
    module = getattr(getattr(first, "part", first), "module", None)
    return nullcontext() if module is None else alone.at_rest(module)


def _given(parts: Iterable[LossPart]) -> dict[str, Any]:
    """What a user gave that pickle may refuse, by the argument's name."""
    if isinstance(parts, BatchParts):
        bound = parts.bound
        return {
            "module": bound.module,
            "batch_loss": bound.batch_loss,
            "batches": parts.batches,
        }
    # All chunks have the same module and loss.
    first = next(iter(parts))
    part = getattr(first, "part", first)
    if isinstance(part, ModulePart):
        return {"module": part.module, "loss_fn": part.loss_fn}
    return {"loss": part.function} if isinstance(part, FunctionPart) else {}
