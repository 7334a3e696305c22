"""What a program computes, node by node in numpy: the oracle of the runtime.

It is plain and slow. Integer sums are exact; float32 steps are those of the kernels, each rounded
once and in their order, so every value has the runtime's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from defakeq_kernels.checks import refuse, shown
from defakeq_kernels.reference_program import elementwise, images, layers, products, rows
from defakeq_kernels.reference_program.floats import (
    BINARY,
    LANES,
    UNARY,
    lane_max,
    lane_squares,
    lane_sum,
)
from defakeq_kernels.reference_program.node import Node
from defakeq_kernels.reference_program.program import VERSION, Array, Program, Source
from defakeq_kernels.reference_program.state import State

__all__ = [
    "BINARY",
    "LANES",
    "UNARY",
    "VERSION",
    "Source",
    "lane_max",
    "lane_squares",
    "lane_sum",
    "run",
    "trace",
]

_OPS: dict[str, Callable[[Node], None]] = {
    "conv2d": layers.layer,
    "linear": layers.layer,
    "squeeze_excite": layers.squeeze_excite,
    "lookup": elementwise.lookup,
    "convert": elementwise.convert,
    "unary": elementwise.unary,
    "binary": elementwise.binary,
    "copy": elementwise.copy,
    "layer_norm": rows.layer_norm,
    "softmax": rows.softmax,
    "reduce": rows.reduce,
    "attention": products.attention,
    "matmul": products.matmul,
    "mean_rows": images.mean_rows,
    "adaptive_avg_pool2d": images.adaptive_avg_pool2d,
    "pool2d": images.pool2d,
    "interpolate": images.interpolate,
}


def run(source: Source, inputs: Sequence[Array]) -> list[Array]:
    """The outputs of a program.

    Args:
        source: path of a ``.dfq`` file, or (arrays by name, network) as `dfq.read` returns.
        inputs: float32 arrays [batch, ...] in the order of the program's inputs.

    Returns:
        float32 arrays [batch, ...], one an output.

    Raises:
        ValueError: a malformed program or a wrong input, by name.
    """
    program = Program(source)
    batch = program.check_inputs(inputs)
    results = [program.outputs_of(_execute(program, [x[i] for x in inputs])) for i in range(batch)]
    if results:
        return [np.stack(parts) for parts in zip(*results, strict=True)]
    return [np.zeros((0, *program.port_shape(port)), np.float32) for port in program.outputs]


def trace(source: Source, inputs: Sequence[Array]) -> list[list[Array]]:
    """Every value of every image: int8 or float32 arrays [image][value], in stored form."""
    program = Program(source)
    batch = program.check_inputs(inputs)
    return [_execute(program, [x[i] for x in inputs]) for i in range(batch)]


def _execute(program: Program, images: Sequence[Array]) -> list[Array]:
    state = State(program)
    for (_, at, nchw), image in zip(program.inputs, images, strict=True):
        x = image.transpose(1, 2, 0) if nchw else image
        state.store("inputs", at, np.ascontiguousarray(x))
    for i, node in enumerate(program.nodes):
        _run(Node(program, state, i, node))
    return state.all()


def _run(node: Node) -> None:
    op = node.attribute("op")
    compute = _OPS.get(op) if isinstance(op, str) else None
    if compute is None:
        refuse(node.field("op"), shown(op), f"one of {sorted(_OPS)}")
    with np.errstate(all="ignore"):
        compute(node)
