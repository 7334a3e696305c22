"""linear, conv2d, quantize and dequantize on tensors of one device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
import triton
from torch import Tensor

from defakeq_kernels.packed import HALF_BITS
from defakeq_kernels.quantize import ACTIVATIONS
from defakeq_kernels.triton import config as configs
from defakeq_kernels.triton.depthwise import depthwise_kernel
from defakeq_kernels.triton.layout import GpuLayout, device_tiles, read_layout, units_a_step
from defakeq_kernels.triton.prepare import (
    dequantize_kernel,
    largest_kernel,
    prepare_kernel,
    quantize_kernel,
)
from defakeq_kernels.triton.product import product_kernel
from defakeq_kernels.triton.split import finish_kernel

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_MAX_ELEMENTS = (1 << 31) - 1
# Separate roundings of a multiplication and an addition, as on the CPU.
_EXACT = {} if INTERPRETED else {"enable_fp_fusion": False}


def _refuse(argument: str, found: object, accepted: str) -> NoReturn:
    raise ValueError(f"{argument}: found {found}; accepted is {accepted}")


@dataclass(frozen=True)
class _Rows:
    """Rows of the product: output pixels of images, or rows of a linear layer as 1x1 images."""

    images: int
    h: int
    w: int
    oh: int
    ow: int

    @property
    def count(self) -> int:
        return self.images * self.oh * self.ow


@dataclass(frozen=True)
class _Extra:
    residual: Tensor | None
    residual_scale: float
    residual_zero_point: int
    half_input: Tensor | None


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
    extra = _extra(layout, x, residual, residual_scale, residual_zero_point, half_input,
                   shape, half_shape)  # fmt: skip
    m = int(np.prod(x.shape[:-1], dtype=np.int64))
    out = _output(layout, x, (m, layout.out_channels))
    rows = _Rows(m, 1, 1, 1, 1)
    flat = x.reshape(m, layout.in_channels)
    if m and (flat.stride(1) != 1 or flat.stride(0) < layout.in_channels):
        flat = flat.contiguous()
    flatten = _Extra(
        None if residual is None else residual.reshape(m, layout.out_channels).contiguous(),
        residual_scale,
        residual_zero_point,
        None if half_input is None else half_input.reshape(m, layout.half_inputs).contiguous(),
    )
    _run(layout, packed, flat, rows, flatten if extra else extra, out)
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
    extra = _extra(layout, x, residual, residual_scale, residual_zero_point, half_input,
                   (n, layout.out_channels, oh, ow), (n, layout.half_inputs, h, w))  # fmt: skip
    rows = _Rows(n, h, w, oh, ow)
    out = _output(layout, x, (rows.count, layout.out_channels))
    flatten = _Extra(
        None if residual is None else _nhwc(residual),
        residual_scale,
        residual_zero_point,
        None if half_input is None else _nhwc(half_input),
    )
    _run(layout, packed, _nhwc(x), rows, flatten if extra else extra, out)
    return out.view(n, oh, ow, layout.out_channels).permute(0, 3, 1, 2)


def quantize(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
    """`torch.ops.defakeq.quantize` on the GPU."""
    _check_quantization(scale, zero_point, bits)
    if x.dtype not in FLOATS:
        _refuse("x", x.dtype, "float32, float16 or bfloat16")
    dense = _dense(x)
    out = torch.empty_like(dense, dtype=torch.int8)
    if dense.numel():
        low, high = -(1 << (bits - 1)) - zero_point, (1 << (bits - 1)) - 1 - zero_point
        inverse = float(np.float32(1) / np.float32(scale))
        count = dense.numel()
        quantize_kernel[(triton.cdiv(count, 4096),)](
            dense, out, count, inverse, zero_point, float(low), float(high), BLOCK=4096, **_EXACT
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
        dequantize_kernel[(triton.cdiv(count, 4096),)](
            dense, out, count, scale, zero_point, BLOCK=4096, **_EXACT
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


def _extra(
    layout: GpuLayout,
    x: Tensor,
    residual: Tensor | None,
    residual_scale: float,
    residual_zero_point: int,
    half_input: Tensor | None,
    shape: tuple[int, ...],
    half_shape: tuple[int, ...],
) -> bool:
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
    return True


def _output(layout: GpuLayout, x: Tensor, shape: tuple[int, int]) -> Tensor:
    if layout.out is not None:
        dtype, fill = torch.int8, int(layout.out["zero_point"])
    else:
        dtype, fill = (torch.float32 if x.dtype == torch.int8 else x.dtype), 0
    if layout.stored == layout.out_channels:
        return torch.empty(shape, dtype=dtype, device=x.device)
    return torch.full(shape, fill, dtype=dtype, device=x.device)


# one call


def _run(
    layout: GpuLayout, packed: Tensor, x: Tensor, rows: _Rows, extra: _Extra, out: Tensor
) -> None:
    """`x`: [rows, channels] of a linear layer, or dense [n, h, w, channels]."""
    if rows.count == 0:
        return
    scales = _dynamic_scales(layout, x, rows)
    largest = max(x.numel(), rows.count * max(layout.pitch * layout.groups, layout.out_channels))
    if largest <= _MAX_ELEMENTS or rows.images == 1:
        _run_part(layout, packed, x, rows, extra, out, scales)
        return
    # offsets are 32 bits wide in the kernels
    step = max(1, rows.images * _MAX_ELEMENTS // largest)
    a_part = rows.oh * rows.ow
    for first in range(0, rows.images, step):
        last = min(first + step, rows.images)
        part = _Rows(last - first, rows.h, rows.w, rows.oh, rows.ow)

        def cut(t: Tensor | None, first: int = first, last: int = last) -> Tensor | None:
            return None if t is None else t[first:last]

        piece = _Extra(cut(extra.residual), extra.residual_scale, extra.residual_zero_point,
                       cut(extra.half_input))  # fmt: skip
        _run_part(layout, packed, x[first:last], part, piece,
                  out[first * a_part : last * a_part],
                  scales if scales is None or scales.numel() == 1 else scales[first:last])  # fmt: skip


def _dynamic_scales(layout: GpuLayout, x: Tensor, rows: _Rows) -> Tensor | None:
    """float32 [images], or [1] for one of the whole tensor: max|x| / 127, 1 for zeros."""
    if layout.act_mode not in ("dynamic_row", "dynamic_tensor"):
        return None
    dense = x.contiguous()
    length = dense.numel() // rows.images
    parts = triton.cdiv(length, 4096)
    largest = torch.empty(rows.images, parts, dtype=torch.float32, device=x.device)
    block = min(4096, triton.next_power_of_2(length))
    largest_kernel[(rows.images, parts)](dense, largest, length, parts, BLOCK=block)
    largest = largest.amax() if layout.act_mode == "dynamic_tensor" else largest.amax(1)
    largest = largest.reshape(-1)
    # by a tensor: torch divides by a number through its reciprocal
    return torch.where(largest > 0, largest / torch.full_like(largest, 127), 1.0)


def _run_part(
    layout: GpuLayout,
    packed: Tensor,
    x: Tensor,
    rows: _Rows,
    extra: _Extra,
    out: Tensor,
    scales: Tensor | None,
) -> None:
    half_x = _half_rows(layout, packed, x, rows, extra) if layout.half_inputs else None
    epilogue = _epilogue(layout, extra)
    if layout.strategy == "depthwise":
        if layout.act is not None and x.dtype != torch.int8:
            x = _quantized(layout, x, rows, scales)
        _depthwise(layout, packed, x, rows, epilogue, out, scales, extra.residual)
        return
    window = layout.strategy == "product" and layout.kind == "conv2d" and not _pointwise(layout)
    x, pitch, channels = _compact(layout, packed, x, rows, scales)
    _product(layout, packed, x, pitch, channels, rows, window, half_x, epilogue, out, scales,
             extra.residual)  # fmt: skip


def _pointwise(layout: GpuLayout) -> bool:
    return (
        layout.kernel == (1, 1) and layout.stride == (1, 1) and layout.padding == (0, 0)
    )


def _a_scale(scales: Tensor | None, images: int, rows: int) -> int:
    """Rows that share a dynamic scale."""
    return rows if scales is None or scales.numel() == 1 else rows // images


def _act_limits(layout: GpuLayout) -> tuple[float, int, float, float]:
    """1 / scale, zero point, and the levels' limits."""
    if layout.act is None:
        return 1.0, 0, 0.0, 0.0
    zero, bits = layout.act["zero_point"], layout.act["bits"]
    half = 1 << (bits - 1)
    inverse = float(np.float32(1) / np.float32(layout.act["scale"]))
    return inverse, zero, float(-half - zero), float(half - 1 - zero)


def _prepare(
    layout: GpuLayout, x: Tensor, index: Tensor, rows: _Rows, window: bool, channels: int,
    dtype: torch.dtype, scales: Tensor | None,
) -> Tensor:  # fmt: skip
    count = rows.count if window else rows.images * rows.h * rows.w
    columns = index.numel()
    out = torch.empty(count, columns, dtype=dtype, device=x.device)
    inverse, zero, low, high = _act_limits(layout)
    block = min(128, triton.next_power_of_2(columns))
    lines = 16 if not INTERPRETED else 512
    grid = (triton.cdiv(count, lines), triton.cdiv(columns, block))
    prepare_kernel[grid](
        x, index, scales, out,
        count, columns, channels, rows.h, rows.w, rows.oh, rows.ow, _pitch(x),
        _a_scale(scales, rows.images, count), inverse, zero, low, high,
        WINDOW=window, KERNEL_X=layout.kernel[1], STRIDE_Y=layout.stride[0],
        STRIDE_X=layout.stride[1], PAD_Y=layout.padding[0], PAD_X=layout.padding[1],
        DILATION_Y=layout.dilation[0], DILATION_X=layout.dilation[1], BR=lines, BC=block, **_EXACT,
    )  # fmt: skip
    return out


def _pitch(x: Tensor) -> int:
    return x.stride(0) if x.dim() == 2 else x.shape[-1]


def _compact(
    layout: GpuLayout, packed: Tensor, x: Tensor, rows: _Rows, scales: Tensor | None
) -> tuple[Tensor, int, int]:
    """Activations the product reads, elements between pixels, and channels of a group."""
    quantizes = layout.act is not None and x.dtype != torch.int8
    pitch = _pitch(x)
    step = 16 // x.itemsize
    aligned = (
        layout.channels % step == 0 and pitch % step == 0 and x.data_ptr() % 16 == 0
    )
    if not layout.gathers and not quantizes and aligned:
        return x, pitch, layout.channels
    dtype = torch.int8 if quantizes else x.dtype
    index = layout.section(packed, "in_index")
    patches = layout.strategy == "patches"
    made = _prepare(layout, x, index, rows, patches, layout.in_channels, dtype, scales)
    return made, made.shape[1], layout.pitch


def _quantized(layout: GpuLayout, x: Tensor, rows: _Rows, scales: Tensor | None) -> Tensor:
    """int8 values of float NHWC pixels, all channels."""
    index = torch.arange(layout.in_channels, dtype=torch.int32, device=x.device)
    return _prepare(layout, x, index, rows, False, layout.in_channels, torch.int8, scales)


def _half_rows(
    layout: GpuLayout, packed: Tensor, x: Tensor, rows: _Rows, extra: _Extra
) -> Tensor:
    """float32 [rows, columns] of the half-precision inputs, patch by patch."""
    window = layout.kind == "conv2d" and not _pointwise(layout)
    if extra.half_input is None:
        source, name, channels = x, "half_of_x", layout.in_channels
    else:
        source, name, channels = extra.half_input, "half_of_copy", layout.half_inputs
    index = layout.section(packed, name)
    return _prepare(layout, source, index, rows, window, channels, torch.float32, None)


def _epilogue(layout: GpuLayout, extra: _Extra) -> dict[str, Any]:
    factor = np.float32(layout.factor)
    residual_scale = factor
    if extra.residual is not None and extra.residual.dtype == torch.int8:
        residual_scale = np.float32(extra.residual_scale) * factor
    values: dict[str, Any] = {
        "residual_scale": float(residual_scale),
        "residual_zero": extra.residual_zero_point,
        "inverse": 1.0,
        "zero_point": 0,
        "low": 0.0,
        "high": 0.0,
        "ACTIVATION": ACTIVATIONS.index(layout.activation),
    }
    if layout.out is not None:
        zero, half = layout.out["zero_point"], 1 << (layout.out["bits"] - 1)
        if factor == 1:
            values["inverse"] = float(np.float32(1) / np.float32(layout.out["scale"]))
        values |= {
            "zero_point": zero, "low": float(-half - zero), "high": float(half - 1 - zero),
        }  # fmt: skip
    return values


def _optional(layout: GpuLayout, packed: Tensor, name: str) -> Tensor | None:
    return layout.section(packed, name) if name in layout.sections else None


def _depthwise(
    layout: GpuLayout, packed: Tensor, x: Tensor, rows: _Rows, epilogue: dict[str, Any],
    out: Tensor, scales: Tensor | None, residual: Tensor | None,
) -> None:  # fmt: skip
    count = layout.stored
    block = min(64, triton.next_power_of_2(count))
    pixels = 32 if not INTERPRETED else 512
    m = rows.count
    integer = layout.act is not None and layout.bits != (HALF_BITS,)
    depthwise_kernel[(triton.cdiv(m, pixels), triton.cdiv(count, block))](
        x, layout.section(packed, "weights"), layout.section(packed, "float_weights"),
        layout.section(packed, "in_index") if layout.gathers else None,
        None if layout.direct else layout.section(packed, "out_index"),
        _optional(layout, packed, "is_half"), layout.section(packed, "scale"),
        layout.section(packed, "bias"), scales, residual, out,
        m, rows.h, rows.w, rows.oh, rows.ow, x.shape[-1], count,
        _a_scale(scales, rows.images, m), layout.out_channels, layout.act_zero,
        **epilogue,
        KERNEL_Y=layout.kernel[0], KERNEL_X=layout.kernel[1], STRIDE_Y=layout.stride[0],
        STRIDE_X=layout.stride[1], PAD_Y=layout.padding[0], PAD_X=layout.padding[1],
        DILATION_Y=layout.dilation[0], DILATION_X=layout.dilation[1], INTEGER=integer,
        BP=pixels, BC=block, PTX=not INTERPRETED, **_EXACT,
    )  # fmt: skip


def _product(
    layout: GpuLayout, packed: Tensor, x: Tensor, pitch: int, channels: int, rows: _Rows,
    window: bool, half_x: Tensor | None, epilogue: dict[str, Any], out: Tensor,
    scales: Tensor | None, residual: Tensor | None,
) -> None:  # fmt: skip
    def run(chosen: configs.Config) -> None:
        splits = configs.parts(layout, x.dtype, rows.count, chosen, device)
        product(layout, packed, x, pitch, channels, rows, window, half_x, epilogue, out, scales,
                residual, chosen, splits)  # fmt: skip

    device = _device(x)
    measure = None if INTERPRETED else _timer(run)
    run(configs.choose(layout, x.dtype, rows.count, device, measure))


def _device(x: Tensor) -> configs.Device:
    if x.device.type == "cuda":
        return configs.device_of(x.device.index)
    return configs.DEVICES[87]


def _timer(run: Callable[[configs.Config], None]) -> Callable[[configs.Config], float]:
    def measure(chosen: configs.Config) -> float:
        from triton.testing import do_bench

        return float(do_bench(lambda: run(chosen), return_mode="median"))

    return measure


def precision(dtype: torch.dtype) -> str:
    """How float32 products are made: by torch's own switch, "tf32" or three of them."""
    if dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32:
        return "tf32x3"
    return "tf32"


def product(
    layout: GpuLayout, packed: Tensor, x: Tensor, pitch: int, channels: int, rows: _Rows,
    window: bool, half_x: Tensor | None, epilogue: dict[str, Any], out: Tensor,
    scales: Tensor | None, residual: Tensor | None, chosen: configs.Config, splits: int,
) -> None:  # fmt: skip
    """Launches the product with the given configuration and number of parts."""
    m, count = rows.count, layout.stored
    tiles, tile_count = device_tiles(packed, chosen.bn)
    bias, scale = layout.section(packed, "bias"), layout.section(packed, "scale")
    out_index = None if layout.direct else layout.section(packed, "out_index")
    is_half = _optional(layout, packed, "is_half")
    a_scale = _a_scale(scales, rows.images, m)
    partial = None
    if splits > 1:
        kind = torch.int32 if x.dtype == torch.int8 and layout.bits != (HALF_BITS,) else torch.float32
        partial = torch.empty(splits, m, count, dtype=kind, device=x.device)
    outside = layout.section(packed, "outside").view(x.dtype)
    tail = any(b != HALF_BITS and layout.units % units_a_step(b) for b in layout.bits)
    grid = (tile_count, triton.cdiv(m, chosen.bm), splits)
    product_kernel[grid](
        x, outside, layout.section(packed, "weights"), tiles, out_index, scale,
        layout.section(packed, "zero_point"), layout.section(packed, "correction"), bias, scales,
        half_x, None if half_x is None else layout.section(packed, "half_weights"),
        residual, out, partial,
        m, rows.h, rows.w, rows.oh, rows.ow, pitch, channels, layout.units, count, a_scale,
        0 if half_x is None else half_x.shape[1], layout.out_channels, layout.act_zero,
        **epilogue,
        BITS=sum(1 << b for b in layout.bits),
        KERNEL_X=layout.kernel[1], STRIDE_Y=layout.stride[0], STRIDE_X=layout.stride[1],
        PAD_Y=layout.padding[0], PAD_X=layout.padding[1], DILATION_Y=layout.dilation[0],
        DILATION_X=layout.dilation[1], WINDOW=window, TAP_UNITS=layout.pitch // layout.unit,
        RAGGED=channels != layout.pitch, TAIL=tail, UNIT=layout.unit, GROUPS=layout.scale_groups,
        SPAN=layout.span, ASYMMETRIC=layout.asymmetric, CONV_GROUPS=layout.groups, SPLITS=splits,
        PRECISION=precision(x.dtype), BN=chosen.bn, BM=chosen.bm, PTX=not INTERPRETED,
        num_warps=chosen.warps, num_stages=chosen.stages, **_EXACT,
    )  # fmt: skip
    if partial is None:
        return
    block = min(256, triton.next_power_of_2(count))
    finish_kernel[(triton.cdiv(count, block), m)](
        partial, out_index, scale, bias, is_half, scales, residual, out,
        m, count, a_scale, layout.out_channels,
        **epilogue,
        SPLITS=splits, SCALED=layout.scale_groups == 1, BN=block, PTX=not INTERPRETED, **_EXACT,
    )  # fmt: skip
