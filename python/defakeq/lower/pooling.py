"""Pooling and resizing of images."""

from __future__ import annotations

from typing import Any

import torch

from defakeq.lower.capture import Node, args_of
from defakeq.lower.draft import Ref
from defakeq.lower.operands import Operands, Unsupported

aten = torch.ops.aten


class Pooling(Operands):
    """Emits pooling and resizing."""

    def _pool(self, node: Node, ref: Ref | None = None) -> Ref:
        ref = self.ref(args_of(node)[0]) if ref is None else ref
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

    def _interpolated(self, node: Node) -> Ref:
        """Bilinear resizing."""
        args = args_of(node)
        shape = self.captured.shapes[node]
        rows, height, width, channels = self._image(self.ref(args[0]), node.name)
        corners = bool(args[2])
        given = (
            args[3:] if node.target is aten.upsample_bilinear2d.default else tuple(args[3] or ())
        )
        scale = []
        for i, (before, after) in enumerate(((height, shape[2]), (width, shape[3]))):
            if corners:
                scale.append((before - 1) / (after - 1) if after > 1 else 0.0)
            elif len(given) > i and given[i]:
                scale.append(1.0 / float(given[i]))
            else:
                scale.append(before / after)
        size = [shape[2], shape[3]]
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (*size, rows.width), quant)
        self.draft.step(
            "interpolate", node.name, [rows.value], out,
            size=size, mode="bilinear", align_corners=corners, scale=scale,
        )  # fmt: skip
        return self._spread(rows, out, (shape[2], shape[3]), channels, node)
