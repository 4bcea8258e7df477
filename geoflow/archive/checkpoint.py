"""What a walk needs to go on: θ, the solver's carry, the counts; as arrays and JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import ArchiveError, InputError
from geoflow.solvers import Carry

Arrays = dict[str, NDArray[Any]]

CARRIED = "carry_"


@dataclass(frozen=True)
class Checkpoint:
    """A walk after an accepted step, or before its first.

    L, ∇L, R and ∇R are functions of θ, and the clocks of a walk stand in its last record.

    Attributes
    ----------
    n_steps : int
        Records so far.
    theta : Tensor, shape (P,)
        Where the walk stands; its start where ``n_steps`` is 0.
    carry : dict or None
        The solver's; None before :meth:`geoflow.solvers.Solver.init`.
    counts : dict
        Evaluations so far, those of ``init`` included.
    """

    n_steps: int
    theta: Tensor
    carry: Carry | None
    counts: dict[str, int]

    def pack(self) -> tuple[Arrays, dict[str, Any]]:
        """Split into arrays and what JSON holds exactly.

        Raises
        ------
        InputError
            The solver carries something else than numbers, strings and tensors.
        """
        arrays, plain, devices = {"theta": _numpy(self.theta)}, {}, {}
        for name, value in (self.carry or {}).items():
            if isinstance(value, Tensor):
                arrays[CARRIED + name] = _numpy(value)
                devices[name] = str(value.device)
            elif isinstance(value, int | float | str):
                plain[name] = value
            else:
                raise InputError(
                    f"solver: carry[{name!r}] is a {type(value).__name__}; a solver can carry "
                    "numbers, strings and tensors only"
                )
        return arrays, {
            "n_steps": self.n_steps,
            "counts": self.counts,
            "carry": None if self.carry is None else plain,
            "devices": devices,
        }

    @classmethod
    def unpack(cls, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> Checkpoint:
        """Put together again what :meth:`pack` has split.

        Raises
        ------
        ArchiveError
            Something is missing or of another kind.
        """
        try:
            # Sums depend on how memory is aligned: clone into torch's own.
            tensors = {
                name: torch.from_numpy(arrays[CARRIED + name]).clone().to(device)
                for name, device in state["devices"].items()
            }
            plain = state["carry"]
            return cls(
                n_steps=int(state["n_steps"]),
                theta=torch.from_numpy(arrays["theta"]).clone(),
                carry=None if plain is None else {**plain, **tensors},
                counts={name: int(state["counts"][name]) for name in ("gradient", "hvp")},
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ArchiveError(f"the checkpoint cannot be used ({error!r}); run again") from None


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().contiguous().numpy()
