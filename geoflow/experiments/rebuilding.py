"""An archived walk's flow and observables, made again from what the file says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.experiments.registry import Data, get
from geoflow.manifold import regularizers
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.problems.dtypes import DTYPES
from geoflow.problems.parts import OUTPUTS_AT_ONCE
from geoflow.problems.problem import Problem


@dataclass(frozen=True)
class RebuiltWalk:
    """What an experiment's walk was a walk of.

    Attributes
    ----------
    flow : RegularizingFlow
        Its ``problem.theta0`` is the experiment's untrained start; the walk's points are in
        its file.
    observables : mapping of str to callable
        Functions θ → float on the test set (and the training accuracy).
    module : torch.nn.Module
        The network, in evaluation mode, with its untrained weights.
    loss_fn : callable
        ``loss_fn(outputs, targets)`` → scalar mean over the examples.
    train, test : Data
        What it was trained and is tested on.
    """

    flow: RegularizingFlow
    observables: Mapping[str, Callable[[Tensor], float]]
    module: nn.Module
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    train: Data
    test: Data

    def test_problem(self) -> Problem:
        """Return the loss on the test set, which is no loss the walk keeps, as a problem."""
        problem = self.flow.problem
        return Problem.from_module(
            self.module,
            self.loss_fn,
            *self.test,
            # Chunks as large as the observables', so that memory is flat.
            batch_size=min(OUTPUTS_AT_ONCE, len(self.test.targets)),
            dtype=problem.dtype,
            device=problem.device,
        )


def rebuild(attributes: Mapping[str, Any], *, device: torch.device | str = "cpu") -> RebuiltWalk:
    """Make again what a walk was a walk of: data, network, level and R, without training.

    Parameters
    ----------
    attributes : mapping
        ``ds.attrs`` of a trajectory of one of the experiments, in schema 1.0.
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
            "the walk is of no experiment, so its loss is not known here; make its flow in Python"
        )
    regularizer = regularizers.get(attributes["regularizer_name"])
    experiment = get(name)
    provenance = json.loads(attributes["config"])["provenance"]
    dtype = DTYPES[attributes["dtype"]]
    start = experiment.start(
        int(attributes["seed"]), data=provenance.get("data"), dtype=dtype, device=device
    )
    module = start.module.eval()
    problem = Problem.from_module(
        module,
        experiment.loss_fn,
        *start.train,
        batch_size=experiment.batch_size,
        dtype=dtype,
        device=device,
    )
    if problem.data_sha256 != attributes["data_sha256"]:
        raise InputError(
            f"the training data of {name}, seed {attributes['seed']}, are not those of the walk "
            f"(from {provenance.get('data_source')}; here {start.source}); use the same data"
        )
    level_set = LevelSet(problem, float(attributes["level"]), float(attributes["level_rtol"]))
    return RebuiltWalk(
        flow=RegularizingFlow(level_set, regularizer),
        observables=experiment.observables(problem, module, start.train, start.test),
        module=module,
        loss_fn=experiment.loss_fn,
        train=start.train,
        test=start.test,
    )
