"""A small convolutional network that the tests of conversion share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from defakeq.fold import Folded


def settled(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with BatchNorm statistics that do something."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.track_running_stats:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


class Small(nn.Module):
    """Convolutions with BatchNorm, a residual, a depthwise layer and a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish()
        )
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.head = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = x + self.act(self.norm(self.conv(x)))
        return self.head(self.depthwise(x).mean((2, 3)))


def small_inputs(count: int = 4) -> Any:
    return torch.randn(count, 3, 20, 18)


def folded_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Folded)]
