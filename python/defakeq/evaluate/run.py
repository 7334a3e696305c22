"""An evaluation from data sets and networks to documents and reports."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defakeq import info, metrics
from defakeq.data import Dataset, open_dataset
from defakeq.evaluate import html, plots, saliency, shards
from defakeq.evaluate.shards import Scores, World
from defakeq.scorer import Scorer, kinds, latencies, open_float, open_model


@dataclass(frozen=True)
class Settings:
    """What is evaluated, and how. See ``defakeq evaluate --help``."""

    data: Path
    datasets: tuple[str, ...]
    model: str = "embedded"
    float_model: str | None = None
    builder: str | None = None
    split: str = "test"
    compression: str = "c23"
    frames: int | None = None
    batch: int = 32
    workers: int = 2
    chunk: int = shards.CHUNK
    repeats: int = 1000
    seed: int = 0
    misses: int = 4
    latency: int = 20

    def check(self) -> None:
        """Raise ``ValueError`` that names the first argument that cannot be."""
        for name, value, least in (
            ("batch", self.batch, 1),
            ("workers", self.workers, 0),
            ("chunk", self.chunk, 1),
            ("repeats", self.repeats, 1),
            ("seed", self.seed, 0),
            ("misses", self.misses, 0),
            ("latency", self.latency, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: found {value}, accepted: at least {least}")
        if not self.datasets:
            raise ValueError("dataset: found none, accepted: at least one")
        if len(set(self.datasets)) < len(self.datasets):
            raise ValueError("dataset: found one twice, accepted: each once")


@dataclass
class Evaluation:
    """What an evaluation found: the document, and what the HTML report needs besides."""

    document: dict[str, Any]
    data: dict[str, Dataset]
    scores: dict[str, Scores]
    scorers: list[Scorer]


@contextlib.contextmanager
def _group(world: World) -> Iterator[Any]:
    """Join the processes that torchrun started; yield torch.distributed, or None for one."""
    if world.size == 1:
        yield None
        return
    import torch.distributed as group

    group.init_process_group("gloo", timeout=timedelta(hours=12))
    try:
        yield group
    finally:
        group.destroy_process_group()


@contextlib.contextmanager
def _folder(wanted: Path | None, group: Any, world: World) -> Iterator[Path]:
    """Yield the folder of the chunks' results: the one that is wanted, or one for this run."""
    if wanted is not None:
        wanted.mkdir(parents=True, exist_ok=True)
        yield wanted
        return
    names = [tempfile.mkdtemp(prefix="defakeq-") if world.rank == 0 else ""]
    if group is not None:
        group.broadcast_object_list(names, src=0)
    try:
        yield Path(names[0])
    finally:
        if world.rank == 0:
            shutil.rmtree(names[0], ignore_errors=True)


def _same_everywhere(group: Any, marks: dict[str, str], world: World) -> None:
    if group is None:
        return
    found: list[Any] = [None] * world.size
    group.all_gather_object(found, marks)
    for rank, other in enumerate(found):
        if other != marks:
            raise RuntimeError(
                f"model or data: process {rank} has others than process {world.rank}; a model that "
                "a function builds must have the same weights in every process"
            )


def evaluate(
    settings: Settings, folder: Path | None = None, quiet: bool = False
) -> Evaluation | None:
    """Score the data sets, together with the other processes of a torchrun, and measure.

    Returns None in all processes but the first. ``folder`` keeps the chunks' results; the scores
    that are there already are not computed again.
    """
    settings.check()
    world = World.from_environment()
    scorers = [open_model(settings.model, settings.builder)]
    floating = open_float(settings.float_model, settings.model, settings.builder)
    if floating is not None:
        if floating.own and not scorers[0].own:
            # The compressed module lost the methods of the float one, whose input it still takes.
            raise ValueError(
                f"float-model: {floating.name} has its own preprocessing, and {scorers[0].name} "
                "has none; accepted: two networks with the same input"
            )
        scorers.append(floating)
    data = {
        name: open_dataset(
            settings.data, name, settings.split, settings.compression, settings.frames
        )
        for name in settings.datasets
    }
    common = {"split": settings.split, "compression": settings.compression}
    marks = {
        name: shards.fingerprint(found, scorers, settings.batch, settings.chunk, common)
        for name, found in data.items()
    }
    with _group(world) as group:
        _same_everywhere(group, marks, world)
        with _folder(folder, group, world) as place:
            _score(settings, data, scorers, place, marks, world, quiet)
            if group is not None:
                group.barrier()
            if world.rank == 0:
                scores = {
                    name: shards.collect(found, scorers, place, marks[name], settings.chunk)
                    for name, found in data.items()
                }
            if group is not None:
                group.barrier()
    if world.rank != 0:
        return None
    return Evaluation(_document(settings, data, scores, scorers), data, scores, scorers)


def _score(
    settings: Settings,
    data: dict[str, Dataset],
    scorers: list[Scorer],
    folder: Path,
    marks: dict[str, str],
    world: World,
    quiet: bool,
) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or world.rank != 0) as progress:
        for name, found in data.items():
            own = shards.chunks(found, settings.chunk)[world.rank :: world.size]
            task = progress.add_task(name, total=sum(map(len, own)))
            shards.run(
                found,
                scorers,
                folder,
                marks[name],
                world,
                settings.batch,
                settings.workers,
                settings.chunk,
                lambda count, task=task: progress.advance(task, count),  # type: ignore[misc]
            )


def _networks(scores: Scores, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    values = (scores.compressed, scores.floating)
    return {name: found for name, found in zip(names, values, strict=False) if found is not None}


def _document(
    settings: Settings,
    data: dict[str, Dataset],
    scores: dict[str, Scores],
    scorers: list[Scorer],
) -> dict[str, Any]:
    """Return the metrics as plain values: nothing in them depends on time or on the machine."""
    document: dict[str, Any] = {
        "version": shards.VERSION,
        "networks": {
            kind: {"name": scorer.name, "bytes": scorer.size, "sha256": scorer.digest}
            for kind, scorer in zip(kinds(scorers), scorers, strict=True)
        },
        "settings": {
            "split": settings.split,
            "compression": settings.compression,
            "frames": "all" if settings.frames is None else settings.frames,
            "bootstrap repeats": settings.repeats,
            "seed": settings.seed,
        },
        "datasets": {},
    }
    for name, found in data.items():
        document["datasets"][name] = _measured(settings, found, scores[name], kinds(scorers))
    return document


def _measured(
    settings: Settings, data: Dataset, scores: Scores, names: Sequence[str]
) -> dict[str, Any]:
    if len(scores.indices) == 0:
        counts = ", ".join(f"{n} x {kind}" for kind, n in scores.report.counts().items())
        raise ValueError(f"{data.name}: found no picture that can be read ({counts})")
    samples = [data.samples[index] for index in scores.indices]
    labels = np.array([sample.label for sample in samples], np.int64)
    videos = [sample.video for sample in samples]
    families = sorted({sample.family for sample in samples if sample.label == 1})

    def summary(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> dict[str, Any]:
        places = np.flatnonzero(chosen)
        return metrics.summary(
            [videos[place] for place in places],
            labels[chosen],
            values[chosen],
            settings.repeats,
            settings.seed,
        )

    networks = _networks(scores, names)
    everything = np.ones(len(labels), bool)
    rows: dict[str, dict[str, Any]] = {}
    if 0 < labels.sum() < len(labels):
        for family in families:
            own = np.array([sample.family == family for sample in samples])
            rows[family] = {
                kind: summary(values, own | (labels == 0)) for kind, values in networks.items()
            }
    return {
        **_difference(scores),
        "samples": len(data),
        "evaluated": len(samples),
        "forged": int(labels.sum()),
        "real": int(len(labels) - labels.sum()),
        "networks": {kind: summary(values, everything) for kind, values in networks.items()},
        "families": rows,
        "report": scores.report.to_dict(),
    }


def _difference(scores: Scores) -> dict[str, dict[str, Any]]:
    """Return how far the compressed scores are from the float ones; nothing without those."""
    if scores.floating is None:
        return {}
    apart = np.abs(scores.compressed - scores.floating)
    changed = (scores.compressed >= 0.5) != (scores.floating >= 0.5)
    return {
        "difference": {
            "mean": math.fsum(apart.tolist()) / len(apart),
            "most": float(apart.max()),
            "changed": int(changed.sum()),
        }
    }


def to_json(document: dict[str, Any]) -> str:
    """Return the document as JSON text."""
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


_COLUMNS = ("count", "forged", "auc", "eer", "ap", "accuracy", "calibration_error")


def to_csv(document: dict[str, Any]) -> str:
    """Return the metrics as CSV: a row for each data set, family, network and level."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "family", "network", "level", *_COLUMNS, "auc_low", "auc_high"])
    for name, found in document["datasets"].items():
        for family, networks in (("all", found["networks"]), *found["families"].items()):
            for network, levels in networks.items():
                for level, row in levels.items():
                    low, high = row.get("intervals", {}).get("auc", ("", ""))
                    values = ["" if row[key] is None else row[key] for key in _COLUMNS]
                    writer.writerow([name, family, network, level, *values, low, high])
    return out.getvalue()


def _worst(
    settings: Settings, data: Dataset, scores: Scores
) -> list[tuple[int, float, float | None]]:
    """Return (position, score, float score) of the samples farthest from their label."""
    labels = np.array([data.samples[index].label for index in scores.indices])
    wrong = np.abs(labels - scores.compressed)
    order = np.lexsort((scores.indices, -wrong))
    out: list[tuple[int, float, float | None]] = []
    seen: set[str] = set()
    for place in order:
        if wrong[place] <= 0.5 or len(out) == settings.misses:
            break
        index = int(scores.indices[place])
        if data.samples[index].video in seen:  # one picture of a video says enough
            continue
        seen.add(data.samples[index].video)
        floating = None if scores.floating is None else float(scores.floating[place])
        out.append((index, float(scores.compressed[place]), floating))
    return out


def _pictures(data: Dataset, positions: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    """Return the pictures at some positions, of at most 256 pixels a side."""
    found: dict[int, NDArray[np.uint8]] = {}
    for position in positions:
        for batch in data.select([position]).batches(1, 256, 0):
            found[position] = batch.images[0]
    return found


def _misses(settings: Settings, found: Evaluation, name: str) -> list[str]:
    data = found.data[name]
    rows = _worst(settings, data, found.scores[name])
    pictures = _pictures(data, [row[0] for row in rows])
    out = []
    names = kinds(found.scorers)
    for position, score, floating in rows:
        if position not in pictures:
            continue
        sample, picture = data.samples[position], pictures[position]
        views = [("picture", picture)]
        maps = [saliency.occlusion(scorer, picture) for scorer in found.scorers]
        limit = max(float(np.abs(values).max()) for values in maps)
        for kind, values in zip(names, maps, strict=True):
            views.append((kind, saliency.overlay(picture, values, limit)))
        if len(found.scorers) > 1:
            slope = saliency.gradient(found.scorers[1], picture)
            if slope is not None:
                views.append(("float, gradient", saliency.overlay(picture, slope)))
        truth = f"Missed forgery ({sample.family})" if sample.label else "False alarm (real)"
        text = f"{truth}: {names[0]} {score:.3f}"
        text += "" if floating is None else f", float {floating:.3f}"
        out.append(html.miss(views, text, sample.key))
    return out


def to_html(settings: Settings, found: Evaluation, timing: dict[str, float]) -> str:
    """Return the report as one HTML page."""
    drawn: dict[str, list[str]] = {}
    misses: dict[str, list[str]] = {}
    for name, data in found.data.items():
        scores = found.scores[name]
        labels = np.array([data.samples[index].label for index in scores.indices], np.int64)
        videos = [data.samples[index].video for index in scores.indices]
        networks = _networks(scores, kinds(found.scorers))
        by_video = {kind: metrics.by_video(videos, labels, p) for kind, p in networks.items()}
        drawn[name] = [
            plots.roc(labels, networks, "ROC of frames"),
            plots.roc(
                next(iter(by_video.values()))[1],
                {kind: row[2] for kind, row in by_video.items()},
                "ROC of videos",
            ),
            plots.histogram(labels, networks, "Scores of frames"),
        ]
        misses[name] = _misses(settings, found, name)
    return html.page(found.document, timing, drawn, misses, _machine())


def _machine() -> str:
    here = info.collect()
    threads = torch.get_num_threads()
    return (
        f"DefakeQ {here['version']}, torch {here['torch']['version']}, {here['cpu']}, "
        f"{here['selected']} kernels. Times are of one face a call, with {threads} "
        f"thread{'s' if threads > 1 else ''}; sizes are of the files, 1 KiB = 1024 bytes."
    )


def timing(settings: Settings, found: Evaluation) -> dict[str, float]:
    """Return each network's milliseconds for one face."""
    if settings.latency == 0:
        return {}
    for data in found.data.values():
        for position in range(min(8, len(data))):
            for picture in _pictures(data, [position]).values():
                values = latencies(found.scorers, picture, settings.latency)
                return dict(zip(kinds(found.scorers), values, strict=True))
    return {}


def check_output(path: Path) -> None:
    """Raise ``ValueError`` when a file cannot be written, before the work rather than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from error
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise ValueError(f"{path}: cannot be written: it is {what}")


def write(path: Path, text: str) -> None:
    """Write a file in one step, so that there never is half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from error


def show(document: dict[str, Any], timing: dict[str, float], console: Any) -> None:
    """Print the metrics as tables."""
    from rich.box import SIMPLE
    from rich.table import Table

    for name, found in document["datasets"].items():
        title = f"{name}: {found['evaluated']} of {found['samples']} samples"
        table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))  # fits 80 columns
        for heading in ("network", "count", "AUC", "95 %", "EER", "AP", "accuracy", "ECE"):
            table.add_column(
                heading, justify="left" if heading == "network" else "right", no_wrap=True
            )
        for kind, levels in found["networks"].items():
            for level, row in levels.items():
                low, high = row.get("intervals", {}).get("auc", (None, None))
                table.add_row(
                    f"{kind}, {level}s",
                    str(row["count"]),
                    html.number(row["auc"]),
                    f"{html.number(low, 2)}-{html.number(high, 2)}",
                    html.number(row["eer"]),
                    html.number(row["ap"]),
                    html.number(row["accuracy"]),
                    html.number(row["calibration_error"]),
                )
        console.print(table)
        for family, networks in found["families"].items():
            values = ", ".join(f"{k} {html.number(v['frame']['auc'])}" for k, v in networks.items())
            console.print(f"  {family}: frame AUC {values}")
        for kind, count in found["report"]["counts"].items():
            console.print(f"  {count} x {kind}")
    for kind, about in document["networks"].items():
        spent = f", {timing[kind]:.2f} ms a face" if kind in timing else ""
        console.print(f"{kind}: {about['name']}, {about['bytes'] / 1024:.0f} KiB{spent}")


def single_thread() -> None:
    """Let torch and OpenCV use one thread each: sums must not depend on the thread count."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
