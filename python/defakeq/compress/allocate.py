"""Stage 3, HAQ: widths and kept channels under budgets, as an exact integer programme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

_GAP = 1e-6


@dataclass(frozen=True)
class Option:
    """One way to store a layer.

    Attributes:
        bits: of the weights.
        symmetric: without zero points.
        size: bytes in the file.
        distortion: what it is expected to cost, in the objective's unit.
        latency: microseconds, or multiply-adds where no table is given.
        levels: the level that it stands for of each group of channels that the layer touches.
    """

    bits: int
    symmetric: bool
    size: int
    distortion: float
    latency: float = 0.0
    levels: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ActOption:
    """One width of a layer's input: `volume` is its bits times its values."""

    bits: int
    distortion: float
    volume: float


@dataclass(frozen=True)
class Problem:
    """What is to be chosen.

    Attributes:
        layers: the options of each layer; one is chosen.
        budget: bytes of all chosen options.
        groups: of each group of channels, the distortion of each level; one is chosen.
        latency: microseconds of all chosen options; None: no limit.
        price: the distortion that a unit of latency is worth.
        acts: the options of each layer's input; may be empty.
        volume: limit of the chosen inputs' bits; None: no limit.
    """

    layers: Mapping[str, Sequence[Option]]
    budget: float
    groups: Sequence[Sequence[float]] = ()
    latency: float | None = None
    price: float = 0.0
    acts: Mapping[str, Sequence[ActOption]] = field(default_factory=dict)
    volume: float | None = None


@dataclass(frozen=True)
class Allocation:
    """The solution: an option for each layer, a level for each group, a width for each input.

    `cost` is the distortion and the price of the latency.
    """

    options: dict[str, Option]
    levels: tuple[int, ...]
    acts: dict[str, int]
    cost: float
    size: int


def solve(problem: Problem, time_limit: float = 60.0) -> Allocation:
    """The allocation with the least cost.

    Args:
        problem: layers, groups and budgets.
        time_limit: seconds, after which the best allocation found is taken.

    Raises:
        ValueError: a budget that no allocation keeps, with the least that is possible.
    """
    _check(problem)
    columns = _Columns(problem)
    for name, options in problem.layers.items():
        for option in options:
            columns.add(("layer", name), option.distortion + problem.price * option.latency)
    for g, level_costs in enumerate(problem.groups):
        for cost in level_costs:
            columns.add(("group", g), cost)
    for name, acts in problem.acts.items():
        for act in acts:
            columns.add(("act", name), act.distortion)
    costs = np.asarray(columns.cost)
    unit = max(float(np.abs(costs).max()), 1e-300)
    constraints = columns.constraints()
    found = milp(
        costs / unit,
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": _GAP, "time_limit": time_limit},
    )
    if found.x is None:
        raise ValueError(
            f"budget: found {problem.budget:.0f} bytes for the layers"
            + ("" if problem.latency is None else f" and {problem.latency:.0f} microseconds")
            + f"; accepted is what some choice of widths keeps, at least {_least(problem)} bytes"
        )
    return columns.solution(found.x > 0.5)


def _least(problem: Problem) -> int:
    return sum(min(option.size for option in options) for options in problem.layers.values())


def _check(problem: Problem) -> None:
    least = _least(problem)
    if least > problem.budget:
        raise ValueError(
            f"budget: found {problem.budget:.0f} bytes for the layers; accepted is at least {least}"
        )


class _Columns:
    """Binary variables by what they choose for."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.cost: list[float] = []
        self.of: dict[tuple[str, Any], list[int]] = {}

    def add(self, what: tuple[str, Any], cost: float) -> None:
        self.of.setdefault(what, []).append(len(self.cost))
        self.cost.append(float(cost))

    def constraints(self) -> list[LinearConstraint]:
        count = len(self.cost)
        data: list[float] = []
        rows: list[int] = []
        cols: list[int] = []
        low: list[float] = []
        high: list[float] = []

        def add(terms: list[tuple[int, float]], least: float, most: float) -> None:
            for column, value in terms:
                rows.append(len(low))
                cols.append(column)
                data.append(value)
            low.append(least)
            high.append(most)

        problem = self.problem
        for members in self.of.values():
            add([(c, 1.0) for c in members], 1.0, 1.0)
        sizes = self._terms("size")
        unit = max(max((value for _, value in sizes), default=1.0), 1.0)
        add([(c, v / unit) for c, v in sizes], 0.0, problem.budget / unit)
        if problem.latency is not None:
            add(self._terms("latency"), 0.0, problem.latency)
        if problem.volume is not None:
            volumes = [
                (c, act.volume / problem.volume)
                for name, acts in problem.acts.items()
                for c, act in zip(self.of["act", name], acts, strict=True)
            ]
            add(volumes, 0.0, 1.0)
        for name, options in problem.layers.items():
            touched = sorted({group for option in options for group in option.levels})
            for group in touched:
                for level, column in enumerate(self.of["group", group]):
                    terms = [
                        (c, 1.0)
                        for c, option in zip(self.of["layer", name], options, strict=True)
                        if option.levels.get(group) == level
                    ]
                    add([*terms, (column, -1.0)], 0.0, 0.0)
        matrix = csr_matrix((data, (rows, cols)), shape=(len(low), count))
        return [LinearConstraint(matrix, np.asarray(low), np.asarray(high))]

    def _terms(self, what: str) -> list[tuple[int, float]]:
        return [
            (c, float(getattr(option, what)))
            for name, options in self.problem.layers.items()
            for c, option in zip(self.of["layer", name], options, strict=True)
        ]

    def solution(self, chosen: Any) -> Allocation:
        def picked(kind: str, key: Any) -> int:
            return next(i for i, c in enumerate(self.of[kind, key]) if chosen[c])

        problem = self.problem
        options = {name: found[picked("layer", name)] for name, found in problem.layers.items()}
        levels = tuple(picked("group", g) for g in range(len(problem.groups)))
        acts = {name: found[picked("act", name)].bits for name, found in problem.acts.items()}
        return Allocation(
            options,
            levels,
            acts,
            float(np.asarray(self.cost)[chosen].sum()),
            sum(option.size for option in options.values()),
        )
