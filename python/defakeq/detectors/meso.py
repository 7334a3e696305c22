"""Meso4 and MesoInception4 (MesoNet, arXiv 1809.00888).

Shapes, the order of the operators and the names are those of DeepfakeBench, which took them from
HongguLiu/MesoNet-Pytorch: BatchNorm follows ReLU, and one BatchNorm serves two convolutions.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.detectors.base import Detector
from defakeq.interface import Interface

_SLOPE = 0.1  # of the leaky ReLU


class _Head(nn.Module):
    """The two dense layers; the dropouts between them do nothing in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16 * 8 * 8, 16)
        self.fc2 = nn.Linear(16, 2)

    def classify(self, features: Tensor) -> Tensor:
        y = F.leaky_relu(self.fc1(F.dropout(features, 0.5, self.training)), _SLOPE)
        logits: Tensor = self.fc2(F.dropout(y, 0.5, self.training))
        return logits


class Meso4Net(_Head):
    """Four convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 5, padding=2, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(8, 16, 5, padding=2, bias=False)
        self.conv4 = nn.Conv2d(16, 16, 5, padding=2, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """Map (batch, 3, 256, 256) to (batch, 1024)."""
        x = F.max_pool2d(self.bn1(torch.relu(self.conv1(x))), 2)
        x = F.max_pool2d(self.bn1(torch.relu(self.conv2(x))), 2)
        x = F.max_pool2d(self.bn2(torch.relu(self.conv3(x))), 2)
        x = F.max_pool2d(self.bn2(torch.relu(self.conv4(x))), 4)
        return x.flatten(1)


# Name, dilation and outputs of the branches of each inception layer; "2" to "4" have two steps.
_BRANCHES = (
    (("1", 0, 1), ("2", 1, 4), ("3", 2, 4), ("4", 3, 2)),
    (("1", 0, 2), ("2", 1, 4), ("3", 2, 4), ("4", 3, 2)),
)


class MesoInception4Net(_Head):
    """Two inception layers of dilated convolutions, and two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *(sum(outputs for *_, outputs in layer) for layer in _BRANCHES))
        for number, ((inputs, total), layer) in enumerate(
            zip(pairwise(widths), _BRANCHES, strict=True), 1
        ):
            for name, dilation, outputs in layer:
                at = f"Incption{number}_conv{name}"  # spelt as published
                if not dilation:
                    self.add_module(at, nn.Conv2d(inputs, outputs, 1, bias=False))
                    continue
                self.add_module(f"{at}_1", nn.Conv2d(inputs, outputs, 1, bias=False))
                wide = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
                self.add_module(f"{at}_2", wide)
            self.add_module(f"Incption{number}_bn", nn.BatchNorm2d(total))
        self.conv1 = nn.Conv2d(widths[-1], 16, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 5, padding=2, bias=False)

    def inception(self, x: Tensor, number: int) -> Tensor:
        """Run inception layer 1 or 2, with its BatchNorm, and halve the resolution."""
        parts = []
        for name, dilation, _ in _BRANCHES[number - 1]:
            at = f"Incption{number}_conv{name}"
            y = x
            for step in ("_1", "_2") if dilation else ("",):
                y = self.get_submodule(at + step)(y)
            parts.append(y)
        y = self.get_submodule(f"Incption{number}_bn")(torch.cat(parts, 1))
        return F.max_pool2d(y, 2)

    def features(self, x: Tensor) -> Tensor:
        """Map (batch, 3, 256, 256) to (batch, 1024)."""
        x = self.inception(self.inception(x, 1), 2)
        x = F.max_pool2d(self.bn1(torch.relu(self.conv1(x))), 2)
        x = F.max_pool2d(self.bn1(torch.relu(self.conv2(x))), 4)
        return x.flatten(1)


class Meso(Detector):
    """Either of the two, as DeepfakeBench's detectors "meso4" and "meso4Inception" hold them."""

    interface = Interface(256)

    def __init__(self, backbone: Meso4Net | MesoInception4Net) -> None:
        super().__init__()
        self.backbone = backbone

    def features(self, batch: Tensor) -> Tensor:
        """Return the flattened maps, (batch, 1024)."""
        return self.backbone.features(batch)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        return self.backbone.classify(features)


def meso4() -> Meso:
    """Meso4."""
    return Meso(Meso4Net())


def mesoinception4() -> Meso:
    """MesoInception4."""
    return Meso(MesoInception4Net())
