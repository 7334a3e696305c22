"""Launches of the steps between layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.triton.elementwise import (
    gate_kernel,
    heads_kernel,
    layer_norm_kernel,
    levels_kernel,
    lookup_kernel,
    means_kernel,
)
from defakeq_kernels.triton.start import start

_BLOCK = 1024
# Positions that one program of a sum adds at a time, and the most that one adds in all.
_POSITIONS, _MOST = 128, 512


def _target(q: ActQuant | None) -> tuple[float, int, float, float]:
    """1 / scale, zero point and the levels' limits; of no effect without a quantization."""
    if q is None:
        return 1.0, 0, 0.0, 0.0
    half = 1 << (q.bits - 1)
    inverse = float(np.float32(1) / np.float32(q.scale))
    return inverse, q.zero_point, float(-half - q.zero_point), float(half - 1 - q.zero_point)


def _source(q: ActQuant | None) -> tuple[float, int]:
    return (1.0, 0) if q is None else (q.scale, q.zero_point)


def _made(like: Tensor, q: ActQuant | None) -> Tensor:
    return torch.empty_like(like, dtype=torch.float32 if q is None else torch.int8)


def gate(
    x: Tensor, x_q: ActQuant | None, by: Tensor, by_q: ActQuant | None, out_q: ActQuant | None
) -> Tensor:
    """x [images, ..., channels] times by [images, channels], requantized."""
    x, by = x.contiguous(), by.contiguous()
    out = _made(x, out_q)
    channels = x.shape[-1]
    if x.numel():
        start(gate_kernel, (triton.cdiv(x.numel(), _BLOCK),),
              x, by, out, x.numel(), x.numel() // x.shape[0], channels,
              *_source(x_q), *_source(by_q), *_target(out_q), BLOCK=_BLOCK)  # fmt: skip
    return out


def lookup(x: Tensor, table: Tensor) -> Tensor:
    """table[x + 128] of int8 values."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=table.dtype)
    if x.numel():
        start(lookup_kernel, (triton.cdiv(x.numel(), _BLOCK),), x, table, out, x.numel(),
              BLOCK=_BLOCK)  # fmt: skip
    return out


def layer_norm(
    x: Tensor, x_q: ActQuant | None, gamma: Tensor | None, beta: Tensor | None, eps: float,
    out_q: ActQuant | None, rows: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Layer normalization of x [images, rows, width], requantized; `rows`: which, -1 for zeros."""
    x = x.contiguous()
    width = x.shape[-1]
    count = x.shape[1] if rows is None else rows.numel()
    kind = torch.float32 if out_q is None else torch.int8
    out = torch.empty(x.shape[0], count, width, dtype=kind, device=x.device)
    if x.numel():
        block = triton.next_power_of_2(width)
        start(layer_norm_kernel, (x.shape[0] * count,), x, gamma, beta, rows, out, width,
              x.shape[1], count,
              *_source(x_q), float(eps), *_target(out_q), BLOCK=block,
              num_warps=1 if block <= 256 else 4)  # fmt: skip
    return out


def means(x: Tensor, x_q: ActQuant, out_q: ActQuant | None) -> Tensor:
    """Means [images, channels] of int8 x [images, positions, channels], requantized."""
    x = x.contiguous()
    images, positions, channels = x.shape
    factor = float(np.float32(x_q.scale) * (np.float32(1) / np.float32(positions)))
    offset = positions * x_q.zero_point
    kind = torch.float32 if out_q is None else torch.int8
    block = 32
    if positions > _MOST and x.numel():
        span = _POSITIONS * triton.cdiv(positions, _POSITIONS * _MOST)
        parts = triton.cdiv(positions, span)
        sums = torch.empty(images, parts, channels, dtype=torch.int32, device=x.device)
        start(means_kernel, (images, triton.cdiv(channels, block), parts),
              x, sums, positions, channels, span, 0, 1.0, 1.0, 0, 0.0, 0.0,
              FINAL=False, BLOCK_P=_POSITIONS, BLOCK_C=block)  # fmt: skip
        x, positions = sums, parts
    out = torch.empty(images, channels, dtype=kind, device=x.device)
    if x.numel():
        start(means_kernel, (images, triton.cdiv(channels, block), 1),
              x, out, positions, channels, positions, offset, factor, *_target(out_q),
              FINAL=True, BLOCK_P=_POSITIONS, BLOCK_C=block)  # fmt: skip
    return out


def heads(
    x: Tensor, factor: float, batches: int, rows: Tensor | None, out_q: ActQuant | None
) -> Tensor:
    """x [images, batches * heads, tokens, width] times `factor`, token by token, requantized.

    `rows`: int32 [batches * tokens], where each token goes.
    """
    x = x if x.stride(3) == 1 else x.contiguous()
    images, all_heads, tokens, width = x.shape
    count = all_heads // batches
    kind = torch.float32 if out_q is None else torch.int8
    out = torch.empty(images, batches * tokens, count * width, dtype=kind, device=x.device)
    if x.numel():
        start(heads_kernel, (images * batches * tokens,),
              x, rows, out, *x.stride()[:3], count, tokens, batches, width, factor,
              *_target(out_q), BLOCK=triton.next_power_of_2(count * width))  # fmt: skip
    return out


def levels(
    x: Tensor, zero: int, place: Mapping[str, Any], batches: int, tokens: int, heads: int,
    width: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Levels [images * batches, heads, tokens, width] of int8 x at an attribute's strides."""
    images = x.shape[0]
    flat = x.reshape(images, -1).contiguous()
    out = torch.empty(images * batches, heads, tokens, width, dtype=dtype, device=x.device)
    block = triton.next_power_of_2(width)
    lines = min(64, triton.next_power_of_2(tokens))
    strides = (place.get(n, 0) for n in ("batch", "token", "head"))
    if out.numel():
        start(levels_kernel, (images * batches * heads, triton.cdiv(tokens, lines)),
              flat, out, flat.shape[1], place.get("offset", 0), *strides, place.get("d", 1),
              batches, heads, tokens, width, zero, BLOCK_T=lines, BLOCK_D=block)  # fmt: skip
    return out
