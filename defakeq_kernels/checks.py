"""Small checks that word their errors alike: the field, what was found, what is accepted."""

from __future__ import annotations

from typing import NoReturn, TypeGuard

import numpy as np


def shown(value: object) -> str:
    """A short repr for error messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def refuse(field: str, found: str, accepted: str) -> NoReturn:
    """Raises the ValueError that all checks raise."""
    raise ValueError(f"{field}: found {found}; accepted is {accepted}")


def is_integer(value: object) -> TypeGuard[int]:
    """True for Python and numpy integers, not for booleans."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_range(field: str, value: object, low: int, high: int) -> None:
    """Refuses what is no integer from `low` to `high`."""
    if not is_integer(value) or not low <= value <= high:
        refuse(field, shown(value), f"an integer from {low} to {high}")
