"""Products of two operands: attention and batched matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels import reference
from defakeq_kernels.checks import refuse, shown
from defakeq_kernels.reference import fma
from defakeq_kernels.reference_program.fields import (
    integer_of,
    number_of,
)
from defakeq_kernels.reference_program.floats import (
    ONE,
    lane_max,
)
from defakeq_kernels.reference_program.node import Node


def attention(node: Node) -> None:
    """softmax(q k^T alpha + bias + mask) v, with probabilities of 8 bits."""
    heads, dim = node.count_of("heads"), node.count_of("head_dim")
    value_dim = integer_of(node.field("value_dim"), node.get("value_dim", dim), 1)
    batches, tq, tk = (node.count_of(k) for k in ("batches", "q_tokens", "k_tokens"))
    alpha = np.float32(number_of(node.field("alpha"), node.attribute("alpha")))
    node.expect_size(batches * tq * heads * value_dim)
    q = elements(node, "q", 0, {"batch": batches, "token": tq, "head": heads, "d": dim})
    k = elements(node, "k", 1, {"batch": batches, "token": tk, "head": heads, "d": dim})
    v = elements(node, "v", 2, {"batch": batches, "token": tk, "head": heads, "d": value_dim})
    acc = (q.transpose(0, 2, 1, 3) @ k.transpose(0, 2, 3, 1)).astype(np.float32)
    bias: Any = np.float32(0)
    if node.has(3):
        bias = node.real(3)
        if bias.shape != (heads, tq, tk):
            refuse(node.field("in"), f"bias {bias.shape}", f"{(heads, tq, tk)}")
    s = fma(acc, alpha, np.broadcast_to(bias, acc.shape))
    if node.has(4):
        mask = node.real(4)
        if mask.shape[1:] != (tq, tk) or batches % mask.shape[0]:
            refuse(node.field("in"), f"mask {mask.shape}", f"[divisor of {batches}, {tq}, {tk}]")
        s = s + mask[np.arange(batches) % mask.shape[0]][:, None]
    e = reference._exp(s - lane_max(s)[..., None])
    p = np.rint(e * np.float32(255)).astype(np.float64)
    inverse = ONE / p.sum(axis=-1, keepdims=True).astype(np.float32)
    sums = (p @ v.transpose(0, 2, 1, 3)).astype(np.float32)
    y = (sums * inverse) * np.float32(node.int8(2).scale)
    y = y.transpose(0, 2, 1, 3).reshape(batches * tq, heads * value_dim)
    rows = node.optional("rows", "int32", (batches * tq,))
    if rows is not None:
        if not np.array_equal(np.sort(rows), np.arange(batches * tq)):
            refuse(node.field("rows"), "rows left out or repeated", "every row once")
        placed = np.empty_like(y)
        placed[rows] = y
        y = placed
    node.store(y)


def matmul(node: Node) -> None:
    """alpha a b of integer levels."""
    batches, m, n, k = (node.count_of(key) for key in ("batches", "m", "n", "k"))
    alpha = np.float32(number_of(node.field("alpha"), node.attribute("alpha")))
    node.expect_size(batches * m * n)
    a = elements(node, "a", 0, {"batch": batches, "row": m, "col": k})
    b = elements(node, "b", 1, {"batch": batches, "row": k, "col": n})
    node.store((a @ b).astype(np.float32) * alpha)


def elements(node: Node, key: str, i: int, extents: dict[str, int]) -> NDArray[np.float64]:
    """q - zero point of operand i at the strides of attribute `key`."""
    layout = node.attribute(key)
    if not isinstance(layout, Mapping):
        refuse(node.field(key), shown(layout), "an object of strides")
    at: Any = integer_of(node.field(f"{key}.offset"), layout.get("offset", 0), 0)
    for d, (name, extent) in enumerate(extents.items()):
        default = 1 if name in ("d", "col") else 0
        stride = integer_of(node.field(f"{key}.{name}"), layout.get(name, default), 0)
        at = at + (np.arange(extent) * stride).reshape(-1, *([1] * (len(extents) - 1 - d)))
    size = node.value(i).size
    if int(np.max(at)) >= size:
        refuse(node.field(key), f"element {int(np.max(at))}", f"elements below {size}")
    return node.levels(i).reshape(-1)[at]
