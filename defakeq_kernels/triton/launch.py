"""linear, conv2d, quantize and dequantize on tensors of one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
import triton
from torch import Tensor

from defakeq_kernels.triton.layout import GpuLayout, read_layout
from defakeq_kernels.triton.prepare import dequantize_kernel, quantize_kernel
from defakeq_kernels.triton.run import Extra, Rows, run
from defakeq_kernels.triton.start import start

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _refuse(argument: str, found: object, accepted: str) -> NoReturn:
    raise ValueError(f"{argument}: found {found}; accepted is {accepted}")


def linear(
    x: Tensor,
    packed: Tensor,
    out_features: int,
    out_int8: bool,
    residual: Tensor | None = None,
    residual_scale: float = 0.0,
    residual_zero_point: int = 0,
    half_input: Tensor | None = None,
) -> Tensor:
    """`torch.ops.defakeq.linear` on the GPU; also takes and returns float16 and bfloat16.

    Raises:
        ValueError: naming the argument, as on the CPU.
    """
    layout = _opened(packed, x, "linear", out_features, out_int8)
    if x.dim() < 1 or x.shape[-1] != layout.in_channels:
        _refuse("x", list(x.shape), f"[..., {layout.in_channels}]")
    shape = (*x.shape[:-1], layout.out_channels)
    half_shape = (*x.shape[:-1], layout.half_inputs)
    _check_tensors(layout, x, residual, residual_scale, residual_zero_point, half_input,
                   shape, half_shape)  # fmt: skip
    m = int(np.prod(x.shape[:-1], dtype=np.int64))
    out = _output(layout, x, (m, layout.out_channels))
    rows = Rows(m, 1, 1, 1, 1)
    flat = x.reshape(m, layout.in_channels)
    if m and (flat.stride(1) != 1 or flat.stride(0) < layout.in_channels):
        flat = flat.contiguous()
    flatten = Extra(
        None if residual is None else residual.reshape(m, layout.out_channels).contiguous(),
        residual_scale,
        residual_zero_point,
        None if half_input is None else half_input.reshape(m, layout.half_inputs).contiguous(),
    )
    run(layout, packed, flat, rows, flatten, out)
    return out.view(shape)


def conv2d(
    x: Tensor,
    packed: Tensor,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_int8: bool,
    residual: Tensor | None = None,
    residual_scale: float = 0.0,
    residual_zero_point: int = 0,
    half_input: Tensor | None = None,
) -> Tensor:
    """`torch.ops.defakeq.conv2d` on the GPU; channels_last tensors are read and made in place.

    Raises:
        ValueError: naming the argument, as on the CPU.
    """
    layout = _opened(packed, x, "conv2d", out_channels, out_int8)
    for name, found in (
        ("kernel", kernel), ("stride", stride), ("padding", padding), ("dilation", dilation),
    ):  # fmt: skip
        if tuple(found) != getattr(layout, name):
            _refuse(name, list(found), str(list(getattr(layout, name))))
    if x.dim() != 4 or x.shape[1] != layout.in_channels:
        _refuse("x", list(x.shape), f"[n, {layout.in_channels}, h, w]")
    n, _, h, w = x.shape
    oh, ow = (
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
        for d in range(2)
    )
    if min(oh, ow) < 1:
        _refuse("x", list(x.shape), "an image that the kernel fits into")
    _check_tensors(layout, x, residual, residual_scale, residual_zero_point, half_input,
                   (n, layout.out_channels, oh, ow), (n, layout.half_inputs, h, w))  # fmt: skip
    rows = Rows(n, h, w, oh, ow)
    out = _output(layout, x, (rows.count, layout.out_channels))
    flatten = Extra(
        None if residual is None else _nhwc(residual),
        residual_scale,
        residual_zero_point,
        None if half_input is None else _nhwc(half_input),
    )
    run(layout, packed, _nhwc(x), rows, flatten, out)
    return out.view(n, oh, ow, layout.out_channels).permute(0, 3, 1, 2)


def quantize(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
    """`torch.ops.defakeq.quantize` on the GPU."""
    return quantize_scaled(x, 1.0, scale, zero_point, bits)


def quantize_scaled(x: Tensor, factor: float, scale: float, zero_point: int, bits: int) -> Tensor:
    """int8 values of x * factor."""
    _check_quantization(scale, zero_point, bits)
    if x.dtype not in FLOATS:
        _refuse("x", x.dtype, "float32, float16 or bfloat16")
    dense = _dense(x)
    out = torch.empty_like(dense, dtype=torch.int8)
    if dense.numel():
        low, high = -(1 << (bits - 1)) - zero_point, (1 << (bits - 1)) - 1 - zero_point
        inverse = float(np.float32(1) / np.float32(scale))
        count = dense.numel()
        start(
            quantize_kernel,
            (triton.cdiv(count, 4096),),
            dense,
            out,
            count,
            factor,
            inverse,
            zero_point,
            float(low),
            float(high),
            BLOCK=4096,
        )
    return out


def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """`torch.ops.defakeq.dequantize` on the GPU."""
    _check_quantization(scale, zero_point, 8)
    if q.dtype != torch.int8:
        _refuse("q", q.dtype, "int8")
    dense = _dense(q)
    out = torch.empty_like(dense, dtype=torch.float32)
    if dense.numel():
        count = dense.numel()
        start(
            dequantize_kernel,
            (triton.cdiv(count, 4096),),
            dense,
            out,
            count,
            scale,
            zero_point,
            BLOCK=4096,
        )
    return out


def _dense(x: Tensor) -> Tensor:
    kept = x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )
    return x if kept else x.contiguous()


def _check_quantization(scale: float, zero_point: int, bits: int) -> None:
    if not (np.isfinite(np.float32(scale)) and np.float32(scale) > 0):
        _refuse("scale", scale, "a finite positive number")
    if not 4 <= bits <= 8:
        _refuse("bits", bits, "4 to 8")
    half = 1 << (bits - 1)
    if not -half <= zero_point < half:
        _refuse("zero_point", zero_point, f"{-half} to {half - 1}")


def _nhwc(t: Tensor) -> Tensor:
    return t.permute(0, 2, 3, 1).contiguous()


def _opened(packed: Tensor, x: Tensor, kind: str, outputs: int, out_int8: bool) -> GpuLayout:
    if packed.device != x.device:
        _refuse("packed", f"a tensor on {packed.device}", f"one on {x.device}, as x is")
    layout = read_layout(packed)
    if layout.kind != kind:
        _refuse("packed", f"a {layout.kind} layer", f"a {kind} layer")
    if outputs != layout.out_channels:
        name = "out_features" if kind == "linear" else "out_channels"
        _refuse(name, outputs, str(layout.out_channels))
    if out_int8 != (layout.out is not None):
        _refuse("out_int8", out_int8, str(layout.out is not None))
    if x.dtype != torch.int8 and x.dtype not in FLOATS:
        _refuse("x", x.dtype, "float32, float16, bfloat16 or int8")
    if x.dtype == torch.int8 and layout.act_mode != "static":
        _refuse("x", "int8", "a float type (only statically quantized layers read int8)")
    return layout


def _check_tensors(
    layout: GpuLayout,
    x: Tensor,
    residual: Tensor | None,
    residual_scale: float,
    residual_zero_point: int,
    half_input: Tensor | None,
    shape: tuple[int, ...],
    half_shape: tuple[int, ...],
) -> None:
    for name, t, wanted in (("x", x, None), ("residual", residual, shape),
                            ("half_input", half_input, half_shape)):  # fmt: skip
        if t is None:
            continue
        if t.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name}: found a tensor that requires grad; accepted is one that does not, since "
                "the kernels have no backward pass: call under torch.no_grad(), or detach() it"
            )
        if t.device != x.device:
            _refuse(name, f"a tensor on {t.device}", f"one on {x.device}, as x is")
        if wanted is not None and tuple(t.shape) != wanted:
            _refuse(name, list(t.shape), str(list(wanted)))
    if residual is not None:
        if residual.dtype != torch.int8 and residual.dtype not in FLOATS:
            _refuse("residual", residual.dtype, "float32, float16, bfloat16 or int8")
        scale = np.float32(residual_scale)
        if residual.dtype == torch.int8 and not (np.isfinite(scale) and scale > 0):
            _refuse("residual_scale", residual_scale, "a finite positive number")
        if abs(residual_zero_point) >= 1 << 31:
            _refuse("residual_zero_point", residual_zero_point, "an integer of 32 bits")
    if half_input is not None and half_input.dtype not in FLOATS:
        _refuse("half_input", half_input.dtype, "float32, float16 or bfloat16")
    if layout.half_inputs and x.dtype == torch.int8 and half_input is None:
        _refuse("half_input", "nothing", "the half-precision inputs' values, since x is int8")


def _output(layout: GpuLayout, x: Tensor, shape: tuple[int, int]) -> Tensor:
    if layout.out is not None:
        dtype, fill = torch.int8, int(layout.out["zero_point"])
    else:
        dtype, fill = (torch.float32 if x.dtype == torch.int8 else x.dtype), 0
    if layout.stored == layout.out_channels:
        return torch.empty(shape, dtype=dtype, device=x.device)
    return torch.full(shape, fill, dtype=dtype, device=x.device)
