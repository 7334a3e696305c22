"""Codes, grids, scales and biases in closed form, from the inputs that a quantized layer sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from defakeq.compress.distributed import average
from defakeq.compress.graph import Block, Graph, Layer
from defakeq.compress.grid import Grid, feedback, fit, refit, times
from defakeq.compress.quantized import State, fake_act, float_call

_ROWS = 8192  # positions a layer's second moment is taken from, at least three times its size
_CHUNK_ROWS = 1 << 16


def codes_by_outputs(
    graph: Graph,
    block: Block,
    xs: list[Tensor],
    states: dict[str, State],
    generator: torch.Generator,
    feed: bool,
) -> None:
    """Codes or grids of every layer from the second moments of its quantized inputs."""
    seconds: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def call(layer: Layer, x: Tensor) -> Tensor:
        state = states.get(layer.name)
        if state is not None:
            rows = sample_rows(layer, fake_act(x, state.act), len(xs), generator)
            second = torch.einsum("gnk,gnl->gkl", rows, rows)
            name = layer.name
            seconds[name] = second if name not in seconds else seconds[name] + second
            counts[name] = counts.get(name, 0) + rows.shape[1]
        return float_call(layer, x, state)

    feed_block(graph, block, xs, call)
    for name, second in seconds.items():
        layer, state = graph.layers[name], states[name]
        average([second])
        states[name] = fed_back(layer, state, second / max(counts[name], 1), feed)


def fed_back(layer: Layer, state: State, second: Tensor, feed: bool = True) -> State:
    """A layer's state with error-feedback codes, from second moments [groups, K, K].

    `feed`: with error feedback; else the nearest codes of the grid with the least output error
    among those found with and without the inputs' energies as weights.
    """
    weight = state.float_rows(layer)
    outs, groups = weight.shape[0], layer.groups
    size = outs // groups
    codes, scale = state.codes.clone(), state.grid.scale.clone()
    zero = state.grid.zero.clone()
    kept = None
    if state.keep_in is not None:
        kept = state.keep_in[:, None].expand(-1, layer.weight[0, 0].numel()).flatten()
    each = groups > 1 and size == 1  # depthwise: all outputs at once, each with its own inputs
    for g in range(1 if each else groups):
        own = slice(None) if each else slice(g * size, (g + 1) * size)
        h, rows = second if each else second[g], weight[own]
        if kept is not None:
            h, rows = h[kept][:, kept], rows[:, kept]
        fitted = fit(rows, state.grid.bits, _diagonal(h).clamp(min=0), state.symmetric)
        if feed:
            found = feedback(rows, fitted, h).round().clamp(0, fitted.top)
        else:
            fitted = least_output_error(rows, fitted, h, state.symmetric)
            found = fitted.codes(rows)
        new = refit(rows, found, fitted, h)
        scale[own], zero[own] = new, fitted.zero
        if kept is None:
            codes[own] = found
        else:
            inside = codes[own]
            inside[:, kept] = found
            codes[own] = inside
    return replace(state, grid=Grid(state.grid.bits, scale, zero), codes=codes)


def _diagonal(second: Tensor) -> Tensor:
    return second.diagonal(dim1=-2, dim2=-1)


def least_output_error(rows: Tensor, first: Grid, second: Tensor, symmetric: bool) -> Grid:
    """The grid of each row with the least ``||(W - W~) X||^2``, searched from coarse to fine."""

    def error(grid: Grid) -> Tensor:
        off = grid.nearest(rows) - rows
        return (times(off, second) * off).sum(1)

    best, least = first, error(first)
    for spread in (0.2, 0.05, 0.0125):
        for scale in torch.linspace(1 - spread, 1 + spread, 9).tolist():
            for move in (0,) if symmetric else (-1, 0, 1):
                zero = (best.zero + move).clamp(best.top - 255, 255)
                grid = Grid(best.bits, best.scale * scale, zero)
                found = error(grid)
                better = found < least
                least = torch.where(better, found, least)
                best = Grid(
                    best.bits,
                    torch.where(better, grid.scale, best.scale),
                    torch.where(better, grid.zero, best.zero),
                )
    return best


def sample_rows(layer: Layer, x: Tensor, batches: int, generator: torch.Generator) -> Tensor:
    """A part of the inputs of every product of a batch."""
    reduction = layer.weight[0].numel()
    wanted = max(_ROWS, 3 * reduction) // batches + 1
    parts = []
    images = max(1, min(x.shape[0], _CHUNK_ROWS // max(layer.positions, 1)))
    share = -(-wanted * images // x.shape[0])
    for begin in range(0, x.shape[0], images):
        rows = layer.rows(x[begin : begin + images])
        if rows.shape[1] > share:
            pick = torch.randint(rows.shape[1], (share,), generator=generator)
            rows = rows[:, pick.to(rows.device)]
        parts.append(rows)
    return torch.cat(parts, 1)


def correct_bias(
    graph: Graph,
    block: Block,
    xs: list[Tensor],
    targets: list[Tensor],
    states: dict[str, State],
) -> None:
    """Adds to each bias what the layer's mean output lost (Nagel et al., 2019), layer by layer.

    The float layer sees the float inputs of a float block; the quantized one its own.
    """
    sums: dict[str, tuple[Tensor, int]] = {}

    def call(layer: Layer, x: Tensor) -> Tensor:
        state = states.get(layer.name)
        y = float_call(layer, x, state)
        if state is not None and state.bias is not None:
            z = layer.apply(fake_act(x, state.act), state.dense(layer), state.bias)
            lost = (y - z).movedim(layer.channel_dim, -1).flatten(0, -2).mean(0)
            total, count = sums.get(layer.name, (torch.zeros_like(lost), 0))
            sums[layer.name] = (total + lost, count + 1)
        return y

    feed_block(graph, block, xs, call)
    for name, (total, count) in sums.items():
        state = states[name]
        assert state.bias is not None
        change = total / count
        average([change])
        if state.keep_out is not None:
            change = change * state.keep_out
        states[name] = replace(state, bias=state.bias + change)


def feed_block(graph: Graph, block: Block, xs: list[Tensor], call: Callable[..., Tensor]) -> None:
    """Runs a block on all batches for what `call` sees."""
    with torch.no_grad():
        for x in xs:
            graph.run(block, x, call)
