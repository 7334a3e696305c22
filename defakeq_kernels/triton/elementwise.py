"""Steps between layers, each in one pass over memory.

Gates, look-ups, means, layer normalization, the operands and the results of attention.
"""

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


@triton.jit(do_not_specialize=["x_rows", "out_rows", "zero", "out_zero"])
def layer_norm_kernel(
    x, gamma, beta, rows, out, width, x_rows, out_rows, scale, zero, eps, inverse, out_zero, low,
    high, BLOCK: tl.constexpr,
):  # fmt: skip
    """Layer normalization of a row of `width` int8 or float32 values.

    The mean of squared differences, as the CPU has it; sums are in another order.

    Args:
        rows: int32 [out_rows], the row of an image's `x_rows` that each row of the result comes
            from, -1 for one of zeros; None: the same row.
    """
    target = tl.program_id(0).to(tl.int64)
    row = target * width
    empty = target < 0
    if rows is not None:
        source = tl.load(rows + target % out_rows)
        empty = source < 0
        row = (target // out_rows * x_rows + tl.maximum(source, 0)) * width
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
        level = tl.where(empty, out_zero, to_int8(y, inverse, out_zero, low, high))
        tl.store(out + target * width + at, level.to(tl.int8), mask=ok)
    else:
        tl.store(out + target * width + at, tl.where(empty, 0.0, y), mask=ok)


@triton.jit(do_not_specialize=["positions", "span", "offset", "zero"])
def means_kernel(
    x, out, positions, channels, span, offset, factor, inverse, zero, low, high,
    FINAL: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over `span` positions of an image, or with FINAL over all and what becomes of them.

    Args:
        x: int8 or int32 [images, positions, channels].
        out: int32 [images, parts, channels]; with FINAL int8 or float32 [images, channels] of
            (sum - offset) * factor.
    """
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    begin = part * span
    last = tl.minimum(begin + span, positions)
    for first in range(begin, last, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        at = (image * positions + p)[:, None] * channels + c[None, :]
        ok = (p < last)[:, None] & (c < channels)[None, :]
        sums += tl.load(x + at, mask=ok, other=0).to(tl.int32)
    total = tl.sum(sums, axis=0)
    place = (image * tl.num_programs(2) + part) * channels + c
    if FINAL:
        y = (total - offset).to(tl.float32) * factor
        if out.dtype.element_ty == tl.int8:
            y = to_int8(y, inverse, zero, low, high)
        tl.store(out + place, y.to(out.dtype.element_ty), mask=c < channels)
    else:
        tl.store(out + place, total, mask=c < channels)


@triton.jit(do_not_specialize=["heads", "tokens", "batches", "zero"])
def heads_kernel(
    x, rows, out, s_image, s_head, s_token, heads, tokens, batches, width, factor,
    inverse, zero, low, high, BLOCK: tl.constexpr,
):  # fmt: skip
    """The heads of a token side by side, times `factor`.

    Args:
        x: float [images, batches * heads, tokens, width], the last dimension dense.
        rows: int32 [batches * tokens], where each token goes, or None.
        out: int8 or float32 [images, batches * tokens, heads * width].
    """
    token = tl.program_id(0)
    image = (token // (batches * tokens)).to(tl.int64)
    own = token % (batches * tokens)
    e = tl.arange(0, BLOCK)
    ok = e < heads * width
    head = own // tokens * heads + e // width
    at = image * s_image + head * s_head + own % tokens * s_token + e % width
    y = tl.load(x + at, mask=ok, other=0).to(tl.float32) * factor
    row = own
    if rows is not None:
        row = tl.load(rows + own)
    place = (image * batches * tokens + row) * heads * width + e
    if out.dtype.element_ty == tl.int8:
        y = to_int8(y, inverse, zero, low, high)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=ok)


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
