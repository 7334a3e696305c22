"""How far a float result on a GPU can be from the exact one.

Integer results are the CPU's to the byte and need no bound.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Largest slopes: hardswish 3/2 at 3, gelu and silu about 1.13 and 1.10.
_SLOPE = {"hardswish": 1.5, "gelu": 1.13, "silu": 1.10}
# Unit roundoffs of what is stored, and of float32 factors by tensor core mode.
_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_FACTOR = {"tf32x3": 2.0**-20, "tf32": 2.0**-10}
# Tensor cores truncate where float32 addition would round.
_SUM = 2.0**-22


def error_bound(
    weight: Tensor, x: Tensor, y: Tensor, activation: str = "none", precision: str = "tf32x3",
    **conv: Any,
) -> Tensor:  # fmt: skip
    """A bound on |computed - exact| of a layer with float activations, in units of y.

    With u the roundoff of a step, a sum of K products in any order is off by at most
    K u / (1 - K u) of the sum of absolute values (N. Higham, "Accuracy and Stability of Numerical
    Algorithms", 2002, section 3.1).

    Args:
        weight: the dequantized weight, [O, I] or [O, I / groups, kh, kw].
        x: the input, [..., I] or [N, I, H, W].
        y: the result, for its type and size.
        activation: the fused one.
        precision: of float32 inputs, "tf32x3" or "tf32".
        conv: stride, padding, dilation and groups of a convolution.

    Returns:
        float64, shaped as y.

    Raises:
        ValueError: x or y is not of a float type.
    """
    for name, value in (("x", x), ("y", y)):
        if value.dtype not in _ROUNDOFF:
            accepted = ", ".join(str(t) for t in _ROUNDOFF)
            raise ValueError(f"{name}: found {value.dtype}; accepted is one of {accepted}")
    w, values = weight.double().abs(), x.double().abs()
    if weight.dim() == 2:
        total = torch.nn.functional.linear(values, w)
    else:
        total = torch.nn.functional.conv2d(values, w, **conv)
    count = weight[0].numel() + 8
    relative = count * _SUM / (1 - count * _SUM)
    if x.dtype == torch.float32:
        relative += _FACTOR[precision]
    if x.dtype == torch.bfloat16:
        relative += _ROUNDOFF[torch.bfloat16]  # half-precision weights
    epilogue = 8 * _ROUNDOFF[torch.float32] + _ROUNDOFF[y.dtype]
    return _SLOPE.get(activation, 1.0) * total * relative + epilogue * (y.double().abs() + 1.0)
