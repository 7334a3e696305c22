"""SPSL: spatial-phase shallow learning (arXiv 2103.01856).

Names, shapes and numbers are those of DeepfakeBench's detector "spsl", which keeps the whole of
Xception: beside the picture it reads the picture that the phases of the grey picture's spectrum
give with all amplitudes equal.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from defakeq.detectors.base import Detector
from defakeq.detectors.xception import Backbone
from defakeq.interface import Interface


def phase_picture(x: Tensor) -> Tensor:
    """The grey picture with every amplitude of its spectrum set to 1.

    Args:
        x: (batch, 3, h, w).

    Returns:
        (batch, 1, h, w).
    """
    spectrum = torch.fft.fft2(x.mean(1, keepdim=True))
    return torch.fft.ifft2(torch.exp(1j * torch.angle(spectrum))).real


class Spsl(Detector):
    """The input is (batch, 3, 256, 256), the features are (batch, 2048, 8, 8) before ReLU."""

    interface = Interface(256)
    unused: ClassVar[tuple[str, ...]] = ("backbone.adjust_channel.*",)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(4)

    def features(self, batch: Tensor) -> Tensor:
        """Return the last maps before ReLU, (batch, 2048, 8, 8)."""
        return self.backbone.features(torch.cat([batch, phase_picture(batch)], 1))

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        return self.backbone.classify(features)
