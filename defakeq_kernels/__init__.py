"""Kernels for compressed networks whose layers mix precisions and miss channels.

The package is usable without PyTorch; with it, :mod:`defakeq_kernels.ops` has the torch ops.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

if not any(Path(__file__).parent.glob("_core*.so")):
    # The source tree shadows an installed package; the native parts are in the latter.
    __path__ = pkgutil.extend_path(__path__, __name__)

try:
    import defakeq_kernels._core as _core
except ImportError as error:
    raise ImportError(
        "defakeq_kernels: the native library is missing or was built for another Python "
        f"({error}); build it with `pip install .` in the project directory, or with `make dev` "
        "to work on the source tree"
    ) from error

__version__: str = _core.version()


def cpu_info() -> dict[str, Any]:
    """Describe the processor and the kernels in use.

    Returns a dict with ``cpu`` (name), ``isa`` (a dict with the lists ``built``, ``supported`` and
    ``allowed``), ``selected`` (the instruction-set tier in use) and ``threads`` (how many
    processors the process may run on).

    Raises ``ValueError`` when the environment variable ``DEFAKEQ_ISA`` names no tier.
    """
    info: dict[str, Any] = _core.cpu_info()
    return info


def set_num_threads(count: int) -> None:
    """Set how many threads the calls that do not come from torch use (at least 1)."""
    _core.set_num_threads(count)


def get_num_threads() -> int:
    """Return how many threads the calls that do not come from torch use."""
    return int(_core.get_num_threads())


__all__ = ["__version__", "cpu_info", "get_num_threads", "set_num_threads"]
