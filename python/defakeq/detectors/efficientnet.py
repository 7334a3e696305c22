"""EfficientNet-B4 with the names and the padding of the package efficientnet_pytorch 0.7.1.

That package computes each layer's padding once, for pictures of 380 x 380 pixels as TensorFlow
pads them, and keeps it for pictures of other sizes; strided layers get a pixel more at the bottom
and right than at the top and left. Published weights were trained so.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.detectors.base import Detector
from defakeq.interface import Interface

_PAD_SIZE = 380  # height and width that the paddings are computed for
_STEM, _HEAD = 48, 1792
_EPS = 1e-3
# depth, kernel, stride, hidden channels an input, outputs: the B0 table scaled by 1.8 and 1.4
_STAGES = (
    (2, 3, 1, 1, 24),
    (4, 3, 2, 6, 32),
    (4, 5, 2, 6, 56),
    (6, 3, 2, 6, 112),
    (6, 5, 1, 6, 160),
    (8, 5, 2, 6, 272),
    (2, 3, 1, 6, 448),
)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and after, such that `size` becomes ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS, momentum=0.01)


class Block(nn.Module):
    """Inverted bottleneck with squeeze-excite; residual where the shapes allow it.

    Args:
        inputs, outputs: channels.
        kernel, stride: of the depthwise convolution.
        ratio: hidden channels an input; 1: no expansion.
        size: height and width that the padding is computed for.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, ratio: int, size: int):
        super().__init__()
        hidden = inputs * ratio
        self.expands = ratio != 1
        self.skip = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        before, after = same_padding(size, kernel, stride)
        # Equal paddings belong to the convolution, unequal ones go before it.
        equal = before == after
        self.padding = None if equal else (before, after, before, after)
        self._depthwise_conv = nn.Conv2d(
            hidden, hidden, kernel, stride, before if equal else 0, groups=hidden, bias=False
        )
        self._bn1 = _norm(hidden)
        self._se_reduce = nn.Conv2d(hidden, max(1, inputs // 4), 1)
        self._se_expand = nn.Conv2d(max(1, inputs // 4), hidden, 1)
        self._project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y = F.silu(self._bn0(self._expand_conv(x))) if self.expands else x
        if self.padding is not None:
            y = F.pad(y, self.padding)
        y = F.silu(self._bn1(self._depthwise_conv(y)))
        gate = F.silu(self._se_reduce(F.adaptive_avg_pool2d(y, 1)))
        y = y * torch.sigmoid(self._se_expand(gate))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skip else y


class EfficientNetB4(nn.Module):
    """EfficientNet-B4 (arXiv 1905.11946) up to its last activation.

    Args:
        padded_stem: whether the first convolution pads; DeepfakeBench's replacement does not.
    """

    def __init__(self, padded_stem: bool) -> None:
        super().__init__()
        before, after = same_padding(_PAD_SIZE, 3, 2)
        self.padding = (before, after, before, after) if padded_stem else None
        self._conv_stem = nn.Conv2d(3, _STEM, 3, 2, bias=False)
        self._bn0 = _norm(_STEM)
        blocks = []
        size, widths = _PAD_SIZE // 2, (_STEM, *(row[-1] for row in _STAGES))
        for (inputs, outputs), (depth, kernel, stride, ratio, _) in zip(
            pairwise(widths), _STAGES, strict=True
        ):
            for index in range(depth):
                step = stride if index == 0 else 1
                start = inputs if index == 0 else outputs
                blocks.append(Block(start, outputs, kernel, step, ratio, size))
                size = -(-size // step)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(widths[-1], _HEAD, 1, bias=False)
        self._bn1 = _norm(_HEAD)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, 1792, h / 32, w / 32)."""
        if self.padding is not None:
            x = F.pad(x, self.padding)
        x = F.silu(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.silu(self._bn1(self._conv_head(x)))


class Backbone(nn.Module):
    """The network and the classifier, as DeepfakeBench names them."""

    def __init__(self) -> None:
        super().__init__()
        self.efficientnet = EfficientNetB4(padded_stem=False)
        self.last_layer = nn.Linear(_HEAD, 2)


class EfficientNetDetector(Detector):
    """DeepfakeBench's detector "efficientnetb4"; features (batch, 1792, 8, 8)."""

    interface = Interface(256)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()

    def features(self, batch: Tensor) -> Tensor:
        """Return the last maps, (batch, 1792, 8, 8)."""
        y: Tensor = self.backbone.efficientnet(batch)
        return y

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        pooled = F.adaptive_avg_pool2d(features, 1).flatten(1)
        logits: Tensor = self.backbone.last_layer(pooled)
        return logits
