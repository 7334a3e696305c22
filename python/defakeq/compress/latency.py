"""Microseconds of layers by width, measured on the target."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from defakeq.compress.graph import Layer
from defakeq.conversion import convert
from defakeq.lower import ProgramModule
from defakeq.plan import QuantPlan
from defakeq_kernels import dfq, runtime

VERSION = 1
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class LatencyTable:
    """Microseconds of each layer at each width, and of everything else."""

    layers: Mapping[str, Mapping[int, float]]
    other: float

    @staticmethod
    def of(document: Mapping[str, Any] | None, limit: float | None) -> LatencyTable:
        """The table of `measure`'s document; an empty one without.

        Raises:
            ValueError: no such document, or a table without a limit or the other way round.
        """
        if (limit is None) != (document is None):
            raise ValueError(
                "latency: found a limit without a table, or a table without a limit; accepted is "
                "both: latency and latency_table"
            )
        if document is None or limit is None:
            return LatencyTable({}, 0.0)
        if not isinstance(limit, (int, float)) or not math.isfinite(limit) or limit <= 0:
            raise ValueError(f"latency: found {limit!r}; accepted is microseconds above 0")
        try:
            if document["version"] != VERSION:
                raise KeyError("version")
            layers = {
                str(name): {int(bits): float(us) for bits, us in own.items()}
                for name, own in document["layers"].items()
            }
            other = float(document["other"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"latency_table: found no table ({error}); accepted is what "
                "defakeq.compress.latency.measure returns"
            ) from None
        return LatencyTable(layers, other)

    def of_layer(self, name: str, bits: int) -> float:
        """Microseconds of a layer at a width.

        Raises:
            ValueError: the table does not have it.
        """
        try:
            return self.layers[name][bits]
        except KeyError:
            raise ValueError(
                f"latency_table: found no {bits}-bit time of layer {name!r}; accepted is a table "
                "of the same model"
            ) from None

    def of_width(self, layer: Layer) -> Callable[[int], float]:
        """A layer's microseconds by width; its multiply-adds where there is no table."""
        if not self.layers:
            return lambda bits: float(layer.products)
        return lambda bits: self.of_layer(layer.name, bits)

    def room(self, limit: float | None) -> float | None:
        """Microseconds that the layers may take.

        Raises:
            ValueError: everything else takes as long.
        """
        if limit is None:
            return None
        if limit <= self.other:
            raise ValueError(
                f"latency: found {limit:.0f} microseconds; accepted is more than {self.other:.0f}, "
                "which the operators beside the layers take"
            )
        return limit - self.other


def microseconds(program: ProgramModule, image: Tensor, repeat: int = 11) -> float:
    """What a program takes for an image [1, ...] on this machine in one thread, the median."""
    loaded = runtime.loads(dfq.dumps(*program.file()), 1)
    given, times = image.cpu().numpy(), []
    for _ in range(repeat):
        begin = time.perf_counter()
        loaded(given)
        times.append(time.perf_counter() - begin)
    return 1e6 * float(np.median(times))


def measure(model: nn.Module, images: Tensor, repeat: int = 20, threads: int = 1) -> dict[str, Any]:
    """A latency table of a model on this machine, of JSON types.

    Args:
        model: the float model.
        images: a few calibration images; the first is timed.
        repeat: how many times; the median of each node counts.
        threads: of the program.

    Raises:
        ValueError: a model that cannot be lowered.
    """
    layers: dict[str, dict[str, float]] = {}
    others = []
    for bits in WIDTHS:
        plan = QuantPlan.uniform(model, bits)
        program = convert(model, images[:1], plan, [images], backend="program")
        assert isinstance(program, ProgramModule)
        tensors, network = program.file()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "timed.dfq"
            dfq.write(path, tensors, network)
            loaded = runtime.load(path, threads)
            times = loaded.profile(images[:1].numpy(), repeat=repeat)
        other = 0.0
        for node, timed in zip(network["program"]["nodes"], times, strict=True):
            own = [node[key] for key in ("layer", "fc1", "fc2") if node.get(key) in plan.layers]
            microseconds = 1e6 * float(timed["seconds"])
            if not own:
                other += microseconds
            for name in own:
                layers.setdefault(name, {})[str(bits)] = microseconds / len(own)
        others.append(other)
    return {"version": VERSION, "layers": layers, "other": float(np.median(others))}
