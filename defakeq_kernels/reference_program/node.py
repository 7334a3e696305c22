"""One node of a program with what it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels import reference
from defakeq_kernels.checks import refuse, shown
from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.reference import Float32
from defakeq_kernels.reference_program.fields import get_of, integer_of, sizes_of
from defakeq_kernels.reference_program.program import Array, Program, Value
from defakeq_kernels.reference_program.state import State


class Node:
    """What a node reads and writes: operands, attributes and its result."""

    def __init__(self, program: Program, state: State, index: int, node: Mapping[str, Any]) -> None:
        self.program, self.state, self.spec = program, state, node
        self.where = f"nodes[{index}] {node.get('name', '')}".rstrip()
        count = len(program.values)
        self.ins = list(sizes_of(f"{self.where}.in", get_of(self.where, node, "in"), low=-1))
        outs = sizes_of(f"{self.where}.out", get_of(self.where, node, "out"), 1, 0)
        self.at = outs[0]
        for key, ids in (("in", self.ins), ("out", outs)):
            if any(i >= count for i in ids):
                refuse(f"{self.where}.{key}", shown(ids), f"values below {count}")
        self.out = program.values[self.at]

    def field(self, key: str) -> str:
        """The name of an attribute in messages."""
        return f"{self.where}.{key}"

    def has(self, i: int) -> bool:
        """Whether operand `i` is given."""
        return i < len(self.ins) and self.ins[i] >= 0

    def value(self, i: int) -> Value:
        """The description of operand `i`."""
        if not self.has(i):
            refuse(self.field("in"), f"no operand {i}", "a value")
        return self.program.values[self.ins[i]]

    def raw(self, i: int) -> Array:
        """Operand `i` in its stored form."""
        self.value(i)
        return self.state.load(self.field("in"), self.ins[i])

    def real(self, i: int) -> Float32:
        """Operand `i` in float32."""
        q = self.value(i).quantization
        return self.raw(i) if q is None else reference.dequantize(self.raw(i), q)

    def levels(self, i: int) -> NDArray[np.float64]:
        """q - zero point of an int8 operand; integer sums of them are exact in float64."""
        return self.raw(i).astype(np.float64) - self.int8(i).zero_point

    def int8(self, i: int) -> ActQuant:
        """The quantization of operand `i`, which is int8."""
        q = self.value(i).quantization
        if q is None:
            refuse(self.field("in"), f"float32 operand {i}", "int8")
        return q

    def get(self, key: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return self.spec.get(key, default)

    def attribute(self, key: str) -> Any:
        """An attribute that must be there."""
        return get_of(self.where, self.spec, key)

    def pair(self, key: str, low: int = 1) -> tuple[int, int]:
        """Two integers."""
        a, b = sizes_of(self.field(key), self.attribute(key), 2, low)
        return a, b

    def count_of(self, key: str, low: int = 1) -> int:
        """One integer."""
        return integer_of(self.field(key), self.attribute(key), low)

    def choice(self, key: str, accepted: Sequence[str], default: str | None = None) -> str:
        """One of the accepted names."""
        value = self.spec.get(key, default)
        if value not in accepted:
            refuse(self.field(key), shown(value), f"one of {accepted}")
        return str(value)

    def optional(self, key: str, dtype: str, shape: tuple[int, ...] | None) -> Array | None:
        """The array that an attribute names, or None."""
        name = self.spec.get(key)
        if name is None:
            return None
        array = self.program.tensor(self.field(key), name)
        if array.dtype != np.dtype(dtype) or (shape is not None and array.shape != shape):
            found = f"{array.dtype} {list(array.shape)}"
            refuse(self.field(key), found, f"{dtype} {'' if shape is None else list(shape)}")
        return array

    def image(self, i: int = 0) -> tuple[int, int, int]:
        """Height, width and channels of operand `i`."""
        shape = self.value(i).shape
        if len(shape) != 3:
            refuse(self.field("in"), f"shape {list(shape)}", "[H, W, C]")
        return shape[0], shape[1], shape[2]

    def expect(self, shape: Sequence[int]) -> None:
        """Refuses an output of another shape."""
        if self.out.shape != tuple(shape):
            refuse(self.field("out"), f"shape {list(self.out.shape)}", str(list(shape)))

    def expect_size(self, count: int) -> None:
        """Refuses an output of another number of elements."""
        if self.out.size != count:
            refuse(self.field("out"), f"shape {list(self.out.shape)}", f"{count} elements")

    def put(self, y: Array) -> None:
        """Writes the output in its stored form."""
        self.state.put(self.field("out"), self.at, y)

    def store(self, y: Array) -> None:
        """Writes the output from float values."""
        self.state.store(self.field("out"), self.at, y)

    def table(self, key: str) -> NDArray[np.int8] | None:
        """A table of 256 int8 values, or None."""
        return self.optional(key, "int8", (256,))

    def fill(self) -> Any:
        """What stands where the output has no source."""
        q = self.out.quantization
        return np.float32(0) if q is None else np.int8(q.zero_point)


def gather(x: Array, index: Array, fill: Any, field: Callable[[str], str]) -> Array:
    """Rows of x by index; -1: filled."""
    if index.size and (int(index.min()) < -1 or int(index.max()) >= len(x)):
        refuse(field("index"), f"{index.min()} to {index.max()}", f"-1 to {len(x) - 1}")
    y = x[np.maximum(index, 0)]
    y[index < 0] = fill
    return y


def look_up(table: NDArray[np.int8], q: Array) -> NDArray[np.int8]:
    """The table at each value."""
    return table[q.astype(np.int64) + 128]
