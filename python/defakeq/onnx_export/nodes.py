"""The nodes of a program as ONNX operators; one method a kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.onnx_export.graph import Graph
from defakeq.onnx_export.weights import add_weight, half_in_parts
from defakeq_kernels import dfq
from defakeq_kernels.packed import PackedWeight
from defakeq_kernels.quantize import ActQuant

Node = Mapping[str, Any]


class Exporter:
    """Writes the nodes of one program into a graph, in order."""

    def __init__(
        self, graph: Graph, tensors: dfq.Tensors, network: dfq.Network, exact: bool, split: bool
    ) -> None:
        self.graph, self.tensors, self.network = graph, tensors, network
        self.exact, self.split = exact, split
        self.values: list[Mapping[str, Any]] = network["program"]["values"]
        self.floats: dict[tuple[int, str], str] = {}
        self.integers: dict[tuple[int, str], str] = {}
        self.pieces: dict[int, list[tuple[int, int]]] = {}  # base: (offset, view)

    # Values

    def shape(self, v: int) -> list[int]:
        """The shape of a value, without the batch."""
        return [int(n) for n in self.values[v]["shape"]]

    def size(self, v: int) -> int:
        """Elements of a value."""
        return int(np.prod(self.shape(v), dtype=np.int64))

    def quantization(self, v: int) -> ActQuant | None:
        """None for float32 values."""
        value = self.values[v]
        return None if value["dtype"] == "float32" else _static(value)

    def layout(self, v: int) -> str:
        """The layout in which a value is there; "plain" when it is there in both."""
        return "nchw" if (v, "plain") not in self.floats and (v, "nchw") in self.floats else "plain"

    def get(self, v: int, layout: str = "plain") -> str:
        """The floats of a value."""
        found = self.floats.get((v, layout))
        if found is None:
            found = self.floats[v, layout] = self._find(v, layout)
        return found

    def _find(self, v: int, layout: str) -> str:
        graph, value = self.graph, self.values[v]
        if (v, "plain") in self.floats or (v, "nchw") in self.floats:
            to_nchw = layout == "nchw"
            if to_nchw and len(self.shape(v)) != 3:
                raise ValueError(f"shape: found {self.shape(v)}; accepted is [H, W, C]")
            other = self.floats[v, "plain" if to_nchw else "nchw"]
            return graph.transpose(other, [0, 3, 1, 2] if to_nchw else [0, 2, 3, 1])
        if "tensor" in value:
            array = dfq.constant(self.tensors, value).reshape([1, *self.shape(v)])
            quantization = self.quantization(v)
            if quantization is not None:
                levels = array.astype(np.int32) - quantization.zero_point
                array = levels.astype(np.float32) * np.float32(quantization.scale)
            self.floats[v, "plain"] = graph.constant(array)
        elif "base" in value:
            begin = int(value.get("offset", 0))
            base = self.get(int(value["base"]))
            if begin == 0 and self.size(v) == self.size(int(value["base"])):
                self.floats[v, "plain"] = graph.reshape(base, self.shape(v))
            else:
                flat = graph.take(graph.reshape(base, [-1]), 1, begin, begin + self.size(v))
                self.floats[v, "plain"] = graph.reshape(flat, self.shape(v))
        elif v in self.pieces:
            pieces = sorted(self.pieces[v])
            parts = [graph.reshape(self.get(view), [-1]) for _, view in pieces]
            joined = graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
            self.floats[v, "plain"] = graph.reshape(joined, self.shape(v))
        else:
            raise ValueError(f"value {v}: found no node that writes it; accepted is one before")
        return self.get(v, layout)

    def put(self, v: int, x: str, layout: str = "plain") -> None:
        """Stores a node's float result in a value: quantized when that is int8."""
        quantization = self.quantization(v)
        if quantization is not None:
            self.integers[v, layout], x = self.graph.quantize(x, quantization)
        self.set(v, x, layout)

    def set(self, v: int, x: str, layout: str) -> None:
        """Stores floats as they are."""
        self.floats[v, layout] = x
        value = self.values[v]
        if "base" in value:
            piece = (int(value.get("offset", 0)), v)
            self.pieces.setdefault(int(value["base"]), []).append(piece)

    def tensor(self, node: Node, key: str) -> NDArray[Any] | None:
        """The tensor that an attribute names."""
        name = node.get(key)
        return None if name is None else self.tensors[name]

    def run(self, node: Node) -> None:
        """Exports one node.

        Raises:
            ValueError: a node that has no ONNX form, by name.
        """
        kind, name = node.get("op"), node.get("name", "")
        method = getattr(self, f"_op_{kind}", None)
        try:
            if method is None:
                raise ValueError(f"op: found {kind!r}; accepted is a kind that ONNX can express")
            method(node, [int(v) for v in node["in"]], int(node["out"][0]))
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"node {name!r} ({kind}) cannot be exported: {error}") from error

    # Layers

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
        result = _static(description["out"]) if table is not None else self.quantization(out)
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
        pool = _static(node["pool"])
        _, p = graph.quantize(graph.op("GlobalAveragePool", x), pool)
        p, before = graph.reshape(p, [self.shape(ins[0])[2]]), pool
        for key, end in (("1", "hidden"), ("2", "gate")):
            name = str(node[f"fc{key}"])
            description = self.network["layers"][name]
            weight = PackedWeight.from_tensors(name, self.tensors, description)
            y = self._product(name, weight, p, before, None, "plain")
            y = graph.function(description["activation"], y)
            before = _static(node[end])
            table = self.tensor(node, f"table{key}")
            if table is None:
                _, p = graph.quantize(y, before)
                continue
            stored = _static(description["out"])
            fn = node.get(f"fn{key}") or recognise(table, stored, before)
            q, y = self._before_table(y, stored, fn)
            _, p = graph.lookup(q, table, fn, y, before)
        gate = graph.reshape(p, [self.shape(out)[2], 1, 1])
        self.put(out, graph.op("Mul", x, gate), "nchw")

    # Elementwise

    def _op_lookup(self, node: Node, ins: list[int], out: int) -> None:
        layout = self.layout(ins[0])
        x = self.get(ins[0], layout)
        own, target = self.quantization(ins[0]), self.quantization(out)
        table = self.tensor(node, "table")
        assert own is not None
        assert target is not None
        assert table is not None
        fn = node.get("fn") or recognise(table, own, target)
        q = self.integers.get((ins[0], layout), "")
        if not q and fn is None:
            q, x = self.graph.quantize(x, own)
        self.integers[out, layout], y = self.graph.lookup(q, table, fn, x, target)
        self.set(out, y, layout)

    def _op_convert(self, node: Node, ins: list[int], out: int) -> None:
        layout = self.layout(ins[0])
        self.put(out, self.get(ins[0], layout), layout)

    def _op_unary(self, node: Node, ins: list[int], out: int) -> None:
        layout = self.layout(ins[0])
        self.put(out, self.graph.function(node["fn"], self.get(ins[0], layout)), layout)

    def _op_binary(self, node: Node, ins: list[int], out: int) -> None:
        kinds = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"}
        layout = self.layout(ins[0])
        shape, other = self.shape(ins[0]), self.shape(ins[1])
        if len(other) == len(shape):
            b = self.get(ins[1], layout)
        else:
            ones = [1] * (len(shape) - 1)
            wanted = [*other, *ones] if layout == "nchw" else [*ones, *other]
            b = self.graph.reshape(self.get(ins[1]), wanted)
        y = self.graph.op(kinds[node["fn"]], self.get(ins[0], layout), b)
        self.put(out, self.graph.function(node.get("activation", "none"), y), layout)

    # Normalization and attention

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

    # Pooling, reduction, movement

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

    def _op_copy(self, node: Node, ins: list[int], out: int) -> None:
        graph, chunk = self.graph, int(node["chunk"])
        index = dfq.copy_index(self.tensors, node)
        parts = [graph.reshape(self.get(v), [-1, chunk]) for v in ins]
        x = graph.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        total = sum(self.size(v) for v in ins) // chunk
        if not np.array_equal(index.reshape(-1), np.arange(total)):
            x = self._rows(x, index.reshape(-1))
        self.put(out, graph.reshape(x, self.shape(out)))


_TABLES: dict[str, Any] = {
    "requantize": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "gelu": lambda x: x * (0.5 + 0.5 * np.vectorize(math.erf)(x / math.sqrt(2))),
}


def recognise(table: NDArray[np.int8], source: ActQuant, target: ActQuant) -> str | None:
    """The function whose rounded values a table holds, to one step; None: another one."""
    levels = np.arange(source.qmin, source.qmax + 1)
    x = (levels - source.zero_point) * float(source.scale)
    for name, function in _TABLES.items():
        with np.errstate(over="ignore"):
            y = np.rint(function(x) / target.scale) + target.zero_point
        expected = np.clip(y, target.qmin, target.qmax)
        difference = np.abs(expected - table[levels + 128])
        if difference.max() <= 1 and np.mean(difference) < 0.05:
            return name
    return None


def _static(described: Mapping[str, Any]) -> ActQuant:
    fields = described["scale"], described["zero_point"], described.get("bits", 8)
    return ActQuant("static", float(fields[0]), int(fields[1]), int(fields[2]))


def _range(q: ActQuant) -> tuple[float, float]:
    return (q.qmin - q.zero_point) * q.scale, (q.qmax - q.zero_point) * q.scale


def _pair(value: Any) -> list[int]:
    return [int(value)] * 2 if isinstance(value, int) else [int(v) for v in value]


def _grid(*dims: tuple[int, int]) -> NDArray[np.int64]:
    """Flat indices over (size, stride) dimensions."""
    index = np.zeros([size for size, _ in dims], np.int64)
    for axis, (size, stride) in enumerate(dims):
        steps = np.arange(size) * stride
        index += steps.reshape([-1 if i == axis else 1 for i in range(len(dims))])
    return index


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
