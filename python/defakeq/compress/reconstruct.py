"""Stage 4: rounding, scales, clipping and biases, learned block by block against the float model.

Each block first gets codes in closed form (error feedback, `grid.feedback`), then all its rounding,
scales and biases are learned together so that the block, fed with what the quantized blocks before
it give, returns what the float block returns (Li et al., "BRECQ", ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from defakeq.compress.allocate import Option
from defakeq.compress.closed_form import codes_by_outputs, correct_bias, feed_block
from defakeq.compress.distributed import mean, shared
from defakeq.compress.graph import Block, Graph, margin
from defakeq.compress.grid import fit
from defakeq.compress.learning import Settings, learn_block, learn_layers
from defakeq.compress.quantized import State, calling, observed
from defakeq.compress.redundancy import Masks
from defakeq_kernels.quantize import ActQuant

__all__ = ["BlockResult", "Settings", "initial", "reconstruct"]


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
                fisher = fisher_directions(graph, number, targets) if settings.fisher else None
                _block(graph, block, quantized, targets, result, settings, generator, fisher)
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
    fisher: list[Tensor] | None,
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
        return mean(total / max(power, 1e-30))

    observers = observed(states, lambda call: feed_block(graph, block, xs, call), graph.batch)
    for name, observer in observers.items():
        bits = states[name].act_bits
        act: ActQuant = shared(partial(observer.quantization, bits, settings.observer))
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

    if settings.feedback or settings.search:
        codes_by_outputs(graph, block, xs, states, generator, settings.feedback)
        keep("feedback" if settings.feedback else "search")
    if settings.bias:
        correct_bias(graph, block, xs, targets, states)
        keep("bias")
    if settings.method != "nearest" and settings.steps != 0:
        if settings.blocks:
            learn_block(graph, block, xs, targets, alive, states, settings, generator, fisher)
        else:
            learn_layers(graph, block, xs, states, settings, generator)
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


def fisher_directions(graph: Graph, number: int, targets: list[Tensor]) -> list[Tensor]:
    """For each image the square root of its Fisher information's one direction: s(1 - s) dz."""
    found = []
    for target in targets:
        x = target.detach().requires_grad_(True)
        with torch.enable_grad():
            y = x
            for block in graph.blocks[number + 1 :]:
                y = graph.run(block, y)
            z = margin(y)
            (gradient,) = torch.autograd.grad(z.sum(), [x])
        p = torch.sigmoid(z.detach()).clamp(1e-3, 1 - 1e-3)
        share = (p * (1 - p)).sqrt().reshape(-1, *([1] * (x.dim() - 1)))
        found.append(gradient * share)
    return found
