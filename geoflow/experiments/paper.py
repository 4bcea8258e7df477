"""The five experiments of Tahir & Katz (2021), by name."""

from __future__ import annotations

from functools import partial

from geoflow.experiments import datasets, networks
from geoflow.experiments.trained import Experiment

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
            build=partial(networks.feed_forward, [4, 100, 100, 100, 100, 3]),
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
            build=partial(networks.feed_forward, [9, 100, 100, 100, 100, 1]),
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
            build=partial(networks.feed_forward, [784, 100, 100, 100, 10]),
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
            build=partial(networks.convolutional, 1, 20, 28, 100),
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
            build=partial(networks.convolutional, 3, 60, 32, 300),
            paper_steps=20_000,
            predictor_min=1e-4,
            corrector_min=1e-4,
            decay_epochs=200,
            batch_size=50,
        ),
    )
}
