"""Packed weights as ONNX constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.onnx_export.graph import Graph
from defakeq_kernels.packed import (
    HALF_BITS,
    PackedWeight,
    level_step,
    symmetric_zero_point,
    unpack_codes,
)


class Part:
    """Stored outputs that one ONNX operator computes: `outputs` are their channels.

    Attributes:
        name: the float weight [outputs, I, kh, kw] (a constant or a DequantizeLinear of one).
        scale: float32 [outputs] when the weight is symmetric int8, else None.
    """

    def __init__(
        self, name: str, outputs: NDArray[Any], rows: NDArray[Any], scale: NDArray[Any] | None
    ) -> None:
        self.name, self.outputs, self.rows, self.scale = name, outputs, rows, scale


def _spread(weight: PackedWeight, rows: NDArray[Any], fill: Any) -> NDArray[Any]:
    """Rows [n, K] of stored inputs as [n, I, kh, kw]; `fill` [n, 1, 1] where none is stored."""
    count, ins = rows.shape[0], weight.shape[1]
    kernel = weight.shape[2:] or (1, 1)
    dense = np.empty((count, weight.taps, ins), rows.dtype)
    dense[:] = fill
    columns = np.arange(ins) if weight.in_index is None else weight.in_index
    dense[:, :, columns] = rows.reshape(count, weight.taps, -1)
    return np.ascontiguousarray(dense.swapaxes(1, 2)).reshape(count, ins, *kernel)


def add_weight(graph: Graph, name: str, weight: PackedWeight, exact: bool) -> list[Part]:
    """The weight as one part of integers and one of half-precision floats; either may be absent."""
    parts = []
    codes, zeros, scales, index, rows = [], [], [], [], []
    begin = 0
    for segment in weight.segments:
        stored = np.arange(begin, begin + segment.count)
        begin += segment.count
        if segment.bits == HALF_BITS:
            dense = _spread(weight, segment.codes.astype(np.float32), np.float32(0))
            constant = graph.constant(_ranked(weight, dense), f"{name}.half")
            parts.append(Part(constant, segment.out_index, stored, None))
            graph.note("half-precision outputs as a float convolution beside the integer one")
            continue
        assert segment.scale is not None
        code = unpack_codes(segment.codes, segment.bits, weight.reduction).astype(np.int32)
        codes.append(code * level_step(segment.bits))
        zero = segment.zero_point
        if zero is None:
            zero = np.full(segment.scale.shape, symmetric_zero_point(segment.bits), np.int32)
        zeros.append(zero)
        scales.append(segment.scale)
        index.append(segment.out_index)
        rows.append(stored)
    if not codes:
        return parts
    outputs, stored = np.concatenate(index), np.concatenate(rows)
    code, zero, scale = np.concatenate(codes), np.concatenate(zeros), np.concatenate(scales)
    if weight.scale_groups > 1:
        integers = np.concatenate([s.out_index for s in weight.segments if s.bits != HALF_BITS])
        whole = _without_half_in(weight).dequantize()[integers]
        if exact:
            graph.note("weights with scale groups as float")
            constant = graph.constant(whole, f"{name}.weight")
            return [Part(constant, outputs, stored, None), *parts]
        levels, row_scale = _symmetric(graph, whole.reshape(len(whole), -1))
        dense = levels.reshape(whole.shape)
    else:
        row_scale = scale[:, 0]
        levels = code - zero
        if exact:
            return [_exact(graph, name, weight, code, zero, row_scale, outputs, stored), *parts]
        if levels.min() < -128 or levels.max() > 127:
            values = levels.astype(np.float32) * scale
            levels, row_scale = _symmetric(graph, values)
        dense = _ranked(weight, _spread(weight, levels, 0))
    constant = graph.constant(dense.astype(np.int8), f"{name}.weight")
    floats = _dequantize(graph, constant, row_scale, None)
    return [Part(floats, outputs, stored, row_scale), *parts]


def half_in_parts(graph: Graph, name: str, weight: PackedWeight) -> str:
    """The half-precision columns [O, H, kh, kw] in storage order, as a float constant."""
    assert weight.half_in_weight is not None
    graph.note("half-precision inputs as a float convolution added")
    kernel = weight.shape[2:] or (1, 1)
    columns = weight.half_in_weight.astype(np.float32)
    columns = columns.reshape(weight.stored_out, weight.taps, weight.half_in_count)
    dense = columns.swapaxes(1, 2).reshape(weight.stored_out, -1, *kernel)
    return graph.constant(_ranked(weight, dense), f"{name}.half_in")


def _ranked(weight: PackedWeight, dense: NDArray[Any]) -> NDArray[Any]:
    return dense.reshape(dense.shape[:2]) if weight.kind == "linear" else dense


def _without_half_in(weight: PackedWeight) -> PackedWeight:
    from dataclasses import replace

    return replace(weight, half_in_index=None, half_in_weight=None)


def _symmetric(graph: Graph, rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Symmetric int8 levels and scales of float rows."""
    graph.note("weights rounded anew to symmetric int8 (levels beyond -128..127, or scale groups)")
    scale = np.abs(rows).max(axis=1) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int32), scale


def _dequantize(
    graph: Graph, constant: str, scale: NDArray[Any], zero: str | None, axis: int = 0
) -> str:
    inputs = [constant, graph.constant(scale.astype(np.float32))]
    if zero is None:
        zero = graph.constant(np.zeros(len(scale), np.int8))
    return graph.op("DequantizeLinear", *inputs, zero, axis=axis, hint="w")


def _exact(
    graph: Graph,
    name: str,
    weight: PackedWeight,
    code: NDArray[Any],
    zero: NDArray[Any],
    scale: NDArray[Any],
    outputs: NDArray[Any],
    stored: NDArray[Any],
) -> Part:
    """The levels in the smallest of int4, uint4, int8, uint8 and int16 that holds them."""
    levels = code - zero
    low, high = int(levels.min()), int(levels.max())
    zeros_fit = int(zero.min()) >= 0
    hint = f"{name}.weight"

    def dense(values: NDArray[Any], fill: Any) -> NDArray[Any]:
        return _ranked(weight, _spread(weight, values, fill))

    if low >= -8 and high <= 7:
        constant = graph.int4(dense(levels, 0), True, hint)
        zeros = graph.int4(np.zeros(len(scale), np.int8), True)
        return Part(_dequantize(graph, constant, scale, zeros), outputs, stored, None)
    if zeros_fit and max(int(code.max()), int(zero.max())) <= 15:
        constant = graph.int4(dense(code, zero[:, None, :1]), False, hint)
        zeros = graph.int4(zero[:, 0], False)
        return Part(_dequantize(graph, constant, scale, zeros), outputs, stored, None)
    if low >= -128 and high <= 127:
        constant = graph.constant(dense(levels, 0).astype(np.int8), hint)
        return Part(_dequantize(graph, constant, scale, None), outputs, stored, scale)
    if zeros_fit:
        values = dense(code, zero[:, None, :1]).astype(np.uint8)
        zeros = graph.constant(zero[:, 0].astype(np.uint8))
        floats = _dequantize(graph, graph.constant(values, hint), scale, zeros)
        return Part(floats, outputs, stored, None)
    graph.note("zero points outside 0..255: levels as int16")
    zeros = graph.constant(np.zeros(len(scale), np.int16))
    constant = graph.constant(dense(levels, 0).astype(np.int16), hint)
    return Part(_dequantize(graph, constant, scale, zeros), outputs, stored, None)
