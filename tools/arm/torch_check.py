"""Runs the torch ops: judges the embedded detector's bytes and prints a digest of a convolution's.

    torch_check.py LAYER

LAYER is where the first call leaves the packed layer for the next: torch's reductions, which find
its scales, differ in the last bit between processors.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from defakeq_kernels import cpu_info, ops
from defakeq_kernels.nn import QuantConv2d
from defakeq_kernels.quantize import ActQuant

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from detector_golden import PROGRAM, compare, pictures


def convolution(path: Path) -> str:
    """Return a digest of what a mixed, pruned convolution gives."""
    rng = np.random.default_rng(3)
    conv = torch.nn.Conv2d(20, 24, 3, padding=1)
    with torch.no_grad():
        for parameter in conv.parameters():
            values = rng.integers(-90, 91, tuple(parameter.shape)).astype(np.float32) / 256
            parameter.copy_(torch.from_numpy(values))
    layer = QuantConv2d.from_float(
        conv,
        bits=4,
        keep_out=list(range(0, 24, 2)),
        half_out=[2, 4],
        act=ActQuant("static", scale=0.03125, zero_point=3),
    )
    if not path.exists():
        torch.save(layer.state_dict(), path)
    layer.load_state_dict(torch.load(path))
    x = torch.from_numpy(rng.integers(-64, 64, (2, 20, 9, 11)).astype(np.float32) / 32)
    with torch.no_grad():
        y = layer(x).contiguous().numpy()
    return hashlib.sha256(np.ascontiguousarray(y, "<f4").tobytes()).hexdigest()


def main() -> None:
    print(f"torch {torch.__version__}, {cpu_info()['selected']}", file=sys.stderr)
    data = torch.frombuffer(bytearray(PROGRAM.read_bytes()), dtype=torch.uint8)
    (scores,) = ops.run_program(data, [torch.from_numpy(pictures())], [[1]])
    compare("torch.ops.defakeq.run_program", scores.numpy())
    print(json.dumps({"QuantConv2d": convolution(Path(sys.argv[1]))}))


if __name__ == "__main__":
    main()
