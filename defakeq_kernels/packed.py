"""The storage format of a quantized weight: segments of one precision each, as numpy arrays.

A weight of output ``n`` at reduction position ``k`` is ``scale * (m * code - zero_point)``, with an
unsigned code of 1 to 8 bits and ``m = 2`` for 1-bit codes, ``m = 1`` otherwise. The reduction runs
over (kernel row, kernel column, stored input channel). ``docs/format.md`` has the byte diagrams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

KINDS = ("linear", "conv2d")
MAX_CHANNELS = 1 << 24
MAX_EXTENT = 1 << 12
MAX_ZERO_POINT = 255
HALF_BITS = 16

_PACK_CHUNK = 1 << 22


def row_bytes(count: int, bits: int) -> int:
    """Bytes of one packed row of `count` codes of `bits` bits."""
    return (count * bits + 7) // 8


def level_step(bits: int) -> int:
    """The step between the integer levels of neighbouring codes: 2 for 1-bit codes, else 1."""
    return 2 if bits == 1 else 1


def symmetric_zero_point(bits: int) -> int:
    """The zero point of a segment that stores none: 2^(bits-1)."""
    return 1 << (bits - 1)


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Packs each row of `codes` into a little-endian bit stream, padded with zero bits to a byte.

    Args:
        codes: uint8 [rows, count], every value below 2^bits.
        bits: 1 to 8.

    Returns:
        uint8 [rows, ceil(count * bits / 8)].

    Raises:
        ValueError: a wrong width, type, rank, or a code that does not fit.
    """
    _check_width(bits)
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise ValueError(
            f"codes: found {codes.dtype} with shape {codes.shape}; accepted is uint8 [rows, count]"
        )
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"codes: found {int(codes.max())}; accepted is 0 to {(1 << bits) - 1}")
    rows, count = codes.shape
    packed = np.empty((rows, row_bytes(count, bits)), np.uint8)
    for part in _chunks(rows, count):
        stream = np.unpackbits(codes[part, :, None], axis=2, count=bits, bitorder="little")
        stream = stream.reshape(len(stream), count * bits)
        packed[part] = np.packbits(stream, axis=1, bitorder="little")
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `pack_codes`: uint8 [rows, row bytes] to uint8 [rows, count].

    Raises:
        ValueError: a wrong width, type, rank or row length.
    """
    _check_width(bits)
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != row_bytes(count, bits):
        raise ValueError(
            f"packed: found {packed.dtype} with shape {packed.shape}; accepted is uint8 "
            f"[rows, {row_bytes(count, bits)}] for {count} codes of {bits} bits"
        )
    if bits == 8:
        return packed.copy()
    rows = packed.shape[0]
    codes = np.empty((rows, count), np.uint8)
    for part in _chunks(rows, count):
        stream = np.unpackbits(packed[part], axis=1, count=count * bits, bitorder="little")
        code = stream[:, 0::bits].copy()
        for bit in range(1, bits):
            code |= stream[:, bit::bits] << bit
        codes[part] = code
    return codes


def _chunks(rows: int, count: int) -> list[slice]:
    step = max(1, _PACK_CHUNK // max(1, count))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def _check_width(bits: int) -> None:
    if not is_integer(bits) or not 1 <= bits <= 8:
        raise ValueError(f"bits: found {bits!r}; accepted is an integer from 1 to 8")


@dataclass(frozen=True)
class Segment:
    """Stored output channels of one precision.

    Attributes:
        bits: 1 to 8 (integer codes) or 16 (IEEE half).
        out_index: int32 [count], strictly increasing original output channels.
        codes: uint8 [count, ceil(K * bits / 8)], or float16 [count, K] for 16 bits.
        scale: float32 [count, G]; None for 16 bits.
        zero_point: int32 [count, G]; None for 16 bits, or when it is 2^(bits-1) throughout.
    """

    bits: int
    out_index: NDArray[np.int32]
    codes: NDArray[Any]
    scale: NDArray[np.float32] | None = None
    zero_point: NDArray[np.int32] | None = None

    @property
    def count(self) -> int:
        """Output channels of this segment."""
        return int(self.out_index.shape[0])


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight of a linear layer or a 2-D convolution, possibly pruned and mixed.

    Attributes:
        kind: "linear" or "conv2d".
        shape: original shape, (O, I) or (O, I / groups, kernel height, kernel width).
        segments: the stored outputs, one segment a precision, in storage order.
        stride, padding, dilation: (vertical, horizontal); (1, 1), (0, 0), (1, 1) for linear.
        groups: convolution groups; above 1 all inputs are stored.
        group_size: stored input channels that share a scale, a multiple of 4; 0: one scale an
            output channel, the only choice when groups > 1. Restarts at each kernel position.
        in_index: int32 [Ik], strictly increasing inputs of the integer part; None: all.
        half_in_index: int32 [H], strictly increasing inputs whose columns are IEEE half.
        half_in_weight: float16 [stored outputs, kernel positions * H], position-major.
        bias: float32 [stored outputs], in storage order.
    """

    kind: str
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    group_size: int = 0
    in_index: NDArray[np.int32] | None = None
    half_in_index: NDArray[np.int32] | None = None
    half_in_weight: NDArray[np.float16] | None = None
    bias: NDArray[np.float32] | None = None

    @property
    def taps(self) -> int:
        """Kernel positions: kernel height * kernel width, 1 for linear."""
        return int(np.prod(self.shape[2:], dtype=np.int64))

    @property
    def in_count(self) -> int:
        """Stored integer inputs (a group's own for grouped convolutions)."""
        return self.shape[1] if self.in_index is None else int(self.in_index.shape[0])

    @property
    def half_in_count(self) -> int:
        """Inputs kept in half precision."""
        return 0 if self.half_in_index is None else int(self.half_in_index.shape[0])

    @property
    def reduction(self) -> int:
        """K: codes of one output."""
        return self.taps * self.in_count

    @property
    def scale_groups(self) -> int:
        """G: scales of one output."""
        return scale_groups(self.taps, self.in_count, self.group_size)

    @property
    def stored_out(self) -> int:
        """Stored output channels."""
        return sum(s.count for s in self.segments)

    @property
    def out_index(self) -> NDArray[np.int32]:
        """int32 [stored outputs]: the original channel of each, in storage order."""
        return np.concatenate([s.out_index for s in self.segments])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays in memory; a file holds no more."""
        arrays: list[NDArray[Any] | None] = [getattr(self, field) for field in _LAYER_FIELDS]
        for segment in self.segments:
            arrays += [getattr(segment, field) for field in _SEGMENT_FIELDS]
        return sum(array.nbytes for array in arrays if array is not None)

    def validate(self, name: str = "weight") -> PackedWeight:
        """Checks every field; returns self.

        Raises:
            ValueError: naming the field as it is called in a file (``<name>.seg0.scale``), what
                was found and what is accepted.
        """
        _check_geometry(self, name)
        _check_inputs(self, name)
        if not self.segments:
            _bad(f"{name}.bits", "no segment", "at least one")
        stored = np.zeros(self.shape[0], bool)
        for i, segment in enumerate(self.segments):
            _check_segment(self, segment, f"{name}.seg{i}")
            repeated = segment.out_index[stored[segment.out_index]]
            if repeated.size:
                _bad(
                    f"{name}.seg{i}.out_index",
                    f"output {int(repeated[0])} again",
                    "every output stored once",
                )
            stored[segment.out_index] = True
        _check_half_in(self, name)
        if self.bias is not None:
            _check_floats(f"{name}.bias", self.bias, np.float32, (self.stored_out,))
        return self

    def dequantize(self) -> NDArray[np.float32]:
        """The float32 weight in its original shape; pruned rows and columns are zero."""
        outs, ins = self.shape[0], self.shape[1]
        dense = np.zeros((outs, self.taps, ins), np.float32)
        columns = np.arange(ins) if self.in_index is None else self.in_index
        for segment in self.segments:
            if segment.bits == HALF_BITS:
                values = segment.codes.astype(np.float32)
            else:
                values = self._integer_values(segment)
            block = np.zeros((segment.count, self.taps, ins), np.float32)
            block[:, :, columns] = values.reshape(segment.count, self.taps, -1)
            dense[segment.out_index] = block
        if self.half_in_index is not None and self.half_in_weight is not None:
            half = self.half_in_weight.astype(np.float32).reshape(self.stored_out, self.taps, -1)
            dense[self.out_index[:, None], :, self.half_in_index[None, :]] = half.swapaxes(1, 2)
        return np.ascontiguousarray(dense.swapaxes(1, 2)).reshape(self.shape)

    def _integer_values(self, segment: Segment) -> NDArray[np.float32]:
        codes = unpack_codes(segment.codes, segment.bits, self.reduction).astype(np.int32)
        assign = scale_group_of(self.taps, self.in_count, self.group_size)
        if segment.zero_point is None:
            zero: Any = symmetric_zero_point(segment.bits)
        else:
            zero = segment.zero_point[:, assign]
        assert segment.scale is not None
        levels = (codes * level_step(segment.bits) - zero).astype(np.float32)
        return levels * segment.scale[:, assign]

    def describe(self) -> dict[str, Any]:
        """The layer's description for a file's network JSON, without activations."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "group_size": self.group_size,
            "bits": [s.bits for s in self.segments],
        }

    def names(self, prefix: str) -> set[str]:
        """All names that arrays of this weight may have in a file, left out or not."""
        fields = [f"seg{i}.{key}" for i in range(len(self.segments)) for key in _SEGMENT_FIELDS]
        return {f"{prefix}.{field}" for field in (*fields, *_LAYER_FIELDS)}

    def to_tensors(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The stored arrays by file name: ``<prefix>.seg0.codes``, ``<prefix>.bias``, ...

        Where all outputs are stored, the largest segment's `out_index` is left out.
        """
        named: dict[str, NDArray[Any] | None] = {}
        for i, segment in enumerate(self.segments):
            for field in _SEGMENT_FIELDS:
                named[f"{prefix}.seg{i}.{field}"] = getattr(segment, field)
            if segment.zero_point is not None:
                named[f"{prefix}.seg{i}.zero_point"] = segment.zero_point.astype(np.int16)
        if self.stored_out == self.shape[0]:
            counts = [segment.count for segment in self.segments]
            del named[f"{prefix}.seg{counts.index(max(counts))}.out_index"]
        for field in _LAYER_FIELDS:
            named[f"{prefix}.{field}"] = getattr(self, field)
        return {key: array for key, array in named.items() if array is not None}

    @staticmethod
    def from_tensors(
        prefix: str, tensors: Mapping[str, NDArray[Any]], description: Mapping[str, Any]
    ) -> PackedWeight:
        """Rebuilds and validates what `to_tensors` and `describe` gave.

        Raises:
            ValueError: a missing or wrong tensor or description field, by name.
        """

        def geometry(key: str) -> Any:
            if key not in description:
                _bad(f"{prefix}.{key}", "nothing", "a value in the layer's description")
            return description[key]

        def integers(key: str) -> tuple[int, ...]:
            value = geometry(key)
            if not isinstance(value, (list, tuple)) or not all(is_integer(v) for v in value):
                _bad(f"{prefix}.{key}", shown(value), "a list of integers")
            return tuple(value)

        def pair(key: str) -> tuple[int, int]:
            value = integers(key)
            if len(value) != 2:
                _bad(f"{prefix}.{key}", shown(list(value)), "two integers")
            return value[0], value[1]

        segments = []
        widths, shape = integers("bits"), integers("shape")
        outputs = _outputs(prefix, len(widths), shape[0] if shape else None, tensors)
        for i, bits in enumerate(widths):
            base = f"{prefix}.seg{i}"
            for key in ("codes",) + (() if bits == HALF_BITS else ("scale",)):
                if f"{base}.{key}" not in tensors:
                    _bad(f"{base}.{key}", "nothing", "a tensor")
            fields = {key: tensors.get(f"{base}.{key}") for key in _SEGMENT_FIELDS}
            if fields["zero_point"] is not None and fields["zero_point"].dtype == np.int16:
                fields["zero_point"] = fields["zero_point"].astype(np.int32)
            fields["out_index"] = outputs[i]
            segments.append(Segment(bits, **fields))  # type: ignore[arg-type]
        return PackedWeight(
            kind=geometry("kind"),
            shape=integers("shape"),
            segments=tuple(segments),
            stride=pair("stride"),
            padding=pair("padding"),
            dilation=pair("dilation"),
            groups=geometry("groups"),
            group_size=geometry("group_size"),
            **{key: tensors.get(f"{prefix}.{key}") for key in _LAYER_FIELDS},
        ).validate(prefix)

    def spec(
        self,
        act: Mapping[str, Any] | None = None,
        activation: str = "none",
        out: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The dictionary that the native packer takes; half-precision arrays as uint16 views.

        Args:
            act: activation quantization, `ActQuant.describe()`; None: weight-only float32 math.
            activation: the fused epilogue, by name.
            out: output quantization, {"dtype", "scale", "zero_point", "bits"}; None: float32.
        """
        segments = [
            {
                "bits": s.bits,
                "out_index": np.ascontiguousarray(s.out_index),
                "codes": _as_uint16(s.codes) if s.bits == HALF_BITS else s.codes,
                "scale": s.scale,
                "zero_point": s.zero_point,
            }
            for s in self.segments
        ]
        half = self.half_in_weight
        return {
            **self.describe(),
            "segments": segments,
            "in_index": self.in_index,
            "half_in_index": self.half_in_index,
            "half_in_weight": None if half is None else _as_uint16(half),
            "bias": self.bias,
            "act": dict(act) if act is not None else dict(NO_ACT),
            "activation": activation,
            "out": dict(out) if out is not None else dict(FLOAT_OUT),
        }


NO_ACT: Mapping[str, Any] = {"mode": "none", "scale": 1.0, "zero_point": 0, "bits": 8}
FLOAT_OUT: Mapping[str, Any] = {"dtype": "float32", "scale": 1.0, "zero_point": 0, "bits": 8}

_SEGMENT_FIELDS = ("out_index", "codes", "scale", "zero_point")
_LAYER_FIELDS = ("in_index", "half_in_index", "half_in_weight", "bias")


def scale_groups(taps: int, in_count: int, group_size: int) -> int:
    """Scales of one output: 1, or one for each started group of every kernel position."""
    return 1 if group_size == 0 else taps * -(-in_count // group_size)


def scale_group_of(taps: int, in_count: int, group_size: int) -> NDArray[np.int64]:
    """int64 [taps * in_count]: the scale group of each reduction position."""
    if group_size == 0:
        return np.zeros(taps * in_count, np.int64)
    a_tap = -(-in_count // group_size)
    group = np.arange(taps)[:, None] * a_tap + np.arange(in_count)[None, :] // group_size
    return group.reshape(-1)


def _as_uint16(array: NDArray[Any]) -> NDArray[np.uint16]:
    return np.ascontiguousarray(array).view(np.uint16)


def shown(value: object) -> str:
    """A short repr for error messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _bad(field: str, found: str, accepted: str) -> NoReturn:
    raise ValueError(f"{field}: found {found}; accepted is {accepted}")


def is_integer(value: object) -> TypeGuard[int]:
    """True for Python and numpy integers, not for booleans."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_range(field: str, value: object, low: int, high: int) -> None:
    if not is_integer(value) or not low <= value <= high:
        _bad(field, shown(value), f"an integer from {low} to {high}")


def _check_geometry(w: PackedWeight, name: str) -> None:
    if w.kind not in KINDS:
        _bad(f"{name}.kind", shown(w.kind), '"linear" or "conv2d"')
    rank = 2 if w.kind == "linear" else 4
    if len(w.shape) != rank:
        _bad(f"{name}.shape", shown(list(w.shape)), f"{rank} sizes for {w.kind}")
    for value in w.shape[:2]:
        _check_range(f"{name}.shape", value, 1, MAX_CHANNELS)
    for value in w.shape[2:]:
        _check_range(f"{name}.shape", value, 1, MAX_EXTENT)
    fixed = w.kind == "linear"
    pairs = (("stride", w.stride, 1), ("padding", w.padding, 0), ("dilation", w.dilation, 1))
    for field, pair, low in pairs:
        if len(pair) != 2:
            _bad(f"{name}.{field}", shown(pair), "two integers")
        for value in pair:
            _check_range(f"{name}.{field}", value, low, low if fixed else MAX_EXTENT)
    _check_range(f"{name}.groups", w.groups, 1, 1 if fixed else MAX_CHANNELS)
    if w.shape[0] % w.groups or w.shape[1] * w.groups > MAX_CHANNELS:
        _bad(
            f"{name}.groups",
            f"{w.groups} for shape {list(w.shape)}",
            f"a divisor of the outputs, with at most {MAX_CHANNELS} inputs in all",
        )
    _check_range(f"{name}.group_size", w.group_size, 0, MAX_CHANNELS)
    if w.group_size % 4:
        _bad(f"{name}.group_size", str(w.group_size), "a multiple of 4, or 0")
    if w.group_size and w.groups > 1:
        _bad(f"{name}.group_size", str(w.group_size), "0 when groups > 1")


def _outputs(
    prefix: str, count: int, outs: object, tensors: Mapping[str, NDArray[Any]]
) -> list[NDArray[np.int32]]:
    """The outputs of each segment; one may name none, it has those of no other."""
    if not is_integer(outs) or not 1 <= outs <= MAX_CHANNELS:
        _bad(f"{prefix}.shape", shown(outs), f"1 to {MAX_CHANNELS} outputs")
    stored = np.zeros(int(outs), bool)
    found: list[NDArray[np.int32]] = []
    rest = -1
    for i in range(count):
        field = f"{prefix}.seg{i}.out_index"
        index = tensors.get(field)
        if index is None and rest < 0:
            rest = i
            index = np.empty(0, np.int32)
        else:
            if index is None:
                _bad(field, "nothing", "int32 [count]")
            _check_index(field, index, len(stored))
            if bool(stored[index].any()):
                _bad(field, "an output again", "every output stored once")
            stored[index] = True
        found.append(index)
    if rest >= 0:
        found[rest] = np.flatnonzero(~stored).astype(np.int32)
        codes = tensors.get(f"{prefix}.seg{rest}.codes")
        if not len(found[rest]) or codes is None or codes.shape[:1] != found[rest].shape:
            wanted = f"an index, unless it has the {len(found[rest])} outputs of no other segment"
            _bad(f"{prefix}.seg{rest}.out_index", "nothing", wanted)
    return found


def _check_index(field: str, index: Any, limit: int) -> None:
    if not isinstance(index, np.ndarray) or index.dtype != np.int32 or index.ndim != 1:
        _bad(field, _kind_of(index), "a one-dimensional int32 array")
    if index.size == 0:
        _bad(field, "no entry", "at least one")
    if int(index.min()) < 0 or int(index.max()) >= limit:
        _bad(field, f"{int(index.min())} to {int(index.max())}", f"indices from 0 to {limit - 1}")
    if index.size > 1 and not bool(np.all(index[1:] > index[:-1])):
        _bad(field, "indices out of order", "strictly increasing indices")


def _check_floats(field: str, array: Any, dtype: type, shape: tuple[int, ...]) -> None:
    _check_array(field, array, dtype, shape)
    if not bool(np.isfinite(array).all()):
        _bad(field, "a value that is not finite", "finite values")


def _check_array(field: str, array: Any, dtype: type, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        _bad(field, _kind_of(array), f"{np.dtype(dtype)} with shape {list(shape)}")


def _kind_of(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} with shape {list(value.shape)}"
    return "nothing" if value is None else type(value).__name__


def _check_inputs(w: PackedWeight, name: str) -> None:
    for field in ("in_index", "half_in_index"):
        index = getattr(w, field)
        if index is None:
            continue
        if w.groups > 1:
            _bad(f"{name}.{field}", f"an index with groups {w.groups}", "none when groups > 1")
        _check_index(f"{name}.{field}", index, w.shape[1])
    if w.half_in_index is None:
        return
    if w.in_index is None:
        _bad(f"{name}.in_index", "nothing", "the integer inputs, where half_in_index is given")
    shared = np.intersect1d(w.in_index, w.half_in_index)  # type: ignore[arg-type]
    if shared.size:
        _bad(f"{name}.half_in_index", f"input {int(shared[0])}", "inputs not in in_index")


def _check_half_in(w: PackedWeight, name: str) -> None:
    if w.half_in_index is None:
        if w.half_in_weight is not None:
            _bad(f"{name}.half_in_weight", "a tensor", "none without half_in_index")
        return
    shape = (w.stored_out, w.taps * w.half_in_count)
    _check_floats(f"{name}.half_in_weight", w.half_in_weight, np.float16, shape)


def _check_segment(w: PackedWeight, s: Segment, name: str) -> None:
    if not is_integer(s.bits) or s.bits not in (1, 2, 3, 4, 5, 6, 7, 8, HALF_BITS):
        _bad(f"{name}.bits", shown(s.bits), "1 to 8, or 16")
    _check_index(f"{name}.out_index", s.out_index, w.shape[0])
    if s.bits == HALF_BITS:
        _check_floats(f"{name}.codes", s.codes, np.float16, (s.count, w.reduction))
        for field in ("scale", "zero_point"):
            if getattr(s, field) is not None:
                _bad(f"{name}.{field}", "a tensor", "none for 16 bits")
        return
    size = row_bytes(w.reduction, s.bits)
    _check_array(f"{name}.codes", s.codes, np.uint8, (s.count, size))
    used = w.reduction * s.bits - 8 * (size - 1)
    if bool((s.codes[:, -1].astype(np.int32) >> used).any()):
        _bad(f"{name}.codes", "bits set in a row's padding", "zero padding")
    _check_floats(f"{name}.scale", s.scale, np.float32, (s.count, w.scale_groups))
    if s.zero_point is not None:
        _check_array(f"{name}.zero_point", s.zero_point, np.int32, (s.count, w.scale_groups))
        low, high = int(s.zero_point.min()), int(s.zero_point.max())
        if low < -MAX_ZERO_POINT or high > MAX_ZERO_POINT:
            accepted = f"-{MAX_ZERO_POINT} to {MAX_ZERO_POINT}"
            _bad(f"{name}.zero_point", f"{low} to {high}", accepted)
