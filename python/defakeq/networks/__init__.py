"""Networks of published detectors in plain torch, named as the public timm checkpoints name them.

`build` gives one with random weights; `load_state_dict` of a checkpoint with as many classes fits
it. The names are in `NAMES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.networks.convnext import convnext_tiny
from defakeq.networks.mobile import efficientnet_b4, mobilenetv3_large
from defakeq.networks.resnet import resnet34, resnet50
from defakeq.networks.swin import swin_base, swin_small
from defakeq.networks.vit import vit_base, vit_small, vit_tiny
from defakeq.networks.xception import xception


@dataclass(frozen=True)
class _Entry:
    make: Callable[..., nn.Module]
    size: int
    fixed: bool = False  # whether the parameters depend on the input's size


_ENTRIES = {
    "resnet34": _Entry(resnet34, 256),
    "resnet50": _Entry(resnet50, 256),
    "mobilenetv3_large": _Entry(mobilenetv3_large, 224),
    "efficientnet_b4": _Entry(efficientnet_b4, 256),
    "xception": _Entry(xception, 256),
    "convnext_tiny": _Entry(convnext_tiny, 224),
    "swin_base": _Entry(swin_base, 224, True),
    "vit_base_patch16": _Entry(vit_base, 224, True),
    "deit_tiny": _Entry(vit_tiny, 224, True),
    "deit_small": _Entry(vit_small, 224, True),
    "deit_base": _Entry(vit_base, 224, True),
    "vit_small": _Entry(vit_small, 224, True),
    "swin_small": _Entry(swin_small, 224, True),
}

NAMES = tuple(_ENTRIES)


def build(
    name: str, num_classes: int = 2, seed: int = 0, input_size: int | None = None
) -> nn.Module:
    """A network in evaluation mode, with random weights that are the same for the same `seed`.

    The weights have the spread of trained ones where quantization depends on it: BatchNorm with
    running statistics of its own inputs, scales and offsets that differ from channel to channel.

    Args:
        name: one of `NAMES`.
        num_classes: outputs.
        seed: of the weights.
        input_size: height and width of the images; None: those of the published benchmarks.

    Returns:
        The network. Its attribute `input_size` is (3, height, width).

    Raises:
        ValueError: an unknown name, or a wrong number.
    """
    entry = _ENTRIES.get(name)
    if entry is None:
        near = difflib.get_close_matches(str(name), NAMES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"name: found {name!r} (nearest: {near!r}); accepted is one of {', '.join(NAMES)}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes: found {num_classes}; accepted is 1 or more")
    size = entry.size if input_size is None else input_size
    if size < 32:
        raise ValueError(f"input_size: found {size}; accepted is 32 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = entry.make(num_classes, size) if entry.fixed else entry.make(num_classes)
        model.eval()
        randomize(model, min(max(size, 96), 128))
    model.input_size = (3, size, size)  # type: ignore[assignment]
    return model


def images(count: int, size: int, seed: int = 1) -> Tensor:
    """Smooth noise with a little grain, about as spread as normalized photographs.

    Returns:
        float32 (count, 3, size, size).
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic")
    return smooth + 0.2 * torch.randn(count, 3, size, size, generator=generator)


def randomize(model: nn.Module, size: int) -> None:
    """Give a network of `size` x `size` images, in evaluation mode, weights as `build` does.

    Layers keep their own initial weights; norms, offsets and positions get a trained network's
    spread, and BatchNorm the statistics of its inputs.
    """
    norms = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf in ("gamma", "gamma1", "gamma2"):
                parameter.uniform_(0.1, 0.5)
            elif leaf in ("cls_token", "pos_embed", "relative_position_bias_table"):
                parameter.normal_(0.0, 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.1)
                norms.append(module)
            elif isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0.0, 0.02)
            elif isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                module.bias.normal_(0.0, 0.02)
        if norms:
            momentum = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = None
            model.train()
            model(images(8 if size <= 128 else 3, size, seed=10))
            model.eval()
            for norm, value in zip(norms, momentum, strict=True):
                norm.momentum = value
                assert norm.running_var is not None
                assert norm.num_batches_tracked is not None
                # Channels that hardly vary in these images would have others amplified.
                norm.running_var.clamp_(min=float(norm.running_var.mean()) / 2)
                norm.num_batches_tracked.zero_()
