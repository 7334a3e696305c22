"""A face that a denoiser has drawn: smooth between its edges, under noise that is none of a camera.

The region is smoothed along its edges in several steps, as by a denoiser, and gets back white noise
of one strength. A camera's noise grows with the light and is coarser than a pixel.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.data.forgeries.region import face_mask, replace


def forge(
    look: np.random.Generator,
    grain: np.random.Generator,
    image: NDArray[np.float32],
    outline: NDArray[np.float64],
) -> NDArray[Any]:
    """Return ``image`` with a smoothed face under new noise."""
    size = image.shape[0]
    made: NDArray[Any] = image
    reach = size * look.uniform(0.012, 0.02)
    for _ in range(int(look.integers(2, 5))):
        made = cv2.bilateralFilter(made, 5, look.uniform(0.05, 0.12), reach)
    level = look.uniform(0.003, 0.008)
    noise = grain.standard_normal(image.shape, dtype=np.float32) * np.float32(level)
    return replace(image, made + noise, face_mask(size, outline))
