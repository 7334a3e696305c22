"""The storage format of a quantized weight: segments of one precision each, as numpy arrays.

A weight of output ``n`` at reduction position ``k`` is ``scale * (m * code - zero_point)``, with an
unsigned code of 1 to 8 bits and ``m = 2`` for 1-bit codes, ``m = 1`` otherwise. The reduction runs
over (kernel row, kernel column, stored input channel). ``docs/format.md`` has the byte diagrams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels.checks import is_integer, refuse, shown
from defakeq_kernels.codes import (
    HALF_BITS,
    level_step,
    pack_codes,
    row_bytes,
    symmetric_zero_point,
    unpack_codes,
)
from defakeq_kernels.packed_checks import (
    KINDS,
    MAX_CHANNELS,
    MAX_EXTENT,
    MAX_ZERO_POINT,
    check_weight,
    outputs_of_segments,
)

__all__ = [
    "FLOAT_OUT",
    "HALF_BITS",
    "KINDS",
    "LAYER_FIELDS",
    "MAX_CHANNELS",
    "MAX_EXTENT",
    "MAX_ZERO_POINT",
    "NO_ACT",
    "SEGMENT_FIELDS",
    "PackedWeight",
    "Segment",
    "is_integer",
    "level_step",
    "pack_codes",
    "row_bytes",
    "scale_group_of",
    "scale_groups",
    "shown",
    "symmetric_zero_point",
    "unpack_codes",
]

NO_ACT: Mapping[str, Any] = {"mode": "none", "scale": 1.0, "zero_point": 0, "bits": 8}
FLOAT_OUT: Mapping[str, Any] = {"dtype": "float32", "scale": 1.0, "zero_point": 0, "bits": 8}

SEGMENT_FIELDS = ("out_index", "codes", "scale", "zero_point")
LAYER_FIELDS = ("in_index", "half_in_index", "half_in_weight", "bias")


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
        arrays: list[NDArray[Any] | None] = [getattr(self, field) for field in LAYER_FIELDS]
        for segment in self.segments:
            arrays += [getattr(segment, field) for field in SEGMENT_FIELDS]
        return sum(array.nbytes for array in arrays if array is not None)

    def validate(self, name: str = "weight") -> PackedWeight:
        """Checks every field; returns self.

        Raises:
            ValueError: naming the field as it is called in a file (``<name>.seg0.scale``), what
                was found and what is accepted.
        """
        check_weight(self, name)
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
        fields = [f"seg{i}.{key}" for i in range(len(self.segments)) for key in SEGMENT_FIELDS]
        return {f"{prefix}.{field}" for field in (*fields, *LAYER_FIELDS)}

    def to_tensors(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The stored arrays by file name: ``<prefix>.seg0.codes``, ``<prefix>.bias``, ...

        Where all outputs are stored, the largest segment's `out_index` is left out.
        """
        named: dict[str, NDArray[Any] | None] = {}
        for i, segment in enumerate(self.segments):
            for field in SEGMENT_FIELDS:
                named[f"{prefix}.seg{i}.{field}"] = getattr(segment, field)
            if segment.zero_point is not None:
                narrow = zero_point_type(segment)
                named[f"{prefix}.seg{i}.zero_point"] = segment.zero_point.astype(narrow)
        if self.stored_out == self.shape[0]:
            counts = [segment.count for segment in self.segments]
            del named[f"{prefix}.seg{counts.index(max(counts))}.out_index"]
        for field in LAYER_FIELDS:
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
                refuse(f"{prefix}.{key}", "nothing", "a value in the layer's description")
            return description[key]

        def integers(key: str) -> tuple[int, ...]:
            value = geometry(key)
            if not isinstance(value, (list, tuple)) or not all(is_integer(v) for v in value):
                refuse(f"{prefix}.{key}", shown(value), "a list of integers")
            return tuple(value)

        def pair(key: str) -> tuple[int, int]:
            value = integers(key)
            if len(value) != 2:
                refuse(f"{prefix}.{key}", shown(list(value)), "two integers")
            return value[0], value[1]

        segments = []
        widths, shape = integers("bits"), integers("shape")
        outputs = outputs_of_segments(prefix, len(widths), shape[0] if shape else None, tensors)
        for i, bits in enumerate(widths):
            base = f"{prefix}.seg{i}"
            for key in ("codes",) + (() if bits == HALF_BITS else ("scale",)):
                if f"{base}.{key}" not in tensors:
                    refuse(f"{base}.{key}", "nothing", "a tensor")
            fields = {key: tensors.get(f"{base}.{key}") for key in SEGMENT_FIELDS}
            zero = fields["zero_point"]
            if zero is not None and zero.dtype in (np.int8, np.int16):
                fields["zero_point"] = zero.astype(np.int32)
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
            **{key: tensors.get(f"{prefix}.{key}") for key in LAYER_FIELDS},
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


def zero_point_type(segment: Segment) -> type[np.signedinteger[Any]]:
    """The type of zero points in a file: int8 below 8 bits where all fit, else int16.

    At 8 bits some would fit by chance; one type keeps sizes known and arrays of layers joined.
    """
    zero_point, limits = segment.zero_point, np.iinfo(np.int8)
    if zero_point is None or segment.bits >= 8:
        return np.int16
    fits = limits.min <= zero_point.min() and zero_point.max() <= limits.max
    return np.int8 if fits else np.int16


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
