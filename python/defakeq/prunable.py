"""Which channels of a model can go together, and plans that drop half of them.

The model's exported graph is run on channel numbers instead of values: each output channel of a
layer gets a number, data movement moves numbers, and where an operation meets two numbers (a
residual sum, a gate) their channels are tied: they go or stay together. Attention ties all channels
of a head. A channel that is dropped is zero wherever it appears, in constants added to it too:
`drop_constants` sees to that.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from defakeq.fold import Inputs
from defakeq.plan import LayerPlan, QuantPlan, quantizable_layers

_MULTIPLE = 8


@dataclass(frozen=True)
class Group:
    """Channels that can be dropped in units.

    Attributes:
        units: for each unit, the output channels of each layer that go with it, by layer.
    """

    units: tuple[dict[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Channels:
    """How the channels of a model hang together.

    Attributes:
        groups: what can be dropped.
        outputs: for each layer, each output's tie: channels of the same tie go together.
        inputs: the same for each input; -1 for inputs that are no layer's output. Grouped
            convolutions have none.
        constants: for each parameter or buffer that is no layer's and meets channels (added to
            them, beside them, of a LayerNorm, a BatchNorm's bias and mean), each element's tie; -1
            where there is none.
    """

    groups: tuple[Group, ...]
    outputs: dict[str, tuple[int, ...]]
    inputs: dict[str, tuple[int, ...]]
    constants: dict[str, Tensor]


def analyse(model: nn.Module, example: Tensor) -> Channels:
    """Finds the ties between the channels of a model's Conv2d and Linear layers.

    Args:
        model: in evaluation mode; only looked at.
        example: what it is called with, a batch of one.

    Raises:
        ValueError: an operation, a layer or a use of channels that is not understood, by name.
    """
    exported = torch.export.export(model, (example,))
    return _Analysis(exported, quantizable_layers(model)).run()


def half_plan(
    model: nn.Module,
    example: Tensor,
    bits: int = 4,
    fraction: float = 0.5,
    half_out: float = 0.02,
) -> QuantPlan:
    """A plan that drops a part of every group of channels, those of the smallest weights.

    Args:
        model: in evaluation mode; only looked at.
        example: what it is called with, a batch of one.
        bits: width of the weights.
        fraction: of the units of a group that go. What stays is a multiple of 8 in groups of at
            least 16 channels, and at least one unit; attention loses whole heads.
        half_out: part of each layer's kept outputs that is in half precision.

    Raises:
        ValueError: a wrong number, or a model that cannot be analysed; the message says where.
    """
    for name, value in (("fraction", fraction), ("half_out", half_out)):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name}: found {value}; accepted is 0 to less than 1")
    channels = analyse(model, example)
    strength = {name: _strength(module) for name, module in quantizable_layers(model).items()}
    gone: dict[str, set[int]] = defaultdict(set)
    for group in channels.groups:
        for unit in _weakest(group, strength, fraction):
            for name, outs in unit.items():
                gone[name].update(outs)
    dead = {channels.outputs[name][out] for name, outs in gone.items() for out in outs}
    layers = {}
    for name, module in quantizable_layers(model).items():
        if name not in channels.outputs:
            continue
        keep_out = [c for c in range(len(channels.outputs[name])) if c not in gone[name]]
        ties = channels.inputs.get(name, ())
        keep_in = [c for c, tie in enumerate(ties) if tie not in dead]
        count = round(half_out * len(keep_out))
        strongest = sorted(keep_out, key=lambda c: (-strength[name][c], c))[:count]
        groups = int(getattr(module, "groups", 1))
        layers[name] = LayerPlan(
            bits=bits,
            keep_out=tuple(keep_out) if len(keep_out) < len(channels.outputs[name]) else None,
            keep_in=tuple(keep_in) if groups == 1 and len(keep_in) < len(ties) else None,
            half_out=tuple(strongest) or None,
        )
    plan = QuantPlan(layers)
    plan.validate(model)
    return plan


def drop_constants(model: nn.Module, plan: QuantPlan, inputs: Inputs) -> None:
    """Sets what is added to dropped channels to zero, in place.

    A channel is dropped when the plan drops it from all layers that make it and no layer reads it.
    A model that cannot be analysed keeps its constants.

    Args:
        model: in evaluation mode; its class tokens, position embeddings, norms are changed.
        plan: for this model.
        inputs: what it is called with, positional and by name.
    """
    handled = (nn.Conv2d, nn.Linear)
    own = [
        parameter
        for module in model.modules()
        if not isinstance(module, handled)
        for parameter in module.parameters(recurse=False)
    ]
    if not own or all(layer.keep_out is None for layer in plan.layers.values()):
        return
    try:
        channels = _Analysis(torch.export.export(model, *inputs), quantizable_layers(model)).run()
    except ValueError:
        return
    alive: set[int] = set()
    for name, ties in channels.outputs.items():
        layer = plan.layers.get(name)
        kept = None if layer is None else layer.keep_out
        alive.update(ties if kept is None else (ties[c] for c in kept))
    for name, ties in channels.inputs.items():
        layer = plan.layers.get(name)
        kept = None if layer is None else layer.keep_in
        alive.update(ties if kept is None else (ties[c] for c in kept))
    with torch.no_grad():
        for name, where in channels.constants.items():
            living = torch.tensor(sorted({-1, *alive}))
            owner, _, leaf = name.rpartition(".")
            getattr(model.get_submodule(owner), leaf)[~torch.isin(where, living)] = 0


def _strength(module: nn.Module) -> Any:
    """The norm of each output's weights, relative to the layer's mean."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    norms = weight.detach().flatten(1).double().norm(dim=1).numpy()
    return norms / max(float(norms.mean()), 1e-30)


def _weakest(group: Group, strength: dict[str, Any], fraction: float) -> list[dict[str, Any]]:
    count = len(group.units)
    keep = count - int(count * fraction)
    if count >= 2 * _MULTIPLE and fraction > 0:
        keep = max(_MULTIPLE, int(keep + _MULTIPLE / 2) // _MULTIPLE * _MULTIPLE)

    def score(index: int) -> float:
        unit = group.units[index]
        values = [float(np.mean(strength[name][list(outs)])) for name, outs in unit.items()]
        return float(np.mean(values))

    order = sorted(range(count), key=lambda index: (-score(index), index))
    return [group.units[index] for index in order[max(1, keep) :]]


# Operations, by their name without the overload.
_MOVES = {
    "view", "reshape", "permute", "transpose", "flatten", "unsqueeze", "squeeze", "expand", "roll",
    "select", "slice", "cat", "repeat", "clone", "contiguous", "unbind", "split", "chunk", "alias",
    "detach", "split_with_sizes", "unflatten", "stack", "pad", "t", "movedim", "flip",
    "pixel_unshuffle", "pixel_shuffle", "mT", "numpy_T", "narrow", "index_select",
    "channel_shuffle",
}  # fmt: skip
_KEEPS = {
    "relu", "relu_", "relu6", "hardswish", "hardswish_", "silu", "silu_", "gelu", "sigmoid", "tanh",
    "hardsigmoid", "hardtanh", "hardtanh_", "batch_norm", "_native_batch_norm_legit_no_training",
    "layer_norm", "dropout", "clamp", "neg", "abs", "leaky_relu", "to", "_to_copy",
}  # fmt: skip
_MEETS = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum"}
_MIXES = {"matmul", "mm", "bmm", "softmax", "var", "linalg_vector_norm", "rsqrt", "sqrt", "pow"}
_POOLS = {
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
}  # fmt: skip


class _Analysis:
    def __init__(self, exported: Any, layers: Iterable[str]):
        self.graph: fx.Graph = exported.graph_module.graph
        signature = exported.graph_signature
        self.parameters: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
        }
        self.layers = set(layers)
        self.parent = [0]
        self.frozen: set[int] = set()
        self.outputs: dict[str, list[int]] = {}
        self.inputs: dict[str, list[int]] = {}
        self.origins: dict[fx.Node, tuple[str, Tensor]] = {}
        self.constants: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def find(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def tie(self, a: int, b: int) -> None:
        self.parent[self.find(b)] = self.find(a)

    def fresh(self, count: int) -> list[int]:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return list(range(first, first + count))

    def run(self) -> Channels:
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "output":
                for value in torch.utils._pytree.tree_leaves(
                    fx.node.map_arg(node.args, values.get)
                ):
                    if isinstance(value, Tensor):
                        self.frozen.update(value.unique().tolist())
            elif node.op == "placeholder" or node.op == "get_attr":
                shape = getattr(node.meta.get("val"), "shape", None)
                values[node] = None if shape is None else _zeros(shape)
                if shape is not None and node.name in self.parameters:
                    count = torch.arange(node.meta["val"].numel())
                    self.origins[node] = (self.parameters[node.name], count.reshape(shape))
                    self.shapes[self.parameters[node.name]] = tuple(shape)
            elif node.op == "call_function":
                values[node] = self.call(node, values)
        return self.result()

    def call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        mapped: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        args: tuple[Any, ...] = tuple(mapped[0])
        kwargs: dict[str, Any] = dict(mapped[1])
        if node.target is operator.getitem:
            return args[0][args[1]]
        found = [
            value
            for value in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(value, Tensor)
        ]
        target: Any = node.target
        name = str(getattr(target, "_schema", target)).split("(")[0].split("::")[-1].split(".")[0]
        if name in ("conv2d", "linear"):
            return self.layer(node, name, args, kwargs)
        if not any(bool(value.any()) for value in found):
            first = node.args[0] if node.args else None
            if name in _MOVES and isinstance(first, fx.Node) and first in self.origins:
                parameter, index = self.origins[first]
                self.origins[node] = (parameter, target(index, *args[1:], **kwargs))
            return torch.utils._pytree.tree_map(
                lambda value: _zeros(value.shape) if isinstance(value, Tensor) else value,
                node.meta.get("val"),
            )
        if name == "cat":
            args = (self.beside(node, args), *args[1:])
        if name in _MOVES:
            return target(*args, **kwargs)
        if name == "layer_norm":
            for source in node.args[2:4]:
                if source in self.origins:
                    self.added(source, args[0])
        if name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            for source in node.args[2:4]:  # the bias and the mean: without them, zero stays zero
                if source in self.origins:
                    self.added(source, args[0].movedim(1, -1))
        if name in _KEEPS:
            return args[0]
        if name in _MEETS:
            return self.meet(node, [value for value in args[:2] if isinstance(value, Tensor)])
        if name in _POOLS:
            return self.common(node, args[0], (-2, -1)).expand(node.meta["val"].shape)
        if name in ("mean", "sum", "amax"):
            dims = tuple(args[1]) if len(args) > 1 else tuple(range(args[0].dim()))
            keepdim = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
            value = self.common(node, args[0], dims)
            return value if keepdim else value.reshape(node.meta["val"].shape)
        if name == "scaled_dot_product_attention":
            return self.attention(node, args[0], args[1], args[2])
        if name in _MIXES:
            return self.mixed(node, *found)
        raise ValueError(
            f"model: found operation {name!r} ({node.name}) on channels; accepted is convolutions, "
            "linear layers, attention, products, elementwise operations, pooling, and data movement"
        )

    def layer(
        self, node: fx.Node, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        source: Any = node.args[1]
        full = self.parameters.get(source.name, "")
        name, _, leaf = full.rpartition(".")
        if leaf != "weight" or name not in self.layers:  # fixed filters and the like
            return self.mixed(node, args[0])
        if name in self.outputs:  # called again: its channels stay
            self.frozen.update(self.outputs[name])
            self.frozen.update(n for n in self.inputs.get(name, ()) if n)
            return self.mixed(node, args[0])
        x, weight = args[0], source.meta["val"]
        shape = node.meta["val"].shape
        dim = 1 if kind == "conv2d" else x.dim() - 1
        others = tuple(d for d in range(x.dim()) if d != dim)
        ties = self.common(node, x, others).flatten().tolist() if others else x.tolist()
        groups = (args[6] if len(args) > 6 else kwargs.get("groups", 1)) if kind == "conv2d" else 1
        if groups == 1:
            self.inputs[name] = ties
            self.outputs[name] = self.fresh(weight.shape[0])
        elif groups == len(ties) == weight.shape[0]:
            own = self.fresh(weight.shape[0])
            for number, tie in zip(own, ties, strict=True):
                if tie:
                    self.tie(number, tie)
                else:
                    self.frozen.add(number)
            self.outputs[name] = own
        else:
            raise ValueError(
                f"layer {name!r}: found {groups} groups of {weight.shape[1]} inputs; accepted is "
                "one group, or depthwise with as many outputs as inputs"
            )
        view = [1] * len(shape)
        view[dim] = -1
        return torch.tensor(self.outputs[name]).reshape(view).expand(shape)

    def common(self, node: fx.Node, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """The one number along `dims`, which stay with length 1; different ones are tied."""
        reduced = {n % x.dim() for n in dims}
        (x,) = _narrowed(x, keep=[d for d in range(x.dim()) if d not in reduced])
        top = x.amax(dims, keepdim=True)
        other = (x != 0) & (x != top)
        if bool(other.any()):
            for a, b in _unique_pairs(x[other], top.expand(x.shape)[other]):
                if self.find(a) != self.find(b):
                    self.frozen.update((a, b))
                    self.tie(a, b)
        return top

    def mixed(self, node: fx.Node, *operands: Tensor) -> Tensor:
        """The result of what reads channels that have to stay: it has no numbers."""
        for x in operands:
            self.frozen.update(x.unique().tolist())
        return _zeros(node.meta["val"].shape)

    def meet(self, node: fx.Node, values: list[Tensor]) -> Tensor:
        if len(values) == 1:
            return values[0]
        shape = torch.broadcast_shapes(*(value.shape for value in values))
        for source, other in zip(node.args, reversed(values), strict=False):
            if source in self.origins:
                self.added(source, other.expand(shape))
        a, b = _narrowed(*(value.expand(shape) for value in values))
        both = (a != b) & (a != 0) & (b != 0)
        if bool(both.any()):
            for first, second in _unique_pairs(a[both], b[both]):
                self.tie(first, second)
        return torch.where(a != 0, a, b).expand(shape)

    def beside(self, node: fx.Node, args: tuple[Any, ...]) -> list[Tensor]:
        """The parts of a concatenation; constants get the numbers of what they stand beside."""
        parts, dim = list(args[0]), int(args[1]) if len(args) > 1 else 0
        numbered = [part for part in parts if bool(part.any())]
        rows = [part.narrow(dim, 0, 1) for part in numbered]
        if any(
            not torch.equal(row.expand(part.shape), part)
            for row, part in zip(rows, numbered, strict=True)
        ):
            return parts
        sources: Any = node.args[0]
        for i, source in enumerate(sources):
            if source in self.origins and not bool(parts[i].any()):
                parts[i] = rows[0].expand(parts[i].shape)
                self.added(source, parts[i])
        return parts

    def added(self, source: Any, numbers: Tensor) -> None:
        """Notes the numbers of the channels that a constant meets; 0 where they are several."""
        name, index = self.origins[source]
        at, found = index.expand(numbers.shape).reshape(-1), numbers.reshape(-1)
        count = math.prod(self.shapes[name])
        low, high = (
            torch.zeros(count, dtype=torch.long).scatter_reduce_(
                0, at, found, how, include_self=False
            )
            for how in ("amin", "amax")
        )
        found = torch.where(low == high, low, 0)
        held = self.constants.setdefault(name, found)
        self.constants[name] = torch.where(held == found, held, 0)

    def attention(self, node: fx.Node, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dim() != 4 or q.shape[1] != v.shape[1]:
            raise ValueError(
                f"model: found attention ({node.name}) of shape {tuple(q.shape)}; accepted is "
                "(batch, heads, tokens, channels) with as many heads everywhere"
            )
        for head in range(q.shape[1]):
            numbers = torch.cat([part[:, head].flatten().unique() for part in (q, k, v)]).tolist()
            if 0 in numbers:
                self.frozen.update(numbers)
            for number in numbers:
                if number:
                    self.tie(next(n for n in numbers if n), number)
        values = self.common(node, v, (2,))
        return values.expand(*q.shape[:-1], v.shape[-1])

    def result(self) -> Channels:
        units: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        outputs = {}
        for name, numbers in self.outputs.items():
            outputs[name] = tuple(self.find(number) for number in numbers)
            for channel, tie in enumerate(outputs[name]):
                units[tie][name].append(channel)
        frozen = {self.find(number) for number in self.frozen}
        groups: dict[tuple[tuple[str, int], ...], list[dict[str, tuple[int, ...]]]]
        groups = defaultdict(list)
        for tie, unit in units.items():
            if tie not in frozen:
                kind = tuple((name, len(channels)) for name, channels in unit.items())
                groups[kind].append({name: tuple(channels) for name, channels in unit.items()})
        inputs = {
            name: tuple(self.find(number) if number else -1 for number in numbers)
            for name, numbers in self.inputs.items()
        }
        constants = {}
        for name, found in self.constants.items():
            ties = [self.find(number) if number else -1 for number in found.tolist()]
            shape = self.shapes[name]
            constants[name] = torch.tensor(ties).reshape(shape)
        return Channels(tuple(Group(tuple(g)) for g in groups.values()), outputs, inputs, constants)


def _narrowed(*tensors: Tensor, keep: Sequence[int] = ()) -> list[Tensor]:
    """The tensors with length 1 where all of them repeat one element, except at `keep`."""
    found = list(tensors)
    for dim in range(tensors[0].dim()):
        if dim not in keep and all(t.stride(dim) == 0 and t.shape[dim] for t in tensors):
            found = [t.narrow(dim, 0, 1) for t in found]
    return found


def _unique_pairs(a: Tensor, b: Tensor) -> list[tuple[int, int]]:
    """The different pairs of two vectors of numbers from 0 on."""
    base = int(b.max()) + 1
    return [divmod(code, base) for code in (a * base + b).unique().tolist()]


def _zeros(shape: Any) -> Tensor:
    return torch.zeros((), dtype=torch.long).expand(tuple(int(n) for n in shape))
