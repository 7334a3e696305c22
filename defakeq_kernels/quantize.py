"""From float weights to packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defakeq_kernels.act import (
    ACT_MODES,
    ACTIVATIONS,
    OUT_DTYPES,
    ActQuant,
    check_act,
    check_out,
    check_quantization,
    float_out,
    int8_out,
)
from defakeq_kernels.checks import is_integer, refuse, shown
from defakeq_kernels.codes import HALF_BITS, level_step, pack_codes, symmetric_zero_point
from defakeq_kernels.fit import fit_rows
from defakeq_kernels.packed import PackedWeight, Segment, scale_groups
from defakeq_kernels.packed_checks import KINDS, MAX_ZERO_POINT

__all__ = [
    "ACTIVATIONS",
    "ACT_MODES",
    "OUT_DTYPES",
    "ActQuant",
    "check_act",
    "check_out",
    "check_quantization",
    "float_out",
    "int8_out",
    "quantize_weight",
]

_HALF_MAX = float(np.finfo(np.float16).max)


def quantize_weight(
    weight: ArrayLike,
    *,
    kind: str,
    bits: int | Sequence[int] | NDArray[Any] = 8,
    symmetric: bool = False,
    group_size: int | None = None,
    keep_out: ArrayLike | None = None,
    keep_in: ArrayLike | None = None,
    half_out: ArrayLike | None = None,
    half_in: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    zero_point: ArrayLike | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> PackedWeight:
    """Quantizes a float weight to the storage format with the least squared error found.

    Each output channel (and group of inputs) gets its own scale and integer zero point from a
    search over shrunken ranges, followed by least-squares refinement. The levels of a row need not
    contain zero; they do wherever that serves the row, and |level| never exceeds 255.

    Args:
        weight: [O, I] for "linear", [O, I / groups, kh, kw] for "conv2d"; finite.
        kind: "linear" or "conv2d".
        bits: 1 to 8, or 16 for IEEE half; one value, or one for each of the O outputs.
        symmetric: fixes the zero point to 2^(bits-1), which is then not stored.
        group_size: inputs that share a scale, a positive multiple of 4; None: all.
        keep_out, keep_in: channels that are kept; None: all. No kept input: refused.
        half_out: kept outputs stored in half precision, whatever `bits` says of them.
        half_in: kept inputs whose columns are stored in half precision.
        bias: [O].
        scale, zero_point: [O] each, the grid to which each output's integer weights are rounded;
            None: searched. No zero points when `symmetric`; neither with `group_size`.
        stride, padding, dilation: one value or (vertical, horizontal); conv2d only.
        groups: convolution groups; above 1, keep_in and half_in must be None.

    Returns:
        A validated `PackedWeight`; segments by rising width.

    Raises:
        ValueError: naming the argument, what was found and what is accepted.
    """
    if kind not in KINDS:
        raise ValueError(f'kind: found {kind!r}; accepted is "linear" or "conv2d"')
    if not isinstance(symmetric, (bool, np.bool_)):
        refuse("symmetric", shown(symmetric), "True or False")
    dense = _float_array("weight", weight)
    rank = 2 if kind == "linear" else 4
    if dense.ndim != rank or 0 in dense.shape:
        raise ValueError(
            f"weight: found shape {dense.shape}; accepted is {rank} sizes above 0 for {kind}"
        )
    outs, ins = dense.shape[:2]
    if groups != 1 and (keep_in is not None or half_in is not None):
        raise ValueError(f"keep_in, half_in: found with groups {groups}; accepted is None")
    size = 0 if group_size is None else group_size
    if group_size is not None and (not is_integer(size) or size <= 0 or size % 4):
        refuse("group_size", shown(group_size), "a positive multiple of 4")

    grid = _given_grid(scale, zero_point, outs, symmetric, size)
    kept_out = _index("keep_out", keep_out, outs)
    kept_in = _index("keep_in", keep_in, ins)
    half_rows = _subset("half_out", half_out, "keep_out", kept_out, outs)
    half_columns = _subset("half_in", half_in, "keep_in", kept_in, ins)
    integer_in = np.setdiff1d(kept_in, half_columns).astype(np.int32)
    if integer_in.size == 0:
        raise ValueError("keep_in: found no integer input; accepted is at least one not in half_in")
    widths = _widths(bits, outs, kept_out)
    widths[half_rows] = HALF_BITS

    by_tap = dense.reshape(outs, ins, -1).swapaxes(1, 2)
    taps = by_tap.shape[1]
    segments = []
    for width in np.unique(widths[kept_out]):
        index = kept_out[widths[kept_out] == width]
        rows = np.ascontiguousarray(by_tap[index][:, :, integer_in])
        if grid is not None and width != HALF_BITS:
            segments.append(_on_grid(rows, int(width), index, symmetric, grid))
        else:
            segments.append(_segment(rows, int(width), index, symmetric, size))
    stored = np.concatenate([s.out_index for s in segments])

    half_in_weight = None
    if half_columns.size:
        columns = by_tap[stored][:, :, half_columns].reshape(len(stored), taps * len(half_columns))
        half_in_weight = _to_half("weight", columns)
    stored_bias = None
    if bias is not None:
        full_bias = _float_array("bias", bias)
        if full_bias.shape != (outs,):
            raise ValueError(f"bias: found shape {full_bias.shape}; accepted is ({outs},)")
        stored_bias = full_bias[stored]
    return PackedWeight(
        kind=kind,
        shape=tuple(int(n) for n in dense.shape),
        segments=tuple(segments),
        stride=_pair("stride", stride),
        padding=_pair("padding", padding),
        dilation=_pair("dilation", dilation),
        groups=groups,
        group_size=size,
        in_index=None if integer_in.size == ins else integer_in,
        half_in_index=half_columns if half_columns.size else None,
        half_in_weight=half_in_weight,
        bias=stored_bias,
    ).validate()


def _kind(array: NDArray[Any]) -> str:
    """A value that no array of numbers was made of, or an array's type and shape."""
    if array.ndim == 0:
        return shown(array.item())
    return f"{array.dtype} with shape {array.shape}"


def _float_array(name: str, value: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(value)
    if array.dtype.kind != "f":
        refuse(name, _kind(array), "a floating-point array")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not bool(np.isfinite(array).all()):
        raise ValueError(f"{name}: found a value that is not finite; accepted is finite float32")
    return array


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, (int, np.integer)) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"{name}: found {value!r}; accepted is one or two integers")
    return int(pair[0]), int(pair[1])


def _index(name: str, value: ArrayLike | None, limit: int) -> NDArray[np.int32]:
    """Channels as strictly increasing int32; None means all."""
    if value is None:
        return np.arange(limit, dtype=np.int32)
    array = np.asarray(value)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        refuse(name, _kind(array), "a one-dimensional array of channel indices")
    if array.size == 0:
        raise ValueError(f"{name}: found no channel; accepted is at least one, or None for all")
    return _distinct(name, array, limit)


def _distinct(name: str, array: NDArray[Any], limit: int) -> NDArray[np.int32]:
    index = np.unique(array)
    if index.size and (int(index[0]) < 0 or int(index[-1]) >= limit):
        found = f"{int(index[0])} to {int(index[-1])}"
        raise ValueError(f"{name}: found {found}; accepted is indices from 0 to {limit - 1}")
    if index.size != array.size:
        raise ValueError(f"{name}: found a repeated channel; accepted is each channel once")
    return index.astype(np.int32)


def _subset(
    name: str, value: ArrayLike | None, of: str, kept: NDArray[np.int32], limit: int
) -> NDArray[np.int32]:
    if value is None or np.size(value) == 0:
        return np.empty(0, np.int32)
    index = _index(name, value, limit)
    pruned = np.setdiff1d(index, kept)
    if pruned.size:
        raise ValueError(f"{name}: found channel {int(pruned[0])}; accepted is channels of {of}")
    return index


def _widths(
    bits: int | Sequence[int] | NDArray[Any], outs: int, kept: NDArray[np.int32]
) -> NDArray[np.int64]:
    array = np.asarray(bits)
    if array.dtype.kind not in "iu" or array.shape not in ((), (outs,)):
        refuse("bits", _kind(array), f"an integer, or {outs} integers")
    widths = np.broadcast_to(array, (outs,)).astype(np.int64)
    used = np.unique(widths[kept])
    wrong = used[~(((used >= 1) & (used <= 8)) | (used == HALF_BITS))]
    if wrong.size:
        raise ValueError(f"bits: found {int(wrong[0])}; accepted is 1 to 8, or 16")
    return widths


def _to_half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    largest = float(np.abs(values).max())
    if largest > _HALF_MAX:
        raise ValueError(
            f"{name}: found {largest} in a half-precision channel; accepted is up to {_HALF_MAX}"
        )
    return values.astype(np.float16)


_Grid = tuple[NDArray[np.float32], NDArray[np.int32] | None]


def _given_grid(
    scale: ArrayLike | None, zero_point: ArrayLike | None, outs: int, symmetric: bool, size: int
) -> _Grid | None:
    """The caller's scales and zero points, checked; None: there are none."""
    if scale is None and zero_point is None:
        return None
    if scale is None or (zero_point is None) != symmetric or size:
        raise ValueError(
            "scale, zero_point: found one without the other, or with group_size; accepted is both "
            "(scale alone when symmetric), with one scale an output"
        )
    given = np.asarray(scale)
    scales = _float_array("scale", given.astype(np.float64) if given.dtype.kind in "iu" else given)
    if scales.shape != (outs,):
        refuse("scale", f"shape {scales.shape}", f"{outs} positive numbers")
    if float(scales.min()) < np.finfo(np.float32).tiny:
        refuse("scale", str(float(scales.min())), f"{outs} normal positive float32 numbers")
    if zero_point is None:
        return scales, None
    zeros = np.asarray(zero_point)
    accepted = f"{outs} integers from {-MAX_ZERO_POINT} to {MAX_ZERO_POINT}"
    if zeros.shape != (outs,) or zeros.dtype.kind not in "iu":
        refuse("zero_point", _kind(zeros), accepted)
    if int(zeros.min()) < -MAX_ZERO_POINT or int(zeros.max()) > MAX_ZERO_POINT:
        refuse("zero_point", f"{int(zeros.min())} to {int(zeros.max())}", accepted)
    return scales, zeros.astype(np.int32)


def _on_grid(
    rows: NDArray[np.float32], bits: int, index: NDArray[np.int32], symmetric: bool, grid: _Grid
) -> Segment:
    """Rounds rows [count, taps, in_count] to the given grid."""
    scale, zeros = grid[0][index], None if grid[1] is None else grid[1][index]
    zero = np.full(len(index), symmetric_zero_point(bits)) if zeros is None else zeros
    step = level_step(bits)
    flat = rows.reshape(len(index), -1).astype(np.float64)
    codes = np.rint((flat / scale[:, None].astype(np.float64) + zero[:, None]) / step)
    codes = np.clip(codes, 0, (1 << bits) - 1).astype(np.uint8)
    return Segment(
        bits=bits,
        out_index=index,
        codes=pack_codes(codes, bits),
        scale=np.ascontiguousarray(scale[:, None]),
        zero_point=None if symmetric or zeros is None else np.ascontiguousarray(zeros[:, None]),
    )


def _segment(
    rows: NDArray[np.float32],
    bits: int,
    index: NDArray[np.int32],
    symmetric: bool,
    group_size: int,
) -> Segment:
    """Quantizes rows [count, taps, in_count] to one segment."""
    count, taps, ins = rows.shape
    if bits == HALF_BITS:
        return Segment(bits, index, _to_half("weight", rows.reshape(count, taps * ins)))
    size = group_size if group_size else taps * ins
    if not group_size:
        rows = rows.reshape(count, 1, taps * ins)
    codes = np.empty(rows.shape, np.uint8)
    parts = rows.shape[1]
    a_part = -(-rows.shape[2] // size)
    assert parts * a_part == scale_groups(taps, ins, group_size)
    scale = np.empty((count, parts, a_part), np.float32)
    zero = np.empty((count, parts, a_part), np.int32)
    for g in range(a_part):
        block = rows[:, :, g * size : (g + 1) * size]
        flat = np.ascontiguousarray(block).reshape(count * parts, -1)
        s, z, c = fit_rows(flat, bits, symmetric)
        scale[:, :, g] = s.reshape(count, parts)
        zero[:, :, g] = z.reshape(count, parts)
        codes[:, :, g * size : (g + 1) * size] = c.reshape(block.shape)
    return Segment(
        bits=bits,
        out_index=index,
        codes=pack_codes(codes.reshape(count, taps * ins), bits),
        scale=scale.reshape(count, -1),
        zero_point=None if symmetric else zero.reshape(count, -1),
    )
