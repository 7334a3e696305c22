"""Linear layers and convolutions as one matrix product, for every width, in one launch.

Outputs are the rows of the tensor core's first operand and pixels (or rows of x) the columns of
the second: weights are expanded in registers, activations go straight to the tensor core, and few
rows waste little. An output tile has one width; several widths in a layer are branches
of one kernel. Convolutions read NHWC pixels in place: a position outside of the image is read from
a row of the zero point (`outside`) instead of being masked.

With SPLITS > 1 each program takes a part of the reduction and stores exact partial sums, which
`split.finish_kernel` adds in a fixed order.
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

HALF = tl.constexpr(16)


@triton.jit
def _pixels(rows, h, w, oh, ow, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
            PAD_Y: tl.constexpr, PAD_X: tl.constexpr):  # fmt: skip
    """Image, first row and first column of the window of each output pixel."""
    image = rows // (oh * ow)
    rest = rows % (oh * ow)
    return image * h, rest // ow * STRIDE_Y - PAD_Y, rest % ow * STRIDE_X - PAD_X


@triton.jit
def _x_tile(
    x, outside, j, units, channels, x_pitch, group_at, place, y0, x0, h, w,
    KERNEL_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    WINDOW: tl.constexpr, TAP_UNITS: tl.constexpr, RAGGED: tl.constexpr, TAIL: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """The activations [UNIT, BM] of unit `j`; raw zeros on padding."""
    k = tl.arange(0, UNIT)
    if WINDOW:
        tap = j // TAP_UNITS
        c = (j % TAP_UNITS) * UNIT + k
        yy = y0 + tap // KERNEL_X * DILATION_Y
        xx = x0 + tap % KERNEL_X * DILATION_X
        inside = (yy >= 0) & (yy < h) & (xx >= 0) & (xx < w)
        at = ((place + yy) * w + xx) * x_pitch + group_at
        near = x + (at[None, :] + c[:, None])
        far = outside + (tl.zeros_like(at)[None, :] + c[:, None])
        pointers = tl.where(inside[None, :], near, far)
    else:
        c = j * UNIT + k
        pointers = x + ((place * x_pitch + group_at)[None, :] + c[:, None])
    # The smallest tile is mostly padding: rows that are not there cost no traffic.
    FEW: tl.constexpr = not WINDOW and place.shape[0] == 16
    if RAGGED or TAIL or FEW:
        mask = (c < channels if RAGGED else c >= 0)[:, None]
        if TAIL:
            mask = mask & (j < units)
        if FEW:
            mask = mask & (y0 < h)[None, :]
        tile = tl.load(pointers, mask=mask, other=0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def _byte_tile(w, rows, row_bytes, at, UNIT: tl.constexpr):
    k = tl.arange(0, UNIT)
    return tl.load(w + ((rows * row_bytes)[:, None] + (at + k)[None, :]))


@triton.jit
def _plane_tile(
    w, local, count, steps, it, S: tl.constexpr, PLANE: tl.constexpr, BITS: tl.constexpr,
    UNIT: tl.constexpr, ONLY: tl.constexpr,
):  # fmt: skip
    """The byte tile of plane `PLANE` that holds unit `S` of step `it`."""
    fields: tl.constexpr = 8 // plane_width(BITS, PLANE)
    tiles: tl.constexpr = step_units(BITS) // fields
    before: tl.constexpr = bits_before(BITS, PLANE)
    start = count * steps * (step_units(BITS) * UNIT * before // 8)
    at = (it * tiles + S // fields) * UNIT
    plane = w + start
    if BITS == 8 and ONLY:
        # int8 from the load on, so that Hopper's products can read it from shared memory
        plane = plane.to(tl.pointer_type(tl.int8))
    return _byte_tile(plane, local, steps * tiles * UNIT, at, UNIT)


@triton.constexpr_function
def _flushes(unit, a_step, span):
    """Whether a scale group may end after this unit of a step."""
    return (unit + 1) % min(a_step, span) == 0


@triton.jit
def _segment(
    x, outside, w, local, count, units, channels, x_pitch, group_at, place, y0, x0, h, wd,
    scale, zero, correction, row_scale, stored, y, split, act_zero,
    BITS: tl.constexpr, KERNEL_X: tl.constexpr, DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr, WINDOW: tl.constexpr, TAP_UNITS: tl.constexpr, RAGGED: tl.constexpr,
    TAIL: tl.constexpr, UNIT: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr,
    ASYMMETRIC: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, PTX: tl.constexpr, ONLY: tl.constexpr,
):  # fmt: skip
    """Outputs [BN, BM] of one segment.

    One scale an output: the sums before scaling (int32, or float32). Scale groups: `y` and all
    groups' scaled sums.
    """
    INTEGER: tl.constexpr = x.dtype.element_ty == tl.int8 and BITS != 16
    DTYPE: tl.constexpr = tl.float16 if x.dtype.element_ty == tl.int8 else x.dtype.element_ty
    A_STEP: tl.constexpr = 1 if BITS == 16 else step_units(BITS)
    steps = (units + A_STEP - 1) // A_STEP
    # A part ends where a scale group ends.
    ALIGN: tl.constexpr = SPAN // A_STEP if GROUPS > 1 and SPAN > A_STEP else 1
    share = (steps + SPLITS * ALIGN - 1) // (SPLITS * ALIGN) * ALIGN
    first = split * share
    last = tl.minimum(first + share, steps)
    acc_type: tl.constexpr = tl.int32 if INTEGER else tl.float32
    acc = tl.zeros((BN, BM), acc_type)
    sums = tl.zeros((16, BM), tl.int32)
    for it in range(first, last):
        if BITS == 16:
            k = tl.arange(0, UNIT)
            half = (w + 0).to(tl.pointer_type(tl.float16))
            a = tl.load(half + ((local * (units * UNIT))[:, None] + (it * UNIT + k)[None, :]))
            b = _x_tile(
                x,
                outside,
                it,
                units,
                channels,
                x_pitch,
                group_at,
                place,
                y0,
                x0,
                h,
                wd,
                KERNEL_X,
                DILATION_Y,
                DILATION_X,
                WINDOW,
                TAP_UNITS,
                RAGGED,
                False,
                UNIT,
            )
            if x.dtype.element_ty == tl.int8:
                b = b.to(tl.float16) - act_zero
            acc = tl.dot(a.to(DTYPE), b, acc, input_precision=PRECISION)
        else:
            for s in tl.static_range(A_STEP):
                j = it * A_STEP + s
                if s % fields_of(BITS, 0) == 0:
                    p0 = _plane_tile(w, local, count, steps, it, s, 0, BITS, UNIT, ONLY)
                if s == 0:
                    p1 = p0
                    p2 = p0
                if plane_count(BITS) > 1 and s % fields_of(BITS, 1) == 0:
                    p1 = _plane_tile(w, local, count, steps, it, s, 1, BITS, UNIT, ONLY)
                if plane_count(BITS) > 2 and s % fields_of(BITS, 2) == 0:
                    p2 = _plane_tile(w, local, count, steps, it, s, 2, BITS, UNIT, ONLY)
                b = _x_tile(
                    x,
                    outside,
                    j,
                    units,
                    channels,
                    x_pitch,
                    group_at,
                    place,
                    y0,
                    x0,
                    h,
                    wd,
                    KERNEL_X,
                    DILATION_Y,
                    DILATION_X,
                    WINDOW,
                    TAP_UNITS,
                    RAGGED,
                    TAIL,
                    UNIT,
                )
                if INTEGER:
                    a = int8_weights(p0, p1, p2, BITS, s, PTX)
                    acc = tl.dot(a, b, acc, out_dtype=tl.int32)
                    if ASYMMETRIC:
                        ones = tl.full((16, UNIT), 1, tl.int8)
                        sums = tl.dot(ones, b, sums, out_dtype=tl.int32)
                else:
                    level = None
                    if ASYMMETRIC:
                        g = tl.minimum(j // SPAN, GROUPS - 1) if GROUPS > 1 else 0
                        level = tl.load(zero + stored * GROUPS + g)[:, None]
                    a = float_weights(p0, p1, p2, BITS, s, DTYPE, PTX, level)
                    acc = tl.dot(a, b, acc, input_precision=PRECISION)
                if GROUPS > 1 and _flushes(s, A_STEP, SPAN):
                    if SPAN <= A_STEP:
                        ended = j < units
                    else:
                        ended = ((j + 1) % SPAN == 0) & (j < units)
                    if ended:
                        g = j // SPAN
                        if INTEGER:
                            f = _exact(
                                acc,
                                sums,
                                zero,
                                correction,
                                stored * GROUPS + g,
                                BITS,
                                ASYMMETRIC,
                                True,
                            ).to(tl.float32)
                        else:
                            f = acc * (1.0 / float_step(BITS, DTYPE))
                        if row_scale is not None:
                            f = f * row_scale[None, :]
                        y = fma(f, tl.load(scale + stored * GROUPS + g)[:, None], y, PTX)
                        acc = tl.zeros((BN, BM), acc_type)
                        sums = tl.zeros((16, BM), tl.int32)
    if GROUPS > 1 and BITS != 16:
        result = y
    elif INTEGER:
        result = _exact(acc, sums, zero, correction, stored, BITS, ASYMMETRIC, split == 0)
    elif BITS != 16:
        result = acc * (1.0 / float_step(BITS, DTYPE))
    else:
        result = acc
    return result


@triton.jit
def _exact(
    acc, sums, zero, correction, at, BITS: tl.constexpr, ASYMMETRIC: tl.constexpr, add
):  # fmt: skip
    """sum(level * (x - zero point)) in int32 from the sums of v * x and of x."""
    acc = acc >> log2_step(BITS)
    acc += tl.where(add, tl.load(correction + at), 0)[:, None]
    if ASYMMETRIC:
        total = tl.max(sums, axis=0)
        acc -= tl.load(zero + at)[:, None] * total[None, :]
    return acc


@triton.jit
def _tile(
    x, outside, w, local, seg_count, units, channels, x_pitch, group_at, place, y0, x0, h, wd,
    scale, zero, correction, bias, scales, chain, stored, split, act_zero, partial, rows, m, count,
    mask, BITS: tl.constexpr, KERNEL_X: tl.constexpr, DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr, WINDOW: tl.constexpr, TAP_UNITS: tl.constexpr, RAGGED: tl.constexpr,
    TAIL: tl.constexpr, UNIT: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr,
    ASYMMETRIC: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, PTX: tl.constexpr, ONLY: tl.constexpr,
):  # fmt: skip
    """bias + chain + scaled sums [BN, BM]; with SPLITS > 1 the sums go to `partial`."""
    y = tl.zeros((BN, BM), tl.float32)
    if GROUPS > 1 and BITS != 16 and SPLITS == 1:
        y = _start(y, bias, chain, stored)
    sums = _segment(
        x, outside, w, local, seg_count, units, channels, x_pitch, group_at, place, y0, x0, h, wd,
        scale, zero, correction, scales, stored, y, split, act_zero,
        BITS, KERNEL_X, DILATION_Y, DILATION_X, WINDOW, TAP_UNITS, RAGGED, TAIL, UNIT,
        GROUPS, SPAN, ASYMMETRIC, SPLITS, PRECISION, BN, BM, PTX, ONLY,
    )  # fmt: skip
    if SPLITS > 1:
        at = ((split * m + rows) * count)[None, :] + stored[:, None]
        if GROUPS > 1 and BITS == 16:
            sums = sums * tl.load(scale + stored * GROUPS)[:, None]
        if sums.dtype == tl.float32 and partial.dtype.element_ty == tl.int32:
            sums = sums.to(tl.int32, bitcast=True)
        tl.store(partial + at, sums, mask=mask)
    elif GROUPS > 1 and BITS != 16:
        y = sums
    else:
        f = sums.to(tl.float32)
        if scales is not None:
            f = f * scales[None, :]
        y = _start(y, bias, chain, stored)
        y = fma(f, tl.load(scale + stored * GROUPS)[:, None], y, PTX)
    return y


@triton.jit
def _start(y, bias, chain, stored):
    """What the scaled sums are added to; loaded late, so that loops have its registers."""
    y += tl.load(bias + stored)[:, None]
    if chain is not None:
        y += chain
    return y


@triton.jit
def _place(pid, tile_count, row_tiles, DEPTH: tl.constexpr):
    """Tile of outputs and tile of rows: blocks that run together share both in the L2 cache."""
    width = DEPTH * tile_count
    first = pid // width * DEPTH
    size = tl.minimum(row_tiles - first, DEPTH)
    return pid % width // size, first + pid % width % size


# Each value of a specialized integer that is 1, or the first multiple of 16, is a compilation:
# only what decides how wide loads and stores are is specialized.
@triton.jit(
    do_not_specialize=[
        "tile_count", "m", "h", "wd", "oh", "ow", "x_vectors", "channel_vectors", "units",
        "rows_a_scale", "half_columns", "act_zero", "residual_zero", "zero_point",
    ]
)  # fmt: skip
def product_kernel(
    x, outside, w, tiles, out_index, scale, zero, correction, bias, row_scales, half_x, half_w,
    residual, table, out, partial,
    tile_count, m, h, wd, oh, ow, x_vectors, channel_vectors, units, count, rows_a_scale,
    half_columns, out_pitch, act_zero,
    residual_scale, residual_zero, inverse, zero_point, low, high,
    BITS: tl.constexpr, KERNEL_X: tl.constexpr, STRIDE_Y: tl.constexpr, STRIDE_X: tl.constexpr,
    PAD_Y: tl.constexpr, PAD_X: tl.constexpr, DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    WINDOW: tl.constexpr, TAP_UNITS: tl.constexpr, RAGGED: tl.constexpr, TAIL: tl.constexpr,
    UNIT: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr, ASYMMETRIC: tl.constexpr,
    CONV_GROUPS: tl.constexpr, SPLITS: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, VECTOR: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """A tile [BN outputs, BM rows] of a linear layer or a convolution with its epilogue.

    Args:
        x: int8, float16, bfloat16 or float32 rows (pixels), `x_vectors` times VECTOR bytes each.
        channel_vectors: VECTOR bytes (16 or 8) of channels of a convolution group.
        outside: [channels] values of a pixel outside of the image.
        w: the layer's weights; `tiles`: int32 [tiles, 8] of `GpuLayout.tiles`, or None when all
            outputs have one width and one convolution group.
        out_index: int32 [count], or None when stored output n is output n.
        row_scales: float32, one for each `rows_a_scale` rows, or None.
        half_x, half_w: float32 [m, half_columns], [count, half_columns], or None.
        partial: int32 or float32 [SPLITS, m, count] when SPLITS > 1.
        BITS: the distinct widths as a bit mask.
    """
    pid_n, pid_m = _place(tl.program_id(0), tile_count, tl.cdiv(m, BM), 8)
    split = tl.program_id(1)
    vector: tl.constexpr = 8 * VECTOR // x.dtype.element_ty.primitive_bitwidth
    x_pitch = x_vectors * vector
    channels = channel_vectors * vector
    lanes = tl.arange(0, BN)
    if tiles is None:
        first = pid_n * BN
        limit = count
        group = 0
        bits = 0
        base = w
        seg_first = 0
        seg_count = count
    else:
        tile = tiles + pid_n * 8
        bits = tl.load(tile)
        first = tl.load(tile + 1)
        limit = tl.load(tile + 2)
        group = tl.load(tile + 3)
        base = w + tl.load(tile + 4).to(tl.int64) * 16
        seg_first = tl.load(tile + 5)
        seg_count = tl.load(tile + 6)
    base = tl.multiple_of(base, 16)
    stored = tl.minimum(first + lanes, limit - 1)
    local = stored - seg_first
    rows = pid_m * BM + tl.arange(0, BM)
    safe = tl.minimum(rows, m - 1)
    # Rows of a linear layer are those of an image of one column.
    place = safe
    y0 = rows
    x0 = rows
    height = m
    if WINDOW:
        height = h
        place, y0, x0 = _pixels(safe, h, wd, oh, ow, STRIDE_Y, STRIDE_X, PAD_Y, PAD_X)
    group_at = group * channels if CONV_GROUPS > 1 else 0
    mask = (first + lanes < limit)[:, None] & (rows < m)[None, :]
    scales = None
    if row_scales is not None:
        scales = tl.load(row_scales + safe // rows_a_scale)

    chain = None
    if half_x is not None:
        k = tl.arange(0, 16)
        chain = tl.zeros((BN, BM), tl.float32)
        for c in range(0, half_columns, 16):
            a = tl.load(half_w + ((stored * half_columns)[:, None] + (c + k)[None, :]))
            b = tl.load(half_x + ((safe * half_columns)[None, :] + (c + k)[:, None]))
            chain = tl.dot(a, b, chain, input_precision=PRECISION)

    y = tl.zeros((BN, BM), tl.float32)
    for b in tl.static_range(1, 17):
        if 1 << b == BITS:
            y = _tile(
                x, outside, base, local, seg_count, units, channels, x_pitch, group_at, place, y0,
                x0, height, wd, scale, zero, correction, bias, scales, chain, stored, split,
                act_zero, partial, rows, m, count, mask,
                b, KERNEL_X, DILATION_Y, DILATION_X, WINDOW, TAP_UNITS, RAGGED, TAIL, UNIT,
                GROUPS, SPAN, ASYMMETRIC, SPLITS, PRECISION, BN, BM, PTX, True,
            )  # fmt: skip
        elif (BITS >> b) & 1:  # noqa: SIM102  only one of the two is known to the compiler
            if bits == b:
                y = _tile(
                    x, outside, base, local, seg_count, units, channels, x_pitch, group_at, place,
                    y0, x0, height, wd, scale, zero, correction, bias, scales, chain, stored, split,
                    act_zero, partial, rows, m, count, mask,
                    b, KERNEL_X, DILATION_Y, DILATION_X, WINDOW, TAP_UNITS, RAGGED, TAIL, UNIT,
                    GROUPS, SPAN, ASYMMETRIC, SPLITS, PRECISION, BN, BM, PTX, False,
                )  # fmt: skip
    if SPLITS == 1:
        if out_index is None:
            channel = first + lanes
        else:
            channel = tl.load(out_index + stored)
        at = rows[None, :] * out_pitch + channel[:, None]
        finish(y, at, mask, out, residual, table, residual_scale, residual_zero, inverse,
               zero_point, low, high, ACTIVATION, PTX)  # fmt: skip
