"""Brings activations into the compact order of a layer: gather, quantize, lay out patches.

Only what the product cannot read in place comes here: float activations of an integer layer, pruned
inputs, channels that are no multiple of 16 bytes, and convolutions of so few channels that a kernel
position would waste most of a unit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from defakeq_kernels.triton.epilogue import to_int8


@triton.jit(do_not_specialize=["rows", "h", "w", "oh", "ow", "rows_a_scale", "zero"])
def prepare_kernel(
    x, index, scales, out,
    rows, columns, in_channels, h, w, oh, ow, x_pitch, rows_a_scale,
    inverse, zero, low, high,
    WINDOW: tl.constexpr, KERNEL_X: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Rows [BR] by columns [BC] of the compact activations.

    Args:
        x: float or int8 NHWC pixels of `x_pitch` elements.
        index: int32 [columns]: kernel position * in_channels + channel; -1: zero.
        scales: float32, the dynamic scale of every `rows_a_scale` rows, or None.
        out: [rows, columns] of x's type, or int8 of float values (which are then quantized).
        zero: also what lies outside of an image.
        WINDOW: rows are output pixels of a convolution.
    """
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    source = tl.load(index + c, mask=c < columns, other=-1)
    mask = (r < rows)[:, None] & (c < columns)[None, :]
    used = mask & (source >= 0)[None, :]
    if WINDOW:
        tap = source // in_channels
        image = r // (oh * ow)
        rest = r % (oh * ow)
        y = (rest // ow * STRIDE_Y - PAD_Y)[:, None] + (tap // KERNEL_X * DILATION_Y)[None, :]
        xx = (rest % ow * STRIDE_X - PAD_X)[:, None] + (tap % KERNEL_X * DILATION_X)[None, :]
        inside = (y >= 0) & (y < h) & (xx >= 0) & (xx < w)
        at = (((image * h)[:, None] + y) * w + xx) * x_pitch + (source % in_channels)[None, :]
    else:
        inside = used
        at = (r * x_pitch)[:, None] + source[None, :]
    value = tl.load(x + at, mask=used & inside, other=0)
    if x.dtype.element_ty != tl.int8 and out.dtype.element_ty == tl.int8:
        value = value.to(tl.float32)
        if scales is not None:
            largest = tl.load(scales + r // rows_a_scale, mask=r < rows, other=1.0)
            value = to_int8(
                value,
                tl.div_rn(tl.full(largest.shape, 1.0, tl.float32), largest)[:, None],
                zero,
                low,
                high,
            )
        else:
            value = to_int8(value, inverse, zero, low, high)
    elif x.dtype.element_ty == tl.int8:
        value = tl.where(inside, value.to(tl.int32), zero)
    value = tl.where(used, value, 0)
    tl.store(out + r[:, None] * columns + c[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["parts", "steps"])
def largest_kernel(x, out, length, parts, steps, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """max|x| of each of the `parts` of a row, or with SCALE max|x| / 127 and 1 for zeros.

    Args:
        x: [rows, length]; NaN counts as nothing. A part is `steps` times BLOCK elements.
        out: float32 [rows, parts].
    """
    row = (tl.program_id(0) // parts).to(tl.int64)
    begin = (tl.program_id(0) % parts).to(tl.int64) * steps * BLOCK
    largest = tl.zeros((BLOCK,), tl.float32)
    for step in range(0, steps):
        at = begin + step * BLOCK + tl.arange(0, BLOCK)
        value = tl.abs(tl.load(x + row * length + at, mask=at < length, other=0).to(tl.float32))
        largest = tl.where(value > largest, value, largest)
    found = tl.max(largest, axis=0)
    if SCALE:
        found = tl.where(found > 0, tl.div_rn(found, 127.0), 1.0)
    tl.store(out + tl.program_id(0), found)


@triton.jit(do_not_specialize=["zero"])
def quantize_kernel(x, out, count, factor, inverse, zero, low, high, BLOCK: tl.constexpr):
    """int8 values of float ones times `factor`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count, other=0).to(tl.float32)
    value = to_int8(value * factor, inverse, zero, low, high)
    tl.store(out + at, value.to(tl.int8), mask=at < count)


@triton.jit(do_not_specialize=["zero"])
def dequantize_kernel(x, out, count, scale, zero, BLOCK: tl.constexpr):
    """float32 values of int8 ones."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count, other=0).to(tl.int32) - zero
    tl.store(out + at, value.to(tl.float32) * scale, mask=at < count)
