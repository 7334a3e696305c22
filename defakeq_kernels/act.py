"""How activations are quantized: the parameters, and their descriptions in files."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defakeq_kernels.checks import is_integer, shown
from defakeq_kernels.packed import FLOAT_OUT

ACT_MODES = ("none", "static", "dynamic_tensor", "dynamic_row")
ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "silu", "gelu", "sigmoid")
OUT_DTYPES = ("float32", "int8")


@dataclass(frozen=True)
class ActQuant:
    """How a layer's input is quantized: ``x = scale * (q - zero_point)``.

    Use `static` or `dynamic`. Dynamic modes are 8-bit and symmetric with a scale of max|x| / 127,
    taken of the whole tensor or of each row (each image for a convolution), pruned and
    half-precision inputs included.

    Attributes:
        mode: "static", "dynamic_tensor" or "dynamic_row".
        scale: finite and positive; 1 for dynamic modes.
        zero_point: qmin to qmax; 0 for dynamic modes.
        bits: 4 to 8; 8 for dynamic modes.
    """

    mode: str
    scale: float = 1.0
    zero_point: int = 0
    bits: int = 8

    def __post_init__(self) -> None:
        if self.mode not in ACT_MODES[1:]:
            raise ValueError(f"mode: found {self.mode!r}; accepted is one of {ACT_MODES[1:]}")
        check_quantization(self.scale, self.zero_point, self.bits)
        if self.mode != "static" and (self.zero_point, self.bits) != (0, 8):
            raise ValueError(
                f"mode: found {self.mode!r} with zero point {self.zero_point} and {self.bits} "
                "bits; accepted is zero point 0 and 8 bits for dynamic modes"
            )

    @staticmethod
    def static(low: float, high: float, bits: int = 8) -> ActQuant:
        """One scale and zero point for the range [low, high], widened to contain 0.

        Args:
            low, high: finite range of the activations, low <= high.
            bits: 4 to 8.
        """
        _check_act_bits(bits)
        found = f"{shown(low)}, {shown(high)}"
        try:
            low, high = float(low), float(high)
        except (TypeError, ValueError):
            raise ValueError(f"low, high: found {found}; accepted is two numbers") from None
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"low, high: found {found}; accepted is finite low <= high")
        low, high = min(low, 0.0), max(high, 0.0)
        levels = (1 << bits) - 1
        tiny = float(np.finfo(np.float32).tiny)
        scale = np.float32(max(high / levels - low / levels, tiny)) if high > low else np.float32(1)
        qmin = -(1 << (bits - 1))
        zero_point = int(np.clip(qmin - np.rint(low / float(scale)), qmin, qmin + levels))
        return ActQuant("static", float(scale), zero_point, bits)

    @staticmethod
    def dynamic(per: str = "tensor") -> ActQuant:
        """Scales taken from the input at run time, of the whole "tensor" or of each "row"."""
        if per not in ("tensor", "row"):
            raise ValueError(f'per: found {per!r}; accepted is "tensor" or "row"')
        return ActQuant(f"dynamic_{per}")

    @property
    def qmin(self) -> int:
        """The smallest quantized value."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """The largest quantized value."""
        return (1 << (self.bits - 1)) - 1

    def describe(self) -> dict[str, Any]:
        """{"mode", "scale", "zero_point", "bits"}, as files and the native packer take it."""
        return {
            "mode": self.mode,
            "scale": self.scale,
            "zero_point": self.zero_point,
            "bits": self.bits,
        }

    def quantize(self, x: ArrayLike) -> NDArray[np.int8]:
        """Static quantization of a float32 array, to the bit what the kernels compute."""
        self._check_static()
        inverse = np.float32(1) / np.float32(self.scale)
        with np.errstate(over="ignore", invalid="ignore"):
            q = np.rint(np.asarray(x, np.float32) * inverse) + np.float32(self.zero_point)
        low, high = np.float32(self.qmin), np.float32(self.qmax)
        return np.where(q > low, np.minimum(q, high), low).astype(np.int8)

    def dequantize(self, q: NDArray[np.int8]) -> NDArray[np.float32]:
        """The float32 values of quantized ones."""
        self._check_static()
        levels = (q.astype(np.int32) - self.zero_point).astype(np.float32)
        return levels * np.float32(self.scale)

    def _check_static(self) -> None:
        if self.mode != "static":
            raise ValueError(f"mode: found {self.mode!r}; accepted is 'static'")


def _check_act_bits(bits: object, name: str = "") -> None:
    if not is_integer(bits) or not 4 <= bits <= 8:
        raise ValueError(f"{name}bits: found {shown(bits)}; accepted is an integer from 4 to 8")


def check_quantization(scale: object, zero_point: object, bits: object, name: str = "") -> None:
    """Refuses, with names that start with `name`, an activation quantization out of range."""
    _check_act_bits(bits, name)
    single = np.float32(0)
    if isinstance(scale, (int, float, np.floating)) and not isinstance(scale, bool):
        with np.errstate(over="ignore"):
            single = np.float32(min(scale, sys.float_info.max))
    if not np.isfinite(single) or single < np.finfo(np.float32).tiny:
        raise ValueError(
            f"{name}scale: found {shown(scale)}; accepted is a normal positive float32"
        )
    half = 1 << (int(bits) - 1)  # type: ignore[call-overload]
    if not is_integer(zero_point) or not -half <= zero_point < half:
        raise ValueError(
            f"{name}zero_point: found {shown(zero_point)}; "
            f"accepted is an integer from {-half} to {half - 1}"
        )


def int8_out(quantization: ActQuant) -> dict[str, Any]:
    """The output description of a layer whose consumer reads `quantization` (a static one)."""
    if quantization.mode != "static":
        raise ValueError(f"quantization: found {quantization.mode!r}; accepted is 'static'")
    described = quantization.describe()
    del described["mode"]
    return {"dtype": "int8", **described}


def float_out() -> dict[str, Any]:
    """The output description of a layer that returns float32."""
    return dict(FLOAT_OUT)


def check_act(act: object, name: str = "act") -> None:
    """Refuses, by name, a wrong activation description {"mode", "scale", "zero_point", "bits"}."""
    mode, scale, zero_point, bits = _fields(act, name, ("mode", "scale", "zero_point", "bits"))
    if mode not in ACT_MODES:
        raise ValueError(f"{name}.mode: found {shown(mode)}; accepted is one of {ACT_MODES}")
    check_quantization(scale, zero_point, bits, f"{name}.")
    if mode not in ("none", "static") and (zero_point, bits) != (0, 8):
        raise ValueError(
            f"{name}.zero_point, {name}.bits: found {zero_point}, {bits}; "
            f"accepted is 0, 8 for {mode}"
        )


def check_out(out: object, name: str = "out") -> None:
    """Refuses, by name, a wrong output description {"dtype", "scale", "zero_point", "bits"}."""
    dtype, scale, zero_point, bits = _fields(out, name, ("dtype", "scale", "zero_point", "bits"))
    if dtype not in OUT_DTYPES:
        raise ValueError(f"{name}.dtype: found {shown(dtype)}; accepted is one of {OUT_DTYPES}")
    check_quantization(scale, zero_point, bits, f"{name}.")


def _fields(description: object, name: str, keys: tuple[str, ...]) -> list[Any]:
    if not isinstance(description, Mapping):
        raise ValueError(f"{name}: found {shown(description)}; accepted is an object")
    for key in keys:
        if key not in description:
            raise ValueError(f"{name}.{key}: found nothing; accepted is a value")
    return [description[key] for key in keys]
