"""Bytes of a file, before it is written."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from defakeq.compress.graph import Layer
from defakeq_kernels.packed import HALF_BITS, row_bytes

# JSON of a further segment: three entries in the file's table and a width.
SEGMENT_JSON = 400


@dataclass(frozen=True)
class Shape:
    """What of a layer is stored: outputs, inputs a group, kernel positions, whether with a bias."""

    outs: int
    ins: int
    taps: int
    bias: bool
    all_inputs: bool = True

    @staticmethod
    def of(layer: Layer, outs: int | None = None, ins: int | None = None) -> Shape:
        """A layer's, with fewer outputs and inputs where given."""
        own = layer.weight.shape
        return Shape(
            own[0] if outs is None else outs,
            own[1] if ins is None or layer.groups > 1 else ins,
            layer.weight[0, 0].numel(),
            layer.bias is not None,
            ins is None or ins == own[1],
        )


def payload(shape: Shape, bits: int, symmetric: bool = False, half: int = 0) -> int:
    """Bytes of a layer's tensors in a file.

    Args:
        shape: what is stored.
        bits: width of the integer outputs.
        symmetric: without zero points.
        half: outputs in half precision.
    """
    reduction = shape.ins * shape.taps
    integer = shape.outs - half
    a_row = row_bytes(reduction, bits) + 4 + 4 + (0 if symmetric else 4)
    total = integer * a_row + half * (2 * reduction + 4)
    total += 4 * shape.outs if shape.bias else 0
    total += 0 if shape.all_inputs else 4 * shape.ins
    return total


def half_cost(shape: Shape, bits: int, symmetric: bool = False) -> int:
    """How many bytes more an output takes in half precision."""
    reduction = shape.ins * shape.taps
    a_row = row_bytes(reduction, bits) + 4 + (0 if symmetric else 4)
    return 2 * reduction - a_row


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of a model's float32 checkpoint: four for each value of a parameter or buffer."""
    total = 0
    for value in model.state_dict().values():
        if isinstance(value, Tensor) and value.is_floating_point():
            total += 4 * value.numel()
    return total


__all__ = ["HALF_BITS", "SEGMENT_JSON", "Shape", "checkpoint_bytes", "half_cost", "payload"]
