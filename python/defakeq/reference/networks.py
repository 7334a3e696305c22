"""The networks of the reference detectors: published families at a small scale.

They have the layers of their families (:mod:`defakeq.networks` has the full ones), fewer channels,
and strides that suit pictures of 64 pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.detectors import Detector
from defakeq.interface import Interface
from defakeq.networks.mobile import Inverted, Kind, Separable, Spec
from defakeq.networks.resnet import Basic, stage
from defakeq.networks.vit import Block

SIZE = 64


class Reference(Detector):
    """What the reference detectors have in common: pictures of 64 pixels, two logits."""

    interface = Interface(SIZE, resize="antialiased_bilinear")


class Meso4(Reference):
    """MesoNet's Meso-4 (arXiv 1809.00888) with ``width`` first channels, 8 in the original."""

    def __init__(self, width: int = 24, size: int = SIZE):
        super().__init__()
        rows = ((3, width, 3), (width, width, 5), (width, 2 * width, 5), (2 * width, 2 * width, 5))
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=False)
            for inputs, outputs, kernel in rows
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _, outputs, _ in rows)
        self.fc1 = nn.Linear(2 * width * (size // 16) ** 2, 32)
        self.fc2 = nn.Linear(32, 2)

    def features(self, batch: Tensor) -> Tensor:
        """Map (batch, 3, size, size) to (batch, 32)."""
        x = batch
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(norm(F.relu(conv(x))), 2)
        return F.leaky_relu(self.fc1(x.flatten(1)), 0.1)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2), real and forged."""
        logits: Tensor = self.fc2(features)
        return logits


class ResNet34(Reference):
    """ResNet-34 (arXiv 1512.03385) with ``width`` first channels, 64 in the original.

    The first convolution is 3x3 and nothing is pooled after it.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for index, depth in enumerate((3, 4, 6, 3)):
            outputs = width << index
            made = stage(Basic, inputs, outputs, depth, 2 if index else 1)
            self.add_module(f"layer{index + 1}", made)
            inputs = outputs
        self.fc = nn.Linear(inputs, 2)

    def features(self, batch: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, 8 width)."""
        x = F.relu(self.bn1(self.conv1(batch)))
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2), real and forged."""
        logits: Tensor = self.fc(features)
        return logits


# kernel, stride, expansion, outputs of each block
_EFFICIENT = (
    (3, 1, 1, 16),
    (3, 2, 4, 24),
    (5, 2, 4, 40),
    (5, 1, 4, 40),
    (3, 2, 4, 80),
    (5, 1, 4, 80),
)


class EfficientNet(Reference):
    """EfficientNet (arXiv 1905.11946) with six blocks, squeeze-excite and SiLU as in B0 to B7."""

    def __init__(self) -> None:
        super().__init__()
        kind = Kind(F.silu, torch.sigmoid)
        self.conv_stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs, blocks = 16, []
        for kernel, stride, ratio, outputs in _EFFICIENT:
            hidden = 0 if ratio == 1 else inputs * ratio
            spec = Spec(outputs, hidden, kernel, stride, max(8, inputs // 4), F.silu)
            blocks.append((Inverted if hidden else Separable)(inputs, spec, kind))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(inputs, 256, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(256)
        self.classifier = nn.Linear(256, 2)

    def features(self, batch: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, 256)."""
        x = self.blocks(F.silu(self.bn1(self.conv_stem(batch))))
        return F.adaptive_avg_pool2d(F.silu(self.bn2(self.conv_head(x))), 1).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2), real and forged."""
        logits: Tensor = self.classifier(features)
        return logits


class VisionTransformer(Reference):
    """A ViT (arXiv 2010.11929) of 8x8 patches, four blocks and two heads."""

    def __init__(self, channels: int = 64, depth: int = 4, size: int = SIZE, patch: int = 8):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, channels) * 0.02)
        self.patch_embed = nn.Conv2d(3, channels, patch, patch)
        self.blocks = nn.Sequential(*(Block(channels, 2) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, 2)

    def features(self, batch: Tensor) -> Tensor:
        """Map (batch, 3, size, size) to (batch, channels)."""
        x = self.patch_embed(batch).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        tokens: Tensor = self.norm(self.blocks(x))
        return tokens[:, 0]

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2), real and forged."""
        logits: Tensor = self.head(features)
        return logits


NETWORKS: dict[str, type[Reference]] = {
    "meso4": Meso4,
    "resnet34": ResNet34,
    "efficientnet": EfficientNet,
    "vit": VisionTransformer,
}
