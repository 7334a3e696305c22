"""Nodes over rows of a program as ONNX operators: norms, attention, products, sums, copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.onnx_export.values import Node, Values
from defakeq_kernels import dfq
from defakeq_kernels.quantize import ActQuant


class Rows(Values):
    """What works on [N, rows, channels]."""

    def _rows(self, x: str, rows: NDArray[Any]) -> str:
        """Rows of [N, R, C]; -1: zeros."""
        graph, rows = self.graph, rows.astype(np.int64)
        taken = graph.op("Gather", x, graph.constant(np.maximum(rows, 0)), axis=1)
        if (rows >= 0).all():
            return taken
        # A Pad would do, but OpenVINO 2026.4 crashes on one between quantizations.
        mask = (rows >= 0).astype(np.float32).reshape(1, -1, 1)
        return graph.op("Mul", taken, graph.constant(mask))

    def _op_layer_norm(self, node: Node, ins: list[int], out: int) -> None:
        graph, x = self.graph, self.get(ins[0])
        channels, eps = self.shape(ins[0])[-1], float(node["eps"])
        count = int(node.get("count", channels))
        gamma, beta = self.tensor(node, "gamma"), self.tensor(node, "beta")
        if count == channels:
            scale = np.ones(channels, np.float32) if gamma is None else gamma
            inputs = [x, graph.constant(scale), *([] if beta is None else [graph.constant(beta)])]
            y = graph.op("LayerNormalization", *inputs, axis=-1, epsilon=eps)
        else:
            last, share = graph.ints([-1]), graph.constant(np.float32(1 / count))
            mean = graph.op("Mul", graph.op("ReduceSum", x, last), share)
            d = graph.op("Sub", x, mean)
            absent = graph.constant(np.float32(count - channels))
            squares = graph.op("ReduceSum", graph.op("Mul", d, d), last)
            more = graph.op("Mul", graph.op("Mul", mean, mean), absent)
            var = graph.op("Mul", graph.op("Add", squares, more), share)
            root = graph.op("Sqrt", graph.op("Add", var, graph.constant(np.float32(eps))))
            y = graph.op("Div", d, root)
            y = y if gamma is None else graph.op("Mul", y, graph.constant(gamma))
            y = y if beta is None else graph.op("Add", y, graph.constant(beta))
        rows = self.tensor(node, "rows")
        if rows is not None:
            y = self._rows(graph.reshape(y, [-1, channels]), rows)
        self.put(out, graph.reshape(y, self.shape(out)))

    def _op_softmax(self, node: Node, ins: list[int], out: int) -> None:
        self.put(out, self.graph.op("Softmax", self.get(ins[0]), axis=-1))

    def _heads(self, v: int, at: Mapping[str, Any], sizes: Sequence[int]) -> str:
        """[N, B, H, T, D] of a value by element strides."""
        graph, (batches, tokens, heads, dim) = self.graph, sizes
        offset, token, head = int(at.get("offset", 0)), int(at["token"]), int(at["head"])
        batch = int(at.get("batch", 0))
        dense = self.size(v) == batches * tokens * token and offset < token
        if dense and (batches == 1 or batch == tokens * token):
            x, fits = graph.reshape(self.get(v), [batches, tokens, token]), True
            if head == dim and offset + heads * dim <= token:
                if heads * dim < token:
                    x = graph.take(x, 3, offset, offset + heads * dim)
                x = graph.reshape(x, [batches, tokens, heads, dim])
            elif heads * head == token and offset + dim <= head:
                x = graph.reshape(x, [batches, tokens, heads, head])
                x = graph.take(x, 4, offset, offset + dim)
            else:
                fits = False
            if fits:
                return graph.transpose(x, [0, 1, 3, 2, 4])
        index = offset + _grid((batches, batch), (heads, head), (tokens, token), (dim, 1))
        flat = graph.reshape(self.get(v), [-1])
        return graph.op("Gather", flat, graph.constant(index), axis=1)

    def _op_attention(self, node: Node, ins: list[int], out: int) -> None:
        graph = self.graph
        batches, heads, dim = int(node["batches"]), int(node["heads"]), int(node["head_dim"])
        q_tokens, k_tokens = int(node["q_tokens"]), int(node["k_tokens"])
        width = int(node.get("value_dim", dim))
        q = self._heads(ins[0], node["q"], (batches, q_tokens, heads, dim))
        k = self._heads(ins[1], node["k"], (batches, k_tokens, heads, dim))
        v = self._heads(ins[2], node["v"], (batches, k_tokens, heads, width))
        s = graph.op("MatMul", q, graph.transpose(k, [0, 1, 2, 4, 3]))
        own, other = self.quantization(ins[0]), self.quantization(ins[1])
        assert own is not None
        assert other is not None
        factor = np.float32(float(node["alpha"]) / (own.scale * other.scale))
        s = graph.op("Mul", s, graph.constant(factor))
        if len(ins) > 3 and ins[3] >= 0:
            s = graph.op("Add", s, graph.reshape(self.get(ins[3]), [1, heads, q_tokens, k_tokens]))
        if len(ins) > 4 and ins[4] >= 0:
            masks = self.size(ins[4]) // (q_tokens * k_tokens)
            mask = graph.reshape(self.get(ins[4]), [masks, 1, q_tokens, k_tokens])
            if 1 < masks < batches:
                mask = graph.op("Concat", *[mask] * (batches // masks), axis=1)
            s = graph.op("Add", s, mask)
        graph.note("softmax of attention rounded to 1/255 of 1, not of its row's maximum")
        p = ActQuant("static", float(np.float32(1 / 255)), -128, 8)
        _, p_floats = graph.quantize(graph.op("Softmax", s, axis=-1), p)
        y = graph.transpose(graph.op("MatMul", p_floats, v), [0, 1, 3, 2, 4])
        rows = self.tensor(node, "rows")
        if rows is not None:
            inverse = np.full(self.size(out) // (heads * width), -1, np.int64)
            inverse[rows] = np.arange(len(rows))
            y = self._rows(graph.reshape(y, [-1, heads * width]), inverse)
        self.put(out, graph.reshape(y, self.shape(out)))

    def _op_matmul(self, node: Node, ins: list[int], out: int) -> None:
        graph = self.graph
        batches, m, n, k = (int(node[key]) for key in ("batches", "m", "n", "k"))
        a = self._matrix(ins[0], node["a"], batches, m, k)
        b = self._matrix(ins[1], node["b"], batches, k, n)
        own, other = self.quantization(ins[0]), self.quantization(ins[1])
        assert own is not None
        assert other is not None
        y = graph.op("MatMul", a, b)
        factor = np.float32(float(node["alpha"]) / (own.scale * other.scale))
        if abs(factor - 1) > 1e-6:
            y = graph.op("Mul", y, graph.constant(factor))
        self.put(out, graph.reshape(y, self.shape(out)))

    def _matrix(self, v: int, at: Mapping[str, Any], batches: int, rows: int, cols: int) -> str:
        graph = self.graph
        offset, batch = int(at.get("offset", 0)), int(at.get("batch", 0))
        row, col = int(at["row"]), int(at.get("col", 1))
        whole = self.size(v) == batches * rows * cols and offset == 0
        if whole and (batches == 1 or batch == rows * cols):
            if (row, col) == (cols, 1):
                return graph.reshape(self.get(v), [batches, rows, cols])
            if (row, col) == (1, rows):
                x = graph.reshape(self.get(v), [batches, cols, rows])
                return graph.transpose(x, [0, 1, 3, 2])
        index = offset + _grid((batches, batch), (rows, row), (cols, col))
        flat = graph.reshape(self.get(v), [-1])
        return graph.op("Gather", flat, graph.constant(index), axis=1)

    def _op_mean_rows(self, node: Node, ins: list[int], out: int) -> None:
        graph, shape = self.graph, self.shape(ins[0])
        if self.layout(ins[0]) == "nchw":
            y = graph.op("GlobalAveragePool", self.get(ins[0], "nchw"))
        else:
            x = graph.reshape(self.get(ins[0]), [-1, shape[-1]])
            y = graph.op("ReduceMean", x, graph.ints([1]), keepdims=0)
        self.put(out, graph.reshape(y, self.shape(out)))

    def _op_reduce(self, node: Node, ins: list[int], out: int) -> None:
        kinds = {"mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax", "l2": "ReduceL2"}
        y = self.graph.op(kinds[node["fn"]], self.get(ins[0]), self.graph.ints([-1]))
        self.put(out, self.graph.reshape(y, self.shape(out)))

    def _op_copy(self, node: Node, ins: list[int], out: int) -> None:
        graph, chunk = self.graph, int(node["chunk"])
        index = dfq.copy_index(self.tensors, node)
        parts = [graph.reshape(self.get(v), [-1, chunk]) for v in ins]
        x = graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        total = sum(self.size(v) for v in ins) // chunk
        if not np.array_equal(index.reshape(-1), np.arange(total)):
            x = self._rows(x, index.reshape(-1))
        self.put(out, graph.reshape(x, self.shape(out)))


def _grid(*dims: tuple[int, int]) -> NDArray[np.int64]:
    """Flat indices over (size, stride) dimensions."""
    index = np.zeros([size for size, _ in dims], np.int64)
    for axis, (size, stride) in enumerate(dims):
        steps = np.arange(size) * stride
        index += steps.reshape([-1 if i == axis else 1 for i in range(len(dims))])
    return index
