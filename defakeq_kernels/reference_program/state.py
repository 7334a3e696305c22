"""The values of one image while a program runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels import reference
from defakeq_kernels.checks import refuse
from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.reference_program.program import Array, Program


class State:
    """The values of one image. Views share the storage of their bases."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.storage: dict[int, Array] = {}
        self.written: dict[int, NDArray[np.bool_]] = {}

    def _place(self, at: int) -> tuple[int, slice]:
        v = self.program.values[at]
        if v.base < 0:
            return at, slice(0, v.size)
        return v.base, slice(v.offset, v.offset + v.size)

    def load(self, field: str, at: int) -> Array:
        """A written value, or a constant."""
        v = self.program.values[at]
        if v.array is not None:
            return v.array
        base, part = self._place(at)
        if base not in self.storage or not bool(self.written[base][part].all()):
            refuse(field, f"value {at} before it is written", "values in the order of the nodes")
        return self.storage[base][part].reshape(v.shape)

    def put(self, field: str, at: int, y: Array) -> None:
        """Writes a value in its stored form."""
        v = self.program.values[at]
        if v.tensor is not None:
            refuse(field, f"the constant {at}", "a value that can be written")
        if y.size != v.size:
            refuse(field, f"{v.size} elements", f"{y.size}")
        base, part = self._place(at)
        if base not in self.storage:
            size = self.program.values[base].size
            self.storage[base] = np.zeros(size, np.dtype(v.dtype))
            self.written[base] = np.zeros(size, bool)
        if bool(self.written[base][part].any()):
            refuse(field, f"value {at} again", "each value written once")
        assert y.dtype == self.storage[base].dtype
        self.storage[base][part] = y.reshape(-1)
        self.written[base][part] = True

    def store(self, field: str, at: int, y: Array) -> None:
        """Writes float values, quantized if the value is int8."""
        q = self.program.values[at].quantization
        self.put(field, at, y.astype(np.float32, copy=False) if q is None else quantized(y, q))

    def all(self) -> list[Array]:
        """Every value; an empty array where none was written."""
        result = []
        for i, v in enumerate(self.program.values):
            base, part = self._place(i)
            if v.array is not None:
                result.append(v.array)
            elif base in self.storage and bool(self.written[base][part].all()):
                result.append(self.storage[base][part].reshape(v.shape).copy())
            else:
                result.append(np.zeros(0, np.dtype(v.dtype)))
        return result


def quantized(y: Array, q: ActQuant) -> NDArray[np.int8]:
    """`reference.quantize` of values that may be infinite or NaN."""
    with np.errstate(all="ignore"):
        return reference.quantize(y, q)
