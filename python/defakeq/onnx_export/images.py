"""Nodes over images of a program as ONNX operators: pooling and interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.onnx_export.values import Node, Values


class Images(Values):
    """What works on [N, C, H, W]."""

    def _op_pool2d(self, node: Node, ins: list[int], out: int) -> None:
        x = self.get(ins[0], "nchw")
        padding = _pair(node.get("padding", 0))
        kernel = _pair(node["kernel"])
        attributes: dict[str, Any] = {
            "kernel_shape": kernel,
            "strides": _pair(node.get("stride", kernel)),
            "pads": [*padding, *padding],
            "ceil_mode": int(bool(node.get("ceil_mode", False))),
        }
        if node["mode"] == "max":
            y = self.graph.op("MaxPool", x, **attributes)
        else:
            included = bool(node.get("count_include_pad", True)) and any(padding)
            apart = included and not attributes["ceil_mode"]
            attributes["count_include_pad"] = int(included and not apart)
            y = self.graph.op("AveragePool", x, **attributes)
            if apart:
                # Engines disagree on what a quantized pool reads outside: count zeros afterwards.
                shape, sizes = self.shape(ins[0]), self.shape(out)
                steps = attributes["strides"]
                shares = [
                    _inside(shape[i], sizes[i], kernel[i], steps[i], padding[i]) for i in (0, 1)
                ]
                share = shares[0][None, None, :, None] * shares[1]
                y = self.graph.op("Mul", y, self.graph.constant(share.astype(np.float32)))
        self.put(out, y, "nchw")

    def _op_adaptive_avg_pool2d(self, node: Node, ins: list[int], out: int) -> None:
        graph, x = self.graph, self.get(ins[0], "nchw")
        (h, w, _), (oh, ow) = self.shape(ins[0]), _pair(node["size"])
        if (oh, ow) == (1, 1):
            y = graph.op("GlobalAveragePool", x)
        elif h % oh == 0 and w % ow == 0:
            step = [h // oh, w // ow]
            y = graph.op("AveragePool", x, kernel_shape=step, strides=step)
        else:
            vertical = graph.constant(_windows(h, oh))
            y = graph.op("MatMul", vertical, x)
            y = graph.op("MatMul", y, graph.constant(_windows(w, ow).T))
        self.put(out, y, "nchw")

    def _op_interpolate(self, node: Node, ins: list[int], out: int) -> None:
        bilinear, corners = node["mode"] == "bilinear", bool(node.get("align_corners", False))
        where = "asymmetric"
        if bilinear:
            where = "align_corners" if corners else "half_pixel"
        sizes = self.graph.ints(_pair(node["size"]))
        y = self.graph.op(
            "Resize", self.get(ins[0], "nchw"), "", "", sizes, axes=[2, 3],
            mode="linear" if bilinear else "nearest", coordinate_transformation_mode=where,
            nearest_mode="floor",
        )  # fmt: skip
        self.put(out, y, "nchw")


def _pair(value: Any) -> list[int]:
    return [int(value)] * 2 if isinstance(value, int) else [int(v) for v in value]


def _inside(size: int, out: int, kernel: int, stride: int, padding: int) -> NDArray[np.float64]:
    """[out]: the share of each pooling window that lies inside."""
    begin = np.arange(out) * stride - padding
    return (np.minimum(begin + kernel, size) - np.maximum(begin, 0)) / kernel


def _windows(size: int, out: int) -> NDArray[np.float32]:
    """[out, size]: the averaging windows of an adaptive pool."""
    rows = np.zeros((out, size), np.float32)
    for i in range(out):
        begin, end = i * size // out, -(-(i + 1) * size // out)
        rows[i, begin:end] = 1 / (end - begin)
    return rows
