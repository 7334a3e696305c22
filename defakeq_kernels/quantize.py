"""From float weights to packed weights, and the parameters of quantized activations."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defakeq_kernels.packed import (
    FLOAT_OUT,
    HALF_BITS,
    KINDS,
    MAX_ZERO_POINT,
    PackedWeight,
    Segment,
    is_integer,
    level_step,
    pack_codes,
    scale_groups,
    shown,
    symmetric_zero_point,
)

ACT_MODES = ("none", "static", "dynamic_tensor", "dynamic_row")
ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "silu", "gelu", "sigmoid")
OUT_DTYPES = ("float32", "int8")

_FIT_CHUNK = 1 << 18
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class ActQuant:
    """How a layer's input is quantized: ``x = scale * (q - zero_point)``.

    Use `static` or `dynamic`. Dynamic modes are 8-bit and symmetric with a scale of max|x| / 127,
    taken of the whole tensor or of each row (each image for a convolution).

    Attributes:
        mode: "static", "dynamic_tensor" or "dynamic_row".
        scale: finite and positive; 1 for dynamic modes.
        zero_point: qmin to qmax; 0 for dynamic modes.
        bits: 4 to 8; 8 for dynamic modes.
    """

    mode: str
    scale: float = 1.0
    zero_point: int = 0
    bits: int = 8

    def __post_init__(self) -> None:
        if self.mode not in ACT_MODES[1:]:
            raise ValueError(f"mode: found {self.mode!r}; accepted is one of {ACT_MODES[1:]}")
        check_quantization(self.scale, self.zero_point, self.bits)
        if self.mode != "static" and (self.zero_point, self.bits) != (0, 8):
            raise ValueError(
                f"mode: found {self.mode!r} with zero point {self.zero_point} and {self.bits} "
                "bits; accepted is zero point 0 and 8 bits for dynamic modes"
            )

    @staticmethod
    def static(low: float, high: float, bits: int = 8) -> ActQuant:
        """One scale and zero point for the range [low, high], widened to contain 0.

        Args:
            low, high: finite range of the activations, low <= high.
            bits: 4 to 8.
        """
        _check_act_bits(bits)
        low, high = float(low), float(high)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"low, high: found {low}, {high}; accepted is finite low <= high")
        low, high = min(low, 0.0), max(high, 0.0)
        levels = (1 << bits) - 1
        tiny = float(np.finfo(np.float32).tiny)
        scale = np.float32(max(high / levels - low / levels, tiny)) if high > low else np.float32(1)
        qmin = -(1 << (bits - 1))
        zero_point = int(np.clip(qmin - np.rint(low / float(scale)), qmin, qmin + levels))
        return ActQuant("static", float(scale), zero_point, bits)

    @staticmethod
    def dynamic(per: str = "tensor") -> ActQuant:
        """Scales taken from the input at run time, of the whole "tensor" or of each "row"."""
        if per not in ("tensor", "row"):
            raise ValueError(f'per: found {per!r}; accepted is "tensor" or "row"')
        return ActQuant(f"dynamic_{per}")

    @property
    def qmin(self) -> int:
        """The smallest quantized value."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """The largest quantized value."""
        return (1 << (self.bits - 1)) - 1

    def describe(self) -> dict[str, Any]:
        """{"mode", "scale", "zero_point", "bits"}, as files and the native packer take it."""
        return {
            "mode": self.mode,
            "scale": self.scale,
            "zero_point": self.zero_point,
            "bits": self.bits,
        }

    def quantize(self, x: ArrayLike) -> NDArray[np.int8]:
        """Static quantization of a float32 array, to the bit what the kernels compute."""
        self._check_static()
        inverse = np.float32(1) / np.float32(self.scale)
        with np.errstate(over="ignore", invalid="ignore"):
            q = np.rint(np.asarray(x, np.float32) * inverse) + np.float32(self.zero_point)
        low, high = np.float32(self.qmin), np.float32(self.qmax)
        return np.where(q > low, np.minimum(q, high), low).astype(np.int8)

    def dequantize(self, q: NDArray[np.int8]) -> NDArray[np.float32]:
        """The float32 values of quantized ones."""
        self._check_static()
        levels = (q.astype(np.int32) - self.zero_point).astype(np.float32)
        return levels * np.float32(self.scale)

    def _check_static(self) -> None:
        if self.mode != "static":
            raise ValueError(f"mode: found {self.mode!r}; accepted is 'static'")


def _check_act_bits(bits: object, name: str = "") -> None:
    if not is_integer(bits) or not 4 <= bits <= 8:
        raise ValueError(f"{name}bits: found {shown(bits)}; accepted is an integer from 4 to 8")


def check_quantization(scale: object, zero_point: object, bits: object, name: str = "") -> None:
    """Refuses, with names that start with `name`, an activation quantization out of range."""
    _check_act_bits(bits, name)
    single = np.float32(0)
    if isinstance(scale, (int, float, np.floating)) and not isinstance(scale, bool):
        with np.errstate(over="ignore"):
            single = np.float32(min(scale, sys.float_info.max))
    if not np.isfinite(single) or single < np.finfo(np.float32).tiny:
        raise ValueError(
            f"{name}scale: found {shown(scale)}; accepted is a normal positive float32"
        )
    half = 1 << (int(bits) - 1)  # type: ignore[call-overload]
    if not is_integer(zero_point) or not -half <= zero_point < half:
        raise ValueError(
            f"{name}zero_point: found {shown(zero_point)}; "
            f"accepted is an integer from {-half} to {half - 1}"
        )


def int8_out(quantization: ActQuant) -> dict[str, Any]:
    """The output description of a layer whose consumer reads `quantization` (a static one)."""
    if quantization.mode != "static":
        raise ValueError(f"quantization: found {quantization.mode!r}; accepted is 'static'")
    described = quantization.describe()
    del described["mode"]
    return {"dtype": "int8", **described}


def float_out() -> dict[str, Any]:
    """The output description of a layer that returns float32."""
    return dict(FLOAT_OUT)


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
    if group_size is not None and (size <= 0 or size % 4):
        raise ValueError(f"group_size: found {size}; accepted is a positive multiple of 4")

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


def _float_array(name: str, value: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise ValueError(f"{name}: found {array.dtype}; accepted is a floating-point array")
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
        raise ValueError(
            f"{name}: found {array.dtype} with shape {array.shape}; "
            "accepted is a one-dimensional array of channel indices"
        )
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
        raise ValueError(
            f"bits: found {array.dtype} with shape {array.shape}; "
            f"accepted is an integer, or {outs} integers"
        )
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
    scales = _float_array("scale", np.asarray(scale, np.float64))
    if scales.shape != (outs,) or not bool((scales >= np.finfo(np.float32).tiny).all()):
        raise ValueError(f"scale: found shape {scales.shape}; accepted is {outs} positive numbers")
    if zero_point is None:
        return scales, None
    zeros = np.asarray(zero_point)
    inside = zeros.shape == (outs,) and zeros.dtype.kind in "iu"
    if not inside or int(np.abs(zeros).max()) > MAX_ZERO_POINT:
        raise ValueError(
            f"zero_point: found {zeros.dtype} with shape {zeros.shape}; accepted is {outs} "
            f"integers from {-MAX_ZERO_POINT} to {MAX_ZERO_POINT}"
        )
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
        s, z, c = _fit(flat, bits, symmetric)
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


def _fit(
    rows: NDArray[np.float32], bits: int, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
    """Scale, zero point and codes of each row of [n, length] with a small squared error."""
    count, length = rows.shape
    scale = np.empty(count, np.float32)
    zero = np.empty(count, np.int32)
    codes = np.empty(rows.shape, np.uint8)
    step = max(1, _FIT_CHUNK // length)
    for begin in range(0, count, step):
        part = slice(begin, begin + step)
        scale[part], zero[part], codes[part] = _fit_chunk(rows[part], bits, symmetric)
    return scale, zero, codes


class _Search:
    """The best scale and zero point so far of each row of a chunk, and their squared errors."""

    def __init__(self, rows: NDArray[np.float32], bits: int) -> None:
        self.rows = rows
        self.step = level_step(bits)
        self.last_code = (1 << bits) - 1
        count = rows.shape[0]
        self.scale = np.ones(count, np.float32)
        self.zero = np.zeros(count, np.int32)
        self.error = np.full(count, np.inf, np.float32)

    def levels(self, scale: NDArray[np.float32], zero: NDArray[np.int32]) -> NDArray[np.float32]:
        """The nearest integer levels, as float32."""
        q = self.rows * (np.float32(1) / scale)[:, None]
        q += zero.astype(np.float32)[:, None]
        if self.step != 1:
            q /= np.float32(self.step)
        np.rint(q, out=q)
        np.clip(q, 0, self.last_code, out=q)
        if self.step != 1:
            q *= np.float32(self.step)
        q -= zero.astype(np.float32)[:, None]
        return q

    def offer(self, scale: NDArray[np.float32], zero: NDArray[np.int32]) -> NDArray[np.float32]:
        """Keeps the candidate in the rows it improves; returns its levels."""
        q = self.levels(scale, zero)
        difference = q * scale[:, None]
        difference -= self.rows
        error = np.einsum("ij,ij->i", difference, difference)
        better = error < self.error
        self.scale = np.where(better, scale, self.scale)
        self.zero = np.where(better, zero, self.zero)
        self.error = np.where(better, error, self.error)
        return q

    def offer_refit(self, scale: NDArray[np.float32], zero: NDArray[np.int32]) -> None:
        """Offers a candidate, then the scale that is best for its levels."""
        q = self.offer(scale, zero)
        square = np.einsum("ij,ij->i", q, q)
        product = np.einsum("ij,ij->i", q, self.rows)
        usable = (square > 0) & (product > 0)
        refit = np.divide(product, square, out=scale.copy(), where=usable)
        self.offer(np.maximum(refit, _SMALLEST), zero)


_SMALLEST = np.float32(2.0**-20)


def _fit_chunk(
    rows: NDArray[np.float32], bits: int, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
    tiny = np.finfo(np.float32).tiny
    unit = np.maximum(np.abs(rows).max(axis=1), tiny * np.float32(2.0**24)).astype(np.float32)
    search = _Search(rows / unit[:, None], bits)
    shrinks = (1.0, 0.96, 0.92) if bits >= 6 else tuple(np.linspace(1.0, 0.4, 13))
    if symmetric:
        _search_symmetric(search, bits, shrinks)
    else:
        _search_asymmetric(search, bits, shrinks)
    scale = (search.scale * unit).astype(np.float32)
    # The codes nearest to the weights under the scale as it is stored.
    q = rows / scale[:, None] + search.zero.astype(np.float32)[:, None]
    codes = np.clip(np.rint(q / np.float32(search.step)), 0, search.last_code)
    return scale, search.zero, codes.astype(np.uint8)


def _search_symmetric(search: _Search, bits: int, shrinks: Sequence[float]) -> None:
    rows = search.rows
    zero = np.full(rows.shape[0], symmetric_zero_point(bits), np.int32)
    top = search.step * search.last_code - symmetric_zero_point(bits)
    bottom = symmetric_zero_point(bits)
    widest = np.maximum(rows.max(axis=1) / top, -rows.min(axis=1) / bottom)
    for shrink in shrinks:
        search.offer_refit(np.maximum(widest * np.float32(shrink), _SMALLEST), zero)
    if bits == 1:
        search.offer_refit(np.maximum(np.abs(rows).mean(axis=1), _SMALLEST), zero)
    for _ in range(2):
        search.offer_refit(search.scale, search.zero)


def _search_asymmetric(search: _Search, bits: int, shrinks: Sequence[float]) -> None:
    rows = search.rows
    top = search.step * search.last_code
    center = rows.mean(axis=1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    if bits == 1:
        above = rows > center[:, None]
        many = np.maximum(above.sum(axis=1), 1)
        fewer = np.maximum((~above).sum(axis=1), 1)
        low = np.where(above, 0, rows).sum(axis=1) / fewer
        high = np.where(above, rows, 0).sum(axis=1) / many
        high = np.where(above.any(axis=1), high, low)
        shrinks = (1.0, 0.9, 1.1)
    for shrink in shrinks:
        a = center + np.float32(shrink) * (low - center)
        b = center + np.float32(shrink) * (high - center)
        # Levels reach at most 255 in size, so the scale cannot be below max|end| / 255.
        reach = np.maximum(np.abs(a), np.abs(b)) / MAX_ZERO_POINT
        scale = np.maximum(np.maximum((b - a) / top, reach), _SMALLEST).astype(np.float32)
        search.offer_refit(scale, _zero_of(a, scale, top))
    for _ in range(2):
        for move in (0, -1, 1):
            zero = np.clip(search.zero + move, top - MAX_ZERO_POINT, MAX_ZERO_POINT)
            search.offer_refit(search.scale, zero.astype(np.int32))


def _zero_of(low: NDArray[np.float32], scale: NDArray[np.float32], top: int) -> NDArray[np.int32]:
    zero = np.clip(np.rint(-low / scale), top - MAX_ZERO_POINT, MAX_ZERO_POINT)
    return zero.astype(np.int32)


def check_act(act: object, name: str = "act") -> None:
    """Refuses, by name, a wrong activation description {"mode", "scale", "zero_point", "bits"}."""
    mode, scale, zero_point, bits = _fields(act, name, ("mode", "scale", "zero_point", "bits"))
    if mode not in ACT_MODES:
        raise ValueError(f"{name}.mode: found {shown(mode)}; accepted is one of {ACT_MODES}")
    check_quantization(scale, zero_point, bits, f"{name}.")
    if mode not in ("none", "static") and (zero_point, bits) != (0, 8):
        raise ValueError(
            f"{name}.zero_point, {name}.bits: found {zero_point}, {bits}; "
            f"accepted is 0, 8 for {mode}"
        )


def check_out(out: object, name: str = "out") -> None:
    """Refuses, by name, a wrong output description {"dtype", "scale", "zero_point", "bits"}."""
    dtype, scale, zero_point, bits = _fields(out, name, ("dtype", "scale", "zero_point", "bits"))
    if dtype not in OUT_DTYPES:
        raise ValueError(f"{name}.dtype: found {shown(dtype)}; accepted is one of {OUT_DTYPES}")
    check_quantization(scale, zero_point, bits, f"{name}.")


def _fields(description: object, name: str, keys: tuple[str, ...]) -> list[Any]:
    if not isinstance(description, Mapping):
        raise ValueError(f"{name}: found {shown(description)}; accepted is an object")
    for key in keys:
        if key not in description:
            raise ValueError(f"{name}.{key}: found nothing; accepted is a value")
    return [description[key] for key in keys]
