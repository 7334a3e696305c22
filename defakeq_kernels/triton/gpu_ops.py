"""The CUDA implementations of ``torch.ops.defakeq.*``, by the names of the ops."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from defakeq_kernels.triton import launch
from defakeq_kernels.triton.launch import dequantize, linear, quantize
from defakeq_kernels.triton.program import run_program


def conv2d(
    x: Tensor, packed: Tensor, out_channels: int, window: Sequence[int], *others: Any
) -> Tensor:
    """`launch.conv2d` with kernel, stride, padding and dilation in one list of 8 integers."""
    if len(window) != 8:
        raise ValueError(
            f"window: found {len(window)} integers, accepted: 8: kernel, stride, padding and "
            "dilation, two integers each"
        )
    kernel, stride, padding, dilation = (window[i : i + 2] for i in range(0, 8, 2))
    return launch.conv2d(x, packed, out_channels, kernel, stride, padding, dilation, *others)


__all__ = ["conv2d", "dequantize", "linear", "quantize", "run_program"]
