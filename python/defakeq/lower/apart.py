"""Whether a model looks at each image alone, as a program does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from defakeq.lower.structure import Structure

_TOLERANCE = 1e-3  # of the largest result; torch adds up in another order for other batches


def check_apart(model: nn.Module, takes: Structure, batches: Sequence[Sequence[Tensor]]) -> None:
    """Compares two images in one batch with the same two one after the other.

    Args:
        model: in evaluation mode.
        takes: how it holds its inputs.
        batches: samples of the inputs.

    Raises:
        ValueError: the results differ.
    """
    first, second = _two(batches)
    try:
        together = _call(
            model, takes, [torch.cat(pair) for pair in zip(first, second, strict=True)]
        )
    except Exception:  # it takes single images only
        return
    single = [_call(model, takes, images) for images in (first, second)]
    for number, (both, *parts) in enumerate(zip(together, *single, strict=True)):
        apart = torch.cat(parts)
        if both.shape != apart.shape or not _close(both, apart):
            raise ValueError(
                f"model: found a result (number {number}) of one image that depends on the other "
                "images of its batch; accepted by backend 'program' is models that look at each "
                "image alone"
            )


def _two(batches: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Two images, different ones where the batches have some."""
    images = []
    for batch in batches:
        images += [[x[i : i + 1] for x in batch] for i in range(min(2, len(batch[0])))]
        if len(images) > 1:
            return images[0], images[1]
    (only,) = images
    return only, [x * 0.5 if x.is_floating_point() else x for x in only]


def _call(model: nn.Module, takes: Structure, inputs: Sequence[Tensor]) -> list[Tensor]:
    given = takes.build(inputs)
    with torch.no_grad():
        result = model(*given["arguments"], **given["keywords"])
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _close(found: Tensor, expected: Tensor) -> bool:
    if not found.is_floating_point() or found.numel() == 0:
        return True
    finite = expected.isfinite()
    if not bool(finite.any()):
        return True
    found, expected = found[finite], expected[finite]
    most = float((found - expected).abs().max())
    return most <= _TOLERANCE * float(expected.abs().max()) + 1e-6
