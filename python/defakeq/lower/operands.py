"""What every emitter of nodes uses: operands, their quantizations, and the shapes of results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defakeq.lower.capture import Captured, Node, args_of
from defakeq.lower.draft import Draft, Ref, Rows
from defakeq.lower.groups import (
    ADDS,
    LAYERS,
    MULS,
    Gate,
    find_gates,
    find_groups,
    first_layers,
    members,
)
from defakeq.lower.layers import LayerSpec
from defakeq.lower.restored import Asked
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


PLAIN_VIEWS = VIEWS - {aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default}


class Unsupported(Exception):
    """A node that no program node computes; the text is the reason."""


@dataclass(frozen=True)
class Key:
    """Which quantization: of a graph node's values, before or after what consumers see."""

    node: str
    role: str = "out"


class Operands:
    """A draft of a program and where the values of the graph's nodes are in it."""

    def __init__(self, captured: Captured, plan: QuantPlan) -> None:
        self.captured = captured
        self.plan = plan
        self.draft = Draft()
        self.groups = find_groups(captured)
        self.first = first_layers(captured, 2)
        plans = {group.layer: self.plan_of(group.layer) for group in self.groups.values()}
        self.asked = Asked(captured, self.groups, plans, PLAIN_VIEWS | IDENTITIES)
        self.parts: dict[Node, Ref] = {}
        self.gates = {
            node: gate
            for node, gate in find_gates(captured, self.groups).items()
            if node not in self.asked.floats and self._is_gate(gate)
        }
        self.inner: set[Node] = set()
        for group in self.groups.values():
            self.inner.update(members(group)[:-1])
        for gate in self.gates.values():
            self.inner.update(gate.inner)
        self.refs: dict[Node, Any] = {}
        self.layers: dict[str, LayerSpec] = {}
        self.tables: dict[str, tuple[Any, Any, Callable[[Tensor], Tensor]]] = {}
        self.table_ends: dict[str, dict[int, float]] = {}
        self.bits: dict[Any, int] = {}
        self.functions: dict[Any, tuple[Any, Callable[[Tensor], Tensor]]] = {}
        self.observed: dict[Any, set[Node]] = {}
        self.floats = self._float_streams()
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []

    # what is float32

    def _float_streams(self) -> set[Node]:
        """Nodes whose values float32 consumers read."""
        floats: set[Node] = {*self.captured.outputs, *self.asked.floats}
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
        # What the caller gives is float32: rounded once, after a number was added, not twice.
        if node in self.captured.inputs and scalar_of(user) is not None:
            return True
        # Sums and differences of the same products, which no epilogue takes.
        if user.target in (*ADDS, aten.sub.Tensor) and all(
            x.target in LAYERS and len(x.users) > 1 and self.plan_of(x) is None
            for x in user.all_input_nodes
        ):
            return True
        passes = user.target in VIEWS or user.target in IDENTITIES or user.target in ADDS
        passes = passes or user.target in (
            aten.adaptive_avg_pool2d.default,
            aten.mean.dim,
            aten.cat.default,
            aten.pad.default,
        )
        passes = passes or "getitem" in str(user.target)
        # Factors of one value each, such as of frequencies: eight bits of the whole lose the small.
        if user.target in MULS:
            passes = any(used in self.captured.constants for used in user.all_input_nodes)
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

    def _is_gate(self, gate: Gate) -> bool:
        """Whether both layers of a squeeze-excite block are integer ones."""
        plans = [self.plan_of(group.layer) for group in (gate.fc1, gate.fc2)]
        return all(p is not None and p.act_bits is not None and not p.half_in for p in plans)

    def key(self, node: Node, role: str = "out") -> Key:
        """The quantization key of a node's values, which calibration observes."""
        key = Key(node.name, role)
        self.observed.setdefault(key, set()).add(node)
        return key

    def _module_of(self, node: Node) -> str:
        """The name of the module that a node belongs to."""
        stack = node.meta.get("nn_module_stack") or {}
        for path, _ in reversed(list(stack.values())):
            if path:
                name: str = path
                return name
        return node.name

    def _owner(self, parameter: Node) -> str:
        name = self.captured.parameters.get(parameter, parameter.name)
        return name.rpartition(".")[0] or name

    # operands

    def ref(self, node: Node) -> Ref:
        """Where a node's values lie; constants become values of the program."""
        if node not in self.refs:
            held = self.captured.constants[node]
            if not held.is_floating_point():
                raise Unsupported(f"found a constant operand of {held.dtype}")
            array = held.detach().float().cpu()
            image = array.dim() == 4 and array.shape[0] == 1
            array = array[0].permute(1, 2, 0) if image else array.reshape(array.shape or (1,))
            there = (array != 0).reshape(-1, array.shape[-1]).any(0)
            if not bool(there.any()):
                there[:] = True
            stored = array[..., there]
            value = self.draft.constant(node.name, stored.contiguous().numpy())
            index = torch.full(array.shape, -1, dtype=torch.int32)
            index[..., there] = torch.arange(stored.numel(), dtype=torch.int32).reshape(
                stored.shape
            )
            index = index.permute(2, 0, 1) if image else index
            self.refs[node] = Ref((value,), index.reshape(held.shape), node)
        found: Ref = self.refs[node]
        return found

    def int8(self, ref: Ref, bits: int = 8) -> Ref:
        """The operand as int8."""
        quant = self.draft.quant(ref)
        if self.draft.dtype(ref) == "float32":
            assert ref.source is not None
            quant = self.key(ref.source)
            ref = self.draft.convert(ref, "int8", quant)
        if bits != 8 or quant in self.bits:
            self.bits[quant] = max(self.bits.get(quant, 0), bits)
        return ref

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

    def _image(self, ref: Ref, name: str) -> tuple[Rows, int, int, int]:
        index = ref.index[0].permute(1, 2, 0)
        height, width, channels = (int(n) for n in index.shape)
        rows = self.draft.rows(ref, index, name)
        rows.value = self.shaped(rows.value, (height, width, rows.width))
        return rows, height, width, channels

    def _shape_of(self, node: Node) -> tuple[int, ...]:
        if node in self.captured.constants:
            return tuple(self.captured.constants[node].shape)
        return self.captured.shapes[node]

    def _parameter(self, args: Sequence[Any], i: int) -> NDArray[np.float32] | None:
        """A constant argument of a node; None where there is none."""
        if len(args) <= i or args[i] is None:
            return None
        array: NDArray[np.float32] = self.captured.constants[args[i]].detach().float().cpu().numpy()
        return array

    # results

    def _out_type(self, node: Node) -> tuple[str, Any]:
        return ("float32", None) if node in self.floats else ("int8", self.key(node))

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

    # quantizations

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


SCALARS: dict[Any, str] = {
    aten.add.Tensor: "add",
    aten.add.Scalar: "add",
    aten.sub.Tensor: "sub",
    aten.sub.Scalar: "sub",
    aten.mul.Tensor: "mul",
    aten.mul.Scalar: "mul",
    aten.div.Tensor: "div",
    aten.div.Scalar: "div",
}


def scalar_of(node: Node) -> tuple[str, float] | None:
    """The operation and the number of a node that combines a tensor with one."""
    fn = SCALARS.get(node.target)
    args = args_of(node)
    if fn is None or len(args) != 2 or node.kwargs or not isinstance(args[1], (int, float)):
        return None
    return fn, float(args[1])


def space_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes before the channels, without a batch of one."""
    return shape[1:-1] if shape[0] == 1 else shape[:-1]
