"""The five experiments of Tahir & Katz (2021), by name: data, network, training, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.experiments import datasets, networks, training
from geoflow.problems.checks import check_device_and_dtype
from geoflow.problems.parts import outputs
from geoflow.problems.problem import Problem


class Data(NamedTuple):
    """Inputs (N, …) and targets (N,)."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Start:
    """An experiment before its training: all that its seed decides.

    Attributes
    ----------
    module : torch.nn.Module
        The network with its first weights.
    train, test : Data
        The split.
    shuffling : torch.Generator
        Orders the examples, epoch by epoch.
    source : str
        Where the data came from, for people.
    """

    module: nn.Module
    train: Data
    test: Data
    shuffling: torch.Generator
    source: str


@dataclass(frozen=True)
class PreparedExperiment:
    """A trained problem with its test observables and its provenance.

    Attributes
    ----------
    problem : Problem
        At the trained weights, ``problem.theta0``.
    observables : mapping of str to callable
        Functions θ → float on the test set (and the training accuracy).
    provenance : mapping
        JSON-able: name, seed, data, network and training.
    module : torch.nn.Module
        The trained network.
    train, test : Data
        What it was trained and is tested on.
    """

    problem: Problem
    observables: Mapping[str, Callable[[Tensor], float]]
    provenance: Mapping[str, Any]
    module: nn.Module
    train: Data
    test: Data


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments.

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
        if seed < 0:
            raise InputError(f"seed={seed}; use zero or a positive number")
        device = check_device_and_dtype(device, dtype)
        splitting, weights, shuffling = np.random.SeedSequence(seed).spawn(3)
        split = self.split(np.random.default_rng(splitting), data)
        # Drawn in float64 on the CPU, so that every dtype and device starts from the same weights.
        module = self._blank().double().to_empty(device="cpu")
        networks.initialise(module, _generator(weights))
        return Start(
            module=module.to(dtype=dtype, device=device),
            train=_data(split.train_inputs, split.train_targets, dtype, device),
            test=_data(split.test_inputs, split.test_targets, dtype, device),
            shuffling=_generator(shuffling),
            source=split.source,
        )

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
            Show a bar on standard error, where that is a terminal.

        Raises
        ------
        InputError
            A seed or another argument that cannot be used.
        DataError
            Data that is missing, truncated or altered.
        """
        epochs = self.epochs if epochs is None else epochs
        if epochs < 1:
            raise InputError(f"epochs={epochs}; use a positive number")
        start = self.start(seed, data=data, dtype=dtype, device=device)
        module, train, test = start.module, start.train, start.test
        history = training.train(
            module,
            self.loss_fn,
            *train,
            epochs=epochs,
            generator=start.shuffling,
            progress=progress,
        )
        module.eval()
        problem = Problem.from_module(
            module, self.loss_fn, *train, batch_size=self.batch_size, dtype=dtype, device=device
        )
        return PreparedExperiment(
            problem=problem,
            observables=self.observables(problem, module, train, test),
            provenance=self._provenance(seed, start, problem, epochs, history, data),
            module=module,
            train=train,
            test=test,
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
            "title": f"{self.name}, seed {seed}: walk along the training-loss level set{synthetic}",
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
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


def _data(
    inputs: np.ndarray[Any, Any],
    targets: np.ndarray[Any, Any],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Data:
    x, y = torch.as_tensor(inputs), torch.as_tensor(targets)
    y = y.to(dtype) if y.is_floating_point() else y
    return Data(x.to(device=device, dtype=dtype), y.to(device))


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            name="iris_ff",
            network="4-100-100-100-100-3",
            data="iris, 120 train / 30 test",
            needs="nothing",
            classification=True,
            split=datasets.iris,
            build=lambda: networks.feed_forward([4, 100, 100, 100, 100, 3]),
            paper_steps=20_000,
            predictor_min=1e-5,
            corrector_min=1e-6,
            decay_epochs=500,
        ),
        Experiment(
            name="mpg_ff",
            network="9-100-100-100-100-1",
            data="Auto MPG, 313 train / 79 test",
            needs="nothing",
            classification=False,
            split=datasets.mpg,
            build=lambda: networks.feed_forward([9, 100, 100, 100, 100, 1]),
            paper_steps=30_000,
            predictor_min=1e-5,
            corrector_min=1e-6,
            decay_epochs=500,
        ),
        Experiment(
            name="mnist_ff",
            network="784-100-100-100-10",
            data="MNIST, 1,000 train / 4,000 test",
            needs="nothing; full MNIST with --data FOLDER",
            classification=True,
            split=datasets.mnist,
            build=lambda: networks.feed_forward([784, 100, 100, 100, 10]),
            paper_steps=10_000,
            predictor_min=1e-4,
            corrector_min=1e-4,
            decay_epochs=200,
        ),
        Experiment(
            name="mnist_conv",
            network="conv 3×3×20, pool, conv 3×3×20, pool, 100, 10",
            data="MNIST, 1,000 train / 4,000 test",
            needs="nothing; full MNIST with --data FOLDER",
            classification=True,
            split=datasets.mnist,
            build=lambda: networks.convolutional(1, 20, 28, 100),
            paper_steps=5_000,
            predictor_min=1e-4,
            corrector_min=1e-4,
            decay_epochs=200,
            batch_size=50,
        ),
        Experiment(
            name="cifar10_conv",
            network="conv 3×3×60, pool, conv 3×3×60, pool, 300, 10",
            data="CIFAR-10, 1,000 train / 4,000 test",
            needs="--data FOLDER, a download, or --data synthetic",
            classification=True,
            split=datasets.cifar10,
            build=lambda: networks.convolutional(3, 60, 32, 300),
            paper_steps=20_000,
            predictor_min=1e-4,
            corrector_min=1e-4,
            decay_epochs=200,
            batch_size=50,
        ),
    )
}


def names() -> list[str]:
    """Names of all experiments."""
    return list(EXPERIMENTS)


def get(name: str) -> Experiment:
    """Return the experiment of this name.

    Raises
    ------
    InputError
        There is none.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"experiment {name!r} is not known; use one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
