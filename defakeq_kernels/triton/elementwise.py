"""Steps between layers on int8 values, each in one pass over memory: gates and look-ups."""

from __future__ import annotations

import triton
import triton.language as tl

from defakeq_kernels.triton.epilogue import to_int8


@triton.jit
def _real(x, at, ok, scale, zero):
    value = tl.load(x + at, mask=ok, other=0)
    if value.dtype == tl.int8:
        value = (value.to(tl.int32) - zero).to(tl.float32) * scale
    return value


@triton.jit(do_not_specialize=["x_zero", "gate_zero", "zero"])
def gate_kernel(
    x, gate, out, count, pixel_channels, channels,
    x_scale, x_zero, gate_scale, gate_zero, inverse, zero, low, high, BLOCK: tl.constexpr,
):  # fmt: skip
    """x times a gate of each image and channel, as dequantizing, multiplying and quantizing do.

    Args:
        x: int8 or float32 [images, pixels, channels]; `pixel_channels`: pixels * channels.
        gate: int8 or float32 [images, channels].
        out: int8 or float32, shaped as x.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < count
    a = _real(x, at, ok, x_scale, x_zero)
    place = at // pixel_channels * channels + at % channels
    y = a * _real(gate, place, ok, gate_scale, gate_zero)
    if out.dtype.element_ty == tl.int8:
        tl.store(out + at, to_int8(y, inverse, zero, low, high).to(tl.int8), mask=ok)
    else:
        tl.store(out + at, y, mask=ok)


@triton.jit
def lookup_kernel(x, table, out, count, BLOCK: tl.constexpr):
    """table[x + 128] of int8 values; table: [256]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < count
    level = tl.load(x + at, mask=ok, other=0).to(tl.int32)
    tl.store(out + at, tl.load(table + (level + 128)), mask=ok)


@triton.jit(do_not_specialize=["zero", "out_zero"])
def layer_norm_kernel(
    x, gamma, beta, out, width, scale, zero, eps, inverse, out_zero, low, high,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Layer normalization of a row of `width` int8 or float32 values.

    The mean of squared differences, as the CPU has it; sums are in another order.
    """
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    ok = at < width
    value = _real(x, row + at, ok, scale, zero)
    count = width + 0.0
    mean = tl.sum(tl.where(ok, value, 0.0), axis=0) / count
    d = tl.where(ok, value - mean, 0.0)
    y = d * tl.rsqrt(tl.sum(d * d, axis=0) / count + eps)
    if gamma is not None:
        y = y * tl.load(gamma + at, mask=ok, other=0.0)
    if beta is not None:
        y = y + tl.load(beta + at, mask=ok, other=0.0)
    if out.dtype.element_ty == tl.int8:
        tl.store(out + row + at, to_int8(y, inverse, out_zero, low, high).to(tl.int8), mask=ok)
    else:
        tl.store(out + row + at, y, mask=ok)


@triton.jit(do_not_specialize=["zero", "start", "batches", "heads", "tokens"])
def levels_kernel(
    x, out, image, start, s_batch, s_token, s_head, s_d, batches, heads, tokens, width, zero,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Levels q - zero of int8 values at given strides, in half precision.

    Args:
        x: int8, `image` elements an image, the first value at `start`.
        out: float16 [images * batches, heads, tokens, width].
    """
    head = tl.program_id(0) % heads
    batch = tl.program_id(0) // heads
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    ok = (token < tokens)[:, None] & (d < width)[None, :]
    first = batch // batches * image + start + batch % batches * s_batch + head * s_head
    at = (token * s_token)[:, None] + (d * s_d)[None, :]
    level = tl.load(x + first.to(tl.int64) + at, mask=ok, other=0).to(tl.int32) - zero
    place = tl.program_id(0).to(tl.int64) * tokens * width
    tl.store(out + place + (token * width)[:, None] + d[None, :], level.to(out.dtype.element_ty),
             mask=ok)  # fmt: skip
