"""Scores a data set in chunks whose results are files, so that many processes can share the work.

The chunks, and the batches in them, depend on the data set alone, not on how many processes there
are: every sample is scored once, beside the same neighbours, and the results have the same bytes. A
chunk's file appears when it is complete; what is there is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.data import Dataset, Report
from defakeq.scorer import Scorer

VERSION = 1
CHUNK = 256  # samples


@dataclass(frozen=True)
class World:
    """This process among those that share the work."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> World:
        """Return what torchrun set. Raises ``ValueError`` for what it would not."""
        values = {}
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")):
            text = os.environ.get(name, default)
            if not text.isdigit():
                raise ValueError(f"{name}: found {text!r}, accepted: a number")
            values[name] = int(text)
        if values["RANK"] >= values["WORLD_SIZE"]:
            raise ValueError(
                f"RANK: found {values['RANK']}, accepted: below WORLD_SIZE {values['WORLD_SIZE']}"
            )
        return cls(values["RANK"], values["WORLD_SIZE"])


@dataclass
class Scores:
    """The scores of a data set's readable samples; ``indices`` are positions in the data set."""

    indices: NDArray[np.int64]
    compressed: NDArray[np.float64]
    floating: NDArray[np.float64] | None
    report: Report


def fingerprint(
    data: Dataset, scorers: list[Scorer], batch: int, chunk: int, settings: dict[str, Any]
) -> str:
    """Return a digest of everything that the scores depend on."""
    total = hashlib.sha256()
    about = {
        "version": VERSION,
        "dataset": data.name,
        "models": [[scorer.name, scorer.digest] for scorer in scorers],
        "batch": batch,
        "chunk": chunk,
        **settings,
    }
    total.update(json.dumps(about, sort_keys=True).encode())
    for sample in data.samples:
        try:
            found = sample.path.stat()
            state = f"{found.st_size} {found.st_mtime_ns}"
        except OSError:
            state = "-"
        total.update(f"{sample.key}\0{sample.label}\0{sample.video}\0{state}\n".encode())
    return total.hexdigest()


def chunks(data: Dataset, chunk: int = CHUNK) -> list[range]:
    """Return the chunks of a data set, as ranges of positions."""
    return [range(i, min(i + chunk, len(data))) for i in range(0, len(data), chunk)]


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}.{number:06d}.json"


def _read(path: Path, mark: str) -> dict[str, Any] | None:
    """Return a chunk's results; None when they are missing, damaged or of something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("fingerprint") != mark:
        return None
    return document


def _score_chunk(
    data: Dataset, positions: range, scorers: list[Scorer], batch: int, workers: int
) -> dict[str, Any]:
    part = data.select(positions)
    place = {sample: positions[index] for index, sample in enumerate(part.samples)}
    rows: list[list[Any]] = []
    for found in part.batches(batch, None, workers, prepare=scorers[0].prepare):
        scores = [scorer.score(found.images).tolist() for scorer in scorers]
        rows += [
            [place[sample], *values] for sample, *values in zip(found.samples, *scores, strict=True)
        ]
    return {"rows": sorted(rows), "report": part.report.to_dict()}


def run(
    data: Dataset,
    scorers: list[Scorer],
    folder: Path,
    mark: str,
    world: World,
    batch: int,
    workers: int,
    chunk: int = CHUNK,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Score this process's chunks that ``folder`` lacks. ``advance`` is told of samples."""
    for number, positions in enumerate(chunks(data, chunk)):
        if number % world.size != world.rank:
            continue
        path = _path(folder, data.name, number)
        if _read(path, mark) is None:
            document = _score_chunk(data, positions, scorers, batch, workers)
            document["fingerprint"] = mark
            beside = path.with_name(f"{path.name}.{os.getpid()}.part")
            beside.write_text(json.dumps(document), encoding="utf-8")
            beside.replace(path)
        if advance is not None:
            advance(len(positions))


def collect(data: Dataset, scorers: list[Scorer], folder: Path, mark: str, chunk: int) -> Scores:
    """Return the scores of all chunks. Raises ``RuntimeError`` when one is missing."""
    rows: list[list[Any]] = []
    report = Report(set(data.report.found))
    for number, _ in enumerate(chunks(data, chunk)):
        path = _path(folder, data.name, number)
        document = _read(path, mark)
        if document is None:
            raise RuntimeError(f"{path}: found no results of this chunk; run the command again")
        rows += document["rows"]
        report.update(Report.from_dict(document["report"]).problems)
    rows.sort()
    columns = list(zip(*rows, strict=True)) if rows else [()] * (1 + len(scorers))
    return Scores(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.float64),
        np.array(columns[2], np.float64) if len(scorers) > 1 else None,
        report,
    )
