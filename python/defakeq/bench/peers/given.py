"""What the engines are given: the same numbers, at the same scales."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from defakeq.bench.shapes import Work

X_SCALE, Y_SCALE, W_SCALE = 0.03, 0.05, 0.002
ZERO = 131  # as ours, 3, for unsigned integers
NBITS_BLOCK = 128

# Takes the number of copies; returns a call and how many operations the call does.
Builder = Callable[[int], tuple[Callable[[], object], int]]


def weights(work: Work, copies: int) -> list[NDArray[np.int8]]:
    """Signed integers, [O, I] or [O, I / groups, kh, kw]."""
    rng = np.random.default_rng(1)
    ins = work.inputs // work.groups
    shape = (work.outputs, ins, *work.kernel) if work.is_conv else (work.outputs, ins)
    return [rng.integers(-127, 128, shape, dtype=np.int8) for _ in range(copies)]


def float_weights(work: Work, copies: int) -> list[NDArray[np.float32]]:
    """The same as float32."""
    return [w.astype(np.float32) * np.float32(W_SCALE) for w in weights(work, copies)]


def floats(work: Work) -> NDArray[np.float32]:
    """The input, [rows, I] or [1, I, H, W]."""
    rng = np.random.default_rng(2)
    shape = (1, work.inputs, *work.size) if work.is_conv else (work.rows, work.inputs)
    return rng.standard_normal(shape, dtype=np.float32)


def chains(work: Work) -> bool:
    """Whether the output of one copy can be the input of the next."""
    return work.outputs == work.inputs and work.stride == 1 and work.kind != "gemv"
