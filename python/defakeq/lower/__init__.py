"""Lowering: a torch model to a program that runs without torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from defakeq.fold import Inputs
from defakeq.lower.capture import capture, prepare
from defakeq.lower.emit import Emitter, Unsupported
from defakeq.lower.finish import assemble, calibrate
from defakeq.plan import QuantPlan
from defakeq_kernels import dfq

__all__ = ["Lowered", "Unsupported", "lower"]


@dataclass
class Lowered:
    """A program: the tensors and the network of a ``.dfq`` file."""

    tensors: dfq.Tensors
    network: dfq.Network

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the program as a file."""
        dfq.write(path, self.tensors, self.network)


def lower(
    model: nn.Module,
    inputs: Inputs,
    plan: QuantPlan,
    calibration: Iterable[Inputs],
    observer: str = "mse",
) -> Lowered:
    """Lowers a model to a program.

    Args:
        model: the float model; left as it is.
        inputs: example arguments; the program is made for one image of their shape.
        plan: what to do with each layer; layers that are not planned get 16-bit weights.
        calibration: arguments of the kind of `inputs`.
        observer: how ranges are chosen, as in `convert`.

    Raises:
        ValueError: a model that cannot be captured, or unusable calibration batches.
        Unsupported: a part of the model that no program node computes.
    """
    prepared = prepare(model, plan, inputs)
    captured = capture(prepared, _first(inputs))
    emitter = Emitter(captured, plan)
    emitter.run()
    batches = (_tensors(batch) for batch in calibration)
    quants = calibrate(captured, emitter, batches, observer)
    return Lowered(*assemble(emitter, quants))


def _first(inputs: Inputs) -> Inputs:
    args, kwargs = inputs
    return tuple(_one(a) for a in args), {name: _one(a) for name, a in kwargs.items()}


def _one(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) else value


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    args, kwargs = inputs
    return tuple(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
