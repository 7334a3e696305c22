"""The search for scales, zero points and codes of weight rows with a small squared error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels.codes import level_step, symmetric_zero_point
from defakeq_kernels.packed_checks import MAX_ZERO_POINT

_FIT_CHUNK = 1 << 18
_SMALLEST = np.float32(2.0**-20)


def fit_rows(
    rows: NDArray[np.float32], bits: int, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
    """Scale, zero point and codes of each row of [n, length] with a small squared error."""
    count, length = rows.shape
    scale = np.empty(count, np.float32)
    zero = np.empty(count, np.int32)
    codes = np.empty(rows.shape, np.uint8)
    step = max(1, _FIT_CHUNK // length)
    for begin in range(0, count, step):
        part = slice(begin, begin + step)
        scale[part], zero[part], codes[part] = _fit_chunk(rows[part], bits, symmetric)
    return scale, zero, codes


class _Search:
    """The best scale and zero point so far of each row of a chunk, and their squared errors."""

    def __init__(self, rows: NDArray[np.float32], bits: int) -> None:
        self.rows = rows
        self.step = level_step(bits)
        self.last_code = (1 << bits) - 1
        count = rows.shape[0]
        self.scale = np.ones(count, np.float32)
        self.zero = np.zeros(count, np.int32)
        self.error = np.full(count, np.inf, np.float32)

    def levels(self, scale: NDArray[np.float32], zero: NDArray[np.int32]) -> NDArray[np.float32]:
        """The nearest integer levels, as float32."""
        q = self.rows * (np.float32(1) / scale)[:, None]
        q += zero.astype(np.float32)[:, None]
        if self.step != 1:
            q /= np.float32(self.step)
        np.rint(q, out=q)
        np.clip(q, 0, self.last_code, out=q)
        if self.step != 1:
            q *= np.float32(self.step)
        q -= zero.astype(np.float32)[:, None]
        return q

    def offer(self, scale: NDArray[np.float32], zero: NDArray[np.int32]) -> NDArray[np.float32]:
        """Keeps the candidate in the rows it improves; returns its levels."""
        q = self.levels(scale, zero)
        difference = q * scale[:, None]
        difference -= self.rows
        error = np.einsum("ij,ij->i", difference, difference)
        better = error < self.error
        self.scale = np.where(better, scale, self.scale)
        self.zero = np.where(better, zero, self.zero)
        self.error = np.where(better, error, self.error)
        return q

    def offer_refit(self, scale: NDArray[np.float32], zero: NDArray[np.int32]) -> None:
        """Offers a candidate, then the scale that is best for its levels."""
        q = self.offer(scale, zero)
        square = np.einsum("ij,ij->i", q, q)
        product = np.einsum("ij,ij->i", q, self.rows)
        usable = (square > 0) & (product > 0)
        refit = np.divide(product, square, out=scale.copy(), where=usable)
        self.offer(np.maximum(refit, _SMALLEST), zero)


def _fit_chunk(
    rows: NDArray[np.float32], bits: int, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
    tiny = np.finfo(np.float32).tiny
    unit = np.maximum(np.abs(rows).max(axis=1), tiny * np.float32(2.0**24)).astype(np.float32)
    search = _Search(rows / unit[:, None], bits)
    shrinks = (1.0, 0.96, 0.92) if bits >= 6 else tuple(np.linspace(1.0, 0.4, 13))
    if symmetric:
        _search_symmetric(search, bits, shrinks)
    else:
        _search_asymmetric(search, bits, shrinks)
    scale = (search.scale * unit).astype(np.float32)
    # The codes nearest to the weights under the scale as it is stored.
    q = rows / scale[:, None] + search.zero.astype(np.float32)[:, None]
    codes = np.clip(np.rint(q / np.float32(search.step)), 0, search.last_code)
    return scale, search.zero, codes.astype(np.uint8)


def _search_symmetric(search: _Search, bits: int, shrinks: Sequence[float]) -> None:
    rows = search.rows
    zero = np.full(rows.shape[0], symmetric_zero_point(bits), np.int32)
    top = search.step * search.last_code - symmetric_zero_point(bits)
    bottom = symmetric_zero_point(bits)
    widest = np.maximum(rows.max(axis=1) / top, -rows.min(axis=1) / bottom)
    for shrink in shrinks:
        search.offer_refit(np.maximum(widest * np.float32(shrink), _SMALLEST), zero)
    if bits == 1:
        search.offer_refit(np.maximum(np.abs(rows).mean(axis=1), _SMALLEST), zero)
    for _ in range(2):
        search.offer_refit(search.scale, search.zero)


def _search_asymmetric(search: _Search, bits: int, shrinks: Sequence[float]) -> None:
    rows = search.rows
    top = search.step * search.last_code
    center = rows.mean(axis=1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    if bits == 1:
        above = rows > center[:, None]
        many = np.maximum(above.sum(axis=1), 1)
        fewer = np.maximum((~above).sum(axis=1), 1)
        low = np.where(above, 0, rows).sum(axis=1) / fewer
        high = np.where(above, rows, 0).sum(axis=1) / many
        high = np.where(above.any(axis=1), high, low)
        shrinks = (1.0, 0.9, 1.1)
    for shrink in shrinks:
        a = center + np.float32(shrink) * (low - center)
        b = center + np.float32(shrink) * (high - center)
        # Levels reach at most 255 in size, so the scale cannot be below max|end| / 255.
        reach = np.maximum(np.abs(a), np.abs(b)) / MAX_ZERO_POINT
        scale = np.maximum(np.maximum((b - a) / top, reach), _SMALLEST).astype(np.float32)
        search.offer_refit(scale, _zero_of(a, scale, top))
    for _ in range(2):
        for move in (0, -1, 1):
            zero = np.clip(search.zero + move, top - MAX_ZERO_POINT, MAX_ZERO_POINT)
            search.offer_refit(search.scale, zero.astype(np.int32))


def _zero_of(low: NDArray[np.float32], scale: NDArray[np.float32], top: int) -> NDArray[np.int32]:
    zero = np.clip(np.rint(-low / scale), top - MAX_ZERO_POINT, MAX_ZERO_POINT)
    return zero.astype(np.int32)
