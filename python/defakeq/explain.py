"""Where a detector looks in a picture: maps of the compressed and the float network, as one PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.evaluate import saliency
from defakeq.faces import Box, crop_square, find_faces, margin_box
from defakeq.images import read_image
from defakeq.scorer import Scorer, kinds

ByteImage = NDArray[np.uint8]

SIDE = 320  # pixels of a panel
_BAR = 44


@dataclass(frozen=True)
class Explanation:
    """The picture of all panels, the face that was looked at, and each network's probability.

    ``box`` is None where no face was found, and the whole picture was taken for a crop.
    """

    panels: ByteImage
    box: Box | None
    scores: dict[str, float]


def explain(path: Path, scorers: Sequence[Scorer], cells: int = 10) -> Explanation:
    """Return where networks (the one in question, then a float one) look in a picture.

    The maps have ``cells`` by ``cells`` patches. Raises ``ValueError`` that names a file that is no
    picture, or another number of networks.
    """
    if not 1 <= len(scorers) <= 2:
        raise ValueError(f"scorers: found {len(scorers)}, accepted: one or two")
    image = read_image(path)
    boxes = find_faces(image)
    crop = crop_square(image, margin_box(boxes[0])) if boxes else image
    scores = {
        kind: float(scorer.score(scorer.prepare(crop)[None])[0])
        for kind, scorer in zip(kinds(scorers), scorers, strict=True)
    }
    crop = np.asarray(cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    maps = [saliency.occlusion(scorer, crop, cells) for scorer in scorers]
    limit = max(float(np.abs(values).max()) for values in maps)
    shown = [_panel(crop, "face" if boxes else "whole picture (no face found)", "")]
    for (kind, score), values in zip(scores.items(), maps, strict=True):
        overlay = saliency.overlay(crop, values, limit)
        shown.append(_panel(overlay, kind, f"probability of a forgery {score:.3f}"))
    if len(scorers) > 1:
        slope = saliency.gradient(scorers[1], crop)
        if slope is not None:
            shown.append(_panel(saliency.overlay(crop, slope), "float, gradient", "strength only"))
    return Explanation(np.concatenate(shown, 1), boxes[0] if boxes else None, scores)


def _panel(image: ByteImage, title: str, note: str) -> ByteImage:
    """Return a picture below a bar with two lines of text."""
    out = np.full((SIDE + _BAR, SIDE + 8, 3), 255, np.uint8)
    out[_BAR:, 4 : SIDE + 4] = image
    for text, y, size in ((title, 17, 0.5), (note, 36, 0.42)):
        cv2.putText(out, text, (6, y), cv2.FONT_HERSHEY_SIMPLEX, size, (20, 20, 20), 1, cv2.LINE_AA)
    return out


def write_png(path: Path, image: ByteImage) -> None:
    """Write a picture, uint8 RGB, as PNG. Raises ``ValueError`` for another suffix."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"out: found {path}, accepted: a file name that ends with .png")
    ok, code = cv2.imencode(".png", image[..., ::-1])
    if not ok:
        raise RuntimeError(f"{path}: OpenCV cannot write PNG")
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(code.tobytes())
        beside.replace(path)
    except OSError as error:
        raise ValueError(f"out: {path} cannot be written: {error.strerror}") from error
