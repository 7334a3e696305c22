"""Compares every node of a program in the runtime with exact arithmetic on the same operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defakeq.lower.bounds import Bounds, Interval
from defakeq_kernels import dfq


@dataclass(frozen=True)
class NodeCheck:
    """One node's result in the runtime beside that of exact arithmetic.

    Attributes:
        name, op: of the node; op "input" for what enters the program.
        error: the largest difference, in the unit of the values.
        bound: the largest difference that the stated rounding allows.
        outside: how many elements are outside their bounds; 0 for a node that is right.
        count: how many elements there are.
    """

    name: str
    op: str
    error: float
    bound: float
    outside: int
    count: int

    @property
    def ok(self) -> bool:
        """Whether every element is within its bounds."""
        return self.outside == 0


PORTS = 256  # that a program may have


def instrumented(network: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Networks whose programs return, in order, their inputs and what every node stores."""
    program = network["program"]
    numbers = [port["value"] for port in program["inputs"]]
    numbers += [node["out"][0] for node in program["nodes"]]
    ports = [
        {"name": f"value{i}", "value": number, "layout": "plain"}
        for i, number in enumerate(numbers)
    ]
    return [
        {**network, "program": {**program, "outputs": ports[i : i + PORTS]}}
        for i in range(0, len(ports), PORTS)
    ]


def check(
    tensors: dfq.Tensors,
    network: Mapping[str, Any],
    inputs: Sequence[Tensor],
    run: Any,
) -> list[NodeCheck]:
    """Runs one image and compares each node with what its own operands should give.

    Args:
        tensors, network: of a file with a program.
        inputs: one float32 tensor without a batch for each of the program's inputs.
        run: function of (tensors, network, arrays with a batch) to the outputs; of the runtime or
            of `defakeq_kernels.reference_program`.

    Returns:
        the comparison of each input and node, in the order in which they run.
    """
    arrays = [x.detach().float().numpy()[None] for x in inputs]
    results: list[NDArray[np.float32]] = []
    for wide in instrumented(network):
        results += run(tensors, wide, arrays)
    bounds = Bounds(tensors, network)
    program = network["program"]
    held: dict[int, Tensor] = {}
    found = []
    for port, x, y in zip(program["inputs"], inputs, results, strict=False):
        x = x.double().permute(1, 2, 0) if port["layout"] == "nchw" else x.double()
        number = port["value"]
        shape = program["values"][number]["shape"]
        interval = bounds.entered(number, x.reshape(shape))
        found.append(_keep(bounds, held, number, y, port["name"], "input", interval))
    for node, y in zip(program["nodes"], results[len(found) :], strict=True):
        ins = [bounds.get(held, number) for number in node["in"]]
        interval = bounds.stored(node, ins)
        number = node["out"][0]
        found.append(_keep(bounds, held, number, y, node["name"], node["op"], interval))
    return found


def _keep(
    bounds: Bounds,
    held: dict[int, Tensor],
    number: int,
    result: NDArray[np.float32],
    name: str,
    op: str,
    interval: Interval,
) -> NodeCheck:
    """Stores the runtime's values for the nodes that follow, and compares them."""
    value = bounds.program["values"][number]
    y = torch.from_numpy(np.asarray(result[0])).double().reshape(value["shape"])
    bounds.put(held, number, y)
    stored = bounds.get(held, number)
    assert stored is not None
    y = stored
    low, high = interval
    middle = (low + high) / 2
    outside = (y < low) | (y > high) | ~torch.isfinite(y)
    return NodeCheck(
        name,
        op,
        float((y - middle).abs().max()),
        float((high - low).max() / 2),
        int(outside.sum()),
        y.numel(),
    )
