"""Parts a graph into programs and what is left to torch, in the order in which they run."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

from defakeq.lower.capture import Captured, Node


@dataclass
class Stage:
    """Consecutive work of one kind: a program's, or torch's."""

    torch: bool
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)


def part(captured: Captured, fallbacks: set[Node]) -> list[Stage]:
    """The stages; every input of one is the caller's or an output of an earlier one."""
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
        for node in stage.nodes:
            for used in node.all_input_nodes:
                known = used in inside or used in captured.constants or used in stage.inputs
                if not known:
                    stage.inputs.append(used)
            if any(user not in inside for user in node.users):
                stage.outputs.append(node)
        stages.append(stage)
    return stages


def program_of(captured: Captured, stage: Stage) -> Captured:
    """A stage as a graph of its own."""
    return Captured(
        captured.graph,
        stage.nodes,
        captured.constants,
        captured.parameters,
        stage.inputs,
        stage.outputs,
        shapes=captured.shapes,
    )
