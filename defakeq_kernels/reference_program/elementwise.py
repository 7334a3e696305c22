"""Nodes that compute each element by itself, and those that move elements."""

from __future__ import annotations

import numpy as np

from defakeq_kernels import reference
from defakeq_kernels.checks import refuse, shown
from defakeq_kernels.quantize import ACTIVATIONS
from defakeq_kernels.reference import fma
from defakeq_kernels.reference_program.floats import (
    BINARY,
    BINARY_FUNCTIONS,
    UNARY,
    unary_function,
)
from defakeq_kernels.reference_program.node import Node, gather, look_up


def lookup(node: Node) -> None:
    """Replaces int8 values by a table."""
    table = node.table("table")
    if table is None or node.out.quantization is None:
        refuse(node.field("table"), shown(node.get("table")), "a tensor, and an int8 out")
    node.int8(0)
    node.expect_size(node.value(0).size)
    node.put(look_up(table, node.raw(0)))


def convert(node: Node) -> None:
    """Changes the type or the quantization."""
    node.expect_size(node.value(0).size)
    node.store(node.real(0))


def unary(node: Node) -> None:
    """One function of each element."""
    node.expect_size(node.value(0).size)
    node.store(unary_function(node.choice("fn", UNARY), node.real(0)))


def binary(node: Node) -> None:
    """Two operands; b is a's shape, a row, a number, or one number a row."""
    fn = node.choice("fn", BINARY)
    activation = node.choice("activation", ACTIVATIONS, "none")
    a, b = node.real(0), node.real(1)
    accepted = (a.shape, (a.shape[-1],), (1,), (*a.shape[:-1], 1))
    if b.shape not in accepted:
        refuse(node.field("in"), f"shape {list(b.shape)}", f"one of {accepted}")
    node.expect_size(a.size)
    q = node.value(0).quantization
    if fn in ("add", "sub") and q is not None:
        levels = (node.raw(0).astype(np.int32) - q.zero_point).astype(np.float32)
        addend = b if fn == "add" else -b
        wide = np.broadcast_to(addend, a.shape)
        y = fma(levels, np.float32(q.scale), wide)
    else:
        y = np.asarray(BINARY_FUNCTIONS[fn](a, b), np.float32)
    node.store(reference.activate(activation, y))


def copy(node: Node) -> None:
    """Chunks of the operands, in the order of an index."""
    chunk = node.count_of("chunk")
    index = node.optional("index", "int32", None)
    if index is None or index.ndim != 1:
        refuse(node.field("index"), shown(node.get("index")), "a tensor int32 [n]")
    step = node.optional("step", "int32", index.shape)
    if step is not None:
        repeats = node.count_of("repeats")
        index = np.concatenate([index + r * step.astype(np.int64) for r in range(repeats)])
    node.expect_size(index.size * chunk)
    parts = []
    for i in range(len(node.ins)):
        v = node.value(i)
        if (v.dtype, v.quantization) != (node.out.dtype, node.out.quantization):
            refuse(node.field("in"), f"operand {i} of {v.quantization}", f"{node.out}")
        if v.size % chunk:
            refuse(node.field("chunk"), str(chunk), f"a divisor of {v.size}")
        parts.append(node.raw(i).reshape(-1, chunk))
    node.put(gather(np.concatenate(parts), index, node.fill(), node.field))
