"""Launches whose machine code has a budget, and the tool that records it.

python tests/triton/static_cases.py     lowers tests/data/triton_budget.json to what is reached
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import nn

from defakeq_kernels.nn import ActQuant, QuantConv2d, QuantLinear
from defakeq_kernels.triton import config, launch
from defakeq_kernels.triton.offline import Report, compile_launch, report
from defakeq_kernels.triton.pack import pack
from defakeq_kernels.triton.start import Launch, recording

BUDGET = Path(__file__).resolve().parent.parent / "data/triton_budget.json"
STATIC = ActQuant.static(-2, 3)
ARCHITECTURES = (87, 89, 90)


def _linear(outputs: int = 512, inputs: int = 1024, **options: Any) -> QuantLinear:
    return QuantLinear.from_float(nn.Linear(inputs, outputs), **options)


def _conv(groups: int = 1, **options: Any) -> QuantConv2d:
    conv = nn.Conv2d(64, 64, 3, padding=1, groups=groups)
    return QuantConv2d.from_float(conv, act=STATIC, **options)


def _x(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    x = torch.zeros(shape, dtype=dtype)
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


# name -> (layer, input, tensor core instruction by architecture)
IMMA = {87: "IMMA", 89: "IMMA", 90: "IGMMA"}
HMMA = {87: "HMMA", 89: "HMMA", 90: "HGMMA"}
CASES: dict[str, tuple[Callable[[], Any], Callable[[], torch.Tensor], dict[int, str]]] = {
    "w4a16 gemv": (
        lambda: _linear(bits=4, symmetric=True),
        lambda: _x(torch.float16, 1, 1024),
        dict.fromkeys(ARCHITECTURES, "HMMA"),
    ),
    "w4a16 gemv of groups": (
        lambda: _linear(bits=4, group_size=128),
        lambda: _x(torch.float16, 1, 1024),
        dict.fromkeys(ARCHITECTURES, "HMMA"),
    ),
    "w4a16 gemv of groups, 4096 outputs": (
        lambda: _linear(4096, bits=4, group_size=128),
        lambda: _x(torch.float16, 1, 1024),
        dict.fromkeys(ARCHITECTURES, "HMMA"),
    ),
    "w4a8 gemv": (
        lambda: _linear(bits=4, act=STATIC),
        lambda: _x(torch.int8, 1, 1024),
        dict.fromkeys(ARCHITECTURES, "IMMA"),
    ),
    "w4a16 split": (
        lambda: _linear(bits=4, symmetric=True),
        lambda: _x(torch.float16, 40, 1024),
        HMMA,
    ),
    "w4a16": (lambda: _linear(bits=4, symmetric=True), lambda: _x(torch.float16, 8192, 1024), HMMA),
    "w4a8": (
        lambda: _linear(bits=4, symmetric=True, act=STATIC),
        lambda: _x(torch.int8, 8192, 1024),
        IMMA,
    ),
    "w4a8 of 728 channels": (
        lambda: _linear(inputs=728, bits=4, symmetric=True, act=STATIC),
        lambda: _x(torch.int8, 8192, 728),
        IMMA,
    ),
    "w8a8": (
        lambda: _linear(bits=8, symmetric=True, act=STATIC),
        lambda: _x(torch.int8, 8192, 1024),
        IMMA,
    ),
    "conv w8a8": (
        lambda: _conv(bits=8, symmetric=True, activation="relu"),
        lambda: _x(torch.int8, 16, 64, 56, 56),
        IMMA,
    ),
    "conv mixed": (
        lambda: _conv(bits=torch.tensor([8, 3] * 32), activation="silu"),
        lambda: _x(torch.int8, 16, 64, 56, 56),
        IMMA,
    ),
    "depthwise": (lambda: _conv(groups=64, bits=4), lambda: _x(torch.int8, 16, 64, 56, 56), {}),
}


def launches(layer: Any, x: torch.Tensor, device: config.Device) -> list[Launch]:
    """What a call of the layer launches on `device`."""
    packed, made = pack(layer.packed_weight(), layer.act, layer.activation, layer.out)
    found: list[Launch] = []
    with recording(found.append, device):
        if layer.kind == "linear":
            launch.linear(x, packed, layer.out_features, layer.out is not None)
        else:
            geometry = (made.kernel, made.stride, made.padding, made.dilation)
            out_int8 = layer.out is not None
            launch.conv2d(x, packed, layer.out_channels, *geometry, out_int8)
    return found


def reports(name: str, arch: int) -> dict[str, Report]:
    """By kernel name."""
    torch.manual_seed(0)
    make, x, _ = CASES[name]
    found = launches(make(), x(), config.DEVICES[arch])
    return {one.kernel.__name__: report(compile_launch(one, arch)) for one in found}


def main() -> None:
    recorded = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    known = recorded["kernels"] if recorded.get("triton") == triton.__version__ else {}
    for name in CASES:
        for arch in ARCHITECTURES:
            for kernel, r in reports(name, arch).items():
                key = f"{name} / {kernel} / sm_{arch}"
                reached = {
                    "per_mma": math.ceil(10 * r.per_mma) / 10,
                    "instructions": r.instructions,
                }
                old = known.get(key, reached)
                known[key] = {k: min(old[k], v) for k, v in reached.items()}
                print(key, reached, r.registers, "registers", r.shared, "bytes shared")
    temporary = BUDGET.with_suffix(".tmp")
    document = {"kernels": known, "triton": triton.__version__}
    temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, BUDGET)


if __name__ == "__main__":
    main()
