"""Training and test data of the embedded detector: photographs, procedural faces, self-blends.

A forged sample is an image blended with a changed copy of itself through a soft, face-shaped mask.
The copy differs in color, sharpness, noise or compression, and is slightly moved and scaled. The
idea is that of self-blended images (Shiohara and Yamasaki, CVPR 2022); the code is our own. Both
classes then pass through the same camera and JPEG steps with the same settings, so that these say
nothing about the class.

Splits are disjoint by source: a photograph belongs to one split, a procedural face's seed too, and
the backgrounds of procedural faces come from the photographs of their split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.embedded.network import INPUT_SIZE
from defakeq.embedded.procedural import CANVAS, render
from defakeq.faces import crop_square, margin_box

FloatImage = NDArray[np.float32]
ByteImage = NDArray[np.uint8]
Points = NDArray[np.float64]

PHOTOS = Path(__file__).parent / "photos"

# Photographs without a frontal face, by split.
SCENES: dict[str, tuple[str, ...]] = {
    "train": ("brick", "camera", "china", "coffee", "grass", "retina", "rocket"),
    "validation": ("flower", "gravel"),
    "test": ("chelsea", "hubble"),
}
# Photographs of a person and the face's box (left, top, width, height). In no split but the test.
FACES: dict[str, tuple[int, int, int, int]] = {
    "astronaut": (177, 66, 94, 94),
    "grace_hopper": (155, 105, 222, 222),
}
# First seed of the procedural faces of a split; the splits' ranges never meet.
SEEDS = {"train": 0, "validation": 10_000_000, "test": 20_000_000}

# The face's outline in its box's coordinates, used where no landmarks are known.
_T = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_OUTLINE = np.stack(
    [
        0.5 + 0.38 * np.cos(_T) * (1 - 0.14 * np.clip(np.sin(_T), 0, 1)),
        np.where(np.sin(_T) > 0, 0.52 + 0.48 * np.sin(_T), 0.52 + 0.34 * np.sin(_T)),
    ],
    1,
)


@dataclass(frozen=True)
class Base:
    """An unforged image: uint8 RGB, square, with the polygon (x, y) of its inner face."""

    image: ByteImage
    outline: Points


def load_photo(name: str) -> ByteImage:
    """Return a bundled photograph as uint8 RGB of shape (height, width, 3).

    Raises ``ValueError`` when there is no such photograph: a wheel without torch has those of the
    test split only.
    """
    path = PHOTOS / f"{name}.jpg"
    data = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.exists() else None
    if data is None:
        known = ", ".join(sorted(p.stem for p in PHOTOS.glob("*.jpg")))
        raise ValueError(f"name: found {name!r}, accepted: {known}")
    return np.ascontiguousarray(data[..., ::-1], dtype=np.uint8)


def face_outline(box: tuple[float, float, float, float]) -> Points:
    """Return the polygon (x, y) of the inner face in a face box (left, top, width, height)."""
    return _OUTLINE * [box[2], box[3]] + [box[0], box[1]]


def jpeg(image: FloatImage, quality: int) -> FloatImage:
    """Return ``image`` (RGB, 0 to 1) after JPEG compression at ``quality``, 1 to 100."""
    data = to_bytes(image)[..., ::-1]
    _, code = cv2.imencode(".jpg", data, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return to_float(np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))[..., ::-1])


def to_float(image: NDArray[Any]) -> FloatImage:
    """Return a uint8 image as float32, 0 to 1."""
    return np.ascontiguousarray(image, dtype=np.float32) / np.float32(255)


def to_bytes(image: FloatImage) -> ByteImage:
    """Return a float image (0 to 1) as uint8."""
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, image: FloatImage, read: float, shot: float) -> FloatImage:
    """Return ``image`` with sensor noise: a constant part and one that grows with the light."""
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    if rng.random() < 0.5:  # a demosaicked sensor's noise is correlated
        grain = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.4, 0.8)) * np.float32(1.6)
    if rng.random() < 0.4:
        grain = 0.7 * grain.mean(2, keepdims=True) * np.float32(1.7) + 0.3 * grain
    level = np.sqrt(np.float32(read**2) + np.float32(shot**2) * np.clip(image, 0, 1))
    return np.clip(image + grain * level, 0, 1).astype(np.float32)


def _recolor(rng: np.random.Generator, image: FloatImage, strength: float) -> FloatImage:
    """Return ``image`` with shifted color, brightness, contrast and saturation."""
    shift = rng.uniform(-0.09, 0.09, 3) * strength
    gain = 1 + rng.uniform(-0.16, 0.16) * strength
    saturation = 1 + rng.uniform(-0.35, 0.35) * strength
    gray = image.mean(2, keepdims=True)
    out = gray + (image - gray) * saturation
    middle = out.mean()
    out = (out - middle) * gain + middle + shift + rng.uniform(-0.06, 0.06) * strength
    return np.clip(out, 0, 1).astype(np.float32)


def _refilter(rng: np.random.Generator, image: FloatImage) -> FloatImage:
    """Return ``image`` with a changed sharpness, resolution, noise or compression."""
    size = image.shape[0]
    choice = rng.integers(6)
    if choice == 0:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 0.4 + size / 110)).astype(
            np.float32
        )
    if choice == 1:
        low = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.7, 1.8))
        return np.clip(image + (image - low) * rng.uniform(0.5, 1.6), 0, 1).astype(np.float32)
    if choice in (2, 3):
        small = max(16, round(size * rng.uniform(0.3, 0.75)))
        modes = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4, cv2.INTER_NEAREST)
        up = modes[rng.integers(3 if choice == 2 else 4)]
        down = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        return np.clip(cv2.resize(down, (size, size), interpolation=up), 0, 1).astype(np.float32)
    if choice == 4:
        return jpeg(image, int(rng.integers(20, 65)))
    return _noise(rng, image, rng.uniform(0.015, 0.05), rng.uniform(0, 0.03))


def blend_mask(rng: np.random.Generator, size: int, outline: Points) -> FloatImage:
    """Return a soft mask (0 to 1, ``size`` square) of the face or of a part of it."""
    points = outline.copy()
    low, high = points.min(0), points.max(0)
    part = rng.random()
    if part < 0.18:  # the mouth and the chin
        points[:, 1] = np.maximum(points[:, 1], low[1] + (high[1] - low[1]) * rng.uniform(0.3, 0.5))
    elif part < 0.32:  # the eyes and the nose
        points[:, 1] = np.minimum(
            points[:, 1], low[1] + (high[1] - low[1]) * rng.uniform(0.45, 0.7)
        )
    middle = points.mean(0)
    points = (points - middle) * rng.uniform(0.82, 1.12, 2) + middle
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    if rng.random() < 0.6:  # bend its edge
        grid = np.arange(size, dtype=np.float32)
        xx, yy = np.meshgrid(grid, grid)
        cells = int(rng.integers(3, 7))
        scale = size * rng.uniform(0.01, 0.05)
        bend = [
            cv2.resize(
                rng.standard_normal((cells, cells)).astype(np.float32),
                (size, size),
                interpolation=cv2.INTER_CUBIC,
            )
            * np.float32(scale)
            for _ in range(2)
        ]
        bent = cv2.remap(mask, xx + bend[0], yy + bend[1], cv2.INTER_LINEAR)
        mask = np.asarray(bent, np.uint8)
    soft = size * rng.uniform(0.004, 0.045)
    out = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), max(0.5, soft))
    if rng.random() < 0.4:  # pull the edge inside
        out = np.clip((out - 0.3) / 0.7, 0, 1)
    return np.asarray(out, np.float32)


def forge(
    rng: np.random.Generator, image: FloatImage, outline: Points, full: bool = False
) -> FloatImage:
    """Return a self-blended copy of a square float image (RGB, 0 to 1).

    ``outline`` is the polygon (x, y) of the inner face in pixels. ``full`` forgeries cover their
    whole mask and always differ in color; without it some are weaker. A generator in the same state
    gives the same forgery.
    """
    size = image.shape[0]
    mask = blend_mask(rng, size, outline)
    opacity = rng.choice([0.5, 0.75, 1, 1, 1, 1])
    mask = mask * np.float32(1 if full else opacity)
    changed = image
    recolor, refilter = rng.random() < 0.8, rng.random() < 0.75
    if full or recolor or not refilter:
        changed = _recolor(rng, changed, rng.uniform(0.9 if full else 0.5, 1.3))
    if refilter:
        changed = _refilter(rng, changed)
    source, target = (changed, image) if rng.random() < 0.65 else (image, changed)
    zoom = rng.uniform(0.96, 1.04)
    center = outline.mean(0)
    matrix = cv2.getRotationMatrix2D((float(center[0]), float(center[1])), rng.normal(0, 0.7), zoom)
    matrix[:, 2] += rng.uniform(-0.025, 0.025, 2) * size
    source = cv2.warpAffine(
        source, matrix, (size, size), None, cv2.INTER_LINEAR, cv2.BORDER_REFLECT
    ).astype(np.float32)
    return np.clip(target + (source - target) * mask[..., None], 0, 1).astype(np.float32)


def finish(seed: int, image: FloatImage) -> ByteImage:
    """Return the sample of a square image: camera and JPEG steps by ``seed``, then a resize."""
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        image = _recolor(rng, image, rng.uniform(0, 1))
    kind = rng.random()
    if kind < 0.2:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.1)).astype(np.float32)
    elif kind < 0.3:
        low = cv2.GaussianBlur(image, (0, 0), 1.0)
        image = np.clip(image + (image - low) * rng.uniform(0.2, 1.0), 0, 1).astype(np.float32)
    if rng.random() < 0.25:
        image = _noise(rng, image, rng.uniform(0, 0.02), rng.uniform(0, 0.02))
    if rng.random() < 0.75:
        image = jpeg(image, int(rng.integers(55, 100)))
    return resize_input(to_bytes(image))


def resize_input(image: ByteImage) -> ByteImage:
    """Return a square uint8 image at the detector's input size."""
    size = image.shape[0]
    mode = cv2.INTER_AREA if size > INPUT_SIZE else cv2.INTER_LINEAR
    out = cv2.resize(image, (INPUT_SIZE, INPUT_SIZE), interpolation=mode)
    return np.ascontiguousarray(out, dtype=np.uint8)


def procedural_base(seed: int, scenes: list[ByteImage]) -> Base:
    """Return a procedural face before an imagined camera, over a piece of one of ``scenes``."""
    rng = np.random.default_rng(seed)
    scene = scenes[rng.integers(len(scenes))]
    side = int(rng.integers(60, min(scene.shape[:2])))
    top = int(rng.integers(scene.shape[0] - side + 1))
    left = int(rng.integers(scene.shape[1] - side + 1))
    background = to_float(scene[top : top + side, left : left + side])
    if rng.random() < 0.5:
        background = background[:, ::-1]
    face = render(rng, background)
    return Base(to_bytes(face.image), face.outline)


def scene_base(rng: np.random.Generator, scene: ByteImage) -> Base:
    """Return a square piece of a photograph with a face-shaped outline near its middle."""
    side = int(rng.integers(90, min(280, min(scene.shape[:2])) + 1))
    top = int(rng.integers(scene.shape[0] - side + 1))
    left = int(rng.integers(scene.shape[1] - side + 1))
    image = np.ascontiguousarray(scene[top : top + side, left : left + side])
    width = side * rng.uniform(0.5, 0.8)
    height = width * rng.uniform(0.9, 1.2)
    corner = (side - np.array([width, height])) / 2 + rng.normal(0, 0.03 * side, 2)
    return Base(image, face_outline((corner[0], corner[1], width, height)))


def photo_face_base(rng: np.random.Generator, name: str) -> Base:
    """Return the face of a bundled photograph, cut out a little differently every time."""
    left, top, width, height = FACES[name]
    jitter = rng.normal(0, 0.03, 2) * width
    scale = rng.uniform(0.92, 1.1)
    box = (
        left + width * (1 - scale) / 2 + jitter[0],
        top + height * (1 - scale) / 2 + jitter[1],
        width * scale,
        height * scale,
    )
    square = margin_box(box)
    image = crop_square(load_photo(name), square)
    outline = face_outline((left - square[0], top - square[1], width, height))
    if rng.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
        outline[:, 0] = image.shape[1] - outline[:, 0]
    return Base(image, outline)


def _place(rng: np.random.Generator, base: Base) -> tuple[FloatImage, Points]:
    """Cut a procedural face out at a random framing and resolution, with its sensor's noise."""
    size = base.image.shape[0]
    side = size * rng.uniform(0.78, 1.0)
    corner = (size - side) / 2 + rng.uniform(-0.06, 0.06, 2) * size
    corner = np.clip(corner, 0, size - side)
    x, y, s = int(corner[0]), int(corner[1]), int(side)
    image = base.image[y : y + s, x : x + s]
    outline = base.outline - [x, y]
    if rng.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
        outline = np.stack([s - outline[:, 0], outline[:, 1]], 1)
    native = int(rng.integers(90, 257))
    mode = cv2.INTER_AREA if native < s else cv2.INTER_CUBIC
    out = np.clip(to_float(cv2.resize(image, (native, native), interpolation=mode)), 0, 1)
    if rng.random() < 0.35:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.2)).astype(np.float32)
    if rng.random() < 0.9:
        out = _noise(rng, out, rng.uniform(0, 0.025), rng.uniform(0, 0.035))
    if rng.random() < 0.5:
        out = jpeg(out, int(rng.integers(65, 99)))
    return out.astype(np.float32), outline * (native / s)


def make_pair(rng: np.random.Generator, base: Base) -> tuple[ByteImage, ByteImage]:
    """Return a real sample and its forgery, uint8 RGB at the detector's input size."""
    if base.image.shape[0] == CANVAS:
        image, outline = _place(rng, base)
    else:
        image, outline = to_float(base.image), base.outline
        if rng.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
            outline = np.stack([image.shape[1] - outline[:, 0], outline[:, 1]], 1)
    seed = int(rng.integers(2**31))
    return finish(seed, image), finish(seed, forge(rng, image, outline))


def split_scenes(split: str) -> list[ByteImage]:
    """Return a split's photographs without a frontal face.

    Raises ``ValueError`` for a split other than ``train``, ``validation`` and ``test``.
    """
    if split not in SCENES:
        raise ValueError(f"split: found {split!r}, accepted: {', '.join(SCENES)}")
    return [load_photo(name) for name in SCENES[split]]


def bases(split: str, kind: str, count: int, seed: int = 0) -> Iterator[Base]:
    """Yield ``count`` unforged images of a split.

    ``kind`` is ``procedural``, ``scene`` (pieces of photographs) or the name of a photograph of a
    person, which only the split ``test`` has. Raises ``ValueError`` for anything else.
    """
    scenes = split_scenes(split)
    rng = np.random.default_rng(SEEDS[split] + seed)
    for index in range(count):
        if kind == "procedural":
            yield procedural_base(SEEDS[split] + 100_000 * seed + index, scenes)
        elif kind == "scene":
            yield scene_base(rng, scenes[index % len(scenes)])
        elif kind in FACES and split == "test":
            yield photo_face_base(rng, kind)
        else:
            known = ("procedural", "scene", *(FACES if split == "test" else ()))
            raise ValueError(
                f"kind: found {kind!r} in split {split!r}, accepted: {', '.join(known)}"
            )


def samples(
    split: str, kind: str, count: int, seed: int = 0
) -> tuple[ByteImage, NDArray[np.float32]]:
    """Return ``count`` pairs as (2 * count, size, size, 3) uint8 RGB and labels (1 is forged)."""
    rng = np.random.default_rng([SEEDS[split], seed, 1])
    images = np.empty((2 * count, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    for index, base in enumerate(bases(split, kind, count, seed)):
        images[2 * index], images[2 * index + 1] = make_pair(rng, base)
    return images, np.tile(np.array([0, 1], np.float32), count)
