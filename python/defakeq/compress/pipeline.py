"""The stages in order: `compress`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from defakeq.compress import report, summary
from defakeq.compress.bars import Bars
from defakeq.compress.budget import check_size, converted, exported, file_size, largest_file_size
from defakeq.compress.calibration import Calibration
from defakeq.compress.checks import (
    check_device,
    check_lowered,
    check_preset,
    check_seed,
    check_taken,
)
from defakeq.compress.choice import Chosen, Task, choose_options
from defakeq.compress.distributed import part, ranks, shared
from defakeq.compress.graph import Graph, margin
from defakeq.compress.latency import LatencyTable, microseconds
from defakeq.compress.presets import Preset
from defakeq.compress.quantized import State
from defakeq.compress.reconstruct import BlockResult, reconstruct
from defakeq.compress.sizes import checkpoint_bytes
from defakeq.compress.statistics import LayerStatistics, collect
from defakeq.compress.veft import Measure, align, choose
from defakeq.compress.workdir import WorkDir, fingerprint
from defakeq.lower import ProgramModule
from defakeq.plan import QuantPlan
from defakeq_kernels import dfq

_VERSION = 2
_TRIES = 3  # of restored channels that fit
_RANGE_IMAGES = 256  # of the ranges of a program's values


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
        preset: "default", "quick" (the same with few steps of tuning), "paper", or a `Preset`.
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
        self.preset = check_preset(chosen)
        self.data = Calibration.of(calibration)
        self.source, self.seed = model, check_seed(seed)
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
        where = check_device(device)
        settings = [
            _VERSION, self.size, self.latency, self.preset.to_dict(), self.prune, self.veft,
            self.seed, table,
        ]  # fmt: skip
        key = fingerprint(self.source, [self.data.images, self.data.labels], settings)
        self.work = WorkDir(work, key)
        images, labels = self.data.images, self.data.labels
        if labels is not None and ranks().count > 1:  # every process gets both classes
            order = labels.argsort(stable=True)
            images, labels = images[order], labels[order]
        images, self.labels = part(images), part(labels)
        try:
            self.graph = Graph(self.source, images).to(where)
        except Exception:
            check_taken(self.source, images[:2])
            raise
        self.images = images.to(where)
        check_lowered(self.graph, self.images)
        with self.bars:
            statistics = self._timed("statistics", self._statistics)
            chosen = self._timed("allocation", lambda: self._allocate(statistics))
            for one in statistics.values():  # what is not read any more: a gigabyte or two
                one.second = torch.zeros(0, 0)
                one.fisher = None if one.fisher is None else one.fisher.mean()
            states, blocks = self._timed("reconstruction", lambda: self._rebuild(chosen))
            if self.veft:
                states = self._timed("alignment", lambda: self._align(states))
            return self._timed("files", lambda: self._finish(statistics, chosen, states, blocks))

    def _timed(self, name: str, run: Any) -> Any:
        begin = time.monotonic(), time.process_time()
        found = run()
        for key, now, then in zip(
            ("seconds", "processor_seconds"),
            (time.monotonic(), time.process_time()),
            begin,
            strict=True,
        ):
            self.facts.setdefault(key, {})[name] = round(now - then, 2)
        return found

    def _statistics(self) -> dict[str, LayerStatistics]:
        kept = self.work.load("statistics")
        if kept is not None:
            return {name: LayerStatistics(**values) for name, values in kept.items()}
        data = Calibration(self.images, self.labels)
        with self.bars.task("statistics", len(self.images)) as step:
            found = collect(self.graph, data, self.seed, step)
        self.work.save("statistics", {name: one.to_dict() for name, one in found.items()})
        return found

    def _allocate(self, statistics: dict[str, LayerStatistics]) -> Chosen:
        kept = self.work.load("allocation")
        if kept is None:
            kept = shared(lambda: self._chosen(statistics).to_dict())
            self.work.save("allocation", kept)
        chosen = Chosen.from_dict(kept)
        self.facts["pruning"] = chosen.pruning
        return chosen

    def _chosen(self, statistics: dict[str, LayerStatistics]) -> Chosen:
        task = Task(
            self.graph, statistics, self.images, self._ranges(2), self.preset,
            self.budget, checkpoint_bytes(self.source), self.veft, self.table,
            self.latency, self._spread(),
        )  # fmt: skip
        return choose_options(task, self.prune and self.preset.prune, self.bars)

    def _spread(self) -> float:
        """The variance of the float model's margin."""
        with torch.no_grad():
            margins = [margin(self.graph.forward(x)[1]) for x in self.graph.batches(self.images)]
        return float(torch.cat(margins).var(correction=0))

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
        return states, [replace(block, states={}) for block in blocks]  # alignment changes them

    def _align(self, states: dict[str, State]) -> dict[str, State]:
        kept = self.work.load("alignment")
        if kept is None:
            settings = self.preset.alignment
            with self.bars.task("alignment", settings.steps_of(self.graph)) as step:
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
        measure = Measure(self.graph, self.images, states)
        drifts = [measure.of(states, mixed=False)]
        while share * sum(len(state.codes) for state in states.values()) >= 0.5:
            chosen = choose(
                self.graph, states, statistics, share, room, self.preset.choice, self.seed
            )
            drifts.append(measure.of(chosen, mixed=True))
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

    def _mixed(
        self,
        statistics: dict[str, LayerStatistics],
        states: dict[str, State],
        integer: ProgramModule,
        images: Tensor,
    ) -> tuple[dict[str, State], ProgramModule]:
        """The states and the program with the half-precision channels that the budget allows."""
        room = self.budget - largest_file_size(integer)
        for _ in range(_TRIES):
            found = self._restore(statistics, states, room)
            if all(state.half is None for state in found.values()):
                break
            model = converted(self.graph.model, found, images, mixed=True)
            over = largest_file_size(model) - self.budget
            if over <= 0:
                return found, model
            room -= over  # what the header takes beside the channels is known only now
        self.facts["drift"].pop("mixed", None)
        return states, integer

    def _finish(
        self,
        statistics: dict[str, LayerStatistics],
        chosen: Chosen,
        states: dict[str, State],
        blocks: list[BlockResult],
    ) -> Compressed:
        states = {name: state.narrow() for name, state in states.items()}
        images = self._ranges()
        # every process makes the same file; the caller writes the first one's
        integer = converted(self.graph.model, states, images, mixed=False)
        states, model = self._mixed(statistics, states, integer, images)
        own, plan = exported(self.graph.model, states, model is not integer)
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
            summary.carry(program, found.report)
            sizes[key] = file_size(program)
            if sizes[key] > self.budget:  # by a few bytes, which the summary takes
                summary.leave(program)
                sizes[key] = file_size(program)
            if sizes[key] > self.budget:
                raise RuntimeError(
                    f"size: found a file of {sizes[key]} bytes; asked was {self.budget}"
                )
        part = sizes["size"] / checkpoint_bytes(self.source)
        latency = {"measured": microseconds(model, images[:1])}
        if self.latency is not None:
            layers = sum(option.latency for option in chosen.options.values())
            latency["predicted"] = self.table.other + layers
        found.report = {**sizes, "part": part, "latency": latency, **found.report}
        return found


def _dicts(states: Mapping[str, State]) -> dict[str, Any]:
    return {name: state.to_dict() for name, state in states.items()}
