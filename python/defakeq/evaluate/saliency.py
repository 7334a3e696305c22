"""Where a detector looks: occlusion for any network, the input gradient for float ones."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from defakeq.scorer import Scorer

ByteImage = NDArray[np.uint8]
FloatImage = NDArray[np.float32]


def occlusion(scorer: Scorer, image: ByteImage, cells: int = 10) -> FloatImage:
    """Return how much each part of a picture adds to "forged", (height, width), positive: more.

    Every one of ``cells`` x ``cells`` overlapping patches is replaced by a blurred copy, and the
    fall of the score is put where the patch was. Works for networks in integers.
    """
    if cells < 2:
        raise ValueError(f"cells: found {cells}, accepted: at least 2")
    height, width = image.shape[:2]
    blurred = cv2.GaussianBlur(image, (0, 0), max(2.0, max(height, width) / 12))
    grid = np.arange(cells)
    stack, weights = [scorer.prepare(image)], []
    yy = (np.arange(height) + 0.5) / height * cells - 0.5
    xx = (np.arange(width) + 0.5) / width * cells - 0.5
    rows = np.exp(-0.5 * ((yy[None] - grid[:, None]) / 0.7) ** 2)
    columns = np.exp(-0.5 * ((xx[None] - grid[:, None]) / 0.7) ** 2)
    for y in range(cells):
        for x in range(cells):
            weight = rows[y][:, None] * columns[x][None]
            mixed = image + (blurred.astype(np.float64) - image) * weight[..., None]
            stack.append(scorer.prepare(np.clip(np.rint(mixed), 0, 255).astype(np.uint8)))
            weights.append(weight)
    scores = np.concatenate(
        [scorer.score(np.stack(stack[i : i + 32])) for i in range(0, len(stack), 32)]
    )
    # Logits fall where probabilities are too close to 0 or 1 to show it.
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    logits = np.log(clipped / (1 - clipped))
    total = np.tensordot(logits[0] - logits[1:], np.stack(weights), 1)
    return (total / np.maximum(np.sum(weights, 0), 1e-9)).astype(np.float32)


def gradient(scorer: Scorer, image: ByteImage) -> FloatImage | None:
    """Return the strength of the score's gradient at each pixel of the input, slightly blurred.

    None for a network through which no gradient passes, such as one in integers.
    """
    x = scorer.tensor(scorer.prepare(image)[None]).detach().clone().requires_grad_(True)
    try:
        out = scorer.probabilities(x).clamp(1e-7, 1 - 1e-7)
        (found,) = torch.autograd.grad(torch.logit(out).sum(), x, allow_unused=True)
    except (RuntimeError, ValueError):  # the latter from a module that a user wrote
        return None
    if found is None or not bool(found.any()):
        return None
    strength: NDArray[Any] = found[0].abs().amax(0).float().numpy()
    height, width = image.shape[:2]
    strength = cv2.GaussianBlur(strength, (0, 0), max(1.0, strength.shape[0] / 50))
    return cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def overlay(image: ByteImage, values: FloatImage, limit: float | None = None) -> ByteImage:
    """Return a picture in gray with red where ``values`` speak for "forged", blue for "real".

    ``limit`` is the value of full color; the largest one when None.
    """
    largest = float(np.abs(values).max()) if limit is None else limit
    share = np.clip(values / max(largest, 1e-9), -1, 1)[..., None]
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32) * 0.75 + 30
    color = np.where(
        share > 0, np.array([230, 30, 30], np.float32), np.array([40, 90, 240], np.float32)
    )
    return np.clip(np.rint(gray + (color - gray) * np.abs(share) * 0.75), 0, 255).astype(np.uint8)
