"""The stages in order: `compress`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from defakeq.compress import distortion, redundancy, report
from defakeq.compress.allocate import Allocation, Option, Problem, solve
from defakeq.compress.bars import Bars
from defakeq.compress.budget import check_size, converted, exported, file_size
from defakeq.compress.calibration import Calibration
from defakeq.compress.graph import Graph
from defakeq.compress.latency import LatencyTable
from defakeq.compress.presets import Preset, preset
from defakeq.compress.quantized import State
from defakeq.compress.reconstruct import BlockResult, initial, reconstruct
from defakeq.compress.redundancy import Masks, Redundancy
from defakeq.compress.sizes import SEGMENT_JSON, Shape, checkpoint_bytes, half_cost, payload
from defakeq.compress.statistics import LayerStatistics, collect
from defakeq.compress.veft import align, choose, measured_drift
from defakeq.compress.workdir import WorkDir, fingerprint
from defakeq.lower import ProgramModule
from defakeq.plan import QuantPlan
from defakeq_kernels import dfq

_VERSION = 1
_RANGE_IMAGES = 64  # of the ranges of a program's values
_TRIES = 6
_FOLDING = 8.0  # reconstruction takes back most of a rounding error, and little of a folding error
_RESERVE = 0.01  # of the file, for restored channels
_SUMMARY = 600  # bytes of the summary that a file carries


@dataclass
class Compressed:
    """What `compress` returns.

    Attributes:
        model: the program with half-precision channels where restoring was asked for.
        integer: the program without them; the same as `model` where there are none.
        float_model: the float model whose weights lie on the plan's grids.
        plan: `convert(float_model, images, plan, images, backend="program")` gives `model`.
        report: what was done, of JSON types.
    """

    model: ProgramModule
    integer: ProgramModule
    float_model: nn.Module
    plan: QuantPlan
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str], integer_only: bool = False) -> int:
        """Writes a ``.dfq`` file with the report in it; returns its bytes.

        Raises:
            OSError: it cannot be written; nothing of it stays then.
        """
        tensors, network = (self.integer if integer_only else self.model).file()
        data = dfq.dumps(tensors, network)
        dfq.write(path, tensors, network)
        return len(data)


def compress(
    model: nn.Module,
    calibration: Any,
    *,
    size: float = 0.10,
    latency: float | None = None,
    preset: str | Preset = "default",
    prune: bool = True,
    veft: bool = True,
    seed: int = 0,
    progress: bool = True,
    latency_table: Mapping[str, Any] | None = None,
    work: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> Compressed:
    """Compresses a detector to a part of its float32 checkpoint.

    Args:
        model: the float model of one image tensor, whose first output is the logit of "forged", or
            logits with "forged" last. Left as it is.
        calibration: float32 images [N, C, H, W] as the model takes them, (images, labels) with 0
            for real and 1 for forged, or batches of either. 256 images are a good number.
        size: bytes of the file at most, as a part of four bytes for each parameter and buffer.
        latency: microseconds of an image at most; needs `latency_table`.
        preset: "default", "paper", or a `Preset`.
        prune: whether redundant channels may go, where the preset lets them.
        veft: whether the model is fine-tuned, and some channels restored to half precision.
        seed: of every choice; the same seed and machine give the same file.
        progress: whether bars are shown.
        latency_table: microseconds by layer and width, of `defakeq bench` on the target.
        work: a folder for finished stages, from which a killed run continues; None: none.
        device: for the optimization; None: CUDA where there is one.

    Raises:
        ValueError: a wrong argument, a budget that cannot be kept, or a model that cannot be
            captured or lowered; the message says which and what is accepted.
        OSError: the work folder cannot be written; finished stages stay.
    """
    run = _Run(model, calibration, size, latency, preset, prune, veft, seed, progress)
    return run.all(latency_table, work, device)


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


class _Run:
    def __init__(
        self,
        model: nn.Module,
        calibration: Any,
        size: float,
        latency: float | None,
        chosen: str | Preset,
        prune: bool,
        veft: bool,
        seed: int,
        progress: bool,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model: found {type(model).__name__}; accepted is a torch module")
        self.size = check_size(size)
        self.preset = preset(chosen) if isinstance(chosen, str) else chosen
        self.data = Calibration.of(calibration)
        self.source, self.seed = model, seed
        self.latency, self.prune, self.veft = latency, prune, veft
        self.budget = int(self.size * checkpoint_bytes(model))
        self.bars = Bars(progress)
        self.facts: dict[str, Any] = {}

    def all(
        self,
        table: Mapping[str, Any] | None,
        work: str | os.PathLike[str] | None,
        device: str | torch.device | None,
    ) -> Compressed:
        """Runs what is not finished."""
        self.table = LatencyTable.of(table, self.latency)
        settings = [
            _VERSION, self.size, self.latency, self.preset.to_dict(), self.prune, self.veft,
            self.seed, table,
        ]  # fmt: skip
        key = fingerprint(self.source, [self.data.images, self.data.labels], settings)
        self.work = WorkDir(work, key)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.graph = Graph(self.source, self.data.images).to(where)
        self.images = self.data.images.to(where)
        with self.bars:
            statistics = self._timed("statistics", self._statistics)
            chosen = self._timed("allocation", lambda: self._allocate(statistics))
            states, blocks = self._timed("reconstruction", lambda: self._rebuild(chosen))
            if self.veft:
                states = self._timed("alignment", lambda: self._align(states))
            return self._timed("files", lambda: self._finish(statistics, chosen, states, blocks))

    def _timed(self, name: str, run: Any) -> Any:
        begin = time.monotonic()
        found = run()
        self.facts.setdefault("seconds", {})[name] = round(time.monotonic() - begin, 2)
        return found

    def _statistics(self) -> dict[str, LayerStatistics]:
        kept = self.work.load("statistics")
        if kept is not None:
            return {name: LayerStatistics(**values) for name, values in kept.items()}
        data = Calibration(self.images, self.data.labels)
        with self.bars.task("statistics", len(self.images)) as step:
            found = collect(self.graph, data, self.seed, step)
        self.work.save("statistics", {name: one.to_dict() for name, one in found.items()})
        return found

    def _allocate(self, statistics: dict[str, LayerStatistics]) -> Chosen:
        kept = self.work.load("allocation")
        if kept is None:
            kept = self._chosen(statistics).to_dict()
            self.work.save("allocation", kept)
        chosen = Chosen.from_dict(kept)
        self.facts["pruning"] = chosen.pruning
        return chosen

    def _chosen(self, statistics: dict[str, LayerStatistics]) -> Chosen:
        if self.preset.objective == "uniform":
            return self._uniform()
        groups: list[Redundancy] = []
        channels = None
        pruning = "none: not asked for"
        if self.prune and self.preset.prune:
            try:
                channels = redundancy.channels_of(self.graph, self.images[:1])
            except ValueError as error:
                pruning = f"none: {error}"
        if channels is not None:
            with self.bars.task("redundancy", len(channels.groups)) as step:
                found = redundancy.find(
                    self.graph, channels, statistics, self.images, progress=step
                )
            groups, touched = redundancy.compatible(channels, found, self.graph.layers)
            pruning = f"{len(groups)} of {len(channels.groups)} groups of channels may lose some"
        options: dict[str, list[Option]] = {}
        with self.bars.task("allocation", len(self.graph.layers)) as step:
            for name, layer in self.graph.layers.items():
                latency = self.table.of_name(name)
                if self.preset.objective == "score":
                    costs = distortion.scored(layer, statistics[name], self.preset.widths)
                    options[name] = distortion.options(layer, costs, latency)
                elif channels is None:
                    costs = distortion.measured(layer, statistics[name], self.preset.widths)
                    options[name] = distortion.options(layer, costs, latency)
                else:
                    rounding = distortion.rounding(layer, statistics[name], self.preset.widths)
                    kept = redundancy.combinations(layer, channels, groups, touched[name])
                    options[name] = distortion.pruned_options(layer, rounding, kept, latency)
                step(1)
            group_costs = [[_FOLDING * cost for cost in one.costs] for one in groups]
            acts = {}
            if self.preset.act_average is not None:
                acts = {
                    name: distortion.act_options(layer, statistics[name])
                    for name, layer in self.graph.layers.items()
                }
            volume = None
            if self.preset.act_average is not None:
                values = sum(found[-1].volume / found[-1].bits for found in acts.values())
                volume = self.preset.act_average * values
            problem = Problem(
                options, 0.0, group_costs, self.table.room(self.latency), acts, volume
            )

            def initial_of(allocation: Allocation) -> Chosen:
                weights: dict[str, Tensor] = {}
                masks: dict[str, Masks] = {}
                if channels is not None:
                    weights, masks = redundancy.pruned(
                        self.graph, channels, statistics, groups, allocation.levels
                    )
                return Chosen(allocation.options, allocation.acts, weights, masks, pruning)

            return self._within_budget(problem, initial_of)

    def _reserve(self) -> int:
        """Bytes kept for the restored channels."""
        share = self.preset.restored
        if not self.veft or not share:
            return 0
        if self.preset.choice == "recovery":
            return int(_RESERVE * self.budget)
        narrow = min(self.preset.widths)
        shapes = [Shape.of(layer) for layer in self.graph.layers.values()]
        return int(sum(share * s.outs * half_cost(s, narrow) + SEGMENT_JSON for s in shapes))

    def _within_budget(self, problem: Problem, chosen_of: Callable[[Allocation], Chosen]) -> Chosen:
        """Solves, packs, and tightens by what the file has beside the layers' tensors."""
        options = problem.layers
        budget = self.budget - self._reserve() - _SUMMARY
        least = sum(min(o.size for o in found) for found in options.values())
        layers = max(0.93 * budget - 90.0 * len(options), float(least))
        kept: Chosen | None = None
        for _ in range(_TRIES):
            allocation = solve(replace(problem, budget=layers))
            chosen = chosen_of(allocation)
            program = converted(
                self.graph.model, chosen.initial(self.graph), self._ranges(2), mixed=False
            )
            _, most = file_size(program)
            room = float(budget - most + allocation.size)
            if most <= budget:
                kept = chosen
                if room - layers < 0.002 * budget:
                    break
            elif kept is not None:
                break
            elif room < least:
                raise ValueError(
                    f"size: found {self.size}, {self.budget} bytes; accepted is at least "
                    f"{self._least(least - room):.4f}, at the narrowest widths"
                )
            layers = room
        if kept is None:
            raise RuntimeError(f"size: found no file of {self.budget} bytes in {_TRIES} tries")
        return kept

    def _uniform(self) -> Chosen:
        """The widest width, the same for all layers but the ends, whose file fits."""
        names = list(self.graph.layers)
        for bits in sorted(self.preset.widths, reverse=True):
            options = {}
            for name, layer in self.graph.layers.items():
                own = bits
                if self.preset.ends is not None and name in (names[0], names[-1]):
                    own = self.preset.ends
                options[name] = Option(own, False, payload(Shape.of(layer), own), 0.0)
            chosen = Chosen(options, {}, {}, {}, "none: not asked for")
            states = chosen.initial(self.graph)
            program = converted(self.graph.model, states, self._ranges(2), mixed=False)
            most = file_size(program)[1] + _SUMMARY + self._reserve()
            if most <= self.budget:
                return chosen
        raise ValueError(
            f"size: found {self.size}, {self.budget} bytes; accepted is at least "
            f"{self._least(most - self.budget):.4f}, at {min(self.preset.widths)} bits everywhere"
        )

    def _least(self, missing: float) -> float:
        """The smallest part of the checkpoint that can be kept."""
        return math.ceil((self.budget + missing) / checkpoint_bytes(self.source) * 1e4) / 1e4

    def _ranges(self, count: int = _RANGE_IMAGES) -> Tensor:
        """The images from which a program's ranges are taken."""
        return self.data.images[:count]

    def _rebuild(self, chosen: Chosen) -> tuple[dict[str, State], list[BlockResult]]:
        states = chosen.initial(self.graph)

        def load(number: int) -> BlockResult | None:
            kept = self.work.load(f"block{number:03}")
            if kept is None:
                return None
            own = {name: State.from_dict(values) for name, values in kept["states"].items()}
            return BlockResult(kept["name"], own, kept["errors"])

        def save(number: int, result: BlockResult) -> None:
            value = {"name": result.name, "states": _dicts(result.states), "errors": result.errors}
            self.work.save(f"block{number:03}", value)

        with self.bars.task("reconstruction", len(self.graph.blocks)) as step:
            blocks = reconstruct(
                self.graph, self.images, states, self.preset.reconstruction, self.seed,
                load, save, step,
            )  # fmt: skip
        return states, blocks

    def _align(self, states: dict[str, State]) -> dict[str, State]:
        kept = self.work.load("alignment")
        if kept is None:
            settings = self.preset.alignment
            with self.bars.task("alignment", settings.steps) as step:
                tuned, before, after = align(
                    self.graph, self.images, states, settings, self.seed, step
                )
            drifts = {"before": dict(vars(before)), "after": dict(vars(after))}
            kept = {"states": _dicts(tuned), "drift": drifts}
            self.work.save("alignment", kept)
        self.facts["alignment"] = kept["drift"]
        return {name: State.from_dict(values) for name, values in kept["states"].items()}

    def _restore(
        self, statistics: dict[str, LayerStatistics], states: dict[str, State], room: int
    ) -> dict[str, State]:
        """States with the half-precision channels; without, where they recover nothing."""
        share = self.preset.restored if self.veft else 0.0
        drifts = [measured_drift(self.graph, self.images, states, mixed=False)]
        while share * sum(len(state.codes) for state in states.values()) >= 0.5:
            chosen = choose(
                self.graph, states, statistics, share, room, self.preset.choice, self.seed
            )
            drifts.append(measured_drift(self.graph, self.images, chosen, mixed=True))
            better = drifts[-1].total < drifts[0].total
            if better or self.preset.choice == "random":
                self.facts["drift"] = {
                    "integer": dict(vars(drifts[0])),
                    "mixed": dict(vars(drifts[-1])),
                }
                return chosen
            share /= 2
        self.facts["drift"] = {"integer": dict(vars(drifts[0]))}
        return states

    def _finish(
        self,
        statistics: dict[str, LayerStatistics],
        chosen: Chosen,
        states: dict[str, State],
        blocks: list[BlockResult],
    ) -> Compressed:
        images = self._ranges()
        integer = converted(self.graph.model, states, images, mixed=False)
        room = self.budget - _SUMMARY - file_size(integer)[1]
        states = self._restore(statistics, states, room)
        mixed = any(state.half is not None for state in states.values())
        own, plan = exported(self.graph.model, states, mixed)
        model = converted(self.graph.model, states, images, mixed=True) if mixed else integer
        facts = {
            "version": _VERSION,
            "preset": self.preset.to_dict(),
            "asked": self.size,
            "budget": self.budget,
            "checkpoint": checkpoint_bytes(self.source),
            "seed": self.seed,
            **self.facts,
        }
        found = Compressed(model, integer, own, plan)
        found.report = report.made(
            self.graph,
            statistics,
            chosen.options,
            states,
            blocks,
            self.data,
            found,
            self.source,
            facts,
        )
        sizes = {}
        for key, program in (("integer_size", integer), ("size", model)):
            report.carry(program, found.report)
            sizes[key] = file_size(program)[0]
            if sizes[key] > self.budget:
                raise RuntimeError(
                    f"size: found a file of {sizes[key]} bytes; asked was {self.budget}"
                )
        part = sizes["size"] / checkpoint_bytes(self.source)
        found.report = {**sizes, "part": part, **found.report}
        return found


def _dicts(states: Mapping[str, State]) -> dict[str, Any]:
    return {name: state.to_dict() for name, state in states.items()}
