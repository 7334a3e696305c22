"""Elementwise nodes of a program as ONNX operators."""

from __future__ import annotations

from defakeq.onnx_export.tables import recognise
from defakeq.onnx_export.values import Node, Values


class Elementwise(Values):
    """Functions, tables and binary arithmetic."""

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
