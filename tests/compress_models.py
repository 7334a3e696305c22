"""Small models and images for the tests of compression, and how they are compressed there."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import defakeq
from defakeq.compress import presets
from defakeq.compress.pipeline import Compressed
from defakeq.compress.reconstruct import Settings
from defakeq.compress.veft import Alignment
from defakeq_kernels import compact, dfq
from defakeq_kernels.packed import PackedWeight

QUICK = dataclasses.replace(
    presets.preset("default"),
    reconstruction=Settings(steps=3),
    alignment=Alignment(steps=2),
    restored=0.05,
)


def stored_bytes(packed: PackedWeight) -> int:
    """Bytes of a layer's arrays in a compact file."""
    joined, _ = compact.join(packed.to_tensors("layer"), dfq._DTYPES)
    return sum(array.nbytes for array in joined.values())


def quickly(model: nn.Module, data: Any, **options: Any) -> Compressed:
    """Compresses to 15 % with little tuning, but for what `options` say."""
    settings = {"size": 0.15, "preset": QUICK, "progress": False, **options}
    return defakeq.compress(model, data, **settings)


def contents(program: Any) -> bytes:
    """A program's file."""
    return dfq.dumps(*program.file())


class Residual(nn.Module):
    """A convolutional detector with a residual sum, and a depthwise convolution."""

    def __init__(self, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, width, 3, 2, 1)
            self.norm = nn.BatchNorm2d(width)
            self.a = nn.Conv2d(width, 2 * width, 3, 1, 1)
            self.b = nn.Conv2d(2 * width, width, 3, 1, 1)
            self.dw = nn.Conv2d(width, width, 3, 1, 1, groups=width)
            self.pw = nn.Conv2d(width, 2 * width, 1)
            self.head = nn.Linear(2 * width, 1)
            with torch.no_grad():
                self.norm.running_mean.normal_(0, 0.2)
                self.norm.running_var.uniform_(0.5, 1.5)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        x = torch.relu(self.pw(torch.relu(self.dw(x))))
        return self.head(x.mean((2, 3))).squeeze(1)


class Attention(nn.Module):
    """Two blocks of a transformer over patches."""

    def __init__(self, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patch = nn.Conv2d(3, width, 4, 4)
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)
            self.fc1 = nn.Linear(width, 2 * width)
            self.fc2 = nn.Linear(2 * width, width)
            self.head = nn.Linear(width, 2)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        n, t, c = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(n, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(n, t, c))
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norms[1](x))))
        return self.head(x.mean(1))


def images(count: int = 32, size: int = 16, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Smooth pictures, and labels: forged ones have finer grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    labels = torch.arange(count) % 2
    grain = torch.randn(count, 3, size, size, generator=generator)
    return smooth + (0.1 + 0.3 * labels.float().reshape(-1, 1, 1, 1)) * grain, labels
