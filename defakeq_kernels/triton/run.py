"""From an operator's tensors to kernel launches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from defakeq_kernels.packed import HALF_BITS
from defakeq_kernels.quantize import ACTIVATIONS
from defakeq_kernels.triton import config as configs
from defakeq_kernels.triton.depthwise import depthwise_kernel
from defakeq_kernels.triton.gemv import gemv_kernel
from defakeq_kernels.triton.layout import GpuLayout, device_tiles, units_a_step
from defakeq_kernels.triton.prepare import largest_kernel, prepare_kernel
from defakeq_kernels.triton.product import product_kernel
from defakeq_kernels.triton.split import finish_kernel
from defakeq_kernels.triton.start import INTERPRETED, device_of, is_recording, start

_MAX_ELEMENTS = (1 << 31) - 1
# Elements of which one program finds the largest.
_LARGEST_PART = 16384


@dataclass(frozen=True)
class Rows:
    """Rows of the product: output pixels of images, or rows of a linear layer as 1x1 images."""

    images: int
    h: int
    w: int
    oh: int
    ow: int

    @property
    def count(self) -> int:
        """How many."""
        return self.images * self.oh * self.ow


@dataclass(frozen=True)
class Extra:
    """What else goes into the epilogue, dense and in the order of the output's memory."""

    residual: Tensor | None
    residual_scale: float
    residual_zero_point: int
    half_input: Tensor | None
    table: Tensor | None = None


def run(
    layout: GpuLayout, packed: Tensor, x: Tensor, rows: Rows, extra: Extra, out: Tensor
) -> None:
    """`x`: [rows, channels] of a linear layer, or dense [n, h, w, channels]."""
    if rows.count == 0:
        return
    scales = _dynamic_scales(layout, x, rows)
    largest = _largest_offset(layout, x, rows)
    if largest <= _MAX_ELEMENTS:
        _run_part(layout, packed, x, rows, extra, out, scales)
        return
    # offsets are 32 bits wide in the kernels
    step = rows.images * _MAX_ELEMENTS // largest
    if step == 0:
        raise ValueError(
            f"x: found {list(x.shape)} with {largest // rows.images} elements an image; accepted "
            f"is at most {_MAX_ELEMENTS}, laid out patches and outputs included"
        )
    a_part = rows.oh * rows.ow
    for first in range(0, rows.images, step):
        last = min(first + step, rows.images)
        part = Rows(last - first, rows.h, rows.w, rows.oh, rows.ow)

        def cut(t: Tensor | None, first: int = first, last: int = last) -> Tensor | None:
            return None if t is None else t[first:last]

        piece = Extra(cut(extra.residual), extra.residual_scale, extra.residual_zero_point,
                       cut(extra.half_input), extra.table)  # fmt: skip
        own = scales if scales is None or scales.numel() == 1 else scales[first:last]
        pixels = slice(first * a_part, last * a_part)
        _run_part(layout, packed, x[first:last], part, piece, out[pixels], own)


def _largest_offset(layout: GpuLayout, x: Tensor, rows: Rows) -> int:
    """Elements of the largest tensor that a kernel addresses."""
    read = x.shape[0] * _pitch(x) if x.dim() == 2 else x.numel()
    half = layout.sections["half_weights"][2][1] if layout.half_inputs else 0
    widest = max(layout.pitch * layout.groups, layout.out_channels, half)
    pixels = rows.images * max(rows.oh * rows.ow, rows.h * rows.w)
    return max(read, pixels * widest)


def _dynamic_scales(layout: GpuLayout, x: Tensor, rows: Rows) -> Tensor | None:
    """float32 [images], or [1] for one of the whole tensor: max|x| / 127, 1 for zeros."""
    if layout.act_mode not in ("dynamic_row", "dynamic_tensor"):
        return None
    dense = x.contiguous()
    images = rows.images if layout.act_mode == "dynamic_row" else 1
    length = dense.numel() // images
    parts = triton.cdiv(length, _LARGEST_PART)
    if parts > 1:
        dense = _largest(dense, images, length, parts, False)
        length = parts
    return _largest(dense, images, length, 1, True)


def _largest(x: Tensor, images: int, length: int, parts: int, scale: bool) -> Tensor:
    out = torch.empty(images * parts, dtype=torch.float32, device=x.device)
    block = min(2048, triton.next_power_of_2(triton.cdiv(length, parts)))
    steps = triton.cdiv(triton.cdiv(length, parts), block)
    start(largest_kernel, (images * parts,), x, out, length, parts, steps,
          SCALE=scale, BLOCK=block)  # fmt: skip
    return out


def _run_part(
    layout: GpuLayout,
    packed: Tensor,
    x: Tensor,
    rows: Rows,
    extra: Extra,
    out: Tensor,
    scales: Tensor | None,
) -> None:
    half_x = _half_rows(layout, packed, x, rows, extra) if layout.half_inputs else None
    epilogue = _epilogue(layout, extra)
    if layout.strategy == "depthwise":
        if layout.act is not None and x.dtype != torch.int8:
            x = _quantized(layout, x, rows, scales)
        _depthwise(layout, packed, x, rows, epilogue, out, scales, extra)
        return
    window = layout.strategy == "product" and layout.kind == "conv2d" and not _pointwise(layout)
    kind = torch.int8 if layout.act is not None else x.dtype
    few = None if window else configs.gemv(layout, kind, rows.count, device_of(x))
    # A single row may be of any length where few rows are multiplied.
    single = few is not None and rows.count == 1
    x, pitch, channels = _compact(layout, packed, x, rows, scales, single)
    if few is not None:
        _gemv(layout, packed, x, pitch, channels, rows, epilogue, out, scales, extra, few)
        return
    _product(layout, packed, x, pitch, channels, rows, window, half_x, epilogue, out, scales,
             extra)  # fmt: skip


def _pointwise(layout: GpuLayout) -> bool:
    return layout.kernel == (1, 1) and layout.stride == (1, 1) and layout.padding == (0, 0)


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
    layout: GpuLayout, x: Tensor, index: Tensor, rows: Rows, window: bool, channels: int,
    dtype: torch.dtype, scales: Tensor | None,
) -> Tensor:  # fmt: skip
    count = rows.count if window else rows.images * rows.h * rows.w
    columns = index.numel()
    out = torch.empty(count, columns, dtype=dtype, device=x.device)
    inverse, zero, low, high = _act_limits(layout)
    block = min(128, triton.next_power_of_2(columns))
    lines = 16 if not INTERPRETED else 512
    grid = (triton.cdiv(count, lines), triton.cdiv(columns, block))
    start(prepare_kernel, grid,
        x, index, scales, out,
        count, columns, channels, rows.h, rows.w, rows.oh, rows.ow, _pitch(x),
        _a_scale(scales, rows.images, count), inverse, zero, low, high,
        WINDOW=window, KERNEL_X=layout.kernel[1], STRIDE_Y=layout.stride[0],
        STRIDE_X=layout.stride[1], PAD_Y=layout.padding[0], PAD_X=layout.padding[1],
        DILATION_Y=layout.dilation[0], DILATION_X=layout.dilation[1], BR=lines, BC=block,
    )  # fmt: skip
    return out


def _pitch(x: Tensor) -> int:
    """Elements from row to row; the stride of a single row means nothing."""
    return x.stride(0) if x.dim() == 2 and x.shape[0] > 1 else x.shape[-1]


def _vector(x: Tensor, channels: int, pitch: int) -> int:
    """Bytes that can be loaded at a time: 16, 8, or 1 for less."""
    size = math.gcd(channels * x.itemsize, pitch * x.itemsize)
    return 16 if size % 16 == 0 else 8 if size % 8 == 0 else 1


def _compact(
    layout: GpuLayout, packed: Tensor, x: Tensor, rows: Rows, scales: Tensor | None, single: bool
) -> tuple[Tensor, int, int]:
    """Activations the product reads, elements between pixels, and channels of a group."""
    quantizes = layout.act is not None and x.dtype != torch.int8
    pitch = _pitch(x)
    fits = single or _vector(x, layout.channels, pitch) >= (8 if x.dtype == torch.int8 else 16)
    aligned = fits and x.data_ptr() % 16 == 0
    if not layout.gathers and not quantizes and aligned:
        return x, pitch, layout.channels
    dtype = torch.int8 if quantizes else x.dtype
    index = layout.section(packed, "in_index")
    patches = layout.strategy == "patches"
    made = _prepare(layout, x, index, rows, patches, layout.in_channels, dtype, scales)
    return made, made.shape[1], layout.pitch


def _quantized(layout: GpuLayout, x: Tensor, rows: Rows, scales: Tensor | None) -> Tensor:
    """int8 values of float NHWC pixels, all channels."""
    index = torch.arange(layout.in_channels, dtype=torch.int32, device=x.device)
    return _prepare(layout, x, index, rows, False, layout.in_channels, torch.int8, scales)


def _half_rows(layout: GpuLayout, packed: Tensor, x: Tensor, rows: Rows, extra: Extra) -> Tensor:
    """float32 [rows, columns] of the half-precision inputs, patch by patch."""
    window = layout.kind == "conv2d" and not _pointwise(layout)
    if extra.half_input is None:
        source, name, channels = x, "half_of_x", layout.in_channels
    else:
        source, name, channels = extra.half_input, "half_of_copy", layout.half_inputs
    index = layout.section(packed, name)
    return _prepare(layout, source, index, rows, window, channels, torch.float32, None)


def _epilogue(layout: GpuLayout, extra: Extra) -> dict[str, Any]:
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
    layout: GpuLayout, packed: Tensor, x: Tensor, rows: Rows, epilogue: dict[str, Any],
    out: Tensor, scales: Tensor | None, extra: Extra,
) -> None:  # fmt: skip
    count = layout.stored
    block = min(64, triton.next_power_of_2(count))
    pixels = 32 if not INTERPRETED else 512
    m = rows.count
    integer = layout.act is not None and layout.bits != (HALF_BITS,)
    start(depthwise_kernel, (triton.cdiv(m, pixels), triton.cdiv(count, block)),
        x, layout.section(packed, "weights"), layout.section(packed, "float_weights"),
        layout.section(packed, "in_index") if layout.gathers else None,
        None if layout.direct else layout.section(packed, "out_index"),
        _optional(layout, packed, "is_half"), layout.section(packed, "scale"),
        layout.section(packed, "bias"), scales, extra.residual, extra.table, out,
        m, rows.h, rows.w, rows.oh, rows.ow, x.shape[-1], count,
        _a_scale(scales, rows.images, m), layout.out_channels, layout.act_zero,
        **epilogue,
        KERNEL_Y=layout.kernel[0], KERNEL_X=layout.kernel[1], STRIDE_Y=layout.stride[0],
        STRIDE_X=layout.stride[1], PAD_Y=layout.padding[0], PAD_X=layout.padding[1],
        DILATION_Y=layout.dilation[0], DILATION_X=layout.dilation[1], INTEGER=integer,
        BP=pixels, BC=block, PTX=not INTERPRETED,
    )  # fmt: skip


def _gemv(
    layout: GpuLayout, packed: Tensor, x: Tensor, pitch: int, channels: int, rows: Rows,
    epilogue: dict[str, Any], out: Tensor, scales: Tensor | None, extra: Extra,
    chosen: configs.Gemv,
) -> None:  # fmt: skip
    count, a_step = layout.stored, units_a_step(layout.bits[0])
    even = layout.units % (a_step * chosen.slices) == 0 and channels == layout.pitch
    vector = 16 if rows.count == 1 else _vector(x, channels, pitch)
    start(gemv_kernel, (triton.cdiv(count, chosen.bn),),
        x, layout.section(packed, "weights"),
        None if layout.direct else layout.section(packed, "out_index"),
        layout.section(packed, "scale"), layout.section(packed, "zero_point"),
        layout.section(packed, "correction"), layout.section(packed, "bias"), scales,
        extra.residual, extra.table, out,
        rows.count, pitch * x.itemsize // vector, channels, layout.units, count,
        _a_scale(scales, rows.images, rows.count), layout.out_channels,
        **epilogue,
        BITS=layout.bits[0], UNIT=layout.unit, GROUPS=layout.scale_groups, SPAN=layout.span,
        ASYMMETRIC=layout.asymmetric, EVEN=even, SLICES=chosen.slices, VECTOR=vector,
        BN=chosen.bn, BM=chosen.bm, STAGES=chosen.stages, PTX=not INTERPRETED,
        num_warps=chosen.slices, num_stages=chosen.stages,
    )  # fmt: skip


def _product(
    layout: GpuLayout, packed: Tensor, x: Tensor, pitch: int, channels: int, rows: Rows,
    window: bool, half_x: Tensor | None, epilogue: dict[str, Any], out: Tensor,
    scales: Tensor | None, extra: Extra,
) -> None:  # fmt: skip
    def launch(chosen: configs.Config) -> None:
        splits = configs.parts(layout, x.dtype, rows.count, chosen, device)
        product(layout, packed, x, pitch, channels, rows, window, half_x, epilogue, out, scales,
                extra, chosen, splits)  # fmt: skip

    device = device_of(x)
    fixed = INTERPRETED or is_recording() or torch.cuda.is_current_stream_capturing()
    measure = None if fixed else _timer(launch)
    launch(configs.choose(layout, x.dtype, rows.count, device, measure))


def _timer(launch: Callable[[configs.Config], None]) -> Callable[[configs.Config], float]:
    def measure(chosen: configs.Config) -> float:
        from triton.runtime.errors import OutOfResources
        from triton.testing import do_bench

        try:
            return float(do_bench(lambda: launch(chosen), return_mode="median"))
        except OutOfResources:
            return math.inf

    return measure


def precision(dtype: torch.dtype) -> str:
    """How float32 products are made: by torch's own switch, "tf32" or three of them."""
    if dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32:
        return "tf32x3"
    return "tf32"


def product(
    layout: GpuLayout, packed: Tensor, x: Tensor, pitch: int, channels: int, rows: Rows,
    window: bool, half_x: Tensor | None, epilogue: dict[str, Any], out: Tensor,
    scales: Tensor | None, extra: Extra, chosen: configs.Config, splits: int,
) -> None:  # fmt: skip
    """Launches the product with the given configuration and number of parts."""
    m, count = rows.count, layout.stored
    unit = configs.unit(layout, x.dtype, device_of(x))
    units = layout.units * layout.unit // unit
    tiles, tile_count = device_tiles(packed, chosen.bn)
    bias, scale = layout.section(packed, "bias"), layout.section(packed, "scale")
    out_index = None if layout.direct else layout.section(packed, "out_index")
    is_half = _optional(layout, packed, "is_half")
    a_scale = _a_scale(scales, rows.images, m)
    partial = None
    if splits > 1:
        kind = (
            torch.int32 if x.dtype == torch.int8 and layout.bits != (HALF_BITS,) else torch.float32
        )
        partial = torch.empty(splits, m, count, dtype=kind, device=x.device)
    outside = layout.section(packed, "outside").view(x.dtype)
    tail = any(b != HALF_BITS and units % units_a_step(b) for b in layout.bits)
    grid = (tile_count * triton.cdiv(m, chosen.bm), splits)
    bytes_each = _vector(x, channels, pitch)
    vector = bytes_each // x.itemsize
    start(product_kernel, grid,
        x, outside, layout.section(packed, "weights"), tiles, out_index, scale,
        layout.section(packed, "zero_point"), layout.section(packed, "correction"), bias, scales,
        half_x, None if half_x is None else layout.section(packed, "half_weights"),
        extra.residual, extra.table, out, partial,
        tile_count, m, rows.h, rows.w, rows.oh, rows.ow, pitch // vector, channels // vector,
        units, count, a_scale,
        0 if half_x is None else half_x.shape[1], layout.out_channels, layout.act_zero,
        **epilogue,
        BITS=sum(1 << b for b in layout.bits),
        KERNEL_X=layout.kernel[1], STRIDE_Y=layout.stride[0], STRIDE_X=layout.stride[1],
        PAD_Y=layout.padding[0], PAD_X=layout.padding[1], DILATION_Y=layout.dilation[0],
        DILATION_X=layout.dilation[1], WINDOW=window, TAP_UNITS=layout.pitch // unit,
        RAGGED=channels != layout.pitch, TAIL=tail, UNIT=unit, GROUPS=layout.scale_groups,
        SPAN=layout.span, ASYMMETRIC=layout.asymmetric, CONV_GROUPS=layout.groups, SPLITS=splits,
        PRECISION=precision(x.dtype), VECTOR=bytes_each, BN=chosen.bn, BM=chosen.bm,
        PTX=not INTERPRETED,
        num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    if partial is None:
        return
    block = min(256, triton.next_power_of_2(count))
    start(finish_kernel, (triton.cdiv(count, block), m),
        partial, out_index, scale, bias, is_half, scales, extra.residual, extra.table, out,
        m, count, a_scale, layout.out_channels,
        **epilogue,
        SPLITS=splits, SCALED=layout.scale_groups == 1, BN=block, PTX=not INTERPRETED,
    )  # fmt: skip
