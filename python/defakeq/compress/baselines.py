"""Published methods at the same bytes, in the same harness: what `compress` is compared with.

Each is our own implementation of what its paper describes, on the kernels' grids (asymmetric
weights, one scale an output; 8-bit inputs) and with the same calibration images:

- ``nearest``: round to nearest on least-squares grids, one width for all layers.
- ``adaround``: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML
  2020: soft rounding, layer by layer.
- ``brecq``: Li et al., "BRECQ", ICLR 2021: soft rounding block by block, the first and the last
  layer 8-bit.
- ``adalog``: Wu et al., "AdaLog", ECCV 2024: its search of weight grids by output error. Its
  logarithmic grids serve 3- and 4-bit inputs after softmax and GELU; inputs here have 8 bits.
- ``fima-q``: Wu et al., "FIMA-Q", CVPR 2025: blocks reconstructed under a Fisher information matrix
  of rank one and a diagonal.
- ``magnitude``: channels of the smallest weights pruned (Li et al., "Pruning Filters for Efficient
  ConvNets", ICLR 2017) until 8-bit weights fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from defakeq.compress.budget import check_size, file_size, largest_file_size
from defakeq.compress.calibration import Calibration
from defakeq.compress.learning import Settings
from defakeq.compress.pipeline import compress
from defakeq.compress.presets import Preset
from defakeq.compress.sizes import checkpoint_bytes
from defakeq.conversion import convert
from defakeq.lower import ProgramModule
from defakeq.prunable import half_plan

_UNIFORM = Preset(objective="uniform", prune=False, speed=0.0, restored=0.0)
_SOFT = Settings(method="adaround", feedback=False, steps=500, rate=0.1, scale_rate=0.0, bias=False)
_HALVINGS = 7

PRESETS = {
    "nearest": replace(
        _UNIFORM, reconstruction=Settings("nearest", feedback=False, steps=0, bias=False)
    ),
    "adaround": replace(_UNIFORM, reconstruction=replace(_SOFT, blocks=False)),
    "brecq": replace(_UNIFORM, reconstruction=_SOFT, ends=8),
    "adalog": replace(
        _UNIFORM,
        reconstruction=Settings("nearest", feedback=False, steps=0, bias=True, search=True),
    ),
    "fima-q": replace(_UNIFORM, reconstruction=replace(_SOFT, fisher=True)),
}
NAMES = (*PRESETS, "magnitude")


@dataclass
class Baseline:
    """A baseline's result: the program, its bytes, and the width of its weights."""

    model: ProgramModule
    size: int
    bits: float


def baseline(
    name: str,
    model: nn.Module,
    calibration: Any,
    size: float = 0.10,
    seed: int = 0,
    progress: bool = False,
    steps: int | None = None,
) -> Baseline:
    """Compresses a detector by a published method.

    Args:
        name: one of `NAMES`.
        model, calibration, size, seed, progress: as in `compress`.
        steps: of the optimizer, where the method has one; None: its own.

    Raises:
        ValueError: an unknown name, a budget that the method cannot keep, or as `compress`.
    """
    if name == "magnitude":
        return _magnitude(model, Calibration.of(calibration), check_size(size))
    if name not in PRESETS:
        raise ValueError(f"baseline: found {name!r}; accepted is one of {', '.join(NAMES)}")
    preset = PRESETS[name]
    if steps is not None and preset.reconstruction.steps:
        preset = replace(preset, reconstruction=replace(preset.reconstruction, steps=steps))
    found = compress(
        model, calibration, size=size, preset=preset, veft=False, seed=seed, progress=progress
    )
    return Baseline(found.model, found.report["size"], found.report["bits_a_weight"])


def _magnitude(model: nn.Module, data: Calibration, size: float) -> Baseline:
    budget = int(size * checkpoint_bytes(model))
    example = data.images[:1]

    def made(fraction: float, images: torch.Tensor) -> ProgramModule:
        plan = half_plan(model, example, bits=8, fraction=fraction, half_out=0.0)
        program = convert(model, example, plan, [images], backend="program")
        assert isinstance(program, ProgramModule)
        return program

    def fits(fraction: float) -> bool:
        return largest_file_size(made(fraction, data.images[:2])) <= budget

    least = _least_fraction(fits)
    program = made(least, data.images[:64])
    return Baseline(program, file_size(program), 8.0)


def _least_fraction(fits: Callable[[float], bool]) -> float:
    """The smallest pruned part that fits, by halving."""
    low, high = 0.0, 0.95
    if fits(low):
        return low
    if not fits(high):
        raise ValueError(
            "size: found a budget that 8-bit weights keep at no pruning; accepted more"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high
