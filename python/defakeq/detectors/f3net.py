"""F3-Net: frequency-aware decomposition (arXiv 2007.09355).

Names, shapes and numbers are those of DeepfakeBench's detector "f3net", which has the decomposition
branch of the paper and not the local frequency statistics: the picture's discrete cosine transform
is split into three bands and all of them, each band weighted by a learned map, and the four
pictures that come back are the 12 input channels of Xception.
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


def dct_matrix(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix: (frequency, position), float32."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    position = torch.arange(size, dtype=torch.float64)[None, :]
    matrix = torch.cos((position + 0.5) * math.pi * frequency / size) * math.sqrt(2 / size)
    matrix[0] = math.sqrt(1 / size)
    return matrix.float()


def band(size: int, start: float, end: float) -> Tensor:
    """1 where the sum of the two frequencies is from `start` to `end`, else 0: (size, size)."""
    at = torch.arange(size)
    total = at[:, None] + at[None, :]
    return ((total >= start) & (total <= end)).float()


class Filter(nn.Module):
    """A band of frequencies with a learned correction, each from -1 to 1."""

    def __init__(self, size: int, start: float, end: float) -> None:
        super().__init__()
        self.base = nn.Parameter(band(size, start, end), requires_grad=False)
        self.learnable = nn.Parameter(torch.randn(size, size) * 0.1)

    def weights(self) -> Tensor:
        """The factor of each frequency, (size, size)."""
        return self.base + (2 * torch.sigmoid(self.learnable) - 1)


class FadHead(nn.Module):
    """Frequency-aware decomposition."""

    def __init__(self, size: int) -> None:
        super().__init__()
        matrix = dct_matrix(size)
        self._DCT_all = nn.Parameter(matrix, requires_grad=False)
        self._DCT_all_T = nn.Parameter(matrix.T.contiguous(), requires_grad=False)
        low, middle = size // 2.82, size // 2
        edges = ((0, low), (low, middle), (middle, 2 * size), (0, 2 * size))
        self.filters = nn.ModuleList(Filter(size, start, end) for start, end in edges)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, size, size) to (batch, 12, size, size).

        Even frequencies are symmetric and odd ones antisymmetric: the way back takes half of the
        products and gives the other half of the picture as a difference, from its end on.
        The dimensions lie so that every move of a program repeats one short index.
        """
        half = x.shape[-1] // 2
        back = [self._DCT_all_T[:half, parity::2] for parity in range(2)]
        down: list[list[Tensor]] = [[], []]  # of either parity: frequency across, color, down
        for across in range(2):
            spectrum = F.linear(x, self._DCT_all[across::2]).permute(0, 3, 1, 2)
            for parity in range(2):
                one = F.linear(spectrum, self._DCT_all[parity::2])
                for f in self.filters:
                    factors = f.weights()[parity::2, across::2].T  # type: ignore[operator]
                    down[parity].append(one * factors[:, None])
        even, odd = (F.linear(torch.cat(p, 1), b) for p, b in zip(down, back, strict=True))
        top, bottom = self._rows(even + odd, back), self._rows(even - odd, back)
        return torch.cat([top, bottom.flip(2)], 2)

    def _rows(self, x: Tensor, back: list[Tensor]) -> Tensor:
        """Half of the rows of the pictures, (batch, 12, size / 2, size)."""
        half = x.shape[-1]
        x = x.reshape(x.shape[0], 2, len(self.filters), half, 3, half).permute(0, 1, 5, 2, 4, 3)
        even, odd = (F.linear(x[:, parity], back[parity]) for parity in range(2))
        whole = torch.cat([even + odd, (even - odd).flip(-1)], -1)  # row, band, color, column
        return whole.flatten(2, 3).transpose(1, 2)


class F3Net(Detector):
    """The input is (batch, 3, 256, 256), the features are (batch, 2048, 8, 8) before ReLU."""

    interface = Interface(256)
    unused: ClassVar[tuple[str, ...]] = ("backbone.adjust_channel.*",)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(12, dropout=True)
        self.FAD_head = FadHead(self.interface.size)

    def features(self, batch: Tensor) -> Tensor:
        """Return the last maps before ReLU, (batch, 2048, 8, 8)."""
        return self.backbone.features(self.FAD_head(batch))

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        return self.backbone.classify(features)
