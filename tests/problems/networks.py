"""Small networks as their users bring them, each with its loss on its data as plain torch has it.

``CASES`` maps a name to a function that returns a :class:`Case`. All of it is float32 and seeded,
as a user's own script would leave it after a training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from user_modules import (
    DictOutputs,
    Encoder,
    Fourier,
    KeepsItsActivation,
    LanguageModel,
    LowRank,
    OldFunction,
    RecordOutputs,
    Recurrent,
    ResidualBlock,
    ReturnsItsLoss,
    Spectral,
    TwoInputs,
    mlp,
    seeded,
)

import geoflow as gf

N = 24


@dataclass
class Case:
    """A user's model, its loss in plain torch, and the problem geoflow makes of it.

    Attributes
    ----------
    module : nn.Module
        As the user has it.
    loss : callable
        Module → loss over the whole training set, by the user's own code.
    make : callable
        Keyword arguments of the problem's dtype → Problem.
    """

    module: nn.Module
    loss: Callable[[nn.Module], Tensor]
    make: Callable[..., gf.Problem]
    keywords: dict[str, Any] = field(default_factory=dict)

    def problem(self, **kwargs: Any) -> gf.Problem:
        return self.make(**{**self.keywords, **kwargs})


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def cast(data: Any, like: nn.Module) -> Any:
    """Floating data in the dtype of a module's parameters."""
    if isinstance(data, Tensor):
        dtype = next(like.parameters()).dtype
        return data.to(dtype) if data.is_floating_point() else data
    if isinstance(data, dict):
        return {k: cast(v, like) for k, v in data.items()}
    return tuple(cast(v, like) for v in data)


def called(module: nn.Module, inputs: Any) -> Any:
    inputs = cast(inputs, module)
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def supervised(
    module: nn.Module, loss_fn: Callable[..., Tensor], inputs: Any, targets: Tensor, **keywords: Any
) -> Case:
    def loss(user: nn.Module) -> Tensor:
        return loss_fn(called(user, inputs), cast(targets, user))

    def make(**kwargs: Any) -> gf.Problem:
        return gf.Problem.from_module(module, loss_fn, inputs, targets, **kwargs)

    return Case(module, loss, make, keywords)


def batched(
    module: nn.Module, batch_loss: Callable[..., Any], data: tuple[Tensor, ...], size: int = 7
) -> Case:
    def loss(user: nn.Module) -> Tensor:
        total, weight = batch_loss(user, cast(data, user))
        return total / weight

    loader = DataLoader(TensorDataset(*data), batch_size=size)

    def make(**kwargs: Any) -> gf.Problem:
        return gf.Problem.from_batches(module, batch_loss, loader, **kwargs)

    return Case(module, loss, make)


LABELS = integers(3, N, seed=2)
X = randn(N, 4, seed=1)
IMAGES = randn(N, 1, 6, 6, seed=3)
TOKENS = integers(11, N, 5, seed=4)
classify = functional.cross_entropy
regress = functional.mse_loss


def relu() -> Case:
    return supervised(mlp(nn.ReLU), classify, X, LABELS)


def gelu() -> Case:
    return supervised(mlp(nn.GELU), classify, X, LABELS)


def numpy_arrays() -> Case:
    case = supervised(mlp(nn.Tanh), classify, X, LABELS)
    case.make = lambda **k: gf.Problem.from_module(
        case.module, classify, X.numpy(), LABELS.numpy(), **k
    )
    return case


def int32_targets() -> Case:
    case = supervised(mlp(nn.Tanh), classify, X, LABELS)
    case.make = lambda **k: gf.Problem.from_module(case.module, classify, X, LABELS.int(), **k)
    return case


def convolution_with_batch_norm() -> Case:
    def build() -> nn.Module:
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )
        for _ in range(3):
            module(IMAGES)
        return module.eval()

    return supervised(seeded(build), classify, IMAGES, LABELS)


def residual_group_norm() -> Case:
    return supervised(seeded(ResidualBlock), classify, IMAGES, LABELS)


def padded() -> Tensor:
    tokens = TOKENS.clone()
    tokens[:, 0] = tokens[:, 0].clamp(min=1)
    tokens[::2, 3:] = 0
    return tokens


def transformer_with_padding() -> Case:
    return supervised(seeded(Encoder).eval(), classify, padded(), LABELS)


def next_token(module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
    """Sum of the next tokens' losses, and their number: padding counts for nothing."""
    (tokens,) = batch
    logits = module(tokens[:, :-1]).flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    total = functional.cross_entropy(logits, targets, ignore_index=0, reduction="sum")
    return total, (targets != 0).sum()


def language_model_tied() -> Case:
    return batched(seeded(LanguageModel), next_token, (padded(),))


def lstm() -> Case:
    return supervised(seeded(lambda: Recurrent(nn.LSTM)), classify, randn(N, 5, 4, seed=5), LABELS)


def gru() -> Case:
    return supervised(seeded(lambda: Recurrent(nn.GRU)), classify, randn(N, 5, 4, seed=5), LABELS)


def low_rank_adaptation() -> Case:
    module = seeded(lambda: nn.Sequential(LowRank(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 3)))
    return supervised(module, classify, X, LABELS)


def head_only() -> Case:
    return supervised(mlp(nn.Tanh), classify, X, LABELS, parameters="2.*")


def weight_norm() -> Case:
    def build() -> nn.Module:
        first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))
        return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 3))

    return supervised(seeded(build), classify, X, LABELS)


def several_inputs_in_a_tuple() -> Case:
    return supervised(seeded(TwoInputs), classify, (X, randn(N, 2, seed=6)), LABELS)


def several_inputs_in_a_dict() -> Case:
    inputs = {"right": randn(N, 2, seed=6), "left": X}
    return supervised(seeded(TwoInputs), classify, inputs, LABELS, batch_size=9)


def both_outputs(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    return classify(outputs["logits"], targets) + outputs["value"].square().mean()


def dict_outputs() -> Case:
    return supervised(seeded(DictOutputs), both_outputs, X, LABELS)


def dataclass_outputs() -> Case:
    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return classify(outputs.logits, targets) + outputs.value.square().mean()

    return supervised(seeded(RecordOutputs), loss, X, LABELS, batch_size=7)


def class_weights() -> Case:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0, 0.1]))
    case = supervised(mlp(nn.Tanh), loss, X, LABELS, batch_size=7)
    case.loss = lambda user: classify(
        called(user, X), LABELS, weight=loss.weight.to(next(user.parameters()).dtype)
    )
    return case


def label_smoothing() -> Case:
    loss = partial(classify, label_smoothing=0.1)
    return supervised(mlp(nn.Tanh), loss, X, LABELS, batch_size=7)


def ignored_targets_in_chunks() -> Case:
    targets = LABELS.clone()
    targets[:5] = -100
    return supervised(mlp(nn.Tanh), classify, X, targets, batch_size=7)


def squared_error_and_penalty(module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
    x, y = batch
    penalty = sum(p.square().sum() for p in module.parameters())
    return (module(x) - y).square().sum() + 1e-2 * len(x) * penalty, len(x)


def penalty() -> Case:
    return batched(mlp(nn.Tanh, n_out=1), squared_error_and_penalty, (X, X.sum(1, keepdim=True)))


def residual_of_an_equation(module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
    """u″ + u = 0 with u(0) = 1, by inner derivatives of torch.autograd."""
    (t,) = batch
    t = t.detach().requires_grad_()
    u = module(t)
    du = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
    ddu = torch.autograd.grad(du.sum(), t, create_graph=True)[0]
    start = module(torch.zeros_like(t[:1])) - 1
    return (ddu + u).square().sum() + len(t) * start.square().sum(), len(t)


def physics_informed() -> Case:
    t = torch.linspace(0, 1, N).reshape(-1, 1)
    return batched(mlp(nn.Tanh, 1, 1), residual_of_an_equation, (t,))


def residual_by_torch_func(module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
    """u′ = −u by torch.func inside the loss."""
    (t,) = batch
    du = torch.func.vmap(torch.func.grad(lambda s: module(s).squeeze()))(t)
    return (du + module(t)).square().sum(), len(t)


def physics_informed_by_torch_func() -> Case:
    t = torch.linspace(0, 1, N).reshape(-1, 1)
    return batched(mlp(nn.Tanh, 1, 1), residual_by_torch_func, (t,))


def bfloat16() -> Case:
    return supervised(mlp(nn.Tanh).bfloat16(), classify, X, LABELS)


def own_loss(module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
    x, targets = batch
    return module(x, targets) * len(x), len(x)


def model_that_returns_its_loss() -> Case:
    return batched(ReturnsItsLoss(), own_loss, (X, LABELS))


def module_that_keeps_an_activation() -> Case:
    module = KeepsItsActivation()
    module(X)
    return supervised(module, classify, X, LABELS)


def data_parallel() -> Case:
    return supervised(nn.DataParallel(mlp(nn.Tanh)), classify, X, LABELS)


def old_autograd_function() -> Case:
    return supervised(seeded(OldFunction), classify, X, LABELS)


def complex_buffer() -> Case:
    return supervised(seeded(Spectral), classify, X, LABELS)


def fourier_layer() -> Case:
    return supervised(seeded(Fourier), classify, X, LABELS, batch_size=7)


CASES: dict[str, Callable[[], Case]] = {
    f.__name__: f
    for f in (
        relu,
        gelu,
        numpy_arrays,
        int32_targets,
        convolution_with_batch_norm,
        residual_group_norm,
        transformer_with_padding,
        language_model_tied,
        lstm,
        gru,
        low_rank_adaptation,
        head_only,
        weight_norm,
        several_inputs_in_a_tuple,
        several_inputs_in_a_dict,
        dict_outputs,
        dataclass_outputs,
        class_weights,
        label_smoothing,
        ignored_targets_in_chunks,
        penalty,
        physics_informed,
        physics_informed_by_torch_func,
        bfloat16,
        model_that_returns_its_loss,
        module_that_keeps_an_activation,
        data_parallel,
        old_autograd_function,
        complex_buffer,
        fourier_layer,
    )
}
