"""Grids of weights: a scale and zero point for each output, and the nearest codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from defakeq_kernels.packed import MAX_ZERO_POINT

_CACHED = (
    1 << 17
)  # weights that are fitted at once, so that what is made of them stays in the cache


@dataclass
class Grid:
    """``weight = scale * (code - zero)``, codes 0 to 2^bits - 1.

    Attributes:
        bits: 2 to 8.
        scale: float32 [O].
        zero: int32 values as float32 [O], at most 255 away from every code.
    """

    bits: int
    scale: Tensor
    zero: Tensor

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def position(self, rows: Tensor) -> Tensor:
        """Where weights [O, K] lie between the codes."""
        return rows / self.scale[:, None] + self.zero[:, None]

    def codes(self, rows: Tensor) -> Tensor:
        """The nearest codes of weights [O, K]."""
        return self.position(rows).round().clamp(0, self.top)

    def weights(self, codes: Tensor) -> Tensor:
        """The weights [O, K] of codes."""
        return (codes - self.zero[:, None]) * self.scale[:, None]

    def nearest(self, rows: Tensor) -> Tensor:
        """The nearest weights on the grid."""
        return self.weights(self.codes(rows))


def fit(rows: Tensor, bits: int, importance: Tensor | None = None, symmetric: bool = False) -> Grid:
    """The grid of each row with the least weighted squared error found.

    Args:
        rows: float32 [O, K].
        bits: 2 to 8.
        importance: non-negative, [K] or [O, K]; None: all alike.
        symmetric: the zero point is 2^(bits-1).
    """
    if rows.is_cuda:
        return _fit(rows, bits, importance, symmetric)
    parts = []
    count = max(1, _CACHED // max(rows.shape[1], 1))
    for begin in range(0, rows.shape[0], count):
        own = slice(begin, begin + count)
        wide = importance is not None and importance.dim() == 2
        weight = importance[own] if importance is not None and wide else importance
        parts.append(_fit(rows[own], bits, weight, symmetric))
    scales, zeros = ([getattr(part, name) for part in parts] for name in ("scale", "zero"))
    return Grid(bits, torch.cat(scales), torch.cat(zeros))


def _fit(rows: Tensor, bits: int, importance: Tensor | None, symmetric: bool) -> Grid:
    top = (1 << bits) - 1
    low, high = rows.amin(1), rows.amax(1)
    size = torch.maximum(low.abs(), high.abs()).clamp(min=1e-12)
    weight = torch.ones(()) if importance is None else importance
    middle = rows.mean(1)
    best = Grid(bits, torch.ones_like(size), torch.zeros_like(size))
    error = torch.full_like(size, torch.inf)

    def offer(scale: Tensor, zero: Tensor) -> None:
        nonlocal error
        for _ in range(2):
            scale = torch.maximum(scale, size * 2.0**-20)
            grid = Grid(bits, scale, zero)
            codes = grid.codes(rows)
            found = (weight * (grid.weights(codes) - rows).square()).sum(1)
            better = found < error
            error = torch.where(better, found, error)
            best.scale = torch.where(better, scale, best.scale)
            best.zero = torch.where(better, zero, best.zero)
            level = codes - zero[:, None]
            square = (weight * level.square()).sum(1)
            product = (weight * level * rows).sum(1)
            usable = (square > 0) & (product > 0)
            scale = torch.where(usable, product / square.clamp(min=1e-30), scale)

    steps = (1.0, 0.95, 0.9) if bits >= 6 else tuple(1.0 - 0.06 * i for i in range(11))
    for share in steps:
        if symmetric:
            half = 1 << (bits - 1)
            widest = torch.maximum(high / (top - half), -low / half).clamp(min=1e-12)
            offer(widest * share, torch.full_like(size, half))
            continue
        a, b = middle + share * (low - middle), middle + share * (high - middle)
        reach = torch.maximum(a.abs(), b.abs()) / MAX_ZERO_POINT
        scale = torch.maximum((b - a) / top, reach).clamp(min=1e-12)
        offer(scale, (-a / scale).round().clamp(top - MAX_ZERO_POINT, MAX_ZERO_POINT))
    if not symmetric:
        for move in (-1, 1):
            offer(best.scale, (best.zero + move).clamp(top - MAX_ZERO_POINT, MAX_ZERO_POINT))
    return best


def feedback(rows: Tensor, grid: Grid, second: Tensor, damping: float = 0.01) -> Tensor:
    """Codes with error feedback: each column's rounding error is taken over by the later ones.

    The closed form of Frantar et al., "GPTQ" (ICLR 2023), for ``||(W - W~) X||^2``.

    Args:
        rows: float32 [O, K].
        grid: of the rows.
        second: ``X X^T`` [K, K], or of each row's own inputs [O, K, K].
        damping: added to the diagonal, a part of its mean.

    Returns:
        Positions between the codes [O, K], unrounded; rounding and clamping gives the codes.
    """
    each = second.dim() == 3
    diagonal = second.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1).double()
    order = diagonal.argsort(dim=-1, descending=True, stable=True)
    h = second.gather(-2, order[..., None].expand_as(second))
    h = h.gather(-1, order[..., None, :].expand_as(second)).double()
    h.diagonal(dim1=-2, dim2=-1).add_((damping * mean + 1e-12)[..., None])
    factor, failed = torch.linalg.cholesky_ex(h)
    inverse = torch.cholesky_inverse(factor)
    upper, again = torch.linalg.cholesky_ex(inverse, upper=True)
    upper = upper.float()
    usable = (mean > 0) & (failed == 0) & (again == 0)
    if not each and not bool(usable):
        return grid.position(rows)
    place = order if each else order.expand_as(rows)
    found = _fed(rows.gather(1, place), grid, upper)
    positions = torch.empty_like(found).scatter_(1, place, found)
    return torch.where(usable[:, None], positions, grid.position(rows)) if each else positions


def _fed(work: Tensor, grid: Grid, upper: Tensor) -> Tensor:
    """Positions of rows, column by column; `upper` is one triangle, or one for each row."""
    found = torch.empty_like(work)
    count = work.shape[1]
    block = 64
    for begin in range(0, count, block):
        end = min(begin + block, count)
        part = work[:, begin:end]
        errors = torch.empty_like(part)
        local = upper[..., begin:end, begin:end]
        for i in range(end - begin):
            column = part[:, i : i + 1]
            position = grid.position(column)
            found[:, begin + i] = position[:, 0]
            quantized = grid.weights(position.round().clamp(0, grid.top))
            error = (column - quantized) / local[..., i, i, None]
            part[:, i:] -= error * local[..., i, i:]
            errors[:, i] = error[:, 0]
        if end < count:
            work[:, end:] -= times(errors, upper[..., begin:end, end:])
    return found


def times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Rows [O, K] times one matrix [K, M], or each times its own [O, K, M]."""
    return rows @ matrix if matrix.dim() == 2 else torch.einsum("ok,okm->om", rows, matrix)


def refit(rows: Tensor, codes: Tensor, grid: Grid, second: Tensor) -> Tensor:
    """The scales [O] that are best for the codes: least ``||(W - W~) X||^2``, in closed form."""
    level = codes - grid.zero[:, None]
    along = times(level, second)
    square = (along * level).sum(1)
    product = (along * rows).sum(1)
    usable = (square > 0) & (product > 0)
    scale = torch.where(usable, product / square.clamp(min=1e-30), grid.scale)
    # a badly conditioned second moment must not blow a row up
    return torch.minimum(torch.maximum(scale, 0.5 * grid.scale), 2.0 * grid.scale)
