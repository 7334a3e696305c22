"""AdaRound's soft rounding (Nagel et al., "Up or Down?", ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defakeq.compress.grid import Grid

ZETA, GAMMA = 1.1, -0.1
_WARM = 0.2  # part of the steps without penalty
_BETA = (20.0, 2.0)
_PENALTY = 0.01


@dataclass
class SoftRounding:
    """Codes ``clamp(floor(w / s + z) + h(V))``, h a sigmoid stretched to [-0.1, 1.1] and cut."""

    below: Tensor
    logits: Tensor
    top: int

    @staticmethod
    def of(rows: Tensor, grid: Grid) -> SoftRounding:
        """Starts where the soft weight is the float one."""
        position = grid.position(rows)
        below = position.floor()
        rest = ((position - below) - GAMMA) / (ZETA - GAMMA)
        return SoftRounding(below, torch.logit(rest.clamp(1e-4, 1 - 1e-4)), grid.top)

    def share(self) -> Tensor:
        """h(V), 0 to 1."""
        return (torch.sigmoid(self.logits) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def codes(self) -> Tensor:
        """Soft codes, with gradients."""
        return (self.below + self.share()).clamp(0, self.top)

    def hard(self) -> Tensor:
        """Whole codes: up where h(V) is at least one half."""
        return (self.below + (self.share() >= 0.5).float()).clamp(0, self.top)

    def penalty(self, progress: float) -> Tensor:
        """The mean of 1 - |2h - 1|^beta, which pushes h to 0 or 1; beta falls with progress."""
        if progress < _WARM:
            return torch.zeros((), device=self.logits.device)
        done = (progress - _WARM) / (1 - _WARM)
        beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 - done)
        return _PENALTY * (1 - (2 * self.share() - 1).abs().pow(beta)).mean()
