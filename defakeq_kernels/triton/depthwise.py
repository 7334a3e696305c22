"""Depthwise convolutions over NHWC: each output channel reads one input channel.

Memory-bound, so no tensor cores: a program holds a tile of pixels by channels in registers and adds
the kernel positions in order. Integer sums are exact; float sums take the CPU's steps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from defakeq_kernels.triton.epilogue import finish, fma


@triton.jit(
    do_not_specialize=[
        "m", "h", "w", "oh", "ow", "rows_a_scale", "act_zero", "residual_zero", "zero_point",
    ]
)  # fmt: skip
def depthwise_kernel(
    x, weights, float_weights, in_index, out_index, is_half, scale, bias, row_scales, residual,
    table, out,
    m, h, w, oh, ow, x_pitch, count, rows_a_scale, out_pitch, act_zero,
    residual_scale, residual_zero, inverse, zero_point, low, high,
    KERNEL_Y: tl.constexpr, KERNEL_X: tl.constexpr, STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr, PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr, INTEGER: tl.constexpr, ACTIVATION: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Pixels [BP] by stored channels [BC].

    Args:
        x: int8 or float NHWC pixels of `x_pitch` elements.
        weights: int16 levels [taps, count]; float_weights: float32 [taps, count].
        in_index: int32 [count], or None when stored channel n reads input n.
        is_half: int32 [count], 1 where `float_weights` counts; None: all or none, by INTEGER.
    """
    rows = tl.program_id(0) * BP + tl.arange(0, BP)
    n = tl.program_id(1) * BC + tl.arange(0, BC)
    channel_ok = n < count
    row_ok = rows < m
    if in_index is None:
        source = n
    else:
        source = tl.load(in_index + n, mask=channel_ok, other=0)
    image = rows // (oh * ow)
    rest = rows % (oh * ow)
    y0 = rest // ow * STRIDE_Y - PAD_Y
    x0 = rest % ow * STRIDE_X - PAD_X
    sums = tl.zeros((BP, BC), tl.int32)
    chain = tl.zeros((BP, BC), tl.float32)
    for tap in range(KERNEL_Y * KERNEL_X):
        yy = y0 + tap // KERNEL_X * DILATION_Y
        xx = x0 + tap % KERNEL_X * DILATION_X
        inside = row_ok & (yy >= 0) & (yy < h) & (xx >= 0) & (xx < w)
        mask = inside[:, None] & channel_ok[None, :]
        at = (((image * h + yy) * w + xx) * x_pitch)[:, None] + source[None, :]
        value = tl.load(x + at, mask=mask, other=0)
        if x.dtype.element_ty == tl.int8:
            level = tl.where(mask, value.to(tl.int32) - act_zero, 0)
        if INTEGER:
            a = tl.load(weights + tap * count + n, mask=channel_ok, other=0).to(tl.int32)
            sums += a[None, :] * level
        if is_half is not None or not INTEGER:
            if x.dtype.element_ty == tl.int8:
                real = level.to(tl.float32)
            else:
                real = value.to(tl.float32)
            b = tl.load(float_weights + tap * count + n, mask=channel_ok, other=0)
            chain = fma(real, b[None, :], chain, PTX)
    if INTEGER:
        f = sums.to(tl.float32)
        if is_half is not None:
            half = tl.load(is_half + n, mask=channel_ok, other=0)
            f = tl.where((half != 0)[None, :], chain, f)
    else:
        f = chain
    if row_scales is not None:
        f = f * tl.load(row_scales + rows // rows_a_scale, mask=row_ok, other=1.0)[:, None]
    factor = tl.load(scale + n, mask=channel_ok, other=0)
    start = tl.load(bias + n, mask=channel_ok, other=0)
    y = fma(f, factor[None, :], start[None, :], PTX)
    if out_index is None:
        channel = n
    else:
        channel = tl.load(out_index + n, mask=channel_ok, other=0)
    at = rows[:, None] * out_pitch + channel[None, :]
    finish(y, at, row_ok[:, None] & channel_ok[None, :], out, residual, table, residual_scale,
           residual_zero, inverse, zero_point, low, high, ACTIVATION, PTX)  # fmt: skip
