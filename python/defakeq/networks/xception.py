"""Xception (arXiv 1610.02357), with the names of its widespread PyTorch port."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution with nothing between them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h, w)."""
        y: Tensor = self.pointwise(self.conv1(x))
        return y


class Block(nn.Module):
    """Separable convolutions, and max pooling when it strides, beside a shortcut.

    Args:
        widths: channels of the input and after each separable convolution.
        stride: 1, or 2 with pooling.
        first: no ReLU before the first convolution.
    """

    def __init__(self, widths: tuple[int, ...], stride: int, first: bool = False):
        super().__init__()
        inputs, outputs = widths[0], widths[-1]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.ReLU(), Separable(a, b), nn.BatchNorm2d(b)]
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.rep = nn.Sequential(*layers[first:])
        self.skip: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y: Tensor = self.rep(x)
        return y + (x if self.skip is None else self.skipbn(self.skip(x)))


class Xception(nn.Module):
    """The input is (batch, inputs, h, w), the output (batch, num_classes)."""

    def __init__(self, num_classes: int, inputs: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 32, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.block1 = Block((64, 128, 128), 2, first=True)
        self.block2 = Block((128, 256, 256), 2)
        self.block3 = Block((256, 728, 728), 2)
        for index in range(4, 12):
            self.add_module(f"block{index}", Block((728, 728, 728, 728), 1))
        self.block12 = Block((728, 728, 1024), 2)
        self.conv3 = Separable(1024, 1536)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = Separable(1536, 2048)
        self.bn4 = nn.BatchNorm2d(2048)
        self.fc = nn.Linear(2048, num_classes)

    def blocks(self, x: Tensor, first: int, last: int) -> Tensor:
        """Run the blocks from number `first` to `last`, 1 to 12, both included."""
        for index in range(first, last + 1):
            x = self.get_submodule(f"block{index}")(x)
        return x

    def tail(self, x: Tensor) -> Tensor:
        """Run what follows the blocks, up to the last BatchNorm."""
        y: Tensor = self.bn4(self.conv4(torch.relu(self.bn3(self.conv3(x)))))
        return y

    def features(self, x: Tensor) -> Tensor:
        """Return the maps before the last ReLU, (batch, 2048, h / 32, w / 32)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.tail(self.blocks(x, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = torch.relu(self.features(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def xception(num_classes: int) -> Xception:
    """Xception."""
    return Xception(num_classes)
