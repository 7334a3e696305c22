"""What a model is called with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

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
