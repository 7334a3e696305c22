"""Channels that stay float for the layers that ask for them, beside the int8 tensor.

A layer with `half_in` reads these inputs as float32. Where a layer makes them, it is computed a
second time for these channels alone, without rounding its result; any other producer's result is
float32 as a whole.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from defakeq.lower.capture import Captured, Node, args_of
from defakeq.lower.groups import EPILOGUE, LAYERS, Group, mover
from defakeq.lower.layers import LayerSpec
from defakeq.plan import LayerPlan

aten = torch.ops.aten


class Asked:
    """Which float channels are asked for.

    Args:
        captured: the graph.
        groups: its layers, by their last node.
        plans: the plan of each layer call; None where there is none.
        passes: operators that only move data.

    Attributes:
        channels: of each layer group, by its last node.
        floats: other nodes that layers want in float32.
    """

    def __init__(
        self,
        captured: Captured,
        groups: dict[Node, Group],
        plans: dict[Node, LayerPlan | None],
        passes: set[object],
    ) -> None:
        self.captured, self.groups = captured, groups
        self.passes = passes | {aten.max_pool2d.default}
        self.channels: dict[Node, set[int]] = {}
        self.floats: set[Node] = set()
        for node, plan in plans.items():
            if plan is not None and plan.half_in and plan.act_bits is not None:
                axis = 1 if node.target is LAYERS[0] else -1
                self._ask(args_of(node)[0], axis, torch.tensor(plan.half_in))

    def _ask(self, node: Node, axis: int, wanted: Tensor) -> None:
        path = []
        while node.target in self.passes:
            path.append(node)
            node = args_of(node)[0]
        group = self.groups.get(node)
        if group is None or not self._splits(group):
            self.floats.add(node)
            return
        shape = self.captured.shapes[node]
        own = 1 if group.channels_first else len(shape) - 1
        ids = torch.arange(shape[own]).reshape([-1 if d == own else 1 for d in range(len(shape))])
        ids = ids.expand(shape)
        for step in reversed(path):
            if step.target is aten.max_pool2d.default:
                ids = ids[..., :1, :1].expand(self.captured.shapes[step])
            else:
                ids = mover(step)(ids, *args_of(step)[1:], **step.kwargs)
        found = set(ids.index_select(axis % ids.dim(), wanted).unique().tolist())
        before = self.channels.setdefault(node, set())
        if not found <= before:
            before |= found
            if group.residual is not None:
                self._ask(group.residual, own, torch.tensor(sorted(found)))

    def _splits(self, group: Group) -> bool:
        """Whether single channels of a layer can be computed as float32."""
        if group.function is not None and group.function.name not in EPILOGUE:
            return False
        args = args_of(group.layer)
        groups = int(args[6]) if group.layer.target is LAYERS[0] and len(args) > 6 else 1
        weight = self.captured.constants[args[1]]
        return groups == 1 or (groups == weight.shape[0] and weight.shape[1] == 1)


def half_columns(spec: LayerSpec) -> list[int]:
    """The columns of a layer's operand that are read as float32."""
    if spec.groups > 1 or spec.plan is None or not spec.plan.half_in:
        return []
    return np.flatnonzero(np.isin(spec.inputs, spec.plan.half_in)).tolist()


def only_channels(spec: LayerSpec, channels: list[int]) -> LayerSpec:
    """The layer of some of the outputs; depthwise layers also read only these channels."""
    part = replace(spec, weight=spec.weight[channels], channels=np.asarray(channels))
    part.name = f"{spec.name}.float"
    if spec.bias is not None:
        part.bias = spec.bias[channels]
    if spec.groups > 1:
        part.groups = len(channels)
    return part
