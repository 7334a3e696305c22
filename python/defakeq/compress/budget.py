"""How many bytes of a file are left for the layers, and whether a file keeps its budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from defakeq.compress.quantized import State
from defakeq.conversion import convert
from defakeq.lower import ProgramModule
from defakeq.plan import QuantPlan
from defakeq_kernels import dfq

_BATCH = 16
_FLOAT_DIGITS = 24  # the most that JSON takes for a float64
_INTEGER_DIGITS = 4  # the most that a zero point takes


def exported(
    model: nn.Module, states: Mapping[str, State], mixed: bool
) -> tuple[nn.Module, QuantPlan]:
    """A float model with the weights that the codes stand for, and the plan that gives them back.

    Args:
        model: of a `Graph`, with BatchNorm folded.
        states: of the layers.
        mixed: with the half-precision outputs.
    """
    own = copy.deepcopy(model).cpu()
    plans = {}
    with torch.no_grad():
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


def file_size(program: ProgramModule) -> tuple[int, int]:
    """(bytes of the file, the most bytes that it has with other numbers in its JSON)."""
    tensors, network = program.file()
    size = len(dfq.dumps(tensors, network))
    slack = sum(_FLOAT_DIGITS - len(repr(v)) for v in _numbers(network) if isinstance(v, float))
    slack += sum(
        _INTEGER_DIGITS - len(repr(value))
        for value in _values(network, "zero_point")
        if isinstance(value, int)
    )
    return size, size + slack + 8


def _numbers(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    else:
        yield value


def _values(value: Any, key: str) -> Iterable[Any]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == key:
                yield item
            yield from _values(item, key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _values(item, key)


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
