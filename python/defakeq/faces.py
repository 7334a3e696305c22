"""Finding faces with OpenCV, and cutting them out for a detector."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ByteImage = NDArray[np.uint8]
Box = tuple[float, float, float, float]

# A crop's side, in face boxes: the box that OpenCV finds ends at the chin and the brow.
MARGIN = 1.3
_SEARCH_SIDE = 1024  # larger images are searched at this length of their longer side
_CASCADE = "haarcascade_frontalface_default.xml"


@functools.lru_cache(maxsize=1)
def _cascade() -> Any:
    if not hasattr(cv2, "CascadeClassifier"):
        raise RuntimeError(
            f"OpenCV: found {cv2.__version__}, which has no CascadeClassifier; accepted: 4.x "
            "(pip install 'opencv-python-headless>=4.8,<5')"
        )
    path = str(Path(cv2.__file__).parent / "data" / _CASCADE)
    cascade = cv2.CascadeClassifier(path)
    if cascade.empty():
        raise RuntimeError(f"OpenCV: its package misses the face cascade {path}; install it again")
    return cascade


def find_faces(image: ByteImage, min_side: int = 32) -> list[Box]:
    """Return the boxes (left, top, width, height) in pixels of frontal faces, the largest first.

    ``image`` is uint8 RGB of shape (height, width, 3). Faces narrower than ``min_side`` pixels are
    left out. Raises ``ValueError`` for another kind of array.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image: found {image.dtype} of shape {tuple(image.shape)}, accepted: uint8 of shape "
            "(height, width, 3)"
        )
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, _SEARCH_SIDE / max(gray.shape))
    if scale < 1:
        size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    smallest = max(24, round(min_side * scale))
    found = _cascade().detectMultiScale(gray, 1.1, 6, minSize=(smallest, smallest))
    boxes = [
        (x / scale, y / scale, w / scale, h / scale) for x, y, w, h in np.asarray(found).tolist()
    ]
    return sorted(boxes, key=lambda box: (-box[2] * box[3], box))


def margin_box(box: Box, margin: float = MARGIN) -> tuple[int, int, int]:
    """Return the square (left, top, side) in pixels around a face box, ``margin`` boxes wide."""
    left, top, width, height = box
    side = max(1, round(max(width, height) * margin))
    return round(left + width / 2 - side / 2), round(top + height / 2 - side / 2), side


def crop_square(image: ByteImage, square: tuple[int, int, int]) -> ByteImage:
    """Return the square (left, top, side) of an image; what lies outside is mirrored into it."""
    left, top, side = square
    height, width = image.shape[:2]
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(width, left + side), min(height, top + side)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"square: found {square}, accepted: one that meets the {width}x{height} image"
        )
    crop: NDArray[Any] = image[y0:y1, x0:x1]
    pads = (y0 - top, top + side - y1, x0 - left, left + side - x1)
    if any(pads):
        crop = cv2.copyMakeBorder(crop, *pads, cv2.BORDER_REFLECT)
    return np.ascontiguousarray(crop, dtype=np.uint8)
