"""Attention on strided heads: operands, bias and mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def head_strides(index: Tensor) -> dict[str, int] | None:
    """Strides of an operand's index [batches, heads, tokens, size], the last of which is 1.

    None where the elements do not lie so.
    """
    offset = int(index[0, 0, 0, 0])
    if offset < 0:
        return None
    strides = {"offset": offset}
    expected = torch.full_like(index, offset)
    for name, dim in (("batch", 0), ("head", 1), ("token", 2), ("last", 3)):
        extent = index.shape[dim]
        first = index.select(dim, 0).flatten()[0]
        stride = int(index.select(dim, 1).flatten()[0] - first) if extent > 1 else 0
        shape = [1, 1, 1, 1]
        shape[dim] = extent
        expected = expected + (torch.arange(extent, dtype=torch.int32) * stride).reshape(shape)
        strides[name] = stride
    if not torch.equal(expected, index):
        return None
    last = strides.pop("last")
    single = index.shape[3] == 1
    if (last != 1 and not single) or min(strides.values()) < 0:
        return None
    return strides


def matrix_strides(index: Tensor, turned: tuple[bool, ...]) -> dict[str, int] | None:
    """Strides of matrices' index [batches, rows, columns].

    Args:
        index: int32, -1 where a zero is not stored.
        turned: for False rows may be contiguous, for True columns.

    Returns:
        None where the elements lie in no such way.
    """
    for across in turned:
        wide = (index.transpose(1, 2) if across else index).unsqueeze(1)
        strides = head_strides(wide)
        if strides is not None:
            names = ("col", "row") if across else ("row", "col")
            return {
                "offset": strides["offset"],
                "batch": strides["batch"],
                names[0]: strides["token"],
                names[1]: 1,
            }
    return None


def kept_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[list[int], list[Tensor]]:
    """The heads that are not zero, and the operands' indices with only what is stored of them.

    Args:
        q, k, v: int32 [batches, heads, tokens, size], -1 where a zero is not stored.

    Returns:
        the heads, and q, k and v of these heads with fewer elements a head, where all heads have
        as many; with all elements where they do not.
    """
    there = [(x >= 0).any(2).any(0) for x in (q, k, v)]
    heads = torch.nonzero(there[2].any(1)).flatten().tolist()
    both = there[0] & there[1]
    operands = []
    for x, present in ((q, both), (k, both), (v, there[2])):
        x, counts = x[:, heads], present[heads].sum(1)
        if len(heads) and int(counts.min()) == int(counts.max()) > 0:
            parts = [x[:, i, :, present[head]] for i, head in enumerate(heads)]
            x = torch.stack(parts, 1)
        operands.append(x)
    return heads, operands


def split_mask(
    mask: Tensor, batches: int, heads: int
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None] | None:
    """An additive mask as a bias [heads, ...] and a mask [windows, ...]; None when it is no sum."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -100.0)
    full = mask.double().clamp(min=-1e4)
    full = full.reshape((1,) * (4 - full.dim()) + tuple(full.shape))
    if full.shape[0] == 1:
        bias = full[0].expand(heads, *full.shape[2:])
        return _array(bias), None
    if full.shape[1] == 1:
        return None, _fewest(full[:, 0], batches)
    bias = full.amax(0)
    parts = full - bias
    only = parts[:, 0]
    if not torch.allclose(parts, only[:, None].expand_as(parts), atol=1e-3, rtol=0):
        return None
    only = (only * 1024).round() / 1024
    if not bool(only.any()):
        return _array(bias), None
    return _array(bias), _fewest(only, batches)


def _fewest(masks: Tensor, batches: int) -> NDArray[np.float32]:
    """The shortest part that the masks repeat."""
    for count in range(1, masks.shape[0]):
        if batches % count == 0 and masks.shape[0] % count == 0:
            repeats = masks.shape[0] // count
            if torch.equal(masks[:count].repeat(repeats, 1, 1), masks):
                return _array(masks[:count])
    return _array(masks)


def _array(values: Tensor) -> NDArray[Any]:
    array: NDArray[np.float32] = values.contiguous().float().cpu().numpy()
    return array
