"""Weights of the layers that read the picture, rounded so that the errors cancel in pictures.

Such a layer takes small differences of large neighbors; with each weight rounded alone, what is
left of the picture's brightness outweighs them. Here each rounding error is taken over by weights
of inputs that go with it (Frantar et al., "GPTQ", ICLR 2023), for the pictures of calibration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.compress.grid import feedback, fit
from defakeq.inputs import Inputs, run
from defakeq.plan import LayerPlan, QuantPlan

_MOST_INPUTS = 1024  # of an output; a longer second moment takes long
_ROWS = 16384


def round_first_layers(model: nn.Module, plan: QuantPlan, batches: Iterable[Inputs]) -> QuantPlan:
    """Rounds the weights of the layers that are called with the model's own inputs, in place.

    Args:
        model: in evaluation mode, BatchNorm folded.
        plan: of its layers; those with a grid of their own, groups, pruned or half-precision parts
            or float inputs are left alone.
        batches: arguments of the model.

    Returns:
        The plan with the grids to which weights were rounded.
    """
    rows: dict[str, list[Tensor]] = {}
    given: list[Tensor] = []

    def collect(name: str, module: nn.Module, x: Tensor) -> None:
        if any(x is own for own in given) and sum(map(len, rows.get(name, ()))) < _ROWS:
            rows.setdefault(name, []).append(_rows(module, x))

    handles = []
    for name, layer in plan.layers.items():
        module = model.get_submodule(name)
        if _fits(module, layer):
            handles.append(
                module.register_forward_pre_hook(
                    lambda module, args, name=name: collect(name, module, args[0])
                )
            )
    try:
        for number, (args, kwargs) in enumerate(batches):
            given[:] = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            run(f"calibration batch {number}", model, (args, kwargs))
    finally:
        for handle in handles:
            handle.remove()
    layers = dict(plan.layers)
    for name, parts in rows.items():
        layers[name] = _round(model.get_submodule(name), layers[name], torch.cat(parts))
    return QuantPlan(layers)


def _fits(module: nn.Module, layer: LayerPlan) -> bool:
    weight = module.weight
    assert isinstance(weight, Tensor)
    plain = (layer.scale, layer.keep_out, layer.keep_in, layer.half_out, layer.half_in)
    return (
        isinstance(layer.bits, int)
        and 2 <= layer.bits <= 8
        and layer.act_bits is not None
        and layer.group_size is None
        and all(value is None for value in plain)
        and getattr(module, "groups", 1) == 1
        and getattr(module, "padding_mode", "zeros") == "zeros"
        and not isinstance(getattr(module, "padding", 0), str)
        and weight[0].numel() <= _MOST_INPUTS
    )


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """What single outputs read, [rows, inputs]: an evenly spaced part of them."""
    if isinstance(module, nn.Conv2d):
        x = F.unfold(
            x.float() if x.dim() == 4 else x.float()[None],  # one image without a batch
            module.kernel_size,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
        )
        x = x.transpose(1, 2)
    x = x.float().reshape(-1, x.shape[-1])
    return x[:: max(1, 4 * len(x) // _ROWS)]


def _round(module: nn.Module, layer: LayerPlan, x: Tensor) -> LayerPlan:
    weight = module.weight
    assert isinstance(weight, Tensor)
    assert isinstance(layer.bits, int)
    rows = weight.detach().flatten(1)
    second = x.T @ x / len(x)
    grid = fit(rows, layer.bits, second.diagonal(), layer.symmetric)
    codes = feedback(rows, grid, second, 1e-4).round().clamp(0, grid.top)
    weight.data = grid.weights(codes).reshape(weight.shape)
    zeros = None if layer.symmetric else tuple(int(zero) for zero in grid.zero)
    return replace(layer, scale=tuple(map(float, grid.scale)), zero_point=zeros)
