"""The values of a program that runs on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.triton import launch

if TYPE_CHECKING:
    from defakeq_kernels.triton.program import GpuProgram


def quantization(v: Mapping[str, Any]) -> ActQuant:
    """The static quantization that a JSON object describes."""
    return ActQuant("static", v["scale"], v["zero_point"], v["bits"])


class State:
    """The values of a batch. Views share the memory of their bases."""

    def __init__(self, program: GpuProgram, batch: int) -> None:
        self.program, self.batch = program, batch
        self.held: dict[int, Tensor] = {}

    def value(self, at: int) -> Mapping[str, Any]:
        """The value's description."""
        found: Mapping[str, Any] = self.program.values[at]
        return found

    def quantization(self, at: int) -> ActQuant | None:
        """Of an int8 value, else None."""
        v = self.value(at)
        return quantization(v) if v["dtype"] == "int8" else None

    def raw(self, at: int) -> Tensor:
        """[batch, shape] as stored; [1, shape] of a constant."""
        v = self.value(at)
        if v.get("tensor") is not None:
            if v.get("index") is None:
                return self.program.tensor(v["tensor"])[None]
            return self.program.columns(v["tensor"], v["index"]).view(1, *v["shape"])
        base = v.get("base")
        if base is None:
            return self.held[at].view(self.batch, *v["shape"])
        size, offset = int(np.prod(v["shape"])), v.get("offset", 0)
        part = self.held[base].view(self.batch, -1)[:, offset : offset + size]
        return part.reshape(self.batch, *v["shape"])

    def real(self, at: int) -> Tensor:
        """[batch, shape] in float32."""
        q = self.quantization(at)
        x = self.raw(at)
        return x if q is None else launch.dequantize(x.contiguous(), q.scale, q.zero_point)

    def levels(self, at: int) -> Tensor:
        """q - zero point in float32."""
        q = self.quantization(at)
        assert q is not None
        return (self.raw(at).to(torch.int32) - q.zero_point).float()

    def put(self, at: int, y: Tensor) -> None:
        """Writes a value as it is stored."""
        v = self.value(at)
        base = v.get("base")
        if base is None and at not in self.program.joined:
            self.held[at] = y.contiguous()
            return
        owner = at if base is None else base
        if owner not in self.held:
            size = int(np.prod(self.value(owner)["shape"]))
            self.held[owner] = torch.empty(self.batch, size, dtype=y.dtype, device=y.device)
        flat = y.reshape(self.batch, -1)
        begin = v.get("offset", 0)
        self.held[owner].view(self.batch, -1)[:, begin : begin + flat.shape[1]] = flat

    def store(self, at: int, y: Tensor) -> None:
        """Quantizes float values where the value is int8."""
        q = self.quantization(at)
        if q is None:
            self.put(at, y.float())
        else:
            self.put(at, launch.quantize(y.float().contiguous(), q.scale, q.zero_point, q.bits))

    def fill(self, at: int) -> float | int:
        """What stands for zero in a value."""
        q = self.quantization(at)
        return 0.0 if q is None else q.zero_point

    def table(self, node: Mapping[str, Any], key: str) -> Tensor | None:
        """The tensor that an attribute names, or None."""
        name = node.get(key)
        return None if name is None else self.program.tensor(name)
