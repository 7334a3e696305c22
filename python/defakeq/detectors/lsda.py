"""LSDA: latent space data augmentation (arXiv 2311.11278).

Names, shapes and numbers are those of DeepfakeBench's detector "lsda" with EfficientNet-B4 as
teacher and student. Teachers, the real encoder and their fusion exist in training only; a score
comes from the student and the binary classifier.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from defakeq.detectors.base import Detector
from defakeq.detectors.efficientnet import EfficientNetB4
from defakeq.interface import Interface

_WIDTH = 512


class Student(nn.Module):
    """EfficientNet-B4 and a convolution to 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.model = EfficientNetB4(padded_stem=True)
        self.conv = nn.Conv2d(1792, _WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, 256, 256) to (batch, 512, 8, 8)."""
        y: Tensor = self.conv(self.model(x))
        return y


class Model(nn.Module):
    """The parts that score."""

    def __init__(self) -> None:
        super().__init__()
        self.student_encoder = Student()
        self.binary_classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(_WIDTH, 512),
            nn.LeakyReLU(),
            nn.Linear(512, 2),
        )


class Lsda(Detector):
    """The input is (batch, 3, 256, 256), the features are (batch, 512, 8, 8)."""

    interface = Interface(256)
    unused: ClassVar[tuple[str, ...]] = (
        "model.encoders_f.*",
        "model.encoder_c.*",
        "model.fc_weights.*",
        "model.mlp.*",
        "model.student_encoder.model._fc.*",
    )

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def features(self, batch: Tensor) -> Tensor:
        """Return the student's features, (batch, 512, 8, 8)."""
        y: Tensor = self.model.student_encoder(batch)
        return y

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        logits: Tensor = self.model.binary_classifier(features)
        return logits
