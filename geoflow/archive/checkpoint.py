"""What a walk needs to go on: state, solver's carry, counts; as arrays and JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import ArchiveError, InputError
from geoflow.problems.dtypes import dtype_name
from geoflow.solvers import Carry, Solver, from_config
from geoflow.solvers.carried import taken_up
from geoflow.system import translation

Arrays = dict[str, NDArray[Any]]

CARRIED = "carry_"
# The last only where R counts its evaluations apart.
COUNTED = ("gradient", "hvp", "regularizer_gradient")
# Before the names of the tensors that a flow's state holds beside theta.
STATE = "state_"

OF_ANOTHER_WALK = "its checkpoint is that of another walk"
UNUSABLE = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError)


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
    devices : mapping of str to str
        Of a checkpoint that was read, where the tensors of its carry were: they are on the CPU, for
        a file can be looked at on a machine that has no such device.
    """

    n_steps: int
    tensors: Mapping[str, Tensor]
    carry: Carry | None
    counts: dict[str, int]
    levels: Sequence[float] = ()
    devices: Mapping[str, str] = field(default_factory=dict)

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
                devices[name] = self.devices.get(name, str(value.device))
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
            Its counts of evaluations at each step, by the names of :attr:`counts`, as far as they
            were recorded.

        Raises
        ------
        ArchiveError
            Names the first thing that does not fit.
        """
        # Of a walk that ended inside a step it stands at the start of that step.
        if not 0 < self.n_steps <= n_steps:
            raise ArchiveError(OF_ANOTHER_WALK)
        self.check_state(n_parameters, dtype)
        self.check_counts({name: counts[self.n_steps - 1] for name, counts in recorded.items()})

    def check_state(self, n_parameters: int, dtype: str) -> None:
        """Refuse a θ that is none of the walk's, or a state that is not finite.

        Parameters
        ----------
        n_parameters, dtype
            Of that walk.

        Raises
        ------
        ArchiveError
            Names what does not fit.
        """
        if self.theta.shape != (n_parameters,):
            raise ArchiveError(OF_ANOTHER_WALK)
        if dtype_name(self.theta.dtype) != dtype:
            raise ArchiveError(f"theta of its checkpoint is {self.theta.dtype}, not {dtype}")
        for name, tensor in self.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ArchiveError(f"{name} of its checkpoint is not finite")

    def check_counts(self, recorded: Mapping[str, float]) -> None:
        """Refuse fewer evaluations than were recorded at its last step, or others.

        Parameters
        ----------
        recorded : mapping of str to number
            By the names of :attr:`counts`, as far as they were.

        Raises
        ------
        ArchiveError
            Names the count, where it is less or was not recorded.
        """
        for name, n in self.counts.items():
            if name not in recorded:
                raise ArchiveError(f"its checkpoint counts n_{name}, which its records do not")
            # What led to no further record may have been evaluated since.
            if n < recorded[name]:
                raise ArchiveError(f"its checkpoint counts fewer evaluations than n_{name}")

    def check_carry(self, config: str) -> None:
        """Refuse a carry that the solver named by a walk's settings cannot have made.

        That of a solver of one's own is not known before the walk goes on, and what settings
        cannot be used for is for others to say.

        Parameters
        ----------
        config : str
            The settings, in JSON.

        Raises
        ------
        ArchiveError
            Names the first entry.
        """
        try:
            solver = from_config(json.loads(config)["solver"])
        except (InputError, KeyError, TypeError, ValueError):
            return
        self.carry_for(solver, self.theta)

    def carry_for(self, solver: Solver, theta: Tensor) -> Carry | None:
        """The carry as a solver goes on with it, its tensors where they were or where θ is now.

        Parameters
        ----------
        solver : Solver
            That of the walk.
        theta : Tensor, shape (P,)
            θ where the walk goes on.

        Raises
        ------
        ArchiveError
            Names the first entry that the solver cannot have made.
        """
        if self.carry is None:
            return None
        there = {
            name: value.to(theta.device)
            if isinstance(value, Tensor) and self.devices.get(name, "cpu") != "cpu"
            else value
            for name, value in self.carry.items()
        }
        return taken_up(solver, there, theta)

    @classmethod
    def unpack(cls, arrays: Mapping[str, NDArray[Any]], state: Mapping[str, Any]) -> Checkpoint:
        """Put together again what :meth:`pack` has split.

        Raises
        ------
        ArchiveError
            Something is missing or of another kind.
        """
        try:
            names = {name: str(torch.device(at)) for name, at in state["devices"].items()}
            carried = {name: _tensor(arrays[CARRIED + name]) for name in names}
            others = {name: _tensor(arrays[STATE + name]) for name in state.get("state", [])}
            plain = state["carry"]
            for name, value in (plain or {}).items():
                if not isinstance(value, int | float | str):
                    raise TypeError(f"carry[{name!r}] is a {type(value).__name__}")
            found = cls(
                n_steps=int(state["n_steps"]),
                tensors={"theta": _tensor(arrays["theta"]), **others},
                carry=None if plain is None else {**plain, **carried},
                counts={
                    name: int(state["counts"][name])
                    for name in COUNTED
                    if name in state["counts"] or name in COUNTED[:2]
                },
                levels=[float(level) for level in state.get("levels", [])],
                devices=names,
            )
        except UNUSABLE as error:
            said = translation.kind_and_reason(error)
            raise ArchiveError(f"its checkpoint cannot be used ({said})") from None
        # Before its first record a walk has made no step.
        if found.n_steps < 0 or (found.n_steps == 0 and found.carry is not None):
            raise ArchiveError(OF_ANOTHER_WALK)
        return found


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().contiguous().numpy()


def _tensor(array: NDArray[Any]) -> Tensor:
    # Sums depend on how memory is aligned: clone into torch's own.
    return torch.from_numpy(array).clone()
