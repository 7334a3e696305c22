"""The torch ops ``torch.ops.defakeq.*``: their library, their fakes and thin functions over them.

Importing this module loads the op library. The ops run on the CPU, under torch's threads, and on
CUDA devices through Triton, where they also take and return float16 and bfloat16. They have no
backward pass: a float input that requires grad is refused while grad mode is on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import defakeq_kernels

MIN_TORCH = (2, 10)
_BUILD = "`pip install torch` first, then `pip install .` in the project directory (or `make dev`)"

try:
    import torch
except ImportError as error:
    raise ImportError(
        f"defakeq_kernels.ops needs torch >= 2.10, which is not installed; build with {_BUILD}"
    ) from error


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def _library() -> Path:
    for directory in defakeq_kernels.__path__:
        for path in sorted(Path(directory).glob("_torch_ops*.so")):
            return path
    raise ImportError(
        "defakeq_kernels: the torch ops (_torch_ops.so) are not built, because no torch >= 2.10 "
        f"was there when the package was built; build with {_BUILD}"
    )


def _load() -> None:
    if _torch_version() < MIN_TORCH:
        raise ImportError(
            f"defakeq_kernels.ops: found torch {torch.__version__}, accepted: 2.10 or newer; "
            f"build with {_BUILD}"
        )
    path = _library()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"defakeq_kernels: {path} does not load ({error}); rebuild it with {_BUILD}"
        ) from error


_load()


_HALVES = (torch.float16, torch.bfloat16)


def _out_dtype(x: torch.Tensor, out_int8: bool) -> torch.dtype:
    if out_int8:
        return torch.int8
    return x.dtype if x.dtype in _HALVES else torch.float32


def _check_values(name: str, x: torch.Tensor) -> None:
    if x.dtype in _HALVES and x.device.type == "cuda":
        return
    if x.dtype not in (torch.float32, torch.int8):
        raise ValueError(f"{name}: found {x.dtype}, accepted: float32 or int8")


def _linear_fake(
    x: torch.Tensor,
    packed: torch.Tensor,
    out_features: int,
    out_int8: bool,
    residual: torch.Tensor | None = None,
    residual_scale: float = 0.0,
    residual_zero_point: int = 0,
    half_input: torch.Tensor | None = None,
) -> torch.Tensor:
    _check_values("x", x)
    return x.new_empty((*x.shape[:-1], out_features), dtype=_out_dtype(x, out_int8))


def _conv2d_fake(
    x: torch.Tensor,
    packed: torch.Tensor,
    out_channels: int,
    window: Sequence[int],
    out_int8: bool,
    residual: torch.Tensor | None = None,
    residual_scale: float = 0.0,
    residual_zero_point: int = 0,
    half_input: torch.Tensor | None = None,
) -> torch.Tensor:
    _check_values("x", x)
    if x.dim() != 4:
        raise ValueError(f"x: found {x.dim()} dimensions, accepted: [n, channels, h, w]")
    if len(window) != 8:
        raise ValueError(
            f"window: found {len(window)} integers, accepted: 8: kernel, stride, padding and "
            "dilation, two integers each"
        )
    h, w = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in (
            (x.shape[2 + d], *window[d::2]) for d in range(2)
        )
    )
    strides = (out_channels * h * w, 1, out_channels * w, out_channels)
    size = (x.shape[0], out_channels, h, w)
    return x.new_empty_strided(size, strides, dtype=_out_dtype(x, out_int8))


def _same_layout(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    kept = x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )
    if kept:
        return x.new_empty_strided(x.shape, x.stride(), dtype=dtype)
    return x.new_empty(x.shape, dtype=dtype)


def _quantize_fake(x: torch.Tensor, scale: float, zero_point: int, bits: int) -> torch.Tensor:
    return _same_layout(x, torch.int8)


def _dequantize_fake(q: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return _same_layout(q, torch.float32)


def _run_program_fake(
    program: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    out_shapes: Sequence[int],
    threads: int = 0,
) -> list[torch.Tensor]:
    for i, x in enumerate(inputs):
        if x.dtype != torch.float32 or x.dim() < 1:
            raise ValueError(
                f"inputs[{i}]: found {x.dtype} {list(x.shape)}, accepted: float32 [N, ...]"
            )
    source = inputs[0] if inputs else program
    batch = inputs[0].shape[0] if inputs else 1
    results, at = [], 0
    while at < len(out_shapes):
        end = at + 1 + out_shapes[at]
        shape = (batch, *out_shapes[at + 1 : end])
        results.append(source.new_empty(shape, dtype=torch.float32))
        at = end
    return results


torch.library.register_fake("defakeq::linear", _linear_fake)
torch.library.register_fake("defakeq::conv2d", _conv2d_fake)
torch.library.register_fake("defakeq::quantize", _quantize_fake)
torch.library.register_fake("defakeq::dequantize", _dequantize_fake)
torch.library.register_fake("defakeq::run_program", _run_program_fake)


def _on_gpu(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            from defakeq_kernels.triton import gpu_ops
        except ImportError as error:
            raise RuntimeError(
                f"torch.ops.defakeq.{name}: found CUDA tensors without Triton ({error}); accepted "
                "is triton >= 3.5 (`pip install triton`), or tensors and layers on the CPU"
            ) from error
        return getattr(gpu_ops, name)(*args, **kwargs)

    return call


_gpu_ops = torch.library.Library("defakeq", "IMPL", "CUDA")
for _name in ("linear", "conv2d", "quantize", "dequantize", "run_program"):
    _gpu_ops.impl(_name, _on_gpu(_name))


def linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    out_features: int,
    out_int8: bool = False,
    *,
    residual: torch.Tensor | None = None,
    residual_scale: float = 0.0,
    residual_zero_point: int = 0,
    half_input: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a packed linear layer with its epilogue.

    Args:
        x: float32 or int8 ``[..., in_features]``, any strides; int8 only for layers whose
            activations are quantized statically.
        packed: uint8 ``[bytes]``, the layer's runtime layout for x's device.
        out_features: the layer's number of outputs, pruned ones included.
        out_int8: whether the layer requantizes its output to int8.
        residual: float32 or int8, shaped as the output; added before the activation.
        residual_scale: scale of an int8 residual.
        residual_zero_point: zero point of an int8 residual.
        half_input: float32 ``[..., half inputs]``: the float copy of the input channels that are
            kept in half precision; may be left out when ``x`` is float32.

    Returns:
        float32 or int8 ``[..., out_features]``, contiguous.

    Raises:
        ValueError: an argument has a wrong dtype, shape, device, or is no runtime layout.
        RuntimeError: an input requires grad while grad mode is on.
    """
    result: torch.Tensor = torch.ops.defakeq.linear(
        x, packed, out_features, out_int8, residual, residual_scale, residual_zero_point, half_input
    )
    return result


def conv2d(
    x: torch.Tensor,
    packed: torch.Tensor,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    out_int8: bool = False,
    *,
    residual: torch.Tensor | None = None,
    residual_scale: float = 0.0,
    residual_zero_point: int = 0,
    half_input: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a packed 2-d convolution with its epilogue.

    Args:
        x: float32 or int8 ``[n, in_channels, h, w]``. channels_last memory is read in place, other
            layouts are converted.
        packed: uint8 ``[bytes]``, the layer's runtime layout.
        out_channels: the layer's number of outputs, pruned ones included.
        kernel: (height, width), as the layer was packed; so for the next three.
        stride: (vertical, horizontal).
        padding: (vertical, horizontal).
        dilation: (vertical, horizontal).
        out_int8: whether the layer requantizes its output to int8.
        residual: float32 or int8, shaped as the output; added before the activation.
        residual_scale: scale of an int8 residual.
        residual_zero_point: zero point of an int8 residual.
        half_input: float32 ``[n, half inputs, h, w]``: the float copy of the input channels that
            are kept in half precision; may be left out when ``x`` is float32.

    Returns:
        float32 or int8 ``[n, out_channels, h', w']`` in channels_last memory.

    Raises:
        ValueError: an argument has a wrong dtype, shape, device, or is no runtime layout.
        RuntimeError: an input requires grad while grad mode is on.
    """
    result: torch.Tensor = torch.ops.defakeq.conv2d(
        x,
        packed,
        out_channels,
        (*kernel, *stride, *padding, *dilation),
        out_int8,
        residual,
        residual_scale,
        residual_zero_point,
        half_input,
    )
    return result


def quantize(x: torch.Tensor, scale: float, zero_point: int = 0, bits: int = 8) -> torch.Tensor:
    """Quantize float32 values to int8: ``clamp(round(x / scale) + zero_point)``.

    Args:
        x: float32, any shape.
        scale: positive step, in the units of ``x``.
        zero_point: the integer that stands for 0.
        bits: 4 to 8; values lie in ``[-2^(bits-1), 2^(bits-1) - 1]``.

    Raises:
        ValueError: an argument is out of range or of the wrong dtype.
    """
    result: torch.Tensor = torch.ops.defakeq.quantize(x, scale, zero_point, bits)
    return result


def dequantize(q: torch.Tensor, scale: float, zero_point: int = 0) -> torch.Tensor:
    """Turn int8 values back into float32: ``scale * (q - zero_point)``.

    Raises:
        ValueError: an argument is out of range or of the wrong dtype.
    """
    result: torch.Tensor = torch.ops.defakeq.dequantize(q, scale, zero_point)
    return result


def run_program(
    program: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    shapes: Sequence[Sequence[int]],
    threads: int = 0,
) -> list[torch.Tensor]:
    """Run a whole network.

    Args:
        program: uint8 ``[bytes]``: the content of a ``.dfq`` file with a program. It is loaded when
            it is first run and kept by its address, length and checksum, the last 32 of them; so
            it must not be changed other than as a whole.
        inputs: one float32 tensor ``[N, ...]`` for each input of the program, any strides.
        shapes: the shape of each output without the batch, as `Program.outputs` has them; tracing
            cannot read them from `program`.
        threads: of the program's own pool, 1 to 1024; 0: torch's threads.

    Returns:
        float32 ``[N, *shape]`` for each output, contiguous.

    Raises:
        ValueError: a wrong number, dtype, shape or device, by the argument's or input's name.
        RuntimeError: `program` is no valid file; or an input requires grad while grad mode is on.
    """
    flat = [n for shape in shapes for n in (len(shape), *shape)]
    results: list[torch.Tensor] = torch.ops.defakeq.run_program(
        program, list(inputs), flat, threads
    )
    return results


def release_programs() -> None:
    """Free the programs that `run_program` keeps; those that run again are loaded again."""
    torch.ops.defakeq.release_programs()


__all__ = ["conv2d", "dequantize", "linear", "quantize", "release_programs", "run_program"]
