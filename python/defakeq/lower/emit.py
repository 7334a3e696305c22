"""From the captured graph to a draft of a program."""

from __future__ import annotations

import math
from typing import Any

import torch

from defakeq.lower.capture import Node, args_of
from defakeq.lower.draft import Ref
from defakeq.lower.elementwise import BINARY, Elementwise
from defakeq.lower.gates import Gates
from defakeq.lower.groups import (
    ADDS,
    MULS,
    is_global_mean,
    unary_of,
)
from defakeq.lower.operands import IDENTITIES, VIEWS, Unsupported
from defakeq.lower.reductions import REDUCTIONS, SOFTMAX, Reductions
from defakeq.lower.transformers import Transformers

aten = torch.ops.aten


class Emitter(Elementwise, Gates, Reductions, Transformers):
    """Emits the program of a captured graph into a draft."""

    def run(self, unsupported: dict[Node, str] | None = None) -> None:
        """Emits everything.

        Args:
            unsupported: gets the nodes that no program node computes, with the reasons; the rest
                is emitted as if their values came from outside.

        Raises:
            Unsupported: of the first such node, where `unsupported` is None.
        """
        for node in self.captured.inputs:
            self._input(node)
        for node in self.captured.nodes:
            if node in self.inner:
                continue
            try:
                self.refs[node] = self._emit(node)
            except Unsupported as error:
                if unsupported is None:
                    raise
                group = self.groups.get(node)
                unsupported[node if group is None else group.layer] = str(error)
                self._input(node)
        for i, node in enumerate(self.captured.outputs):
            self._output(node, i)

    def _input(self, node: Node) -> None:
        shape = self.captured.shapes[node]
        image = len(shape) == 4 and shape[0] == 1 and not self._is_read_by_lines(node)
        own = shape[1:] or (1,) if shape[:1] == (1,) else shape or (1,)
        if image:
            own = (shape[2], shape[3], shape[1])
        floats = node in self.floats
        quant = None if floats else self.key(node)
        value = self.draft.value("float32" if floats else "int8", own, quant, is_input=True)
        index = torch.arange(math.prod(own), dtype=torch.int32).reshape(own)
        if image:
            index = index.permute(2, 0, 1)
        self.refs[node] = Ref((value,), index.reshape(shape), node)
        self.inputs.append(
            {"name": node.name, "value": value, "layout": "nchw" if image else "plain"}
        )

    def _is_read_by_lines(self, node: Node) -> bool:
        """Whether float layers read an image as it lies at the caller, its last dimension dense."""
        return node in self.floats and all(
            user.target is aten.linear.default and args_of(user)[0] is node for user in node.users
        )

    def _output(self, node: Node, i: int) -> None:
        ref = self.ref(node)
        shape = self.captured.shapes[node]
        image = len(shape) == 4 and shape[0] == 1
        order = self._canonical(ref.index)
        own = tuple(order.shape)
        rows = self.dense(ref, order, f"output{i}")
        value = self.shaped(rows.value, own)
        name = "y" if len(self.captured.outputs) == 1 else f"y{i}"
        while any(port["name"] == name for port in self.inputs):
            name += "_"
        self.outputs.append({"name": name, "value": value, "layout": "nchw" if image else "plain"})

    def _emit(self, node: Node) -> Any:
        target = node.target
        if node in self.groups:
            return self._layer(self.groups[node])
        if node in self.gates:
            return self._gate(self.gates[node])
        if target in IDENTITIES:
            return self.ref(args_of(node)[0])
        if "getitem" in str(target):
            parts = self.refs[args_of(node)[0]]
            if isinstance(parts, Ref):  # of a node that is not lowered
                self._input(node)
                return self.refs[node]
            return parts[args_of(node)[1]]
        if target in VIEWS:
            return self._view(node)
        if target is aten.pad.default:
            return self._pad(node)
        if target is aten.cat.default:
            return self._cat(node)
        if target is aten.max_pool2d.default or target is aten.avg_pool2d.default:
            return self._pool(node)
        if is_global_mean(node, self.captured) and target not in REDUCTIONS:
            ref = self.ref(args_of(node)[0])
            image = ref.index[0].permute(1, 2, 0)
            return self._mean_step(node, ref, image.reshape(-1, image.shape[-1]))
        if target is aten.adaptive_avg_pool2d.default:
            return self._adaptive(node)
        if target in REDUCTIONS:
            return self._reduced(node)
        if target in SOFTMAX:
            return self._softmax(node)
        if target in (aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default):
            return self._interpolated(node)
        if target in (aten.matmul.default, aten.bmm.default):
            return self._matmul(node)
        if target is aten.layer_norm.default:
            return self._layer_norm(node)
        if target is aten.scaled_dot_product_attention.default:
            return self._attention(node)
        found = unary_of(node, self.captured.constants)
        if found is not None:
            return self._unary(node, found[0], found[1])
        if target in ADDS or target in MULS or target in BINARY:
            return self._binary(node)
        if target is aten.batch_norm.default:
            return self._batch_norm(node)
        raise Unsupported(f"found {target}, which no program node computes")
