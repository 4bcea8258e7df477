"""The networks of the paper, with Keras's Glorot-normal weights and zero biases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

# Keras draws from a normal cut off at two standard deviations, widened by this factor so that
# the standard deviation of what is left is the one asked for.
TRUNCATED_STD = 0.87962566103423978


def feed_forward(sizes: Sequence[int]) -> nn.Sequential:
    """Dense layers of these sizes with tanh between them; the input is flattened first."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        if i:
            layers.append(nn.Tanh())
        layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers)


def convolutional(channels: int, filters: int, side: int, hidden: int) -> nn.Sequential:
    """Two 3×3 convolutions, each with tanh and 2×2 average pooling, then two dense layers.

    Without padding, as Keras does by default.

    Parameters
    ----------
    channels, filters : int
        Of the images and of both convolutions.
    side : int
        Height and width of the images, in pixels.
    hidden : int
        Width of the dense layer before the ten outputs.
    """
    left = ((side - 2) // 2 - 2) // 2
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(filters, filters, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(filters * left**2, hidden),
        nn.Tanh(),
        nn.Linear(hidden, 10),
    )


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Set Glorot-normal weights and zero biases, in place (Glorot & Bengio 2010, as in Keras)."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
                continue
            field = math.prod(parameter.shape[2:])
            fan_out, fan_in = parameter.shape[0] * field, parameter.shape[1] * field
            std = math.sqrt(2 / (fan_in + fan_out)) / TRUNCATED_STD
            nn.init.trunc_normal_(parameter, 0.0, std, -2 * std, 2 * std, generator=generator)
