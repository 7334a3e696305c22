"""The embedded detector's network: a small convolutional classifier in plain torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

INPUT_SIZE = 128
WEIGHTS = Path(__file__).parent / "weights"
CHECKPOINT = WEIGHTS / "embedded.safetensors"
PACKED = WEIGHTS / "embedded.dfq"
REPORT = WEIGHTS / "embedded.json"


class ConvNormAct(nn.Sequential):
    """A convolution without bias, BatchNorm and Hardswish."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.Hardswish(),
        )


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution; added to its input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.depthwise = ConvNormAct(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = ConvNormAct(inputs, outputs, 1)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y: Tensor = self.pointwise(self.depthwise(x))
        return x + y if self.skip else y


class EmbeddedDetector(nn.Module):
    """Tells forged face crops from real ones.

    The input is float32 of shape (batch, 3, 128, 128), RGB, from -1 to 1 (:func:`to_input`); the
    output float32 of shape (batch,), the logit of "forged".
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 24, 3, 2)
        self.blocks = nn.Sequential(
            Separable(24, 48, 2),
            Separable(48, 48),
            Separable(48, 96, 2),
            Separable(96, 96),
            Separable(96, 96),
            Separable(96, 160, 2),
            Separable(160, 160),
            Separable(160, 160),
        )
        self.head = ConvNormAct(160, 256, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(256, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of crops."""
        features: Tensor = self.pool(self.head(self.blocks(self.stem(x)))).flatten(1)
        logits: Tensor = self.classifier(features)
        return logits.squeeze(1)


def to_input(crops: NDArray[np.uint8]) -> Tensor:
    """Return crops, uint8 RGB of shape (batch, 128, 128, 3), as the network's input.

    Raises ``ValueError`` for another type or shape.
    """
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (INPUT_SIZE, INPUT_SIZE, 3):
        raise ValueError(
            f"crops: found {crops.dtype} of shape {tuple(crops.shape)}, accepted: uint8 of shape "
            f"(batch, {INPUT_SIZE}, {INPUT_SIZE}, 3)"
        )
    x = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2)
    return x.to(torch.float32).div_(127.5).sub_(1.0)


def load_float() -> EmbeddedDetector:
    """Return the trained float32 network, in evaluation mode."""
    from safetensors.torch import load_file

    model = EmbeddedDetector()
    model.load_state_dict(load_file(str(CHECKPOINT)))
    return model.eval().requires_grad_(False)
