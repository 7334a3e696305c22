"""What each width is expected to cost, measured on the layer's own weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from defakeq.compress.allocate import ActOption, Option
from defakeq.compress.graph import Layer
from defakeq.compress.grid import fit
from defakeq.compress.redundancy import Masks
from defakeq.compress.sizes import Shape, payload
from defakeq.compress.statistics import LayerStatistics

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
ACT_WIDTHS = (4, 5, 6, 7, 8)
VECTOR = 16  # outputs that the widest kernels compute at once
SHORT = 64  # reductions for which zero points are a large part of the file


def rounding(
    layer: Layer,
    statistics: LayerStatistics,
    widths: Sequence[int] = WIDTHS,
    weight: Tensor | None = None,
) -> dict[tuple[int, bool], Tensor]:
    """The expected square of the margin's change for each (width, symmetric), by channels [O, I].

    The second-order model with a diagonal Fisher matrix: the sum over weights of the mean square
    of the margin's derivative times the square of the weight's rounding error.
    """
    weight = layer.weight if weight is None else weight
    rows = weight.flatten(1)
    importance = statistics.sensitivity.to(rows.device).flatten(1)
    found = {}
    for bits in widths:
        for symmetric in (False, True) if rows.shape[1] <= SHORT else (False,):
            error = fit(rows, bits, symmetric=symmetric).nearest(rows) - rows
            cost = (importance * error.square()).reshape(*weight.shape[:2], -1).sum(2)
            found[bits, symmetric] = cost
    return found


def measured(
    layer: Layer, statistics: LayerStatistics, widths: Sequence[int] = WIDTHS
) -> dict[tuple[int, bool], float]:
    """`rounding` of the whole layer; a wider grid is never held for worse than a narrower one."""
    return summed(rounding(layer, statistics, widths))


def summed(costs: Mapping[tuple[int, bool], Tensor]) -> dict[tuple[int, bool], float]:
    """`measured`, from what `rounding` gave."""
    return _monotone({key: float(cost.sum(dtype=torch.float64)) for key, cost in costs.items()})


def scored(
    layer: Layer, statistics: LayerStatistics, widths: Sequence[int]
) -> dict[tuple[int, bool], float]:
    """The paper's S_l 2^-b for each width."""
    return {(bits, False): statistics.score * 2.0**-bits for bits in widths}


def options(
    layer: Layer,
    costs: Mapping[tuple[int, bool], float],
    latency: Callable[[int], float],
) -> list[Option]:
    """A layer's options without pruning."""
    shape = Shape.of(layer)
    return [
        Option(
            bits,
            symmetric,
            payload(shape, bits, symmetric),
            cost,
            latency(bits),
        )
        for (bits, symmetric), cost in costs.items()
    ]


def act_options(
    layer: Layer, statistics: LayerStatistics, widths: Sequence[int] = ACT_WIDTHS
) -> list[ActOption]:
    """The widths of a layer's input: uniform rounding noise times the margin's sensitivity."""
    spread = float(statistics.high.clamp(min=0).amax() - statistics.low.clamp(max=0).amin())
    values = float(statistics.mean.numel()) * statistics.positions
    found = []
    for bits in widths:
        step = spread / ((1 << bits) - 1)
        found.append(ActOption(bits, statistics.input_sensitivity * step**2 / 12, bits * values))
    return found


def _monotone(costs: dict[tuple[int, bool], float]) -> dict[tuple[int, bool], float]:
    """A wider grid is never held for worse than a narrower one."""
    best: dict[bool, float] = {}
    for bits, symmetric in sorted(costs):
        cost = min(costs[bits, symmetric], best.get(symmetric, float("inf")))
        best[symmetric] = costs[bits, symmetric] = cost
    return costs


def _vectors(outs: int) -> int:
    return -(-outs // VECTOR)


def pruned_options(
    layer: Layer,
    costs: Mapping[tuple[int, bool], Tensor],
    kept: Mapping[tuple[tuple[int, int], ...], Masks],
    latency: Callable[[int], float],
) -> list[Option]:
    """A layer's options with every combination of the levels of the groups that it touches.

    Args:
        layer: the layer.
        costs: of `rounding`.
        kept: the masks for each combination of (group, level).
        latency: what the whole layer takes by width; pruning takes its part of it, in vectors of
            outputs.
    """
    found = []
    outs, ins = layer.weight.shape[:2]
    for levels, masks in kept.items():
        rows = torch.ones(outs) if masks.outs is None else masks.outs.cpu().float()
        columns = torch.ones(ins) if masks.ins is None else masks.ins.cpu().float()
        count = (int(rows.sum()), int(columns.sum()))
        shape = replace(Shape.of(layer, *count), all_inputs=True)
        part = _vectors(count[0]) * count[1] / (_vectors(outs) * ins)
        totals = {
            key: float(rows.double() @ cost.cpu().double() @ columns.double())
            for key, cost in costs.items()
        }
        for (bits, symmetric), total in _monotone(totals).items():
            time = part * latency(bits)
            size = payload(shape, bits, symmetric)
            found.append(Option(bits, symmetric, size, total, time, dict(levels)))
    return found
