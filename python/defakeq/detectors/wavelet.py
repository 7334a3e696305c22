"""One-dimensional discrete wavelet transforms as convolutions, past the ends of a signal zeros.

Filters, lengths and the meaning of the coefficients are those of PyWavelets with mode "zero".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The scaling filter of Daubechies' wavelet with 6 vanishing moments (Ten Lectures on Wavelets,
# 1992, table 6.1): its squares sum to 1, its entries to the square root of 2.
DB6 = (
    0.11154074335010947,
    0.49462389039845306,
    0.7511339080210954,
    0.31525035170919763,
    -0.22626469396543983,
    -0.12976686756726194,
    0.09750160558732304,
    0.027522865530305727,
    -0.03158203931748603,
    0.0005538422011614961,
    0.004777257510945511,
    -0.0010773010853084796,
)


def _filters() -> tuple[Tensor, Tensor]:
    """Low and high pass of the synthesis, (12,)."""
    low = torch.tensor(DB6, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0] * (len(DB6) // 2), dtype=torch.float64)
    return low, low.flip(0) * signs


class Analysis(nn.Module):
    """Low-pass coefficients of the last level, and the high-pass ones of each level."""

    h0: Tensor
    h1: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        low, high = _filters()
        self.levels = levels
        # As correlation applies them: the analysis filters, reversed, are those of the synthesis.
        self.register_buffer("h0", low.float().reshape(1, 1, -1))
        self.register_buffer("h1", high.float().reshape(1, 1, -1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (batch, 1, n) to (batch, 1, m) and such a tensor a level, the finest first."""
        taps = self.h0.shape[-1]
        kernel = torch.cat([self.h0, self.h1]).unsqueeze(2)
        low, high = x.unsqueeze(2), []
        for _ in range(self.levels):
            if low.shape[-1] % 2:
                low = F.pad(low, (0, 1))
            both = F.conv2d(low, kernel, stride=(1, 2), padding=(0, taps - 2))
            low = both[:, :1]
            high.append(both[:, 1])
        return low[:, 0], high


class Synthesis(nn.Module):
    """The signal of the coefficients."""

    g0: Tensor
    g1: Tensor

    def __init__(self) -> None:
        super().__init__()
        low, high = _filters()
        self.register_buffer("g0", low.float().reshape(1, 1, -1))
        self.register_buffer("g1", high.float().reshape(1, 1, -1))

    def forward(self, low: Tensor, high: list[Tensor]) -> Tensor:
        """Map (batch, 1, m) and a tensor a level, the finest first, to (batch, 1, n)."""
        # Entries n and n + 1 of a result are two filters over the same 6 coefficients: even and
        # odd taps, reversed.
        taps = self.g0.shape[-1]
        phases = torch.cat([self.g0, self.g1]).reshape(2, taps // 2, 2).flip(1)
        kernel = phases.permute(2, 0, 1).reshape(2, 2, 1, taps // 2)
        for detail in reversed(high):
            low = low[..., : detail.shape[-1]]
            both = F.conv2d(torch.cat([low, detail], 1).unsqueeze(2), kernel)
            low = both.permute(0, 2, 3, 1).flatten(2)
        return low
