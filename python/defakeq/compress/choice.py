"""Stages 2 and 3 together: what of each layer is kept, at which width, in a file of given bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from defakeq.compress import distortion, redundancy
from defakeq.compress.allocate import ActOption, Allocation, Option, Problem, solve
from defakeq.compress.bars import Bars
from defakeq.compress.budget import converted, largest_file_size
from defakeq.compress.graph import Graph
from defakeq.compress.greedy import greedy
from defakeq.compress.latency import LatencyTable
from defakeq.compress.presets import Preset
from defakeq.compress.quantized import State
from defakeq.compress.reconstruct import initial
from defakeq.compress.redundancy import Masks, Redundancy
from defakeq.compress.sizes import SEGMENT_JSON, Shape, half_cost, payload
from defakeq.compress.statistics import LayerStatistics
from defakeq.prunable import Channels

_TRIES = 6
_FOLDING = 8.0  # reconstruction takes back most of a rounding error, little of a folding error
_RESERVE = 0.01  # of the file, for restored channels
_RANDOM_RESERVE = 0.03  # of the file at most, for randomly restored channels


class Refused(ValueError):
    """A budget that cannot be kept; `least` bytes could be."""

    def __init__(self, message: str, least: float) -> None:
        super().__init__(message)
        self.least = least


@dataclass(frozen=True)
class Chosen:
    """What stages 2 and 3 decided: options, input widths, folded weights, kept channels."""

    options: dict[str, Option]
    acts: dict[str, int]
    weights: dict[str, Tensor]
    masks: dict[str, Masks]
    pruning: str

    def initial(self, graph: Graph) -> dict[str, State]:
        """States with nearest codes."""
        return initial(graph, self.options, self.acts, self.weights, self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Tensors and numbers, for `torch.save`."""
        return {
            "options": {name: dict(vars(option)) for name, option in self.options.items()},
            "acts": self.acts,
            "weights": self.weights,
            "masks": {name: dict(vars(mask)) for name, mask in self.masks.items()},
            "pruning": self.pruning,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Chosen:
        """The inverse of `to_dict`."""
        return Chosen(
            {name: Option(**own) for name, own in values["options"].items()},
            values["acts"],
            values["weights"],
            {name: Masks(**own) for name, own in values["masks"].items()},
            values["pruning"],
        )


@dataclass(frozen=True)
class Task:
    """What is chosen for.

    Attributes:
        graph: the float model.
        statistics: of its layers.
        images: calibration images.
        ranges: a few images for trial programs.
        preset: the widths, the objective.
        budget: bytes of the file.
        checkpoint: bytes of the float32 checkpoint.
        restoring: whether channels will be restored.
        table: the layers' times; empty without a latency limit.
        latency: microseconds at most; None: no limit.
        spread: variance of the margin.
    """

    graph: Graph
    statistics: Mapping[str, LayerStatistics]
    images: Tensor
    ranges: Tensor
    preset: Preset
    budget: int
    checkpoint: int
    restoring: bool
    table: LatencyTable
    latency: float | None
    spread: float

    def reserve(self) -> int:
        """Bytes kept for the restored channels."""
        share = self.preset.restored
        if not self.restoring or not share:
            return 0
        if self.preset.choice == "recovery":
            return int(_RESERVE * self.budget)
        narrow = min(self.preset.widths)
        shapes = [Shape.of(layer) for layer in self.graph.layers.values()]
        wanted = sum(share * s.outs * half_cost(s, narrow) + SEGMENT_JSON for s in shapes)
        return int(min(wanted, _RANDOM_RESERVE * self.budget))

    def room(self, chosen: Chosen) -> int:
        """Bytes left by a file with nearest codes, as large as its numbers may make it."""
        states = {
            name: replace(state, bias=_some(state)).narrow()
            for name, state in chosen.initial(self.graph).items()
        }
        program = converted(self.graph.model, states, self.ranges, mixed=False)
        return self.budget - self.reserve() - largest_file_size(program)

    def refused(self, missing: float, what: str) -> Refused:
        """The error of a budget that cannot be kept."""
        least = self.budget + missing
        part = math.ceil(least / self.checkpoint * 1e4) / 1e4
        return Refused(
            f"size: found {self.budget} bytes for the file; accepted is at least {part:.4f} of "
            f"the checkpoint, {what}",
            least,
        )


def _some(state: State) -> Tensor | None:
    """Biases as they will be stored: a file leaves out all-zero ones, which learning changes."""
    if state.bias is None:
        return None
    bias = torch.where(state.bias == 0, 1e-3, state.bias)
    return bias if state.keep_out is None else bias * state.keep_out


def choose_options(task: Task, prune: bool, bars: Bars) -> Chosen:
    """The widths and kept channels with the least cost in the budget.

    Raises:
        ValueError: a budget that cannot be kept, with the least that can.
    """
    try:
        return _chosen(task, prune, bars)
    except ValueError:
        if not task.reserve():
            raise
    # the smallest files have no room for restored channels
    return _chosen(replace(task, restoring=False), prune, bars)


def _chosen(task: Task, prune: bool, bars: Bars) -> Chosen:
    if task.preset.objective == "uniform":
        return _uniform(task)

    measured: dict[str, dict[tuple[int, bool], float]] = {}

    def without(pruning: str, below: float = math.inf) -> tuple[Chosen, float]:
        return _solved(task, None, [], pruning, bars, measured, below)

    if not prune:
        return without("none: not asked for")[0]
    try:
        channels = redundancy.channels_of(task.graph, task.images[:1])
    except ValueError as error:
        return without(f"none: {error}")[0]
    with bars.task("redundancy", len(channels.groups)) as step:
        found = redundancy.find(task.graph, channels, task.statistics, task.images, progress=step)
    groups, _ = redundancy.compatible(channels, found, task.graph.layers)
    pruning = f"{len(groups)} of {len(channels.groups)} groups of channels may lose some"
    try:
        best = _solved(task, channels, groups, pruning, bars, measured)
    except Refused as error:  # without pruned channels, fewer bytes may lie beside the layers
        try:
            return without(f"none, which takes fewer bytes; {pruning}")[0]
        except Refused as other:
            raise min(error, other, key=lambda one: one.least) from None
    if best[0].masks:
        try:
            whole = without(f"none, which costs less; {pruning}", best[1])
        except ValueError:  # too large, or no better
            return best[0]
        best = min(best, whole, key=lambda result: result[1])
    return best[0]


def _solved(
    task: Task,
    channels: Channels | None,
    groups: list[Redundancy],
    pruning: str,
    bars: Bars,
    measured: dict[str, dict[tuple[int, bool], float]],
    below: float = math.inf,
) -> tuple[Chosen, float]:
    """The best choice with some groups of channels, and its cost.

    `measured` keeps what whole layers cost. Raises `ValueError` where none costs less than `below`.
    """
    graph, statistics = task.graph, task.statistics
    touched: dict[str, tuple[int, ...]] = {}
    if channels is not None:
        _, touched = redundancy.compatible(channels, groups, graph.layers)
    options: dict[str, list[Option]] = {}
    acts: dict[str, list[ActOption]] = {}
    with bars.task("allocation", len(graph.layers)) as step:
        for name, layer in graph.layers.items():
            latency = task.table.of_width(layer)
            if task.preset.objective == "score":
                costs = distortion.scored(layer, statistics[name], task.preset.widths)
                options[name] = distortion.options(layer, costs, latency)
            elif channels is None:
                if name not in measured:
                    measured[name] = distortion.measured(
                        layer, statistics[name], task.preset.widths
                    )
                options[name] = distortion.options(layer, measured[name], latency)
            else:
                rounding = distortion.rounding(layer, statistics[name], task.preset.widths)
                measured[name] = distortion.summed(rounding)
                kept = redundancy.combinations(layer, channels, groups, touched[name])
                options[name] = distortion.pruned_options(layer, rounding, kept, latency)
            if task.preset.act_average is not None:
                acts[name] = distortion.act_options(layer, statistics[name])
            step(1)
    volume = None
    if task.preset.act_average is not None:
        values = sum(found[-1].volume / found[-1].bits for found in acts.values())
        volume = task.preset.act_average * values
    costs_of_groups = [[_FOLDING * cost for cost in one.costs] for one in groups]
    limit = task.table.room(task.latency)
    time = sum(max(option.latency for option in found) for found in options.values())
    price = task.preset.speed * task.spread / max(time, 1e-9)
    problem = Problem(options, 0.0, costs_of_groups, limit, price, acts, volume)

    def chosen_of(allocation: Allocation) -> Chosen:
        weights: dict[str, Tensor] = {}
        masks: dict[str, Masks] = {}
        if channels is not None:
            weights, masks = redundancy.pruned(
                graph, channels, statistics, groups, allocation.levels
            )
        return Chosen(allocation.options, allocation.acts, weights, masks, pruning)

    if below < math.inf and task.preset.exact:  # if the file had nothing beside the layers
        whole = task.budget - task.reserve()
        if solve(replace(problem, budget=float(whole))).cost >= below:
            raise ValueError(f"size: found no allocation that costs less than {below}")
    return _within_budget(task, problem, chosen_of)


def _within_budget(
    task: Task, problem: Problem, chosen_of: Callable[[Allocation], Chosen]
) -> tuple[Chosen, float]:
    """Solves, packs, and tightens by what the file has beside the layers' tensors."""
    least = sum(min(o.size for o in found) for found in problem.layers.values())
    layers = max(0.93 * task.budget - 40.0 * len(problem.layers), float(least))
    kept: tuple[Chosen, float] | None = None
    solver = solve if task.preset.exact else greedy
    for _ in range(_TRIES):
        allocation = solver(replace(problem, budget=layers))
        chosen = chosen_of(allocation)
        left = task.room(chosen)
        room = float(allocation.size + left)
        if left >= 0:
            better = kept is None or allocation.cost < kept[1]
            if better:
                kept = chosen, allocation.cost
            if not better or room - layers < 0.002 * task.budget:
                break
        elif layers <= least and kept is None:
            raise task.refused(-left, "at the narrowest widths")
        layers = max(room, float(least))
    if kept is None:
        raise task.refused(0.01 * task.budget, f"or what {_TRIES} tries have not found")
    return kept


def _uniform(task: Task) -> Chosen:
    """The widest width, the same for all layers but the ends, whose file fits."""
    names = list(task.graph.layers)
    left = 0
    for bits in sorted(task.preset.widths, reverse=True):
        options = {}
        for name, layer in task.graph.layers.items():
            own = bits
            if task.preset.ends is not None and name in (names[0], names[-1]):
                own = task.preset.ends
            options[name] = Option(own, False, payload(Shape.of(layer), own), 0.0)
        chosen = Chosen(options, {}, {}, {}, "none: not asked for")
        left = task.room(chosen)
        if left >= 0:
            return chosen
    raise task.refused(-left, f"at {min(task.preset.widths)} bits everywhere")
