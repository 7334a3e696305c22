"""The blocks of each published architecture in networks that are small enough for tests."""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.networks import convnext, mobile, resnet, swin, vit

# the package has a function of this name
xception = importlib.import_module("defakeq.networks.xception")


class Resnet(nn.Module):
    def __init__(self, block) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = block(16, 16, 1)
        self.layer2 = nn.Sequential(
            block(16 * block.expansion, 24, 2), block(24 * block.expansion, 24, 1)
        )
        self.fc = nn.Linear(24 * block.expansion, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(F.adaptive_avg_pool2d(self.layer2(self.layer1(x)), 1).flatten(1))


class Mobile(nn.Module):
    def __init__(self, act, kind: mobile.Kind) -> None:
        super().__init__()
        self.act = act
        self.conv_stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        specs = [
            mobile.Spec(16, 0, 3, 1, 8, act),
            mobile.Spec(24, 48, 3, 2, 0, torch.relu),
            mobile.Spec(24, 56, 5, 1, 16, act),
        ]
        blocks, inputs = mobile._stages(16, [specs], kind)
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(inputs, 64, 1)
        self.classifier = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        x = self.act(self.conv_head(F.adaptive_avg_pool2d(x, 1)))
        return self.classifier(x.flatten(1))


class Xception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.block1 = xception.Block((16, 32, 32), 2, first=True)
        self.block2 = xception.Block((32, 32, 32), 1)
        self.conv3 = xception.Separable(32, 48)
        self.bn3 = nn.BatchNorm2d(48)
        self.fc = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(torch.relu(self.bn1(self.conv1(x)))))
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Swin(nn.Module):
    """Two stages; the first has shifted windows, the second one window."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = swin.PatchEmbed(16)
        self.layers = nn.Sequential(swin.Stage(16, 2, 14, 2, False), swin.Stage(32, 4, 7, 1, True))
        self.norm = nn.LayerNorm(32)
        self.head = swin.Head(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.patch_embed(x))))


_MOBILE = mobile.Kind(torch.relu, F.hardsigmoid)
_EFFICIENT = mobile.Kind(F.silu, torch.sigmoid)

# name: (builder, size of the images)
SMALL = {
    "resnet34": (lambda: Resnet(resnet.Basic), 32),
    "resnet50": (lambda: Resnet(resnet.Bottleneck), 32),
    "mobilenetv3": (lambda: Mobile(F.hardswish, _MOBILE), 32),
    "efficientnet": (lambda: Mobile(F.silu, _EFFICIENT), 32),
    "xception": (Xception, 35),
    "convnext": (lambda: convnext.ConvNeXt((16, 32), (2, 1), 2), 32),
    "swin": (Swin, 56),
    "vit": (lambda: vit.VisionTransformer(32, 4, 2, 32, depth=2), 32),
}


def build(name: str) -> tuple[nn.Module, int]:
    """A network with random weights in evaluation mode, and the size of its images."""
    from defakeq.networks import randomize

    make, size = SMALL[name]
    torch.manual_seed(5)
    model = make().eval()
    randomize(model, size)
    return model, size
