"""The second stage of a split reduction: adds the parts in order, then the epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from defakeq_kernels.triton.epilogue import finish, fma


@triton.jit(do_not_specialize=["m", "rows_a_scale", "residual_zero", "zero_point"])
def finish_kernel(
    partial, out_index, scale, bias, is_half, row_scales, residual, table, out,
    m, count, rows_a_scale, out_pitch,
    residual_scale, residual_zero, inverse, zero_point, low, high,
    SPLITS: tl.constexpr, SCALED: tl.constexpr, ACTIVATION: tl.constexpr, BN: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """One row and BN outputs of a product that was split.

    Args:
        partial: [SPLITS, m, count]; int32 where some outputs are float32 bits, see `is_half`.
        is_half: int32 [count], 1 where the parts are float32; None: all are of one type.
        SCALED: the parts are not scaled yet.
    """
    row = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    mask = n < count
    stored = tl.minimum(n, count - 1)
    parts = partial + row * count + stored
    total = tl.load(parts)
    as_float = total.to(tl.float32, bitcast=True)
    for _ in range(1, SPLITS):
        parts += m * count
        value = tl.load(parts)
        total += value
        if is_half is not None:
            as_float += value.to(tl.float32, bitcast=True)
    f = total.to(tl.float32)
    if is_half is not None:
        f = tl.where(tl.load(is_half + stored) != 0, as_float, f)
    y = tl.load(bias + stored)
    if row_scales is not None:
        f = f * tl.load(row_scales + row // rows_a_scale)
    if SCALED:
        y = fma(f, tl.load(scale + stored), y, PTX)
    else:
        y = f + y
    if out_index is None:
        channel = stored
    else:
        channel = tl.load(out_index + stored)
    finish(y, row * out_pitch + channel, mask, out, residual, table, residual_scale, residual_zero,
           inverse, zero_point, low, high, ACTIVATION, PTX)  # fmt: skip
