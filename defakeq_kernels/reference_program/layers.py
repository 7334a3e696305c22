"""Layers, and squeeze-excite on two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from defakeq_kernels import dfq, reference
from defakeq_kernels.checks import refuse, shown
from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.reference_program.fields import (
    quantization_of,
)
from defakeq_kernels.reference_program.images import rows_mean
from defakeq_kernels.reference_program.node import Node, look_up
from defakeq_kernels.reference_program.state import quantized


def layer(node: Node) -> None:
    """A convolution or a linear layer, with residual, half-precision inputs and a table."""
    kind = node.attribute("op")
    weight, spec = layer_of(node, "layer")
    if weight.kind != kind:
        refuse(node.field("layer"), f"a {weight.kind} layer", f"a {kind} layer")
    x, table = node.raw(0), node.table("table")
    act = None
    if spec["act"]["mode"] != "none":
        fields = spec["act"]
        act = ActQuant(fields["mode"], fields["scale"], fields["zero_point"], fields["bits"])
    if node.value(0).quantization is not None and act != node.value(0).quantization:
        refuse(node.field("in"), f"{node.value(0).quantization}", f"the layer's act {act}")
    out = None
    if spec["out"]["dtype"] == "int8":
        out = quantization_of(node.field("layer.out"), spec["out"])
    if table is None and out != node.out.quantization:
        refuse(node.field("out"), f"{node.out.quantization}", f"the layer's out {out}")
    if table is not None and (
        out is None or node.out.quantization is None or spec["activation"] != "none"
    ):
        refuse(node.field("table"), "a table", "none unless int8 is stored without activation")
    options: dict[str, Any] = {"act": act, "activation": spec["activation"], "out": out}
    if node.has(1):
        if matrix(node.value(1).shape) != matrix(node.out.shape):
            refuse(node.field("in"), f"residual {node.value(1).shape}", f"{node.out.shape}")
        options["residual"] = node.raw(1).reshape(node.out.shape)
        q = node.value(1).quantization
        if q is not None:
            options["residual_scale"] = q.scale
            options["residual_zero_point"] = q.zero_point
    if node.has(2):
        options["half_input"] = node.raw(2)
    if kind == "conv2d":
        node.image()
        if "half_input" in options:
            options["half_input"] = options["half_input"][None]
        if "residual" in options:
            options["residual"] = options["residual"][None]
        y = reference.conv2d(weight, x[None], **options)[0]
    else:
        if "residual" in options:
            options["residual"] = options["residual"].reshape(*x.shape[:-1], -1)
        y = reference.linear(weight, x, **options)
        if matrix(y.shape) == matrix(node.out.shape):
            y = y.reshape(node.out.shape)
    node.expect(y.shape)
    node.put(y if table is None else look_up(table, y))


def squeeze_excite(node: Node) -> None:
    """x * fc2(fc1(mean(x)))."""
    height, width, channels = node.image()
    node.expect((height, width, channels))
    pool = quantization_of(node.field("pool"), node.attribute("pool"))
    q = quantized(rows_mean(node, 0, height * width, channels), pool)[None]
    read = pool
    for key, table_key, result in (("fc1", "table1", "hidden"), ("fc2", "table2", "gate")):
        weight, spec = layer_of(node, key)
        table = node.table(table_key)
        kept = quantization_of(node.field(result), node.attribute(result))
        out = quantization_of(node.field(f"{key}.out"), spec["out"])
        act = quantization_of(node.field(f"{key}.act"), spec["act"])
        if act != read or (table is None and out != kept):
            refuse(node.field(key), f"{act} to {out}", f"{read} to {kept}")
        q = reference.linear(weight, q, act=act, activation=spec["activation"], out=out)
        q = q if table is None else look_up(table, q)
        read = kept
    node.store(node.real(0) * reference.dequantize(q, read)[0])


def layer_of(node: Node, key: str) -> tuple[Any, Mapping[str, Any]]:
    """The packed weight and the description of the layer that an attribute names."""
    name, layers = node.attribute(key), node.program.network["layers"]
    if name not in layers:
        refuse(node.field(key), shown(name), "the name of a layer")
    return dfq.layer(node.program.tensors, node.program.network, name), layers[name]


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """A shape as rows and channels."""
    return math.prod(shape[:-1]), shape[-1]
