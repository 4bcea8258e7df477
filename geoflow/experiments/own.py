"""An experiment of one's own: a function of a seed that gives a problem to walk."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.experiments.prepared import Data, PreparedExperiment, check_seed
from geoflow.experiments.problem_file import Source
from geoflow.problems import arithmetic, modules
from geoflow.problems.checks import check_device_and_dtype
from geoflow.problems.dtypes import DTYPES, dtype_name
from geoflow.problems.problem import Problem
from geoflow.problems.protocol import check_problem
from geoflow.system import kinds
from geoflow.system.translation import reason
from geoflow.trajectories import storable
from geoflow.trajectories.dataset import WALK_TITLE

Function = Callable[..., PreparedExperiment | Problem]

# What a user may ask of an experiment beside its seed.
OPTIONS = ("data", "epochs", "dtype", "device")


@dataclass(frozen=True)
class OwnExperiment:
    """A function of a seed, under a name.

    Attributes
    ----------
    name : str
        Archives of its walks have it.
    function : callable
        See :func:`geoflow.experiments.register`.
    source : Source, optional
        The file that it is from, where it was named on the command line.

    Raises
    ------
    InputError
        ``function`` cannot be called with a seed.
    """

    name: str
    function: Function
    source: Source | None = None

    # Not known before it is called.
    usual_dtype: ClassVar[torch.dtype | None] = None

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, type):
            raise InputError(
                f"{self.name!r} is a {type(self.function).__name__}; give a function of a seed"
            )
        try:
            inspect.signature(self.function).bind(0)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the function of {self.name!r} cannot be called with a seed alone "
                f"({reason(error)})"
            ) from None

    @property
    def takes(self) -> set[str]:
        """Options that the function names in its signature."""
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        # The first is the seed, whatever it is called.
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {p.name for p in parameters if p.kind in named} & {*OPTIONS, "progress"}

    @arithmetic.without_autocast()
    def prepare(
        self,
        seed: int = 0,
        *,
        data: str | None = None,
        epochs: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> PreparedExperiment:
        """Call the function.

        Parameters
        ----------
        seed : int
            Decides everything.
        data, epochs, dtype, device
            Given to the function, where they are given and it names them.
        progress : bool
            Given to the function where it names it.

        Raises
        ------
        InputError
            A seed or an option that cannot be used, or something else than a problem returned.
        """
        seed = check_seed(seed)
        options = self.check_options(data=data, epochs=epochs, dtype=dtype, device=device)
        if dtype is not None or device is not None:
            check_device_and_dtype(device or "cpu", dtype or torch.float64)
        prepared = self._called(seed, options, progress)
        self._check_kept(prepared.problem, dtype, device)
        return replace(prepared, provenance=self._provenance(seed, options, prepared))

    def check_options(self, **given: Any) -> dict[str, Any]:
        """Return the options that are given, None being none, where the function takes them.

        Raises
        ------
        InputError
            The function does not name one in its signature.
        """
        options = {name: value for name, value in given.items() if value is not None}
        for name in options:
            if name not in self.takes:
                raise InputError(
                    f"{name}={options[name]}: the function of {self.name!r} does not name {name} "
                    "in its signature; name it there, or leave it out"
                )
        return options

    def again(
        self, seed: int, provenance: Mapping[str, Any], *, dtype: torch.dtype, device: Any
    ) -> PreparedExperiment:
        """Make again what a walk was a walk of.

        Warns where the function is from another version of its file than the walk's was.

        Parameters
        ----------
        seed : int
            That of the walk.
        provenance : mapping
            What :meth:`prepare` said of it.
        dtype : torch.dtype
            That of the walk.
        device : torch.device or str
            Where to evaluate.

        Raises
        ------
        InputError
            See :meth:`prepare`; or the function gives another dtype or device and does not name
            them.
        """
        options = self._recorded(provenance)
        options |= {k: v for k, v in (("dtype", dtype), ("device", device)) if k in self.takes}
        prepared = self.prepare(seed, **options)
        self._check_kept(prepared.problem, dtype, device)
        return prepared

    def preparation(
        self, provenance: Mapping[str, Any], *, dtype: torch.dtype, device: str
    ) -> dict[str, Any]:
        """Return the arguments of :meth:`prepare` that a walk of this provenance was made with.

        Warns as :meth:`again` does.
        """
        return {"seed": provenance["seed"], **self._recorded(provenance)}

    def _recorded(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        then = provenance.get("problem_sha256")
        if self.source is not None and then not in (None, self.source.sha256):
            warnings.warn(
                f"{self.source.path} has changed since the walk was started (SHA-256 "
                f"{self.source.sha256[:12]}…, then {str(then)[:12]}…)",
                stacklevel=2,
            )
        recorded = provenance.get("options", {})
        options = {name: recorded[name] for name in OPTIONS if name in recorded}
        if "dtype" in options:
            options["dtype"] = DTYPES[options["dtype"]]
        return options

    def __reduce__(self) -> tuple[Any, ...]:
        """Carry a function of a file by its file, which the workers read too."""
        if self.source is None:
            return type(self), (self.name, self.function)
        return from_file, (f"{self.source.path}:{self.name}", self.source.sha256)

    def _called(self, seed: int, options: Mapping[str, Any], progress: bool) -> PreparedExperiment:
        shown = {"progress": progress} if "progress" in self.takes else {}
        with self.source.errors() if self.source else nullcontext():
            found = self.function(seed, **options, **shown)
        if not isinstance(found, PreparedExperiment):
            if not hasattr(found, "theta0"):
                raise InputError(
                    f"the function of {self.name!r} returned a {type(found).__name__}; return a "
                    "geoflow.experiments.PreparedExperiment or a geoflow.Problem"
                )
            found = PreparedExperiment(found)
        problem = found.problem
        check_problem(problem, f"the problem of {self.name!r}")
        module = found.module
        if module is not None:
            # As the problem has it, so that the outputs are those that the walk has seen.
            kinds.check_kind(module, nn.Module, f"module of {self.name!r}", "a torch.nn.Module")
            module = modules.duplicate(module, f"module of {self.name!r}").eval()
            modules.convert(module, problem.dtype, problem.device)
        return replace(
            found,
            module=module,
            train=self._data("train", found.train, problem),
            test=self._data("test", found.test, problem),
        )

    def _data(self, name: str, data: Any, problem: Problem) -> Data | None:
        if data is None:
            return None
        if not isinstance(data, tuple) or len(data) != 2:
            raise InputError(
                f"{name} of {self.name!r} is a {type(data).__name__}; give (inputs, targets)"
            )
        return Data(*(_converted(part, problem) for part in data))

    def _check_kept(self, problem: Problem, dtype: torch.dtype | None, device: Any) -> None:
        """Refuse another dtype or device than what was asked for."""
        if dtype is not None and problem.dtype != dtype:
            raise InputError(
                f"dtype={dtype_name(dtype)}: the function of {self.name!r} gives a problem in "
                f"{dtype_name(problem.dtype)}; let it take dtype and use it"
            )
        wanted = check_device_and_dtype(device or problem.device, problem.dtype)
        if problem.device.type != wanted.type:
            raise InputError(
                f"device={device}: the function of {self.name!r} gives a problem on "
                f"{problem.device}; let it take device and use it"
            )

    def _provenance(
        self, seed: int, options: Mapping[str, Any], prepared: PreparedExperiment
    ) -> dict[str, Any]:
        problem = prepared.problem
        as_json = {
            name: dtype_name(value) if isinstance(value, torch.dtype) else value
            for name, value in options.items()
        }
        if "device" in as_json:
            as_json["device"] = str(as_json["device"])
        provenance = {
            "title": f"{self.name}, seed {seed}: {WALK_TITLE}",
            "data_sha256": problem.data_sha256,
            "n_parameters": problem.n_parameters,
            **prepared.provenance,
            "experiment": self.name,
            "seed": seed,
            "options": as_json,
        }
        if self.source is not None:
            provenance |= {
                "problem_file": self.source.path.name,
                "problem_sha256": self.source.sha256,
            }
        storable.as_json(provenance, f"provenance of {self.name!r}")
        return provenance


def from_file(text: str, sha256: str | None = None) -> OwnExperiment:
    """Load an experiment of one's own from ``FILE.py:FUNCTION``; FUNCTION is its name.

    Parameters
    ----------
    text : str
        The file, a colon, and the name of a function at its top.
    sha256 : str, optional
        What the file must have; None: anything.

    Raises
    ------
    InputError
        No such file or function, an error in the file, or another file than it must be.
    """
    source, name, function = Source.load(text, sha256)
    return OwnExperiment(name, function, source)


def _converted(part: Any, problem: Problem) -> Any:
    """Tensors in the dtype of the problem where they are floating, and on its device."""
    if isinstance(part, Mapping):
        return {name: _converted(value, problem) for name, value in part.items()}
    if isinstance(part, (tuple, list)):
        return tuple(_converted(value, problem) for value in part)
    tensor = torch.as_tensor(part, device="cpu") if isinstance(part, np.ndarray) else part
    if not isinstance(tensor, Tensor):
        return part
    dtype = problem.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=problem.device, dtype=dtype)
