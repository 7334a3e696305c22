"""Rounding, scales and biases learned by gradient, for a block or a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from defakeq.compress.adaround import SoftRounding
from defakeq.compress.closed_form import feed_block, sample_rows
from defakeq.compress.distributed import average_gradients
from defakeq.compress.graph import Block, Graph, Layer, steps_of
from defakeq.compress.grid import Grid
from defakeq.compress.quantized import State, fake_act, float_call, masked

_WORK = 5e11  # multiply-adds that a block is learned with
_DRAWN = 1024  # rows a step, for a layer by itself


@dataclass(frozen=True)
class Settings:
    """How a block is reconstructed.

    Attributes:
        method: "learned" (straight-through rounding of codes that move), "adaround" (soft rounding
            up or down), or "nearest" (no learning).
        feedback: start from codes with error feedback instead of the nearest ones.
        search: whether grids are searched for the least output error instead of the weights'.
        steps: of the optimizer, a block; None: what a fixed amount of work is good for, 48 for
            a block of a ResNet-34 at 224 pixels and up to 400 for small ones.
        rate: of the codes, in codes a step.
        scale_rate: of the scales' logarithms.
        bias: whether biases are learned and corrected.
        blocks: whether blocks learn as a whole; else layer by layer.
        fisher: whether a block's error is weighted by the margin's derivatives (rank one and
            diagonal, as in FIMA-Q, CVPR 2025) instead of its mean square.
        observer: how input ranges are chosen.
    """

    method: str = "learned"
    feedback: bool = True
    search: bool = False
    steps: int | None = None
    rate: float = 0.02
    scale_rate: float = 1e-3
    bias: bool = True
    blocks: bool = True
    fisher: bool = False
    observer: str = "mse"

    def steps_of(self, layers: list[Layer], batch: int) -> int:
        """Steps for a block of these layers."""
        if self.steps is not None:
            return self.steps
        return steps_of(layers, batch, _WORK, 48, 400)


@dataclass
class Learned:
    """A layer's parameters while they are learned."""

    layer: Layer
    state: State
    position: Tensor
    log_scale: Tensor
    bias: Tensor | None
    soft: SoftRounding | None = None

    @staticmethod
    def of(layer: Layer, state: State, soft: bool = False) -> Learned:
        """From a state; `soft` for AdaRound's rounding."""
        weight = state.float_rows(layer)
        near = state.grid.position(weight)
        # stay in the code that the state has, as near to the float weight as that allows
        position = torch.minimum(torch.maximum(near, state.codes - 0.45), state.codes + 0.45)
        bias = None if state.bias is None else state.bias.clone()
        rounding = SoftRounding.of(weight, state.grid) if soft else None
        return Learned(layer, state, position, torch.zeros_like(state.grid.scale), bias, rounding)

    def parameters(self, settings: Settings) -> list[dict[str, object]]:
        """Groups for an optimizer."""
        groups: list[dict[str, object]] = []
        if self.soft is not None:
            groups.append({"params": [self.soft.logits.requires_grad_()], "lr": settings.rate})
        elif settings.rate:
            groups.append({"params": [self.position.requires_grad_()], "lr": settings.rate})
        if settings.scale_rate:
            groups.append({"params": [self.log_scale.requires_grad_()], "lr": settings.scale_rate})
        if self.bias is not None and settings.bias:
            rate = settings.scale_rate or 1e-3
            size = float(self.state.grid.scale.mean()) * math.sqrt(self.position.shape[1])
            groups.append({"params": [self.bias.requires_grad_()], "lr": rate * size})
        return groups

    def weight(self) -> Tensor:
        """The fake-quantized weight, with gradients, in the layer's shape."""
        grid = self.state.grid
        if self.soft is not None:
            codes = self.soft.codes()
        else:
            inside = self.position.clamp(0, grid.top)
            codes = inside + (inside.round() - inside).detach()
        scale = grid.scale * self.log_scale.exp()
        rows = (codes - grid.zero[:, None]) * scale[:, None]
        return masked(rows.reshape(self.layer.weight.shape), self.state)

    def call(self, x: Tensor) -> Tensor:
        """The layer's output, with gradients."""
        return self.layer.apply(fake_act(x, self.state.act), self.weight(), self.bias)

    def finished(self) -> State:
        """The state with whole codes."""
        with torch.no_grad():
            grid = self.state.grid
            if self.soft is not None:
                codes = self.soft.hard()
            else:
                codes = self.position.round().clamp(0, grid.top)
            scale = grid.scale * self.log_scale.exp()
            bias = None if self.bias is None else self.bias.detach().clone()
            if bias is not None and self.state.keep_out is not None:
                bias = bias * self.state.keep_out
            return replace(
                self.state,
                grid=Grid(grid.bits, scale.detach(), grid.zero),
                codes=codes.detach(),
                bias=bias,
            )


def learn_block(
    graph: Graph,
    block: Block,
    xs: list[Tensor],
    targets: list[Tensor],
    alive: Tensor,
    states: dict[str, State],
    settings: Settings,
    generator: torch.Generator,
    fisher: list[Tensor] | None,
) -> None:
    """Learns a block's rounding, scales and biases together; `states` is brought up to date.

    Args:
        graph, block: the float model and its block.
        xs: the block's inputs, of the quantized blocks before it, by batch.
        targets: the float block's outputs.
        alive: 1 for the output channels that count, 0 for pruned ones.
        states: of the block's layers.
        settings: how.
        generator: of the order of the batches.
        fisher: for each batch, what outputs are weighted with; None: all alike.
    """
    soft = settings.method == "adaround"
    steps = settings.steps_of([graph.layers[name] for name in states], graph.batch)
    learned = {n: Learned.of(graph.layers[n], state, soft) for n, state in states.items()}
    groups = [group for one in learned.values() for group in one.parameters(settings)]
    optimizer = torch.optim.Adam(groups)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    power = sum(float((t * alive).square().mean()) for t in targets) / len(targets)

    def call(layer: Layer, x: Tensor) -> Tensor:
        if layer.name in learned:
            return learned[layer.name].call(x)
        return layer.apply(x, layer.weight, layer.bias)

    order: list[int] = []
    for step in range(steps):
        if not order:
            order = torch.randperm(len(xs), generator=generator).tolist()
        i = order.pop()
        with torch.enable_grad():
            y = graph.run(block, xs[i], call)
            off = (y - targets[i]) * alive
            if fisher is None:
                loss = off.square().mean() / max(power, 1e-30)
            else:
                along = (off * fisher[i]).reshape(len(off), -1).sum(1).square().mean()
                loss = (
                    along
                    + (off.square() * fisher[i].square().mean(0))
                    .reshape(len(off), -1)
                    .sum(1)
                    .mean()
                )
            for one in learned.values():
                if one.soft is not None:
                    loss = loss + one.soft.penalty(step / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        average_gradients(optimizer)
        optimizer.step()
        schedule.step()
    for name, one in learned.items():
        states[name] = one.finished()


def learn_layers(
    graph: Graph,
    block: Block,
    xs: list[Tensor],
    states: dict[str, State],
    settings: Settings,
    generator: torch.Generator,
) -> None:
    """Each layer by itself, on sampled rows of its own inputs (Nagel et al., "AdaRound", 2020)."""
    rows: dict[str, list[Tensor]] = {name: [] for name in states}

    def collect(layer: Layer, x: Tensor) -> Tensor:
        if layer.name in rows:
            rows[layer.name].append(sample_rows(layer, x, len(xs), generator))
        return float_call(layer, x, states.get(layer.name))

    feed_block(graph, block, xs, collect)
    for name, parts in rows.items():
        layer = graph.layers[name]
        data = torch.cat(parts, 1)
        one = Learned.of(layer, states[name], settings.method == "adaround")
        optimizer = torch.optim.Adam(one.parameters(settings))  # type: ignore[arg-type]
        size = layer.weight.shape[0] // layer.groups
        wanted = states[name].float_rows(layer).reshape(layer.groups, size, -1).transpose(1, 2)
        steps = settings.steps_of([layer], graph.batch)
        for step in range(steps):
            pick = torch.randint(data.shape[1], (_DRAWN,), generator=generator)
            x = data[:, pick.to(data.device)]
            with torch.enable_grad():
                own = one.weight().reshape(layer.groups, size, -1).transpose(1, 2)
                target = x @ wanted
                lost = fake_act(x, one.state.act) @ own - target
                loss = lost.square().mean() / target.square().mean().clamp(min=1e-30)
                if one.soft is not None:
                    loss = loss + one.soft.penalty(step / steps)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            average_gradients(optimizer)
            optimizer.step()
        finished = one.finished()
        states[name] = replace(finished, bias=states[name].bias)
