"""Inputs that are 8-bit pictures centered between two levels: they are moved onto levels.

``2 * pixel / 255 - 1`` puts zero midway between two levels, and an int8 value holds zero exactly,
so every level would be rounded by half a step: those below zero up, those above down. Half a step
is added first, and taken out of the bias of the layer that reads the picture. Only at its border
does that change anything: what is padded is half a step off zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from defakeq.calibrate import RangeObserver
from defakeq.lower.capture import Captured, Node, args_of
from defakeq.plan import QuantPlan

aten = torch.ops.aten


def move_onto_levels(
    captured: Captured, plan: QuantPlan, batches: Sequence[Sequence[Tensor]]
) -> None:
    """Puts the addition before the integer convolutions that read such inputs, in place."""
    for place, picture in enumerate(captured.inputs):
        readers = [user for user in picture.users if _is_integer(user, picture, captured, plan)]
        if not readers:
            continue
        observer = RangeObserver()
        for batch in batches:
            observer.update(batch[place])
        half = observer.half_level()
        if half is None:
            continue
        moved = _after(captured, picture, half)
        for reader in readers:
            _compensate(captured, reader, half)
            reader.replace_input_with(picture, moved)


def _is_integer(user: Node, picture: Node, captured: Captured, plan: QuantPlan) -> bool:
    if user.target is not aten.conv2d.default or args_of(user)[0] is not picture:
        return False
    weight = args_of(user)[1]
    layer = plan.layers.get(captured.parameters.get(weight, "").removesuffix(".weight"))
    return layer is not None and layer.act_bits == 8 and weight in captured.constants


def _after(captured: Captured, picture: Node, half: float) -> Node:
    """A node that adds `half` to an input."""
    with captured.graph.inserting_after(picture):
        moved = captured.graph.call_function(aten.add.Tensor, (picture, half))
    moved.meta = dict(picture.meta)
    captured.nodes.insert(0, moved)
    captured.shapes[moved] = captured.shapes[picture]
    return moved


def _compensate(captured: Captured, layer: Node, half: float) -> None:
    """Takes what the layer makes of `half` out of its bias."""
    _, weight, *rest = args_of(layer)
    held = captured.constants[weight].detach()
    offset = -half * held.double().flatten(1).sum(1)
    if rest and isinstance(rest[0], Node):
        offset += captured.constants[rest[0]].detach()
    with captured.graph.inserting_before(layer):
        bias = captured.graph.placeholder(f"{layer.name}_moved_bias")
    captured.constants[bias] = offset.to(held.dtype)
    layer.args = (args_of(layer)[0], weight, bias, *rest[1:])
