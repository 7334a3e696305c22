"""How near a detector's 8-bit program stays to its float module, on generated pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defakeq import conversion
from defakeq.data import open_dataset
from defakeq.data.generate import Options, generate
from defakeq.detectors import Detector, build, names, untrained
from defakeq.plan import QuantPlan

_SIZE = 160  # of the generated pictures, in pixels


@dataclass(frozen=True)
class Checked:
    """One detector: its parameters, the bytes of its file, and the differences of its scores.

    ``mean`` and ``most`` are of the absolute differences, over ``pictures`` pictures.
    """

    name: str
    parameters: int
    bytes: int
    mean: float
    most: float
    pictures: int


def check(chosen: tuple[str, ...], pictures: int = 16, calibration: int = 16) -> Iterator[Checked]:
    """Convert detectors, one by one, and compare the scores; random weights spread as trained.

    Args:
        chosen: of :func:`~defakeq.detectors.names`.
        pictures: generated ones, real and forged, that are scored.
        calibration: others, of other sources, that the ranges are taken from.

    Raises:
        ValueError: an unknown name, or a number below 1.
    """
    for name in chosen:
        if name not in names():
            build(name)  # refuses it
    for what, value in (("pictures", pictures), ("calibration", calibration)):
        if value < 1:
            raise ValueError(f"{what}: found {value}; accepted is 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        people = max(2, -(-max(pictures, calibration) // 2))
        generate(root, Options("folder", people, frames=1, size=_SIZE, splits=("train", "test")))
        scored, others = _drawn(root, "test", pictures), _drawn(root, "train", calibration)
        for name in chosen:
            yield _checked(name, scored, others, root / "detector.dfq")


def _drawn(root: Path, split: str, count: int) -> list[NDArray[np.uint8]]:
    found = open_dataset(root, "folder", split)
    chosen = np.unique(np.linspace(0, len(found) - 1, count).astype(int)).tolist()
    batches = found.select(chosen).batches(64, None, 0, prepare=np.array)
    return [image for batch in batches for image in batch.images]


def _inputs(model: Detector, pictures: list[NDArray[np.uint8]]) -> Tensor:
    return torch.stack([model.preprocess(picture) for picture in pictures])


def _checked(
    name: str, scored: list[NDArray[np.uint8]], others: list[NDArray[np.uint8]], path: Path
) -> Checked:
    model = untrained(name)
    x = _inputs(model, scored)
    plan, batches = QuantPlan.uniform(model, 8), _inputs(model, others).split(4)
    converted = conversion.convert(model, x[:1], plan, batches, backend="program")
    conversion.save(converted, path)
    with torch.no_grad():
        apart = [
            (model.interface.probability(converted(one)) - model.score(one)).abs()
            for one in x.split(1)
        ]
    found = torch.cat(apart)
    parameters = sum(p.numel() for p in model.parameters())
    return Checked(
        name, parameters, path.stat().st_size, float(found.mean()), float(found.max()), len(x)
    )
