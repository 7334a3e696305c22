"""Typed reads of a program's JSON, refused by field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from defakeq_kernels.checks import is_integer, refuse, shown
from defakeq_kernels.quantize import ActQuant, check_quantization


def get_of(where: str, holder: Mapping[str, Any], key: str) -> Any:
    """A field that must be there."""
    if key not in holder:
        refuse(f"{where}.{key}", "nothing", "a value")
    return holder[key]


def sizes_of(field: str, value: object, count: int | None = None, low: int = 1) -> tuple[int, ...]:
    """A list of `count` integers from `low` on."""
    if (
        not isinstance(value, (list, tuple))
        or (count is not None and len(value) != count)
        or not all(is_integer(v) and v >= low for v in value)
    ):
        wanted = "sizes" if count is None else f"{count} integers"
        refuse(field, shown(value), f"a list of {wanted} from {low} on")
    return tuple(int(v) for v in value)


def integer_of(field: str, value: object, low: int, high: int = 1 << 40) -> int:
    """An integer from `low` to `high`."""
    if not is_integer(value) or not low <= value <= high:
        refuse(field, shown(value), f"an integer from {low} to {high}")
    return int(value)


def number_of(field: str, value: object) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        refuse(field, shown(value), "a finite number")
    return float(value)


def quantization_of(field: str, value: object) -> ActQuant:
    """The static quantization that an object describes."""
    if not isinstance(value, Mapping):
        refuse(field, shown(value), "an object with scale, zero_point and bits")
    scale, zero, bits = (get_of(field, value, key) for key in ("scale", "zero_point", "bits"))
    check_quantization(scale, zero, bits, f"{field}.")
    return ActQuant("static", float(scale), int(zero), int(bits))
