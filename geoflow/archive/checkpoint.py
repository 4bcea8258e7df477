"""What a walk needs to go on: state, solver's carry, counts; as arrays and JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import ArchiveError, InputError
from geoflow.problems.dtypes import dtype_name
from geoflow.solvers import Carry

Arrays = dict[str, NDArray[Any]]

CARRIED = "carry_"
# The last only where R counts its evaluations apart.
COUNTED = ("gradient", "hvp", "regularizer_gradient")
# Before the names of the tensors that a flow's state holds beside theta.
STATE = "state_"


@dataclass(frozen=True)
class Checkpoint:
    """A walk after an accepted step, or before its first.

    All else that a flow knows is a function of its state's tensors, and the clocks of a walk stand
    in its last record.

    Attributes
    ----------
    n_steps : int
        Records so far.
    tensors : mapping of str to Tensor
        Where the walk stands: the tensors of the flow's state, ``theta`` the first of them. Its
        start, theta alone, where ``n_steps`` is 0.
    carry : dict or None
        The solver's; None before :meth:`geoflow.solvers.Solver.init`.
    counts : dict
        Evaluations so far, those of ``init`` included.
    levels : sequence of float
        Of a walk that looks for events: what crosses zero, of each, as the last step left it.
    """

    n_steps: int
    tensors: Mapping[str, Tensor]
    carry: Carry | None
    counts: dict[str, int]
    levels: Sequence[float] = ()

    @property
    def theta(self) -> Tensor:
        """θ, shape (P,)."""
        return self.tensors["theta"]

    def pack(self) -> tuple[Arrays, dict[str, Any]]:
        """Split into arrays and what JSON holds exactly.

        Raises
        ------
        InputError
            The solver carries something else than numbers, strings and tensors.
        """
        plain, devices = {}, {}
        others = {name: tensor for name, tensor in self.tensors.items() if name != "theta"}
        arrays = {"theta": _numpy(self.theta)}
        arrays |= {STATE + name: _numpy(tensor) for name, tensor in others.items()}
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
            **({"state": list(others)} if others else {}),
            **({"levels": list(self.levels)} if self.levels else {}),
        }

    def check_fits(
        self, n_steps: int, n_parameters: int, dtype: str, recorded: Mapping[str, NDArray[Any]]
    ) -> None:
        """Refuse a checkpoint that cannot be of the walk beside which it is kept.

        Parameters
        ----------
        n_steps, n_parameters : int
            Of that walk.
        dtype : str
            In which that walk was computed.
        recorded : mapping of str to ndarray, shape (step,)
            Its counts of evaluations at each step, by the names of :attr:`counts`.

        Raises
        ------
        ArchiveError
            Names the first thing that does not fit.
        """
        # Of a walk that ended inside a step it stands at the start of that step.
        if not 0 < self.n_steps <= n_steps or self.theta.shape != (n_parameters,):
            raise ArchiveError("its checkpoint is that of another walk")
        if dtype_name(self.theta.dtype) != dtype:
            raise ArchiveError(f"theta of its checkpoint is {self.theta.dtype}, not {dtype}")
        for name, tensor in self.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ArchiveError(f"{name} of its checkpoint is not finite")
        for name, n in self.counts.items():
            # What led to no further record may have been evaluated since.
            if n < recorded[name][self.n_steps - 1]:
                raise ArchiveError(f"its checkpoint counts fewer evaluations than n_{name}")

    @classmethod
    def unpack(cls, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> Checkpoint:
        """Put together again what :meth:`pack` has split.

        Raises
        ------
        ArchiveError
            Something is missing or of another kind.
        """
        try:
            carried = {
                name: _tensor(arrays[CARRIED + name]).to(device)
                for name, device in state["devices"].items()
            }
            others = {name: _tensor(arrays[STATE + name]) for name in state.get("state", [])}
            plain = state["carry"]
            return cls(
                n_steps=int(state["n_steps"]),
                tensors={"theta": _tensor(arrays["theta"]), **others},
                carry=None if plain is None else {**plain, **carried},
                counts={
                    name: int(state["counts"][name])
                    for name in COUNTED
                    if name in state["counts"] or name in COUNTED[:2]
                },
                levels=[float(level) for level in state.get("levels", [])],
            )
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ArchiveError(f"the checkpoint cannot be used ({error!r}); run again") from None


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().contiguous().numpy()


def _tensor(array: NDArray[Any]) -> Tensor:
    # Sums depend on how memory is aligned: clone into torch's own.
    return torch.from_numpy(array).clone()
