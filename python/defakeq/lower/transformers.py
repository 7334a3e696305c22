"""LayerNorm, attention and products of two tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from defakeq.lower.attention import head_strides, kept_heads, matrix_strides, split_mask
from defakeq.lower.capture import Node, args_of
from defakeq.lower.draft import Ref
from defakeq.lower.groups import (
    LAYERS,
)
from defakeq.lower.operands import IDENTITIES, VIEWS, Operands, Unsupported, space_of

aten = torch.ops.aten


class Transformers(Operands):
    """Emits what transformers have between their layers."""

    def _layer_norm(self, node: Node) -> Ref:
        args = args_of(node)
        shape = self.captured.shapes[node]
        if list(args[1]) != [shape[-1]]:
            raise Unsupported(f"found layer_norm over {list(args[1])}; accepted is the last size")
        ref = self.ref(args[0])
        order = ref.index.reshape(-1, shape[-1])
        space = space_of(shape)
        absent = np.flatnonzero((order < 0).any(0).numpy())
        affine = [self._parameter(args, i) for i in (2, 3)]
        zeros = affine[0] is not None and not any(a is not None and a[absent].any() for a in affine)
        if absent.size and not zeros and self._reads(node, absent):
            rows = self.dense(ref, order, node.name)
        else:
            rows = self.draft.rows(ref, order, node.name)
            if rows.width > shape[-1]:  # one token of a whole value, which has the others' columns
                rows = self.dense(ref, order, node.name)
        inside = np.flatnonzero(rows.columns >= 0)
        attributes: dict[str, Any] = {
            "eps": float(args[4]) if len(args) > 4 else 1e-5,
            "count": int(shape[-1]),
        }
        name = node.name if affine[0] is None else self._owner(args[2])
        if any(a is not None for a in affine):
            for part, full, neutral in zip(("gamma", "beta"), affine, (1, 0), strict=True):
                full = np.full(shape[-1], neutral, np.float32) if full is None else full
                own = np.zeros(rows.width, np.float32)
                own[rows.columns[inside]] = full[inside]
                attributes[part] = self.draft.tensor(f"{name}.{part}", own)
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (*space, rows.width), quant)
        self.draft.step("layer_norm", name, [rows.value], out, **attributes)
        index = torch.full((rows.rows, shape[-1]), -1, dtype=torch.int32)
        own_index = torch.arange(rows.rows * rows.width, dtype=torch.int32)
        own_index = own_index.reshape(rows.rows, rows.width)
        index[:, torch.from_numpy(inside)] = own_index[:, torch.from_numpy(rows.columns[inside])]
        return Ref((out,), index.reshape(shape), node)

    def _reads(self, node: Node, channels: Any) -> bool:
        """Whether a consumer reads one of the channels."""
        for user in node.users:
            if user.target in VIEWS or user.target in IDENTITIES:
                if self._reads(user, channels):
                    return True
                continue
            layer = self.plan_of(user) if user.target in LAYERS else None
            if layer is None or layer.keep_in is None:
                return True
            if np.intersect1d(channels, layer.keep_in).size:
                return True
        return False

    def _attention(self, node: Node) -> Ref:
        args = args_of(node)
        if len(args) > 5 and args[5]:
            raise Unsupported("found is_causal; accepted is a mask")
        if node.kwargs.get("enable_gqa"):
            raise Unsupported("found enable_gqa; accepted is as many heads of k and v as of q")
        shape = self.captured.shapes[node]
        if len(shape) != 4:
            raise Unsupported(f"found {len(shape)} dimensions; accepted is 4")
        batches, heads, tokens, size = shape
        scale: Any = node.kwargs.get("scale")
        scale = self._shape_of(args[1])[3] ** -0.5 if scale is None else scale
        refs = [self.int8(self.ref(operand)) for operand in args[:3]]
        kept, indices = kept_heads(*(ref.index for ref in refs))
        if not kept:
            raise Unsupported("found attention whose heads are all dropped")
        numbers, layouts = [], {}
        for letter, ref, index in zip("qkv", refs, indices, strict=True):
            strides = head_strides(index) if len(ref.values) == 1 else None
            number = ref.values[0]
            if strides is None:
                order = index.permute(0, 2, 1, 3).flatten(2)
                lead = tuple(order.shape)
                flat = order.reshape(-1, lead[2])
                number = self.draft.copy(ref, flat, lead, f"{node.name}.{letter}")
                strides = {
                    "offset": 0,
                    "batch": lead[1] * lead[2],
                    "head": int(index.shape[3]),
                    "token": lead[2],
                }
            numbers.append(number)
            layouts[letter] = strides
        extra = self._attention_mask(args[3] if len(args) > 3 else None, batches, heads, kept)
        value_dim = int(indices[2].shape[3])
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (batches, tokens, len(kept) * value_dim), quant)
        self.draft.step(
            "attention",
            self._module_of(node),
            [*numbers, *extra],
            out,
            heads=len(kept),
            head_dim=int(indices[0].shape[3]),
            value_dim=value_dim,
            batches=batches,
            q_tokens=tokens,
            k_tokens=int(indices[1].shape[2]),
            alpha=(*(self.draft.values[n].quant for n in numbers[:2]), float(scale)),
            **layouts,
        )
        own = torch.arange(batches * tokens * len(kept) * value_dim, dtype=torch.int32)
        own = own.reshape(batches, tokens, len(kept), value_dim).permute(0, 2, 1, 3)
        index = torch.full(shape, -1, dtype=torch.int32)
        for i, head in enumerate(kept):
            there = torch.arange(size)
            if value_dim < size:
                there = torch.nonzero((refs[2].index[:, head] >= 0).any(1).any(0)).flatten()
            index[:, head, :, there] = own[:, i]
        return Ref((out,), index, node)

    def _attention_mask(
        self, node: Node | None, batches: int, heads: int, kept: list[int]
    ) -> list[int]:
        if node is None:
            return []
        if node not in self.captured.constants:
            raise Unsupported("found a mask that depends on the input; accepted is a constant")
        found = split_mask(self.captured.constants[node], batches, heads)
        if found is None:
            raise Unsupported("found a mask that is no sum of a bias a head and a mask a batch")
        bias, mask = found
        ins = [-1 if bias is None else self.draft.constant(f"{node.name}.bias", bias[kept])]
        if mask is not None:
            ins.append(self.draft.constant(f"{node.name}.mask", mask))
        return ins

    def _matmul(self, node: Node) -> Ref:
        shape = self.captured.shapes[node]
        refs = [self.int8(self.ref(operand)) for operand in args_of(node)[:2]]
        if len(shape) < 2 or any(ref.index.dim() < 2 for ref in refs):
            raise Unsupported(f"found a product of shape {shape}; accepted is of matrices")
        lead = shape[:-2]
        a, b = (
            ref.index.expand(*lead, *ref.index.shape[-2:]).reshape(-1, *ref.index.shape[-2:])
            for ref in refs
        )
        numbers, layouts = [], []
        for ref, index, turned in ((refs[0], a, (False,)), (refs[1], b, (False, True))):
            strides = matrix_strides(index, turned) if len(ref.values) == 1 else None
            number = ref.values[0]
            if strides is None:
                rows = index.reshape(-1, index.shape[-1])
                number = self.draft.copy(ref, rows, tuple(index.shape), f"{node.name}.operand")
                row = int(index.shape[2])
                strides = {"offset": 0, "batch": int(index.shape[1]) * row, "row": row, "col": 1}
            numbers.append(number)
            layouts.append(strides)
        m, k, n = int(a.shape[1]), int(a.shape[2]), int(b.shape[2])
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (a.shape[0], m, n), quant)
        alpha = (*(self.draft.values[number].quant for number in numbers), 1.0)
        self.draft.step(
            "matmul", node.name, numbers, out,
            batches=int(a.shape[0]), m=m, n=n, k=k, alpha=alpha, a=layouts[0], b=layouts[1],
        )  # fmt: skip
        own = torch.arange(a.shape[0] * m * n, dtype=torch.int32)
        return Ref((out,), own.reshape(shape), node)
