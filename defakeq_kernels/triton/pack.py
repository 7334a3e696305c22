"""From the storage format to the GPU runtime layout."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defakeq_kernels.packed import (
    HALF_BITS,
    PackedWeight,
    Segment,
    level_step,
    symmetric_zero_point,
    unpack_codes,
)
from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.triton.layout import (
    MAGIC,
    GpuLayout,
    GpuSegment,
    from_json,
    planes,
    remember,
    units_a_step,
)

# v = level * step needs |sum(v * x)| < 2^31 with |v|, |x| <= 128.
MAX_REDUCTION = (1 << 17) - 1
_ALIGN = 256
_UNITS = (64, 32)


def pack(
    weight: PackedWeight,
    act: ActQuant | None = None,
    activation: str = "none",
    out: ActQuant | None = None,
) -> tuple[Tensor, GpuLayout]:
    """Builds the GPU runtime layout of a layer on the CPU.

    Args:
        weight: a validated packed weight.
        act, activation, out: as in `defakeq_kernels.nn.QuantLayer`.

    Returns:
        uint8 [bytes] in main memory, and its description, which the tensor also holds.

    Raises:
        ValueError: a reduction longer than 131071, whose sums could leave int32, or codes of 2 GB
            and more.
    """
    return _Packer(weight, act, activation, out).result()


def _padded(count: int, step: int) -> int:
    return -(-count // step) * step


class _Packer:
    def __init__(
        self, weight: PackedWeight, act: ActQuant | None, activation: str, out: ActQuant | None
    ) -> None:
        self.w, self.act, self.activation, self.out = weight, act, activation, out
        w = weight
        self.depthwise = w.kind == "conv2d" and w.groups > 1 and w.shape[1] == 1
        folds = out is not None and activation in ("none", "relu") and not w.half_in_count
        self.factor = np.float32(1)
        if out is not None and folds:
            self.factor = np.float32(1) / np.float32(out.scale)
        self.act_scale = np.float32(act.scale if act is not None else 1)
        self._geometry()

    def _geometry(self) -> None:
        """The compact order of a pixel's channels: `order` [pitch], -1 on padding."""
        w = self.w
        taps, count = w.taps, w.in_count
        self.patches = (
            not self.depthwise
            and w.groups == 1
            and w.group_size == 0
            and taps > 1
            and 2 * count <= _padded(count, _UNITS[-1])
        )
        if self.patches:
            taps, count = 1, taps * count
        self.unit = next((u for u in _UNITS if _padded(count, u) - count <= count // 8), _UNITS[-1])
        self.span = 1
        size = count
        if w.group_size:
            size = min(w.group_size, count)
            self.unit = next((u for u in _UNITS if _padded(size, u) == size), _UNITS[-1])
            while self.span * self.unit < size:
                self.span *= 2
        a_tap = -(-count // size)
        width = self.span * self.unit if w.group_size else _padded(size, self.unit)
        order = np.full((a_tap, width), -1, np.int64)
        channel = np.arange(count)
        order[channel // size, channel % size] = channel
        self.order = order.reshape(-1)
        self.taps = taps
        self.channels = len(self.order) if a_tap > 1 else count
        self.contiguous = a_tap == 1 or width == size
        if self.contiguous:
            self.channels = count
        self.units = taps * len(self.order) // self.unit
        if taps * len(self.order) > MAX_REDUCTION:
            raise ValueError(
                f"weight: found a reduction of {w.reduction} positions; accepted is at most "
                f"{MAX_REDUCTION} (padding included) on the GPU"
            )

    def result(self) -> tuple[Tensor, GpuLayout]:
        w = self.w
        self.arrays: dict[str, NDArray[Any]] = {}
        index = w.out_index
        direct = len(index) == w.shape[0] and bool((index == np.arange(len(index))).all())
        bias = np.zeros(w.stored_out, np.float32) if w.bias is None else w.bias * self.factor
        self.arrays["out_index"] = index
        self.arrays["bias"] = bias.astype(np.float32)
        asymmetric = self._parameters()
        segments = self._depthwise_weights() if self.depthwise else self._weights()
        self._inputs()
        pair = (1, 1)
        layout = {
            "kind": w.kind,
            "out_channels": w.shape[0],
            "in_channels": w.shape[1] * w.groups,
            "kernel": tuple(w.shape[2:]) if w.kind == "conv2d" else pair,
            "stride": w.stride,
            "padding": w.padding,
            "dilation": w.dilation,
            "groups": w.groups,
            "strategy": (
                "depthwise" if self.depthwise else "patches" if self.patches else "product"
            ),
            "unit": self.unit,
            "units": self.units,
            "channels": self.channels,
            "pitch": len(self.order),
            "gathers": w.in_index is not None or not self.contiguous or self.patches,
            "scale_groups": w.scale_groups,
            "span": self.span,
            "act": None if self.act is None else self.act.describe(),
            "out": None if self.out is None else self.out.describe(),
            "activation": self.activation,
            "factor": float(self.factor),
            "segments": segments,
            "runs": self._runs(segments),
            "half_inputs": w.half_in_count,
            "asymmetric": asymmetric,
            "direct": direct,
        }
        return self._blob(layout)

    def _runs(self, segments: list[GpuSegment]) -> list[tuple[int, int, int, int]]:
        a_group = self.w.shape[0] // self.w.groups
        runs = []
        for number, s in enumerate(segments):
            group = self.w.segments[number].out_index // a_group
            bounds = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), s.count]
            for begin, end in itertools.pairwise(bounds):
                runs.append((number, s.first + begin, s.first + end, int(group[begin])))
        return runs

    def _parameters(self) -> bool:
        """Scales, zero points and corrections, [stored, G]; whether a zero point is asymmetric."""
        w = self.w
        shape = (w.stored_out, w.scale_groups)
        scale = np.full(shape, self.act_scale * self.factor, np.float32)
        zero = np.zeros(shape, np.int32)
        correction = np.zeros(shape, np.int64)
        act_zero = 0 if self.act is None else self.act.zero_point
        length = w.group_size or w.in_count
        a_tap = -(-w.in_count // length)
        edges = np.arange(w.taps)[:, None] * w.in_count + np.arange(a_tap)[None, :] * length
        starts = edges.reshape(-1) if w.group_size else np.zeros(1, np.int64)
        sizes = np.diff(np.append(starts, w.reduction))
        begin = 0
        for s in w.segments:
            part = slice(begin, begin + s.count)
            begin += s.count
            if s.bits == HALF_BITS:
                continue
            assert s.scale is not None
            scale[part] = s.scale * self.act_scale * self.factor
            if s.zero_point is not None:
                zero[part] = s.zero_point - symmetric_zero_point(s.bits)
            if act_zero == 0:
                continue
            sums = np.add.reduceat(self._levels(s).astype(np.int64), starts, axis=1)
            correction[part] = act_zero * (zero[part] * sizes - sums)
        self.arrays["scale"] = scale
        self.arrays["zero_point"] = zero
        self.arrays["correction"] = correction.astype(np.int32)
        return bool(zero.any())

    def _levels(self, s: Segment) -> NDArray[np.int32]:
        """Levels of symmetric codes, [count, reduction]."""
        codes = unpack_codes(s.codes, s.bits, self.w.reduction).astype(np.int32)
        return codes * level_step(s.bits) - symmetric_zero_point(s.bits)

    def _spread(self, rows: NDArray[Any], units: int) -> NDArray[Any]:
        """[count, reduction] in storage order to [count, units * unit] in compact order."""
        count = rows.shape[0]
        by_tap = rows.reshape(count, self.taps, -1)
        out = np.zeros((count, units * self.unit), rows.dtype)
        filled = out[:, : self.units * self.unit].reshape(count, self.taps, -1)
        kept = self.order >= 0
        filled[:, :, kept] = by_tap[:, :, self.order[kept]]
        out[:, : self.units * self.unit] = filled.reshape(count, -1)
        return out

    def _weights(self) -> list[GpuSegment]:
        segments, parts, first, offset = [], [], 0, 0
        for s in self.w.segments:
            segments.append(GpuSegment(s.bits, first, s.count, offset))
            first += s.count
            for part in self._segment_bytes(s):
                parts.append(part)
                offset += part.size
            gap = _padded(offset, _ALIGN) - offset
            parts.append(np.zeros(gap, np.uint8))
            offset += gap
        if offset >= 1 << 31:
            raise ValueError(
                f"weight: found {offset} bytes of codes; accepted is less than 2^31 on the GPU"
            )
        self.arrays["weights"] = np.concatenate(parts)
        return segments

    def _segment_bytes(self, s: Segment) -> list[NDArray[np.uint8]]:
        if s.bits == HALF_BITS:
            rows = self._spread(np.ascontiguousarray(s.codes), self.units)
            return [rows.view(np.uint8).reshape(-1)]
        a_step = units_a_step(s.bits)
        units = _padded(self.units, a_step)
        codes = unpack_codes(s.codes, s.bits, self.w.reduction)
        if s.bits == 8:
            return [self._spread(codes ^ np.uint8(128), units).reshape(-1)]
        steps = self._spread(codes, units).reshape(s.count, units // a_step, a_step, self.unit)
        found, left = [], s.bits
        for width in planes(s.bits):
            left -= width
            fields = (steps >> left) & ((1 << width) - 1)
            fields = fields.reshape(s.count, -1, 8 // width, self.unit)
            tile = np.zeros((s.count, fields.shape[1], self.unit), np.uint8)
            for i in range(8 // width):
                tile |= (fields[:, :, i] << (i * width)).astype(np.uint8)
            found.append(tile.reshape(-1))
        return found

    def _depthwise_weights(self) -> list[GpuSegment]:
        """Levels [taps, stored], zero where a segment is of the other kind."""
        w = self.w
        floats = np.zeros((w.taps, w.stored_out), np.float32)
        integers = np.zeros((w.taps, w.stored_out), np.int16)
        segments, first = [], 0
        for s in w.segments:
            part = slice(first, first + s.count)
            segments.append(GpuSegment(s.bits, first, s.count, 0))
            first += s.count
            if s.bits == HALF_BITS:
                floats[:, part] = s.codes.astype(np.float32).T
                continue
            levels = self._levels(s)
            if s.zero_point is not None:
                levels = levels - (s.zero_point - symmetric_zero_point(s.bits))
            if self.act is None:
                floats[:, part] = levels.T.astype(np.float32)
            else:
                integers[:, part] = levels.T
        self.arrays["weights"] = integers
        self.arrays["float_weights"] = floats
        return segments

    def _inputs(self) -> None:
        """Where each compact position comes from, and what lies outside of images."""
        w = self.w
        zero = 0 if self.act is None else self.act.zero_point & 255
        # read as the activations' type; a zero of other types than int8 is all zero bits
        outside = np.zeros(4 * len(self.order), np.uint8)
        outside[: len(self.order)][self.order >= 0] = zero
        self.arrays["outside"] = outside
        channels: NDArray[np.int64] = np.arange(w.shape[1], dtype=np.int64)
        if w.in_index is not None:
            channels = w.in_index.astype(np.int64)
        widths = {s.bits == HALF_BITS for s in w.segments}
        if self.act is not None and len(widths) == 2:
            half_rows = [np.full(s.count, s.bits == HALF_BITS, np.int32) for s in w.segments]
            self.arrays["is_half"] = np.concatenate(half_rows)
        if self.depthwise:
            source = (w.out_index // (w.shape[0] // w.groups)).astype(np.int32)
            self.arrays["in_index"] = source
            self.contiguous = bool((source == np.arange(len(source))).all())
            return
        if self.patches:
            taps = np.arange(w.taps).repeat(len(channels)) * w.shape[1]
            channels = taps + np.tile(channels, w.taps)
        kept = self.order >= 0
        index = np.full((w.groups, len(self.order)), -1, np.int64)
        index[:, kept] = channels[self.order[kept]]
        index[:, kept] += np.arange(w.groups)[:, None] * w.shape[1]
        self.arrays["in_index"] = index.reshape(-1).astype(np.int32)
        if w.half_in_index is not None and w.half_in_weight is not None:
            half_count = w.half_in_weight.shape[1]
            columns = _padded(half_count, 16)
            half = np.zeros((w.stored_out, columns), np.float32)
            half[:, :half_count] = w.half_in_weight
            self.arrays["half_weights"] = half
            own = np.arange(w.half_in_count, dtype=np.int32)
            for name, pitch, source in (
                ("half_of_x", w.shape[1], w.half_in_index),
                ("half_of_copy", w.half_in_count, own),
            ):
                half_index = np.full(columns, -1, np.int32)
                half_index[:half_count] = np.add.outer(np.arange(w.taps) * pitch, source).reshape(
                    -1
                )
                self.arrays[name] = half_index

    def _blob(self, fields: dict[str, Any]) -> tuple[Tensor, GpuLayout]:
        sections: dict[str, tuple[int, str, tuple[int, ...]]] = {}
        offset = 0
        for name, array in self.arrays.items():
            sections[name] = (offset, str(array.dtype), array.shape)
            offset += _padded(array.nbytes, _ALIGN)
        # The description holds offsets, whose digits change its own length: two rounds settle it.
        start = 0
        for _ in range(3):
            moved = {n: (o + start, dtype, shape) for n, (o, dtype, shape) in sections.items()}
            layout = GpuLayout(sections=moved, **fields)
            text = json.dumps(asdict(layout)).encode()
            start = _padded(16 + len(text) + 64, _ALIGN)
        packed = torch.zeros(start + offset, dtype=torch.uint8)
        buffer = packed.numpy()
        head = MAGIC + len(text).to_bytes(8, "little") + text
        buffer[: len(head)] = np.frombuffer(head, np.uint8)
        for name, array in self.arrays.items():
            at, _, _ = layout.sections[name]
            buffer[at : at + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        layout = from_json(json.loads(text))
        remember(packed, layout)
        return packed, layout
