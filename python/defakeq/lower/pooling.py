"""Pooling and means of images and tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from defakeq.lower.capture import Node, args_of
from defakeq.lower.draft import Ref, Rows
from defakeq.lower.operands import Operands, Unsupported

aten = torch.ops.aten


class Pooling(Operands):
    """Emits pooling."""

    def _pool(self, node: Node) -> Ref:
        ref = self.ref(args_of(node)[0])
        maximum = node.target is aten.max_pool2d.default

        def pair(i: int, default: Any) -> list[int]:
            value = args_of(node)[i] if len(args_of(node)) > i else default
            values = [int(v) for v in (value or default)]
            return [values[0], values[-1]]

        kernel = pair(1, [1])
        attributes: dict[str, Any] = {
            "mode": "max" if maximum else "avg",
            "kernel": kernel,
            "stride": pair(2, kernel),
            "padding": pair(3, [0]),
        }
        if maximum:
            if pair(4, [1]) != [1, 1]:
                raise Unsupported("found a dilated max pool; accepted is dilation 1")
            attributes["ceil_mode"] = bool(args_of(node)[5]) if len(args_of(node)) > 5 else False
        else:
            attributes["ceil_mode"] = bool(args_of(node)[4]) if len(args_of(node)) > 4 else False
            attributes["count_include_pad"] = (
                bool(args_of(node)[5]) if len(args_of(node)) > 5 else True
            )
            if len(args_of(node)) > 6 and args_of(node)[6] is not None:
                raise Unsupported("found divisor_override; accepted is None")
        rows, _, _, channels = self._image(ref, node.name)
        shape = self.captured.shapes[node]
        dtype = self.draft.dtype(ref)
        quant = None
        if dtype == "int8":
            quant = self.draft.quant(ref) if maximum else self.key(node)
        out = self.draft.value(dtype, (shape[2], shape[3], rows.width), quant)
        self.draft.step("pool2d", node.name, [rows.value], out, **attributes)
        return self._spread(rows, out, (shape[2], shape[3]), channels, node)

    def _adaptive(self, node: Node) -> Ref:
        rows, _, _, channels = self._image(self.ref(args_of(node)[0]), node.name)
        shape = self.captured.shapes[node]
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (shape[2], shape[3], rows.width), quant)
        size = [shape[2], shape[3]]
        self.draft.step("adaptive_avg_pool2d", node.name, [rows.value], out, size=size)
        return self._spread(rows, out, (shape[2], shape[3]), channels, node)

    def _mean(self, node: Node) -> Ref:
        rows, _, _, channels = self._image(self.ref(args_of(node)[0]), node.name)
        return self._mean_step(node, rows, channels)

    def _mean_step(self, node: Node, rows: Rows, channels: int) -> Ref:
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (rows.width,), quant)
        self.draft.step("mean_rows", node.name, [rows.value], out)
        index = torch.full((channels,), -1, dtype=torch.int32)
        inside = np.flatnonzero(rows.columns >= 0)
        index[torch.from_numpy(inside)] = torch.from_numpy(rows.columns[inside]).int()
        return Ref((out,), index.reshape(self.captured.shapes[node]), node)

    def _mean_tokens(self, node: Node) -> Ref:
        ref = self.ref(args_of(node)[0])
        rank = ref.index.dim()
        dims = sorted(int(d) % rank for d in args_of(node)[1])
        if dims != list(range(1, rank - 1)):
            raise Unsupported(f"found a mean over dimensions {dims} of {rank}")
        order = ref.index[0].reshape(-1, ref.index.shape[-1])
        rows = self.draft.rows(ref, order, node.name)
        return self._mean_step(node, rows, int(order.shape[-1]))
