"""What a model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def as_inputs(what: str, batch: object) -> Inputs:
    """Positional and keyword arguments of a batch, which messages call `what`."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    raise ValueError(
        f"{what}: found {type(batch).__name__}; accepted is a tensor, a tuple or list of "
        "positional arguments, or a mapping of keyword arguments"
    )


def run(what: str, model: nn.Module, inputs: Inputs) -> Any:
    """Calls a model without gradient on the inputs that messages call `what`.

    Raises:
        RuntimeError: the model's own error, with `what`.
    """
    args, kwargs = inputs
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:
        raise RuntimeError(f"{what}: the model fails: {error}") from error
