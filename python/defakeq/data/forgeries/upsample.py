"""A face out of a generator's last layers: the grid of transposed convolutions.

The region is reduced to a quarter and enlarged by two transposed convolutions of stride 2 whose
3x3 kernel covers the output unevenly (the overlap that Odena and others describe, Distill 2016).
The surplus of some positions repeats every two and every four pixels, which the spectrum shows as
peaks at multiples of a quarter of the sampling rate. Detail is put back, so that sharpness alone
does not tell.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.data.forgeries.region import face_mask, replace


def transposed_convolution(
    image: NDArray[np.float32], surplus: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return ``image`` (h, w, c) at twice its size, by stride 2 and a kernel of 3x3.

    ``surplus`` (2, c) is how much more than its share a pixel with the even and with the odd
    position gets, along both axes.
    """
    height, width, channels = image.shape
    wide = np.zeros((2 * height, 2 * width, channels), np.float32)
    wide[::2, ::2] = image
    # Pixels between two others get half of each, the others all of one.
    kernel = np.array([0.5, 1.0, 0.5], np.float32)
    out = cv2.sepFilter2D(wide, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    grid = np.ones((2, 2, channels), np.float32)
    grid[0] += surplus[0].astype(np.float32)
    grid[:, 0] += surplus[1].astype(np.float32)
    return (out * np.tile(grid, (height, width, 1))).astype(np.float32)


def forge(
    look: np.random.Generator,
    grain: np.random.Generator,
    image: NDArray[np.float32],
    outline: NDArray[np.float64],
) -> NDArray[Any]:
    """Return ``image`` with a face that two transposed convolutions enlarged."""
    del grain
    size = image.shape[0]
    # Every fourth pixel, at which the enlarged grid begins: so nothing is shifted.
    blurred = cv2.GaussianBlur(image, (0, 0), 1.6)
    made = np.ascontiguousarray(blurred[::4, ::4], np.float32)
    for _ in range(2):
        surplus = look.uniform(0.015, 0.035, (2, 3)) * look.choice([-1, 1], (2, 1))
        made = transposed_convolution(made, surplus)
    made = made[:size, :size]
    detail = image - cv2.GaussianBlur(image, (0, 0), look.uniform(1.0, 1.6))
    return replace(image, made + detail * look.uniform(0.6, 0.95), face_mask(size, outline))
