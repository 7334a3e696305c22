"""Compressed reference detectors beside the float ones and published baselines, at the same bytes.

    python bench/accuracy/compare.py --sizes 0.1 --methods default paper nearest --seeds 0 --out DIR

Every detector is trained on one forgery family and scored on all five. Each finished cell is one
JSON file in DIR/cells, so that a killed run continues; ``accuracy.txt``, ``accuracy.json`` and
``accuracy.png`` are made from them after every cell, or by ``--collect`` alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import paired
import torch
from numpy.typing import NDArray

from defakeq import reference
from defakeq.compress import baselines, presets
from defakeq.compress.pipeline import compress
from defakeq.compress.presets import Preset
from defakeq.compress.sizes import checkpoint_bytes
from defakeq.compress.workdir import write_whole
from defakeq.data.forgeries import FAMILIES
from defakeq.metrics import auc, bootstrap

CALIBRATION_PEOPLE = 64
PEOPLE = 400  # of the test split


def variants() -> dict[str, tuple[Preset, bool]]:
    """Presets by name, with whether VEFT is used: the presets themselves and the ablations."""
    default, paper = presets.preset("default"), presets.preset("paper")

    def haq(own: Preset, objective: str, **others: Any) -> Preset:
        return dataclasses.replace(own, objective=objective, **others)

    def learned(**others: Any) -> Preset:
        own = dataclasses.replace(default.reconstruction, **others)
        return dataclasses.replace(default, reconstruction=own)

    def fixed(own: Preset) -> Preset:
        return dataclasses.replace(own, alignment=dataclasses.replace(own.alignment, fixed=True))

    return {
        "default": (default, True),
        "default, no pruning": (dataclasses.replace(default, prune=False), True),
        "default, no HAQ": (haq(default, "uniform"), True),
        "default, no VEFT": (default, False),
        "default, neither": (haq(default, "uniform"), False),
        "default, fixed channels": (fixed(default), True),
        "default, greedy": (dataclasses.replace(default, exact=False), True),
        # the score has no unit, so that neither channels nor time can be weighed against it
        "default, S_l and no pruning": (haq(default, "score", prune=False, speed=0.0), True),
        "default, no price on time": (dataclasses.replace(default, speed=0.0), True),
        "default, no learning": (learned(steps=0), True),
        "default, no feedback": (learned(feedback=False), True),
        "paper": (paper, True),
        "paper, no HAQ": (haq(paper, "uniform"), True),
        "paper, no VEFT": (paper, False),
        "paper, neither": (haq(paper, "uniform"), False),
        "paper, fixed channels": (fixed(paper), True),
    }


def methods() -> tuple[str, ...]:
    """Everything that can be compared."""
    return ("float", *variants(), *baselines.NAMES)


def calibration(model: Any, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of the training split and their labels: half real, half of the trained family."""
    found = reference.evaluation("train", CALIBRATION_PEOPLE, max(2, count // 128), seed=seed + 100)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in (0, 1):
        own = np.flatnonzero(found.labels == label)
        chosen += rng.permutation(own)[: count // 2].tolist()
    pictures = [model.preprocess(found.images[i]) for i in sorted(chosen)]
    return torch.stack(pictures), torch.from_numpy(found.labels[sorted(chosen)])


def scores(network: Any, model: Any, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Probabilities of "forged" of a network that takes what the float model takes."""
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(images), 64):
            batch = torch.stack([model.preprocess(x) for x in images[begin : begin + 64]])
            parts.append(model.interface.probability(network(batch)))
    return torch.cat(parts).double().numpy()


def cell(detector: str, method: str, size: float, seed: int, images: int) -> dict[str, Any]:
    """One row of results: AUC by family, with intervals, size, bits and seconds."""
    model = reference.build(detector)
    begin = time.process_time()
    network: Any = model
    row: dict[str, Any] = {"bits": 32.0, "bytes": checkpoint_bytes(model)}
    if method != "float":
        data = calibration(model, images, seed)
        if method in baselines.NAMES:
            found = baselines.baseline(method, model, data, size, seed)
            network, row = found.model, {"bits": found.bits, "bytes": found.size}
        else:
            preset, veft = variants()[method]
            made = compress(
                model, data, size=size, preset=preset, veft=veft, seed=seed, progress=False
            )
            network = made.model
            row = {
                "bits": made.report["bits_a_weight"],
                "bytes": made.report["size"],
                "restored": sum(e["restored"] for e in made.report["layers"]),
                "pruned": sum(e["outputs"] - e["kept_outputs"] for e in made.report["layers"]),
                "seconds_by_stage": made.report["seconds"],
                "drift": made.report.get("drift"),
                "alignment": made.report.get("alignment"),
            }
    row["processor_seconds"] = round(time.process_time() - begin, 1)
    test = reference.evaluation("test", PEOPLE)
    probabilities = scores(network, model, test.images)
    row["scores"] = [round(score, 6) for score in probabilities.tolist()]
    row["auc"] = {}
    row["interval"] = {}
    for family in FAMILIES:
        own = np.array([name in (family, "real") for name in test.families])
        labels, found_scores = test.labels[own], probabilities[own]
        row["auc"][family] = auc(labels, found_scores)
        videos = [video for video, used in zip(test.videos, own, strict=True) if used]
        interval = bootstrap(videos, labels, found_scores, 200, 0)["auc"]
        row["interval"][family] = [interval.low, interval.high]
    row["mean"] = float(np.mean(list(row["auc"].values())))
    row["part"] = row["bytes"] / checkpoint_bytes(model)
    return row


def collect(folder: Path) -> list[dict[str, Any]]:
    """All finished cells."""
    return [json.loads(path.read_text()) for path in sorted((folder / "cells").glob("*.json"))]


def table(rows: list[dict[str, Any]]) -> str:
    """Mean AUC in points by method and detector, with what was lost against float."""
    lines = []
    floats = {row["detector"]: row["mean"] for row in rows if row["method"] == "float"}
    names = sorted({row["detector"] for row in rows})
    head = f"{'size':>6}  {'method':28}" + "".join(f"{name:>22}" for name in names) + f"{'lost':>8}"
    lines.append(head)
    order = list(methods())
    keys = sorted(
        {(row["size"], row["method"], row["images"]) for row in rows},
        key=lambda key: (-key[0], order.index(key[1]), key[2]),
    )
    for size, method, images in keys:
        cells, lost = [], []
        for name in names:
            own = [
                row
                for row in rows
                if (row["size"], row["method"], row["images"], row["detector"])
                == (size, method, images, name)
            ]
            if not own:
                cells.append(f"{'-':>22}")
                continue
            failed = [row for row in own if "error" in row]
            if failed:
                cells.append(f"{'cannot':>22}")
                continue
            means = [100 * row["mean"] for row in own]
            spread = f" ±{np.std(means):.1f}" if len(means) > 1 else ""
            part = 100 * float(np.mean([row["part"] for row in own]))
            cells.append(f"{f'{np.mean(means):.2f}{spread} at {part:.1f}%':>22}")
            if name in floats:
                lost.append(100 * floats[name] - float(np.mean(means)))
        ending = f"{np.mean(lost):8.2f}" if lost else f"{'':8}"
        about = paired.label({"method": method, "images": images})
        lines.append(f"{100 * size:5.1f}%  {about:28}" + "".join(cells) + ending)
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Points of AUC lost by size, one line a method, the mean over detectors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    floats = {row["detector"]: row["mean"] for row in rows if row["method"] == "float"}
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for method in methods():
        points: dict[float, list[float]] = {}
        for row in rows:
            usual = "mean" in row and row["images"] == paired.IMAGES
            if usual and row["method"] == method != "float" and row["detector"] in floats:
                lost = 100 * (floats[row["detector"]] - row["mean"])
                points.setdefault(100 * row["size"], []).append(lost)
        if points:
            xs = sorted(points)
            axes.plot(xs, [float(np.mean(points[x])) for x in xs], marker="o", label=method)
    axes.set_xlabel("file, % of the float32 checkpoint")
    axes.set_ylabel("points of AUC lost, mean of families and detectors")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=150)
    os.replace(part, path)


def publish(folder: Path, into: Path) -> str:
    """Writes what all finished cells in `folder` say, and returns the table."""
    rows = collect(folder)
    test = reference.evaluation("test", PEOPLE)
    pairs = paired.differences(rows, paired.Pictures(test.families, test.videos))
    drifts = paired.drifts(rows, test.videos)
    rows = [{key: value for key, value in row.items() if key != "scores"} for row in rows]
    text = table(rows)
    if pairs:
        text += "\nmean AUC in points, with 95 % intervals over the same videos:\n"
        text += paired.table(pairs)
    if drifts:
        text += "\nhow far logits are from the float model's, in their standard deviations:\n"
        text += paired.drift_table(drifts)
    command = "python " + shlex.join(sys.argv)
    about = {"command": command, "torch": torch.__version__, "machine": platform.machine()}
    into.mkdir(parents=True, exist_ok=True)
    document = {**about, "rows": rows, "differences": pairs, "drifts": drifts}
    write_whole(into / "accuracy.json", (json.dumps(document, indent=1) + "\n").encode())
    write_whole(into / "accuracy.txt", f"$ {command}\n\n{text}".encode())
    if any(row["method"] != "float" for row in rows):
        plot(rows, into / "accuracy.png")
    return text


def main() -> None:
    """Fills the missing cells, then makes the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detectors", nargs="+", default=list(reference.NAMES))
    parser.add_argument("--methods", nargs="+", default=["default", "paper", *baselines.NAMES])
    parser.add_argument("--sizes", nargs="+", type=float, default=[0.2, 0.1, 0.075])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=paired.IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--collect", action="store_true", help="run nothing: write what is there")
    parser.add_argument("--results", type=Path, help="folder of the table and plot; default: OUT")
    arguments = parser.parse_args()
    into = arguments.results or arguments.out
    if arguments.collect:
        print(publish(arguments.out, into))
        return
    for method in arguments.methods:
        if method not in methods():
            parser.error(f"method {method!r}: accepted is one of {', '.join(methods())}")
    torch.set_num_threads(arguments.threads)
    (arguments.out / "cells").mkdir(parents=True, exist_ok=True)
    jobs = [(d, "float", 1.0, 0, paired.IMAGES) for d in arguments.detectors]
    jobs += [
        (d, m, size, seed, arguments.images)
        for size in arguments.sizes
        for m in arguments.methods
        for seed in arguments.seeds
        for d in arguments.detectors
        if m != "float"
    ]
    for detector, method, size, seed, images in jobs:
        name = f"{detector}-{method}-{size:g}-{images}-{seed}.json".replace(" ", "_")
        path = arguments.out / "cells" / name
        if path.exists():
            continue
        row: dict[str, Any] = {
            "detector": detector,
            "method": method,
            "size": size,
            "seed": seed,
            "images": images,
        }
        try:
            row |= cell(detector, method, size, seed, images)
        except ValueError as error:  # a method that cannot keep the budget says so in the table
            row["error"] = str(error)
        write_whole(path, (json.dumps(row, indent=1) + "\n").encode())
        print(json.dumps({k: row[k] for k in ("detector", "method", "size", "seed")}), end=" ")
        print(row.get("error") or f"{100 * row['mean']:.2f} {row['bytes']}", flush=True)
        publish(arguments.out, into)
    print(publish(arguments.out, into))


if __name__ == "__main__":
    main()
