"""A face with another expression: mouth, brows and jaw are moved, the pixels interpolated."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.data.forgeries.region import face_mask

# Points of a face in its outline's box, and the moves (x, y) of one expression's unit strength.
_POINTS = np.array(
    [[0.3, 0.74], [0.7, 0.74], [0.5, 0.8], [0.5, 0.72], [0.3, 0.2], [0.7, 0.2], [0.5, 0.95]]
)
_EXPRESSIONS = np.array(
    [
        [[-0.06, -0.05], [0.06, -0.05], [0, 0.02], [0, 0], [0, -0.02], [0, -0.02], [0, 0.01]],
        [[0.03, 0.04], [-0.03, 0.04], [0, -0.01], [0, 0.02], [0.02, 0.04], [-0.02, 0.04], [0, 0]],
        [[0.02, 0], [-0.02, 0], [0, 0.08], [0, -0.02], [0, -0.05], [0, -0.05], [0, 0.06]],
    ]
)


def moves(
    look: np.random.Generator, size: int, outline: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return how far each pixel's source lies (``size``, ``size``, (x, y)), in pixels."""
    low, high = outline.min(0), outline.max(0)
    extent = high - low
    shape = _EXPRESSIONS[look.integers(len(_EXPRESSIONS))] * look.uniform(0.8, 1.4)
    shape = shape + look.normal(0, 0.008, shape.shape)
    grid = np.arange(size, dtype=np.float64)
    xx, yy = np.meshgrid(grid, grid)
    field = np.zeros((size, size, 2))
    for point, move in zip(_POINTS * extent + low, shape * extent, strict=True):
        away = (xx - point[0]) ** 2 + (yy - point[1]) ** 2
        weight = np.exp(-away / (2 * (0.13 * extent.mean()) ** 2))
        field -= weight[..., None] * move
    return field.astype(np.float32)


def forge(
    look: np.random.Generator,
    grain: np.random.Generator,
    image: NDArray[np.float32],
    outline: NDArray[np.float64],
) -> NDArray[Any]:
    """Return ``image`` with a warped expression."""
    del grain
    size = image.shape[0]
    field = moves(look, size, outline) * face_mask(size, outline, 0.05)[..., None]
    grid = np.arange(size, dtype=np.float32)
    xx, yy = np.meshgrid(grid, grid)
    out = cv2.remap(
        image,
        xx + field[..., 0],
        yy + field[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )
    return np.clip(out, 0, 1).astype(np.float32)
