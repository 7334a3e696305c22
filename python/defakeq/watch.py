"""Watching a film or a camera: faces, their scores and the frame rate, drawn on every frame."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.detect import Detector, FaceScore

ByteImage = NDArray[np.uint8]

# Codecs that OpenCV's packages write, by suffix.
CODECS = {".avi": "MJPG", ".mp4": "mp4v"}
TITLE = "defakeq watch"
_RECENT = 30  # frames that the shown frame rate and mean are taken over


@dataclass
class Watched:
    """What was seen: frames, those with a face, each such frame's likeliest forgery, the time."""

    frames: int = 0
    seconds: float = 0.0
    scores: list[float] = field(default_factory=list)

    @property
    def probability(self) -> float | None:
        """Return the mean over the frames with a face; None without one."""
        return float(np.mean(self.scores)) if self.scores else None

    @property
    def rate(self) -> float:
        """Return the frames that were looked at in a second."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


def open_source(source: str) -> cv2.VideoCapture:
    """Return the capture of a camera (a number) or of a film's path.

    Raises ``ValueError`` that says what was found when it cannot be opened.
    """
    if source.isdigit():
        capture = cv2.VideoCapture(int(source))
        if not capture.isOpened():
            raise ValueError(f"source: found no camera {source}, accepted: a camera or a film")
        return capture
    path = Path(source)
    if not path.is_file() or path.stat().st_size == 0:
        found = "an empty file" if path.is_file() else "no file"
        raise ValueError(f"source: {source} is {found}, accepted: a film, or a camera's number")
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise ValueError(f"source: {source} is no film that OpenCV can read, or a damaged one")
    return capture


def has_window() -> bool:
    """Return whether this OpenCV can show windows here."""
    try:
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL)
    except cv2.error:
        return False
    return True


def check_output(path: Path, source: str) -> None:
    """Raise ``ValueError`` when an annotated film cannot be written there."""
    if path.suffix.lower() not in CODECS:
        raise ValueError(f"out: found {path}, accepted: a name that ends with {', '.join(CODECS)}")
    if not path.parent.is_dir():
        raise ValueError(f"out: found {path.parent}, which is no folder; accepted: one")
    same = path.exists() and os.path.exists(source) and path.samefile(source)
    if path.is_dir() or same:
        raise ValueError(f"out: found {path}, accepted: another file than the source")


class Film:
    """An annotated film; it appears under its name when it is complete."""

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix.lower()}")
        self.writer: cv2.VideoWriter | None = None

    def add(self, frame: ByteImage) -> None:
        """Append a frame, uint8 RGB; all have the size of the first."""
        if self.writer is None:
            height, width = frame.shape[:2]
            code = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
            self.writer = cv2.VideoWriter(str(self.beside), code, self.rate, (width, height))
            if not self.writer.isOpened():
                raise RuntimeError(f"out: OpenCV cannot write {self.path}")
        self.writer.write(np.ascontiguousarray(frame[..., ::-1]))

    def close(self, complete: bool) -> None:
        """Finish the file, or remove it when it is not ``complete``."""
        if self.writer is None:
            return
        self.writer.release()
        if complete:
            self.beside.replace(self.path)
        else:
            self.beside.unlink(missing_ok=True)


def annotate(
    frame: ByteImage, faces: list[FaceScore], rate: float, recent: float | None
) -> ByteImage:
    """Return a frame with boxes and scores of faces, the frame rate and the recent mean score."""
    out = frame.copy()
    scale = max(0.45, frame.shape[0] / 900)
    for face in faces:
        share = face.probability
        color = (round(40 + 190 * share), round(170 - 130 * share), 50)
        left, top, width, height = (round(value) for value in face.box)
        corner = (left + width, top + height)
        cv2.rectangle(out, (left, top), corner, color, max(2, round(2 * scale)))
        _label(out, f"forged {share:.2f}", (left, top), scale, color)
    mean = "no face" if recent is None else f"mean {recent:.2f}"
    _label(out, f"{rate:.1f} frames/s, {mean}", (0, 0), scale, (40, 40, 40))
    return out


def _label(
    image: ByteImage, text: str, at: tuple[int, int], scale: float, color: tuple[int, int, int]
) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), base = cv2.getTextSize(text, font, scale, 1)
    x = int(np.clip(at[0], 0, max(0, image.shape[1] - width - 4)))
    bottom = max(at[1], height + base + 4)
    cv2.rectangle(image, (x, bottom - height - base - 4), (x + width + 4, bottom), color, -1)
    cv2.putText(image, text, (x + 2, bottom - base), font, scale, (255, 255, 255), 1, cv2.LINE_AA)


@contextlib.contextmanager
def _film(path: Path | None, rate: float) -> Iterator[Film | None]:
    """Yield the film to write; it stays when watching ends or is interrupted, not on errors."""
    film = None if path is None else Film(path, rate)
    complete = False
    try:
        yield film
        complete = True
    finally:
        if film is not None:
            film.close(complete)


def watch(
    source: str,
    detector: Detector,
    output: Path | None = None,
    window: bool = False,
    limit: int | None = None,
    every: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Watched:
    """Look at a film or a camera until its end, ``limit`` frames, a key (q, escape) or Ctrl+C.

    Args:
        source: a film's path, or a camera's number.
        detector: finds and scores the faces.
        output: an annotated film (.avi or .mp4).
        window: show the frames.
        limit: frames at most.
        every: faces are searched in every so-many-th frame; those between show the last ones.
        clock: seconds.

    Raises:
        ValueError: a source without frames, or another wrong argument; the message names it.
    """
    for name, value in (("limit", limit), ("every", every)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: found {value}, accepted: at least 1")
    if output is None and not window:
        raise ValueError("out: found none, accepted where no window can be shown: an .avi or .mp4")
    if output is not None:
        check_output(output, source)
    capture = open_source(source)
    fps = capture.get(cv2.CAP_PROP_FPS)
    seen = Watched()
    faces: list[FaceScore] = []
    times: deque[float] = deque([clock()], _RECENT + 1)
    start = times[0]
    try:
        with (
            _film(output, fps if 1 <= fps <= 240 else 25.0) as film,
            contextlib.suppress(KeyboardInterrupt),
        ):
            while limit is None or seen.frames < limit:
                ok, frame = capture.read()
                if not ok or frame is None:
                    break
                image = np.ascontiguousarray(frame[..., ::-1], np.uint8)
                if seen.frames % every == 0:
                    faces = detector.inspect(image, seen.frames)
                    if faces:
                        seen.scores.append(max(face.probability for face in faces))
                seen.frames += 1
                times.append(clock())
                rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
                recent = float(np.mean(seen.scores[-_RECENT:])) if seen.scores else None
                shown = annotate(image, faces, rate, recent)
                if film is not None:
                    film.add(shown)
                if window:
                    cv2.imshow(TITLE, shown[..., ::-1])
                    if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
                        break
    finally:
        capture.release()
        if window:
            cv2.destroyAllWindows()
    if seen.frames == 0:
        raise ValueError(f"source: {source} has no frame that can be read")
    seen.seconds = times[-1] - start
    return seen
