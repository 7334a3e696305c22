"""The soft region of a face that a forgery replaces."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]


def face_mask(size: int, outline: NDArray[np.float64], soft: float = 0.02) -> FloatImage:
    """Return the mask (0 to 1) of a polygon, ``size`` square, blurred by ``soft`` of the size."""
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    out = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), max(0.5, soft * size))
    return np.asarray(out, np.float32)


def replace(image: FloatImage, changed: NDArray[Any], mask: FloatImage) -> FloatImage:
    """Return ``image`` with ``changed`` where the mask is 1."""
    return np.clip(image + (changed - image) * mask[..., None], 0, 1).astype(np.float32)
