"""Nodes over the last dimension."""

from __future__ import annotations

import numpy as np

from defakeq_kernels import reference
from defakeq_kernels.reference import fma
from defakeq_kernels.reference_program.fields import (
    integer_of,
    number_of,
)
from defakeq_kernels.reference_program.floats import (
    ONE,
    lane_max,
    lane_squares,
    lane_sum,
)
from defakeq_kernels.reference_program.node import Node, gather
from defakeq_kernels.reference_program.state import quantized


def layer_norm(node: Node) -> None:
    """Normalizes, scales and shifts each row; `rows` places them."""
    x = node.real(0)
    channels = x.shape[-1]
    x = x.reshape(-1, channels)
    gamma = node.optional("gamma", "float32", (channels,))
    beta = node.optional("beta", "float32", (channels,))
    count = integer_of(node.field("count"), node.get("count", channels), channels)
    eps = np.float32(number_of(node.field("eps"), node.attribute("eps")))
    part = ONE / np.float32(count)
    mean = (lane_sum(x) * part)[:, None]
    d = x - mean
    absent = np.float32(count - channels)
    var = (lane_squares(d)[:, None] + absent * (mean * mean)) * part
    y = d * (ONE / np.sqrt(var + eps))
    if gamma is not None or beta is not None:
        shift = np.zeros(channels, np.float32) if beta is None else beta
        scale = np.ones(channels, np.float32) if gamma is None else gamma
        y = fma(y, scale, shift)
    q = node.out.quantization
    stored = y if q is None else quantized(y, q)
    index = node.optional("rows", "int32", (node.out.size // channels,))
    node.put(stored if index is None else gather(stored, index, node.fill(), node.field))


def softmax(node: Node) -> None:
    """exp(x - max) over its sum."""
    x = node.real(0)
    node.expect_size(x.size)
    e = reference._exp(x - lane_max(x)[..., None])
    node.store(e * (ONE / lane_sum(e))[..., None])


def reduce(node: Node) -> None:
    """Mean, sum, maximum or norm of each row."""
    x = node.real(0)
    fn = node.choice("fn", ("mean", "sum", "max", "l2"))
    node.expect_size(x.size // x.shape[-1])
    if fn == "max":
        node.store(lane_max(x))
    elif fn == "l2":
        node.store(np.sqrt(lane_squares(x)))
    else:
        y = lane_sum(x)
        node.store(y if fn == "sum" else y * (ONE / np.float32(x.shape[-1])))
