"""The one place where kernels are launched, so that launches can be recorded instead."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defakeq_kernels.triton import config

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Launch:
    """A kernel call.

    Attributes:
        kernel: the Triton function.
        grid: blocks in each of up to three dimensions.
        arguments: by name, in order: tensors, numbers or None; constants included.
        constants: names of compile-time arguments.
        warps, stages: compiler options.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: frozenset[str]
    warps: int
    stages: int


_recorder: Callable[[Launch], None] | None = None
_recorded_device: config.Device | None = None


@contextmanager
def recording(record: Callable[[Launch], None], device: config.Device) -> Iterator[None]:
    """Hands launches to `record` instead of running them, chosen as for `device`."""
    global _recorder, _recorded_device
    before = _recorder, _recorded_device
    _recorder, _recorded_device = record, device
    try:
        yield
    finally:
        _recorder, _recorded_device = before


def is_recording() -> bool:
    """Whether launches are recorded."""
    return _recorder is not None


def device_of(x: Tensor) -> config.Device:
    """The device that launches on `x` are chosen for."""
    if _recorded_device is not None:
        return _recorded_device
    if x.device.type == "cuda":
        return config.device_of(x.device.index)
    return config.DEVICES[87]


def start(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    num_warps: int = 4,
    num_stages: int = 2,
    **constants: Any,
) -> None:
    """Launches `kernel` on the current stream of its tensors' device.

    Multiplications and additions are kept apart, as on the CPU.
    """
    if _recorder is not None:
        names = kernel.arg_names
        named = dict(zip(names, arguments, strict=False)) | constants
        ordered = {name: named[name] for name in names}
        known = frozenset(p.name for p in kernel.params if p.is_constexpr)
        _recorder(Launch(kernel, grid, ordered, known, num_warps, num_stages))
        return
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False}
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    with torch.cuda.device(device):
        kernel[grid](*arguments, **constants, **options)
