"""Softmax, sums, means, maxima and norms over any dimensions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defakeq.lower.capture import Node, args_of
from defakeq.lower.draft import Ref
from defakeq.lower.operands import Operands, Unsupported

aten = torch.ops.aten

SOFTMAX = (aten.softmax.int, aten._softmax.default)
REDUCTIONS: dict[Any, str] = {
    aten.mean.dim: "mean",
    aten.sum.dim_IntList: "sum",
    aten.amax.default: "max",
    aten.linalg_vector_norm.default: "l2",
}


class Reductions(Operands):
    """Emits what is computed over a row of elements."""

    def _softmax(self, node: Node) -> Ref:
        dim = int(args_of(node)[1]) % len(self.captured.shapes[node])
        ref = self.ref(args_of(node)[0])
        index = ref.index.movedim(dim, -1)
        rows = self.dense(ref, index.reshape(-1, index.shape[-1]), node.name)
        shape = (rows.rows, rows.width)
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, shape, quant)
        self.draft.step("softmax", node.name, [self.shaped(rows.value, shape)], out)
        own = torch.arange(math.prod(shape), dtype=torch.int32).reshape(index.shape)
        return Ref((out,), own.movedim(-1, dim), node)

    def _reduced(self, node: Node) -> Ref:
        fn = REDUCTIONS[node.target]
        args = args_of(node)
        ref = self.ref(args[0])
        rank = ref.index.dim()
        if fn == "l2":
            if len(args) > 1 and args[1] != 2:
                raise Unsupported(f"found a norm of order {args[1]}; accepted is 2")
            args = (args[0], *args[2:])
        found = args[1] if len(args) > 1 and args[1] is not None else ()
        found = [found] if isinstance(found, int) else found
        dims = sorted({int(d) % rank for d in found} or range(rank))
        rest = [d for d in range(rank) if d not in dims]
        index = ref.index.permute(*rest, *dims)
        lead = index.shape[: len(rest)]
        index = index.reshape(*lead, -1)
        if fn == "mean" and rest and rest[-1] == rank - 1 and self._spans(dims, rank):
            return self._mean_step(node, ref, ref.index.reshape(-1, ref.index.shape[-1]))
        if fn == "mean" and rank == 4 and dims == [2, 3]:
            image = ref.index[0].permute(1, 2, 0)
            return self._mean_step(node, ref, image.reshape(-1, image.shape[-1]))
        if fn == "max" and rank == 4 and dims == [2, 3]:
            return self._largest(node, ref)
        rows = self.dense(ref, index.reshape(-1, index.shape[-1]), node.name)
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (rows.rows,), quant)
        value = self.shaped(rows.value, (rows.rows, rows.width))
        self.draft.step("reduce", node.name, [value], out, fn=fn)
        own = torch.arange(rows.rows, dtype=torch.int32)
        return Ref((out,), own.reshape(self.captured.shapes[node]), node)

    @staticmethod
    def _spans(dims: list[int], rank: int) -> bool:
        """Whether all is reduced but the channels and a batch of one."""
        return dims in (list(range(1, rank - 1)), list(range(rank - 1)))

    def _mean_step(self, node: Node, ref: Ref, order: Tensor) -> Ref:
        """The mean of rows; channels that are absent stay so."""
        rows = self.draft.rows(ref, order, node.name)
        value = self.shaped(rows.value, (rows.rows, rows.width))
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (rows.width,), quant)
        self.draft.step("mean_rows", node.name, [value], out)
        index = torch.full((order.shape[-1],), -1, dtype=torch.int32)
        inside = np.flatnonzero(rows.columns >= 0)
        index[torch.from_numpy(inside)] = torch.from_numpy(rows.columns[inside]).int()
        return Ref((out,), index.reshape(self.captured.shapes[node]), node)

    def _largest(self, node: Node, ref: Ref) -> Ref:
        """The maximum of each channel of an image, as one window."""
        rows, height, width, channels = self._image(ref, node.name)
        value = self.draft.values[rows.value]
        out = self.draft.value(value.dtype, (1, 1, rows.width), value.quant)
        size = [height, width]
        self.draft.step(
            "pool2d", node.name, [rows.value], out, mode="max", kernel=size, stride=[1, 1]
        )
        index = self._spread(rows, out, (1, 1), channels, node).index
        return Ref((out,), index, node)
