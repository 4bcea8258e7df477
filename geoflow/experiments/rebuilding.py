"""An archived walk's flow and observables, made again from what the file says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.experiments.prepared import Data
from geoflow.experiments.registry import get
from geoflow.manifold import regularizers
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.problems.dtypes import DTYPES
from geoflow.problems.earlier import same_data
from geoflow.problems.grouped import divided
from geoflow.problems.problem import Problem
from geoflow.system.translation import reason
from geoflow.trajectories import schema
from geoflow.trajectories.records import Observed


@dataclass(frozen=True)
class RebuiltWalk:
    """What an experiment's walk was a walk of.

    Attributes
    ----------
    flow : RegularizingFlow
        Its ``problem.theta0`` is the experiment's start, of the paper's five the untrained one;
        the walk's points are in its file.
    observables : mapping of str to callable, problem or regularizer
        Functions θ → float, such as the loss on the test set, as the experiment gives them.
    module : torch.nn.Module, optional
        The network, in evaluation mode. This and what follows is there where the experiment
        gives it.
    loss_fn : callable, optional
        ``loss_fn(outputs, targets)`` → scalar mean over the examples.
    train, test : Data, optional
        What it was trained and is tested on.
    classification : bool
        The network's outputs are logits of classes.
    class_dim : int, optional
        The axis of its outputs along which they are; None: 1 of outputs of shape (N, C).
    batch_size : int, optional
        Examples that the experiment's problem evaluates at once; None: all.
    """

    flow: RegularizingFlow
    observables: Mapping[str, Observed]
    module: nn.Module | None
    loss_fn: Callable[[Any, Any], Tensor] | None
    train: Data | None
    test: Data | None
    classification: bool = False
    class_dim: int | None = None
    batch_size: int | None = None

    def test_problem(self) -> Problem | None:
        """Return ``loss_fn`` on the test set, which is no loss the walk keeps, as a problem.

        An observable ``test_loss`` of an experiment of one's own may be another quantity: see
        :attr:`observables`. None where the experiment does not give module, loss and test set.
        """
        problem = self.flow.problem
        if self.module is None or self.loss_fn is None or self.test is None:
            return None
        return Problem.from_module(
            self.module,
            self.loss_fn,
            *self.test,
            batch_size=self.batch_size,
            dtype=problem.dtype,
            device=problem.device,
        )


def rebuild(attributes: Mapping[str, Any], *, device: torch.device | str = "cpu") -> RebuiltWalk:
    """Make again what a walk was a walk of: data, network, level and R, without training.

    An experiment of one's own is prepared again, as it is registered in this process.

    Parameters
    ----------
    attributes : mapping
        ``ds.attrs`` of a trajectory of one of the experiments, in schema 1.0 to 1.2.
    device : torch.device or str
        Where to evaluate; it need not be that of the walk.

    Raises
    ------
    InputError
        The walk is of no experiment, of an R of the user's own, or of other data than are found
        here now.
    DataError
        The data set's files are missing, truncated or altered.
    """
    name = attributes["experiment"]
    if not name:
        raise InputError(
            "it is of no experiment, so its loss is not known here; make its flow in Python"
        )
    regularizer = regularizers.get(attributes["regularizer_name"])
    try:
        provenance = dict(json.loads(attributes["config"])["provenance"])
        seed, dtype = int(attributes["seed"]), DTYPES[attributes["dtype"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"attributes do not say what the walk is of ({reason(error)}); make its flow in Python"
        ) from None
    prepared = get(name).again(seed, provenance, dtype=dtype, device=device)
    if not same_data(prepared.problem, attributes["data_sha256"]):
        sources = [p.get("data_source") for p in (provenance, prepared.provenance)]
        named = f" (from {sources[0]}; here {sources[1]})" if all(sources) else ""
        raise InputError(
            f"the training data of {name}, seed {attributes['seed']}, are not those of the walk"
            f"{named}; use the same data"
        )
    levels = schema.levels(attributes) or float(attributes["level"])
    level_set = LevelSet(
        divided(prepared.problem, constraints_of(attributes)),
        levels,
        float(attributes["level_rtol"]),
        float(json.loads(attributes["config"]).get("level_atol", 0.0)),
    )
    return RebuiltWalk(
        flow=RegularizingFlow(level_set, regularizer),
        observables=prepared.observables,
        module=prepared.module,
        loss_fn=prepared.loss_fn,
        train=prepared.train and Data(*prepared.train),
        test=prepared.test and Data(*prepared.test),
        classification=prepared.classification,
        class_dim=prepared.class_dim,
        batch_size=prepared.batch_size,
    )


def constraints_of(attributes: Mapping[str, Any]) -> str:
    """How a walk's constraints divide the examples, by its attributes; empty for a single one.

    Raises
    ------
    InputError
        They are several problems of the user's own.
    """
    division = json.loads(attributes["config"]).get("constraints", "")
    if schema.LEVELS in attributes and not division:
        raise InputError(
            "flow: its level set is of several problems, which an archive does not hold; make it "
            "in Python and give it"
        )
    return str(division)
