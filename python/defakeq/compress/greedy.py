"""Allocation without an integer programme, to see what solving exactly is worth."""

from __future__ import annotations

from collections.abc import Iterator

from defakeq.compress.allocate import Allocation, Option, Problem


def greedy(problem: Problem) -> Allocation:
    """Narrows, step by step, what costs least for the bytes that it saves.

    Begins with the cheapest option of every whole layer. A step gives a layer another option, or a
    group its next level, its layers keeping their widths. Once the bytes fit, steps that lower the
    cost within them are taken.

    Args:
        problem: layers and groups; only its budget of bytes is known here.

    Raises:
        ValueError: a limit of latency or of inputs, or a budget that no step reaches.
    """
    if problem.latency is not None or problem.volume is not None:
        raise ValueError("exact: found False with a limit of latency or inputs; accepted is True")
    state = _State(problem)
    while True:
        over = state.size > problem.budget
        best: tuple[float, dict[str, Option], dict[int, int]] | None = None
        for options, levels in state.steps():
            cost, size = state.change(options, levels)
            if over and size < 0:
                worth = cost / -size
            elif not over and cost < 0 and state.size + size <= problem.budget:
                worth = cost / max(size, 1.0)
            else:
                continue
            if best is None or worth < best[0]:
                best = worth, options, levels
        if best is None:
            break
        state.take(best[1], best[2])
    if state.size > problem.budget:
        raise ValueError(
            f"budget: found {problem.budget:.0f} bytes for the layers; accepted is at least "
            f"{state.size}, which single steps reach"
        )
    chosen = tuple(state.levels[g] for g in range(len(problem.groups)))
    cost = sum(map(state.cost, state.options.values()))
    cost += sum(problem.groups[g][level] for g, level in enumerate(chosen))
    return Allocation(state.options, chosen, {}, cost, state.size)


class _State:
    """The options and levels chosen so far."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.levels = dict.fromkeys(range(len(problem.groups)), 0)
        self.touching: dict[int, list[str]] = {g: [] for g in self.levels}
        for name, options in problem.layers.items():
            for group in options[0].levels:
                self.touching[group].append(name)
        self.at: dict[tuple[str, tuple[int, ...]], list[Option]] = {}
        for name, options in problem.layers.items():
            for option in options:
                self.at.setdefault((name, tuple(option.levels.values())), []).append(option)
        self.options = {name: min(self._own(name), key=self.cost) for name in problem.layers}
        self.size = sum(option.size for option in self.options.values())

    def cost(self, option: Option) -> float:
        """What an option costs, with its time."""
        return option.distortion + self.problem.price * option.latency

    def _own(self, name: str) -> list[Option]:
        """A layer's options at the present levels."""
        groups = self.problem.layers[name][0].levels
        return self.at[name, tuple(self.levels[g] for g in groups)]

    def steps(self) -> Iterator[tuple[dict[str, Option], dict[int, int]]]:
        """What may change next."""
        for name, present in self.options.items():
            for option in self._own(name):
                if option is not present:
                    yield {name: option}, {}
        for group, level in self.levels.items():
            if level + 1 < len(self.problem.groups[group]):
                yield self._moved(group, level + 1), {group: level + 1}

    def _moved(self, group: int, level: int) -> dict[str, Option]:
        moved = {}
        for name in self.touching[group]:
            old = self.options[name]
            levels = tuple({**old.levels, group: level}.values())
            moved[name] = next(
                option
                for option in self.at[name, levels]
                if (option.bits, option.symmetric) == (old.bits, old.symmetric)
            )
        return moved

    def change(self, options: dict[str, Option], levels: dict[int, int]) -> tuple[float, int]:
        """What a step adds to the cost and to the bytes."""
        cost, size = 0.0, 0
        for name, option in options.items():
            old = self.options[name]
            cost += self.cost(option) - self.cost(old)
            size += option.size - old.size
        for group, level in levels.items():
            costs = self.problem.groups[group]
            cost += costs[level] - costs[self.levels[group]]
        return cost, size

    def take(self, options: dict[str, Option], levels: dict[int, int]) -> None:
        """Takes a step."""
        self.size += self.change(options, levels)[1]
        self.options.update(options)
        self.levels.update(levels)
