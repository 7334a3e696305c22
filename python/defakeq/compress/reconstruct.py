"""Stage 4: rounding, scales, clipping and biases, learned block by block against the float model.

Each block first gets codes in closed form (error feedback, `grid.feedback`), then all its rounding,
scales and biases are learned together so that the block, fed with what the quantized blocks before
it give, returns what the float block returns (Li et al., "BRECQ", ICLR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from defakeq.compress.adaround import SoftRounding
from defakeq.compress.allocate import Option
from defakeq.compress.graph import Block, Graph, Layer
from defakeq.compress.grid import Grid, feedback, fit, refit
from defakeq.compress.quantized import State, calling, fake_act, float_call, masked, observed
from defakeq.compress.redundancy import Masks

_ROWS = 8192  # positions a layer's second moment is taken from, at least twice its size
_CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class Settings:
    """How a block is reconstructed.

    Attributes:
        method: "learned" (straight-through rounding of codes that move), "adaround" (soft rounding
            up or down), or "nearest" (no learning).
        feedback: start from codes with error feedback instead of the nearest ones.
        steps: of the optimizer, a block.
        rate: of the codes, in codes a step.
        scale_rate: of the scales' logarithms.
        bias: whether biases are learned and corrected.
        blocks: whether blocks learn as a whole; else layer by layer.
        observer: how input ranges are chosen.
    """

    method: str = "learned"
    feedback: bool = True
    steps: int = 48
    rate: float = 0.01
    scale_rate: float = 1e-3
    bias: bool = True
    blocks: bool = True
    observer: str = "mse"


@dataclass
class BlockResult:
    """What became of a block: its layers' states, and its relative error as it went."""

    name: str
    states: dict[str, State]
    errors: dict[str, float] = field(default_factory=dict)


def initial(
    graph: Graph,
    options: Mapping[str, Option],
    act_bits: Mapping[str, int],
    weights: Mapping[str, Tensor] | None = None,
    masks: Mapping[str, Masks] | None = None,
) -> dict[str, State]:
    """Nearest codes on good grids.

    Args:
        graph: the float model.
        options: of each layer to quantize.
        act_bits: widths of inputs; 8 where none is given.
        weights, masks: of `redundancy.pruned`.
    """
    states = {}
    for name, layer in graph.layers.items():
        if name not in options:
            continue
        option = options[name]
        rows = (weights or {}).get(name, layer.weight).flatten(1)
        grid = fit(rows, option.bits, symmetric=option.symmetric)
        mask = (masks or {}).get(name, Masks())
        bias = None if layer.bias is None else layer.bias.clone()
        if bias is not None and mask.outs is not None:
            bias = bias * mask.outs
        states[name] = State(
            grid,
            grid.codes(rows),
            bias,
            rows,
            option.symmetric,
            None,
            act_bits.get(name, 8),
            mask.outs,
            mask.ins,
        )
    return states


def reconstruct(
    graph: Graph,
    images: Tensor,
    states: dict[str, State],
    settings: Settings,
    seed: int = 0,
    load: Callable[[int], BlockResult | None] | None = None,
    save: Callable[[int, BlockResult], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[BlockResult]:
    """Reconstructs all blocks in order; `states` is brought up to date in place.

    Args:
        graph: the float model.
        images: calibration images; a rest that fills no batch is left out.
        states: from `initial`.
        settings: how.
        seed: of the order of the batches.
        load, save: finished blocks by number, so that a killed run continues.
        progress: called with 1 for each block.
    """
    floats = list(graph.batches(images))
    quantized = list(floats)
    results = []
    for number, block in enumerate(graph.blocks):
        targets = _run_all(graph, block, floats, None)
        result = load(number) if load is not None else None
        if result is None:
            names = [layer.name for layer in block.layers if layer.name in states]
            own = {name: states[name] for name in names}
            result = BlockResult(block.name, own)
            if own:
                generator = torch.Generator().manual_seed(seed * 100003 + number)
                _block(graph, block, quantized, targets, result, settings, generator)
            if save is not None:
                save(number, result)
        states.update(result.states)
        results.append(result)
        quantized = _run_all(graph, block, quantized, result.states)
        floats = targets
        if progress is not None:
            progress(1)
    return results


def _run_all(
    graph: Graph, block: Block, xs: list[Tensor], states: Mapping[str, State] | None
) -> list[Tensor]:
    call = None if states is None else calling(states)
    with torch.no_grad():
        return [graph.run(block, x, call) for x in xs]


def _block(
    graph: Graph,
    block: Block,
    xs: list[Tensor],
    targets: list[Tensor],
    result: BlockResult,
    settings: Settings,
    generator: torch.Generator,
) -> None:
    states = result.states
    alive = _alive(graph, block, xs, states)
    power = float(sum((t * alive).double().square().sum() for t in targets))

    def error() -> float:
        call = calling(states)
        with torch.no_grad():
            total = sum(
                float(((graph.run(block, x, call) - t) * alive).double().square().sum())
                for x, t in zip(xs, targets, strict=True)
            )
        return total / max(power, 1e-30)

    observers = observed(states, lambda call: _feed(graph, block, xs, call))
    for name, observer in observers.items():
        act = observer.quantization(states[name].act_bits, settings.observer)
        states[name] = replace(states[name], act=act)
    best = dict(states)
    least = result.errors["nearest"] = error()

    def keep(step: str) -> None:
        """Keeps a step that helps, takes back one that does not."""
        nonlocal best, least
        found = result.errors[step] = error()
        if found <= least:
            best, least = dict(states), found
        else:
            states.update(best)

    if settings.feedback:
        _error_feedback(graph, block, xs, states, generator)
        keep("feedback")
    if settings.bias:
        _correct_bias(graph, block, xs, targets, states)
        keep("bias")
    if settings.method != "nearest" and settings.steps:
        if settings.blocks:
            _learn(graph, block, xs, targets, alive, states, settings, generator)
        else:
            _learn_layers(graph, block, xs, states, settings, generator)
        keep("learned")


def _alive(graph: Graph, block: Block, xs: list[Tensor], states: Mapping[str, State]) -> Tensor:
    """1 for output channels that the pruned block still has, 0 for those that are always zero."""
    if all(state.keep_out is None and state.keep_in is None for state in states.values()):
        return torch.ones((), device=xs[0].device)
    call = calling(states)
    with torch.no_grad():
        y = graph.run(block, xs[0], call)
    dim = 1 if y.dim() == 4 else y.dim() - 1
    others = [d for d in range(y.dim()) if d != dim]
    return (y.abs().amax(others, keepdim=True) > 0).to(y.dtype)


def _feed(graph: Graph, block: Block, xs: list[Tensor], call: Callable[..., Tensor]) -> None:
    with torch.no_grad():
        for x in xs:
            graph.run(block, x, call)


def _error_feedback(
    graph: Graph,
    block: Block,
    xs: list[Tensor],
    states: dict[str, State],
    generator: torch.Generator,
) -> None:
    """Closed-form codes of every layer from the second moments of its quantized inputs."""
    seconds: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def call(layer: Layer, x: Tensor) -> Tensor:
        state = states.get(layer.name)
        if state is not None:
            rows = _sample_rows(layer, fake_act(x, state.act), len(xs), generator)
            second = torch.einsum("gnk,gnl->gkl", rows, rows)
            name = layer.name
            seconds[name] = second if name not in seconds else seconds[name] + second
            counts[name] = counts.get(name, 0) + rows.shape[1]
        return float_call(layer, x, state)

    _feed(graph, block, xs, call)
    for name, second in seconds.items():
        layer, state = graph.layers[name], states[name]
        states[name] = fed_back(layer, state, second / max(counts[name], 1))


def fed_back(layer: Layer, state: State, second: Tensor) -> State:
    """A layer's state with error-feedback codes, from second moments [groups, K, K]."""
    weight = state.float_rows(layer)
    outs, groups = weight.shape[0], layer.groups
    size = outs // groups
    codes, scale = state.codes.clone(), state.grid.scale.clone()
    zero = state.grid.zero.clone()
    kept = None
    if state.keep_in is not None:
        kept = state.keep_in[:, None].expand(-1, layer.weight[0, 0].numel()).flatten()
    for g in range(groups):
        own = slice(g * size, (g + 1) * size)
        h, rows = second[g], weight[own]
        if kept is not None:
            h, rows = h[kept][:, kept], rows[:, kept]
        fitted = fit(rows, state.grid.bits, h.diagonal().clamp(min=0), state.symmetric)
        found = feedback(rows, fitted, h).round().clamp(0, fitted.top)
        new = refit(rows, found, fitted, h)
        scale[own], zero[own] = new, fitted.zero
        if kept is None:
            codes[own] = found
        else:
            inside = codes[own]
            inside[:, kept] = found
            codes[own] = inside
    return replace(state, grid=Grid(state.grid.bits, scale, zero), codes=codes)


def _sample_rows(layer: Layer, x: Tensor, batches: int, generator: torch.Generator) -> Tensor:
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


def _correct_bias(
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

    _feed(graph, block, xs, call)
    for name, (total, count) in sums.items():
        state = states[name]
        assert state.bias is not None
        change = total / count
        if state.keep_out is not None:
            change = change * state.keep_out
        states[name] = replace(state, bias=state.bias + change)


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
        else:
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


def _learn(
    graph: Graph,
    block: Block,
    xs: list[Tensor],
    targets: list[Tensor],
    alive: Tensor,
    states: dict[str, State],
    settings: Settings,
    generator: torch.Generator,
) -> None:
    soft = settings.method == "adaround"
    learned = {n: Learned.of(graph.layers[n], state, soft) for n, state in states.items()}
    groups = [group for one in learned.values() for group in one.parameters(settings)]
    optimizer = torch.optim.Adam(groups)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    power = sum(float((t * alive).square().mean()) for t in targets) / len(targets)

    def call(layer: Layer, x: Tensor) -> Tensor:
        if layer.name in learned:
            return learned[layer.name].call(x)
        return layer.apply(x, layer.weight, layer.bias)

    order: list[int] = []
    for step in range(settings.steps):
        if not order:
            order = torch.randperm(len(xs), generator=generator).tolist()
        i = order.pop()
        with torch.enable_grad():
            y = graph.run(block, xs[i], call)
            loss = ((y - targets[i]) * alive).square().mean() / max(power, 1e-30)
            for one in learned.values():
                if one.soft is not None:
                    loss = loss + one.soft.penalty(step / settings.steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        optimizer.step()
        schedule.step()
    for name, one in learned.items():
        states[name] = one.finished()


def _learn_layers(
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
            rows[layer.name].append(_sample_rows(layer, x, len(xs), generator))
        return float_call(layer, x, states.get(layer.name))

    _feed(graph, block, xs, collect)
    for name, parts in rows.items():
        layer = graph.layers[name]
        data = torch.cat(parts, 1)
        one = Learned.of(layer, states[name], settings.method == "adaround")
        optimizer = torch.optim.Adam(one.parameters(settings))  # type: ignore[arg-type]
        size = layer.weight.shape[0] // layer.groups
        wanted = states[name].float_rows(layer).reshape(layer.groups, size, -1).transpose(1, 2)
        for step in range(settings.steps):
            pick = torch.randint(data.shape[1], (1024,), generator=generator)
            x = data[:, pick.to(data.device)]
            with torch.enable_grad():
                own = one.weight().reshape(layer.groups, size, -1).transpose(1, 2)
                target = x @ wanted
                lost = fake_act(x, one.state.act) @ own - target
                loss = lost.square().mean() / target.square().mean().clamp(min=1e-30)
                if one.soft is not None:
                    loss = loss + one.soft.penalty(step / settings.steps)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            optimizer.step()
        finished = one.finished()
        states[name] = replace(finished, bias=states[name].bias)
