"""Makes the compressed embedded detector: ``python -m defakeq.embedded.build``.

It converts the float32 checkpoint with several mixed plans, measures each on the validation split,
and keeps the smallest file whose mean validation AUC is within ``--loss`` of the float32 network's.
The test split is measured once, for the plan that was kept. The first and last layers and the
depthwise convolutions have 8 bits, symmetric in the depthwise ones. The pointwise ones have fewer,
the narrow ones apart from the wide ones; of a wide one, the output channels that rounding hurts
most are in half precision.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from defakeq.conversion import convert, save
from defakeq.embedded import data
from defakeq.embedded.network import PACKED, REPORT, EmbeddedDetector, load_float, to_input
from defakeq.embedded.train import held_out, measure
from defakeq.plan import LayerPlan, QuantPlan

BUILDER = "defakeq.embedded.network:EmbeddedDetector"

WIDE = 5000  # weights from which a pointwise convolution counts as wide


@dataclass(frozen=True)
class Candidate:
    """Bits of narrow and of wide pointwise convolutions; the wide ones' share of half outputs."""

    narrow: int
    wide: int
    half: float


CANDIDATES = (
    Candidate(8, 8, 0.02),
    Candidate(8, 5, 0.02),
    Candidate(6, 4, 0.02),
    Candidate(8, 4, 0.04),
    Candidate(5, 3, 0.04),
    Candidate(8, 3, 0.06),
)


def folded_weights(model: EmbeddedDetector) -> dict[str, torch.Tensor]:
    """Return each convolution's weight with its BatchNorm folded in, by layer name."""
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            norm = model.get_submodule(name.rpartition(".")[0] + ".1")
            if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
                raise ValueError(f"model: found no BatchNorm2d after {name!r}, accepted: one")
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            weights[name] = (module.weight * scale[:, None, None, None]).detach()
    return weights


def worst_outputs(weight: torch.Tensor, bits: int, count: int) -> tuple[int, ...]:
    """Return the ``count`` outputs of a weight with the largest rounding error at ``bits``."""
    rows = weight.flatten(1)
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    step = (high - low).clamp(min=1e-12) / (2**bits - 1)
    error = ((rows / step).round() * step - rows).square().sum(1)
    return tuple(sorted(error.topk(count).indices.tolist()))


def mixed_plan(model: EmbeddedDetector, candidate: Candidate) -> QuantPlan:
    """Return the plan of a candidate: 8 bits for what is no pointwise convolution."""
    layers = {"classifier": LayerPlan(bits=8)}
    for name, weight in folded_weights(model).items():
        bits, half = 8, 0
        if weight.shape[2:] == (1, 1):
            wide = weight.numel() >= WIDE
            bits = candidate.wide if wide else candidate.narrow
            half = round(candidate.half * weight.shape[0]) if wide else 0
        half_out = worst_outputs(weight, bits, half) if half else None
        depthwise = weight.shape[1] == 1  # symmetric 8-bit weights are faster there
        layers[name] = LayerPlan(bits=bits, half_out=half_out, symmetric=depthwise)
    return QuantPlan(layers)


def calibration(pairs: int, seed: int) -> list[torch.Tensor]:
    """Return batches of training samples that training did not see, for the input ranges."""
    parts = [data.samples("train", kind, pairs // 2, seed)[0] for kind in ("procedural", "scene")]
    return list(to_input(np.concatenate(parts)).split(32))


def build(arguments: argparse.Namespace) -> None:
    """Convert with every candidate plan, keep one, measure it and add it to the report."""
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    model = load_float()
    batches = calibration(arguments.calibration, arguments.seed)
    validation = held_out("validation")

    def mean(results: dict[str, dict[str, float]]) -> float:
        return float(np.mean([row["auc"] for row in results.values()]))

    before = measure(model, validation)
    print(f"float32: validation AUC {mean(before):.4f}", flush=True)
    tried: list[dict[str, Any]] = []
    kept: tuple[int, Path, nn.Module, dict[str, Any]] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for number, candidate in enumerate(CANDIDATES):
            plan = mixed_plan(model, candidate)
            compressed = convert(model, batches[0], plan, calibration=batches, backend="modules")
            path = Path(folder) / f"{number}.dfq"
            save(compressed, path, builder=BUILDER)
            results = measure(compressed, validation)
            row: dict[str, Any] = {
                "plan": asdict(candidate),
                "bytes": path.stat().st_size,
                "validation": results,
            }
            tried.append(row)
            print(f"{candidate}: {row['bytes']} bytes, {mean(results):.4f}", flush=True)
            near = mean(results) >= mean(before) - arguments.loss
            if near and (kept is None or row["bytes"] < kept[0]):
                kept = (row["bytes"], path, compressed, row)
        if kept is None:
            raise SystemExit(f"no plan is within {arguments.loss} of the float32 network's AUC")
        shutil.copyfile(kept[1], arguments.output)
    results = measure(kept[2], validation | held_out("test"))
    print({name: row["auc"] for name, row in results.items()})
    report = json.loads(arguments.report.read_text())
    command = "python -m defakeq.embedded.build " + shlex.join(sys.argv[1:])
    report["compressed"] = {
        "command": command.strip(),
        "calibration": {"pairs": arguments.calibration, "seed": arguments.seed},
        "bytes": kept[0],
        "plan": kept[3]["plan"],
        "held_out": results,
        "candidates": tried,
    }
    arguments.report.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {arguments.output} and {arguments.report}")


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m defakeq.embedded.build", description=__doc__)
    parser.add_argument("--loss", type=float, default=0.003, help="mean AUC that may be lost")
    parser.add_argument("--calibration", type=int, default=200, help="pairs for the input ranges")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=PACKED)
    parser.add_argument("--report", type=Path, default=REPORT)
    build(parser.parse_args())


if __name__ == "__main__":
    main()
