"""Parts a graph into programs and what is left to torch, in the order in which they run."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field

from defakeq.lower.capture import Captured, Node
from defakeq.lower.structure import Structure


@dataclass
class Stage:
    """Consecutive work of one kind: a program's, or torch's."""

    torch: bool
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)


def part(captured: Captured, fallbacks: set[Node]) -> list[Stage]:
    """The stages; every input of one is the caller's or an output of an earlier one.

    Inputs and outputs of a stage that are the caller's stand in the caller's order, which a file
    with a single program has no other note of.
    """
    level: dict[Node, int] = {}
    for node in captured.nodes:
        odd = node in fallbacks
        found = 1 if odd else 0
        for used in node.all_input_nodes:
            if used in level:
                at = level[used]
                found = max(found, at if at % 2 == odd else at + 1)
        if node.target is operator.getitem:
            found = level[node.all_input_nodes[0]]
        level[node] = found
    stages = []
    for number in range(max(level.values(), default=-1) + 1):
        stage = Stage(torch=number % 2 == 1)
        stage.nodes = [node for node in captured.nodes if level[node] == number]
        if not stage.nodes:
            continue
        inside = set(stage.nodes)
        read = {used for node in stage.nodes for used in node.all_input_nodes}
        written = {node for node in stage.nodes if any(u not in inside for u in node.users)}
        stage.inputs = _first([*captured.inputs, *captured.nodes], read - inside)
        stage.outputs = _first([*captured.outputs, *captured.nodes], written)
        stages.append(stage)
    return stages


def _first(order: Iterable[Node], wanted: set[Node]) -> list[Node]:
    """The wanted nodes, each where it comes first in an order."""
    return [node for node in dict.fromkeys(order) if node in wanted]


def program_of(captured: Captured, stage: Stage) -> Captured:
    """A stage as a graph of its own."""
    return Captured(
        captured.graph,
        stage.nodes,
        captured.constants,
        captured.parameters,
        stage.inputs,
        stage.outputs,
        Structure.flat(len(stage.inputs)),
        Structure.flat(len(stage.outputs)),
        captured.shapes,
    )
