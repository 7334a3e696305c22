"""What happens to a picture after it was taken: JPEG, video compression, blur and noise.

Each has five strengths, 1 (weak) to 5 (strong), and works on a video's frames together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from defakeq.embedded.data import jpeg as _jpeg
from defakeq.embedded.data import to_bytes, to_float

FloatImage = NDArray[np.float32]
Frames = list[FloatImage]

STRENGTHS = (1, 2, 3, 4, 5)
JPEG_QUALITY = (90, 75, 60, 45, 30)
VIDEO_STEP = (4.0, 8.0, 14.0, 22.0, 34.0)  # of 8-bit values
BLUR_SIGMA = (0.4, 0.7, 1.0, 1.5, 2.2)  # pixels
NOISE_SIGMA = (0.01, 0.02, 0.035, 0.055, 0.08)  # of the full range

_BLOCK = 8
_K = np.arange(_BLOCK)
_DCT = np.sqrt(2 / _BLOCK) * np.cos(np.pi * (2 * _K[None] + 1) * _K[:, None] / (2 * _BLOCK))
_DCT[0] /= np.sqrt(2)
# High frequencies are stored more coarsely.
_WEIGHT = 1 + (_K[:, None] + _K[None]) / 6


def jpeg(rng: np.random.Generator, frames: Sequence[FloatImage], strength: int) -> Frames:
    """Return the frames as saved and read as JPEG."""
    del rng
    return [_jpeg(frame, JPEG_QUALITY[strength - 1]) for frame in frames]


def _quantize(plane: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    height, width = plane.shape
    pad = (-height % _BLOCK, -width % _BLOCK)
    padded = np.pad(plane, ((0, pad[0]), (0, pad[1])), mode="edge")
    rows, columns = padded.shape[0] // _BLOCK, padded.shape[1] // _BLOCK
    blocks = padded.reshape(rows, _BLOCK, columns, _BLOCK).transpose(0, 2, 1, 3)
    values = _DCT @ blocks @ _DCT.T
    steps = step * _WEIGHT
    # A dead zone around 0, as video codecs have, drops most of a still picture's residual.
    levels = np.sign(values) * np.floor(np.abs(values) / steps + 1 / 3)
    back = _DCT.T @ (levels * steps) @ _DCT
    return back.transpose(0, 2, 1, 3).reshape(padded.shape)[:height, :width]


def video(rng: np.random.Generator, frames: Sequence[FloatImage], strength: int) -> Frames:
    """Return the frames as a hybrid video codec gives them back.

    The first frame is coded by itself, each other as its difference to the one decoded before, in
    transformed 8x8 blocks, with color at half the resolution. (No motion search, no entropy coding:
    it is there for the loss. It needs no codec, so that its bytes depend on none.)
    """
    del rng
    step = VIDEO_STEP[strength - 1]
    decoded: list[NDArray[np.float64]] | None = None
    out: Frames = []
    for frame in frames:
        height, width = frame.shape[:2]
        coded = cv2.cvtColor(to_bytes(frame), cv2.COLOR_RGB2YCrCb).astype(np.float64)
        half = (max(1, (width + 1) // 2), max(1, (height + 1) // 2))
        planes = [coded[..., 0]] + [
            cv2.resize(coded[..., index], half, interpolation=cv2.INTER_AREA).astype(np.float64)
            for index in (1, 2)
        ]
        before = [np.full_like(plane, 128) for plane in planes] if decoded is None else decoded
        decoded = [
            old + _quantize(new - old, step * (1 if index == 0 else 1.5))
            for index, (old, new) in enumerate(zip(before, planes, strict=True))
        ]
        full = [decoded[0]] + [
            cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
            for plane in decoded[1:]
        ]
        shown = np.clip(np.rint(np.stack(full, 2)), 0, 255).astype(np.uint8)
        out.append(to_float(cv2.cvtColor(shown, cv2.COLOR_YCrCb2RGB)))
    return out


def blur(rng: np.random.Generator, frames: Sequence[FloatImage], strength: int) -> Frames:
    """Return the frames out of focus."""
    del rng
    sigma = BLUR_SIGMA[strength - 1]
    return [cv2.GaussianBlur(frame, (0, 0), sigma).astype(np.float32) for frame in frames]


def noise(rng: np.random.Generator, frames: Sequence[FloatImage], strength: int) -> Frames:
    """Return the frames under white noise."""
    sigma = np.float32(NOISE_SIGMA[strength - 1])
    return [
        np.clip(frame + rng.standard_normal(frame.shape, dtype=np.float32) * sigma, 0, 1)
        for frame in frames
    ]


Degrade = Callable[[np.random.Generator, Sequence[FloatImage], int], Frames]
DEGRADATIONS: dict[str, Degrade] = {"jpeg": jpeg, "video": video, "blur": blur, "noise": noise}
# The strength of video compression that stands for the compressions of FaceForensics++.
COMPRESSION = {"raw": 0, "c23": 1, "c40": 4}


def parse(text: str) -> tuple[str, int]:
    """Return kind and strength of ``kind:strength``. Raises ``ValueError`` for anything else."""
    kind, _, strength = text.partition(":")
    if kind not in DEGRADATIONS or strength not in {str(value) for value in STRENGTHS}:
        raise ValueError(
            f"degrade: found {text!r}, accepted: {', '.join(DEGRADATIONS)}, a colon, and 1 to 5"
        )
    return kind, int(strength)
