"""A program as read from its file: checked values, ports and nodes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels import dfq, reference
from defakeq_kernels.checks import refuse, shown
from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.reference_program.fields import get_of, integer_of, quantization_of, sizes_of

Array = NDArray[Any]
Source = str | os.PathLike[str] | tuple[Mapping[str, Array], Mapping[str, Any]]
VERSION = 1


@dataclass(frozen=True)
class Value:
    """One entry of `values`; `base` is -1 and `array` None where there is none."""

    dtype: str
    shape: tuple[int, ...]
    quantization: ActQuant | None
    tensor: str | None
    base: int
    offset: int
    array: Array | None = None

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class Program:
    """A checked program. Nodes are checked as they run."""

    def __init__(self, source: Source) -> None:
        self.tensors: Mapping[str, Array]
        if isinstance(source, tuple):
            self.tensors, self.network = source
        else:
            self.tensors, self.network = dfq.read(source)
        program = self.network.get("program")
        if not isinstance(program, Mapping):
            refuse("program", shown(program), "an object")
        if program.get("version") != VERSION:
            refuse("program.version", shown(program.get("version")), str(VERSION))
        for key in ("values", "inputs", "outputs", "nodes"):
            if not isinstance(program.get(key), list):
                refuse(f"program.{key}", shown(program.get(key)), "a list")
            for i, item in enumerate(program[key]):
                if not isinstance(item, Mapping):
                    refuse(f"program.{key}[{i}]", shown(item), "an object")
        self.values = [self._value(i, v) for i, v in enumerate(program["values"])]
        for i, value in enumerate(self.values):
            self._check_view(i, value)
        self.inputs = [self._port("inputs", i, p) for i, p in enumerate(program["inputs"])]
        self.outputs = [self._port("outputs", i, p) for i, p in enumerate(program["outputs"])]
        self.nodes = program["nodes"]

    def _value(self, i: int, v: Mapping[str, Any]) -> Value:
        field = f"values[{i}]"
        dtype = get_of(field, v, "dtype")
        if dtype not in ("int8", "float32"):
            refuse(f"{field}.dtype", shown(dtype), '"int8" or "float32"')
        shape = sizes_of(f"{field}.shape", get_of(field, v, "shape"))
        tensor, array = v.get("tensor"), None
        if tensor is not None:
            array = self.constant(field, v, shape)
            if array.dtype != np.dtype(dtype) or array.shape != shape:
                found = f"{array.dtype} {list(array.shape)}"
                refuse(f"{field}.tensor", found, f"{dtype} {list(shape)}")
        base = -1
        if v.get("base") is not None:
            base = integer_of(f"{field}.base", v["base"], 0)
        offset = integer_of(f"{field}.offset", v.get("offset", 0), 0)
        quantization = quantization_of(field, v) if dtype == "int8" else None
        return Value(dtype, shape, quantization, tensor, base, offset, array)

    def constant(self, field: str, v: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
        """A constant value: a tensor, or the columns of one that an index names."""
        array = self.tensor(f"{field}.tensor", v.get("tensor"))
        if v.get("index") is None:
            return array
        index = self.tensor(f"{field}.index", v["index"])
        columns = array.shape[-1] if array.ndim else 1
        if index.dtype != np.int32 or index.ndim != 1 or index.size == 0:
            refuse(f"{field}.index", f"{index.dtype} {list(index.shape)}", "int32 [count]")
        if int(index.min()) < 0 or int(index.max()) >= columns:
            found = f"{index.min()} to {index.max()}"
            refuse(f"{field}.index", found, f"0 to {columns - 1}")
        wide = array.reshape(-1, columns)[:, index]
        if wide.size != math.prod(shape):
            refuse(f"{field}.index", f"{wide.size} elements", f"{math.prod(shape)}")
        return wide.reshape(shape)

    def _check_view(self, i: int, value: Value) -> None:
        if value.base < 0:
            return
        field = f"values[{i}].base"
        if value.base >= len(self.values):
            refuse(field, str(value.base), f"a value below {len(self.values)}")
        base = self.values[value.base]
        if base.base >= 0 or base.tensor is not None or value.tensor is not None:
            refuse(field, f"value {value.base}", "a value that is neither a view nor a constant")
        if (base.dtype, base.quantization) != (value.dtype, value.quantization):
            refuse(field, f"value {value.base}", "one of the same dtype and quantization")
        if value.offset + value.size > base.size:
            found = f"{value.offset} + {value.size} elements"
            refuse(f"values[{i}].offset", found, f"up to {base.size}")

    def _port(self, kind: str, i: int, p: Mapping[str, Any]) -> tuple[str, int, bool]:
        field = f"{kind}[{i}]"
        at = integer_of(f"{field}.value", get_of(field, p, "value"), 0)
        if at >= len(self.values):
            refuse(f"{field}.value", str(at), f"a value below {len(self.values)}")
        layout = get_of(field, p, "layout")
        if layout not in ("nchw", "plain"):
            refuse(f"{field}.layout", shown(layout), '"nchw" or "plain"')
        if layout == "nchw" and len(self.values[at].shape) != 3:
            refuse(f"{field}.layout", '"nchw"', '"plain" unless the value is [H, W, C]')
        return str(p.get("name", "")), at, layout == "nchw"

    def tensor(self, field: str, name: object) -> Array:
        """An array of the file."""
        if not isinstance(name, str) or name not in self.tensors:
            refuse(field, shown(name), "the name of a tensor")
        return self.tensors[name]

    def port_shape(self, port: tuple[str, int, bool]) -> tuple[int, ...]:
        """A port's shape for the caller."""
        shape = self.values[port[1]].shape
        return (shape[2], shape[0], shape[1]) if port[2] else shape

    def check_inputs(self, inputs: Sequence[Array]) -> int:
        """The batch of the inputs, which have the shapes of the ports."""
        if len(inputs) != len(self.inputs):
            refuse("inputs", f"{len(inputs)} arrays", f"{len(self.inputs)}")
        batch = len(inputs[0]) if inputs and np.ndim(inputs[0]) else 1
        for port, x in zip(self.inputs, inputs, strict=True):
            wanted = (batch, *self.port_shape(port))
            if x.dtype != np.float32 or x.shape != wanted:
                found = f"{x.dtype} {list(x.shape)}"
                refuse(f"input {port[0]}", found, f"float32 {list(wanted)}")
        return batch

    def outputs_of(self, values: list[Array]) -> list[Array]:
        """The ports' float32 arrays from the values of an image."""
        result = []
        for name, at, nchw in self.outputs:
            q = self.values[at].quantization
            y = values[at]
            if y.size == 0 and self.values[at].size:
                refuse(f"output {name}", "a value that no node writes", "a written value")
            y = y if q is None else reference.dequantize(y, q)
            result.append(np.ascontiguousarray(y.transpose(2, 0, 1) if nchw else y))
        return result
