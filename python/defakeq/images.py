"""Reading pictures, folders and videos, with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

ByteImage = NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


def is_video(path: Path) -> bool:
    """Return whether a file's suffix is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def collect(paths: Iterable[Path]) -> list[Path]:
    """Return the files to look at: files as named, folders as the pictures and videos in them.

    Folders are searched at all depths, in sorted order; a file that is named twice comes once. A
    path that does not exist stays in the list, and reading it says so. Raises ``ValueError`` for a
    folder without pictures and videos.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None
            continue
        inside = sorted(
            Path(folder) / name
            for folder, _, names in os.walk(path)
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
        )
        if not inside:
            kinds = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            raise ValueError(f"{path}: found no picture or video in this folder, accepted: {kinds}")
        found.update(dict.fromkeys(inside))
    return list(found)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: not a file")
    try:
        empty = path.stat().st_size == 0
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if empty:
        raise ValueError(f"{path}: the file is empty")


def read_image(path: Path) -> ByteImage:
    """Return a picture as uint8 RGB of shape (height, width, 3), turned upright by its EXIF data.

    Raises ``ValueError`` that names the file when it is missing, empty or no picture.
    """
    _check_file(path)
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        reason = getattr(error, "strerror", None) or "the picture cannot be decoded"
        raise ValueError(f"{path}: {reason}") from error
    if image is None:
        raise ValueError(f"{path}: not a picture that OpenCV can read, or a damaged one")
    return np.ascontiguousarray(image[..., ::-1], dtype=np.uint8)


def read_frames(path: Path, count: int) -> Iterator[tuple[int, ByteImage]]:
    """Yield up to ``count`` frames, evenly spaced over a video, as (index, uint8 RGB).

    Raises ``ValueError`` that names the file when no frame can be read.
    """
    if count < 1:
        raise ValueError(f"count: found {count}, accepted: at least 1")
    _check_file(path)
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise ValueError(f"{path}: not a video that OpenCV can read, or a damaged one")
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        # Without a usable length, the first `count` frames are taken.
        wanted = set(np.linspace(0, total - 1, count).round().astype(int).tolist())
        limit = total if total > 0 else count
        read = 0
        for index in range(limit):
            if not capture.grab():
                break
            if total > 0 and index not in wanted:
                continue
            ok, frame = capture.retrieve()
            if ok and frame is not None:
                read += 1
                yield index, np.ascontiguousarray(frame[..., ::-1], dtype=np.uint8)
        if read == 0:
            raise ValueError(f"{path}: the video has no frame that can be read")
    finally:
        capture.release()
