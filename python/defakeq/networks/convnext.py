"""ConvNeXt (arXiv 2201.03545)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (batch, channels, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., channels) to the same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """A depthwise 7x7 convolution and an MLP a position, scaled and added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.conv_dw = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to the same shape."""
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + (y * self.gamma).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one resolution, after halving it unless it is the first."""

    def __init__(self, inputs: int, channels: int, depth: int):
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if inputs != channels:
            self.downsample = nn.Sequential(
                LayerNorm2d(inputs, eps=_EPS), nn.Conv2d(inputs, channels, 2, 2)
            )
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, channels, h / 2, w / 2)."""
        y: Tensor = self.blocks(self.downsample(x))
        return y


class Head(nn.Module):
    """Global average, LayerNorm and the classifier."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to (batch, num_classes)."""
        y: Tensor = self.fc(self.norm(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return y


class ConvNeXt(nn.Module):
    """The input is (batch, 3, h, w), the output (batch, num_classes)."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), LayerNorm2d(widths[0], eps=_EPS))
        before = (widths[0], *widths)
        self.stages = nn.Sequential(
            *(Stage(a, b, depth) for a, b, depth in zip(before, widths, depths, strict=False))
        )
        self.head = Head(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits


def convnext_tiny(num_classes: int) -> ConvNeXt:
    """ConvNeXt-T."""
    return ConvNeXt((96, 192, 384, 768), (3, 3, 9, 3), num_classes)
