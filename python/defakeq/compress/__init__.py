"""Compression: statistics, redundancy elimination, allocation, reconstruction, fine-tuning.

``defakeq.compress(model, images)`` runs all stages (`pipeline.compress`); each stage's module can
be used alone.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defakeq.compress.pipeline import Compressed
    from defakeq.compress.presets import Preset

_EXPORTS = {"Compressed": "pipeline", "Preset": "presets", "preset": "presets"}

__all__ = ["Compressed", "Preset", "preset"]


class _Callable(types.ModuleType):
    """The package itself can be called, since it bears the function's name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Compressed:
        from defakeq.compress.pipeline import compress

        return compress(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{self.__name__}.{_EXPORTS[name]}"), name)


sys.modules[__name__].__class__ = _Callable
