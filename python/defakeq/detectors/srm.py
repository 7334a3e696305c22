"""SRM: high-frequency features beside the picture (arXiv 2103.12376).

Names, shapes and numbers are those of DeepfakeBench's detector "srm": two Xceptions, one of the
picture and one of its residuals under three fixed high-pass filters of steganalysis (spatial rich
models), which guide the first by attention and exchange features at two places.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.detectors.base import Detector
from defakeq.detectors.xception import Backbone
from defakeq.interface import Interface

_LIMIT = 3.0  # residuals are clamped to this


def residual_filters() -> Tensor:
    """The three 5x5 filters, (3, 5, 5): second order square, third order edge, second order line.

    The first two are the outer products of (-1, 2, -1) with itself and of a 5-tap edge filter with
    corrections in its corners; here they are written out, over 4, 12 and 2.
    """
    square = torch.zeros(5, 5)
    square[1:4, 1:4] = torch.tensor([[-1.0, 2, -1], [2, -4, 2], [-1, 2, -1]])
    quarter = torch.tensor([[-1.0, 2, -2], [2, -6, 8], [-2, 8, -12]])
    half = torch.cat([quarter, quarter[:, :2].flip(1)], 1)
    edge = torch.cat([half, half[:2].flip(0)], 0)
    line = torch.zeros(5, 5)
    line[2, 1:4] = torch.tensor([1.0, -2, 1])
    return torch.stack([square / 4, edge / 12, line / 2])


class FixedFilters(nn.Module):
    """The filters summed over all channels: 3 inputs, 3 outputs."""

    def __init__(self) -> None:
        super().__init__()
        kernel = residual_filters()[:, None].repeat(1, 3, 1, 1)
        self.kernel = nn.Parameter(kernel, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to the same shape."""
        return F.hardtanh(F.conv2d(x, self.kernel, padding=2), -_LIMIT, _LIMIT)


class ChannelFilters(nn.Module):
    """A filter three times on each channel of features, and a convolution back to `channels`.

    Channel c gets the filters number 3 c to 3 c + 2 of a list that has each of the three filters
    `channels` times: the first third of the channels the first filter, and so on.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = residual_filters().repeat_interleave(channels, 0)[:, None]
        self.kernel = nn.Parameter(kernel.contiguous(), requires_grad=False)
        self.out_conv = nn.Sequential(
            nn.Conv2d(3 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to the same shape."""
        y = F.conv2d(x, self.kernel, padding=2, groups=x.shape[1])
        out: Tensor = self.out_conv(F.hardtanh(y, -_LIMIT, _LIMIT))
        return out


class SpatialAttention(nn.Module):
    """A 7x7 convolution of the mean and the maximum of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to factors (batch, 1, h, w)."""
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return torch.sigmoid(self.conv(both))


class PixelAttention(nn.Module):
    """Spatial attention from residuals, at the resolution behind Xception's first layers."""

    def __init__(self) -> None:
        super().__init__()
        self.srm = FixedFilters()
        self.conv = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.pa = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, 1, h / 2, w / 2)."""
        factors: Tensor = self.pa(self.conv(self.srm(x)))
        return factors


class DualAttention(nn.Module):
    """Attention between two maps of `channels` x 16 x 16, both ways."""

    def __init__(self, channels: int, size: int = 16, ratio: int = 8) -> None:
        super().__init__()
        self.key_conv1 = nn.Conv2d(channels, channels // ratio, 1)
        self.key_conv2 = nn.Conv2d(channels, channels // ratio, 1)
        self.key_conv_share = nn.Conv2d(channels // ratio, channels // ratio, 1)
        self.linear1 = nn.Linear(size * size, size * size)
        self.linear2 = nn.Linear(size * size, size * size)
        self.value_conv1 = nn.Conv2d(channels, channels, 1)
        self.gamma1 = nn.Parameter(torch.zeros(1))
        self.value_conv2 = nn.Conv2d(channels, channels, 1)
        self.gamma2 = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map two maps to what each is with the attended values of the other."""
        keys_x = self.key_conv_share(self.key_conv1(x)).flatten(2)
        keys_y = self.key_conv_share(self.key_conv2(y)).flatten(2)
        energy = torch.bmm(keys_x.transpose(1, 2), keys_y)
        of_x = self.linear1(energy).softmax(-1)
        of_y = self.linear2(energy.transpose(1, 2)).softmax(-1)
        to_x = torch.bmm(self.value_conv2(y).flatten(2), of_x.transpose(1, 2))
        to_y = torch.bmm(self.value_conv1(x).flatten(2), of_y.transpose(1, 2))
        return (
            self.gamma1 * to_x.reshape(x.shape) + x,
            self.gamma2 * to_y.reshape(y.shape) + y,
        )


class ChannelAttention(nn.Module):
    """Factors of channels from their means and maxima."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.sharedMLP = nn.Sequential(
            nn.Conv2d(channels, channels // ratio, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // ratio, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to (batch, channels, 1, 1)."""
        mean = self.sharedMLP(x.mean((2, 3), keepdim=True))
        largest = self.sharedMLP(x.amax((2, 3), keepdim=True))
        return torch.sigmoid(mean + largest)


class Fusion(nn.Module):
    """One map of two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convblk = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.ca = ChannelAttention(channels, 16)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map two (batch, channels, h, w) to one."""
        both: Tensor = self.convblk(torch.cat([x, y], 1))
        return both * self.ca(both)


class Srm(Detector):
    """The input is (batch, 3, 256, 256), the features are (batch, 2048, 8, 8)."""

    interface = Interface(256)
    unused: ClassVar[tuple[str, ...]] = (
        "backbone_rgb.adjust_channel.*",
        "backbone_srm.adjust_channel.*",
        "backbone_srm.last_linear.*",
        "blur.weight",
    )

    def __init__(self) -> None:
        super().__init__()
        self.backbone_rgb = Backbone()
        self.backbone_srm = Backbone(classifier=False)
        self.srm_conv0 = FixedFilters()
        self.srm_conv1 = ChannelFilters(32)
        self.srm_conv2 = ChannelFilters(64)
        self.srm_sa = PixelAttention()
        self.srm_sa_post = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
        self.dual_cma0 = DualAttention(728)
        self.dual_cma1 = DualAttention(728)
        self.fusion = Fusion(2048)

    def features(self, batch: Tensor) -> Tensor:
        """Return the fused maps, (batch, 2048, 8, 8)."""
        rgb, srm = self.backbone_rgb, self.backbone_srm
        residuals = self.srm_conv0(batch)
        x = torch.relu(rgb.bn1(rgb.conv1(batch)))
        y = torch.relu(torch.relu(srm.bn1(srm.conv1(residuals))) + self.srm_conv1(x))
        x = torch.relu(rgb.bn2(rgb.conv2(x)))
        y = torch.relu(torch.relu(srm.bn2(srm.conv2(y))) + self.srm_conv2(x))
        x = self.srm_sa_post(x * self.srm_sa(residuals) + x)
        x, y = self.dual_cma0(rgb.blocks(x, 1, 3), srm.blocks(y, 1, 3))
        x, y = self.dual_cma1(rgb.blocks(x, 4, 7), srm.blocks(y, 4, 7))
        x, y = rgb.blocks(x, 8, 12), srm.blocks(y, 8, 12)
        fused: Tensor = self.fusion(rgb.tail(x), srm.tail(y))
        return fused

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        return self.backbone_rgb.classify(features)
