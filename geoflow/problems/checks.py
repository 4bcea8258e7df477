"""What a problem can be made of, and what is refused."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geoflow.errors import InputError


def check_device_and_dtype(device: torch.device | str, dtype: torch.dtype) -> torch.device:
    """Return the device, or refuse a device or dtype that cannot be computed with.

    Raises
    ------
    InputError
        Neither float64 nor float32, or no such device here.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype={dtype}; use torch.float64 or torch.float32")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={str(device)!r} cannot be used ({reason}); use 'cpu'") from None
    return device


def check_data(inputs: Tensor, targets: Tensor, batch_size: int | None) -> None:
    """Refuse data that no loss can be computed of.

    Raises
    ------
    InputError
        Numbers of examples that differ, non-finite values, or a batch size below 1.
    """
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or not len(inputs):
        raise InputError(
            f"inputs have shape {tuple(inputs.shape)} and targets {tuple(targets.shape)}; "
            "both need the same, non-zero number of examples first"
        )
    for name, data in (("inputs", inputs), ("targets", targets)):
        bad = int((~torch.isfinite(data)).sum())
        if bad:
            raise InputError(f"{name} have {bad} non-finite values; remove or impute them")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size={batch_size}; use a positive number or None")


def check_mode(module: nn.Module, batch_size: int | None) -> None:
    """Refuse a module whose loss is random, stateful, or depends on how examples are batched.

    Raises
    ------
    InputError
        Names the layer.
    """
    norms = nn.modules.batchnorm._NormBase
    random = (nn.modules.dropout._DropoutNd, nn.RReLU)
    for name, child in module.named_modules():
        where = name or type(module).__name__
        if child.training and isinstance(child, (*random, norms)):
            raise InputError(
                f"module: {where} ({type(child).__name__}) is in training mode, which makes the "
                "loss random or stateful; call module.eval()"
            )
        per_batch = isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_var is None
        if per_batch and batch_size is not None:
            raise InputError(
                f"batch_size={batch_size}: {where} normalises by batch statistics, so chunks "
                "would change the loss; use batch_size=None"
            )
