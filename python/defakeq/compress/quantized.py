"""The fake-quantized model during compression: one state a layer, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from defakeq.calibrate import RangeObserver
from defakeq.compress.graph import Layer, LayerCall
from defakeq.compress.grid import Grid
from defakeq.plan import LayerPlan
from defakeq_kernels.quantize import ActQuant

_SAMPLE = 1 << 16
_NEAR = 2.0**-10
_SMALL = 2.0**-6  # of the largest scale of a layer: below that, a row hardly counts


@dataclass
class State:
    """A layer as it is quantized so far.

    Attributes:
        grid: of the weights.
        codes: float32 [O, K], whole numbers.
        bias: [O] or None.
        symmetric: without zero points.
        act: the input's quantization; None: not chosen yet, the input stays float.
        act_bits: its width.
        keep_out, keep_in: boolean [O], [I]; None: all.
        half: boolean [O]: outputs that stay in half precision in the mixed model.
        weight: the float weight [O, K] that the codes stand for, for the half outputs.
    """

    grid: Grid
    codes: Tensor
    bias: Tensor | None
    weight: Tensor
    symmetric: bool = False
    act: ActQuant | None = None
    act_bits: int = 8
    keep_out: Tensor | None = None
    keep_in: Tensor | None = None
    half: Tensor | None = None

    def dense(self, layer: Layer, mixed: bool = False) -> Tensor:
        """The weight in the layer's shape; `mixed` with the half outputs' own weights."""
        rows = self.grid.weights(self.codes)
        if mixed and self.half is not None:
            rows = torch.where(self.half[:, None], self.weight.half().float(), rows)
        return masked(rows.reshape(layer.weight.shape), self)

    def float_rows(self, layer: Layer) -> Tensor:
        """The float weights as rows [O, K], pruned channels zero."""
        return masked(self.weight.reshape(layer.weight.shape), self).flatten(1)

    def narrow(self) -> State:
        """With scales and biases that float16 holds, so that a file stores them in two bytes.

        A layer whose scales or biases would change by more than a thousandth of themselves or, the
        small ones, of a part of the largest keeps them.
        """
        used = (self.grid.weights(self.codes) != 0).any(1)
        scale = self.grid.scale
        near = scale.half().float().clamp(min=2.0**-24)
        least = _SMALL * (scale * used).max()
        kept = ((near - scale).abs() <= _NEAR * scale.clamp(min=float(least))) | ~used
        scale = torch.where(used, near, 1.0) if bool(kept.all()) else scale
        bias = None if self.bias is None else narrowed(self.bias)
        return replace(self, grid=replace(self.grid, scale=scale), bias=bias)

    def plan(self, mixed: bool) -> LayerPlan:
        """The layer's part of the plan."""
        return LayerPlan(
            bits=self.grid.bits,
            act_bits=self.act_bits,
            keep_out=_indices(self.keep_out),
            keep_in=_indices(self.keep_in),
            half_out=_indices(self.half) or None if mixed else None,
            symmetric=self.symmetric,
            scale=tuple(self.grid.scale.double().tolist()),
            zero_point=None if self.symmetric else tuple(self.grid.zero.int().tolist()),
        )

    def to_dict(self) -> dict[str, Any]:
        """Tensors and numbers, for `torch.save`."""
        values = dict(vars(self))
        values["grid"] = dict(vars(self.grid))
        values["act"] = None if self.act is None else self.act.describe()
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> State:
        """The inverse of `to_dict`."""
        own = dict(values)
        own["grid"] = Grid(**own["grid"])
        own["act"] = None if own["act"] is None else ActQuant(**own["act"])
        return State(**own)


def narrowed(values: Tensor) -> Tensor:
    """Values that float16 holds, unless one changes by more than a thousandth of the largest."""
    half = values.half().float()
    near = bool(((half - values).abs() <= _NEAR * values.abs().max()).all())
    return half if near else values


def masked(weight: Tensor, state: State) -> Tensor:
    """A weight with zeros where channels are pruned."""
    shape = [1] * weight.dim()
    if state.keep_out is not None:
        shape[0] = -1
        weight = weight * state.keep_out.to(weight).reshape(shape)
    if state.keep_in is not None:
        shape[0], shape[1] = 1, -1
        weight = weight * state.keep_in.to(weight).reshape(shape)
    return weight


def fake_act(x: Tensor, act: ActQuant | None) -> Tensor:
    """x rounded to its quantization; the gradient passes where it is not clipped."""
    if act is None:
        return x
    low = (act.qmin - act.zero_point) * act.scale
    high = (act.qmax - act.zero_point) * act.scale
    inside = x.clamp(low, high)
    rounded = (inside / act.scale).round() * act.scale
    return inside + (rounded - inside).detach()


def calling(states: Mapping[str, State], mixed: bool = False) -> LayerCall:
    """How the quantized layers are called; layers without a state run as they are."""
    weights: dict[str, Tensor] = {}

    def call(layer: Layer, x: Tensor) -> Tensor:
        state = states.get(layer.name)
        if state is None:
            return layer.apply(x, layer.weight, layer.bias)
        if layer.name not in weights:
            weights[layer.name] = state.dense(layer, mixed)
        return layer.apply(fake_act(x, state.act), weights[layer.name], state.bias)

    return call


def float_call(layer: Layer, x: Tensor, state: State | None) -> Tensor:
    """The layer's output with the float weights that its codes stand for."""
    if state is None:
        return layer.apply(x, layer.weight, layer.bias)
    bias = layer.bias
    if bias is not None and state.keep_out is not None:
        bias = bias * state.keep_out
    return layer.apply(x, masked(state.weight.reshape(layer.weight.shape), state), bias)


def observed(
    states: Mapping[str, State], run: Callable[[LayerCall], None], images: int
) -> dict[str, RangeObserver]:
    """The inputs of the layers, as `run` gives them to a layer call, so many images at once."""
    observers = {name: RangeObserver() for name in states}

    def call(layer: Layer, x: Tensor) -> Tensor:
        state = states.get(layer.name)
        if state is not None:
            count = images if x.shape[0] % images == 0 else 1
            observers[layer.name].update(_sampled(x.reshape(count, -1)), count)
        return float_call(layer, x, state)

    run(call)
    return {name: observer for name, observer in observers.items() if not observer.empty}


def _sampled(x: Tensor) -> Tensor:
    """Some of the values of each image [N, M], with its extremes."""
    flat = x.detach()
    step = -(-flat.numel() // _SAMPLE) | 1
    if step == 1:
        return flat
    low, high = torch.aminmax(flat, dim=1, keepdim=True)
    return torch.cat([flat[:, ::step], low, high], 1)


def _indices(mask: Tensor | None) -> tuple[int, ...] | None:
    if mask is None or (bool(mask.all()) and mask.dtype != torch.bool):
        return None
    return tuple(mask.nonzero().flatten().tolist())
