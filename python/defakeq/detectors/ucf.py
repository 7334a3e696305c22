"""UCF: uncovering common features (arXiv 2304.13949).

Names, shapes and numbers are those of DeepfakeBench's detector "ucf". A score comes from the
forgery encoder and the block and head of the features that all forgeries share; the content
encoder, the decoder, and the block and head of single methods exist in training only.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.detectors.base import Detector
from defakeq.detectors.xception import Backbone
from defakeq.interface import Interface

_WIDTH = 512
_HALF = _WIDTH // 2


class Encoder(Backbone):
    """Xception and a convolution to 512 channels; there is no ReLU between them."""

    def __init__(self) -> None:
        super().__init__(classifier=False)
        self.adjust_channel = nn.Sequential(
            nn.Conv2d(2048, _WIDTH, 1), nn.BatchNorm2d(_WIDTH), nn.ReLU()
        )

    def features(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, 512, h / 32, w / 32)."""
        y: Tensor = self.adjust_channel(super().features(x))
        return y


class Block(nn.Module):
    """Three 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Sequential(
            nn.Conv2d(_WIDTH, _HALF, 1),
            nn.LeakyReLU(),
            nn.Conv2d(_HALF, _HALF, 1),
            nn.LeakyReLU(),
            nn.Conv2d(_HALF, _HALF, 1),
        )


class Head(nn.Module):
    """Two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_HALF, _WIDTH), nn.LeakyReLU(), nn.Linear(_WIDTH, 2))


class Ucf(Detector):
    """The input is (batch, 3, 256, 256), the features are (batch, 256)."""

    interface = Interface(256)
    unused: ClassVar[tuple[str, ...]] = (
        "encoder_c.*",
        "encoder_f.last_linear.*",
        "con_gan.*",
        "head_spe.*",
        "block_spe.*",
    )

    def __init__(self) -> None:
        super().__init__()
        self.encoder_f = Encoder()
        self.head_sha = Head()
        self.block_sha = Block()

    def features(self, batch: Tensor) -> Tensor:
        """Return the common features, pooled: (batch, 256)."""
        shared: Tensor = self.block_sha.conv2d(self.encoder_f.features(batch))
        return F.adaptive_avg_pool2d(shared, 1).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        logits: Tensor = self.head_sha.mlp(features)
        return logits
