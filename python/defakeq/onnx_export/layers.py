"""Layers of a program as ONNX operators."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.onnx_export.tables import recognise
from defakeq.onnx_export.values import Node, Values, described
from defakeq.onnx_export.weights import add_weight, half_in_parts
from defakeq_kernels.packed import PackedWeight
from defakeq_kernels.quantize import ActQuant


class Layers(Values):
    """Convolutions, linear layers and squeeze-excite."""

    def _op_conv2d(self, node: Node, ins: list[int], out: int) -> None:
        self._layer(node, ins, out, "nchw")

    def _op_linear(self, node: Node, ins: list[int], out: int) -> None:
        self._layer(node, ins, out, "plain")

    def _layer(self, node: Node, ins: list[int], out: int, layout: str) -> None:
        graph, name = self.graph, str(node["layer"])
        description = self.network["layers"][name]
        weight = PackedWeight.from_tensors(name, self.tensors, description)
        x_quantization = self.quantization(ins[0])
        x = self.get(ins[0], layout)
        half = self.get(ins[2], layout) if len(ins) > 2 and ins[2] >= 0 else None
        if half is None and weight.half_in_index is not None:
            index = graph.constant(weight.half_in_index.astype(np.int64))
            half = graph.op("Gather", x, index, axis=1 if layout == "nchw" else -1)
        y = self._product(name, weight, x, x_quantization, half, layout)
        if layout == "plain" and self.shape(ins[0])[:-1] != self.shape(out)[:-1]:
            y = graph.reshape(y, self.shape(out))
        activation = description["activation"]
        table = self.tensor(node, "table")
        result = described(description["out"]) if table is not None else self.quantization(out)
        if len(ins) > 1 and ins[1] >= 0:
            y = self._residual(y, ins[1], result, layout)
        if self.split and activation == "relu" and result is not None:
            # Rounding and ReLU commute, and only a layer that ends in a rounding runs in int8.
            _, y = graph.quantize(y, result)
        y = graph.function(activation, y)
        if table is None:
            self.put(out, y, layout)
            return
        assert result is not None
        target = self.quantization(out)
        assert target is not None
        fn = node.get("fn") or recognise(table, result, target)
        q, x = self._before_table(y, result, fn)
        self.integers[out, layout], y = graph.lookup(q, table, fn, x, target)
        self.set(out, y, layout)

    def _before_table(self, y: str, result: ActQuant, fn: str | None) -> tuple[str, str]:
        """The layer's own int8 result, left out where engines fuse the function instead."""
        if fn is None or self.exact or self.split:
            return self.graph.quantize(y, result)
        self.graph.note("no rounding between a layer and its table: the function is fused")
        return "", y

    def _residual(self, y: str, v: int, result: ActQuant | None, layout: str) -> str:
        own = self.quantization(v)
        if self.split and own is not None and result is not None:
            # What lies outside cannot reach the result's range whatever is added.
            ends = [_range(q) for q in (result, own)]
            low, high = ends[0][0] - ends[1][1], ends[0][1] - ends[1][0]
            scale = (high - low) / 255
            zero = int(np.clip(round(-128 - low / scale), -128, 127))
            _, y = self.graph.quantize(y, ActQuant("static", float(np.float32(scale)), zero, 8))
            self.graph.note("an int8 rounding before residual sums")
        return self.graph.op("Add", y, self.get(v, layout))

    def _product(
        self,
        name: str,
        weight: PackedWeight,
        x: str,
        quantization: ActQuant | None,
        half: str | None,
        layout: str,
    ) -> str:
        """Weight, bias and half-precision inputs, in the original channel order."""
        graph = self.graph
        bias = weight.bias
        results, order = [], []
        for part in add_weight(graph, name, weight, self.exact):
            own = np.zeros(len(part.rows), np.float32) if bias is None else bias[part.rows]
            added = "" if bias is None else graph.constant(own, f"{name}.bias")
            if bias is not None and part.scale is not None and quantization and not self.exact:
                added = self._int32_bias(own, part.scale * np.float32(quantization.scale), added)
            own_x, groups = self._inputs_of_part(weight, part.outputs, x)
            results.append(self._apply(weight, own_x, part.name, added, layout, groups))
            order.append(part.outputs)
        axis = 1 if layout == "nchw" else -1
        channels = np.concatenate(order)
        y = graph.op("Concat", *results, axis=axis) if len(results) > 1 else results[0]
        if half is not None:
            columns = half_in_parts(graph, name, weight)
            extra = self._apply(weight, half, columns, "", layout, weight.groups)
            stored = weight.out_index
            if not np.array_equal(stored, channels):
                where = np.argsort(stored)[np.searchsorted(np.sort(stored), channels)]
                extra = graph.op("Gather", extra, graph.constant(where.astype(np.int64)), axis=axis)
            y = graph.op("Add", y, extra)
        outs = weight.shape[0]
        if not np.array_equal(channels, np.arange(outs)):
            place = np.full(outs, len(channels), np.int64)
            place[channels] = np.arange(len(channels))
            if len(channels) < outs:
                pad = graph.ints([0, 1]), graph.constant(np.float32(0)), graph.ints([axis])
                y = graph.op("Pad", y, *pad)
            y = graph.op("Gather", y, graph.constant(place), axis=axis)
        return y

    def _inputs_of_part(
        self, weight: PackedWeight, outputs: NDArray[Any], x: str
    ) -> tuple[str, int]:
        """The input of some outputs of a convolution, and its groups: a group an output where
        they leave groups uneven."""
        groups = weight.groups
        of_output = outputs // (weight.shape[0] // groups)
        if np.array_equal(of_output, np.repeat(np.arange(groups), len(outputs) // groups)):
            return x, groups
        inputs = np.arange(weight.shape[1])
        taken = (of_output[:, None] * len(inputs) + inputs).reshape(-1).astype(np.int64)
        return self.graph.op("Gather", x, self.graph.constant(taken), axis=1), len(outputs)

    def _int32_bias(self, bias: NDArray[Any], scale: NDArray[Any], plain: str) -> str:
        levels = np.rint(bias.astype(np.float64) / scale)
        if np.abs(levels).max() >= 2**31 - 1:
            return plain
        self.graph.note("biases as int32")
        constant = self.graph.constant(levels.astype(np.int32), "bias")
        return self.graph.op("DequantizeLinear", constant, self.graph.constant(scale), axis=0)

    def _apply(
        self, weight: PackedWeight, x: str, w: str, bias: str, layout: str, groups: int
    ) -> str:
        graph = self.graph
        inputs = [x, w, *([bias] if bias else [])]
        if layout == "nchw" and weight.kind == "conv2d":
            pads = [*weight.padding, *weight.padding]
            return graph.op(
                "Conv", *inputs, strides=list(weight.stride), pads=pads,
                dilations=list(weight.dilation), group=groups,
            )  # fmt: skip
        y = graph.op("MatMul", x, graph.transpose(w, [1, 0]))
        return graph.op("Add", y, bias) if bias else y

    def _op_squeeze_excite(self, node: Node, ins: list[int], out: int) -> None:
        graph = self.graph
        x = self.get(ins[0], "nchw")
        pool = described(node["pool"])
        _, p = graph.quantize(graph.op("GlobalAveragePool", x), pool)
        p, before = graph.reshape(p, [self.shape(ins[0])[2]]), pool
        for key, end in (("1", "hidden"), ("2", "gate")):
            name = str(node[f"fc{key}"])
            description = self.network["layers"][name]
            weight = PackedWeight.from_tensors(name, self.tensors, description)
            y = self._product(name, weight, p, before, None, "plain")
            y = graph.function(description["activation"], y)
            before = described(node[end])
            table = self.tensor(node, f"table{key}")
            if table is None:
                _, p = graph.quantize(y, before)
                continue
            stored = described(description["out"])
            fn = node.get(f"fn{key}") or recognise(table, stored, before)
            q, y = self._before_table(y, stored, fn)
            _, p = graph.lookup(q, table, fn, y, before)
        gate = graph.reshape(p, [self.shape(out)[2], 1, 1])
        self.put(out, graph.op("Mul", x, gate), "nchw")


def _range(q: ActQuant) -> tuple[float, float]:
    return (q.qmin - q.zero_point) * q.scale, (q.qmax - q.zero_point) * q.scale
