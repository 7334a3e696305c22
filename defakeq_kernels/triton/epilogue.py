"""What follows an accumulator, in the CPU's steps: residual, activation, rounding, store.

Compiled with ``enable_fp_fusion=False``, so that each step rounds once and int8 results have the
CPU's bytes: fma is explicit, division is IEEE, exp and erf are the polynomials of
csrc/kernels/simd/math.h.
"""

from __future__ import annotations

import triton
import triton.language as tl

from defakeq_kernels.quantize import ACTIVATIONS

NONE = tl.constexpr(ACTIVATIONS.index("none"))
RELU = tl.constexpr(ACTIVATIONS.index("relu"))
RELU6 = tl.constexpr(ACTIVATIONS.index("relu6"))
HARDSWISH = tl.constexpr(ACTIVATIONS.index("hardswish"))
SILU = tl.constexpr(ACTIVATIONS.index("silu"))
GELU = tl.constexpr(ACTIVATIONS.index("gelu"))
SIGMOID = tl.constexpr(ACTIVATIONS.index("sigmoid"))


@triton.jit
def fma(a, b, c, PTX: tl.constexpr):
    """a * b + c, rounded once, in the shape of a; b and c are of as many dimensions."""
    b = tl.broadcast_to(b, a.shape)
    c = tl.broadcast_to(c, a.shape)
    if PTX:
        y = tl.fma(a, b, c)
    else:
        # The interpreter's fma rounds twice; the product is exact in float64.
        y = (a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64)).to(tl.float32)
    return y


@triton.jit
def round_even(y):
    """To the nearest integer, ties to even; |y| < 2^22."""
    return (y + 12582912.0) - 12582912.0


@triton.jit
def to_int8(y, inverse, zero, low, high):
    """clamp(round(y * inverse) + zero) to int32; NaN gives the lowest value."""
    y = y * inverse
    y = tl.where(y < high, y, tl.where(y >= high, high, low))
    y = tl.where(y > low, y, low)
    return round_even(y).to(tl.int32) + zero


@triton.jit
def _max(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def _min(a, b):
    return tl.where(a < b, a, b)


@triton.jit
def _exp(x, PTX: tl.constexpr):
    x = _min(_max(x, -87.0), 88.0)
    n = round_even(x * 1.44269504088896341)
    one = tl.full(x.shape, 1.0, tl.float32)
    r = fma(n, one * -0.693145751953125, x, PTX)
    r = fma(n, one * -1.42860682030941723212e-6, r, PTX)
    p = one * (1.0 / 720.0)
    p = fma(p, r, one * (1.0 / 120.0), PTX)
    p = fma(p, r, one * (1.0 / 24.0), PTX)
    p = fma(p, r, one * (1.0 / 6.0), PTX)
    p = fma(p, r, one * 0.5, PTX)
    p = fma(p, r, one, PTX)
    p = fma(p, r, one, PTX)
    bits = p.to(tl.int32, bitcast=True) + (n.to(tl.int32) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _sigmoid(x, PTX: tl.constexpr):
    one = tl.full(x.shape, 1.0, tl.float32)
    return tl.div_rn(one, one + _exp(0.0 - x, PTX))


@triton.jit
def _erf(x, PTX: tl.constexpr):
    a = tl.abs(x)
    one = tl.full(x.shape, 1.0, tl.float32)
    t = tl.div_rn(one, fma(a, one * 0.3275911, one, PTX))
    p = one * 1.061405429
    p = fma(p, t, one * -1.453152027, PTX)
    p = fma(p, t, one * 1.421413741, PTX)
    p = fma(p, t, one * -0.284496736, PTX)
    p = fma(p, t, one * 0.254829592, PTX)
    e = _exp((0.0 - a) * a, PTX)
    y = fma(0.0 - p * t, e, one, PTX)
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    return ((y.to(tl.int32, bitcast=True) & 2147483647) | sign).to(tl.float32, bitcast=True)


@triton.jit
def activate(y, ACTIVATION: tl.constexpr, PTX: tl.constexpr):
    """The fused activation, by its number in `ACTIVATIONS`."""
    if ACTIVATION == RELU:
        y = _max(y, 0.0)
    if ACTIVATION == RELU6:
        y = _min(_max(y, 0.0), 6.0)
    if ACTIVATION == HARDSWISH:
        y = y * (_min(_max(y + 3.0, 0.0), 6.0) * (1.0 / 6.0))
    if ACTIVATION == SILU:
        y = y * _sigmoid(y, PTX)
    if ACTIVATION == GELU:
        half = y * 0.5
        y = fma(half, _erf(y * 0.70710678118654752, PTX), half, PTX)
    if ACTIVATION == SIGMOID:
        y = _sigmoid(y, PTX)
    return y


@triton.jit
def finish(
    y,
    at,
    mask,
    out,
    residual,
    table,
    residual_scale,
    residual_zero,
    inverse,
    zero,
    low,
    high,
    ACTIVATION: tl.constexpr,
    PTX: tl.constexpr,
):
    """Adds the residual, activates and stores float32 `y` at the offsets `at`.

    `table`: int8 [256], what is stored in place of -128 to 127, or None.
    """
    if residual is not None:
        r = tl.load(residual + at, mask=mask, other=0)
        if r.dtype == tl.int8:
            r = (r.to(tl.int32) - residual_zero).to(tl.float32)
        else:
            r = r.to(tl.float32)
        y = fma(r, tl.full(r.shape, 1.0, tl.float32) * residual_scale, y, PTX)
    y = activate(y, ACTIVATION, PTX)
    if out.dtype.element_ty == tl.int8:
        q = to_int8(y, inverse, zero, low, high)
        if table is not None:
            q = tl.load(table + (q + 128))
        tl.store(out + at, q.to(tl.int8), mask=mask)
    else:
        tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)
