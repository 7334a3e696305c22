"""Nodes that move data: views cost nothing, padding and concatenation as little as can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from defakeq.lower.capture import Node, args_of
from defakeq.lower.draft import Ref
from defakeq.lower.groups import (
    mover,
)
from defakeq.lower.operands import Operands, Unsupported

aten = torch.ops.aten


class Moves(Operands):
    """Emits what moves data."""

    def _apply(
        self, node: Node, function: Callable[..., Any] | None = None, ref: Ref | None = None
    ) -> Any:
        ref = self.ref(args_of(node)[0]) if ref is None else ref
        function = function or mover(node)
        args = fx.node.map_arg(
            args_of(node)[1:], lambda n: self.captured.constants[n] if isinstance(n, Node) else n
        )
        moved = function(ref.index, *args, **node.kwargs)
        if isinstance(moved, (tuple, list)):
            return [Ref(ref.values, part, ref.source) for part in moved]
        return Ref(ref.values, moved, ref.source)

    def _view(self, node: Node) -> Any:
        if node.target in (aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default):
            up = node.target

            def nearest(index: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                moved: Tensor = up(index.double(), *args, **kwargs)
                return moved.to(torch.int32)

            return self._apply(node, nearest)
        return self._apply(node)

    def _pad(self, node: Node) -> Ref:
        mode = args_of(node)[2] if len(args_of(node)) > 2 else "constant"
        value = args_of(node)[3] if len(args_of(node)) > 3 else None
        if mode == "constant" and value not in (None, 0, 0.0):
            raise Unsupported(f"found padding by {value}; accepted is 0")
        ref = self.ref(args_of(node)[0])
        sizes = [int(n) for n in args_of(node)[1]]
        if mode == "constant":
            moved = torch.nn.functional.pad(ref.index, sizes, value=-1)
        else:
            wide = torch.nn.functional.pad(ref.index.double(), sizes, mode=str(mode))
            moved = wide.to(torch.int32)
        return Ref(ref.values, moved, ref.source)

    def _cat(self, node: Node) -> Ref:
        refs = [self.ref(n) for n in args_of(node)[0]]
        dtype = "float32" if node in self.floats else "int8"
        quant = None if dtype == "float32" else self._shared(node, refs)
        refs = [self.draft.convert(ref, dtype, quant) for ref in refs]
        dim = int(args_of(node)[1]) if len(args_of(node)) > 1 else 0
        values: list[int] = []
        parts = []
        for ref in refs:
            starts = torch.zeros(len(ref.values), dtype=torch.int32)
            index = ref.index
            moved = torch.full_like(index, -1)
            at = 0
            for value in ref.values:
                count = self.draft.values[value].count
                if value not in values:
                    values.append(value)
                to = sum(self.draft.values[v].count for v in values[: values.index(value)])
                here = (index >= at) & (index < at + count)
                moved = torch.where(here, index - at + to, moved)
                at += count
            del starts
            parts.append(moved)
        return Ref(tuple(values), torch.cat(parts, dim), node)
