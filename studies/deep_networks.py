"""Deep networks walked in float32: a residual one on images, transformers on text; seed 0.

    THP_MEM_ALLOC_ENABLE=1 python studies/deep_networks.py [resnet18] [gpt] [deeper_gpt]
                   [--device DEVICE] [--examples N] [--degrees A] [--solver SOLVER] [--minutes M]

`resnet18` is ResNet-18 in its CIFAR form with GroupNorm and SiLU (11.2 million parameters) on the
seeded 32×32×3 gratings that stand for CIFAR-10; `gpt` a decoder of two wide layers on bytes (10.3
million, weights drawn as GPT-2's) of the data sets' descriptions that scikit-learn carries, and
`deeper_gpt` one of six narrower layers (10.9 million). Each is trained under weight decay, EPOCHS
by AdamW and as many by Adam on L + decay ‖θ‖²/2, and walked down ‖θ‖² to an angle, the level kept
to LEVEL_RTOL · c, for as many minutes as are given. Says on the way how far it is, and prints a row
of the table of docs/performance.md for each. The variable has PyTorch ask for large pages, which a
network of this size takes a quarter less time with.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import sklearn.datasets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geoflow as gf
from geoflow.experiments.synthetic import textured_images

SEED, EPOCHS, LEVEL_RTOL, MAX_EVALUATIONS = 0, 400, 1e-5, 8_000
SOLVER = "exponential"
EXAMPLES = {"resnet18": 8, "gpt": 4, "deeper_gpt": 4}
# Of AdamW, and of the loss afterwards.
DECAYS = {"resnet18": (8.0, 0.02), "gpt": (4.0, 0.01), "deeper_gpt": (4.0, 0.01)}
# Width, layers and heads.
SIZES = {"gpt": (640, 2, 10), "deeper_gpt": (384, 6, 6)}
# Examples in one pass, so that activations stay below a gigabyte.
CHUNK = 64


class Block(nn.Module):
    """Two 3×3 convolutions beside a short cut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, after)
        changes = stride > 1 or before != after
        self.short = nn.Conv2d(before, after, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, before, H, W) → (N, after, H / stride, W / stride)."""
        y = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(y)) + self.short(x))


class ResNet18(nn.Sequential):
    """He et al. 2016 (arXiv 1512.03385) for 32×32 images, GroupNorm in the place of BatchNorm."""

    def __init__(self, width: int = 64) -> None:
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = [
            Block(before if first else after, after, stride if first else 1)
            for before, after, stride in zip(widths, widths[1:], (1, 2, 2, 2), strict=False)
            for first in (True, False)
        ]
        super().__init__(
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, 10),
        )


class Layer(nn.Module):
    """Causal attention and a perceptron, each beside a short cut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) → (N, T, width)."""
        n, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind()
        scores = q @ k.transpose(-1, -2) / math.sqrt(k.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder on bytes, pre-norm, as GPT-2."""

    def __init__(self, width: int, n_layers: int, heads: int, length: int = 128) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, width), nn.Embedding(length, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(n_layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes (N, T) → logits (N, T, 256)."""
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        return self.head(self.norm(self.layers(x)))


def images(n: int) -> tuple[Tensor, Tensor]:
    """Seeded gratings, (n, 3, 32, 32) from 0 to 1, and their classes."""
    pixels, labels = textured_images(n, SEED)
    return torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels).long()


def text(n: int, length: int = 128) -> tuple[Tensor, Tensor]:
    """N pieces of text, one byte a token, and what follows each byte."""
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    found = b"".join(f.read_bytes() for f in sorted(folder.glob("*.rst")))
    if n * (length + 1) > len(found):
        raise SystemExit(f"--examples {n}: there is text for {len(found) // (length + 1)}")
    pieces = torch.tensor(list(found[: n * (length + 1)])).view(n, length + 1)
    return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()


def entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy over all that is predicted, classes last.

    With classes in the second place, as PyTorch has it, GPUs add the losses of a text in any order.
    """
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


def make(name: str, n: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return an untrained network and its data."""
    torch.manual_seed(SEED)
    return (ResNet18(), images(n)) if name == "resnet18" else (GPT(*SIZES[name]), text(n))


def train(module: nn.Module, inputs: Tensor, targets: Tensor, decays: tuple[float, float]) -> None:
    """Two optimizers in turn, on batches of CHUNK, with steps that fall to zero as half a cosine.

    Without weight decay a normalised network is at 90° and as far from 120° as its weights are
    from being a fraction of what they were drawn as: those before a normalisation are no part of
    what ∇L has along θ.
    """
    first, then = decays
    for make, decay in ((torch.optim.AdamW, first), (torch.optim.Adam, then)):
        optimizer = make(module.parameters(), lr=1e-3, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for _ in range(EPOCHS):
            for s in torch.randperm(len(inputs)).split(CHUNK):
                optimizer.zero_grad()
                entropy(module(inputs[s]), targets[s]).backward()
                optimizer.step()
            schedule.step()


class InTime(gf.Stationary):
    """At an angle, or when the time is up; says after each step how far the walk is."""

    def __init__(self, degrees: float, minutes: float) -> None:
        super().__init__(degrees)
        self.minutes, self.start = minutes, time.perf_counter()

    def __call__(self, records: Sequence[Mapping[str, float]]) -> tuple[str, str] | None:
        """Judge the latest step."""
        last, gone = records[-1], (time.perf_counter() - self.start) / 60
        print(
            f"{gone:6.1f} min  t = {last['time']:.4f}  angle {last['angle']:.2f}°  "
            f"R = {last['regularizer']:.6g}  λ = {last['multiplier']:.3g}  "
            f"{last['n_gradient']:.0f} gradients",
            file=sys.stderr,
            flush=True,
        )
        late = "interrupted", f"{self.minutes:g} minutes are over"
        return super().__call__(records) or (late if gone > self.minutes else None)


def measure(name: str, n: int, device: str, degrees: float, solver: str, minutes: float) -> str:
    """Train, walk, and return a row of the table."""
    module, data = make(name, n)
    module, (inputs, targets) = module.to(device), (t.to(device) for t in data)
    start = time.perf_counter()
    train(module, inputs, targets, DECAYS[name])
    trained = time.perf_counter() - start
    problem = gf.Problem.from_module(
        module,
        entropy,
        inputs,
        targets,
        batch_size=None if len(inputs) <= CHUNK else CHUNK,
        dtype=torch.float32,
        device=device,
    )
    flow = gf.RegularizingFlow(
        gf.LevelSet(problem, level_rtol=LEVEL_RTOL), gf.regularizers.squared_norm
    )
    ds = gf.walk(
        flow,
        solver,
        stop=InTime(degrees, minutes),
        max_evaluations=MAX_EVALUATIONS,
        max_snapshots=2,
    )
    if problem.device.type == "cuda":
        peak, where = torch.cuda.max_memory_allocated() / 2**30, torch.cuda.get_device_name()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        where = f"CPU, {torch.get_num_threads()} threads"
    evaluations = int(ds["n_gradient"][-1]) + 2 * int(ds["n_hvp"][-1])
    seconds = float(ds["wall_time"][-1])
    level = float(abs(ds["level_residual"]).max()) / ds.attrs["level"]
    return (
        f"| {name} | {where} | {problem.n_parameters:,} | {n} | {ds.attrs['level']:.2g} | "
        f"{float(ds['angle'][0]):.1f} → {float(ds['angle'][-1]):.1f} ({ds.attrs['status']}) | "
        f"{float(ds['regularizer'][0]):.5g} → {float(ds['regularizer'][-1]):.5g} | {level:.0e} | "
        f"{evaluations:,} | {trained:.0f} | {seconds:.0f} | {peak:.1f} |"
    )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=[], choices=[*EXAMPLES, []])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--examples", type=int)
    parser.add_argument("--degrees", type=float, default=120.0)
    parser.add_argument("--solver", default=SOLVER)
    parser.add_argument("--minutes", type=float, default=60.0)
    given = parser.parse_args()
    for name in given.networks or EXAMPLES:
        n = given.examples or EXAMPLES[name]
        row = measure(name, n, given.device, given.degrees, given.solver, given.minutes)
        print(row, flush=True)


if __name__ == "__main__":
    main()
