"""SPSL: spatial-phase shallow learning (arXiv 2103.01856).

Names, shapes and numbers are those of DeepfakeBench's detector "spsl", which keeps the whole of
Xception: beside the picture it reads the picture that the phases of the grey picture's spectrum
give with all amplitudes equal.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class PhasePicture(nn.Module):
    """:func:`phase_picture`; exported, it is dense layers of real numbers, without complex ones.

    The columns of frequency 0 to size / 2 are computed, the others are their conjugates. The
    matrices forth are a sum of two that half precision holds, so that programs, whose float layers
    have such weights, find the phases of faint frequencies. An amplitude of 0 stays 0 there.

    Args:
        size: height and width, even.
    """

    across: Tensor
    down: Tensor
    back: Tensor
    last: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        half = size // 2 + 1
        product = torch.outer(torch.arange(size), torch.arange(size)) % size
        angle = product.double() * (2 * math.pi / size)
        cos, sin = torch.cos(angle), torch.sin(angle)
        across = torch.cat([cos[:half], -sin[:half]])
        real, imaginary = torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)
        down = torch.cat([real, imaginary])
        share = math.sqrt(0.5) / size
        back = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
        twice = torch.full((half,), 2.0, dtype=torch.float64)
        twice[0] = twice[-1] = 1.0
        last = torch.cat([cos[:, :half] * twice, -sin[:, :half] * twice], 1) / size
        self.size, self.columns = size, half
        self.register_buffer("across", _in_two(across), persistent=False)
        self.register_buffer("down", _in_two(down), persistent=False)
        self.register_buffer("back", (back * share).float(), persistent=False)
        self.register_buffer("last", last.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, size, size) to (batch, 1, size, size)."""
        return self.by_matrices(x) if torch.compiler.is_exporting() else phase_picture(x)

    def by_matrices(self, x: Tensor) -> Tensor:
        """The same without a Fourier transform of torch's."""
        size, half = self.size, self.columns
        grey = x.mean(1, keepdim=True)
        rows = F.linear(torch.cat([grey, grey], 3), self.across)
        columns = rows.reshape(-1, 1, size, 2, half).permute(0, 1, 4, 3, 2)
        columns = columns.reshape(-1, 1, half, 2 * size)
        spectrum = F.linear(torch.cat([columns, columns], 3), self.down)
        pairs = spectrum.reshape(-1, 1, half, 2, size).transpose(3, 4)
        # With their negatives the numbers of a frequency have mean 0: LayerNorm divides them by
        # the amplitude.
        phases = F.layer_norm(torch.cat([pairs, -pairs], 4), (4,), eps=1e-12)[..., :2]
        columns = F.linear(phases.transpose(3, 4).reshape(-1, 1, half, 2 * size), self.back)
        rows = columns.reshape(-1, 1, half, 2, size).permute(0, 1, 4, 3, 2)
        return F.linear(rows.reshape(-1, 1, size, 2 * half), self.last)


def _in_two(matrix: Tensor) -> Tensor:
    """A matrix and, beside it, what half precision loses of it."""
    rounded = matrix.half().double()
    return torch.cat([rounded, matrix - rounded], 1).float()


class Spsl(Detector):
    """The input is (batch, 3, 256, 256), the features are (batch, 2048, 8, 8) before ReLU."""

    interface = Interface(256)
    unused: ClassVar[tuple[str, ...]] = ("backbone.adjust_channel.*",)
    float_inputs: ClassVar[dict[str, tuple[int, ...]]] = {"backbone.conv1": (3,)}

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(4)
        self.phases = PhasePicture(self.interface.size)

    def features(self, batch: Tensor) -> Tensor:
        """Return the last maps before ReLU, (batch, 2048, 8, 8)."""
        return self.backbone.features(torch.cat([batch, self.phases(batch)], 1))

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        return self.backbone.classify(features)
