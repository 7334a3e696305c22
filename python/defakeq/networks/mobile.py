"""MobileNetV3-Large (arXiv 1905.02244) and EfficientNet-B4 (arXiv 1905.11946)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kind:
    """Functions of squeeze-excite blocks: between their layers, and of the factors."""

    inner: Function
    gate: Function


@dataclass(frozen=True)
class Spec:
    """One block; `hidden` and `squeeze` in channels, 0 for none, `act` its activation."""

    outputs: int
    hidden: int
    kernel: int
    stride: int
    squeeze: int
    act: Function


class SqueezeExcite(nn.Module):
    """Scales channels by a function of their means."""

    def __init__(self, channels: int, squeeze: int, kind: Kind):
        super().__init__()
        self.kind = kind
        self.conv_reduce = nn.Conv2d(channels, squeeze, 1)
        self.conv_expand = nn.Conv2d(squeeze, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to the same shape."""
        y = self.kind.inner(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * self.kind.gate(self.conv_expand(y))


def _depthwise(channels: int, spec: Spec) -> nn.Conv2d:
    return nn.Conv2d(
        channels, channels, spec.kernel, spec.stride, spec.kernel // 2, groups=channels, bias=False
    )


class Separable(nn.Module):
    """Depthwise and pointwise convolution, added to the input where the shapes allow it."""

    def __init__(self, inputs: int, spec: Spec, kind: Kind):
        super().__init__()
        self.act = spec.act
        self.skip = spec.stride == 1 and inputs == spec.outputs
        self.conv_dw = _depthwise(inputs, spec)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.se = SqueezeExcite(inputs, spec.squeeze, kind) if spec.squeeze else nn.Identity()
        self.conv_pw = nn.Conv2d(inputs, spec.outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y = self.se(self.act(self.bn1(self.conv_dw(x))))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.skip else y


class Inverted(nn.Module):
    """Pointwise to `hidden` channels, depthwise, and pointwise again; residual where it fits."""

    def __init__(self, inputs: int, spec: Spec, kind: Kind):
        super().__init__()
        self.act = spec.act
        self.skip = spec.stride == 1 and inputs == spec.outputs
        self.conv_pw = nn.Conv2d(inputs, spec.hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(spec.hidden)
        self.conv_dw = _depthwise(spec.hidden, spec)
        self.bn2 = nn.BatchNorm2d(spec.hidden)
        self.se = SqueezeExcite(spec.hidden, spec.squeeze, kind) if spec.squeeze else nn.Identity()
        self.conv_pwl = nn.Conv2d(spec.hidden, spec.outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y = self.act(self.bn1(self.conv_pw(x)))
        y = self.se(self.act(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.skip else y


class ConvNormAct(nn.Module):
    """A pointwise convolution, BatchNorm and an activation."""

    def __init__(self, inputs: int, outputs: int, act: Function):
        super().__init__()
        self.act = act
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h, w)."""
        return self.act(self.bn1(self.conv(x)))


def _stages(inputs: int, stages: list[list[Spec]], kind: Kind) -> tuple[list[nn.Sequential], int]:
    built = []
    for stage in stages:
        blocks: list[nn.Module] = []
        for spec in stage:
            block = Inverted if spec.hidden else Separable
            blocks.append(block(inputs, spec, kind))
            inputs = spec.outputs
        built.append(nn.Sequential(*blocks))
    return built, inputs


# kernel, stride, hidden, outputs, whether squeeze-excite, and with Hardswish
_LARGE = (
    ((3, 2, 64, 24, False, False), (3, 1, 72, 24, False, False)),
    ((5, 2, 72, 40, True, False), (5, 1, 120, 40, True, False), (5, 1, 120, 40, True, False)),
    (
        (3, 2, 240, 80, False, True),
        (3, 1, 200, 80, False, True),
        (3, 1, 184, 80, False, True),
        (3, 1, 184, 80, False, True),
    ),
    ((3, 1, 480, 112, True, True), (3, 1, 672, 112, True, True)),
    ((5, 2, 672, 160, True, True), (5, 1, 960, 160, True, True), (5, 1, 960, 160, True, True)),
)


def _round8(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class MobileNetV3(nn.Module):
    """The input is (batch, 3, h, w), the output (batch, num_classes)."""

    def __init__(self, num_classes: int):
        super().__init__()
        kind = Kind(torch.relu, F.hardsigmoid)
        stages = [[Spec(16, 0, 3, 1, 0, torch.relu)]]
        for rows in _LARGE:
            stages.append(
                [
                    Spec(
                        outputs,
                        hidden,
                        kernel,
                        stride,
                        _round8(hidden / 4) if squeezes else 0,
                        F.hardswish if hard else torch.relu,
                    )
                    for kernel, stride, hidden, outputs, squeezes, hard in rows
                ]
            )
        self.conv_stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        built, inputs = _stages(16, stages, kind)
        self.blocks = nn.Sequential(*built, nn.Sequential(ConvNormAct(inputs, 960, F.hardswish)))
        self.conv_head = nn.Conv2d(960, 1280, 1)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = F.hardswish(self.bn1(self.conv_stem(x)))
        x = F.adaptive_avg_pool2d(self.blocks(x), 1)
        logits: Tensor = self.classifier(F.hardswish(self.conv_head(x)).flatten(1))
        return logits


# depth, kernel, stride, hidden channels an input, outputs: the B0 table scaled by 1.8 and 1.4
_B4 = (
    (2, 3, 1, 1, 24),
    (4, 3, 2, 6, 32),
    (4, 5, 2, 6, 56),
    (6, 3, 2, 6, 112),
    (6, 5, 1, 6, 160),
    (8, 5, 2, 6, 272),
    (2, 3, 1, 6, 448),
)


class EfficientNet(nn.Module):
    """The input is (batch, 3, h, w), the output (batch, num_classes)."""

    def __init__(self, num_classes: int):
        super().__init__()
        kind = Kind(F.silu, torch.sigmoid)
        stages, inputs = [], 48
        for depth, kernel, stride, ratio, outputs in _B4:
            stage = []
            for index in range(depth):
                hidden = 0 if ratio == 1 else inputs * ratio
                step = stride if index == 0 else 1
                stage.append(Spec(outputs, hidden, kernel, step, inputs // 4, F.silu))
                inputs = outputs
            stages.append(stage)
        self.conv_stem = nn.Conv2d(3, 48, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(48)
        built, inputs = _stages(48, stages, kind)
        self.blocks = nn.Sequential(*built)
        self.conv_head = nn.Conv2d(inputs, 1792, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1792)
        self.classifier = nn.Linear(1792, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = F.silu(self.bn1(self.conv_stem(x)))
        x = F.silu(self.bn2(self.conv_head(self.blocks(x))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def mobilenetv3_large(num_classes: int) -> MobileNetV3:
    """MobileNetV3-Large, width 1."""
    return MobileNetV3(num_classes)


def efficientnet_b4(num_classes: int) -> EfficientNet:
    """EfficientNet-B4."""
    return EfficientNet(num_classes)
