"""The stages in order: `compress`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from defakeq.compress import distortion
from defakeq.compress.allocate import Allocation, Option, Problem, solve
from defakeq.compress.bars import Bars
from defakeq.compress.budget import check_size, converted, exported, file_size
from defakeq.compress.calibration import Calibration
from defakeq.compress.graph import Graph
from defakeq.compress.presets import Preset, preset
from defakeq.compress.quantized import State
from defakeq.compress.reconstruct import BlockResult, initial, reconstruct
from defakeq.compress.sizes import checkpoint_bytes
from defakeq.compress.statistics import LayerStatistics, collect
from defakeq.compress.workdir import WorkDir, fingerprint
from defakeq.lower import ProgramModule
from defakeq.plan import QuantPlan
from defakeq_kernels import dfq

_VERSION = 1
_RANGE_IMAGES = 64  # of the ranges of a program's values
_TRIES = 6
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
        self.seconds: dict[str, float] = {}

    def all(
        self,
        table: Mapping[str, Any] | None,
        work: str | os.PathLike[str] | None,
        device: str | torch.device | None,
    ) -> Compressed:
        if (self.latency is None) != (table is None):
            raise ValueError(
                "latency: found a limit without a table, or a table without a limit; accepted is "
                "both: latency and latency_table"
            )
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
            allocation = self._timed("allocation", lambda: self._allocate(statistics))
            states, blocks = self._timed("reconstruction", lambda: self._rebuild(allocation))
            return self._timed("files", lambda: self._finish(allocation, states, blocks))

    def _timed(self, name: str, run: Any) -> Any:
        begin = time.monotonic()
        found = run()
        self.seconds[name] = round(time.monotonic() - begin, 2)
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

    def _allocate(self, statistics: dict[str, LayerStatistics]) -> dict[str, Option]:
        kept = self.work.load("allocation")
        if kept is not None:
            return {name: Option(**values) for name, values in kept.items()}
        options: dict[str, list[Option]] = {}
        with self.bars.task("allocation", len(self.graph.layers)) as step:
            for name, layer in self.graph.layers.items():
                if self.preset.objective == "score":
                    costs = distortion.scored(layer, statistics[name], self.preset.widths)
                else:
                    costs = distortion.measured(layer, statistics[name], self.preset.widths)
                options[name] = distortion.options(layer, costs)
                step(1)
        found = self._within_budget(options).options
        self.work.save("allocation", {name: dict(vars(option)) for name, option in found.items()})
        return found

    def _within_budget(self, options: dict[str, list[Option]]) -> Allocation:
        """Solves, packs, and tightens by what the file has beside the layers' tensors."""
        layers = 0.93 * self.budget - 90.0 * len(options)
        least = sum(min(o.size for o in found) for found in options.values())
        layers = max(layers, float(least))
        tried: tuple[float, Allocation] | None = None
        for _ in range(_TRIES):
            allocation = solve(Problem(options, layers))
            states = initial(self.graph, allocation.options, {})
            program = converted(self.graph.model, states, self._ranges(2), mixed=False)
            _, most = file_size(program)
            rest = most + _SUMMARY - allocation.size
            if most + _SUMMARY <= self.budget:
                tried = (layers, allocation)
                better = float(self.budget - rest)
                if better - layers < 0.002 * self.budget:
                    break
                layers = better
                continue
            if tried is not None:
                break
            layers = float(self.budget - rest)
            if layers < least:
                raise ValueError(
                    f"size: found {self.size}, {self.budget} bytes; accepted is at least "
                    f"{(least + rest) / checkpoint_bytes(self.source):.4f}, {least + rest} bytes, "
                    "at the narrowest widths"
                )
        if tried is None:
            raise RuntimeError(f"size: found no file of {self.budget} bytes in {_TRIES} tries")
        return tried[1]

    def _ranges(self, count: int = _RANGE_IMAGES) -> Tensor:
        """The images from which a program's ranges are taken."""
        return self.data.images[:count]

    def _rebuild(self, options: dict[str, Option]) -> tuple[dict[str, State], list[BlockResult]]:
        states = initial(self.graph, options, {})

        def load(number: int) -> BlockResult | None:
            kept = self.work.load(f"block{number:03}")
            if kept is None:
                return None
            own = {name: State.from_dict(values) for name, values in kept["states"].items()}
            return BlockResult(kept["name"], own, kept["errors"])

        def save(number: int, result: BlockResult) -> None:
            own = {name: state.to_dict() for name, state in result.states.items()}
            value = {"name": result.name, "states": own, "errors": result.errors}
            self.work.save(f"block{number:03}", value)

        with self.bars.task("reconstruction", len(self.graph.blocks)) as step:
            blocks = reconstruct(
                self.graph, self.images, states, self.preset.reconstruction, self.seed,
                load, save, step,
            )  # fmt: skip
        return states, blocks

    def _finish(
        self, options: dict[str, Option], states: dict[str, State], blocks: list[BlockResult]
    ) -> Compressed:
        images = self._ranges()
        integer = converted(self.graph.model, states, images, mixed=False)
        own, plan = exported(self.graph.model, states, mixed=False)
        size, _ = file_size(integer)
        report: dict[str, Any] = {
            "size": size,
            "budget": self.budget,
            "checkpoint": checkpoint_bytes(self.source),
            "seconds": self.seconds,
            "bits": {name: option.bits for name, option in options.items()},
            "blocks": [{"name": b.name, **b.errors} for b in blocks],
        }
        return Compressed(integer, integer, own, plan, report)
