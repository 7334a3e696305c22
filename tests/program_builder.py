"""Assembles programs by hand for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from defakeq_kernels import dfq
from defakeq_kernels.quantize import ActQuant, int8_out, quantize_weight


class Builder:
    """Values, nodes and random layers of one program; `source()` is what the oracle reads."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray] = {}
        self.values: list[dict[str, Any]] = []
        self.program: dict[str, Any] = {"version": 1, "values": self.values}
        self.program |= {"inputs": [], "outputs": [], "nodes": []}
        self.network: dict[str, Any] = {"layers": {}, "program": self.program}

    def quant(self, low: float = -3.0, high: float = 3.0, bits: int = 8) -> ActQuant:
        return ActQuant.static(low, high, bits)

    def value(self, shape, q: ActQuant | None = None, **extra: Any) -> int:
        described: dict[str, Any] = {"dtype": "float32" if q is None else "int8"}
        described["shape"] = list(shape)
        if q is not None:
            described |= {"scale": q.scale, "zero_point": q.zero_point, "bits": q.bits}
        self.values.append(described | extra)
        return len(self.values) - 1

    def tensor(self, array: np.ndarray) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = array
        return name

    def constant(self, array: np.ndarray, q: ActQuant | None = None) -> int:
        return self.value(array.shape, q, tensor=self.tensor(array))

    def input(self, shape, q: ActQuant | None = None, layout: str = "plain") -> int:
        at = self.value(shape, q)
        name = f"x{len(self.program['inputs'])}"
        self.program["inputs"].append({"name": name, "value": at, "layout": layout})
        return at

    def output(self, at: int, layout: str = "plain") -> None:
        name = f"y{len(self.program['outputs'])}"
        self.program["outputs"].append({"name": name, "value": at, "layout": layout})

    def node(self, op: str, ins, shape, q: ActQuant | None = None, /, **attributes: Any) -> int:
        out = self.value(shape, q)
        name = f"{op}{len(self.program['nodes'])}"
        node = {"op": op, "name": name, "in": list(ins), "out": [out]}
        self.program["nodes"].append(node | attributes)
        return out

    def layer(self, kind, shape, act, out=None, activation: str = "none", **options: Any) -> str:
        name = f"layer{len(self.network['layers'])}"
        dense = self.rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        weight = quantize_weight(dense, kind=kind, **options)
        dfq.add_layer(
            *(self.tensors, self.network, name, weight),
            None if act is None else act.describe(),
            activation,
            None if out is None else int8_out(out),
        )
        return name

    def source(self):
        return dfq.loads(dfq.dumps(self.tensors, self.network))
