"""Frames of videos by index, and the largest face of a frame as a crop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.faces import MARGIN, crop_square, find_faces, margin_box

ByteImage = NDArray[np.uint8]


def _opencv(path: Path) -> Iterator[Any]:
    capture = cv2.VideoCapture(str(path))
    try:
        while capture.isOpened() and capture.grab():
            yield capture
    finally:
        capture.release()


def _pyav(path: Path) -> Iterator[Any]:
    """Decode with PyAV, where it is installed, what OpenCV's own decoders do not know."""
    try:
        import av
    except ImportError:
        return
    try:
        with av.open(str(path)) as container:
            yield from container.decode(video=0)
    except (av.FFmpegError, IndexError, OSError):
        return


def count_frames(path: Path) -> int:
    """Return the number of frames that a video says it has, or, where it does not, has.

    Raises ``ValueError`` that names the file when it is no readable video; 0 is an empty one.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    capture = cv2.VideoCapture(str(path))
    try:
        opened = capture.isOpened()
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if opened else 0
    finally:
        capture.release()
    if total > 0:
        return total
    counted = sum(1 for _ in (_opencv(path) if opened else _pyav(path)))
    if not opened and counted == 0:
        raise ValueError(f"{path}: not a video that OpenCV can read, or a damaged one")
    return counted


def frames_at(path: Path, indices: list[int]) -> Iterator[tuple[int, ByteImage]]:
    """Yield (index, uint8 RGB) of those of ``indices`` that the video has, in ascending order.

    The video is decoded from its beginning: seeking is not exact in every format.
    """
    wanted = set(indices)
    last = max(wanted, default=-1)
    found = False
    for index, capture in enumerate(_opencv(path)):
        found = True
        if index in wanted:
            ok, frame = capture.retrieve()
            if ok and frame is not None:
                yield index, np.ascontiguousarray(frame[..., ::-1], dtype=np.uint8)
        if index >= last:
            return
    if found:
        return
    for index, frame in enumerate(_pyav(path)):
        if index in wanted:
            yield index, np.ascontiguousarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
        if index >= last:
            return


def largest_face(image: ByteImage, margin: float = MARGIN) -> ByteImage | None:
    """Return the square crop of an image's largest face, ``margin`` face boxes wide, or None."""
    boxes = find_faces(image)
    return crop_square(image, margin_box(boxes[0], margin)) if boxes else None
