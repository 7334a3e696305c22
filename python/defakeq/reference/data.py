"""Data of the reference detectors: pairs for training, generated sets for calibration and tests.

Training pairs show one shot of a face, real and forged, after the same camera and codec. The sets
for calibration and tests are what ``defakeq data generate`` makes: every real and every forged
video is shot anew. Splits share neither faces nor photographs (:mod:`defakeq.data.sources`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.data import open_dataset
from defakeq.data.degrade import video
from defakeq.data.forgeries import FAMILIES, blend
from defakeq.data.generate import Options, generate
from defakeq.data.sources import people, shoot
from defakeq.embedded.data import Base, jpeg, scene_base, split_scenes, to_bytes

ByteImage = NDArray[np.uint8]
FloatImage = NDArray[np.float32]

SIZE = 64
SEED = 0
LEAST_CHANGE = 3.0  # mean difference of 8-bit values, from which a forgery is trained on


@dataclass(frozen=True)
class Evaluation:
    """Pictures of a generated set: uint8 RGB (count, size, size, 3), and what is known of each.

    ``labels`` is 1 for forged; ``families`` and ``videos`` name each picture's forgery family
    (``real`` for none) and video.
    """

    images: ByteImage
    labels: NDArray[np.int64]
    families: list[str]
    videos: list[str]

    def family(self, name: str) -> Evaluation:
        """Return the forgeries of one family beside all real pictures."""
        if name not in FAMILIES:
            raise ValueError(f"family: found {name!r}, accepted: {', '.join(FAMILIES)}")
        chosen = [i for i, own in enumerate(self.families) if own in (name, "real")]
        return Evaluation(
            self.images[chosen],
            self.labels[chosen],
            [self.families[i] for i in chosen],
            [self.videos[i] for i in chosen],
        )


def cache_folder() -> Path:
    """Return where generated data is kept: ``$DEFAKEQ_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("DEFAKEQ_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "defakeq"


def evaluation(
    split: str = "test", count: int = 100, frames: int = 2, size: int = SIZE, seed: int = SEED
) -> Evaluation:
    """Return a generated set of all families, made once and kept in :func:`cache_folder`.

    ``count`` people, each with a real video and one a family, of ``frames`` pictures of ``size``
    squared, after video compression (``c23``). ``split`` is ``train``, ``val`` or ``test``; the
    first for unlabelled calibration. Raises ``ValueError`` for what cannot be generated.
    """
    options = Options("folder", count, seed, frames, size, splits=(split,), degrade=("video:1",))
    options.check()
    name = f"reference-{split}-{count}x{frames}x{size}-{seed}.npz"
    path = cache_folder() / name
    if not path.is_file():
        _make(path, options)
    with np.load(path) as kept:
        return Evaluation(
            kept["images"], kept["labels"], kept["families"].tolist(), kept["videos"].tolist()
        )


def _make(path: Path, options: Options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="defakeq-", dir=path.parent))
    try:
        generate(folder / "data", options)
        found = open_dataset(folder / "data", "folder", options.splits[0])
        images = np.concatenate([part.images for part in found.batches(64, options.size)])
        beside = folder / path.name
        np.savez(
            beside,
            images=images,
            labels=np.array([sample.label for sample in found.samples], np.int64),
            families=np.array(
                [sample.family if sample.label else "real" for sample in found.samples]
            ),
            videos=np.array([sample.video for sample in found.samples]),
        )
        beside.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def training_bases(count: int, seed: int = SEED) -> list[Base]:
    """Return the faces of the training split, drawn once."""
    found = []
    for block in range(0, count, 900):
        wanted = min(900, count - block)
        found += [p.base for p in people("train", wanted, seed + block, "reference")]
    return found


def _film(rng: np.random.Generator, frames: Sequence[FloatImage], seed: int) -> list[ByteImage]:
    """Return pictures after the same camera and codec, as they are stored."""
    strength = int(rng.integers(0, 3))
    quality = int(rng.integers(60, 100)) if rng.random() < 0.3 else 0
    out = []
    for frame in frames:
        done = video(np.random.default_rng(seed), [frame], strength)[0] if strength else frame
        out.append(to_bytes(jpeg(done, quality) if quality else done))
    return out


def pair(
    rng: np.random.Generator,
    bases: Sequence[Base],
    scenes: Sequence[ByteImage],
    share: float = 0.2,
) -> tuple[ByteImage, ByteImage]:
    """Return a real training picture and its self-blend, uint8 RGB of 64 to 96 pixels, square.

    ``share`` of the pairs are pieces of photographs with an outline of a face.
    """
    size = int(rng.integers(SIZE, SIZE * 3 // 2 + 1)) if rng.random() < 0.6 else SIZE
    if rng.random() < share:
        base = scene_base(rng, scenes[int(rng.integers(len(scenes)))])
    else:
        base = bases[int(rng.integers(len(bases)))]
    ((image, outline),) = shoot(rng, base, 1, size)
    look, grain = (np.random.default_rng(int(rng.integers(2**31))) for _ in range(2))
    forged = blend.forge(look, grain, image, outline, full=False)
    real, fake = _film(rng, [image, np.asarray(forged, np.float32)], 0)
    return real, fake


def training_pairs(count: int, faces: int, seed: int = SEED) -> ByteImage:
    """Return training pairs, uint8 RGB (pairs, 2, 64, 64, 3), real before forged.

    ``count`` pairs of ``faces`` people are made once and kept in :func:`cache_folder`; those whose
    forgery changes less than :data:`LEAST_CHANGE` are left out.
    """
    path = cache_folder() / f"reference-pairs-{count}of{faces}x{SIZE}-{seed}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, 77])
        bases, scenes = training_bases(faces, seed), split_scenes("train")
        made = np.empty((count, 2, SIZE, SIZE, 3), np.uint8)
        for index in range(count):
            for side, image in enumerate(pair(rng, bases, scenes)):
                made[index, side] = fit(image)
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")
        with beside.open("wb") as file:
            np.save(file, made)
        beside.replace(path)
    pairs: ByteImage = np.load(path)
    change = [float(cv2.absdiff(real, forged).mean()) for real, forged in pairs]
    return pairs[np.array(change) >= LEAST_CHANGE]


def fit(image: ByteImage, size: int = SIZE) -> ByteImage:
    """Return a picture resized to ``size`` squared."""
    if image.shape[:2] == (size, size):
        return image
    mode = cv2.INTER_AREA if min(image.shape[:2]) > size else cv2.INTER_LINEAR
    out = cv2.resize(image, (size, size), interpolation=mode)
    return np.ascontiguousarray(out, np.uint8)
