"""Elementwise functions of one and two tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defakeq.lower.capture import Node, args_of
from defakeq.lower.draft import Ref
from defakeq.lower.groups import (
    ADDS,
    Function,
    channel_affine,
)
from defakeq.lower.operands import Operands, Unsupported

aten = torch.ops.aten

BINARY: dict[Any, str] = {
    aten.sub.Tensor: "sub",
    aten.div.Tensor: "div",
    aten.maximum.default: "max",
    aten.minimum.default: "min",
}


class Elementwise(Operands):
    """Emits elementwise functions."""

    def _unary(self, node: Node, x: Node, function: Function) -> Ref:
        ref = self._single(self.ref(x), node, not function.keeps_zero)
        number = ref.values[0]
        shape = self.draft.values[number].shape
        as_float = node in self.floats and function.name is not None
        if as_float:
            out = self.draft.value("float32", shape)
            self.draft.step("unary", node.name, [number], out, fn=function.name)
        else:
            ref = self.int8(ref)
            number = ref.values[0]
            quant = self.key(node)
            out = self.draft.value("int8", shape, quant)
            table = f"program.{node.name}.table"
            self.tables[table] = (self.draft.values[number].quant, quant, function.apply)
            self.draft.step("lookup", node.name, [number], out, table=table)
        return Ref((out,), ref.index, node)

    def _binary(self, node: Node) -> Ref:
        if node.kwargs and set(node.kwargs) - {"alpha"}:
            raise Unsupported(f"found arguments {sorted(node.kwargs)}")
        if node.kwargs.get("alpha", 1) != 1:
            raise Unsupported("found alpha; accepted is 1")
        fn = BINARY.get(node.target, "add" if node.target in ADDS else "mul")
        a_node, b_node = args_of(node)[:2]
        if not isinstance(a_node, Node) or not isinstance(b_node, Node):
            raise Unsupported(f"found operands {args_of(node)}")
        commutes = fn in ("add", "mul", "max", "min")
        shape = self.captured.shapes[node]
        if a_node in self.captured.constants or (
            self._shape_of(a_node) != shape and self._shape_of(b_node) == shape
        ):
            if not commutes:
                raise Unsupported(f"found {fn} with the smaller operand first")
            a_node, b_node = b_node, a_node
        if self._shape_of(a_node) != shape:
            raise Unsupported("found two operands that both broadcast")
        if b_node in self.captured.constants:
            return self._binary_constant(node, fn, a_node, b_node)
        return self._binary_values(node, fn, a_node, b_node)

    def _binary_constant(self, node: Node, fn: str, a: Node, b: Node) -> Ref:
        held = self.captured.constants[b].detach().double()
        ref = self.ref(a)
        absent = ref.index < 0
        needed = fn in ("max", "min") or bool(held.expand(absent.shape)[absent].any())
        ref = self._single(ref, node, needed and fn not in ("mul", "div"))
        number = ref.values[0]
        value = self.draft.values[number]
        spread = held.expand(ref.index.shape).reshape(-1)
        where = ref.index.reshape(-1).long()
        physical = torch.full((value.count,), math.nan, dtype=torch.float64)
        physical[where[where >= 0]] = spread[where >= 0]
        table = physical.reshape(-1, value.shape[-1])
        by_channel = torch.nan_to_num(table, nan=-math.inf).amax(0)
        neutral = 0.0 if fn in ("add", "sub") else 1.0
        known = torch.isfinite(by_channel)
        same = bool((torch.isnan(table) | (table == by_channel)).all())
        if same:
            array = torch.where(known, by_channel, neutral).numpy()
        else:
            array = torch.nan_to_num(table, nan=neutral).reshape(value.shape).numpy()
        if same and (array == array[0]).all():
            array = array[:1]
        constant = self.draft.constant(b.name, array.astype(np.float32))
        return self._binary_step(node, fn, number, constant, value.shape, ref.index)

    def _binary_values(self, node: Node, fn: str, a: Node, b: Node) -> Ref:
        left, right = self.ref(a), self.ref(b)
        shape = left.index.shape
        wide = right.index.expand(shape)
        simple = len(left.values) == 1 and len(right.values) == 1
        if simple and right.index.shape == shape and torch.equal(left.index, right.index):
            va, vb = (self.draft.values[r.values[0]] for r in (left, right))
            if va.shape == vb.shape:
                return self._binary_step(
                    node, fn, left.values[0], right.values[0], va.shape, left.index
                )
        order_a, order_b = self._canonical(left.index), self._canonical(wide)
        flat_a = order_a.reshape(-1, order_a.shape[-1])
        flat_b = order_b.reshape(-1, order_b.shape[-1])
        in_a, in_b = (flat_a >= 0).any(0), (flat_b >= 0).any(0)
        union = in_a & in_b if fn == "mul" else in_a | in_b
        kept = torch.nonzero(union).flatten()
        if kept.numel() == 0:
            raise Unsupported("found operands without a common channel")
        rows_a = self.dense(left, flat_a[:, kept], node.name)
        part_b = flat_b[:, kept]
        if right.index.shape != shape and bool((part_b == part_b[:1]).all()):
            part_b = part_b[:1]
        rows_b = self.dense(right, part_b, node.name)
        space = tuple(int(n) for n in order_a.shape[:-1])
        own = (*space, int(kept.numel()))
        same = len(part_b) == len(flat_b)
        number_a = self.shaped(rows_a.value, own)
        number_b = self.shaped(rows_b.value, own if same else (own[-1],))
        index = torch.full((*space, order_a.shape[-1]), -1, dtype=torch.int32)
        index[..., kept] = torch.arange(math.prod(own), dtype=torch.int32).reshape(own)
        if left.index.dim() == 4 and shape[0] == 1:
            index = index.permute(2, 0, 1)
        return self._binary_step(node, fn, number_a, number_b, own, index.reshape(shape))

    def _binary_step(
        self, node: Node, fn: str, a: int, b: int, shape: tuple[int, ...], index: Tensor
    ) -> Ref:
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, shape, quant)
        self.draft.step("binary", node.name, [a, b], out, fn=fn)
        return Ref((out,), index, node)

    def _batch_norm(self, node: Node) -> Ref:
        source = args_of(node)[0]
        found = channel_affine(node, source, self.captured)
        if found is None:
            raise Unsupported("found a batch_norm without running statistics")
        ref = self._single(self.ref(source), node, True)
        shape = self.captured.shapes[node]
        axis = 1 if len(shape) == 4 else len(shape) - 1
        number = ref.values[0]
        for factor, fn in zip(found, ("mul", "add"), strict=True):
            assert factor is not None
            value = self.draft.values[number]
            lead = [1] * len(shape)
            lead[axis] = -1
            physical = torch.zeros(value.count, dtype=torch.float64)
            physical[ref.index.reshape(-1).long()] = factor.reshape(lead).expand(shape).reshape(-1)
            by_channel = physical.reshape(-1, value.shape[-1])
            if not bool((by_channel == by_channel[:1]).all()):
                raise Unsupported("found a batch_norm over a dimension that is not the channels")
            constant = self.draft.constant(f"{node.name}.{fn}", by_channel[0].float().numpy())
            dtype, quant = ("float32", None) if fn == "mul" else self._out_type(node)
            out = self.draft.value(dtype, value.shape, quant)
            self.draft.step("binary", f"{node.name}.{fn}", [number, constant], out, fn=fn)
            number = out
        return Ref((number,), ref.index, node)
