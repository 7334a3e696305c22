"""Scoring the faces in pictures and videos with a compressed detector."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defakeq.embedded.data import resize_input
from defakeq.embedded.network import INPUT_SIZE, PACKED, load_float, to_input
from defakeq.faces import Box, crop_square, find_faces, margin_box
from defakeq.images import collect, is_video, read_frames, read_image

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


def load_model(path: Path | None = None) -> torch.nn.Module:
    """Return the detector of a ``.dfq`` file, or the embedded one.

    Raises ``ValueError`` when the file is missing or is no detector file.
    """
    from defakeq.conversion import load

    chosen = PACKED if path is None else path
    if not chosen.is_file():
        raise ValueError(f"model: found {chosen}, which is no file; accepted: a .dfq file")
    try:
        return load(chosen)
    except ValueError as error:
        raise ValueError(f"model: found {chosen}, accepted: a .dfq file; {error}") from error


class Detector:
    """Finds faces and scores them.

    ``model`` maps float32 (batch, 3, 128, 128), RGB from -1 to 1, to the logit of "forged"; the
    embedded compressed detector when None.
    """

    def __init__(self, model: torch.nn.Module | None = None) -> None:
        self.model = (load_model() if model is None else model).eval()

    def score(self, crops: ByteImage) -> NDArray[np.float64]:
        """Return the probability of "forged" of crops, uint8 RGB (batch, 128, 128, 3).

        Raises ``ValueError`` when the model does not give one number a crop.
        """
        x = to_input(crops).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            logits = self.model(x)
        if not isinstance(logits, torch.Tensor) or logits.numel() != len(crops):
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits)
            raise ValueError(
                f"model: found an output of {found} for {len(crops)} crops, accepted: "
                "one logit each"
            )
        out: NDArray[np.float64] = torch.sigmoid(logits.double()).flatten().numpy()
        return out

    def inspect(self, image: ByteImage, frame: int | None = None) -> list[FaceScore]:
        """Return the faces of a picture, uint8 RGB (height, width, 3), the largest first."""
        scores = []
        for box in find_faces(image):
            crop = resize_input(crop_square(image, margin_box(box)))
            start = time.perf_counter()
            probability = float(self.score(crop[None])[0])
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


def scan_all(paths: list[Path], model: Path | None = None, frames: int = 16) -> Iterator[FileScore]:
    """Yield the scores of files and folders in order. See :meth:`Detector.scan`."""
    files = collect(paths)
    detector = Detector(load_model(model))
    # The first call prepares threads and memory; no face's time should have that in it.
    detector.score(np.zeros((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8))
    for path in files:
        yield detector.scan(path, frames)


def float_detector() -> Detector:
    """Return the detector with the float32 network that the embedded one was made from."""
    return Detector(load_float())
