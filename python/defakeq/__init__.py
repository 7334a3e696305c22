"""Compressed deepfake detectors: compress, plan, convert, save, load, detect.

Importing the package is cheap; torch is imported with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from defakeq import compress

if TYPE_CHECKING:
    from defakeq.conversion import convert, load, save
    from defakeq.plan import QuantPlan

_EXPORTS = {
    "QuantPlan": "defakeq.plan",
    "convert": "defakeq.conversion",
    "load": "defakeq.conversion",
    "save": "defakeq.conversion",
}

__all__ = ["QuantPlan", "compress", "convert", "load", "save"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'defakeq' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(_EXPORTS[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
