"""ResNet-34 as DeepfakeBench's detector "resnet34" holds it: torchvision's layers in a sequence."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.detectors.base import Detector
from defakeq.interface import Interface
from defakeq.networks.resnet import Basic, stage

_DEPTHS = (3, 4, 6, 3)


class Backbone(nn.Module):
    """ResNet-34 (arXiv 1512.03385); the stages are 4 to 7 of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        stages = [
            stage(Basic, 64 << max(i - 1, 0), 64 << i, depth, 2 if i else 1)
            for i, depth in enumerate(_DEPTHS)
        ]
        self.resnet = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            *stages,
        )
        self.fc = nn.Linear(512, 2)


class ResNet34(Detector):
    """The input is (batch, 3, 256, 256), the features are (batch, 512, 8, 8)."""

    interface = Interface(256)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()

    def features(self, batch: Tensor) -> Tensor:
        """Return the last maps, (batch, 512, 8, 8)."""
        y: Tensor = self.backbone.resnet(batch)
        return y

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        logits: Tensor = self.backbone.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits
