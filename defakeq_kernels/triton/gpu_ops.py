"""The CUDA implementations of ``torch.ops.defakeq.*``, by the names of the ops."""

from defakeq_kernels.triton.launch import conv2d, dequantize, linear, quantize
from defakeq_kernels.triton.program import run_program

__all__ = ["conv2d", "dequantize", "linear", "quantize", "run_program"]
