"""Phase 1: train a network to near-zero loss with Adam, from one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geoflow.system.progress import progress_bar

LEARNING_RATE = 1e-3
EPS = 1e-7
BATCH_SIZE = 32

LossFunction = Callable[[Tensor, Tensor], Tensor]


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of a single output, shape (N, 1) against (N,)."""
    return (outputs[:, 0] - targets).square().mean()


@dataclass(frozen=True)
class History:
    """Mean mini-batch loss of every epoch of a training."""

    loss: tuple[float, ...]


def train(
    module: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    generator: torch.Generator,
    progress: bool = False,
) -> History:
    """Train in place: Adam (1e-3, eps 1e-7), batches of 32, shuffled every epoch.

    Parameters
    ----------
    module : torch.nn.Module
        Trained in place.
    loss_fn : callable
        ``loss_fn(outputs, targets)`` → scalar mean.
    inputs, targets : Tensor, shape (N, …)
        The training set.
    epochs : int
        Passes over it.
    generator : torch.Generator
        CPU generator that shuffles.
    progress : bool
        Show a bar on standard error, where that is a terminal or a notebook's.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, eps=EPS)
    losses = []
    bar = progress_bar(progress, range(epochs), "train", unit="epoch")
    for _ in bar:
        total = 0.0
        order = torch.randperm(len(inputs), generator=generator, device="cpu")
        for batch in order.split(BATCH_SIZE):
            optimizer.zero_grad()
            loss = loss_fn(module(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        losses.append(total / len(inputs))
        bar.set_postfix(loss=f"{losses[-1]:.3g}", refresh=False)
    return History(tuple(losses))
