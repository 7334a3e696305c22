"""NPR: relations of neighbouring pixels that upsampling leaves (arXiv 2312.10461).

Names, shapes and numbers are those of chuangchuangtan/NPR-DeepfakeDetection: the residual of the
picture and its own nearest-neighbour down- and upsampling by 2, times 2/3, in the first two stages
of a ResNet-50 whose first convolution is 3x3. Its test code resizes to 256 x 256 pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.detectors.base import Detector
from defakeq.interface import Interface
from defakeq.networks.resnet import Bottleneck, stage


def residual(x: Tensor) -> Tensor:
    """What nearest-neighbour resampling by 2 loses: x minus the top left pixel of each 2 x 2.

    Args:
        x: (batch, channels, h, w) with even h and w.
    """
    small = F.interpolate(x, scale_factor=0.5, mode="nearest")
    return x - F.interpolate(small, scale_factor=2.0, mode="nearest")


class Npr(Detector):
    """The input is (batch, 3, 256, 256), the features are (batch, 512), the logit (batch, 1)."""

    interface = Interface(
        256,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        resize="antialiased_bilinear",
        output="sigmoid",
    )

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(Bottleneck, 64, 64, 3, 1)
        self.layer2 = stage(Bottleneck, 256, 128, 4, 2)
        self.fc1 = nn.Linear(512, 1)

    def features(self, batch: Tensor) -> Tensor:
        """Return the pooled maps, (batch, 512)."""
        x = torch.relu(self.bn1(self.conv1(residual(batch) * (2 / 3))))
        x = self.layer2(self.layer1(F.max_pool2d(x, 3, 2, 1)))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logit (batch, 1)."""
        logit: Tensor = self.fc1(features)
        return logit
