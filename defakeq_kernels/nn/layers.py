"""QuantLinear and QuantConv2d."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from defakeq_kernels.checks import refuse
from defakeq_kernels.nn.base import Indices, QuantLayer
from defakeq_kernels.quantize import ActQuant

__all__ = ["QuantConv2d", "QuantLayer", "QuantLinear", "explicit_padding", "has_forward_of"]


class QuantLinear(QuantLayer):
    """``torch.nn.Linear`` on a packed weight."""

    kind = "linear"

    @classmethod
    def from_float(
        cls,
        module: torch.nn.Linear,
        *,
        bits: int | Sequence[int] | Tensor = 8,
        symmetric: bool = False,
        group_size: int | None = None,
        keep_out: Indices = None,
        keep_in: Indices = None,
        half_out: Indices = None,
        half_in: Indices = None,
        scale: Sequence[float] | None = None,
        zero_point: Sequence[int] | None = None,
        act: ActQuant | None = None,
        activation: str = "none",
    ) -> QuantLinear:
        """Quantizes a float layer.

        Args:
            module: the float layer, with the forward of its class; left as it is.
            bits: 1 to 8, or 16 for half precision; one value, or one an output.
            symmetric: fixes the zero points to the middle code.
            group_size: inputs that share a scale, a multiple of 4; None: all.
            keep_out: outputs that are kept; the others are exactly zero. None: all.
            keep_in: inputs that are read, those in `half_in` included. None: all.
            half_out: kept outputs whose weights are stored in half precision.
            half_in: kept inputs that stay float: half-precision columns times float activations.
            scale, zero_point: one value an output, the grid of its integer weights; None: searched.
            act: input quantization; None: weight-only, float32 math.
            activation: fused after the layer, by name.

        Raises:
            ValueError: naming the argument, what was found and what is accepted.
        """
        _check_module(module, torch.nn.Linear)
        return cls._from_weight(module, act, activation, _options(locals()), {})

    @property
    def in_features(self) -> int:
        """Inputs of the original layer."""
        return self.weight_shape[1]

    @property
    def out_features(self) -> int:
        """Outputs of the original layer."""
        return self.weight_shape[0]

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        half_input: Tensor | None = None,
        residual_scale: float = 0.0,
        residual_zero_point: int = 0,
    ) -> Tensor:
        """Applies the layer.

        Args:
            x: [..., in_features]: float32; float16 or bfloat16, cast to float32 and the result
                back; or int8 when `act` is static.
            residual: [..., out_features], added before the activation: a float, or int8 with
                x = residual_scale * (q - residual_zero_point).
            half_input: float [..., H], values of the inputs in `half_in`; needed when x is int8.

        Returns:
            [..., out_features] of x's float type (float32 for int8 x), or int8 when `out` is set.

        Raises:
            ValueError: a type or shape that is not accepted.
            RuntimeError: an input that requires grad.
        """
        geometry = (self.out_features,)
        op = torch.ops.defakeq.linear
        extras = (residual, half_input, residual_scale, residual_zero_point)
        return self._call(op, x, geometry, *extras)


class QuantConv2d(QuantLayer):
    """``torch.nn.Conv2d`` on a packed weight; channels_last inputs enter without a copy."""

    kind = "conv2d"

    @classmethod
    def from_float(
        cls,
        module: torch.nn.Conv2d,
        *,
        bits: int | Sequence[int] | Tensor = 8,
        symmetric: bool = False,
        group_size: int | None = None,
        keep_out: Indices = None,
        keep_in: Indices = None,
        half_out: Indices = None,
        half_in: Indices = None,
        scale: Sequence[float] | None = None,
        zero_point: Sequence[int] | None = None,
        act: ActQuant | None = None,
        activation: str = "none",
    ) -> QuantConv2d:
        """Quantizes a float layer.

        Args:
            module: the float layer, zero-padded; left as it is.
            others: as in `QuantLinear.from_float`. With groups > 1, `keep_in` and `half_in` must
                be None.

        Raises:
            ValueError: naming the argument, what was found and what is accepted.
        """
        _check_module(module, torch.nn.Conv2d)
        geometry = {
            "stride": _pair(module.stride),
            "padding": explicit_padding(module),
            "dilation": _pair(module.dilation),
            "groups": module.groups,
        }
        return cls._from_weight(module, act, activation, _options(locals()), geometry)

    @property
    def in_channels(self) -> int:
        """Input channels of the original layer."""
        return self.weight_shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Output channels of the original layer."""
        return self.weight_shape[0]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Kernel height and width."""
        return self.weight_shape[2], self.weight_shape[3]

    @property
    def stride(self) -> tuple[int, int]:
        """Vertical and horizontal stride."""
        return _pair(self._geometry["stride"])

    @property
    def padding(self) -> tuple[int, int]:
        """Vertical and horizontal zero padding."""
        return _pair(self._geometry["padding"])

    @property
    def dilation(self) -> tuple[int, int]:
        """Vertical and horizontal dilation."""
        return _pair(self._geometry["dilation"])

    @property
    def groups(self) -> int:
        """Convolution groups."""
        return int(self._geometry["groups"])

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        half_input: Tensor | None = None,
        residual_scale: float = 0.0,
        residual_zero_point: int = 0,
    ) -> Tensor:
        """Applies the layer.

        Args:
            x: [N, in_channels, H, W] or [in_channels, H, W]: float32; float16 or bfloat16, cast to
                float32 and the result back; or int8 when `act` is static.
            residual: of the output's shape, added before the activation: a float, or int8 with
                x = residual_scale * (q - residual_zero_point).
            half_input: float, shaped as x but with the H channels in `half_in`; needed when x is
                int8.

        Returns:
            [N, out_channels, OH, OW], channels_last in memory, of x's float type (float32 for
            int8 x), or int8 when `out` is set; without N when x had none.

        Raises:
            ValueError: a type or shape that is not accepted.
            RuntimeError: an input that requires grad.
        """
        g = self._geometry
        window = (*g["shape"][2:], *g["stride"], *g["padding"], *g["dilation"])
        geometry = (self.out_channels, window)
        op = torch.ops.defakeq.conv2d
        numbers = (residual_scale, residual_zero_point)
        if x.dim() != 3:
            return self._call(op, x, geometry, residual, half_input, *numbers)
        residual = None if residual is None else residual.unsqueeze(0)
        half_input = None if half_input is None else half_input.unsqueeze(0)
        y = self._call(op, x.unsqueeze(0), geometry, residual, half_input, *numbers)
        return y.squeeze(0)


def has_forward_of(module: torch.nn.Module, base: type[torch.nn.Module]) -> bool:
    """Whether `module` is a `base` and computes what `base` does."""
    if not isinstance(module, base):
        return False
    names = ("forward", "_conv_forward", "__call__")
    return all(getattr(type(module), n, None) is getattr(base, n, None) for n in names)


def _check_module(module: object, base: type[torch.nn.Module]) -> None:
    if not isinstance(module, base):
        refuse("module", type(module).__name__, f"a torch.nn.{base.__name__}")
    if not has_forward_of(module, base):
        refuse("module", f"{type(module).__name__} with a forward of its own", f"{base.__name__}'s")


def explicit_padding(module: torch.nn.Conv2d) -> tuple[int, int]:
    """The vertical and horizontal zero padding of a convolution.

    Raises:
        ValueError: padding with other values than zero, or "same" with an odd total.
    """
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode: found {module.padding_mode!r}; accepted is 'zeros'")
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        sizes = zip(_pair(module.kernel_size), _pair(module.dilation), strict=True)
        total = [d * (k - 1) for k, d in sizes]
        if any(t % 2 for t in total):
            raise ValueError(
                f"padding: found 'same' with a kernel of {tuple(module.kernel_size)}; accepted is "
                "'same' where both sides get equal padding, or explicit sizes"
            )
        return total[0] // 2, total[1] // 2
    return _pair(module.padding)


def _pair(value: Any) -> tuple[int, int]:
    vertical, horizontal = value
    return int(vertical), int(horizontal)


def _options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    names = ("bits", "symmetric", "group_size", "keep_out", "keep_in", "half_out", "half_in")
    return {name: arguments[name] for name in (*names, "scale", "zero_point")}
