"""Calibration images and labels, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ACCEPTED = "a tensor of images, (images, labels), or batches of these"


@dataclass(frozen=True)
class Calibration:
    """Images a compression looks at.

    Attributes:
        images: float32 [N, C, H, W], preprocessed as the model wants them.
        labels: int64 [N], 1 for forged, 0 for real; None: unknown.
    """

    images: Tensor
    labels: Tensor | None = None

    @staticmethod
    def of(data: Any) -> Calibration:
        """From a tensor of images, (images, labels), or an iterable of batches of either.

        Raises:
            ValueError: no image, values that are not finite, labels that are not 0 and 1, or of
                one class only, or as many as images.
        """
        if isinstance(data, Calibration):
            return data.checked()
        images, labels = _parts(data)
        return Calibration(images, labels).checked()

    def checked(self) -> Calibration:
        """Itself, when everything is as it should be; raises as `of`."""
        images, labels = self.images, self.labels
        if images.dim() < 2 or images.shape[0] < 2:
            raise ValueError(
                f"calibration: found shape {tuple(images.shape)}; accepted is at least two images, "
                "[N, C, H, W]"
            )
        if not images.is_floating_point():
            raise ValueError(f"calibration: found {images.dtype}; accepted is float32 images")
        bad = ~torch.isfinite(images).flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(
                f"calibration: found values that are not finite in {int(bad.sum())} images, the "
                f"first is number {int(bad.nonzero()[0])}; accepted is finite images"
            )
        if labels is None:
            return Calibration(images.float().contiguous())
        if labels.shape != (images.shape[0],):
            raise ValueError(
                f"calibration: found labels of shape {tuple(labels.shape)} for {images.shape[0]} "
                "images; accepted is one label an image"
            )
        classes = sorted(set(labels.tolist()))
        if classes != [0, 1]:
            raise ValueError(
                f"calibration: found labels {classes[:4]}; accepted is both 0 (real) and 1 "
                "(forged), or no labels"
            )
        return Calibration(images.float().contiguous(), labels.long())


def _parts(data: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(data, Tensor):
        return data, None
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(p, Tensor) for p in data):
        return data[0], data[1]
    if data is None or isinstance(data, (str, bytes)):
        raise ValueError(f"calibration: found {type(data).__name__}; accepted is {_ACCEPTED}")
    try:
        batches = list(data)
    except TypeError as error:
        raise ValueError(
            f"calibration: found {type(data).__name__}; accepted is {_ACCEPTED}"
        ) from error
    if not batches:
        raise ValueError("calibration: found no batch; accepted is at least two images")
    images, labels = [], []
    for batch in batches:
        image, label = _parts(batch) if isinstance(batch, tuple) else (batch, None)
        if not isinstance(image, Tensor):
            raise ValueError(
                f"calibration: found a batch of {type(image).__name__}; accepted is tensors"
            )
        images.append(image)
        if label is not None:
            labels.append(label)
    if labels and len(labels) != len(images):
        raise ValueError("calibration: found labels in some batches only; accepted is all or none")
    for image in images:
        if image.dim() < 2 or image.shape[1:] != images[0].shape[1:]:
            raise ValueError(
                f"calibration: found batches of shape {tuple(images[0].shape)} and "
                f"{tuple(image.shape)}; accepted is batches [N, C, H, W] of images of one size"
            )
    return torch.cat(images), torch.cat(labels) if labels else None
