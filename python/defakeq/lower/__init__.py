"""Lowering: a torch model to a program that runs without torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from defakeq.fold import Inputs
from defakeq.lower.apart import check_apart
from defakeq.lower.capture import Captured, Node, capture, prepare
from defakeq.lower.emit import Emitter
from defakeq.lower.finish import assemble, calibrate
from defakeq.lower.module import (
    Fallback,
    ProgramModule,
    ProgramStage,
    Stage,
    TorchStage,
    check_whole,
)
from defakeq.lower.picture_inputs import move_onto_levels
from defakeq.lower.stages import part, program_of
from defakeq.lower.structure import called_with
from defakeq.plan import QuantPlan

__all__ = ["Fallback", "ProgramModule", "check_whole", "fallbacks", "lower"]


def lower(
    model: nn.Module,
    inputs: Inputs,
    plan: QuantPlan,
    calibration: Iterable[Inputs],
    observer: str = "mse",
) -> ProgramModule:
    """Lowers a model to programs, and to torch operators where there is no other way.

    Args:
        model: the float model; left as it is.
        inputs: example arguments; the program is made for one image of their shape.
        plan: what to do with each layer; layers that are not planned get 16-bit weights.
        calibration: arguments of the kind of `inputs`.
        observer: how ranges are chosen, as in `convert`.

    Raises:
        ValueError: a model that cannot be captured or that mixes the images of a batch, or unusable
            calibration batches.
    """
    prepared, first = prepare(model, plan, inputs), _first(inputs)
    captured = capture(prepared, first)
    batches = [captured.takes.tensors(called_with(*batch), "calibration") for batch in calibration]
    move_onto_levels(captured, plan, batches)
    left = _fallbacks(captured, plan)
    parts = part(captured, set(left))
    emitters: dict[int, Emitter] = {}
    for i, stage in enumerate(parts):
        if not stage.torch:
            emitters[i] = Emitter(program_of(captured, stage), plan)
            emitters[i].run()
    quants = calibrate(captured, emitters, batches, observer)
    check_apart(prepared, captured.takes, [*batches, _tensors(first)])
    stages: list[Stage] = []
    for i, stage in enumerate(parts):
        names = [node.name for node in stage.inputs]
        if stage.torch:
            stages.append(TorchStage(stage.nodes, captured.constants, names))
            continue
        shapes = [captured.shapes[node] for node in stage.outputs]
        outputs = [node.name for node in stage.outputs]
        tensors, network = assemble(emitters[i], quants[i])
        stages.append(ProgramStage(tensors, network, names, outputs, shapes))
    return ProgramModule(
        stages,
        [node.name for node in captured.inputs],
        [node.name for node in captured.outputs],
        captured.takes,
        captured.returns,
        _described(left),
    )


def fallbacks(model: nn.Module, inputs: Inputs, plan: QuantPlan) -> list[Fallback]:
    """What `lower` would leave to torch.

    Args:
        model: in evaluation mode, BatchNorm folded; left as it is.
        inputs, plan: as in `lower`.

    Raises:
        ValueError: a model that cannot be captured.
    """
    return _described(_fallbacks(capture(model, _first(inputs)), plan))


def _described(fallbacks: dict[Node, str]) -> list[Fallback]:
    return [Fallback(node.name, str(node.target), reason) for node, reason in fallbacks.items()]


def _fallbacks(captured: Captured, plan: QuantPlan) -> dict[Node, str]:
    """What no program node computes, with the reasons; known when everything else lowers."""
    fallbacks = {node: reason for node in captured.nodes if (reason := _odd_type(node, captured))}
    while True:
        found: dict[Node, str] = {}
        for stage in part(captured, set(fallbacks)):
            if not stage.torch:
                emitter = Emitter(program_of(captured, stage), plan)
                emitter.run(found)
        if not found:
            return fallbacks
        fallbacks.update(found)


def _odd_type(node: Node, captured: Captured) -> str | None:
    """Why a node's operands or result can be no values of a program."""
    for used in [node, *node.all_input_nodes]:
        value = used.meta.get("val")
        if used in captured.constants or not isinstance(value, Tensor):
            continue
        if not value.is_floating_point():
            return f"found a tensor of {value.dtype}; accepted is float32"
    return None


def _first(inputs: Inputs) -> Inputs:
    for x in _tensors(inputs):
        if x.dim() == 0 or len(x) == 0 or len(x) != len(_tensors(inputs)[0]):
            raise ValueError(
                f"example_inputs: found shape {list(x.shape)}; accepted is tensors with one entry "
                "for each image of the first, at least one"
            )
    first: Inputs = tree_map(_one, inputs)
    return first


def _one(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) else value


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    return tuple(a for a in tree_leaves(inputs) if isinstance(a, Tensor))
