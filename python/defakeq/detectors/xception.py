"""Xception as DeepfakeBench's detectors hold it, and its detector "xception".

That backbone always has a layer `adjust_channel`, whose output only UCF reads; other detectors'
published weights contain it all the same.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.detectors.base import Detector
from defakeq.interface import Interface
from defakeq.networks.xception import Xception


class Backbone(Xception):
    """Xception (arXiv 1610.02357).

    Args:
        inputs: channels.
        dropout: whether a dropout precedes the dense layer, which is then `last_linear.1`.
        classifier: whether there is a dense layer.
    """

    def __init__(self, inputs: int = 3, dropout: bool = False, classifier: bool = True) -> None:
        super().__init__(2, inputs)
        del self.fc
        if classifier:
            dense = nn.Linear(2048, 2)
            self.last_linear = nn.Sequential(nn.Dropout(0.5), dense) if dropout else dense

    def classify(self, features: Tensor) -> Tensor:
        """Map (batch, 2048, h, w), before ReLU, to logits (batch, 2)."""
        pooled = F.adaptive_avg_pool2d(torch.relu(features), 1).flatten(1)
        logits: Tensor = self.last_linear(pooled)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        return self.classify(self.features(x))


class XceptionDetector(Detector):
    """The input is (batch, 3, 256, 256), the features are (batch, 2048, 8, 8) before ReLU."""

    interface = Interface(256)
    unused: ClassVar[tuple[str, ...]] = ("backbone.adjust_channel.*",)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()

    def features(self, batch: Tensor) -> Tensor:
        """Return the last maps before ReLU, (batch, 2048, 8, 8)."""
        return self.backbone.features(batch)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        return self.backbone.classify(features)
