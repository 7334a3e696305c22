"""The functions of program nodes, in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "none": lambda x: x,
    "relu": lambda x: torch.fmax(x, torch.zeros_like(x)),
    "relu6": lambda x: torch.fmax(x, torch.zeros_like(x)).clamp(max=6),
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "neg": torch.neg,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
}

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
}
