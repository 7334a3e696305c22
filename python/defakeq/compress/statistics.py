"""Stage 1: what the calibration images say about every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from defakeq.compress.calibration import Calibration
from defakeq.compress.distributed import average, extreme, ranks
from defakeq.compress.distributed import mean as distributed_mean
from defakeq.compress.graph import Graph, Layer, first_output, margin

_ROWS = 4096  # sampled positions of a batch for the covariance
_GRADIENTS = 64  # images whose gradients are taken

Progress = Callable[[int], None]


@dataclass
class LayerStatistics:
    """Statistics of one layer; channels are those of its input unless said otherwise.

    Attributes:
        mean, variance, low, high: of each channel's values.
        energy: A_j, the mean over images of the l2 norm of a channel's values.
        score: S_l, the mean of |W_ij| A_j.
        second: [C, C], the mean of the products of channels; [0, 0] for grouped convolutions.
        sensitivity: of the weight's shape: the mean square of the margin's derivative.
        input_sensitivity: the mean over images of the sum of squares of the margin's derivatives
            by the layer's input.
        positions: of each input channel in an image.
        fisher: the same of the cross-entropy's derivative; None without labels.
        separation: of each output channel: the distance of the class means of its average over
            positions, in standard deviations; None without labels.
    """

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor
    energy: Tensor
    score: float
    second: Tensor
    sensitivity: Tensor
    input_sensitivity: float
    positions: int
    fisher: Tensor | None = None
    separation: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """The tensors and numbers, for `torch.save`."""
        return dict(vars(self))


@dataclass
class _Sums:
    count: int = 0
    images: int = 0
    total: Tensor | None = None
    square: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    energy: Tensor | None = None
    second: Tensor | None = None
    sampled: int = 0
    pooled: list[Tensor] = field(default_factory=list)


def collect(
    graph: Graph, calibration: Calibration, seed: int = 0, progress: Progress | None = None
) -> dict[str, LayerStatistics]:
    """The statistics of every layer.

    Args:
        graph: the float model.
        calibration: images, with labels or without.
        seed: of the positions and images that are sampled.
        progress: called with the number of images done.

    Raises:
        ValueError: the model gives values that are not finite; the message names the layer.
    """
    sums = {name: _Sums() for name in graph.layers}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for batch in graph.batches(calibration.images):
            graph.forward(batch, partial(_observe, sums, batch.shape[0], generator))
            if progress is not None:
                progress(batch.shape[0])
    gradients = _gradients(graph, calibration, seed, progress)
    return {
        name: combined(_finished(layer, sums.pop(name), gradients.pop(name), calibration.labels))
        for name, layer in graph.layers.items()
    }


def combined(found: LayerStatistics) -> LayerStatistics:
    """The statistics over the images of all processes, each of which has as many."""
    if ranks().count == 1:
        return found
    mean, square = found.mean.clone(), found.variance + found.mean.square()
    low, high = found.low.clone(), found.high.clone()
    second, sensitivity = found.second.clone(), found.sensitivity.clone()
    energy = found.energy.clone()
    fisher = None if found.fisher is None else found.fisher.clone()
    separation = None if found.separation is None else found.separation.clone()
    average([mean, square, energy, second, sensitivity, fisher, separation])
    extreme(low, smallest=True)
    extreme(high, smallest=False)
    return LayerStatistics(
        mean,
        (square - mean.square()).clamp(min=0),
        low,
        high,
        energy,
        distributed_mean(found.score),
        second,
        sensitivity,
        distributed_mean(found.input_sensitivity),
        found.positions,
        fisher,
        separation,
    )


def _observe(
    of_layers: dict[str, _Sums], images: int, generator: torch.Generator, layer: Layer, x: Tensor
) -> Tensor:
    sums = of_layers[layer.name]
    moved = x.movedim(layer.channel_dim, -1)
    if x.shape[0] % images != 0:  # not cut along the images
        images = x.shape[0]
    flat = moved.reshape(images, -1, moved.shape[-1])  # of windows, all of an image
    rows = flat.reshape(-1, flat.shape[-1])
    low, high = rows.amin(0), rows.amax(0)
    if not bool(torch.isfinite(low + high).all()):
        raise ValueError(
            f"calibration: layer {layer.name!r}: found values that are not finite; accepted is a "
            "model with finite activations"
        )
    total, square = rows.sum(0, dtype=torch.float64), rows.double().square().sum(0)
    energy = flat.square().sum(1).sqrt().sum(0, dtype=torch.float64)
    if sums.total is None:
        sums.total, sums.square, sums.energy = total, square, energy
        sums.low, sums.high = low, high
    else:
        assert sums.square is not None
        assert sums.energy is not None
        assert sums.low is not None
        assert sums.high is not None
        sums.total, sums.square = sums.total + total, sums.square + square
        sums.energy = sums.energy + energy
        sums.low, sums.high = torch.minimum(sums.low, low), torch.maximum(sums.high, high)
    sums.count += rows.shape[0]
    sums.images += images
    if layer.groups == 1:
        if rows.shape[0] > _ROWS:
            pick = torch.randint(rows.shape[0], (_ROWS,), generator=generator)
            rows = rows[pick.to(rows.device)]
        second = (rows.T @ rows).double()
        sums.second = second if sums.second is None else sums.second + second
        sums.sampled += rows.shape[0]
    y = layer.apply(x, layer.weight, layer.bias)
    out = y.movedim(layer.channel_dim, -1)
    sums.pooled.append(out.reshape(images, -1, out.shape[-1]).mean(1))
    return y


@dataclass
class _Squares:
    """Mean squares of derivatives, of the weights and of the input."""

    margin: Tensor
    loss: Tensor | None
    inputs: float = 0.0


def _gradients(
    graph: Graph, calibration: Calibration, seed: int, progress: Progress | None
) -> dict[str, _Squares]:
    count = min(_GRADIENTS, calibration.images.shape[0])
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(calibration.images.shape[0], generator=generator)[:count].tolist()
    labels = calibration.labels
    weights: dict[str, Tensor] = {}
    squares: dict[str, _Squares] = {}
    inputs: dict[str, Tensor] = {}
    handles = []
    for name in graph.layers:
        module = graph.model.get_submodule(name)
        weight = module.weight
        assert isinstance(weight, Tensor)
        weights[name] = weight.requires_grad_(True)
        loss = None if labels is None else torch.zeros_like(weight)
        squares[name] = _Squares(torch.zeros_like(weight), loss)
        handles.append(module.register_forward_pre_hook(_keeping(inputs, name)))
    try:
        for i in chosen:
            _one_gradient(graph, calibration, i, count, weights, inputs, squares)
            if progress is not None:
                progress(1)
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights.values():
            weight.requires_grad_(False)
    return squares


def _keeping(inputs: dict[str, Tensor], name: str) -> Callable[..., Any]:
    def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        if not x.requires_grad:
            x = x.detach().requires_grad_(True)
        inputs[name] = x
        return (x, *args[1:])

    return hook


def _one_gradient(
    graph: Graph,
    calibration: Calibration,
    i: int,
    count: int,
    weights: dict[str, Tensor],
    inputs: dict[str, Tensor],
    squares: dict[str, _Squares],
) -> None:
    inputs.clear()
    with torch.enable_grad():
        z = margin(first_output(graph.model(calibration.images[i : i + 1]))).sum()
        wanted = [*weights.values(), *inputs.values()]
        gradients = torch.autograd.grad(z, wanted, allow_unused=True)
    residual = 0.0
    if calibration.labels is not None:
        residual = float(torch.sigmoid(z.detach())) - float(calibration.labels[i])
    for name, gradient in zip(weights, gradients, strict=False):
        if gradient is None:
            continue
        square = squares[name]
        square.margin.addcmul_(gradient, gradient, value=1 / count)
        if square.loss is not None:
            square.loss.addcmul_(gradient, gradient, value=residual**2 / count)
    for name, gradient in zip(inputs, gradients[len(weights) :], strict=True):
        if gradient is not None:
            squares[name].inputs += float(gradient.square().sum()) / count


def _finished(
    layer: Layer, sums: _Sums, squares: _Squares, labels: Tensor | None
) -> LayerStatistics:
    assert sums.total is not None
    assert sums.square is not None
    assert sums.energy is not None
    assert sums.low is not None
    assert sums.high is not None
    mean = sums.total / sums.count
    energy = (sums.energy / sums.images).float()
    weight = layer.weight.abs().flatten(2).sum(2) if layer.conv else layer.weight.abs()
    taps = layer.weight[0, 0].numel()
    if layer.groups == 1:
        products = weight * energy
    else:
        size = layer.weight.shape[1]
        own = energy.reshape(layer.groups, 1, size)
        products = weight.reshape(layer.groups, -1, size) * own
    second = torch.zeros(0, 0) if sums.second is None else (sums.second / sums.sampled).float()
    separation = None
    if labels is not None:
        pooled = torch.cat(sums.pooled).cpu()
        if len(pooled) <= len(labels):
            separation = _separation(pooled, labels[: len(pooled)].cpu())
    return LayerStatistics(
        mean.float().cpu(),
        (sums.square / sums.count - mean.square()).clamp(min=0).float().cpu(),
        sums.low.cpu(),
        sums.high.cpu(),
        energy.cpu(),
        float(products.mean()) / taps,
        second.cpu(),
        squares.margin.cpu(),
        squares.inputs,
        sums.count // sums.images,
        None if squares.loss is None else squares.loss.cpu(),
        separation,
    )


def _separation(pooled: Tensor, labels: Tensor) -> Tensor:
    real, forged = pooled[labels == 0], pooled[labels == 1]
    if min(len(real), len(forged)) < 2:
        return torch.zeros(pooled.shape[1])
    spread = ((real.var(0) + forged.var(0)) / 2).sqrt()
    return (forged.mean(0) - real.mean(0)).abs() / spread.clamp(min=1e-12)
