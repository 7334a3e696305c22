"""A layer's float weights on their way into a packed one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from defakeq.plan import LayerPlan
from defakeq_kernels.packed import PackedWeight
from defakeq_kernels.quantize import quantize_weight

ABSENT = -1
ZERO = -2


@dataclass
class LayerSpec:
    """What a layer of the program is quantized from.

    Attributes:
        name: in the file.
        kind: "conv2d" or "linear".
        weight, bias: float, as the program computes: pruned columns and outputs taken out.
        channels: the model's output channel of each row of `weight`; ABSENT: not stored, a zero;
            ZERO: stored with zero weights, for the residual that it carries.
        inputs: the model's input channel of each column; ABSENT: not read.
        plan: the layer's plan; None: 16-bit weights and float32 math.
        factor: what each of the model's output channels was multiplied by; None: 1.
    """

    name: str
    kind: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    channels: NDArray[np.int64]
    inputs: NDArray[np.int64]
    plan: LayerPlan | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "none"
    factor: NDArray[np.float64] | None = None

    def pack(self) -> PackedWeight:
        """Quantizes the weight by the plan."""
        plan = self.plan or LayerPlan(bits=16, act_bits=None)
        outs = self.weight.shape[0]
        if isinstance(plan.bits, int):
            bits = np.full(outs, plan.bits)
        else:
            bits = np.asarray(plan.bits)[self.channels]
        bits = np.where(self.channels == ZERO, 2 if plan.symmetric else 1, bits)
        keep_out = np.flatnonzero(self.channels != ABSENT)
        keep_in = np.flatnonzero(self.inputs >= 0)
        options: dict[str, Any] = {}
        if self.groups == 1:
            if len(keep_in) < len(self.inputs):
                options["keep_in"] = keep_in
            if plan.half_in:
                options["half_in"] = np.flatnonzero(np.isin(self.inputs, plan.half_in))
            if plan.group_size is not None:
                options["group_size"] = plan.group_size
        if plan.half_out:
            options["half_out"] = np.flatnonzero(np.isin(self.channels, plan.half_out))
        if len(keep_out) < outs:
            options["keep_out"] = keep_out
        symmetric = plan.symmetric
        if plan.scale is not None:
            options["scale"], options["zero_point"] = self._grid(plan, bits)
            symmetric = options["zero_point"] is None
        if self.kind == "conv2d":
            options.update(
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                groups=self.groups,
            )
        return quantize_weight(
            self.weight,
            kind=self.kind,
            bits=bits,
            symmetric=symmetric,
            bias=self.bias,
            **options,
        )

    def _grid(
        self, plan: LayerPlan, bits: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
        """The planned grid in this layer's order of rows; a negative factor turns it around."""
        rows = np.maximum(self.channels, 0)
        stored = self.channels >= 0
        factor = np.ones(len(rows)) if self.factor is None else self.factor[rows]
        scale = np.where(stored, np.asarray(plan.scale)[rows] * np.abs(factor), 1.0)
        scale = np.maximum(scale, float(np.finfo(np.float32).tiny))
        if plan.zero_point is None and not (factor < 0).any():
            return scale, None
        middle = np.left_shift(1, np.minimum(bits, 8) - 1)
        zero = middle if plan.zero_point is None else np.asarray(plan.zero_point)[rows]
        top = np.where(bits == 1, 2, (1 << np.minimum(bits, 8)) - 1)
        zero = np.where(factor < 0, top - zero, zero)
        return scale, np.where(stored, zero, 0)


def factor_of(
    affine: list[tuple[Tensor | None, Tensor | None]], outs: int
) -> NDArray[np.float64] | None:
    """The product of the factors that `folded` puts in; None where there are none."""
    factors = [factor.cpu().double().numpy() for factor, _ in affine if factor is not None]
    if not factors:
        return None
    product = np.ones(outs)
    for factor in factors:
        product = product * factor
    return product


def folded(
    weight: Tensor, bias: Tensor | None, affine: list[tuple[Tensor | None, Tensor | None]]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Weight and bias with the factors and offsets that follow put in."""
    w = weight.detach().double().cpu().numpy()
    b = np.zeros(w.shape[0]) if bias is None else bias.detach().double().cpu().numpy()
    for factor, offset in affine:
        if factor is not None:
            f = factor.cpu().numpy()
            w = w * f.reshape(-1, *([1] * (w.ndim - 1)))
            b = b * f
        if offset is not None:
            b = b + offset.cpu().numpy()
    return w.astype(np.float32), b
