"""Bytes of a file, before it is written."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from defakeq.compress.graph import Layer
from defakeq_kernels.packed import HALF_BITS, row_bytes

# What a further segment takes of the header: two or three names with their shapes, and a width.
SEGMENT_JSON = 40
FLOAT_BYTES = 2  # of a scale or a bias, as `State.narrow` leaves them
INDEX_BYTES = 2  # of a channel's number


@dataclass(frozen=True)
class Shape:
    """What of a layer is stored: outputs, inputs a group, kernel positions, whether with a bias.

    `all_inputs` and `all_outputs`: none is pruned, so that they need no index.
    """

    outs: int
    ins: int
    taps: int
    bias: bool
    all_inputs: bool = True
    all_outputs: bool = True

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
            outs is None or outs == own[0],
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
    total = integer * _integer_row(reduction, bits, symmetric) + half * 2 * reduction
    # the larger segment's outputs follow from the other's
    total += INDEX_BYTES * (min(integer, half) if shape.all_outputs else shape.outs)
    total += FLOAT_BYTES * shape.outs if shape.bias else 0
    total += 0 if shape.all_inputs else INDEX_BYTES * shape.ins
    return total


def half_cost(shape: Shape, bits: int, symmetric: bool = False) -> int:
    """How many bytes more an output takes in half precision, while fewer than half do."""
    reduction = shape.ins * shape.taps
    index = INDEX_BYTES if shape.all_outputs else 0
    return 2 * reduction + index - _integer_row(reduction, bits, symmetric)


def _integer_row(reduction: int, bits: int, symmetric: bool) -> int:
    """Bytes of an output's codes, scale and zero point, which has one byte below 8 bits."""
    zero_point = 0 if symmetric else 1 if bits < 8 else 2
    return row_bytes(reduction, bits) + FLOAT_BYTES + zero_point


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of a model's float32 checkpoint: four for each value of a parameter or buffer."""
    total = 0
    for value in model.state_dict().values():
        if isinstance(value, Tensor) and value.is_floating_point():
            total += 4 * value.numel()
    return total


__all__ = ["HALF_BITS", "SEGMENT_JSON", "Shape", "checkpoint_bytes", "half_cost", "payload"]
