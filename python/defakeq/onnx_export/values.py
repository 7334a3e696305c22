"""The values of a program as names in an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.onnx_export.graph import Graph
from defakeq_kernels import dfq
from defakeq_kernels.quantize import ActQuant

Node = Mapping[str, Any]


class Values:
    """The values of a program in a graph: as floats, as images or rows, and as integers."""

    def __init__(
        self, graph: Graph, tensors: dfq.Tensors, network: dfq.Network, exact: bool, split: bool
    ) -> None:
        self.graph, self.tensors, self.network = graph, tensors, network
        self.exact, self.split = exact, split
        self.values: list[Mapping[str, Any]] = network["program"]["values"]
        self.floats: dict[tuple[int, str], str] = {}
        self.integers: dict[tuple[int, str], str] = {}
        self.pieces: dict[int, list[tuple[int, int]]] = {}  # base: (offset, view)

    def shape(self, v: int) -> list[int]:
        """The shape of a value, without the batch."""
        return [int(n) for n in self.values[v]["shape"]]

    def size(self, v: int) -> int:
        """Elements of a value."""
        return int(np.prod(self.shape(v), dtype=np.int64))

    def quantization(self, v: int) -> ActQuant | None:
        """None for float32 values."""
        value = self.values[v]
        return None if value["dtype"] == "float32" else described(value)

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


def described(entry: Mapping[str, Any]) -> ActQuant:
    """The quantization in an entry of a file."""
    fields = entry["scale"], entry["zero_point"], entry.get("bits", 8)
    return ActQuant("static", float(fields[0]), int(fields[1]), int(fields[2]))
