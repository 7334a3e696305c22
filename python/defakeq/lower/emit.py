"""From the captured graph to a draft of a program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from defakeq.lower.attention import head_strides, split_mask
from defakeq.lower.capture import Captured, Node, args_of
from defakeq.lower.draft import Draft, Ref, Rows
from defakeq.lower.groups import (
    ADDS,
    EPILOGUE,
    LAYERS,
    MULS,
    Function,
    Gate,
    Group,
    channel_affine,
    find_gates,
    find_groups,
    is_global_mean,
    members,
    mover,
    unary_of,
)
from defakeq.lower.layers import ZERO, LayerSpec, factor_of, folded
from defakeq.plan import LayerPlan, QuantPlan

aten = torch.ops.aten

IDENTITIES = {
    aten.clone.default,
    aten.dropout.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.feature_dropout.default,
    aten.lift_fresh_copy.default,
}
VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.numpy_T.default,
    aten.movedim.int,
    aten.slice.Tensor,
    aten.select.int,
    aten.narrow.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.repeat.default,
    aten.roll.default,
    aten.flip.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
    aten.index_select.default,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
    aten.repeat_interleave.self_int,
    aten.unfold.default,
}


class Unsupported(Exception):
    """A node that no program node computes; the text is the reason."""


@dataclass(frozen=True)
class Key:
    """Which quantization: of a graph node's values, before or after what consumers see."""

    node: str
    role: str = "out"


class Emitter:
    """Emits the program of a captured graph into a draft."""

    def __init__(self, captured: Captured, plan: QuantPlan) -> None:
        self.captured = captured
        self.plan = plan
        self.draft = Draft()
        self.groups = find_groups(captured)
        self.gates = {
            node: gate
            for node, gate in find_gates(captured, self.groups).items()
            if all(self._is_static(group.layer) for group in (gate.fc1, gate.fc2))
        }
        self.inner: set[Node] = set()
        for group in self.groups.values():
            self.inner.update(members(group)[:-1])
        for gate in self.gates.values():
            self.inner.update(gate.inner)
        self.refs: dict[Node, Any] = {}
        self.layers: dict[str, LayerSpec] = {}
        self.tables: dict[str, tuple[Any, Any, Callable[[Tensor], Tensor]]] = {}
        self.bits: dict[Any, int] = {}
        self.functions: dict[Any, tuple[Any, Callable[[Tensor], Tensor]]] = {}
        self.observed: dict[Any, set[Node]] = {}
        self.floats = self._float_streams()
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []

    # what is float32

    def _float_streams(self) -> set[Node]:
        """Nodes whose values float32 consumers read."""
        floats: set[Node] = set(self.captured.outputs)
        for node in reversed([*self.captured.inputs, *self.captured.nodes]):
            if any(self._reads_float(user, node, floats) for user in node.users):
                floats.add(node)
        return floats

    def _reads_float(self, user: Node, node: Node, floats: set[Node]) -> bool:
        if user.op == "output":
            return True
        if user.target is aten.layer_norm.default:
            return True
        if user.target in LAYERS:
            if args_of(user)[0] is not node:
                return False
            layer = self.plan_of(user)
            return layer is None or layer.act_bits is None
        passes = user.target in VIEWS or user.target in IDENTITIES or user.target in ADDS
        passes = passes or user.target in (
            aten.adaptive_avg_pool2d.default,
            aten.mean.dim,
            aten.cat.default,
            aten.pad.default,
        )
        passes = passes or "getitem" in str(user.target)
        return passes and user in floats

    # names

    def layer_name(self, node: Node) -> str:
        """The model's name of a layer call."""
        weight = args_of(node)[1]
        name = self.captured.parameters.get(weight, node.name)
        return name.removesuffix(".weight")

    def plan_of(self, node: Node) -> LayerPlan | None:
        """The plan of a layer call."""
        return self.plan.layers.get(self.layer_name(node))

    def _is_static(self, node: Node) -> bool:
        layer = self.plan_of(node)
        return layer is not None and layer.act_bits is not None

    def key(self, node: Node, role: str = "out") -> Key:
        """The quantization key of a node's values, which calibration observes."""
        key = Key(node.name, role)
        self.observed.setdefault(key, set()).add(node)
        return key

    # the walk

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
        image = len(shape) == 4 and shape[0] == 1
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

    def _output(self, node: Node, i: int) -> None:
        ref = self.ref(node)
        shape = self.captured.shapes[node]
        image = len(shape) == 4 and shape[0] == 1
        order = self._canonical(ref.index)
        own = tuple(order.shape)
        rows = self.dense(ref, order, f"output{i}")
        value = self.shaped(rows.value, own)
        name = "y" if len(self.captured.outputs) == 1 else f"y{i}"
        self.outputs.append({"name": name, "value": value, "layout": "nchw" if image else "plain"})

    def ref(self, node: Node) -> Ref:
        """Where a node's values lie; constants become values of the program."""
        if node not in self.refs:
            held = self.captured.constants[node]
            if not held.is_floating_point():
                raise Unsupported(f"found a constant operand of {held.dtype}")
            array = held.detach().float().cpu().contiguous().numpy()
            if array.ndim == 4 and array.shape[0] == 1:
                value = self.draft.constant(node.name, array[0].transpose(1, 2, 0))
                shape = self.draft.values[value].shape
                index = torch.arange(array.size, dtype=torch.int32).reshape(1, *shape)
                self.refs[node] = Ref((value,), index.permute(0, 3, 1, 2), node)
            else:
                value = self.draft.constant(node.name, array.reshape(array.shape or (1,)))
                index = torch.arange(array.size, dtype=torch.int32).reshape(array.shape)
                self.refs[node] = Ref((value,), index, node)
        found: Ref = self.refs[node]
        return found

    def dense(self, ref: Ref, order: Tensor, name: str) -> Rows:
        """All channels of an operand in order, zeros where they are absent."""
        rows = self.draft.rows(ref, order, name, fill=True)
        straight = np.array_equal(rows.columns, np.arange(rows.width))
        if straight and rows.width == order.shape[-1]:
            return rows
        flat = order.reshape(-1, order.shape[-1])
        value = self.draft.copy(ref, flat, tuple(flat.shape), name)
        return Rows(value, flat.shape[0], flat.shape[1], np.arange(flat.shape[1]))

    def shaped(self, value: int, shape: tuple[int, ...]) -> int:
        """The value under another shape."""
        own = self.draft.values[value]
        if own.shape == tuple(shape):
            return value
        viewed = self.draft.view(value, 0, tuple(shape))
        if viewed is not None:
            return viewed
        ref = self.draft.whole(value)
        return self.draft.copy(ref, ref.index.reshape(-1, own.shape[-1]), tuple(shape), "shape")

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
        if is_global_mean(node, self.captured):
            return self._mean(node)
        if target is aten.adaptive_avg_pool2d.default:
            return self._adaptive(node)
        if target is aten.mean.dim:
            return self._mean_tokens(node)
        if target is aten.layer_norm.default:
            return self._layer_norm(node)
        if target is aten.scaled_dot_product_attention.default:
            return self._attention(node)
        found = unary_of(node, self.captured.constants)
        if found is not None:
            return self._unary(node, found[0], found[1])
        if target in ADDS or target in MULS or target in _BINARY:
            return self._binary(node)
        if target is aten.batch_norm.default:
            return self._batch_norm(node)
        raise Unsupported(f"found {target}, which no program node computes")

    # moving data

    def _apply(self, node: Node, function: Callable[..., Any] | None = None) -> Any:
        source = args_of(node)[0]
        ref = self.ref(source)
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

    def _shared(self, node: Node, refs: list[Ref]) -> Any:
        """One quantization for all parts of a concatenation."""
        key = self.key(node)
        for ref in refs:
            for number in ref.values:
                value = self.draft.values[number]
                if value.dtype == "int8" and not value.is_input and value.tensor is None:
                    self._merge(value.quant, key)
        return key

    def _merge(self, old: Any, new: Any) -> None:
        if old == new:
            return
        self.observed[new] |= self.observed.pop(old, set())
        if old in self.bits:
            self.bits[new] = max(self.bits.get(new, 0), self.bits.pop(old))
        for value in self.draft.values:
            if value.quant == old:
                value.quant = new
        for name, (pre, out, function) in self.tables.items():
            self.tables[name] = (new if pre == old else pre, new if out == old else out, function)
        for pre, (out, function) in list(self.functions.items()):
            if out == old:
                self.functions[pre] = (new, function)

    # operands

    def int8(self, ref: Ref, bits: int = 8) -> Ref:
        """The operand as int8."""
        quant = self.draft.quant(ref)
        if self.draft.dtype(ref) == "float32":
            quant = self.key(ref.source)  # type: ignore[arg-type]
            ref = self.draft.convert(ref, "int8", quant)
        if bits != 8 or quant in self.bits:
            self.bits[quant] = max(self.bits.get(quant, 0), bits)
        return ref

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
        return self._finish(group, spec, rows, space)

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
        if bool((wanted < 0).any()) or not torch.equal(inside, inside[:1].expand_as(inside)):
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
        ref = self.ref(group.residual)  # type: ignore[arg-type]
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
    ) -> Ref:
        draft, function, node = self.draft, group.function, group.out
        shape = (*space, len(layout))
        attributes: dict[str, Any] = {"layer": spec.name}
        as_float = node in self.floats
        rectified = function is not None and function.name in ("relu", "relu6")
        if as_float and function is not None and function.name not in EPILOGUE:
            as_float = False
        if as_float or function is None or rectified:
            quant = None if as_float else self.key(node)
            spec.activation = function.name or "none" if function is not None else "none"
        else:
            quant = self.key(node)
            pre = self.key(pre_of(group), "pre")
            self.functions[pre] = (quant, function.apply)
            table = f"{spec.name}.table"
            self.tables[table] = (pre, quant, function.apply)
            attributes["table"] = table
            attributes["pre"] = pre
        out = draft.value("float32" if as_float else "int8", shape, quant)
        self.layers[spec.name] = spec
        draft.step(spec.kind, spec.name, [rows.value, residual], out, **attributes)
        index = torch.full((*space, spec_outs(spec, group, self.captured)), -1, dtype=torch.int32)
        stored = np.flatnonzero(layout >= 0)
        own = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
        index[..., torch.from_numpy(layout[stored])] = own[..., torch.from_numpy(stored)]
        if group.channels_first:
            index = index.permute(2, 0, 1)
        return Ref((out,), index.reshape(self.captured.shapes[node]), node)

    def _gate(self, gate: Gate) -> Ref:
        ref = self.int8(self.ref(gate.x))
        index = ref.index[0].permute(1, 2, 0)
        present = (index.reshape(-1, index.shape[-1]) >= 0).any(0)
        rows = self.draft.rows(ref, index, gate.out.name)
        if np.count_nonzero(rows.columns >= 0) != rows.width:
            kept = torch.nonzero(present).flatten()
            part = self.dense(ref, index[:, :, kept], gate.out.name)
            columns = np.full(len(present), -1, np.int64)
            columns[kept.numpy()] = np.arange(len(kept))
            rows = Rows(part.value, part.rows, part.width, columns)
        height, width = int(index.shape[0]), int(index.shape[1])
        layout = np.empty(rows.width, np.int64)
        inside = np.flatnonzero(rows.columns >= 0)
        layout[rows.columns[inside]] = inside
        pool = self.key(gate.pool, "pool")
        attributes: dict[str, Any] = {"pool": pool}
        hidden_rows = Rows(-1, 1, rows.width, rows.columns)
        hidden = self._gate_layer(gate.fc1, hidden_rows, None, 1, attributes)
        kept1 = self._gate_kept
        columns = np.full(self.layers[attributes["fc1"]].weight.shape[0], -1, np.int64)
        columns = np.full(gate_outs(gate.fc1, self.captured), -1, np.int64)
        columns[kept1] = np.arange(len(kept1))
        second = Rows(-1, 1, len(kept1), columns)
        final = self._gate_layer(gate.fc2, second, layout, 2, attributes)
        attributes["hidden"], attributes["gate"] = hidden, final
        quant = self.key(gate.out)
        out = self.draft.value("int8", (height, width, rows.width), quant)
        x = self.shaped(rows.value, (height, width, rows.width))
        name = self.layer_name(gate.fc1.layer).rpartition(".")[0] or gate.out.name
        self.draft.step("squeeze_excite", name, [x], out, **attributes)
        result = torch.full((height, width, len(present)), -1, dtype=torch.int32)
        own = torch.arange(height * width * rows.width, dtype=torch.int32)
        result[..., torch.from_numpy(layout)] = own.reshape(height, width, rows.width)
        return Ref((out,), result.permute(2, 0, 1)[None], gate.out)

    def _gate_layer(
        self, group: Group, rows: Rows, layout: Any, which: int, attributes: dict[str, Any]
    ) -> Any:
        node, layer = group.layer, self.plan_of(group.layer)
        constants = self.captured.constants
        bias_node = args_of(node)[2] if len(args_of(node)) > 2 else None
        bias = constants[bias_node] if isinstance(bias_node, Node) else None
        weight, offset = folded(constants[args_of(node)[1]], bias, group.affine)
        weight = weight.reshape(weight.shape[:2])
        name = self.layer_name(node)
        outs = weight.shape[0]  # type: ignore[misc]
        spec = LayerSpec(
            self.draft.unique(name) if name in self.layers else name,
            "linear",
            weight,
            offset.astype(np.float32),
            np.arange(outs),
            np.arange(weight.shape[1]),  # type: ignore[misc]
            layer,
            factor=factor_of(group.affine, outs),
        )
        kept = self._kept(spec)
        function = group.function
        assert function is not None
        if layout is None:
            layout = kept if function.keeps_zero else np.arange(outs)
        self._gate_kept = layout
        spec.channels = np.where(np.isin(layout, kept), layout, -1)
        weight = np.where(spec.channels[:, None] >= 0, weight[layout], 0).astype(np.float32)
        assert spec.bias is not None
        spec.bias = np.where(spec.channels >= 0, spec.bias[layout], 0).astype(np.float32)
        self._set_columns(spec, weight, rows)
        self.layers[spec.name] = spec
        attributes[f"fc{which}"] = spec.name
        quant = self.key(group.out)
        if function.name in ("relu", "relu6"):
            spec.activation = function.name
        else:
            pre = self.key(pre_of(group), "pre")
            self.functions[pre] = (quant, function.apply)
            table = f"{spec.name}.table"
            self.tables[table] = (pre, quant, function.apply)
            attributes[f"table{which}"] = table
            attributes[f"pre{which}"] = pre
        return quant

    # between layers

    def _image(self, ref: Ref, name: str) -> tuple[Rows, int, int, int]:
        index = ref.index[0].permute(1, 2, 0)
        height, width, channels = (int(n) for n in index.shape)
        rows = self.draft.rows(ref, index, name)
        rows.value = self.shaped(rows.value, (height, width, rows.width))
        return rows, height, width, channels

    def _spread(
        self, rows: Rows, value: int, space: tuple[int, ...], channels: int, node: Node
    ) -> Ref:
        """The reference of an output with the columns of its operand."""
        index = torch.full((*space, channels), -1, dtype=torch.int32)
        inside = np.flatnonzero(rows.columns >= 0)
        own = torch.arange(math.prod(space) * rows.width, dtype=torch.int32)
        own = own.reshape(*space, rows.width)
        index[..., torch.from_numpy(inside)] = own[..., torch.from_numpy(rows.columns[inside])]
        if len(self.captured.shapes[node]) == 4:
            index = index.permute(2, 0, 1)
        return Ref((value,), index.reshape(self.captured.shapes[node]), node)

    def _pool(self, node: Node) -> Ref:
        ref = self.ref(args_of(node)[0])
        maximum = node.target is aten.max_pool2d.default

        def pair(i: int, default: Any) -> list[int]:
            value = args_of(node)[i] if len(args_of(node)) > i else default
            values = [int(v) for v in (value or default)]
            return [values[0], values[-1]]

        kernel = pair(1, [1])
        attributes: dict[str, Any] = {
            "mode": "max" if maximum else "avg",
            "kernel": kernel,
            "stride": pair(2, kernel),
            "padding": pair(3, [0]),
        }
        if maximum:
            if pair(4, [1]) != [1, 1]:
                raise Unsupported("found a dilated max pool; accepted is dilation 1")
            attributes["ceil_mode"] = bool(args_of(node)[5]) if len(args_of(node)) > 5 else False
        else:
            attributes["ceil_mode"] = bool(args_of(node)[4]) if len(args_of(node)) > 4 else False
            attributes["count_include_pad"] = (
                bool(args_of(node)[5]) if len(args_of(node)) > 5 else True
            )
            if len(args_of(node)) > 6 and args_of(node)[6] is not None:
                raise Unsupported("found divisor_override; accepted is None")
        rows, _, _, channels = self._image(ref, node.name)
        shape = self.captured.shapes[node]
        dtype = self.draft.dtype(ref)
        quant = None
        if dtype == "int8":
            quant = self.draft.quant(ref) if maximum else self.key(node)
        out = self.draft.value(dtype, (shape[2], shape[3], rows.width), quant)
        self.draft.step("pool2d", node.name, [rows.value], out, **attributes)
        return self._spread(rows, out, (shape[2], shape[3]), channels, node)

    def _adaptive(self, node: Node) -> Ref:
        rows, _, _, channels = self._image(self.ref(args_of(node)[0]), node.name)
        shape = self.captured.shapes[node]
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (shape[2], shape[3], rows.width), quant)
        size = [shape[2], shape[3]]
        self.draft.step("adaptive_avg_pool2d", node.name, [rows.value], out, size=size)
        return self._spread(rows, out, (shape[2], shape[3]), channels, node)

    def _out_type(self, node: Node) -> tuple[str, Any]:
        return ("float32", None) if node in self.floats else ("int8", self.key(node))

    def _mean(self, node: Node) -> Ref:
        rows, _, _, channels = self._image(self.ref(args_of(node)[0]), node.name)
        return self._mean_step(node, rows, channels)

    def _mean_step(self, node: Node, rows: Rows, channels: int) -> Ref:
        dtype, quant = self._out_type(node)
        out = self.draft.value(dtype, (rows.width,), quant)
        self.draft.step("mean_rows", node.name, [rows.value], out)
        index = torch.full((channels,), -1, dtype=torch.int32)
        inside = np.flatnonzero(rows.columns >= 0)
        index[torch.from_numpy(inside)] = torch.from_numpy(rows.columns[inside]).int()
        return Ref((out,), index.reshape(self.captured.shapes[node]), node)

    def _mean_tokens(self, node: Node) -> Ref:
        ref = self.ref(args_of(node)[0])
        rank = ref.index.dim()
        dims = sorted(int(d) % rank for d in args_of(node)[1])
        if dims != list(range(1, rank - 1)):
            raise Unsupported(f"found a mean over dimensions {dims} of {rank}")
        order = ref.index[0].reshape(-1, ref.index.shape[-1])
        rows = self.draft.rows(ref, order, node.name)
        return self._mean_step(node, rows, int(order.shape[-1]))

    # transformers

    def _layer_norm(self, node: Node) -> Ref:
        args = args_of(node)
        shape = self.captured.shapes[node]
        if list(args[1]) != [shape[-1]]:
            raise Unsupported(f"found layer_norm over {list(args[1])}; accepted is the last size")
        ref = self.ref(args[0])
        order = ref.index.reshape(-1, shape[-1])
        space = space_of(shape)
        absent = np.flatnonzero((order < 0).any(0).numpy())
        if absent.size and self._reads(node, absent):
            rows = self.dense(ref, order, node.name)
        else:
            rows = self.draft.rows(ref, order, node.name)
        inside = np.flatnonzero(rows.columns >= 0)
        attributes: dict[str, Any] = {
            "eps": float(args[4]) if len(args) > 4 else 1e-5,
            "count": int(shape[-1]),
        }
        name = self._owner(args[2]) if len(args) > 2 and args[2] is not None else node.name
        for i, part in ((2, "gamma"), (3, "beta")):
            if len(args) > i and args[i] is not None:
                full = self.captured.constants[args[i]].detach().float().cpu().numpy()
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

    def _owner(self, parameter: Node) -> str:
        name = self.captured.parameters.get(parameter, parameter.name)
        return name.rpartition(".")[0] or name

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
        numbers, layouts, keys = [], {}, []
        for letter, operand in zip("qkv", args[:3], strict=True):
            ref = self.int8(self.ref(operand))
            strides = head_strides(ref.index) if len(ref.values) == 1 else None
            if strides is None:
                order = ref.index.permute(0, 2, 1, 3)
                lead = tuple(order.shape)
                flat = order.reshape(-1, lead[2] * lead[3])
                number = self.draft.copy(
                    ref, flat, (lead[0], lead[1], lead[2] * lead[3]), f"{node.name}.{letter}"
                )
                strides = {
                    "offset": 0,
                    "batch": lead[1] * lead[2] * lead[3],
                    "head": lead[3],
                    "token": lead[2] * lead[3],
                }
            else:
                number = ref.values[0]
            numbers.append(number)
            layouts[letter] = strides
            keys.append(self.draft.values[number].quant)
        k_shape = self._shape_of(args[1])
        head_dim, k_tokens = int(k_shape[3]), int(k_shape[2])
        scale = node.kwargs.get("scale")
        softmax_scale = float(scale) if scale is not None else head_dim**-0.5  # type: ignore[arg-type]
        extra = self._attention_mask(args[3] if len(args) > 3 else None, batches, heads)
        quant = self.key(node)
        out = self.draft.value("int8", (batches, tokens, heads * size), quant)
        self.draft.step(
            "attention",
            self._module_of(node),
            [*numbers, *extra],
            out,
            heads=heads,
            head_dim=head_dim,
            value_dim=size,
            batches=batches,
            q_tokens=tokens,
            k_tokens=k_tokens,
            alpha=(keys[0], keys[1], softmax_scale),
            **layouts,
        )
        index = torch.arange(batches * tokens * heads * size, dtype=torch.int32)
        index = index.reshape(batches, tokens, heads, size).permute(0, 2, 1, 3)
        return Ref((out,), index, node)

    def _attention_mask(self, node: Node | None, batches: int, heads: int) -> list[int]:
        if node is None:
            return []
        if node not in self.captured.constants:
            raise Unsupported("found a mask that depends on the input; accepted is a constant")
        found = split_mask(self.captured.constants[node], batches, heads)
        if found is None:
            raise Unsupported("found a mask that is no sum of a bias a head and a mask a batch")
        bias, mask = found
        ins = [-1 if bias is None else self.draft.constant(f"{node.name}.bias", bias)]
        if mask is not None:
            ins.append(self.draft.constant(f"{node.name}.mask", mask))
        return ins

    def _module_of(self, node: Node) -> str:
        """The name of the module that a node belongs to."""
        stack = node.meta.get("nn_module_stack") or {}
        for path, _ in reversed(list(stack.values())):
            if path:
                name: str = path
                return name
        return node.name

    # elementwise

    def _single(self, ref: Ref, node: Node, fill: bool) -> Ref:
        """The operand in one value that it covers; absent elements filled in when asked for."""
        whole = len(ref.values) == 1
        if whole:
            count = self.draft.values[ref.values[0]].count
            used = torch.unique(ref.index[ref.index >= 0]).numel()
            whole = used * 4 >= count * 3
        if whole and not (fill and bool((ref.index < 0).any())):
            return ref
        index = self._canonical(ref.index)
        if fill:
            rows = self.dense(ref, index, node.name)
        else:
            rows = self.draft.rows(ref, index, node.name)
        shape = tuple(index.shape)
        result = torch.full(shape, -1, dtype=torch.int32)
        inside = np.flatnonzero(rows.columns >= 0)
        own = torch.arange(rows.rows * rows.width, dtype=torch.int32)
        own = own.reshape(*shape[:-1], rows.width)
        result[..., torch.from_numpy(inside)] = own[..., torch.from_numpy(rows.columns[inside])]
        if ref.index.dim() == 4 and ref.index.shape[0] == 1:
            result = result.permute(2, 0, 1)
        return Ref((rows.value,), result.reshape(ref.index.shape), ref.source)

    @staticmethod
    def _canonical(index: Tensor) -> Tensor:
        if index.dim() == 4 and index.shape[0] == 1:
            return index[0].permute(1, 2, 0)
        own = index[0] if index.dim() and index.shape[0] == 1 else index
        return own.reshape(1) if own.dim() == 0 else own

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
        fn = _BINARY.get(node.target, "add" if node.target in ADDS else "mul")
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

    def _shape_of(self, node: Node) -> tuple[int, ...]:
        if node in self.captured.constants:
            return tuple(self.captured.constants[node].shape)
        return self.captured.shapes[node]

    def _binary_constant(self, node: Node, fn: str, a: Node, b: Node) -> Ref:
        held = self.captured.constants[b].detach().double()
        ref = self._single(self.ref(a), node, fn in ("add", "sub", "max", "min"))
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


_BINARY: dict[Any, str] = {
    aten.sub.Tensor: "sub",
    aten.div.Tensor: "div",
    aten.maximum.default: "max",
    aten.minimum.default: "min",
}


def space_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes before the channels, without a batch of one."""
    return shape[1:-1] if shape[0] == 1 else shape[:-1]


def pre_of(group: Group) -> Node:
    """The node whose values the group's function gets."""
    assert group.pre is not None
    return group.pre


def spec_outs(spec: LayerSpec, group: Group, captured: Captured) -> int:
    """The model's output channels of a layer."""
    shape = captured.shapes[group.layer]
    return shape[1] if spec.kind == "conv2d" else shape[-1]


def gate_outs(group: Group, captured: Captured) -> int:
    """The model's output channels of a squeeze-excite layer."""
    weight = captured.constants[args_of(group.layer)[1]]
    return int(weight.shape[0])


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
