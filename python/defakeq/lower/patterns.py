"""Rewrites what models spell out by hand into the one operator that it is."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
Node = fx.Node

_ADD = (aten.add.Tensor, aten.add_.Tensor)
_MUL = (aten.mul.Tensor, aten.mul_.Tensor)
_DIV = (aten.div.Tensor, aten.div_.Tensor)
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SAME = (
    aten.clone.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.alias.default,
    aten.detach.default,
)
_RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_GATES = {
    aten.sigmoid.default: aten.silu.default,
    aten.hardsigmoid.default: aten.hardswish.default,
}


def canonicalize(graph: fx.Graph) -> None:
    """Puts single operators in the place of their decompositions, in the graph itself.

    x * sigmoid(x), x * hardsigmoid(x), GELU by erf, LayerNorm by means, softmax attention by
    matrix products, stack, products by constant matrices, inference BatchNorm.
    """
    for node in graph.nodes:
        if node.target in _RESHAPES:  # what is rewritten may have other strides
            node.target = aten.reshape.default
    for rewrite in (_batch_norm, _stack, _gated, _gelu, _constant_product, _normalized, _attended):
        constants = _constants(graph)
        for node in list(graph.nodes):
            if node.op == "call_function" and node not in constants:
                rewrite(graph, node, constants)
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))


def pool_before_norms(graph: fx.Graph, values: Mapping[Node, torch.Tensor]) -> None:
    """Moves maxima of pixels before BatchNorms of positive weights, with which they commute.

    The norm then has fewer values, and the maximum those of the layer.

    Args:
        graph: canonical.
        values: of its constant nodes.
    """
    for pool in list(graph.nodes):
        if pool.target is not aten.max_pool2d.default:
            continue
        norm: Any = pool.args[0]
        if not _only(norm, (aten.batch_norm.default,)):
            continue
        x, weight, *rest = norm.args
        scale = values.get(weight)
        if weight is not None and (scale is None or not bool((scale > 0).all())):
            continue
        with graph.inserting_before(pool):
            pooled = _call(graph, aten.max_pool2d.default, x, *pool.args[1:], like=pool)
            moved = graph.call_function(aten.batch_norm.default, (pooled, weight, *rest))
        moved.meta.update(norm.meta)
        moved.meta["val"] = pool.meta["val"]
        pool.replace_all_uses_with(moved)
        graph.erase_node(pool)
        graph.erase_node(norm)


def _constants(graph: fx.Graph) -> set[Node]:
    """Nodes that depend on no input; `capture` marks the inputs by ``meta["input"]``."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if not node.meta.get("input"):
                found.add(node)
        elif node.op == "call_function" and all(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _put(graph: fx.Graph, old: Node, make: Callable[[], Node]) -> None:
    with graph.inserting_before(old):
        new = make()
    new.meta.update(old.meta)
    old.replace_all_uses_with(new)
    graph.erase_node(old)


def _call(
    graph: fx.Graph, target: Any, *args: Any, like: Node | None = None, **kwargs: Any
) -> Node:
    """A new node; its value's shape is computed from those of its operands."""
    node = graph.call_function(target, args, kwargs)
    if like is not None and "nn_module_stack" in like.meta:
        node.meta["nn_module_stack"] = like.meta["nn_module_stack"]
    values = fx.node.map_arg((args, kwargs), lambda n: torch.empty(shape_of(n), device="meta"))
    node.meta["val"] = target(*values[0], **values[1])
    return node


def shape_of(node: Any) -> tuple[int, ...]:
    """A node's shape."""
    return tuple(int(n) for n in node.meta["val"].shape)


def _only(node: Any, targets: tuple[Any, ...]) -> bool:
    """Whether a node is one of the operators and goes to one user."""
    return isinstance(node, Node) and node.target in targets and len(node.users) == 1


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def _batch_norm(graph: fx.Graph, node: Node, constants: set[Node]) -> None:
    if node.target is not operator.getitem or node.args[1] != 0:
        return
    source: Any = node.args[0]
    if source.target is not aten._native_batch_norm_legit_no_training.default:
        return
    x, weight, bias, mean, variance, momentum, eps = source.args
    rest = (weight, bias, mean, variance, False, momentum, eps, False)
    _put(graph, node, lambda: graph.call_function(aten.batch_norm.default, (x, *rest)))


def _stack(graph: fx.Graph, node: Node, constants: set[Node]) -> None:
    if node.target is not aten.stack.default:
        return
    parts: Any = node.args[0]
    given: Any = node.args[1] if len(node.args) > 1 else 0
    dim = int(given) % len(shape_of(node))

    def make() -> Node:
        wide = [_call(graph, aten.unsqueeze.default, part, dim) for part in parts]
        return graph.call_function(aten.cat.default, (wide, dim))

    _put(graph, node, make)


def _gated(graph: fx.Graph, node: Node, constants: set[Node]) -> None:
    if node.target not in _MUL:
        return
    for x, gate in (node.args[:2], node.args[1::-1]):
        if isinstance(gate, Node) and gate.target in _GATES and gate.args[0] is x:
            whole = functools.partial(graph.call_function, _GATES[gate.target], (x,))
            _put(graph, node, whole)
            return


def _gelu(graph: fx.Graph, node: Node, constants: set[Node]) -> None:
    """x (1 + erf(x / sqrt 2)) / 2, the half anywhere."""
    factors: list[Any] = []

    def spread(at: Any) -> None:
        if isinstance(at, Node) and at.target in _MUL and (at is node or len(at.users) == 1):
            spread(at.args[0])
            spread(at.args[1])
        else:
            factors.append(at)

    if node.target not in _MUL:
        return
    spread(node)
    sums = [f for f in factors if _only(f, _ADD)]
    halves = [f for f in factors if _number(f) == 0.5]
    rest = [f for f in factors if f not in sums and _number(f) is None]
    if (len(sums), len(halves), len(rest), len(factors)) != (1, 1, 1, 3):
        return
    x, (erf, one) = rest[0], sums[0].args[:2]
    if _number(one) != 1.0 or not _only(erf, (aten.erf.default,)):
        return
    inner = erf.args[0]
    factor = _number(inner.args[1]) if isinstance(inner, Node) and len(inner.args) > 1 else None
    if factor is None or inner.args[0] is not x:
        return
    factor = 1 / factor if inner.target in _DIV else factor
    if inner.target in (*_DIV, *_MUL) and math.isclose(factor, math.sqrt(0.5), rel_tol=1e-6):
        _put(graph, node, lambda: graph.call_function(aten.gelu.default, (x,)))


def _constant_product(graph: fx.Graph, node: Node, constants: set[Node]) -> None:
    """A product with a constant matrix is a linear layer."""
    bias: Any = None
    if node.target is aten.addmm.default and not node.kwargs:
        bias, x, weight = node.args
    elif node.target in (aten.mm.default, aten.matmul.default):
        x, weight = node.args
    else:
        return
    if weight not in constants or len(shape_of(weight)) != 2 or len(shape_of(x)) < 2:
        return
    if bias is not None and (bias not in constants or len(shape_of(bias)) != 1):
        return

    def make() -> Node:
        turned = _call(graph, aten.t.default, weight)
        return graph.call_function(aten.linear.default, (x, turned, bias))

    _put(graph, node, make)


def _normalized(graph: fx.Graph, node: Node, constants: set[Node]) -> None:
    """(x - mean) / sqrt(variance + eps), with a factor and an offset a channel, over one size."""
    centred: Any
    root: Any
    if node.target in _DIV:
        centred, root = node.args[:2]
        scaled = isinstance(root, Node) and root.target is aten.sqrt.default
    elif node.target in _MUL:
        centred, root = node.args[:2]
        if isinstance(centred, Node) and centred.target is aten.rsqrt.default:
            centred, root = root, centred
        scaled = isinstance(root, Node) and root.target is aten.rsqrt.default
    else:
        return
    if not scaled or not isinstance(centred, Node) or centred.target is not aten.sub.Tensor:
        return
    x, mean = centred.args[:2]
    total = root.args[0]
    if not isinstance(total, Node) or total.target not in _ADD:
        return
    variance, eps = total.args[0], _number(total.args[1])
    dim = _mean_dim(mean, x)
    if eps is None or dim is None or not _is_variance(variance, x, centred, dim):
        return
    rank, channels = len(shape_of(node)), shape_of(node)[dim]
    last, gamma, beta = node, None, None
    if (found := _affine(last, _MUL, constants, dim)) is not None:
        last, gamma = found
    if (found := _affine(last, _ADD, constants, dim)) is not None:
        last, beta = found
    order = [d for d in range(rank) if d != dim] + [dim]
    back = [order.index(d) for d in range(rank)]
    with graph.inserting_before(last):
        flat = [
            None if c is None else _call(graph, aten.reshape.default, c, [channels])
            for c in (gamma, beta)
        ]
        moved = _call(graph, aten.permute.default, x, order)
        normal = _call(graph, aten.layer_norm.default, moved, [channels], *flat, eps, like=node)
    _put(graph, last, lambda: graph.call_function(aten.permute.default, (normal, back)))


def _mean_dim(mean: Any, x: Any) -> int | None:
    """The one dimension over which `mean` averages x, kept."""
    if not isinstance(mean, Node) or mean.target is not aten.mean.dim or mean.args[0] is not x:
        return None
    dims: Any = mean.args[1]
    if len(dims) != 1 or not (len(mean.args) > 2 and mean.args[2]):
        return None
    return int(dims[0]) % len(shape_of(x))


def _is_variance(node: Any, x: Any, centred: Node, dim: int) -> bool:
    if not isinstance(node, Node):
        return False
    if node.target in (aten.var.correction, aten.var.dim):
        dims: Any = node.args[1]
        plain = node.kwargs.get("correction") == 0 and node.kwargs.get("keepdim")
        if node.target is aten.var.dim:
            plain = tuple(node.args[2:]) == (False, True)
        return bool(plain) and node.args[0] is x and [d % len(shape_of(x)) for d in dims] == [dim]
    if node.target is not aten.mean.dim:
        return False
    squared: Any = node.args[0]
    if not isinstance(squared, Node) or _mean_dim(node, squared) != dim:
        return False
    if squared.target is aten.pow.Tensor_Scalar and squared.args[1] == 2:
        base: Any = squared.args[0]
    elif squared.target in _MUL and squared.args[0] is squared.args[1]:
        base = squared.args[0]
    else:
        return False
    if base is centred:
        return True
    return (
        isinstance(base, Node)
        and base.target is aten.sub.Tensor
        and base.args[0] is x
        and _mean_dim(base.args[1], x) == dim
    )


def _affine(
    at: Node, targets: tuple[Any, ...], constants: set[Node], dim: int
) -> tuple[Node, Node] | None:
    """The only user, and the constant a channel that it combines `at` with."""
    if len(at.users) != 1:
        return None
    (user,) = at.users
    if user.target not in targets or user.kwargs:
        return None
    a, b = user.args[:2]
    other = b if a is at else a
    if not isinstance(other, Node) or other not in constants:
        return None
    shape, full = shape_of(other), shape_of(at)
    wide = (1,) * (len(full) - len(shape)) + shape
    wanted = tuple(n if d == dim else 1 for d, n in enumerate(full))
    return (user, other) if wide == wanted else None


def _attended(graph: fx.Graph, node: Node, constants: set[Node]) -> None:
    """softmax(q k^T scale + constants) v."""
    if node.target not in _PRODUCTS:
        return
    weights: Any
    v: Any
    weights, v = node.args
    while isinstance(weights, Node) and weights.target in _SAME and len(weights.users) == 1:
        weights = weights.args[0]
    if not _only(weights, (aten.softmax.int, aten._softmax.default)) or v in constants:
        return
    softmax: Any = weights
    rank = len(shape_of(softmax))
    if softmax.args[1] % rank != rank - 1 or rank not in (3, 4) or len(shape_of(v)) != rank:
        return
    chain, scale = [], 1.0
    at: Any = softmax.args[0]
    while isinstance(at, Node) and at.target not in _PRODUCTS:
        step = _linear_step(at, constants)
        if step is None or len(at.users) != 1:
            return
        chain.append((at, step[0]))
        scale *= step[1]
        at = step[0]
    if not isinstance(at, Node) or len(at.users) != 1 or shape_of(at) != shape_of(softmax):
        return
    q: Any
    k: Any
    q, k = at.args
    if q in constants or k in constants:
        return
    if isinstance(q, Node) and (step := _linear_step(q, set())) is not None and step[1] != 1.0:
        q, scale = step[0], scale * step[1]
    if any(shape_of(o)[:-2] != shape_of(softmax)[:-2] for o in (q, k, v)):
        return

    def make() -> Node:
        operands = [q, _call(graph, aten.transpose.int, k, -1, -2), v]
        mask: Any = None
        if any(step.target not in (*_RESHAPES, *_SAME, *_MUL, *_DIV) for step, _ in chain):
            mask = graph.call_function(aten.zeros.default, (list(shape_of(at)),))
            for step, before in reversed(chain):
                args = tuple(mask if arg is before else arg for arg in step.args)
                mask = graph.call_function(step.target, args, step.kwargs)
        if rank == 3:
            operands = [_call(graph, aten.unsqueeze.default, o, 1) for o in operands]
            mask = None if mask is None else graph.call_function(aten.unsqueeze.default, (mask, 1))
        rest = () if mask is None else (mask,)
        target = aten.scaled_dot_product_attention.default
        y = graph.call_function(target, (*operands, *rest), {"scale": scale})
        if rank == 4:
            return y
        y.meta["val"] = torch.empty(shape_of(node), device="meta").unsqueeze(1)
        return graph.call_function(aten.squeeze.dim, (y, 1))

    _put(graph, node, make)


def _linear_step(at: Node, constants: set[Node]) -> tuple[Any, float] | None:
    """The operand and the factor of a step that scales by a number, adds constants or reshapes."""
    args = at.args
    if at.target in _SAME or at.target in _RESHAPES:
        return args[0], 1.0
    if at.target in (*_MUL, *_DIV):
        number = _number(args[1])
        if number is None or not isinstance(args[0], Node):
            return None
        return args[0], number if at.target in _MUL else 1 / number
    if at.target in _ADD and not at.kwargs:
        for x, other in (args[:2], args[1::-1]):
            if other in constants and isinstance(x, Node) and x not in constants:
                return x, 1.0
    if at.target is aten.masked_fill.Scalar and args[1] in constants:
        return args[0], 1.0
    return None
