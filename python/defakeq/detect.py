"""Scoring the faces in pictures and videos."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defakeq.embedded.network import INPUT_SIZE
from defakeq.faces import Box, crop_square, find_faces, margin_box
from defakeq.images import collect, is_video, read_frames, read_image
from defakeq.scorer import EMBEDDED, Scorer, open_model

ByteImage = NDArray[np.uint8]


@dataclass(frozen=True)
class FaceScore:
    """A face and the probability, 0 to 1, that it is forged.

    ``box`` is (left, top, width, height) in pixels, ``milliseconds`` the time of the network for
    this face, ``frame`` the index of the video's frame, or None for a picture.
    """

    box: Box
    probability: float
    milliseconds: float
    frame: int | None = None


@dataclass(frozen=True)
class FileScore:
    """The faces of one file.

    ``probability`` is that of the likeliest forgery in a picture, and in a video the mean over the
    frames of each frame's likeliest; None without a face. ``milliseconds`` is the whole time of the
    file: reading, finding faces, scoring. ``error`` says why a file could not be read, else None.
    """

    path: str
    kind: str
    faces: list[FaceScore] = field(default_factory=list)
    probability: float | None = None
    milliseconds: float = 0.0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return asdict(self)


class Detector:
    """Finds faces and scores them with any :class:`~defakeq.scorer.Scorer` or module.

    A module is taken as a scorer takes it. The embedded compressed detector when None.
    """

    def __init__(self, model: torch.nn.Module | Scorer | None = None) -> None:
        if model is None:
            model = open_model()
        self.scorer = model if isinstance(model, Scorer) else Scorer("model", model, 0, "")

    def score(self, crops: Sequence[ByteImage] | ByteImage) -> NDArray[np.float64]:
        """Return the probability of "forged" of crops, each uint8 RGB (height, width, 3).

        Raises ``ValueError`` when the model does not give one number a crop.
        """
        return self.scorer.score(np.stack([self.scorer.prepare(crop) for crop in crops]))

    def inspect(self, image: ByteImage, frame: int | None = None) -> list[FaceScore]:
        """Return the faces of a picture, uint8 RGB (height, width, 3), the largest first."""
        scores = []
        for box in find_faces(image):
            stack = self.scorer.prepare(crop_square(image, margin_box(box)))[None]
            start = time.perf_counter()
            probability = float(self.scorer.score(stack)[0])
            spent = (time.perf_counter() - start) * 1e3
            scores.append(FaceScore(box, probability, spent, frame))
        return scores

    def scan(self, path: Path, frames: int = 16) -> FileScore:
        """Return the score of a picture, or of ``frames`` frames of a video.

        A file that cannot be read is no exception: its ``error`` says why.
        """
        kind = "video" if is_video(path) else "image"
        start = time.perf_counter()
        faces: list[FaceScore] = []
        try:
            if kind == "image":
                faces = self.inspect(read_image(path))
                found = [max(face.probability for face in faces)] if faces else []
            else:
                found = []
                for index, image in read_frames(path, frames):
                    here = self.inspect(image, index)
                    faces.extend(here)
                    if here:
                        found.append(max(face.probability for face in here))
        except ValueError as error:
            return FileScore(str(path), kind, error=str(error))
        probability = float(np.mean(found)) if found else None
        spent = (time.perf_counter() - start) * 1e3
        return FileScore(str(path), kind, faces, probability, spent)


def scan_all(
    paths: list[Path], model: str = EMBEDDED, builder: str | None = None, frames: int = 16
) -> Iterator[FileScore]:
    """Yield the scores of files and folders in order. See :meth:`Detector.scan`.

    ``model`` and ``builder`` are those of :func:`defakeq.scorer.open_model`.
    """
    files = collect(paths)
    detector = Detector(open_model(model, builder))
    # The first call prepares threads and memory; no face's time should have that in it.
    detector.score([np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)])
    for path in files:
        yield detector.scan(path, frames)
