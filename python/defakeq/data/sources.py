"""The people of miniature data: procedural faces and photographs, each in one split alone."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.embedded.data import (
    FACES,
    SCENES,
    SEEDS,
    Base,
    face_outline,
    load_photo,
    procedural_base,
    to_float,
)
from defakeq.images import read_image

FloatImage = NDArray[np.float32]
ByteImage = NDArray[np.uint8]

# The names of the splits here and in the embedded detector's data, whose sources are the same.
SPLIT_SOURCES = {"train": "train", "val": "validation", "test": "test"}
# Photographs of scikit-image's wheel that are not bundled, by split; backgrounds only.
SKIMAGE = {
    "train": ("ihc.png", "motorcycle_left.png"),
    "val": ("coins.png",),
    "test": ("moon.png",),
}
_LARGEST = 900  # people of a split


@dataclass(frozen=True)
class Person:
    """Someone: where the face comes from, and the face with its outline."""

    source: str
    base: Base


def skimage_photos(split: str) -> dict[str, ByteImage]:
    """Return photographs of the installed scikit-image; empty without it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return {}
    folder = Path(spec.origin).parent / "data"
    paths = [folder / name for name in SKIMAGE[split]]
    return {f"scikit-image/{p.stem}": read_image(p) for p in paths if p.is_file()}


def people(
    split: str, count: int, seed: int, dataset: str, skimage: bool = False
) -> Iterator[Person]:
    """Yield ``count`` people of a split; each split has seeds and photographs of its own.

    From six people on, the last two of the test split are photographs of real people. Raises
    ``ValueError`` for more people than a split's seeds allow.
    """
    if not 1 <= count <= _LARGEST:
        raise ValueError(f"count: found {count} people a split, accepted: 1 to {_LARGEST}")
    own = SPLIT_SOURCES[split]
    scenes = [load_photo(name) for name in SCENES[own]]
    if skimage:
        scenes.extend(skimage_photos(split).values())
    photos = sorted(FACES) if split == "test" and count >= 6 else []
    # Seeds of a split are 10 million apart; a data set takes one thousand of them.
    first = SEEDS[own] + 1000 * ((zlib.crc32(dataset.encode()) + 7919 * seed) % 9999)
    for index in range(count - len(photos)):
        yield Person(f"procedural/{first + index}", procedural_base(first + index, scenes))
    for name in photos:
        yield Person(f"photograph/{name}", _portrait(name))


def _portrait(name: str) -> Base:
    left, top, width, height = FACES[name]
    image = load_photo(name)
    side = round(width * 1.7)
    x = int(np.clip(left + width / 2 - side / 2, 0, max(0, image.shape[1] - side)))
    y = int(np.clip(top + height / 2 - side / 2, 0, max(0, image.shape[0] - side)))
    piece = np.ascontiguousarray(image[y : y + side, x : x + side])
    return Base(piece, face_outline((left - x, top - y, width, height)))


def shoot(
    rng: np.random.Generator, base: Base, frames: int, size: int
) -> Iterator[tuple[FloatImage, NDArray[np.float64]]]:
    """Yield the frames of a short film of a face: float32 RGB ``size`` square, and the outline.

    The head drifts a little, the light changes slowly, and a sensor adds its noise.
    """
    image = to_float(base.image)
    canvas = image.shape[0]
    low, high = base.outline.min(0), base.outline.max(0)
    middle = (low + high) / 2
    # The crop is as wide as the one that a face detector and the usual margin give.
    extent = float((high - low).max()) * rng.uniform(1.3, 1.55)
    shrink = cv2.INTER_AREA if extent > size else cv2.INTER_LINEAR
    drift = np.cumsum(rng.normal(0, 0.006, (frames, 2)), 0) * extent
    turn = np.cumsum(rng.normal(0, 0.5, frames)) + rng.normal(0, 1.5)
    light = 1 + 0.02 * np.cumsum(rng.normal(0, 0.5, frames)) + rng.uniform(-0.12, 0.12)
    tint = rng.uniform(0.95, 1.05, 3)
    read, shot = rng.uniform(0.002, 0.012), rng.uniform(0.004, 0.02)
    soft = rng.uniform(0.35, 0.7)
    # Reduce in two steps, a whole-number one by area, so that nothing aliases.
    whole = max(1, round(extent / size))
    if whole > 1 and shrink == cv2.INTER_AREA:
        small = (max(1, canvas // whole), max(1, canvas // whole))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA).astype(np.float32)
    ratio = image.shape[0] / canvas
    for index in range(frames):
        center = (middle + drift[index]) * ratio
        matrix = cv2.getRotationMatrix2D(
            (float(center[0]), float(center[1])), float(turn[index]), size / (extent * ratio)
        )
        matrix[:, 2] += size / 2 - center
        frame = cv2.warpAffine(
            image, matrix, (size, size), None, cv2.INTER_LINEAR, cv2.BORDER_REFLECT
        )
        outline = (base.outline * ratio) @ matrix[:, :2].T + matrix[:, 2]
        out = np.clip(frame * (tint * light[index]).astype(np.float32), 0, 1)
        grain = rng.standard_normal(out.shape, dtype=np.float32)
        # A demosaicked sensor's noise is coarser than a pixel.
        grain = cv2.GaussianBlur(grain, (0, 0), soft) * np.float32(1 + soft)
        level = np.sqrt(np.float32(read**2) + np.float32(shot**2) * out)
        yield np.clip(out + grain * level, 0, 1).astype(np.float32), outline
