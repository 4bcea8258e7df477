"""Seeded, labelled 32×32×3 images, to run ``cifar10_conv`` without CIFAR-10."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

N_CLASSES = 10


def textured_images(n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Oriented colour gratings under nuisance: ten classes, shape (n, 3, 32, 32).

    A class is one of five orientations and one of two spatial frequencies. Colours, phase,
    contrast, a brightness ramp and pixel noise vary from image to image and say nothing of the
    class; orientation and frequency vary around those of the class, so that neighbours overlap.
    Phases gather around zero: with phases spread evenly, ``cifar10_conv`` learns its 1,000
    images by heart and hardly anything of the others.

    Parameters
    ----------
    n : int
        Number of images.
    seed : int
        Decides everything.

    Returns
    -------
    images : array of uint8, shape (n, 3, 32, 32)
    labels : array of uint8, shape (n,)
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, N_CLASSES, n).astype(np.uint8)
    y, x = np.mgrid[0:32, 0:32] / 32 - 0.5
    angle = (labels % 5) * np.pi / 5 + rng.normal(0, 0.13, n)
    frequency = np.where(labels < 5, 3.0, 5.0) * np.exp(rng.normal(0, 0.11, n))
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    phase = rng.normal(0, 1.2, n)[:, None, None]
    grating = np.sin(2 * np.pi * frequency[:, None, None] * along + phase)
    colour = 1 + rng.normal(0, 1, (n, 3, 1, 1))
    colour /= np.linalg.norm(colour, axis=1, keepdims=True)
    ramp = rng.normal(0, 0.5, (n, 3, 1, 1)) * x + rng.normal(0, 0.5, (n, 3, 1, 1)) * y
    contrast = rng.uniform(0.15, 0.4, (n, 1, 1, 1))
    noise = rng.normal(0, 0.1, (n, 3, 32, 32))
    images = 0.5 + contrast * colour * grating[:, None] + 0.4 * ramp + noise
    return (np.clip(images, 0, 1) * 255).round().astype(np.uint8), labels
