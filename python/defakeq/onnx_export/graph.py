"""A growing ONNX graph that holds the values of a program in one or two layouts each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels.quantize import ActQuant

OPSET = 21
IR_VERSION = 10
_INT4 = (-8, 7)


class Graph:
    """Nodes, constants and the names that values have.

    A value [H, W, C] can be held as "nchw" ([N, C, H, W]); every value as "plain" ([N, *shape]).
    A layout that is asked for and not there yet is made by one Transpose and kept.
    """

    def __init__(self, onnx: Any, batch: int | str, unsigned: bool) -> None:
        self.onnx, self.batch, self.unsigned = onnx, batch, unsigned
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.notes: dict[str, int] = {}
        self._number = 0
        self._shared: dict[tuple[Any, ...], str] = {}

    def note(self, text: str) -> None:
        """Counts something that other engines do in another way than ours."""
        self.notes[text] = self.notes.get(text, 0) + 1

    def name(self, hint: str) -> str:
        """A name that is not in use."""
        self._number += 1
        return f"{hint}_{self._number}"

    def op(
        self, kind: str, *inputs: str, hint: str = "", outputs: int = 1, **attributes: Any
    ) -> str:
        """Adds a node; returns the name of its output."""
        name = self.name(hint or kind.lower())
        self.nodes.append(
            self.onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes)
        )
        return name

    def constant(self, array: Any, hint: str = "c") -> str:
        """Adds an initializer; small equal ones are shared."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 16 else ()
        if key and key in self._shared:
            return self._shared[key]
        name = self.name(hint)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        if key:
            self._shared[key] = name
        return name

    def int4(self, array: NDArray[Any], signed: bool, hint: str = "w") -> str:
        """Adds an initializer of 4-bit integers, two a byte."""
        name = self.name(hint)
        types = self.onnx.TensorProto
        flat = array.reshape(-1).astype(np.int16) & 15
        flat = np.append(flat, np.zeros(len(flat) % 2, np.int16)).astype(np.uint8)
        tensor = self.onnx.TensorProto(
            name=name,
            dims=list(array.shape),
            data_type=types.INT4 if signed else types.UINT4,
            raw_data=(flat[0::2] | flat[1::2] << 4).tobytes(),
        )
        self.constants.append(tensor)
        return name

    def ints(self, values: Sequence[int]) -> str:
        """An int64 vector."""
        return self.constant(np.asarray(values, np.int64))

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Reshapes [N, ...] to [N, *shape]."""
        return self.op("Reshape", x, self.ints([0, *shape]))

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        """Permutes the dimensions."""
        return self.op("Transpose", x, perm=list(perm))

    def take(self, x: str, axis: int, begin: int, end: int) -> str:
        """The elements begin to end of one dimension."""
        return self.op("Slice", x, *(self.ints([v]) for v in (begin, end, axis)))

    def zero_point(self, quantization: ActQuant) -> str:
        """The zero point constant in the graph's activation type."""
        if self.unsigned:
            return self.constant(np.asarray(quantization.zero_point + 128, np.uint8))
        return self.constant(np.asarray(quantization.zero_point, np.int8))

    def quantize(self, x: str, quantization: ActQuant) -> tuple[str, str]:
        """A pair of QuantizeLinear and DequantizeLinear: (integers, floats)."""
        scale = np.float32(quantization.scale)
        if quantization.bits < 8:
            ends = (quantization.qmin, quantization.qmax)
            low, high = (np.float32(v - quantization.zero_point) * scale for v in ends)
            x = self.op("Clip", x, self.constant(low), self.constant(high))
        parameters = self.constant(scale), self.zero_point(quantization)
        q = self.op("QuantizeLinear", x, *parameters, hint="q")
        return q, self.op("DequantizeLinear", q, *parameters, hint="dq")

    def dequantize(self, q: str, quantization: ActQuant) -> str:
        """The floats of integers of the graph's activation type."""
        parameters = self.constant(np.float32(quantization.scale)), self.zero_point(quantization)
        return self.op("DequantizeLinear", q, *parameters, hint="dq")

    def function(self, fn: str, x: str) -> str:
        """An elementwise function by its name in a program.

        Raises:
            ValueError: a name that has no ONNX form.
        """
        simple = {
            "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardswish": "HardSwish",
            "gelu": "Gelu", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg",
            "reciprocal": "Reciprocal",
        }  # fmt: skip
        if fn in ("none", "identity", "requantize"):
            return x
        if fn in simple:
            return self.op(simple[fn], x)
        if fn == "relu6":
            return self.op("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))
        if fn == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if fn == "hardsigmoid":
            return self.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
        if fn == "rsqrt":
            return self.op("Reciprocal", self.op("Sqrt", x))
        if fn == "square":
            return self.op("Mul", x, x)
        raise ValueError(f"fn: found {fn!r}; accepted is a function that ONNX has")

    def lookup(
        self, q: str, table: NDArray[np.int8], fn: str | None, x: str, quantization: ActQuant
    ) -> tuple[str, str]:
        """A 256-entry table: the function it holds when that is known, else a Gather."""
        if fn is not None:
            self.note(
                "tables as float functions between quantizations: one step where they round apart"
            )
            return self.quantize(self.function(fn, x), quantization)
        shift = 128 if self.unsigned else 0
        kind: Any = np.uint8 if self.unsigned else np.int8
        entries = self.constant((table.astype(np.int16) + shift).astype(kind), "table")
        index = self.op("Cast", q, to=self.onnx.TensorProto.INT32)
        if not self.unsigned:
            index = self.op("Add", index, self.constant(np.asarray(128, np.int32)))
        out = self.op("Gather", entries, index)
        return out, self.dequantize(out, quantization)

    def model(self, producer: str, metadata: Mapping[str, str]) -> Any:
        """The finished model."""
        helper = self.onnx.helper
        graph = helper.make_graph(
            self.nodes, "defakeq", self.inputs, self.outputs, initializer=self.constants
        )
        model = helper.make_model(
            graph,
            producer_name=producer,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, dict(metadata))
        return model
