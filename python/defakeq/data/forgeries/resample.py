"""A face that was made at another resolution: its finest detail is gone, its pixels correlate.

The region is reduced, turned by a fraction of a degree, and enlarged again, as a face is when a
network of a fixed input size makes it.
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
    """Return ``image`` with a resampled face."""
    del grain
    size = image.shape[0]
    small = max(16, round(size * look.uniform(0.4, 0.62)))
    enlarge = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)[look.integers(3)]
    angle = look.uniform(0.2, 0.8) * look.choice([-1, 1])
    middle = (size / 2, size / 2)
    turn = cv2.getRotationMatrix2D(middle, angle, 1)
    back = cv2.getRotationMatrix2D(middle, -angle, 1)
    turned = cv2.warpAffine(image, turn, (size, size), None, cv2.INTER_LINEAR, cv2.BORDER_REFLECT)
    low = cv2.resize(turned, (small, small), interpolation=cv2.INTER_AREA)
    high = cv2.resize(low, (size, size), interpolation=enlarge)
    high = cv2.warpAffine(high, back, (size, size), None, cv2.INTER_LINEAR, cv2.BORDER_REFLECT)
    return replace(image, high, face_mask(size, outline))
