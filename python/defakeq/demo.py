"""The demonstration, before and after compression.

A real photograph and forged copies of it are scored, then generated data in two layouts is
evaluated into a report.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from defakeq.data.generate import MANIFEST, Options, generate
from defakeq.embedded.data import (
    face_outline,
    forge,
    load_photo,
    resize_input,
    to_bytes,
    to_float,
)
from defakeq.embedded.network import REPORT
from defakeq.evaluate import run as evaluation
from defakeq.faces import Box, crop_square, find_faces, margin_box
from defakeq.images import read_image
from defakeq.scorer import EMBEDDED, latencies, open_float, open_model

ByteImage = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """One network's figures: bytes of its file, milliseconds a face, probabilities of "forged".

    ``forged`` holds one probability for every forged copy.
    """

    network: str
    size: int
    milliseconds: float
    real: float
    forged: list[float]


def forged_copy(image: ByteImage, box: Box, seed: int) -> ByteImage:
    """Return a copy of a picture whose face is self-blended, as saved and read as JPEG.

    ``image`` is uint8 RGB (height, width, 3), ``box`` the face (left, top, width, height).
    """
    square = margin_box(box)
    left, top, side = square
    crop = to_float(crop_square(image, square))
    outline = face_outline((box[0] - left, box[1] - top, box[2], box[3]))
    changed = to_bytes(forge(np.random.default_rng(seed), crop, outline))
    out = image.copy()
    height, width = image.shape[:2]
    y0, y1, x0, x1 = max(0, top), min(height, top + side), max(0, left), min(width, left + side)
    out[y0:y1, x0:x1] = changed[y0 - top : y1 - top, x0 - left : x1 - left]
    _, code = cv2.imencode(".jpg", out[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    decoded = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(decoded[..., ::-1], dtype=np.uint8)


def crop_of(image: ByteImage, box: Box) -> ByteImage:
    """Return the crop of a face at the network's input size, uint8 RGB."""
    return resize_input(crop_square(image, margin_box(box)))


def run(
    photo: Path | None = None, copies: int = 20, repeats: int = 50, save: Path | None = None
) -> dict[str, Any]:
    """Score a photograph and ``copies`` forged copies of its largest face with both networks.

    ``photo`` is the bundled astronaut when None; ``save`` is a folder for the first forged copy.
    Returns a dict with ``photo``, ``threads``, ``rows`` (of :class:`Row`) and ``report`` (the
    training report). Raises ``ValueError`` when there is no face in the picture.
    """
    if copies < 1:
        raise ValueError(f"copies: found {copies}, accepted: at least 1")
    if repeats < 1:
        raise ValueError(f"repeats: found {repeats}, accepted: at least 1")
    name = "astronaut" if photo is None else str(photo)
    image = load_photo("astronaut") if photo is None else read_image(photo)
    boxes = find_faces(image)
    if not boxes:
        raise ValueError(f"{name}: no face found")
    box = boxes[0]
    forgeries = [forged_copy(image, box, seed) for seed in range(copies)]
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(save / "forged.png"), forgeries[0][..., ::-1])
    real = crop_of(image, box)
    crops = np.stack([crop_of(forged, box) for forged in forgeries])
    names = ["float32, torch", "compressed, DefakeQ"]
    floating = open_float(EMBEDDED, EMBEDDED)
    if floating is None:
        raise RuntimeError("the embedded detector has no float network")
    scorers = [floating, open_model()]
    times = latencies(scorers, real, repeats)
    rows = [
        Row(name, scorer.size, spent, float(scores[0]), scores[1:].tolist())
        for name, scorer, spent, scores in (
            (name, scorer, spent, scorer.score(np.concatenate([real[None], crops])))
            for name, scorer, spent in zip(names, scorers, times, strict=True)
        )
    ]
    return {
        "photo": name,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "report": json.loads(REPORT.read_text()),
    }


DATASETS = ("FaceForensics++", "Celeb-DF-v2")


def report(out: Path, people: int = 8, quiet: bool = False) -> Path:
    """Evaluate the embedded detector on generated data; return the HTML report's path.

    The data, of ``people`` people in two layouts, is made in ``out/data`` unless it is there.
    """
    for name in DATASETS:
        if not (out / "data" / "dataset_json" / f"{name}.{MANIFEST}").exists():
            options = Options(name, people, frames=4, splits=("test",))
            generate(out / "data", options)
    settings = evaluation.Settings(out / "data", DATASETS)
    found = evaluation.evaluate(settings, quiet=quiet)
    if found is None:
        raise RuntimeError("the demonstration runs in one process; found several")
    spent = evaluation.timing(settings, found)
    path = out / "report.html"
    evaluation.write(path, evaluation.to_html(settings, found, spent))
    evaluation.write(out / "report.json", evaluation.to_json(found.document))
    return path


def show(result: dict[str, Any], console: Console) -> None:
    """Print what :func:`run` returned."""
    rows: list[Row] = result["rows"]
    table = Table(title=f"{result['photo']}, {result['threads']} thread(s)")
    table.add_column("network")
    for heading in (
        "size",
        "time a face",
        "real photograph",
        "forged copy",
        "copies above the real",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        above = sum(value > row.real for value in row.forged)
        table.add_row(
            row.network,
            f"{row.size / 1024:.0f} KiB",
            f"{row.milliseconds:.2f} ms",
            f"{row.real:.3f}",
            f"{row.forged[0]:.3f}",
            f"{above} of {len(row.forged)}",
        )
    console.print(table)
    console.print("Scores: probability of a forgery, 0 to 1. The copies differ in their seed only.")
    before, after = rows[0], rows[1]
    console.print(
        f"The compressed network is {before.size / max(1, after.size):.1f} times smaller and "
        f"{before.milliseconds / after.milliseconds:.2f} times as fast."
    )
    report = result["report"]
    held = report["held_out"]
    packed = report.get("compressed", {}).get("held_out", {})
    areas = Table(title="held-out AUC")
    for heading in ("source", "float32", "compressed"):
        areas.add_column(heading, justify="left" if heading == "source" else "right")
    for source, values in held.items():
        small = packed.get(source)
        areas.add_row(source, f"{values['auc']:.3f}", f"{small['auc']:.3f}" if small else "-")
    console.print(areas)
    console.print(report["trained_on"])
    console.print(report["not_trained_on"])
