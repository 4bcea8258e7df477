"""Training with weight decay, over the penalties of Tahir & Katz (IJCNN 2021, arXiv 2011.04189)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from geoflow.baselines.decay_dataset import Curve, to_dataset
from geoflow.errors import InputError
from geoflow.experiments import registry, training
from geoflow.experiments.prepared import check_seed
from geoflow.experiments.registry import Data, Experiment, Start
from geoflow.problems import arithmetic
from geoflow.problems.checks import check_device_and_dtype
from geoflow.problems.each import each
from geoflow.problems.forward import outputs
from geoflow.system.kinds import Reals, Wholes, as_number, as_whole, check_kind, check_switch, shown
from geoflow.system.limits import EPOCHS, check_work
from geoflow.system.memory import check_memory
from geoflow.system.progress import progress_bar

PENALTIES = (0.0, *(10.0**k for k in range(-6, 7)))
RUNS = 15


@arithmetic.without_autocast()
def weight_decay(
    experiment: str | Experiment,
    *,
    penalties: Reals = PENALTIES,
    seeds: Wholes = range(RUNS),
    epochs: int | None = None,
    validation: float = 0.2,
    record_every: int = 10,
    data: str | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> xr.Dataset:
    """Train an experiment's network at each penalty, once a seed.

    What is minimised is L(θ) + penalty·Σ w² over the kernels' weights w, biases left out, by Adam
    (1e-3, eps 1e-7) in batches of 32. Run and walk of one seed have the same split, first weights
    and order of examples, so they can be compared in pairs.

    A penalty has to be chosen by something. To be able to choose it without the test set, each
    training is done a second time with the last ``validation`` of the training set held out
    (the order of which is random), and judged on that part. The runs that are reported are
    those on the whole training set, as in the paper.

    Parameters
    ----------
    experiment : str or Experiment
        An experiment of the paper by its name, or one of that kind, as of other data.
    penalties : sequence of float
        None negative. Default: 0 and 10⁻⁶ … 10⁶, the paper's.
    seeds : sequence of int
        One run each. Default: 0 to 14, as many as the paper has.
    epochs : int, optional
        None: the paper's, 500 for ``iris_ff`` and ``mpg_ff``, 200 for the others.
    validation : float
        Part of the training set to hold out in the second trainings, at most 0.5; 0 for none.
    record_every : int
        Epochs between the points of the curves; the last epoch is always one.
    data : str, optional
        See :meth:`geoflow.experiments.Experiment.prepare`.
    dtype : torch.dtype
        float64 or float32.
    device : torch.device or str
        Where to train.
    progress : bool
        Show a bar on standard error, where that is a terminal or a notebook's.

    Returns
    -------
    xarray.Dataset
        Dimensions ``penalty``, ``run``, ``epoch``, ``parameter`` and ``tensor``. By penalty, run
        and epoch ``train_loss``, ``test_loss``, ``validation_loss`` (without the penalty) and,
        where there are classes, the accuracies; by penalty and run ``regularizer``, ‖θ‖² at the
        end, weights and biases, and ``theta``. The validation curves are those of the second
        trainings; NaN without them.

    Raises
    ------
    InputError
        An argument that cannot be used.
    DataError
        Data that is missing, truncated or altered.
    """
    chosen = registry.of_paper(experiment) if isinstance(experiment, str) else experiment
    if not isinstance(chosen, Experiment):
        raise InputError(registry.not_of_paper(f"experiment={shown(chosen)}"))
    epochs = chosen.decay_epochs if epochs is None else as_whole(epochs, "epochs", least=1)
    record_every = as_whole(record_every, "record_every", least=1)
    validation = as_number(validation, "validation")
    check_device_and_dtype(device, dtype)
    check_kind(data, str | os.PathLike | None, "data", "a folder's name, or None")
    check_switch(progress, "progress")
    # By their number first: a range may be longer than a list can be.
    _check_cost(chosen, _length(penalties, "penalties"), _length(seeds, "seeds"), epochs, dtype)
    penalties, seeds = (
        [as_number(p, "penalties") for p in penalties],
        [check_seed(s) for s in seeds],
    )
    _check(penalties, seeds, validation)
    starts = [chosen.start(s, data=data, dtype=dtype, device=device) for s in seeds]
    n = len(starts[0].train.targets)
    n_fit = n - round(validation * n)
    if validation and n_fit == n:
        raise InputError(
            f"validation={validation}: of {n} examples that is none; use {1 / n:.2g} or more, or 0"
        )
    parts = {"": n} | ({"validation_": n_fit} if n_fit < n else {})
    recorded = [*range(record_every, epochs, record_every), epochs]
    groups = _groups(starts)
    bar = progress_bar(
        progress,
        total=len(penalties) * len(parts) * len(groups) * epochs,
        desc="weight decay",
        unit="epoch",
    )
    curves: dict[str, list[list[Curve]]] = {}
    thetas: list[NDArray[np.generic]] = []
    with bar:
        for penalty in penalties:
            bar.set_postfix(penalty=f"{penalty:g}")
            rows: dict[str, list[Curve]] = {}
            for prefix, size in parts.items():
                for group in groups:
                    fitted = _fit(chosen, group, penalty, size, epochs, recorded, bar)
                    for name, curve in fitted.curves.items():
                        rows.setdefault(prefix + name, []).extend(curve)
                    if not prefix:
                        thetas.extend(fitted.theta)
            for name, row in rows.items():
                curves.setdefault(name, []).append(row)
    coordinates: dict[str, list[Any]] = {"penalty": penalties, "run": seeds, "epoch": recorded}
    config = {
        "epochs": epochs,
        "validation": validation,
        "n_train": n,
        "n_test": len(starts[0].test.targets),
        "data": None if data is None else os.fspath(data),
        "data_source": starts[0].source,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
    }
    return to_dataset(chosen, starts[0].module, coordinates, curves, thetas, config)


class _Fit(NamedTuple):
    """Curves by name, each a list over the runs, and the runs' final θ."""

    curves: dict[str, list[Curve]]
    theta: list[NDArray[np.generic]]


def _length(values: Any, name: str) -> int:
    try:
        # Each has a length, and none holds numbers.
        if isinstance(values, str | bytes | Mapping):
            raise TypeError
        return len(values)
    except (TypeError, OverflowError):
        raise InputError(f"{name}={shown(values)}; give numbers in a list") from None


def _check(penalties: Sequence[float], seeds: Sequence[int], validation: float) -> None:
    bad = [p for p in penalties if not (math.isfinite(p) and p >= 0)]
    if bad or not penalties or len(set(penalties)) < len(penalties):
        raise InputError(f"penalties={shown(penalties)}; use different numbers, none negative")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={shown(seeds)}; use at least one, each once")
    if not 0 <= validation <= 0.5:
        raise InputError(f"validation={validation}; use a part of at most 0.5, or 0 for none")


def _check_cost(
    experiment: Experiment, n_penalties: int, n_seeds: int, epochs: int, dtype: torch.dtype
) -> None:
    """Refuse trainings that memory cannot hold, or that would take days."""
    named = f"{n_penalties:,} penalties, {n_seeds:,} seeds and epochs={epochs:,}"
    check_work(n_penalties * n_seeds * epochs, EPOCHS, named, "epochs")
    # Parameters, gradients, the two moments of Adam and a copy; what is left of each penalty.
    needed = n_seeds * (5 + n_penalties) * experiment.n_parameters * dtype.itemsize
    check_memory(needed, f"{n_penalties:,} penalties and {n_seeds:,} seeds", "use fewer")


def _groups(starts: list[Start]) -> list[list[Start]]:
    """Runs to train at once.

    Stacked dense layers are faster than one after the other; convolutions, each with weights of
    its own, become grouped ones, which are slower (studies/batched_seeds.py).
    """
    if any(isinstance(m, nn.Conv2d) for m in starts[0].module.modules()):
        return [[s] for s in starts]
    return [starts]


def _fit(
    experiment: Experiment,
    starts: list[Start],
    penalty: float,
    size: int,
    epochs: int,
    recorded: Sequence[int],
    bar: tqdm[Any],
) -> _Fit:
    """Train copies of several networks at once on the first ``size`` of each training set."""
    module = starts[0].module
    named = [dict(s.module.named_parameters()) for s in starts]
    stacked = {k: torch.stack([p[k].detach() for p in named]).requires_grad_() for k in named[0]}
    inputs = torch.stack([s.train.inputs[:size] for s in starts])
    targets = torch.stack([s.train.targets[:size] for s in starts])
    sets = {"train": [Data(s.train.inputs[:size], s.train.targets[:size]) for s in starts]}
    if size < len(starts[0].train.targets):
        # Judged on what was held out; the test set is for the runs on the whole set alone.
        sets = {"": [Data(s.train.inputs[size:], s.train.targets[size:]) for s in starts]}
    else:
        sets["test"] = [s.test for s in starts]
    generators = [torch.Generator().set_state(s.shuffling.get_state()) for s in starts]

    def loss(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return experiment.loss_fn(functional_call(module, dict(parameters), (x,)), y)

    losses = each(loss)
    rows = torch.arange(len(starts), device="cpu")[:, None]
    optimizer = torch.optim.Adam(
        list(stacked.values()), lr=training.LEARNING_RATE, eps=training.EPS, fused=True
    )
    curves: dict[str, list[list[list[float]]]] = {}
    for epoch in range(1, epochs + 1):
        orders = torch.stack([torch.randperm(size, generator=g, device="cpu") for g in generators])
        for batch in orders.split(training.BATCH_SIZE, dim=1):
            optimizer.zero_grad()
            # No run's loss depends on another's parameters: the sum has each one's gradient.
            losses(stacked, inputs[rows, batch], targets[rows, batch]).sum().backward()
            for tensor in stacked.values():
                if tensor.ndim > 2 and tensor.grad is not None:  # a kernel, stacked
                    tensor.grad.add_(tensor.detach(), alpha=2 * penalty)
            optimizer.step()
        if epoch in recorded:
            for name, parts in sets.items():
                judged = _judge(experiment, module, stacked, parts)
                curves.setdefault(name, []).append(judged)
        bar.update()
    flat = torch.cat([t.detach().reshape(len(starts), -1) for t in stacked.values()], dim=1)
    return _Fit(_by_name(curves, experiment.classification), list(flat.cpu().numpy()))


def _judge(
    experiment: Experiment, module: nn.Module, stacked: Mapping[str, Tensor], parts: list[Data]
) -> list[list[float]]:
    """Mean loss and accuracy of each run on its own data."""
    judged = []
    with torch.no_grad():
        for i, data in enumerate(parts):
            found = outputs(module, {k: t[i] for k, t in stacked.items()}, data.inputs)
            loss = float(experiment.loss_fn(found, data.targets))
            right = math.nan
            if experiment.classification:
                right = float((found.argmax(1) == data.targets).double().mean())
            judged.append([loss, right])
    return judged


def _by_name(
    curves: Mapping[str, list[list[list[float]]]], classification: bool
) -> dict[str, list[Curve]]:
    named: dict[str, list[Curve]] = {}
    for name, values in curves.items():
        array = np.array(values)  # epoch, run, (loss, accuracy)
        prefix = f"{name}_" if name else ""
        named[f"{prefix}loss"] = list(array[:, :, 0].T)
        if classification:
            named[f"{prefix}accuracy"] = list(array[:, :, 1].T)
    return named
