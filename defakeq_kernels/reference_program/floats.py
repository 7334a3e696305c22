"""float32 functions with the kernels' roundings, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from defakeq_kernels import reference
from defakeq_kernels.reference import Float32, fma

LANES = 16
ONE = np.float32(1)
UNARY = (
    *("relu", "relu6", "hardswish", "silu", "gelu", "sigmoid", "tanh", "hardsigmoid", "exp"),
    *("log", "sqrt", "rsqrt", "abs", "neg", "square", "reciprocal"),
)


def _lane_blocks(x: Float32) -> Float32:
    """[..., C] -> [..., blocks, 16]; absent elements are +0."""
    pad = -x.shape[-1] % LANES
    wide = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)])
    return wide.reshape(*x.shape[:-1], -1, LANES)


def _tree(lanes: Float32, join: Callable[[Any, Any], Any]) -> Float32:
    for half in (8, 4, 2, 1):
        lanes = join(lanes[..., :half], lanes[..., half : 2 * half])
    return lanes[..., 0]


def lane_sum(x: Float32) -> Float32:
    """Sums over the last dimension in the fixed order of 16 lanes."""
    blocks = _lane_blocks(x)
    acc = np.zeros((*x.shape[:-1], LANES), np.float32)
    for i in range(blocks.shape[-2]):
        acc = acc + blocks[..., i, :]
    return _tree(acc, np.add)


def lane_squares(x: Float32) -> Float32:
    """Sums of squares over the last dimension, one fma a step, in the order of `lane_sum`."""
    blocks = _lane_blocks(x)
    acc = np.zeros((*x.shape[:-1], LANES), np.float32)
    for i in range(blocks.shape[-2]):
        acc = fma(blocks[..., i, :], blocks[..., i, :], acc)
    return _tree(acc, np.add)


def lane_max(x: Float32) -> Float32:
    """Maxima over the last dimension. NaNs are passed over; the first of equal lanes wins."""
    pad = -x.shape[-1] % LANES
    wide = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)], constant_values=-np.inf)
    blocks = wide.reshape(*x.shape[:-1], -1, LANES)
    acc = np.full((*x.shape[:-1], LANES), -np.inf, np.float32)
    for i in range(blocks.shape[-2]):
        acc = greater(blocks[..., i, :], acc)
    best = acc[..., 0]
    for lane in range(1, LANES):
        best = greater(acc[..., lane], best)
    return np.asarray(best, np.float32)


def greater(a: Any, b: Any) -> Any:
    """The larger one; b where either is NaN."""
    return np.where(a > b, a, b)


def less(a: Any, b: Any) -> Any:
    """The smaller one; b where either is NaN."""
    return np.where(a < b, a, b)


def _clamp6(x: Float32) -> Float32:
    return less(greater(x, np.float32(0)), np.float32(6))


def _tanh(x: Float32) -> Float32:
    e = reference._exp(np.abs(x) * np.float32(-2))
    return np.copysign((ONE - e) / (ONE + e), x)


def unary_function(fn: str, x: Float32) -> Float32:
    """One of `UNARY`, or an activation, of each element."""
    simple: dict[str, Callable[[Float32], Any]] = {
        "tanh": _tanh,
        "hardsigmoid": lambda v: _clamp6(v + np.float32(3)) * np.float32(1.0 / 6.0),
        "exp": reference._exp,
        "log": _log,
        "sqrt": np.sqrt,
        "rsqrt": lambda v: ONE / np.sqrt(v),
        "abs": np.abs,
        "neg": lambda v: v * np.float32(-1),
        "square": lambda v: v * v,
        "reciprocal": lambda v: ONE / v,
    }
    with np.errstate(all="ignore"):
        y = simple[fn](x) if fn in simple else reference.activate(fn, x)
    return np.asarray(y, np.float32)


def _log(x: Float32) -> Float32:
    """2 atanh((m - 1) / (m + 1)) + e ln 2 of x = m 2^e, m in [sqrt(1/2), sqrt(2))."""
    x = np.asarray(x, np.float32)
    small = (x > 0) & (x < np.finfo(np.float32).tiny)
    scaled = np.ascontiguousarray(np.where(small, x * np.float32(8388608), x))
    usable = (scaled > 0) & np.isfinite(scaled)
    bits = np.where(usable, scaled, ONE).astype(np.float32).view(np.int32)
    e = (bits - np.int32(0x3F3504F3)) >> 23
    m = (bits - (e << 23)).astype(np.int32).view(np.float32)
    exponent = np.where(small, np.float32(-23), np.float32(0)) + e.astype(np.float32)
    t = (m - ONE) / (m + ONE)
    s = t * t
    p = np.full_like(s, np.float32(2) / np.float32(9))
    for step in (2 / 7, 2 / 5, 2 / 3, 2.0):
        p = fma(p, s, np.float32(step))
    y = fma(exponent, np.float32(0.693147180559945), p * t)
    y = np.where(x == 0, np.float32(-np.inf), y)
    y = np.where(x == np.inf, x, y)
    return np.where((x < 0) | np.isnan(x), np.float32(np.nan), y)


BINARY_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": greater,
    "min": less,
}
BINARY = ("add", "sub", "mul", "div", "max", "min")
