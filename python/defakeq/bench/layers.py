"""Our side of a comparison: packed layers of a given shape, and a native loop over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.bench.shapes import Work, parse_work
from defakeq.bench.timing import CHUNK_SECONDS, Contender
from defakeq_kernels import _core
from defakeq_kernels.packed import HALF_BITS, PackedWeight, Segment, pack_codes, row_bytes

ACT = {"mode": "static", "scale": 0.03, "zero_point": 3, "bits": 8}
OUT = {"dtype": "int8", "scale": 0.05, "zero_point": 3, "bits": 8}
# After a relu the smallest integer stands for 0.
RELU_ACT = {"mode": "static", "scale": 0.03, "zero_point": -128, "bits": 8}
RELU_OUT = {"dtype": "int8", "scale": 0.03, "zero_point": -128, "bits": 8}

_RATES = {"gemm": 2e11, "conv": 2e11, "gemv": 1e11, "dwconv": 3e10, "small": 1e9}
_COPY_BYTES = 8 << 20


def copies_of(work: Work, bits: int) -> int:
    """How many copies of the weights each engine takes in turn.

    Enough that the cost of a call from Python is lost in them, as few as time asks for, and not
    more than a last level of the cache holds beside other data: 2 to 32.
    """
    by_time = math.ceil(CHUNK_SECONDS / (work.macs / _RATES[work.kind]))
    by_size = _COPY_BYTES * 8 // max(1, work.outputs * work.reduction * bits)
    return int(min(max(2, min(max(by_time, 3), by_size)), 32))


def random_layer(work: Work, bits: int, rng: np.random.Generator) -> PackedWeight:
    """A layer of this shape with random integer weights, zero points and bias."""
    dense = work.keep_out if not work.half_out.size else np.setdiff1d(work.keep_out, work.half_out)
    inputs = np.setdiff1d(work.keep_in, work.half_in).astype(np.int32)
    taps = work.kernel[0] * work.kernel[1]
    reduction = taps * (1 if work.kind == "dwconv" else len(inputs))
    codes = rng.integers(0, 1 << bits, (len(dense), reduction), dtype=np.uint8)
    middle = 1 if bits == 1 else 1 << (bits - 1)
    segments = [
        Segment(
            bits=bits,
            out_index=dense.astype(np.int32),
            codes=pack_codes(codes, bits),
            scale=np.full((len(dense), 1), 2e-3, np.float32),
            zero_point=np.clip(
                middle + rng.integers(-2, 3, (len(dense), 1), dtype=np.int32), 0, 255
            ).astype(np.int32),
        )
    ]
    assert segments[0].codes.shape[1] == row_bytes(reduction, bits)
    if work.half_out.size:
        rows = rng.standard_normal((len(work.half_out), reduction)) * 0.05
        segments.append(Segment(HALF_BITS, work.half_out, rows.astype(np.float16)))
    stored = sum(s.count for s in segments)
    half = work.half_in
    columns = rng.standard_normal((stored, taps * len(half))) * 0.05
    every_input = work.kind == "dwconv" or len(inputs) == work.inputs
    ins = 1 if work.kind == "dwconv" else work.inputs
    shape = (work.outputs, ins, *work.kernel) if work.is_conv else (work.outputs, ins)
    return PackedWeight(
        kind="conv2d" if work.is_conv else "linear",
        shape=shape,
        segments=tuple(segments),
        stride=(work.stride, work.stride),
        padding=work.padding,
        dilation=(1, 1),
        groups=work.groups,
        group_size=0,
        in_index=None if every_input else inputs,
        half_in_index=half if half.size else None,
        half_in_weight=columns.astype(np.float16) if half.size else None,
        bias=rng.standard_normal(stored).astype(np.float32),
    ).validate()


def layer_spec(work: Work, bits: int, rng: np.random.Generator) -> dict[str, Any]:
    """What the native packer takes: int8 to int8 with bias, and with relu for convolutions."""
    weight = random_layer(work, bits, rng)
    if work.is_conv:
        return weight.spec(RELU_ACT, "relu", RELU_OUT)
    return weight.spec(ACT, "none", OUT)


def layer_input(
    work: Work, rng: np.random.Generator
) -> tuple[NDArray[np.int8], NDArray[np.float32] | None]:
    """The int8 input [rows, C] or [1, H, W, C], and its half-precision channels as float32."""
    lead = (1, *work.size) if work.is_conv else (work.rows,)
    x = rng.integers(-128, 128, (*lead, work.inputs), dtype=np.int8)
    if not work.half_in.size:
        return x, None
    return x, rng.standard_normal((*lead, len(work.half_in)), dtype=np.float32)


def native_contender(
    work: Work, bits: int, threads: int, cold: bool = False, copies: int | None = None
) -> Contender:
    """The kernels on this work, timed by a native loop over preallocated buffers.

    Args:
        work: the layer.
        bits: width of its integer weights, 1 to 8.
        threads: threads to use.
        cold: empty the caches before each call.
        copies: copies of the weights; None: `copies_of`.
    """
    rng = np.random.default_rng(0)
    spec = layer_spec(work, bits, rng)
    count = copies_of(work, bits) if copies is None else copies
    blobs = [_core.pack_layer(spec) for _ in range(count)]
    x, half_input = layer_input(work, rng)
    inner = 0

    def sample(repeats: int, calls: int, processor_time: bool = False) -> float:
        times = _core.time_layer(
            blobs, x, repeats, calls, threads, cold, half_input, processor_time
        )
        return float(np.median(times))

    def run(processor_time: bool) -> float:
        nonlocal inner
        if cold:
            return sample(3, 1, processor_time)
        if inner == 0:
            # Whole turns over the copies, as a graph that holds them all does.
            inner = count * max(1, round(CHUNK_SECONDS / (sample(1, count) * count)))
        return sample(1, inner, processor_time)

    half = len(work.half_out) / max(1, len(work.keep_out)) + len(work.half_in) / work.inputs
    mean_bits = bits * (1 - half) + HALF_BITS * half
    moved = work.bytes_moved(mean_bits)
    return Contender(work.name, bits, "defakeq", run, work.macs, moved, count)


def small_op_contenders(work: Work) -> list[Contender]:
    """One operator on a few numbers through torch: the cost of the call itself.

    Raises:
        ImportError: torch, or the torch operators, are not there.
    """
    import torch

    from defakeq.bench.timing import repeated
    from defakeq_kernels import ops as _registered  # noqa: F401

    numbers = work.inputs
    x, y = torch.rand(numbers), torch.rand(numbers)
    rng = np.random.default_rng(0)
    packed = torch.from_numpy(_core.pack_layer(layer_spec(work, 8, rng)))
    row = torch.zeros(1, numbers, dtype=torch.int8)
    ops = torch.ops.defakeq
    quantize, linear, conv2d = ops.quantize, ops.linear, ops.conv2d
    pixel = row.reshape(1, numbers, 1, 1)
    window = (1, 1, 1, 1, 0, 0, 1, 1)
    conv = parse_work(f"conv 1x1 {numbers}@1x1")
    conv_packed = torch.from_numpy(_core.pack_layer(layer_spec(conv, 8, rng)))
    calls: list[tuple[str, Callable[[], object]]] = [
        ("defakeq", lambda: quantize(x, 0.1, 0, 8)),
        ("defakeq linear", lambda: linear(row, packed, numbers, True)),
        ("defakeq conv2d", lambda: conv2d(pixel, conv_packed, numbers, window, True)),
        ("torch add", lambda: torch.add(x, y)),
    ]
    return [Contender(work.name, 8, name, _no_grad(repeated(call, 1))) for name, call in calls]


def _no_grad(run: Callable[[bool], float]) -> Callable[[bool], float]:
    import torch

    def inside(processor_time: bool) -> float:
        with torch.no_grad():
            return run(processor_time)

    return inside
