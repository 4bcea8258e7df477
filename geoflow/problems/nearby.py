"""Other values than those of parameters, of about the same size: what a loss may depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from geoflow.problems.parts import Parameters


def nearby(parameters: Parameters, by: float = 0.1) -> Parameters:
    """Other parameters, of about the same size: ``by`` is the part of it that they differ by."""
    generator = torch.Generator().manual_seed(0)
    return {name: displaced(tensor, generator, by) for name, tensor in parameters.items()}


def displaced(tensor: Tensor, generator: torch.Generator, by: float = 0.1) -> Tensor:
    """Other values, in a tensor of the same dtype and on the same device."""
    # Of what a dtype of fewer bits has no arithmetic for, or loses.
    is_wide = tensor.dtype in (torch.float32, torch.float64)
    values = tensor if is_wide else tensor.float()
    noise = torch.randn(tensor.shape, generator=generator, device="cpu").to(values)
    return noise.mul_(by * (values.abs().mean() + 0.01)).add_(values).to(tensor.dtype)
