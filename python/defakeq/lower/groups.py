"""Which graph nodes one program node computes: a layer with what follows it in its epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from defakeq.lower.capture import Captured, Node, args_of

aten = torch.ops.aten

LAYERS = (aten.conv2d.default, aten.linear.default)
ADDS = (aten.add.Tensor, aten.add_.Tensor)
MULS = (aten.mul.Tensor, aten.mul_.Tensor)

MOVES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.roll.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.clone.default,
    aten.contiguous.default,
    aten.dropout.default,
}

_NAMED: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.relu6.default: "relu6",
    aten.hardswish.default: "hardswish",
    aten.silu.default: "silu",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.exp.default: "exp",
    aten.log.default: "log",
    aten.sqrt.default: "sqrt",
    aten.rsqrt.default: "rsqrt",
    aten.abs.default: "abs",
    aten.neg.default: "neg",
    aten.square.default: "square",
    aten.reciprocal.default: "reciprocal",
}
# What a layer's epilogue computes on float32 outputs; int8 outputs take any function by a table.
EPILOGUE = ("relu", "relu6", "hardswish", "silu", "gelu", "sigmoid")
_TABLES = {
    aten.leaky_relu.default,
    aten.elu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.pow.Tensor_Scalar,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.selu.default,
    aten.log_sigmoid.default,
    aten.gelu.default,
}
_SCALARS = {
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.rsub.Scalar,
}


@dataclass
class Function:
    """An elementwise function of one tensor; `name` is the kernels', None: by a table only.

    `label` says for readers what it is.
    """

    name: str | None
    apply: Callable[[Tensor], Tensor]
    label: str

    @property
    def keeps_zero(self) -> bool:
        """Whether zero stays zero."""
        return float(self.apply(torch.zeros(1))) == 0.0


@dataclass
class Group:
    """A layer call, constant factors and offsets after it, a residual sum, an activation."""

    layer: Node
    out: Node
    affine: list[tuple[Tensor | None, Tensor | None]] = field(default_factory=list)
    residual: Node | None = None
    function: Function | None = None
    pre: Node | None = None  # the node whose values the function gets
    moves: list[Node] = field(default_factory=list)  # of whole rows, before the residual
    rows: Tensor | None = None  # the layer's row that becomes each row of the sum
    channels_first: bool = False  # whether the sum is [1, C, H, W]


def unary_of(node: Node, constants: dict[Node, Tensor]) -> tuple[Node, Function] | None:
    """The operand and the function, when a node is an elementwise function of one tensor."""
    target: Any = node.target
    if target in _NAMED and not node.kwargs:
        return args_of(node)[0], Function(_NAMED[target], target, _NAMED[target])
    if target in (aten.hardtanh.default, aten.clamp.default):
        bounds = tuple(args_of(node)[1:])
        if bounds == (0.0, 6.0):
            return args_of(node)[0], Function("relu6", torch.nn.functional.relu6, "relu6")
        if target is aten.clamp.default and bounds in ((0,), (0, None)):
            return args_of(node)[0], Function("relu", torch.relu, "relu")
    if target is aten.gelu.default and node.kwargs.get("approximate", "none") == "none":
        return args_of(node)[0], Function("gelu", torch.nn.functional.gelu, "gelu")
    scalar = target in _SCALARS and len(node.all_input_nodes) == 1
    if target in _TABLES or scalar:
        x = args_of(node)[0]
        rest = args_of(node)[1:]
        if not isinstance(x, Node) or any(isinstance(a, Node) for a in rest):
            return None
        kwargs = dict(node.kwargs)
        label = str(target).split(".")[1]
        return x, Function(None, lambda t: target(t, *rest, **kwargs), label)
    return None


def mover(node: Node) -> Callable[..., Any]:
    """The function of a node that moves data, for tensors of any strides."""
    if node.target in (aten.view.default, aten._unsafe_view.default):
        return torch.reshape
    target: Any = node.target
    function: Callable[..., Any] = target
    return function


def find_groups(captured: Captured) -> dict[Node, Group]:
    """The groups by their last node. Every other member has one user, the next member."""
    groups: dict[Node, Group] = {}
    claimed: set[Node] = set()
    for node in reversed(captured.nodes):
        if node.target not in LAYERS or args_of(node)[1] not in captured.constants:
            continue
        group = Group(node, node, channels_first=node.target is LAYERS[0])
        at = node
        while (user := _only_user(at, captured)) is not None and user not in claimed:
            if group.function is None and _extend(group, at, user, captured):
                moved: list[Node] = []
            else:
                moved = _moved_to_residual(group, at, captured, claimed)
                if not moved:
                    break
                user = moved.pop()
            group.moves.extend(moved)
            claimed.update(moved)
            claimed.add(user)
            at = group.out = user
        groups[group.out] = group
    return groups


def first_layers(captured: Captured, count: int) -> set[Node]:
    """The layers that fewer than `count` others come before, on the longest way from an input."""
    before: dict[Node, int] = {}
    for node in captured.nodes:
        ways = [before[x] + (x.target in LAYERS) for x in node.all_input_nodes if x in before]
        before[node] = max(ways, default=0)
    return {node for node, n in before.items() if node.target in LAYERS and n < count}


def members(group: Group) -> list[Node]:
    """The group's nodes from the layer to the last."""
    found = [group.layer]
    while found[-1] is not group.out:
        (user,) = found[-1].users
        found.append(user)
    return found


def _moved_to_residual(
    group: Group, at: Node, captured: Captured, claimed: set[Node]
) -> list[Node]:
    """Views that lead to a residual sum, and the sum last; it becomes the group's."""
    path: list[Node] = []
    if group.residual is not None or group.function is not None:
        return path
    while (user := _only_user(at, captured)) is not None and user not in claimed:
        path.append(user)
        if user.target not in MOVES:
            break
        at = user
    if len(path) < 2 or path[-1].target in MOVES or path[-1].target not in ADDS:
        return []
    moved = _row_moves(group.layer, path[:-1], captured)
    if moved is None:
        return []
    before = list(group.affine)
    if not _extend(group, at, path[-1], captured) or group.residual is None:
        group.affine = before
        return []
    group.rows, group.channels_first = moved
    return path


def _row_moves(
    layer: Node, moves: list[Node], captured: Captured
) -> tuple[Tensor | None, bool] | None:
    """Which row of the layer becomes each row of the result, and whether channels come first.

    Rows None: the order stays. None: the moves do not keep rows whole.
    """
    shape = captured.shapes[layer]
    conv = layer.target is LAYERS[0]
    channels = shape[1] if conv else shape[-1]
    count = 1
    for n in shape:
        count *= n
    index = torch.arange(count, dtype=torch.int32)
    if conv:
        index = index.reshape(1, shape[2], shape[3], channels).permute(0, 3, 1, 2)
    index = index.reshape(shape)
    for node in moves:
        index = mover(node)(index, *args_of(node)[1:], **node.kwargs)
    if index.shape[0] != 1:
        return None
    for first in (False, True):
        if first and index.dim() != 4:
            continue
        rows = index[0].permute(1, 2, 0) if first else index[0]
        rows = rows.reshape(-1, rows.shape[-1])
        if rows.shape[1] != channels:
            continue
        straight = rows[:, :1] + torch.arange(channels, dtype=torch.int32)
        if torch.equal(rows, straight) and not bool((rows[:, 0] % channels).any()):
            order = rows[:, 0] // channels
            same = torch.equal(order, torch.arange(len(order), dtype=torch.int32))
            if same or not conv:
                return (None if same else order.long()), first
    return None


def _only_user(node: Node, captured: Captured) -> Node | None:
    if len(node.users) != 1 or node in captured.outputs:
        return None
    (user,) = node.users
    return user if user.op == "call_function" else None


def _extend(group: Group, at: Node, user: Node, captured: Captured) -> bool:
    constants = captured.constants
    same = captured.shapes[user] == captured.shapes[at]
    if same and group.residual is None:
        affine = channel_affine(user, at, captured, group.layer.target is LAYERS[1])
        if affine is not None:
            group.affine.append(affine)
            return True
    if same and group.residual is None and user.target in ADDS and not user.kwargs:
        a, b = args_of(user)
        other = b if a is at else a
        if isinstance(other, Node) and other is not at:
            shape = constants[other].shape if other in constants else captured.shapes[other]
            if tuple(shape) == captured.shapes[at]:
                group.residual = other
                return True
    found = unary_of(user, constants)
    if same and found is not None:
        group.function = found[1]
        group.pre = at
        return True
    return False


def channel_affine(
    user: Node, at: Node, captured: Captured, last: bool = False
) -> tuple[Tensor | None, Tensor | None] | None:
    """(factor, offset) a channel of a node that scales or shifts `at` by constants."""
    constants = captured.constants
    shape = captured.shapes[at]
    axis = 1 if len(shape) == 4 and not last else len(shape) - 1
    if user.target is aten.batch_norm.default and args_of(user)[0] is at:
        weight, bias, mean, variance = (constants.get(n) for n in args_of(user)[1:5])
        if mean is None or variance is None or args_of(user)[5]:
            return None
        factor = (variance.double() + float(args_of(user)[7])).rsqrt()
        if weight is not None:
            factor = factor * weight.double()
        offset = -mean.double() * factor
        return factor, offset if bias is None else offset + bias.double()
    if user.target in (*ADDS, *MULS) and not user.kwargs:
        a, b = args_of(user)
        other = b if a is at else a
        if isinstance(other, (int, float)):
            values = torch.full((shape[axis],), float(other), dtype=torch.float64)
        elif isinstance(other, Node) and other in constants:
            held = constants[other]
            padded = (1,) * (len(shape) - held.dim()) + tuple(held.shape)
            if any(n != 1 for d, n in enumerate(padded) if d != axis):
                return None
            values = held.double().reshape(-1).expand(shape[axis])
        else:
            return None
        return (None, values) if user.target in ADDS else (values, None)
    return None


@dataclass
class Gate:
    """Squeeze-excite: out = x * function2(fc2(function1(fc1(mean(x)))))."""

    x: Node
    pool: Node
    fc1: Group
    fc2: Group
    out: Node
    inner: set[Node]


def find_gates(captured: Captured, groups: dict[Node, Group]) -> dict[Node, Gate]:
    """The squeeze-excite blocks by their multiplication."""
    gates = {}
    for node in captured.nodes:
        if node.target not in MULS or len(args_of(node)) != 2:
            continue
        for x, gate in (args_of(node), args_of(node)[::-1]):
            found = _gate(node, x, gate, captured, groups)
            if found is not None:
                gates[node] = found
                break
    return gates


_VIEWS = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}


def _gate(
    node: Node, x: Any, gate: Any, captured: Captured, groups: dict[Node, Group]
) -> Gate | None:
    if not isinstance(x, Node) or not isinstance(gate, Node) or len(captured.shapes[node]) != 4:
        return None
    if x in captured.constants or captured.shapes[x] != captured.shapes[node]:
        return None
    inner: set[Node] = set()

    def up(at: Node) -> Node:
        while at.target in _VIEWS and len(at.users) == 1:
            inner.add(at)
            at = args_of(at)[0]
        return at

    at, found = gate, []
    for _ in range(2):
        at = up(at)
        group = groups.get(at)
        if group is None or len(at.users) != 1 or group.residual is not None:
            return None
        found.append(group)
        inner.update(members(group))
        at = args_of(group.layer)[0]
    at = up(at)
    if len(at.users) != 1 or not is_global_mean(at, captured) or args_of(at)[0] is not x:
        return None
    if found[0].function is None:
        return None
    inner.add(at)
    return Gate(x, at, found[1], found[0], node, inner)


def is_global_mean(node: Node, captured: Captured) -> bool:
    """Whether a node averages each channel of an image."""
    if node.target is aten.adaptive_avg_pool2d.default:
        return list(args_of(node)[1]) == [1, 1]
    x = args_of(node)[0] if args_of(node) else None
    if node.target is not aten.mean.dim or not isinstance(x, Node):
        return False
    rank = len(captured.shapes[x])
    return rank == 4 and sorted(int(d) % rank for d in args_of(node)[1]) == [2, 3]
