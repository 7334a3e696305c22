"""Convolutions and linear layers with what follows them in their epilogue."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defakeq.lower.capture import Captured, Node, args_of
from defakeq.lower.draft import Ref, Rows
from defakeq.lower.groups import (
    EPILOGUE,
    Group,
)
from defakeq.lower.layers import ZERO, LayerSpec, factor_of, folded
from defakeq.lower.moves import Moves
from defakeq.lower.operands import IDENTITIES, VIEWS, Unsupported, space_of
from defakeq.lower.pooling import Pooling
from defakeq.lower.restored import half_columns, only_channels

aten = torch.ops.aten


class Products(Moves, Pooling):
    """Emits layers."""

    def _layer(self, group: Group) -> Ref:
        node = group.layer
        name = self.layer_name(node)
        layer = self.plan_of(node)
        weight_node, bias_node = (
            args_of(node)[1],
            (args_of(node)[2] if len(args_of(node)) > 2 else None),
        )
        constants = self.captured.constants
        bias = constants[bias_node] if isinstance(bias_node, Node) else None
        weight, offset = folded(constants[weight_node], bias, group.affine)
        ref = self.ref(args_of(node)[0])
        if layer is not None and layer.act_bits is not None:
            ref = self.int8(ref, layer.act_bits)
        else:
            ref = self.draft.convert(ref, "float32")
        conv = node.target is aten.conv2d.default
        spec = LayerSpec(
            self.draft.unique(name) if name in self.layers else name,
            "conv2d" if conv else "linear",
            weight,
            offset.astype(np.float32),
            np.arange(weight.shape[0]),
            np.arange(weight.shape[1]),
            layer,
            factor=factor_of(group.affine, weight.shape[0]),
        )
        if conv:
            rows, space = self._conv_operand(node, ref, spec)
        else:
            order = ref.index.reshape(-1, ref.index.shape[-1])
            if group.rows is not None:
                order = order[group.rows]
            ref, order = self._absorbed(ref, order, node)
            rows = self.draft.rows(ref, order, name)
            space = space_of(self.captured.shapes[node])
            x_shape = (rows.rows, rows.width) if space else (rows.width,)
            rows.value = self.shaped(rows.value, x_shape)
        if group.moves:
            shape = self.captured.shapes[group.out]
            space = shape[2:] if group.channels_first else space_of(shape)
        part = replace(spec)
        result = self._finish(group, spec, rows, space)
        if group.out in self.asked.channels and self.draft.dtype(result) == "int8":
            self._float_part(group, part, rows, space)
        return result

    def _absorbed(self, ref: Ref, order: Tensor, consumer: Node) -> tuple[Ref, Tensor]:
        """Has the producer of an operand write its rows in the consumer's order, where it can."""
        if len(ref.values) != 1 or ref.source is None or not self._exclusive(ref.source, consumer):
            return ref, order
        number = ref.values[0]
        value = self.draft.values[number]
        step = next((s for s in self.draft.steps if s.outs == [number]), None)
        if step is None or step.op not in ("layer_norm", "attention") or "rows" in step.attributes:
            return ref, order
        width = value.shape[-1]
        present = order[0] >= 0
        if not bool(present.any()):
            return ref, order
        wanted = order[:, present]
        rows = torch.div(wanted[:, 0], width, rounding_mode="floor")
        inside = wanted - rows[:, None] * width
        if (
            bool((wanted < 0).any())
            or bool((inside >= width).any())
            or not torch.equal(inside, inside[:1].expand_as(inside))
        ):
            return ref, order
        count = value.count // width
        if torch.equal(rows, torch.arange(count, dtype=torch.int32)):
            return ref, order
        table = rows.numpy().astype(np.int32)
        if step.op == "attention":
            if len(table) != count or len(np.unique(table)) != count:
                return ref, order
            written = np.empty(count, np.int32)
            written[table] = np.arange(count, dtype=np.int32)
            table = written
        step.attributes["rows"] = self.draft.tensor("program.rows", table)
        value.shape = (len(rows), width)
        placed = torch.arange(len(rows), dtype=torch.int32)[:, None] * width + inside
        moved = torch.full_like(order, -1)
        moved[:, present] = placed
        return ref, moved

    @staticmethod
    def _exclusive(source: Node, consumer: Node) -> bool:
        """Whether a node's values go to the consumer and nowhere else."""
        at = source
        while len(at.users) == 1:
            (at,) = at.users
            if at is consumer:
                return True
            if at.target not in VIEWS and at.target not in IDENTITIES:
                return False
        return False

    def _conv_operand(self, node: Node, ref: Ref, spec: LayerSpec) -> tuple[Rows, tuple[int, ...]]:
        def pair(i: int, default: int) -> tuple[int, int]:
            value = args_of(node)[i] if len(args_of(node)) > i else [default]
            values = [int(v) for v in value]
            return (values[0], values[-1])

        padding_mode = args_of(node)[4] if len(args_of(node)) > 4 else [0]
        if isinstance(padding_mode, str):
            raise Unsupported(f"found padding {padding_mode!r}; accepted is numbers")
        spec.stride, spec.padding = pair(3, 1), pair(4, 0)
        spec.dilation = pair(5, 1)
        spec.groups = int(args_of(node)[6]) if len(args_of(node)) > 6 else 1
        index = ref.index[0].permute(1, 2, 0)
        index, extra = _strip(index)
        spec.padding = (spec.padding[0] + extra[0], spec.padding[1] + extra[1])
        height, width = int(index.shape[0]), int(index.shape[1])
        grouped = spec.groups > 1
        depthwise = grouped and spec.weight.shape[1] == 1 and spec.groups == spec.weight.shape[0]
        if grouped:
            rows = self._grouped_operand(ref, index, spec, depthwise)
        else:
            rows = self.draft.rows(ref, index, spec.name)
        rows.value = self.shaped(rows.value, (height, width, rows.width))
        shape = self.captured.shapes[node]
        return rows, (shape[2], shape[3])

    def _grouped_operand(self, ref: Ref, index: Tensor, spec: LayerSpec, depthwise: bool) -> Rows:
        if not depthwise:
            return self.dense(ref, index, spec.name)
        kept = self._kept(spec)
        present = (index.reshape(-1, index.shape[-1]) >= 0).any(0).numpy()
        wanted = np.zeros(len(present), bool)
        wanted[kept] = True
        if not present[wanted].all():
            return self.dense(ref, index, spec.name)
        rows = self.draft.rows(ref, index, spec.name)
        full = np.count_nonzero(rows.columns >= 0) == rows.width
        if not full or not wanted[rows.columns >= 0].all():
            only = index[:, :, torch.from_numpy(np.flatnonzero(wanted))]
            part = self.draft.rows(ref, only, spec.name)
            if np.count_nonzero(part.columns >= 0) != part.width:
                flat = only.reshape(-1, only.shape[-1])
                value = self.draft.copy(ref, flat, tuple(flat.shape), spec.name)
                part = Rows(value, flat.shape[0], flat.shape[1], np.arange(flat.shape[1]))
            columns = np.full(len(present), -1, np.int64)
            columns[wanted] = part.columns
            rows = Rows(part.value, part.rows, part.width, columns)
        return rows

    def _kept(self, spec: LayerSpec) -> np.ndarray[Any, Any]:
        """The outputs of a layer that are not zero throughout."""
        kept = np.ones(spec.weight.shape[0], bool)
        if spec.plan is not None and spec.plan.keep_out is not None:
            kept[:] = False
            kept[list(spec.plan.keep_out)] = True
            if spec.bias is not None:
                kept |= spec.bias != 0
        return np.flatnonzero(kept)

    def _finish(self, group: Group, spec: LayerSpec, rows: Rows, space: tuple[int, ...]) -> Ref:
        outs = spec.weight.shape[0]
        kept = self._kept(spec)
        function = group.function
        if function is not None and not function.keeps_zero and len(kept) < outs:
            spec.channels = np.where(np.isin(np.arange(outs), kept), np.arange(outs), -1)
            layout = np.arange(outs)
        else:
            layout = kept
        depthwise = spec.groups > 1 and spec.weight.shape[1] == 1 and spec.groups == outs
        if spec.groups > 1 and depthwise:
            order = np.full(rows.width, -1, np.int64)
            present = np.flatnonzero(rows.columns >= 0)
            order[rows.columns[present]] = present
            layout = order
            spec.groups = len(order)
        residual = -1
        if group.residual is not None:
            layout, residual, spec.channels = self._residual(group, spec, layout, space)
        elif not (function is not None and not function.keeps_zero and len(kept) < outs):
            spec.channels = np.where(np.isin(layout, kept), layout, -1)
        weight = spec.weight[layout]
        weight = np.where(
            (spec.channels >= 0).reshape(-1, *([1] * (weight.ndim - 1))), weight, 0
        ).astype(np.float32)
        if spec.bias is not None:
            spec.bias = np.where(spec.channels >= 0, spec.bias[layout], 0).astype(np.float32)
            if not spec.bias.any():
                spec.bias = None
        if spec.groups == 1:
            self._set_columns(spec, weight, rows)
        else:
            spec.weight = weight
            spec.inputs = np.arange(weight.shape[1])
        return self._epilogue(group, spec, rows, space, layout, residual)

    def _set_columns(self, spec: LayerSpec, weight: Any, rows: Rows) -> None:
        present = np.flatnonzero(rows.columns >= 0)
        if spec.plan is not None and spec.plan.keep_in is not None:
            present = np.intersect1d(present, spec.plan.keep_in)
        if present.size == 0:
            raise Unsupported(f"found no input channel of layer {spec.name!r} that is kept")
        wide = np.zeros((weight.shape[0], rows.width, *weight.shape[2:]), np.float32)
        wide[:, rows.columns[present]] = weight[:, present]
        spec.weight = wide
        spec.inputs = np.full(rows.width, -1, np.int64)
        spec.inputs[rows.columns[present]] = present

    def _residual(
        self, group: Group, spec: LayerSpec, layout: Any, space: tuple[int, ...]
    ) -> tuple[Any, int, Any]:
        """The output channels' order, the residual operand, and the channels that are computed."""
        assert group.residual is not None
        ref = self.ref(group.residual)
        order = ref.index[0].permute(1, 2, 0) if group.channels_first else ref.index
        order = order.reshape(-1, order.shape[-1])
        held = np.flatnonzero((order >= 0).any(0).numpy())
        union = np.union1d(layout[layout >= 0], held)
        if len(union) == len(held):
            rows = self.draft.rows(ref, order, spec.name)
            if np.count_nonzero(rows.columns >= 0) == rows.width:
                layout = np.empty(rows.width, np.int64)
                present = np.flatnonzero(rows.columns >= 0)
                layout[rows.columns[present]] = present
                value = self.shaped(rows.value, (*space, rows.width))
                return layout, value, np.where(np.isin(layout, self._kept(spec)), layout, ZERO)
        part = order[:, torch.from_numpy(union)]
        rows = self.dense(ref, part, spec.name)
        value = self.shaped(rows.value, (*space, rows.width))
        return union, value, np.where(np.isin(union, self._kept(spec)), union, ZERO)

    def _epilogue(
        self,
        group: Group,
        spec: LayerSpec,
        rows: Rows,
        space: tuple[int, ...],
        layout: Any,
        residual: int,
        as_float: bool = False,
    ) -> Ref:
        draft, function, node = self.draft, group.function, group.out
        shape = (*space, len(layout))
        attributes: dict[str, Any] = {"layer": spec.name}
        as_float = as_float or node in self.floats
        direct = function is not None and (
            function.name in ("relu", "relu6") or self._computed(group, spec)
        )
        if as_float and function is not None and function.name not in EPILOGUE:
            as_float = False
        if as_float or function is None or direct:
            quant = None if as_float else self.key(node)
            spec.activation = function.name or "none" if function is not None else "none"
        else:
            quant = self.key(node)
            pre = self.key(pre_of(group), "pre")
            self.functions[pre] = (quant, function.apply)
            table = f"{spec.name}.table"
            self.tables[table] = (pre, quant, function.apply)
            attributes["table"], attributes["fn"] = table, function.label
            attributes["pre"] = pre
        out = draft.value("float32" if as_float else "int8", shape, quant)
        self.layers[spec.name] = spec
        half = self._half_operand(group, spec, rows)
        draft.step(spec.kind, spec.name, [rows.value, residual, half], out, **attributes)
        index = torch.full((*space, spec_outs(spec, group, self.captured)), -1, dtype=torch.int32)
        stored = np.flatnonzero(layout >= 0)
        own = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
        index[..., torch.from_numpy(layout[stored])] = own[..., torch.from_numpy(stored)]
        if group.channels_first:
            index = index.permute(2, 0, 1)
        return Ref((out,), index.reshape(self.captured.shapes[node]), node)

    def _computed(self, group: Group, spec: LayerSpec) -> bool:
        """Whether a function is computed of float sums where a table would do.

        A table reads rounded sums, and near the picture, where the traces of a forgery are finest,
        that costs the most. SiLU takes long to compute, so only the first layers have it, and only
        where the weights' rounding does not outweigh it.
        """
        assert group.function is not None
        planned = spec.plan is not None and spec.plan.bits == 8
        return group.function.name == "silu" and planned and group.layer in self.first

    # channels that stay float

    def _float_part(
        self, group: Group, spec: LayerSpec, rows: Rows, space: tuple[int, ...]
    ) -> None:
        """Computes the channels that are asked for once more, as float32."""
        kept = self._kept(spec).tolist()
        channels = sorted(self.asked.channels[group.out].intersection(kept))
        if not channels:
            return
        part = only_channels(spec, channels)
        if spec.groups > 1:
            whole = self.draft.whole(rows.value)
            order = whole.index[..., rows.columns[channels]]
            shape = tuple(order.shape)
            value = self.draft.copy(whole, order.reshape(-1, len(channels)), shape, part.name)
            rows = Rows(value, rows.rows, len(channels), np.arange(len(channels)))
            part.inputs = np.arange(part.weight.shape[1])
        else:
            self._set_columns(part, part.weight, rows)
        residual = -1
        if group.residual is not None:
            ref = self._half_ref(group.residual)
            order = ref.index[0].permute(1, 2, 0) if group.channels_first else ref.index
            order = order.reshape(-1, order.shape[-1])[:, channels]
            held = self.dense(ref, order, part.name)
            residual = self.shaped(held.value, (*space, len(channels)))
        layout = np.asarray(channels)
        self.parts[group.out] = self._epilogue(group, part, rows, space, layout, residual, True)

    def _half_operand(self, group: Group, spec: LayerSpec, rows: Rows) -> int:
        """The value of the inputs that an integer layer reads as float32; -1 for none."""
        x = self.draft.values[rows.value]
        columns = half_columns(spec)
        if not columns or x.dtype == "float32":
            return -1
        ref = self._half_ref(args_of(group.layer)[0])
        if spec.kind == "conv2d":
            order = ref.index[0].permute(1, 2, 0)
            top, left = ((order.shape[d] - x.shape[d]) // 2 for d in (0, 1))
            order = order[top : top + x.shape[0], left : left + x.shape[1]]
        else:
            order = ref.index.reshape(-1, ref.index.shape[-1])
            order = order if group.rows is None else order[group.rows]
        order = order[..., spec.inputs[columns]].reshape(-1, len(columns))
        held = self.dense(ref, order, f"{spec.name}.half")
        return self.shaped(held.value, (*x.shape[:-1], len(columns)))

    def _half_ref(self, node: Node) -> Ref:
        """Where a node's values are as float32: at least those channels that are asked for."""
        if node in self.parts:
            return self.parts[node]
        if node in self.refs and self.draft.dtype(self.refs[node]) == "float32":
            found: Ref = self.refs[node]
            return found
        if node.target in IDENTITIES:
            return self._half_ref(args_of(node)[0])
        if node.target in VIEWS:
            moved: Ref = self._apply(node, None, self._half_ref(args_of(node)[0]))
            return moved
        if node.target is aten.max_pool2d.default:
            self.parts[node] = self._pool(node, self._half_ref(args_of(node)[0]))
            return self.parts[node]
        return self.draft.convert(self.ref(node), "float32")


def pre_of(group: Group) -> Node:
    """The node whose values the group's function gets."""
    assert group.pre is not None
    return group.pre


def spec_outs(spec: LayerSpec, group: Group, captured: Captured) -> int:
    """The model's output channels of a layer."""
    shape = captured.shapes[group.layer]
    return shape[1] if spec.kind == "conv2d" else shape[-1]


def _strip(index: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Takes equal borders of zeros off an image's index."""
    there = (index >= 0).any(2)
    rows = torch.nonzero(there.any(1)).flatten()
    columns = torch.nonzero(there.any(0)).flatten()
    if rows.numel() == 0:
        return index, (0, 0)
    height, width = there.shape
    top, bottom = int(rows[0]), height - 1 - int(rows[-1])
    left, right = int(columns[0]), width - 1 - int(columns[-1])
    y, x = min(top, bottom), min(left, right)
    return index[y : height - y, x : width - x], (y, x)
