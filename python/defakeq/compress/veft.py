"""Stage 5, VEFT: alignment with random restored channels, then the channels worth restoring.

`align` tunes scales, biases and codes of the whole model with the contrastive loss of the paper;
`choose` picks the output channels whose half-precision weights recover most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from defakeq.compress.distortion import VECTOR
from defakeq.compress.distributed import average_gradients, mean
from defakeq.compress.graph import Graph, Layer, LayerCall, margin, steps_of
from defakeq.compress.learning import Learned, Settings
from defakeq.compress.quantized import State, calling, fake_act
from defakeq.compress.sizes import SEGMENT_JSON, Shape, half_cost
from defakeq.compress.statistics import LayerStatistics

TEMPERATURE = 0.1
GAMMA = 0.5  # weight of the contrastive loss
_WORK = 4e12  # multiply-adds of the quantized models' passes, of which a step has two
_MOST_WEIGHTS = 150e6  # whose codes are tuned; the optimizer holds five numbers for each
_MEASURED = 2.5e11  # multiply-adds of a look at a whole model
_CHECKED = 12  # steps between looks at the held-out images
_FLOAT = 4  # times what a product of bytes takes
SLOWER = 0.03  # of the time of all products, for restored channels
HELD_OUT = 4  # one batch in so many is not learned from


@dataclass(frozen=True)
class Alignment:
    """How the model is fine-tuned.

    Attributes:
        steps: of the optimizer; None: as many as a fixed amount of work is good for, 24 to 192.
        rate: of the scales' logarithms, and relative to a weight's spread of the biases.
        codes: rate of the codes, in codes a step; 0: they stay, as in models of more than 150
            million weights, for which they would need too much memory.
        restored: part of the output channels that is restored in each step's mixed model.
        fixed: the same channels in every step, for comparison; the paper's choice is fresh ones.
        moved: whether pictures are mirrored and shifted at random, and the float model asked anew:
            a few hundred pictures are soon learned by heart.
    """

    steps: int | None = None
    rate: float = 5e-4
    codes: float = 0.004
    restored: float = 0.1
    fixed: bool = False
    moved: bool = True

    def steps_of(self, graph: Graph) -> int:
        """Steps for a model."""
        if self.steps is not None:
            return self.steps
        return steps_of(graph.layers.values(), graph.batch, _WORK, 24, 192)


@dataclass(frozen=True)
class Drift:
    """How far a model is from the float one, on images that were not learned from.

    Attributes:
        margin: mean square of the margins' differences, relative to their variance.
        features: of the features', relative to their energy.
    """

    margin: float
    features: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.margin + self.features


@dataclass
class _Targets:
    """Features and margins of the float model, by batch; pruned features are zero."""

    features: list[Tensor]
    margins: list[Tensor]
    spread: float
    energy: float
    alive: Tensor

    @staticmethod
    def of(graph: Graph, batches: list[Tensor], states: Mapping[str, State]) -> _Targets:
        features, margins = [], []
        with torch.no_grad():
            alive = torch.ones((), device=batches[0].device)
            if any(state.keep_out is not None for state in states.values()):
                own, _ = graph.forward(batches[0], calling(states))
                alive = (own.abs().amax(0) > 0).to(own.dtype)
            for x in batches:
                f, y = graph.forward(x)
                features.append(f * alive)
                margins.append(margin(y))
        spread = float(torch.cat(margins).var()) if sum(map(len, margins)) > 1 else 1.0
        energy = float(torch.cat(features).square().mean())
        return _Targets(features, margins, max(spread, 1e-12), max(energy, 1e-30), alive)


def contrastive(anchor: Tensor, positive: Tensor, negatives: Tensor, own: Tensor) -> Tensor:
    """The paper's L_ver: cosine similarities of [B, C] with their own and [K, C] other features.

    Args:
        anchor: the float model's features.
        positive: the mix of the two quantized models'.
        negatives: float features of calibration images.
        own: boolean [B, K], the negatives that are the anchor's own image, which do not count.
    """
    a, b = F.normalize(anchor, dim=1), F.normalize(positive, dim=1)
    near = (a * b).sum(1, keepdim=True) / TEMPERATURE
    far = a @ F.normalize(negatives, dim=1).T / TEMPERATURE
    logits = torch.cat([near, far.masked_fill(own, -torch.inf)], 1)
    return -near.squeeze(1).mean() + logits.logsumexp(1).mean()


def align(
    graph: Graph,
    images: Tensor,
    states: Mapping[str, State],
    settings: Alignment,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, State], Drift, Drift]:
    """Tunes all layers together, progressing from the integer to the mixed model.

    Args:
        graph: the float model.
        images: calibration images.
        states: of the layers, after reconstruction.
        settings: how.
        seed: of the batches and the restored channels.
        progress: called with 1 for each step.

    Returns:
        The best states at any look at the held-out images, the first included; the drift before
        and after.
    """
    batches = list(graph.batches(images))
    targets = _Targets.of(graph, batches, states)
    held = [i for i in range(len(batches)) if i % HELD_OUT == HELD_OUT - 1] or [0]
    used = [i for i in range(len(batches)) if i not in held] or [0]
    before = drift(graph, batches, targets, calling(states), held)
    steps = settings.steps_of(graph)
    if not steps:
        return dict(states), before, before
    learned = {name: Learned.of(graph.layers[name], state) for name, state in states.items()}
    weights_held = sum(one.position.numel() for one in learned.values())
    codes = settings.codes if weights_held <= _MOST_WEIGHTS else 0.0
    tuning = Settings(rate=codes, scale_rate=settings.rate)
    groups = [group for one in learned.values() for group in one.parameters(tuning)]
    optimizer = torch.optim.Adam(groups)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    every = torch.cat(targets.features)
    order: list[int] = []
    restored: dict[str, Tensor] = {}
    best, least = dict(states), before
    for step in range(steps):
        if not order:
            order = [used[j] for j in torch.randperm(len(used), generator=generator).tolist()]
        i = order.pop()
        if not restored or not settings.fixed:
            restored = _random_channels(learned, settings.restored, generator)
        w = step / steps
        x, a, wanted = batches[i], targets.features[i], targets.margins[i]
        if settings.moved:
            x = moved(x, generator)
            with torch.no_grad():
                a, y = graph.forward(x)
                a, wanted = a * targets.alive, margin(y)
        with torch.enable_grad():
            weights = {name: one.weight() for name, one in learned.items()}
            q, z = graph.forward(x, _calling(learned, weights, {}))
            v, _ = graph.forward(x, _calling(learned, weights, restored))
            own = torch.zeros(len(a), len(every), dtype=torch.bool, device=a.device)
            rows = torch.arange(len(a), device=a.device)
            own[rows, i * graph.batch + rows] = True
            loss = GAMMA * contrastive(a, w * v + (1 - w) * q, every, own)
            loss = loss + (q - a).square().mean() / targets.energy
            loss = loss + (margin(z) - wanted).square().mean() / targets.spread
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        average_gradients(optimizer)
        optimizer.step()
        schedule.step()
        if (step + 1) % _CHECKED == 0 or step + 1 == steps:
            tuned = {name: one.finished() for name, one in learned.items()}
            after = drift(graph, batches, targets, calling(tuned), held)
            if after.total < least.total:
                best, least = tuned, after
        if progress is not None:
            progress(1)
    return best, before, least


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [N, C, H, W], mirrored or not, shifted by up to a sixteenth; others as they are."""
    if x.dim() != 4:
        return x
    draws = torch.rand(3, generator=generator).tolist()
    if draws[0] < 0.5:
        x = x.flip(3)
    sides = zip(draws[1:], x.shape[2:], strict=True)
    shifts = [round((draw - 0.5) * size / 8) for draw, size in sides]
    pad = [max(shifts[1], 0), max(-shifts[1], 0), max(shifts[0], 0), max(-shifts[0], 0)]
    wide = F.pad(x, pad, mode="replicate")
    top, left = max(-shifts[0], 0), max(-shifts[1], 0)
    return wide[:, :, top : top + x.shape[2], left : left + x.shape[3]].contiguous()


def drift(
    graph: Graph,
    batches: list[Tensor],
    targets: _Targets,
    call: LayerCall,
    chosen: list[int] | None = None,
) -> Drift:
    """How far the called model is from the float one."""
    margins = features = 0.0
    indices = range(len(batches)) if chosen is None else chosen
    with torch.no_grad():
        for i in indices:
            f, y = graph.forward(batches[i], call)
            features += float((f - targets.features[i]).square().mean()) / targets.energy
            off = margin(y) - targets.margins[i]
            margins += float(off.square().mean()) / targets.spread
    return Drift(mean(margins / len(indices)), mean(features / len(indices)))


class Measure:
    """The drift of quantized models on calibration images, as many as a fixed work is good for.

    Args:
        graph: the float model.
        images: calibration images.
        states: of the layers, which say what channels are pruned.
    """

    def __init__(self, graph: Graph, images: Tensor, states: Mapping[str, State]) -> None:
        self.graph = graph
        products = sum(layer.products for layer in graph.layers.values())
        count = max(int(_MEASURED / max(products * graph.batch, 1)), 1)
        self.batches = list(graph.batches(images))[:count]
        self.targets = _Targets.of(graph, self.batches, states)

    def of(self, states: Mapping[str, State], mixed: bool) -> Drift:
        """A model's drift; `mixed` with its half outputs."""
        return drift(self.graph, self.batches, self.targets, calling(states, mixed))


def _random_channels(
    learned: Mapping[str, Learned], share: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """A random subset of each layer's output channels, boolean [O]."""
    found = {}
    for name, one in learned.items():
        outs = one.layer.weight.shape[0]
        mask = torch.rand(outs, generator=generator) < share
        found[name] = mask.to(one.layer.weight.device)
    return found


def _calling(
    learned: Mapping[str, Learned], weights: Mapping[str, Tensor], restored: Mapping[str, Tensor]
) -> LayerCall:
    def call(layer: Layer, x: Tensor) -> Tensor:
        one = learned.get(layer.name)
        if one is None:
            return layer.apply(x, layer.weight, layer.bias)
        weight = weights[layer.name]
        if layer.name in restored:
            view = [-1] + [1] * (weight.dim() - 1)
            own = one.state.float_rows(layer).reshape(weight.shape)
            weight = torch.where(restored[layer.name].reshape(view), own, weight)
        return layer.apply(fake_act(x, one.state.act), weight, one.bias)

    return call


def choose(
    graph: Graph,
    states: Mapping[str, State],
    statistics: Mapping[str, LayerStatistics],
    share: float,
    room: int,
    how: str = "recovery",
    seed: int = 0,
    slower: float = SLOWER,
) -> dict[str, State]:
    """States with the half-precision outputs of the mixed model.

    Args:
        graph: the float model.
        states: of the layers.
        statistics: whose sensitivity says what an output's rounding error costs.
        share: of all kept output channels that may be restored at most.
        room: bytes that they may take in the file.
        how: "recovery" (the most recovered a byte first) or "random" (the same part of each
            layer, as in the paper).
        seed: of the random choice.
        slower: part of the model's time that they may take, where they are not random.
    """
    offers: list[tuple[float, str, int, int]] = []
    total, products = 0, 0.0
    slow: dict[str, float] = {}
    generator = torch.Generator().manual_seed(seed)
    for name, state in states.items():
        layer = graph.layers[name]
        kept = torch.ones(layer.weight.shape[0], dtype=torch.bool)
        if state.keep_out is not None:
            kept = state.keep_out.cpu()
        total += int(kept.sum())
        part = 1.0 if state.keep_in is None else float(state.keep_in.float().mean())
        products += part * layer.products * float(kept.float().mean())
        slow[name] = part * layer.products / len(kept) * VECTOR * _FLOAT
        ins = None if state.keep_in is None else int(state.keep_in.sum())
        cost = half_cost(Shape.of(layer, ins=ins), state.grid.bits, state.symmetric)
        error = state.dense(layer).flatten(1) - state.float_rows(layer)
        gains = (statistics[name].sensitivity.flatten(1).to(error.device) * error.square()).sum(1)
        if how == "random":
            gains = torch.rand(len(kept), generator=generator)
        for channel in kept.nonzero().flatten().tolist():
            offers.append((float(gains[channel]), name, channel, cost))
    count = round(share * total)
    limits = count, room, math.inf if how == "random" else slower * products
    chosen = max(
        (_taken(offers, limits, slow, by_byte) for by_byte in (True, False)),
        key=lambda found: found[0],
    )[1]
    found = {}
    for name, state in states.items():
        if name not in chosen:
            found[name] = replace(state, half=None)
            continue
        mask = torch.zeros(state.codes.shape[0], dtype=torch.bool, device=state.codes.device)
        mask[chosen[name]] = True
        found[name] = replace(state, half=mask)
    return found


def _taken(
    offers: list[tuple[float, str, int, int]],
    limits: tuple[int, int, float],
    slow: Mapping[str, float],
    by_byte: bool,
) -> tuple[float, dict[str, list[int]]]:
    """What is gained, and the channels by layer: the greatest gains, or gains a byte, first.

    Args:
        offers: gain, layer, channel and bytes of each.
        limits: channels, bytes, and the products that they may take the time of.
        slow: the products whose time a vector of a layer's half outputs takes.
        by_byte: which.
    """

    def worth(offer: tuple[float, str, int, int]) -> tuple[float, str, int]:
        gain, name, channel, cost = offer
        return (-gain / max(cost, 1) if by_byte else -gain, name, channel)

    chosen: dict[str, list[int]] = {}
    total = 0.0
    count, left, time = limits
    for gain, name, channel, cost in sorted(offers, key=worth):
        if count == 0:
            break
        own = chosen.get(name, [])
        price = cost + (0 if own else SEGMENT_JSON)
        slower = 0.0 if len(own) % VECTOR else slow[name]
        if price > left or slower > time or gain <= 0:
            continue
        chosen.setdefault(name, []).append(channel)
        total += gain
        left -= price
        time -= slower
        count -= 1
    return total, chosen
