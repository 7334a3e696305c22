"""Pooling and interpolation of [H, W, C]."""

from __future__ import annotations

import numpy as np

from defakeq_kernels.checks import refuse, shown
from defakeq_kernels.reference import Float32, fma
from defakeq_kernels.reference_program.fields import (
    number_of,
    sizes_of,
)
from defakeq_kernels.reference_program.floats import (
    ONE,
    greater,
)
from defakeq_kernels.reference_program.node import Node
from defakeq_kernels.reference_program.program import Array


def mean_rows(node: Node) -> None:
    """The mean over all positions."""
    channels = node.value(0).shape[-1]
    node.expect_size(channels)
    node.store(rows_mean(node, 0, node.value(0).size // channels, channels))


def adaptive_avg_pool2d(node: Node) -> None:
    """Means of windows that cover the image."""
    height, width, channels = node.image()
    oh, ow = node.pair("size")
    node.expect((oh, ow, channels))
    y = np.empty((oh, ow, channels), np.float32)
    for i in range(oh):
        y0, y1 = i * height // oh, -(-(i + 1) * height // oh)
        for j in range(ow):
            x0, x1 = j * width // ow, -(-(j + 1) * width // ow)
            window = node.raw(0)[y0:y1, x0:x1].reshape(-1, channels)
            y[i, j] = window_mean(node, window, len(window))
    node.store(y)


def pool2d(node: Node) -> None:
    """Maxima or means of windows."""
    extents = node.image()
    mode = node.choice("mode", ("max", "avg"))
    kernel, stride = node.pair("kernel"), node.pair("stride")
    padding = sizes_of(node.field("padding"), node.get("padding", [0, 0]), 2, 0)
    ceil = bool(node.get("ceil_mode", False))
    whole = bool(node.get("count_include_pad", True))
    size = [_pool_size(extents[d], kernel[d], stride[d], padding[d], ceil) for d in (0, 1)]
    node.expect((*size, extents[2]))
    x = node.raw(0)
    if mode == "max" and node.value(0).quantization != node.out.quantization:
        refuse(node.field("out"), f"{node.out.quantization}", "the quantization of the input")
    y = np.empty(node.out.shape, x.dtype if mode == "max" else np.float32)
    for i in range(size[0]):
        for j in range(size[1]):
            begin = (i * stride[0] - padding[0], j * stride[1] - padding[1])
            spans, counted = [], 1
            for d in (0, 1):
                end = min(begin[d] + kernel[d], extents[d] + padding[d])
                counted *= end - begin[d]
                spans.append(slice(max(begin[d], 0), min(end, extents[d])))
            window = x[spans[0], spans[1]].reshape(-1, extents[2])
            if mode == "max":
                y[i, j] = _window_max(window)
            else:
                y[i, j] = window_mean(node, window, counted if whole else len(window))
    if mode == "max":
        node.put(y)
    else:
        node.store(y)


def interpolate(node: Node) -> None:
    """The nearest element, or two linear steps."""
    height, width, channels = node.image()
    size = node.pair("size")
    node.expect((*size, channels))
    mode = node.choice("mode", ("nearest", "bilinear"))
    corners = bool(node.get("align_corners", False))
    ratios = node.attribute("scale")
    if not isinstance(ratios, (list, tuple)) or len(ratios) != 2:
        refuse(node.field("scale"), shown(ratios), "two numbers")
    scale = [number_of(node.field("scale"), r) for r in ratios]
    x = node.real(0)
    if mode == "nearest":
        at = [
            np.minimum(np.floor(np.arange(n) * s).astype(np.int64), extent - 1)
            for n, s, extent in zip(size, scale, (height, width), strict=True)
        ]
        node.store(x[at[0]][:, at[1]])
        return
    axes = []
    for n, s, extent in zip(size, scale, (height, width), strict=True):
        i = np.arange(n, dtype=np.float64)
        pos = i * s if corners else np.maximum((i + 0.5) * s - 0.5, 0.0)
        low = np.minimum(np.floor(pos).astype(np.int64), extent - 1)
        high = np.minimum(low + 1, extent - 1)
        axes.append((low, high, (pos - low).astype(np.float32)))
    (y0, y1, ly), (x0, x1, lx) = axes
    lx, ly = lx[None, :, None], ly[:, None, None]
    top = fma(x[y0][:, x1] - x[y0][:, x0], lx, x[y0][:, x0])
    bottom = fma(x[y1][:, x1] - x[y1][:, x0], lx, x[y1][:, x0])
    node.store(fma(bottom - top, ly, top))


def window_mean(node: Node, window: Array, divisor: int) -> Float32:
    """The mean of [positions, C] raw values."""
    part = ONE / np.float32(divisor)
    q = node.value(0).quantization
    if q is not None:
        sums = (window.astype(np.int64) - q.zero_point).sum(axis=0).astype(np.float32)
        return sums * (np.float32(q.scale) * part)
    total = np.zeros(window.shape[1], np.float32)
    for row in window:
        total = total + row
    return total * part


def rows_mean(node: Node, i: int, rows: int, channels: int) -> Float32:
    """The mean of operand `i` taken as [rows, channels]."""
    return window_mean(node, node.raw(i).reshape(rows, channels), rows)


def _window_max(window: Array) -> Array:
    if window.dtype == np.int8:
        return np.asarray(window.max(axis=0))
    best = np.full(window.shape[1], -np.inf, np.float32)
    for row in window:
        best = greater(row, best)
    return best


def _pool_size(extent: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    span = extent + 2 * padding - kernel
    if not ceil:
        return span // stride + 1
    size = -(-span // stride) + 1
    # torch: the last window starts inside the image or its leading padding.
    return size - 1 if (size - 1) * stride >= extent + padding else size
