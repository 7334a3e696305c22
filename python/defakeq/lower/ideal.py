"""A program in exact arithmetic on float weights: what it computes without any quantization.

It equals the float model with pruned channels at zero, so it shows whether a program is wired as
the model is, apart from what quantization does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from defakeq.lower.emit import Emitter
from defakeq.lower.twin import Twin
from defakeq_kernels import dfq
from defakeq_kernels.packed import PackedWeight


class Ideal(Twin):
    """Runs an emitted program in float64 and rounds nothing.

    Args:
        emitter: with the float weights and the functions of tables.
        tensors, network: what `defakeq.lower.finish.assemble` made of it.
    """

    def __init__(self, emitter: Emitter, tensors: dfq.Tensors, network: dfq.Network) -> None:
        super().__init__(tensors, network)
        self.specs = emitter.layers
        self.functions: Mapping[str, Callable[[Tensor], Tensor]] = {
            name: function for name, (_, _, function) in emitter.tables.items()
        }

    def weight(self, name: str) -> tuple[Tensor, Tensor | None, PackedWeight]:
        """The float weight and bias of a layer."""
        if name not in self._weights:
            spec, packed = self.specs[name], super().weight(name)[2]
            bias = None if spec.bias is None else torch.from_numpy(spec.bias).double()
            self._weights[name] = (torch.from_numpy(spec.weight).double(), bias, packed)
        return self._weights[name]

    def looked_up(
        self, y: Tensor, read: Mapping[str, Any], table: str, out: Mapping[str, Any]
    ) -> Tensor:
        """The function of which the table was made."""
        return self.functions[table](y)

    @staticmethod
    def probabilities(e: Tensor) -> Tensor:
        """Unrounded."""
        return e

    @staticmethod
    def store(value: Mapping[str, Any], y: Tensor) -> Tensor:
        """Unrounded."""
        return y
