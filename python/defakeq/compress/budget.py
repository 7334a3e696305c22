"""How many bytes of a file are left for the layers, and whether a file keeps its budget."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from defakeq.compress import summary
from defakeq.compress.quantized import State, narrowed
from defakeq.conversion import convert
from defakeq.lower import ProgramModule
from defakeq.plan import QuantPlan
from defakeq_kernels import dfq

_BATCH = 16


def exported(
    model: nn.Module, states: Mapping[str, State], mixed: bool
) -> tuple[nn.Module, QuantPlan]:
    """A float model with the weights that the codes stand for, and the plan that gives them back.

    What is no layer's, such as embeddings and norms, is rounded to float16 where that is near.

    Args:
        model: of a `Graph`, with BatchNorm folded.
        states: of the layers.
        mixed: with the half-precision outputs.
    """
    own = copy.deepcopy(model).cpu()
    plans = {}
    with torch.no_grad():
        for value in itertools.chain(own.parameters(), own.buffers()):
            if value.is_floating_point() and value.numel():
                value.copy_(narrowed(value))
        for name, state in states.items():
            module: Any = own.get_submodule(name)
            shape = module.weight.shape
            rows = state.grid.weights(state.codes)
            if mixed and state.half is not None:
                rows = torch.where(state.half[:, None], state.weight.half().float(), rows)
            module.weight.copy_(rows.reshape(shape))
            if state.bias is not None:
                module.bias.copy_(state.bias)
            plans[name] = state.plan(mixed)
    return own, QuantPlan(plans)


def converted(
    model: nn.Module, states: Mapping[str, State], images: Tensor, mixed: bool
) -> ProgramModule:
    """The program of a model in its present states.

    Raises:
        ValueError: a part of the model cannot be lowered; the message names the first.
    """
    own, plan = exported(model, states, mixed)
    program = convert(own, images[:1], plan, images.split(_BATCH), backend="program")
    assert isinstance(program, ProgramModule)
    program.file()
    return program


def file_size(program: ProgramModule) -> int:
    """Bytes of a program's file."""
    return len(dfq.dumps(*program.file()))


def largest_file_size(program: ProgramModule) -> int:
    """The most bytes that the file has with other numbers and a summary in its JSON."""
    tensors, network = program.file()
    numbers = random.Random(0)
    network = _with_long_numbers(network, numbers, {})
    network[summary.KEY] = summary.longest(network["layers"], numbers)
    data = dfq.dumps(tensors, network)
    header = int.from_bytes(data[:8], "little")
    return len(data) + header // 32 + 32  # numbers are not deflated equally well


def _with_long_numbers(value: Any, numbers: random.Random, taken: dict[Any, float]) -> Any:
    """A copy of a network whose quantizations have numbers that take as much as any do.

    Args:
        value: the network or a part of it.
        numbers: where they come from.
        taken: the new number of each old one; quantizations that are equal stay so.
    """
    if isinstance(value, list):
        return [_with_long_numbers(item, numbers, taken) for item in value]
    if isinstance(value, float):
        return taken.setdefault(value, numbers.uniform(1e-5, 9.9e-5))
    if not isinstance(value, dict):
        return value
    result = {key: _with_long_numbers(item, numbers, taken) for key, item in value.items()}
    fixed = str(value.get("mode", "static")) != "static"
    if "zero_point" in value and "scale" in value and not fixed:
        half = 1 << (int(value.get("bits", 8)) - 1)
        key = (value["scale"], value["zero_point"])
        result["zero_point"] = taken.setdefault(key, numbers.randrange(-half, -half * 3 // 4))
    return result


def check_size(size: float) -> float:
    """The asked part of the checkpoint.

    Raises:
        ValueError: not a number above 0 and up to 1.
    """
    number = isinstance(size, (int, float)) and not isinstance(size, bool)
    if not number or not math.isfinite(size) or not 0 < size <= 1:
        raise ValueError(
            f"size: found {size!r}; accepted is a part of the float32 checkpoint, above 0 and up "
            "to 1, such as 0.10"
        )
    return float(size)
