"""Modules of many kinds, as users write them; see ``networks``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

classify = functional.cross_entropy


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build with seeded weights, without a trace in the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def mlp(activation: Callable[[], nn.Module], n_in: int = 4, n_out: int = 3) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(n_in, 8), activation(), nn.Linear(8, n_out)))


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 4, 3, padding=1)
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(2, 4) for _ in range(2))
        self.leave = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = functional.relu(self.norms[0](self.first(x)))
        x = functional.relu(x + self.norms[1](self.second(y)))
        return self.leave(x.mean(dim=(2, 3)))


class Encoder(nn.Module):
    """A transformer encoder on token ids; token 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.leave = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        hidden = self.encode(self.embed(tokens), src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(hidden.dtype)
        return self.leave((hidden * kept).sum(1) / kept.sum(1).clamp(min=1))


class LanguageModel(nn.Module):
    """Causal attention with tied embeddings: next-token logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.leave = nn.Linear(8, 11, bias=False)
        self.leave.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (part(x).unsqueeze(1) for part in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        return self.leave(x + attended)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cells = kind(4, 6, batch_first=True)
        self.leave = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.cells(x)[0][:, -1])


class LowRank(nn.Module):
    """A frozen layer with a low-rank update (LoRA)."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(0.3 * torch.randn(rank, layer.in_features))
        self.up = nn.Parameter(0.3 * torch.randn(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(2, 8)
        self.leave = nn.Linear(8, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.left(left) + self.right(right)))


class DictOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.classes, self.value = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"logits": self.classes(hidden), "value": self.value(hidden)}


@dataclass
class Record:
    logits: Tensor
    value: Tensor
    hidden: Tensor | None = None


class RecordOutputs(DictOutputs):
    def forward(self, x: Tensor) -> Record:  # type: ignore[override]
        return Record(**super().forward(x))


class Fourier(nn.Module):
    """A layer in Fourier space, its weight as real numbers, from an odd place of θ on."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.weight = nn.Parameter(0.3 * torch.randn(4, 3, 2))
        self.leave = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.einsum("bk,ok->bo", torch.fft.rfft(x), torch.view_as_complex(self.weight))
        return self.leave(torch.tanh(self.gain * spectrum.real + spectrum.imag))


class ReturnsItsLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Tanh)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return classify(self.body(x), targets)


class KeepsItsActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        return self.last


class Square(torch.autograd.Function):
    """An autograd function of the old form, without ``setup_context``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class OldFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.tanh(Square.apply(self.enter(x))))


class Spectral(nn.Module):
    """A complex buffer between real layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("phase", torch.polar(torch.ones(6), torch.arange(6.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave((self.enter(x) * self.phase).imag + (self.enter(x) * self.phase).real)
