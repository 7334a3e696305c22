"""Procedural faces: a parametric renderer whose output is labelled and free to use.

Everything is drawn at :data:`CANVAS` pixels from one random generator: a head outline, a height
field lit by one light, eyes, brows, nose, mouth, hair, glasses, clothes and a background that is a
photograph's texture. No photograph of a person is involved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]
Points = NDArray[np.float64]

CANVAS = 256
_GRID = np.arange(CANVAS, dtype=np.float32)
_XX, _YY = np.meshgrid(_GRID, _GRID)

# Skin reflectance from light to dark (RGB, 0 to 1); a face mixes two neighbours.
_SKIN = np.array(
    [
        [0.94, 0.80, 0.73],
        [0.90, 0.73, 0.62],
        [0.83, 0.64, 0.51],
        [0.73, 0.53, 0.40],
        [0.58, 0.40, 0.29],
        [0.42, 0.28, 0.20],
        [0.30, 0.20, 0.15],
    ],
    dtype=np.float32,
)
_HAIR = np.array(
    [
        [0.06, 0.05, 0.05],
        [0.14, 0.09, 0.06],
        [0.30, 0.19, 0.11],
        [0.55, 0.38, 0.20],
        [0.78, 0.64, 0.42],
        [0.45, 0.18, 0.09],
        [0.62, 0.61, 0.60],
    ],
    dtype=np.float32,
)
_IRIS = np.array(
    [
        [0.25, 0.14, 0.07],
        [0.36, 0.24, 0.12],
        [0.30, 0.42, 0.50],
        [0.33, 0.42, 0.27],
        [0.12, 0.07, 0.05],
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class Face:
    """A rendered face.

    ``image`` is float32 RGB, 0 to 1, ``CANVAS`` pixels square; ``outline`` the polygon (x, y) of
    the inner face from the brows to the chin; ``eyes`` and ``mouth`` are (x, y) centres.
    """

    image: FloatImage
    outline: Points
    eyes: Points
    mouth: Points


def smooth_noise(
    rng: np.random.Generator, cells: int, size: int = CANVAS, aspect: float = 1.0
) -> FloatImage:
    """Return ``size`` x ``size`` noise of unit scale whose features are ``size / cells`` wide."""
    rows = max(2, round(cells * aspect))
    field = rng.standard_normal((rows, max(2, cells))).astype(np.float32)
    return cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def _polygon(points: Points, soft: float = 0.7) -> FloatImage:
    """Return an antialiased mask of a polygon; ``soft`` is the blur in pixels."""
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    out = mask.astype(np.float32) / 255
    return cv2.GaussianBlur(out, (0, 0), soft).astype(np.float32)


def _mix(image: NDArray[Any], color: NDArray[Any], mask: NDArray[Any]) -> None:
    """Blend ``color`` (a triple or an image) into ``image`` in place."""
    image += (color - image) * mask[..., None]


def _gauss(cx: float, cy: float, sx: float, sy: float) -> FloatImage:
    return np.exp(-0.5 * (((_XX - cx) / sx) ** 2 + ((_YY - cy) / sy) ** 2)).astype(np.float32)


def _pick(rng: np.random.Generator, table: NDArray[np.float32]) -> NDArray[np.float32]:
    at = rng.uniform(0, len(table) - 1)
    low = int(at)
    return table[low] + (table[min(low + 1, len(table) - 1)] - table[low]) * np.float32(at - low)


def _head(rng: np.random.Generator, cx: float, cy: float, w: float, h: float) -> Points:
    """Return the head's outline: half-width ``w``, half-height ``h`` around (cx, cy)."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    power = rng.uniform(1.9, 2.5)
    x = np.sign(np.cos(t)) * np.abs(np.cos(t)) ** (2 / power)
    y = np.sign(np.sin(t)) * np.abs(np.sin(t)) ** (2 / power)
    jaw, chin = rng.uniform(0.02, 0.34), rng.uniform(0.9, 1.12)
    x = x * (1 - jaw * np.clip(y, 0, 1) ** 1.6)
    y = np.where(y > 0, y * chin, y)
    return np.stack([cx + w * x, cy + h * y], 1)


def _eye(
    image: NDArray[Any],
    rng: np.random.Generator,
    center: tuple[float, float],
    width: float,
    style: dict[str, Any],
    iris: NDArray[np.float32],
    skin: NDArray[np.float32],
    side: int,
) -> None:
    cx, cy = center
    height = width * style["open"]
    t = np.linspace(0, np.pi, 14)
    x = np.cos(t)
    upper = np.stack([cx + width * x, cy - height * np.sin(t) ** 0.9 - side * x * style["tilt"]], 1)
    lower = np.stack([cx - width * x, cy + height * 0.62 * np.sin(t) + side * x * style["tilt"]], 1)
    lids = np.concatenate([upper, lower])
    _mix(
        image,
        skin * 0.6,
        _gauss(cx, cy - height * 0.7, width * 1.1, height * 1.5) * style["socket"],
    )
    mask = _polygon(lids, 0.6)
    white = np.float32(style["white"]) * np.array([1, 0.97, 0.95], np.float32)
    eye = np.broadcast_to(white, image.shape).copy()
    eye *= (1 - 0.35 * _gauss(cx, cy - height, width * 2, height * 0.7))[..., None]
    ix, iy, r = cx + style["gaze"] * width, cy - height * 0.12, width * style["iris"]
    distance = np.hypot(_XX - ix, _YY - iy)
    angle = np.arctan2(_YY - iy, _XX - ix)
    rays = 1 + 0.25 * np.sin(angle * round(style["rays"]) + distance) * (distance < r)
    _mix(eye, (iris * rays[..., None]).astype(np.float32), np.clip(r - distance + 0.5, 0, 1))
    _mix(
        eye,
        np.array([0.02, 0.02, 0.02], np.float32),
        np.clip(r * style["pupil"] - distance + 0.5, 0, 1),
    )
    glint = _gauss(ix + style["glint"] * r, iy - 0.4 * r, 0.2 * r + 0.3, 0.2 * r + 0.3)
    _mix(eye, np.array([1, 1, 1], np.float32), np.clip(glint * 1.2, 0, 1))
    _mix(image, eye, mask)
    line = np.zeros((CANVAS, CANVAS), np.uint8)
    thick = max(1, round(width * style["lash"]))
    cv2.polylines(line, [np.round(upper * 16).astype(np.int32)], False, 255, thick, cv2.LINE_AA, 4)
    _mix(image, skin * 0.18, cv2.GaussianBlur(line, (0, 0), 0.6).astype(np.float32) / 255)
    line[:] = 0
    fold = upper - np.array([0, height * style["fold"]])
    cv2.polylines(line, [np.round(fold * 16).astype(np.int32)], False, 150, 1, cv2.LINE_AA, 4)
    cv2.polylines(line, [np.round(lower * 16).astype(np.int32)], False, 130, 1, cv2.LINE_AA, 4)
    _mix(image, skin * 0.5, cv2.GaussianBlur(line, (0, 0), 0.8).astype(np.float32) / 255)


def _strands(rng: np.random.Generator, color: NDArray[np.float32]) -> FloatImage:
    """Return a hair texture: long streaks, bent by a smooth field."""
    straight = smooth_noise(rng, int(rng.uniform(60, 130)), aspect=0.08)
    bend = smooth_noise(rng, 3) * rng.uniform(2, 14)
    streaks = cv2.remap(
        straight, (_XX + bend).astype(np.float32), _YY, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT
    )
    shine = smooth_noise(rng, 4) * 0.25
    light = np.clip(1 + 0.35 * streaks + shine, 0.15, 2.5)
    return (color * light[..., None]).astype(np.float32)


def render(rng: np.random.Generator, background: FloatImage) -> Face:
    """Draw one face.

    ``background`` is float32 RGB, 0 to 1, of any size; it is stretched over the canvas.
    """
    w = CANVAS * rng.uniform(0.25, 0.36)
    h = w * rng.uniform(1.22, 1.5)
    cx = CANVAS * (0.5 + rng.normal(0, 0.025))
    cy = CANVAS * (0.47 + rng.normal(0, 0.025))
    skin = np.clip(_pick(rng, _SKIN) * rng.uniform(0.95, 1.05, 3), 0, 1).astype(np.float32)
    hair = np.clip(_pick(rng, _HAIR) * rng.uniform(0.85, 1.2, 3), 0, 1).astype(np.float32)

    small = cv2.resize(background, (CANVAS, CANVAS), interpolation=cv2.INTER_AREA)
    image: NDArray[Any] = small.astype(np.float32)
    if rng.random() < 0.6:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 7)).astype(np.float32)
    else:
        image = image.copy()
    if rng.random() < 0.25:
        ramp = (_XX * rng.normal() + _YY * rng.normal()) / CANVAS
        image = image * 0.15 + (rng.uniform(0.1, 0.9, 3) + 0.25 * ramp[..., None]) * 0.85
        image = np.clip(image, 0, 1).astype(np.float32)

    head = _head(rng, cx, cy, w, h)
    long_hair = rng.random() < 0.45
    bald = rng.random() < 0.12
    strands = _strands(rng, hair)
    if not bald:
        up, out = rng.uniform(1.04, 1.25), rng.uniform(1.05, 1.3)
        back = (head - [cx, cy]) * [out, up] + [cx, cy]
        if long_hair:
            down = back[:, 1] > cy
            back[down, 1] += CANVAS * rng.uniform(0.15, 0.5) * (1 - 0.3 * rng.random())
            back[down, 0] = cx + (back[down, 0] - cx) * rng.uniform(1.05, 1.5)
        else:
            back[:, 1] = np.minimum(back[:, 1], cy + h * rng.uniform(0.05, 0.3))
        back += rng.normal(0, 1.2, back.shape)
        _mix(image, strands * np.float32(0.75), _polygon(back, rng.uniform(0.7, 2.5)))

    # Clothes and neck.
    cloth = np.clip(rng.uniform(0.03, 0.95, 3) * np.ones(3), 0, 1).astype(np.float32)
    shoulder = cy + h * rng.uniform(1.1, 1.4)
    neck_w = w * rng.uniform(0.5, 0.72)
    body = np.array(
        [
            [cx - w * 2.2, CANVAS + 20],
            [cx - w * 1.9, shoulder + 20],
            [cx - neck_w, shoulder - 6],
            [cx + neck_w, shoulder - 6],
            [cx + w * 1.9, shoulder + 20],
            [cx + w * 2.2, CANVAS + 20],
        ]
    )
    weave = 1 + 0.08 * smooth_noise(rng, int(rng.uniform(20, 120))) + 0.15 * smooth_noise(rng, 5)
    neck = np.array(
        [
            [cx - neck_w, cy],
            [cx + neck_w, cy],
            [cx + neck_w * 1.15, shoulder + 8],
            [cx, shoulder + rng.uniform(10, 40)],
            [cx - neck_w * 1.15, shoulder + 8],
        ]
    )
    _mix(image, (cloth * weave[..., None]).astype(np.float32), _polygon(body, 0.8))
    neck_shade = 0.8 - 0.35 * _gauss(cx, cy + h, w, h * 0.22)
    _mix(image, (skin * neck_shade[..., None]).astype(np.float32), _polygon(neck, 0.8))
    if not long_hair or rng.random() < 0.3:
        for side in (-1, 1):
            t = np.linspace(0, 2 * np.pi, 20)
            ear = np.stack(
                [
                    cx + side * w * 1.0 + w * 0.13 * np.cos(t),
                    cy + h * 0.02 + h * 0.17 * np.sin(t),
                ],
                1,
            )
            _mix(image, skin * np.float32(0.78), _polygon(ear, 0.8))

    # The lit skin: an ellipsoid with a brow, cheeks, a nose and lips on it.
    ex, ey = w * rng.uniform(0.38, 0.46), h * rng.uniform(0.08, 0.18)
    eye_y = cy - ey
    nose_y = eye_y + h * rng.uniform(0.36, 0.46)
    mouth_y = nose_y + h * rng.uniform(0.2, 0.28)
    u, v = (_XX - cx) / (w * 1.08), (_YY - cy) / (h * 1.12)
    depth = np.sqrt(np.clip(1 - u * u - v * v, 0.01, 1)) * w * 0.9
    nose_w = w * rng.uniform(0.13, 0.2)
    bridge = np.exp(-0.5 * ((_XX - cx) / (nose_w * 0.62)) ** 2)
    tip = nose_y + nose_w * 0.4
    along = np.clip((_YY - eye_y) / (nose_y - eye_y), 0, 1) * np.less(_YY, tip)
    nose = cv2.GaussianBlur((bridge * along).astype(np.float32), (0, 0), 1.8)
    depth += nose * w * rng.uniform(0.18, 0.34)
    depth += _gauss(cx, nose_y, nose_w * 0.8, nose_w * 0.6) * w * rng.uniform(0.05, 0.12)
    for side in (-1, 1):
        depth += (
            _gauss(cx + side * nose_w * 0.85, nose_y + 1, nose_w * 0.4, nose_w * 0.4) * w * 0.06
        )
        depth -= _gauss(cx + side * ex, eye_y, w * 0.2, h * 0.09) * w * rng.uniform(0.05, 0.13)
        depth += _gauss(cx + side * w * 0.5, eye_y + h * 0.36, w * 0.22, h * 0.18) * w * 0.07
        depth += _gauss(cx + side * ex, eye_y - h * 0.17, w * 0.3, h * 0.06) * w * 0.05
    depth += _gauss(cx, mouth_y, w * 0.3, h * 0.07) * w * 0.06
    depth -= _gauss(cx, mouth_y + h * 0.12, w * 0.2, h * 0.035) * w * 0.05
    depth += _gauss(cx, mouth_y + h * 0.23, w * 0.18, h * 0.09) * w * 0.07
    depth += smooth_noise(rng, 14) * w * rng.uniform(0, 0.012)
    depth = cv2.GaussianBlur(depth.astype(np.float32), (0, 0), 1.0)
    gx = cv2.Sobel(depth, cv2.CV_32F, 1, 0, ksize=3) / 8
    gy = cv2.Sobel(depth, cv2.CV_32F, 0, 1, ksize=3) / 8
    norm = np.sqrt(gx * gx + gy * gy + 1)
    light = np.array([rng.normal(0, 0.7), rng.normal(-0.5, 0.5), rng.uniform(0.7, 1.6)])
    light /= np.linalg.norm(light)
    lambert = np.clip((-gx * light[0] - gy * light[1] + light[2]) / norm, 0, 1)
    half = light + np.array([0, 0, 1.0])
    half /= np.linalg.norm(half)
    shine = np.clip((-gx * half[0] - gy * half[1] + half[2]) / norm, 0, 1) ** rng.uniform(10, 60)
    ambient = rng.uniform(0.25, 0.7)
    shade = ambient + (1.12 - ambient) * lambert
    pores = smooth_noise(rng, 120) * rng.uniform(0.004, 0.03)
    blotch = smooth_noise(rng, 12) * rng.uniform(0.005, 0.035)
    albedo = skin * (1 + (pores + blotch)[..., None])
    red = rng.uniform(0, 0.14)
    blush = 0.6 * _gauss(cx, nose_y, nose_w, nose_w)
    for side in (-1, 1):
        blush = blush + _gauss(cx + side * w * 0.55, eye_y + h * 0.35, w * 0.25, h * 0.16)
    paler = np.array([0.1, 0.8, 0.8], np.float32)
    albedo = albedo * (1 - red * blush[..., None] * paler)
    if rng.random() < 0.3:
        spots = cv2.GaussianBlur(
            (rng.random((CANVAS, CANVAS)) < rng.uniform(0.001, 0.008)).astype(np.float32),
            (0, 0),
            0.9,
        )
        albedo = albedo * (1 - np.clip(spots * rng.uniform(0.6, 2.2), 0, 0.5)[..., None])
    lit = albedo * shade[..., None] + shine[..., None] * rng.uniform(0, 0.28)
    face = np.clip(lit, 0, 1).astype(np.float32)

    # Beard or stubble, in the skin so that it is under the mouth.
    if rng.random() < 0.3:
        low = np.clip((_YY - nose_y - h * 0.04) / (h * 0.12), 0, 1)
        near = np.clip((np.hypot(u, v) - 0.55) / 0.25, 0, 1)
        around = np.clip(
            low * (0.25 + near) + _gauss(cx, mouth_y - h * 0.11, w * 0.35, h * 0.04), 0, 1
        )
        grain = np.clip(0.55 + 0.6 * smooth_noise(rng, 128), 0, 1)
        _mix(face, hair * 0.8, (around * grain * rng.uniform(0.15, 0.95)).astype(np.float32))

    # Eyes and brows.
    style: dict[str, Any] = {
        "open": rng.uniform(0.28, 0.56),
        "tilt": rng.normal(0, 1.0),
        "socket": rng.uniform(0.05, 0.5),
        "white": rng.uniform(0.62, 0.95),
        "gaze": rng.normal(0, 0.13),
        "iris": rng.uniform(0.38, 0.5),
        "rays": rng.integers(9, 22),
        "pupil": rng.uniform(0.3, 0.6),
        "glint": rng.uniform(-0.5, 0.5),
        "lash": rng.uniform(0.05, 0.2),
        "fold": rng.uniform(0.3, 0.8),
    }
    iris = _pick(rng, _IRIS)
    eye_w = w * rng.uniform(0.2, 0.27)
    brow_gap = h * rng.uniform(0.15, 0.22)
    brow_thick = h * rng.uniform(0.018, 0.05)
    arch = rng.uniform(0, 0.06) * h
    strength = rng.uniform(0.45, 0.95)
    for side in (-1, 1):
        _eye(face, rng, (cx + side * ex, eye_y), eye_w, style, iris, skin, side)
        t = np.linspace(-1, 1, 9)
        bx = cx + side * (ex + w * 0.02) + t * eye_w * 1.35
        by = eye_y - brow_gap - arch * (1 - t * t) + side * t * style["tilt"] * 1.5
        taper = brow_thick * (1 - 0.55 * np.clip(side * t, 0, 1))
        brow = np.concatenate([np.stack([bx, by - taper], 1), np.stack([bx, by + taper], 1)[::-1]])
        grain = np.clip(0.75 + 0.4 * smooth_noise(rng, 110), 0, 1)
        _mix(face, hair * 0.7, (_polygon(brow, 1.0) * grain * strength).astype(np.float32))

    # Nostrils and the shadow under the nose.
    for side in (-1, 1):
        hole = _gauss(cx + side * nose_w * 0.5, nose_y + nose_w * 0.42, nose_w * 0.2, nose_w * 0.13)
        _mix(face, skin * 0.16, np.clip(hole * rng.uniform(0.8, 1.2), 0, 1))
    under = _gauss(cx, nose_y + nose_w * 0.75, nose_w * 0.9, nose_w * 0.25)
    _mix(face, face * np.float32(0.6), under * np.float32(rng.uniform(0.1, 0.6)))

    # Mouth.
    mw, mh = w * rng.uniform(0.28, 0.42), h * rng.uniform(0.025, 0.06)
    smile = rng.normal(0.25, 0.5) * mh * 1.6
    gap = mh * rng.choice([0.0, 0.0, rng.uniform(0.2, 1.3)])
    t = np.linspace(-1, 1, 17)
    middle = mouth_y - smile * t * t
    bow = 1 - 0.25 * np.exp(-((t / 0.16) ** 2))
    top = middle - mh * (1 - t * t) ** 0.7 * bow - gap * 0.4 * (1 - t * t)
    bottom = middle + mh * rng.uniform(1.0, 1.6) * (1 - t * t) ** 0.8 + gap * 0.6 * (1 - t * t)
    inner_top, inner_bottom = middle - gap * 0.4 * (1 - t * t), middle + gap * 0.6 * (1 - t * t)
    mx = cx + mw * t
    lips = np.concatenate([np.stack([mx, top], 1), np.stack([mx, bottom], 1)[::-1]])
    tint = np.array(
        [rng.uniform(0.75, 1.05), rng.uniform(0.4, 0.75), rng.uniform(0.45, 0.8)], np.float32
    )
    lip = np.clip(skin * tint, 0, 1) * np.clip(shade, 0.4, 1.1)[..., None]
    _mix(face, lip.astype(np.float32), _polygon(lips, 0.9) * np.float32(rng.uniform(0.55, 0.95)))
    _mix(
        face,
        np.array([1, 1, 1], np.float32),
        _gauss(cx, mouth_y + mh, mw * 0.4, mh * 0.3) * np.float32(0.12),
    )
    if gap > 0:
        inside = np.concatenate(
            [np.stack([mx, inner_top], 1), np.stack([mx, inner_bottom], 1)[::-1]]
        )
        dark = _polygon(inside, 0.6)
        _mix(face, np.array([0.12, 0.05, 0.05], np.float32), dark)
        if rng.random() < 0.75:
            teeth = inside.copy()
            teeth[:, 0] = cx + (teeth[:, 0] - cx) * 0.88
            teeth[17:, 1] -= gap * 0.25
            ridge = 0.9 + 0.1 * np.cos((_XX - cx) / (mw * 0.07))
            color = np.array([0.92, 0.88, 0.8], np.float32) * np.float32(rng.uniform(0.6, 1))
            _mix(face, color * ridge[..., None], _polygon(teeth, 0.6) * np.float32(0.9))
    else:
        line = np.zeros((CANVAS, CANVAS), np.uint8)
        seam = np.round(np.stack([mx, middle], 1) * 16).astype(np.int32)
        cv2.polylines(line, [seam], False, 255, 1, cv2.LINE_AA, 4)
        _mix(face, skin * 0.25, cv2.GaussianBlur(line, (0, 0), 0.7).astype(np.float32) / 255)

    # Wrinkles.
    if rng.random() < 0.4:
        line = np.zeros((CANVAS, CANVAS), np.uint8)
        for _ in range(int(rng.integers(1, 4))):
            y0 = eye_y - brow_gap - h * rng.uniform(0.1, 0.3)
            curve = np.stack([cx + w * 0.5 * t, y0 + rng.normal(0, 2) * t * t], 1)
            cv2.polylines(
                line, [np.round(curve * 16).astype(np.int32)], False, 160, 1, cv2.LINE_AA, 4
            )
        for side in (-1, 1):
            fold_x = cx + side * np.linspace(nose_w, mw * 1.15, 8)
            fold_y = np.linspace(nose_y, mouth_y + mh, 8)
            curve = np.stack([fold_x, fold_y], 1)
            cv2.polylines(
                line, [np.round(curve * 16).astype(np.int32)], False, 200, 1, cv2.LINE_AA, 4
            )
        soft = cv2.GaussianBlur(line, (0, 0), 1.2).astype(np.float32) / 255
        _mix(face, face * np.float32(0.55), soft * np.float32(rng.uniform(0.2, 1)))

    _mix(image, face, _polygon(head, rng.uniform(0.6, 1.6)))

    # Fringe and hairline.
    if not bald:
        line_y = cy - h * rng.uniform(0.5, 0.86)
        top_hair = (head - [cx, cy]) * [1.05, 1.1] + [cx, cy]
        sweep = rng.normal(0, 0.25)
        limit = line_y + (top_hair[:, 0] - cx) * sweep + h * 0.28 * ((top_hair[:, 0] - cx) / w) ** 2
        fringe = top_hair.copy()
        fringe[:, 1] = np.minimum(fringe[:, 1], limit)
        fringe += rng.normal(0, 1.0, fringe.shape)
        _mix(image, strands, _polygon(fringe, rng.uniform(0.8, 2.5)))

    # Glasses.
    if rng.random() < 0.22:
        frame = np.zeros((CANVAS, CANVAS), np.uint8)
        thick = int(rng.integers(1, 5))
        rx, ry = eye_w * rng.uniform(1.25, 1.6), eye_w * rng.uniform(0.9, 1.3)
        color = np.float32(rng.uniform(0, 0.5, 3) * rng.choice([0.3, 1.0]))
        for side in (-1, 1):
            center = (round((cx + side * ex) * 16), round((eye_y + 2) * 16))
            axes = (round(rx * 16), round(ry * 16))
            points = np.array(cv2.ellipse2Poly(center, axes, 0, 0, 360, 8))
            cv2.polylines(frame, [points], True, 255, thick, cv2.LINE_AA, 4)
            a = (round((cx + side * (ex + rx)) * 16), round(eye_y * 16))
            b = (round((cx + side * w) * 16), round((eye_y - 4) * 16))
            cv2.line(frame, a, b, 255, thick, cv2.LINE_AA, 4)
        left, right = round((cx - ex + rx) * 16), round((cx + ex - rx) * 16)
        cv2.line(
            frame, (left, round(eye_y * 16)), (right, round(eye_y * 16)), 255, thick, cv2.LINE_AA, 4
        )
        _mix(image, color, cv2.GaussianBlur(frame, (0, 0), 0.6).astype(np.float32) / 255)

    # Pose and camera.
    brow_line = eye_y - brow_gap - brow_thick
    outline = (head - [cx, cy]) * rng.uniform(0.88, 0.97) + [cx, cy]
    outline[:, 1] = np.maximum(outline[:, 1], brow_line - h * rng.uniform(0, 0.12))
    eyes = np.array([[cx - ex, eye_y], [cx + ex, eye_y]])
    marks = np.concatenate([outline, eyes, [[cx, mouth_y]]])
    matrix = cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), rng.normal(0, 7), 1.0)
    matrix[0, 0] *= 1 - abs(rng.normal(0, 0.08))
    matrix[0, 1] += rng.normal(0, 0.03)
    matrix[0, 2] += CANVAS / 2 - (matrix[0] @ [CANVAS / 2, CANVAS / 2, 1])
    image = cv2.warpAffine(
        image, matrix, (CANVAS, CANVAS), None, cv2.INTER_LINEAR, cv2.BORDER_REFLECT
    )
    marks = marks @ matrix[:, :2].T + matrix[:, 2]
    if rng.random() < 0.4:
        fall = 1 - rng.uniform(0, 0.5) * ((_XX - rng.uniform(0, CANVAS)) / CANVAS) ** 2
        image = image * fall[..., None]
    white = rng.uniform(0.9, 1.1, 3)
    gamma, gain = rng.uniform(0.75, 1.35), rng.uniform(0.75, 1.2)
    image = np.clip(image * white * gain, 0, 1) ** gamma
    return Face(np.ascontiguousarray(image, np.float32), marks[:-3], marks[-3:-1], marks[-1])
