"""A few rows times a matrix, in one launch: what reading the weights limits.

A block holds BN outputs of all rows and the whole reduction. Its SLICES warps take turns at the
steps of the reduction, one batch of a batched product each, and add their sums at the end in a
fixed order. Weights are read once, SLICES byte tiles of a row at a time, several stages ahead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from defakeq_kernels.triton.epilogue import finish, fma
from defakeq_kernels.triton.unpack import (
    bits_before,
    fields_of,
    float_step,
    float_weights,
    int8_weights,
    log2_step,
    plane_count,
    plane_width,
    step_units,
)


@triton.jit
def _bytes(
    w, stored, count, steps, step, S: tl.constexpr, PLANE: tl.constexpr, BITS: tl.constexpr,
    EVEN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Byte tiles [SLICES, BN, UNIT] of plane `PLANE` that hold unit `S` of the steps `step`."""
    fields: tl.constexpr = 8 // plane_width(BITS, PLANE)
    tiles: tl.constexpr = step_units(BITS) // fields
    before: tl.constexpr = bits_before(BITS, PLANE)
    plane = w + count * steps * (step_units(BITS) * UNIT * before // 8)
    k = tl.arange(0, UNIT)[None, None, :]
    at = (stored * (steps * tiles * UNIT))[None, :, None]
    at = at + ((step * tiles + S // fields) * UNIT)[:, None, None] + k
    if EVEN:
        found = tl.load(plane + at)
    else:
        found = tl.load(plane + at, mask=(step < steps)[:, None, None], other=0)
    return found


@triton.jit(
    do_not_specialize=[
        "m", "x_vectors", "channels", "units", "rows_a_scale", "residual_zero", "zero_point",
    ]
)  # fmt: skip
def gemv_kernel(
    x, w, out_index, scale, zero, correction, bias, row_scales, residual, table, out,
    m, x_vectors, channels, units, count, rows_a_scale, out_pitch,
    residual_scale, residual_zero, inverse, zero_point, low, high,
    BITS: tl.constexpr, UNIT: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr,
    ASYMMETRIC: tl.constexpr, EVEN: tl.constexpr, ACTIVATION: tl.constexpr, SLICES: tl.constexpr,
    VECTOR: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """BN outputs of up to BM rows.

    Args:
        x: int8, float16 or bfloat16 rows of `x_vectors` times VECTOR bytes, of which `channels`
            elements count.
        w: the weights of the layer's only segment; `units`: of the reduction.
        out_index: int32 [count], or None when stored output n is output n.
        SPAN: units of a scale group, no more than a step has unless GROUPS is 1.
        EVEN: whether steps and channels leave no rest.
    """
    INTEGER: tl.constexpr = x.dtype.element_ty == tl.int8
    DTYPE: tl.constexpr = x.dtype.element_ty
    vector: tl.constexpr = 8 * VECTOR // DTYPE.primitive_bitwidth
    A_STEP: tl.constexpr = step_units(BITS)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    stored = tl.minimum(n, count - 1)
    rows = tl.arange(0, BM)
    row_at = (rows * (x_vectors * vector))[None, None, :]
    row_ok = (rows < m)[None, None, :]
    k = tl.arange(0, UNIT)[None, :, None]
    slices = tl.arange(0, SLICES)
    steps = (units + A_STEP - 1) // A_STEP
    kind: tl.constexpr = tl.int32 if INTEGER else tl.float32
    acc = tl.zeros((SLICES, BN, BM), kind)
    sums = tl.zeros((SLICES, 16, BM), tl.int32)
    y = tl.zeros((SLICES, BN, BM), tl.float32)
    at = stored[None, :] * GROUPS + slices[:, None] * 0
    z = tl.zeros((SLICES, BN), tl.int32)
    if ASYMMETRIC and GROUPS == 1:
        z = tl.load(zero + at)
    for it in tl.range(0, tl.cdiv(steps, SLICES), num_stages=STAGES):
        step = it * SLICES + slices
        for s in tl.static_range(A_STEP):
            if s % fields_of(BITS, 0) == 0:
                p0 = _bytes(w, stored, count, steps, step, s, 0, BITS, EVEN, UNIT)
            if s == 0:
                p1 = p0
                p2 = p0
            if plane_count(BITS) > 1 and s % fields_of(BITS, 1) == 0:
                p1 = _bytes(w, stored, count, steps, step, s, 1, BITS, EVEN, UNIT)
            if plane_count(BITS) > 2 and s % fields_of(BITS, 2) == 0:
                p2 = _bytes(w, stored, count, steps, step, s, 2, BITS, EVEN, UNIT)
            unit = step * A_STEP + s
            c = (unit * UNIT)[:, None, None] + k
            if EVEN:
                b = tl.load(x + row_at + c, mask=row_ok & (c >= 0), other=0)
            else:
                b = tl.load(x + row_at + c, mask=row_ok & (c < channels), other=0)
            group = unit // SPAN
            if GROUPS > 1:
                group = tl.minimum(group, GROUPS - 1)
                at = stored[None, :] * GROUPS + group[:, None]
                if ASYMMETRIC and (s % SPAN == 0):
                    z = tl.load(zero + at)
            if INTEGER:
                a = int8_weights(p0, p1, p2, BITS, s, PTX)
                acc = tl.dot(a, b, acc, out_dtype=tl.int32)
                if ASYMMETRIC:
                    ones = tl.full((SLICES, 16, UNIT), 1, tl.int8)
                    sums = tl.dot(ones, b, sums, out_dtype=tl.int32)
            else:
                level = z[:, :, None] if ASYMMETRIC else None
                a = float_weights(p0, p1, p2, BITS, s, DTYPE, PTX, level)
                acc = tl.dot(a, b, acc)
            if GROUPS > 1 and (s + 1) % SPAN == 0:
                f = tl.load(scale + at)
                if not EVEN:
                    f = tl.where((unit < units)[:, None], f, 0.0)
                f = f * (1.0 / float_step(BITS, DTYPE))
                y = fma(acc, f[:, :, None], y, PTX)
                acc = tl.zeros((SLICES, BN, BM), kind)
    if GROUPS > 1:
        result = tl.sum(y, axis=0)
    elif INTEGER:
        total = tl.sum(acc, axis=0) >> log2_step(BITS)
        total += tl.load(correction + stored)[:, None]
        if ASYMMETRIC:
            ones_of = tl.max(tl.sum(sums, axis=0), axis=0)
            total -= tl.load(zero + stored)[:, None] * ones_of[None, :]
        result = total.to(tl.float32)
    else:
        result = tl.sum(acc, axis=0) * (1.0 / float_step(BITS, DTYPE))
    if row_scales is not None:
        result = result * tl.load(row_scales + tl.minimum(rows, m - 1) // rows_a_scale)[None, :]
    start = tl.load(bias + stored)[:, None] + result * 0
    if GROUPS > 1:
        result = start + result
    else:
        result = fma(result, tl.load(scale + stored)[:, None], start, PTX)
    if out_index is None:
        channel = n
    else:
        channel = tl.load(out_index + stored)
    place = rows[None, :] * out_pitch + channel[:, None]
    mask = (n < count)[:, None] & (rows < m)[None, :]
    finish(result, place, mask, out, residual, table, residual_scale, residual_zero, inverse,
           zero_point, low, high, ACTIVATION, PTX)  # fmt: skip
