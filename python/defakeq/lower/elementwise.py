"""Elementwise functions of one and two tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defakeq.lower.capture import Node, args_of
from defakeq.lower.draft import Ref
from defakeq.lower.groups import (
    ADDS,
    Function,
    channel_affine,
)
from defakeq.lower.operands import Operands, Unsupported, scalar_of

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
        scalar = scalar_of(node)
        read_float = node in self.floats or self.draft.dtype(self.ref(x)) == "float32"
        if scalar is not None and read_float:
            return self._with_number(node, x, *scalar)
        ref = self._single(self.ref(x), node, not function.keeps_zero)
        number = ref.values[0]
        shape = self.draft.values[number].shape
        if node in self.floats and function.name is not None:
            out = self.draft.value("float32", shape)
            self.draft.step("unary", node.name, [number], out, fn=function.name)
        else:
            ref = self.int8(ref)
            number = ref.values[0]
            quant = self.key(node)
            out = self.draft.value("int8", shape, quant)
            table = f"program.{node.name}.table"
            self.tables[table] = (self.draft.values[number].quant, quant, function.apply)
            self.draft.step("lookup", node.name, [number], out, table=table, fn=function.label)
        return Ref((out,), ref.index, node)

    def _with_number(self, node: Node, x: Node, fn: str, number: float) -> Ref:
        ref = self._single(self.ref(x), node, fn in ("add", "sub") and number != 0)
        constant = self.draft.constant(f"{node.name}.number", np.array([number], np.float32))
        value = ref.values[0]
        return self._binary_step(
            node, fn, value, constant, self.draft.values[value].shape, ref.index
        )

    def _binary(self, node: Node) -> Ref:
        if node.kwargs and set(node.kwargs) - {"alpha"}:
            raise Unsupported(f"found arguments {sorted(node.kwargs)}")
        if node.kwargs.get("alpha", 1) != 1:
            raise Unsupported("found alpha; accepted is 1")
        fn = BINARY.get(node.target, "add" if node.target in ADDS else "mul")
        a_node, b_node = args_of(node)[:2]
        if not isinstance(a_node, Node) or not isinstance(b_node, Node):
            raise Unsupported(f"found operands {args_of(node)}")
        shape = self.captured.shapes[node]
        smaller = self._shape_of(a_node) != shape and self._shape_of(b_node) == shape
        commutes = fn in ("add", "mul", "max", "min")
        if commutes and (a_node in self.captured.constants or smaller):
            a_node, b_node = b_node, a_node
        if b_node in self.captured.constants and self._shape_of(a_node) == shape:
            return self._binary_constant(node, fn, a_node, b_node)
        return self._binary_values(node, fn, a_node, b_node)

    def _binary_constant(self, node: Node, fn: str, a: Node, b: Node) -> Ref:
        held = self.captured.constants[b].detach().double()
        ref = self.ref(a)
        absent = ref.index < 0
        needed = fn in ("max", "min") or bool(held.expand(absent.shape)[absent].any())
        ref = self._single(ref, node, needed and fn not in ("mul", "div"))
        spread = held.expand(ref.index.shape)
        neutral = 0.0 if fn in ("add", "sub") else 1.0
        array = self._laid_out(ref, spread, neutral)
        if array is None:
            return self._binary_values(node, fn, a, b)
        constant = self.draft.constant(b.name, array)
        number = ref.values[0]
        shape = self.draft.values[number].shape
        return self._binary_step(node, fn, number, constant, shape, ref.index)

    def _laid_out(self, ref: Ref, spread: Tensor, neutral: float) -> NDArray[np.float32] | None:
        """A constant where the elements of `ref` lie: [1], [C] or the value's shape.

        None where one element of the value meets different ones of the constant.
        """
        value = self.draft.values[ref.values[0]]
        where = ref.index.reshape(-1).long()
        there = where >= 0
        physical = torch.full((value.count,), math.nan, dtype=torch.float64)
        physical[where[there]] = spread.reshape(-1)[there]
        if not torch.equal(physical[where[there]], spread.reshape(-1)[there]):
            return None
        table = physical.reshape(-1, value.shape[-1])
        by_channel = torch.nan_to_num(table, nan=-math.inf).amax(0)
        if not bool((torch.isnan(table) | (table == by_channel)).all()):
            whole = torch.nan_to_num(table, nan=neutral).reshape(value.shape)
            return whole.float().numpy()
        known = torch.isfinite(by_channel)
        if bool((by_channel[known] == by_channel[known][:1]).all()) and bool(known.any()):
            return by_channel[known][:1].float().numpy()
        return torch.where(known, by_channel, neutral).float().numpy()

    def _binary_values(self, node: Node, fn: str, a: Node, b: Node) -> Ref:
        left, right = self.ref(a), self.ref(b)
        shape = self.captured.shapes[node]
        wide_a, wide_b = left.index.expand(shape), right.index.expand(shape)
        simple = len(left.values) == 1 and len(right.values) == 1
        if simple and torch.equal(wide_a, wide_b):
            va, vb = (self.draft.values[r.values[0]] for r in (left, right))
            if va.shape == vb.shape:
                return self._binary_step(
                    node, fn, left.values[0], right.values[0], va.shape, wide_a
                )
        order_a, order_b = self._canonical(wide_a), self._canonical(wide_b)
        flat_a = order_a.reshape(-1, order_a.shape[-1])
        flat_b = order_b.reshape(-1, order_b.shape[-1])
        in_a, in_b = (flat_a >= 0).any(0), (flat_b >= 0).any(0)
        union = in_a & in_b if fn == "mul" else in_a | in_b
        kept = torch.nonzero(union).flatten()
        if kept.numel() == 0:
            raise Unsupported("found operands without a common channel")
        rows_a = self.dense(left, flat_a[:, kept], node.name)
        space = tuple(int(n) for n in order_a.shape[:-1])
        own = (*space, int(kept.numel()))
        part, shape_b = flat_b[:, kept], own
        if right.index.shape != shape and bool((part == part[:1]).all()):
            part, shape_b = part[:1], own[-1:]
        elif right.index.shape != shape and bool((part == part[:, :1]).all()):
            part, shape_b = part[:, :1], (*space, 1)
        rows_b = self.dense(right, part, node.name)
        number_a = self.shaped(rows_a.value, own)
        number_b = self.shaped(rows_b.value, shape_b)
        index = torch.full((*space, order_a.shape[-1]), -1, dtype=torch.int32)
        index[..., kept] = torch.arange(math.prod(own), dtype=torch.int32).reshape(own)
        if len(shape) == 4 and shape[0] == 1:
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
        shape = self.captured.shapes[node]
        axis = 1 if len(shape) == 4 else len(shape) - 1
        lead = [1] * len(shape)
        lead[axis] = -1
        ref, offset = self.ref(source), found[1]
        assert offset is not None
        shifted = bool(offset.reshape(lead).expand(shape)[ref.index < 0].any())
        ref = self._single(ref, node, shifted)
        number = ref.values[0]
        for factor, fn in zip(found, ("mul", "add"), strict=True):
            assert factor is not None
            array = self._laid_out(ref, factor.reshape(lead).expand(shape), 0.0)
            if array is None:
                raise Unsupported("found a batch_norm over a dimension that is not the channels")
            constant = self.draft.constant(f"{node.name}.{fn}", array)
            dtype, quant = ("float32", None) if fn == "mul" else self._out_type(node)
            out = self.draft.value(dtype, self.draft.values[number].shape, quant)
            self.draft.step("binary", f"{node.name}.{fn}", [number, constant], out, fn=fn)
            number = out
        return Ref((number,), ref.index, node)
