"""Chooses the shipped tile sizes of the GPU kernels from their machine code; no GPU needed.

    python tools/gpu_configs.py [--arch 87 89 90]

Each candidate is compiled for a 4-bit layer (3x3 for convolutions) and must not spill. The fewest
instructions of the inner loop a multiply-add win, where at least 8 warps fit a multiprocessor;
otherwise the loop's latency is not hidden, and the count is raised in proportion. Choices made from
machine code are a start: DEFAKEQ_AUTOTUNE=1 measures on a device.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from defakeq_kernels.nn import ActQuant, QuantConv2d, QuantLinear
from defakeq_kernels.triton import config, launch
from defakeq_kernels.triton.config import Config, Device
from defakeq_kernels.triton.offline import Report, compile_launch, report
from defakeq_kernels.triton.pack import pack
from defakeq_kernels.triton.start import Launch, recording

KINDS = {"int8": torch.int8, "half": torch.float16, "float32": torch.float32}
REGISTERS = 65536
# Resident blocks and shared memory of a multiprocessor: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability".
SHARED = {87: 164 << 10, 89: 100 << 10, 90: 228 << 10}
WARPS = 8


def layer_of(kind: str, x: str) -> Any:
    act = ActQuant.static(-2, 3) if x == "int8" else None
    options = {"bits": 4, "symmetric": True, "act": act}
    if kind == "linear":
        return QuantLinear.from_float(nn.Linear(1024, 512), **options)
    return QuantConv2d.from_float(nn.Conv2d(128, 128, 3, padding=1), **options)


def input_of(kind: str, x: str, m: int) -> torch.Tensor:
    if kind == "linear":
        return torch.zeros(m, 1024, dtype=KINDS[x])
    side = {16: 4, 64: 8, 256: 32}[m]
    made = torch.zeros(1, 128, side, side, dtype=KINDS[x])
    return made.to(memory_format=torch.channels_last)


def launched(kind: str, x: str, m: int, chosen: Config, device: Device) -> Launch:
    """The product that a call with the given configuration launches."""
    layer = layer_of(kind, x)
    packed, made = pack(layer.packed_weight(), layer.act, layer.activation, None)
    found: list[Launch] = []
    before = config.choose
    config.choose = lambda *_: chosen
    try:
        with recording(found.append, device):
            if kind == "linear":
                launch.linear(input_of(kind, x, m), packed, layer.out_features, False)
            else:
                geometry = (made.kernel, made.stride, made.padding, made.dilation)
                launch.conv2d(input_of(kind, x, m), packed, layer.out_channels, *geometry, False)
    finally:
        config.choose = before
    return next(one for one in found if one.kernel.__name__ == "product_kernel")


def cost(r: Report, chosen: Config, arch: int, unit: int) -> float:
    """Instructions of a thread a multiply-add, raised where too few warps are resident."""
    threads = 32 * chosen.warps
    registers = -(-r.registers // 8) * 8
    blocks = min(REGISTERS // (registers * threads), SHARED[arch] // (r.shared + 1024))
    loop = max(r.loops, key=lambda body: sum(body.values()))
    step = 2 * unit  # of a 4-bit code
    each = sum(loop.values()) * threads / (chosen.bn * chosen.bm * step)
    return each * max(1.0, WARPS / max(blocks * chosen.warps, 1))


def choose(kind: str, x: str, m: int, device: Device) -> tuple[Config, float]:
    """The cheapest candidate."""
    layer = layer_of(kind, x)
    _, made = pack(layer.packed_weight(), layer.act, layer.activation, None)
    found = []
    for one in config.candidates(made, KINDS[x], m, device):
        # the wide ends of the range: what lies between is left to tuning
        if one.stages != (4 if m == 16 else 3):
            continue
        if x == "float32":  # three products a product: larger tiles spill
            if one.bn * one.bm > 64 * 32 or one.warps != 4:
                continue
        elif one.bm < min(m, 64) or one.bn < 64:
            continue
        r = report(compile_launch(launched(kind, x, m, one, device), device.arch))
        if r.stack or r.local or r.like("LDL|STL") or not r.loops:
            continue
        found.append((cost(r, one, device.arch, made.unit), one))
    best, one = min(found, key=lambda pair: pair[0])
    return one, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=sorted(config.DEVICES))
    for arch in parser.parse_args().arch:
        chosen = {}
        for kind in ("linear", "conv2d"):
            for x in KINDS:
                for m in (16, 64, 256):
                    name = f"{kind} {x} m{m}"
                    one, value = choose(kind, x, m, config.DEVICES[arch])
                    chosen[name] = asdict(one)
                    print(f"sm_{arch} {name:22} {one}  {value:.4f}", flush=True)
        path = config.FOLDER / f"sm_{arch}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"arch": arch, "configs": chosen}, indent=1) + "\n")
        os.replace(temporary, path)


if __name__ == "__main__":
    main()
