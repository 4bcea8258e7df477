"""An experiment that trains a network from one seed: data, network, training, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.experiments import datasets, networks, training
from geoflow.experiments.prepared import Data, PreparedExperiment, check_seed
from geoflow.problems import arithmetic, modules
from geoflow.problems.checks import check_device_and_dtype
from geoflow.problems.forward import outputs
from geoflow.problems.problem import Problem
from geoflow.system import kinds
from geoflow.system.limits import EPOCHS, check_work
from geoflow.trajectories.dataset import WALK_TITLE


@dataclass(frozen=True)
class Start:
    """An experiment before its training: all that its seed decides.

    Attributes
    ----------
    module : torch.nn.Module
        The network with its first weights.
    train, test : Data
        The split, in the dtype and on the device of the walk.
    given : Data
        What ``train`` was before: its hash is the same for every dtype.
    shuffling : torch.Generator
        Orders the examples, epoch by epoch.
    source : str
        Where the data came from, for people.
    """

    module: nn.Module
    train: Data
    test: Data
    given: Data
    shuffling: torch.Generator
    source: str


@dataclass(frozen=True)
class Experiment:
    """An experiment of the kind of the paper's: one network, one data set, trained from a seed.

    Attributes
    ----------
    name, network, data, needs : str
        For people: what it is made of and what it needs.
    classification : bool
        Cross-entropy and accuracies; otherwise squared error.
    split : callable
        Gives the data for a generator and a data source.
    build : callable
        Makes the network, its weights not yet set.
    paper_steps : int
        Predictor steps of the paper.
    predictor_min, corrector_min : float
        The least step sizes of the paper's loop.
    decay_epochs : int
        Epochs of the paper's trainings with weight decay.
    epochs : int
        Epochs of the training before a walk.
    batch_size : int or None
        Examples evaluated at once on the walk; None: all. Convolutions take half the time on 50
        images at once that they take on 1,000, and less memory.
    """

    name: str
    network: str
    data: str
    needs: str
    classification: bool
    split: Callable[[np.random.Generator, str | None], datasets.Split]
    build: Callable[[], nn.Module]
    paper_steps: int
    predictor_min: float
    corrector_min: float
    decay_epochs: int
    epochs: int = 100
    batch_size: int | None = None

    # What a walk is computed in where nothing else is asked for.
    usual_dtype: ClassVar[torch.dtype | None] = torch.float64

    @property
    def loss_fn(self) -> training.LossFunction:
        """Mean loss of outputs and targets."""
        return nn.functional.cross_entropy if self.classification else training.squared_error

    @property
    def loss_name(self) -> str:
        """Name of the loss, for people."""
        return "cross-entropy" if self.classification else "squared error"

    @property
    def n_parameters(self) -> int:
        """P, the number of trainable parameters."""
        return sum(p.numel() for p in self._blank().parameters())

    def _blank(self) -> nn.Module:
        # Without memory, so that no weight is drawn from torch's global generator.
        with torch.device("meta"):
            return self.build()

    def start(
        self,
        seed: int = 0,
        *,
        data: str | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Start:
        """Load the data and draw the first weights, as :meth:`prepare` does before it trains.

        Parameters
        ----------
        seed, data, dtype, device
            See :meth:`prepare`.

        Raises
        ------
        InputError, DataError
            See :meth:`prepare`.
        """
        check_seed(seed)
        device = check_device_and_dtype(device, dtype)
        splitting, weights, shuffling = np.random.SeedSequence(seed).spawn(3)
        split = self.split(np.random.default_rng(splitting), data)
        # Drawn in float64 on the CPU, so that every dtype and device starts from the same weights.
        module = self._blank().double().to_empty(device="cpu")
        networks.initialise(module, _generator(weights))
        return Start(
            # Its tensors have the names that the problem gives them.
            module=modules.plain(module).to(dtype=dtype, device=device),
            train=_data(split.train_inputs, split.train_targets, dtype, device),
            test=_data(split.test_inputs, split.test_targets, dtype, device),
            given=_data(split.train_inputs, split.train_targets, torch.float64, "cpu"),
            shuffling=_generator(shuffling),
            source=split.source,
        )

    @arithmetic.without_autocast()
    def prepare(
        self,
        seed: int = 0,
        *,
        data: str | None = None,
        epochs: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> PreparedExperiment:
        """Load the data and train the network to near-zero loss; all from one seed.

        Training is done in ``dtype`` on ``device``.

        Parameters
        ----------
        seed : int
            Decides the split, the first weights and the shuffling.
        data : str, optional
            A folder with the data set's own files, or ``"synthetic"``, where the experiment
            takes one. None: the data that packages carry.
        epochs : int, optional
            Of training; None: 100, as in the paper.
        dtype : torch.dtype
            float64 or float32.
        device : torch.device or str
            Where to train and walk.
        progress : bool
            Show a bar on standard error, where that is a terminal or a notebook's.

        Raises
        ------
        InputError
            A seed or another argument that cannot be used.
        DataError
            Data that is missing, truncated or altered.
        """
        seed = check_seed(seed)
        epochs = self.epochs if epochs is None else kinds.as_whole(epochs, "epochs")
        if epochs < 1:
            raise InputError(f"epochs={epochs}; use a positive number")
        check_work(epochs, EPOCHS, f"epochs={epochs}", "epochs")
        start = self.start(seed, data=data, dtype=dtype, device=device)
        history = training.train(
            start.module,
            self.loss_fn,
            *start.train,
            epochs=epochs,
            generator=start.shuffling,
            progress=progress,
        )
        prepared = self._on(start, dtype, device)
        provenance = self._provenance(seed, start, prepared.problem, epochs, history, data)
        return replace(prepared, provenance=provenance)

    def again(
        self, seed: int, provenance: Mapping[str, Any], *, dtype: torch.dtype, device: Any
    ) -> PreparedExperiment:
        """Make again what a walk was a walk of, at the untrained weights.

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
        InputError, DataError
            See :meth:`prepare`.
        """
        start = self.start(seed, data=provenance.get("data"), dtype=dtype, device=device)
        return replace(self._on(start, dtype, device), provenance={"data_source": start.source})

    def preparation(
        self, provenance: Mapping[str, Any], *, dtype: torch.dtype, device: str
    ) -> dict[str, Any]:
        """Return the arguments of :meth:`prepare` that a walk of this provenance was made with."""
        return {
            "seed": provenance["seed"],
            "data": provenance["data"],
            "epochs": provenance["training"]["epochs"],
            "dtype": dtype,
            "device": device,
        }

    def _on(self, start: Start, dtype: torch.dtype, device: Any) -> PreparedExperiment:
        """Make the problem at the weights that the network has now."""
        module = start.module.eval()
        problem = Problem.from_module(
            module,
            self.loss_fn,
            *start.given,
            batch_size=self.batch_size,
            dtype=dtype,
            device=device,
        )
        return PreparedExperiment(
            problem=problem,
            observables=self.observables(problem, module, start.train, start.test),
            module=module,
            train=start.train,
            test=start.test,
            loss_fn=self.loss_fn,
            batch_size=self.batch_size,
            classification=self.classification,
        )

    def observables(
        self, problem: Problem, module: nn.Module, train: Data, test: Data
    ) -> dict[str, Callable[[Tensor], float]]:
        """Functions θ → float: test loss, and the accuracies of a classifier."""

        def of(theta: Tensor, data: Data) -> Tensor:
            return outputs(module, problem.unflatten(theta), data.inputs)

        def test_loss(theta: Tensor) -> float:
            return float(self.loss_fn(of(theta, test), test.targets))

        def test_accuracy(theta: Tensor) -> float:
            return _accuracy(of(theta, test), test.targets)

        def train_accuracy(theta: Tensor) -> float:
            return _accuracy(of(theta, train), train.targets)

        functions = [test_loss]
        if self.classification:
            functions += [test_accuracy, train_accuracy]
        return {f.__name__: f for f in functions}

    def _provenance(
        self,
        seed: int,
        start: Start,
        problem: Problem,
        epochs: int,
        history: training.History,
        data: str | None,
    ) -> dict[str, Any]:
        synthetic = ", on synthetic images, not CIFAR-10" if data == "synthetic" else ""
        return {
            "title": f"{self.name}, seed {seed}: {WALK_TITLE}{synthetic}",
            "experiment": self.name,
            "seed": seed,
            "data": data,
            "data_source": start.source,
            "data_sha256": problem.data_sha256,
            "n_train": len(start.train.targets),
            "n_test": len(start.test.targets),
            "network": self.network,
            "n_parameters": problem.n_parameters,
            "loss": self.loss_name,
            "training": {
                "optimizer": "Adam",
                "learning_rate": training.LEARNING_RATE,
                "eps": training.EPS,
                "batch_size": training.BATCH_SIZE,
                "epochs": epochs,
                "last_epoch_loss": history.loss[-1],
            },
        }


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(dim=1) == targets).double().mean())


def _generator(sequence: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)


def _data(
    inputs: np.ndarray[Any, Any],
    targets: np.ndarray[Any, Any],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Data:
    x, y = (torch.as_tensor(array, device="cpu") for array in (inputs, targets))
    y = y.to(dtype) if y.is_floating_point() else y
    return Data(x.to(device=device, dtype=dtype), y.to(device))
