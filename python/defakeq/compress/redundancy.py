"""Stage 2: channels that the others explain go, and their consumers take over what they carried.

Which channels go together is known from the graph (`defakeq.prunable`). A channel's part that the
kept channels cannot reproduce, its conditional variance, comes from the second moments of each
consumer's input; what they can reproduce is added to the consumer's weights by ridge regression.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defakeq.compress.graph import Graph, Layer, LayerCall, margin
from defakeq.compress.statistics import LayerStatistics
from defakeq.prunable import Channels, Group, analyse

LEVELS = (1.0, 0.875, 0.75, 0.5)  # kept parts of a group
MULTIPLE = 8
RIDGE = 1e-3  # of the mean second moment
_TOUCHED = 2  # groups that one layer may have a part in
_IMAGES = 32  # whose margins are measured
_LATE = 64  # removals that an inverse is brought up to date with at once


@dataclass(frozen=True)
class Masks:
    """Kept channels of a layer, boolean [O] and [I]; None: all."""

    outs: Tensor | None = None
    ins: Tensor | None = None


@dataclass(frozen=True)
class Redundancy:
    """A group of channels: in which order its units go, and what that costs.

    Attributes:
        group: of `defakeq.prunable`.
        ties: of each unit.
        order: units from the least to the most explained by the others: the first are kept.
        kept: units kept at each level.
        costs: mean square change of the margin at each level.
    """

    group: Group
    ties: tuple[int, ...]
    order: tuple[int, ...]
    kept: tuple[int, ...]
    costs: tuple[float, ...]


def channels_of(graph: Graph, image: Tensor) -> Channels:
    """How the channels hang together.

    Raises:
        ValueError: an operation that is not understood, by name.
    """
    return analyse(graph.model, image)


def find(
    graph: Graph,
    channels: Channels,
    statistics: Mapping[str, LayerStatistics],
    images: Tensor,
    levels: Sequence[float] = LEVELS,
    progress: Callable[[int], None] | None = None,
) -> list[Redundancy]:
    """The groups that can lose channels, with the measured cost of each level.

    Args:
        graph: the float model.
        channels: of it.
        statistics: of its layers.
        images: calibration images, of which the first few are used.
        levels: kept parts, falling from 1.
        progress: called with 1 for each group.
    """
    changes = _Changes(graph, list(graph.batches(images))[: max(1, _IMAGES // graph.batch)])
    found = []
    for group in channels.groups:
        ties = tuple(channels.outputs[layer][outs[0]] for layer, outs in _firsts(group))
        consumers = _consumers(graph, channels, ties)
        size = len(group.units)
        kept = tuple(dict.fromkeys(_kept(size, level) for level in levels))
        known = all(name in graph.layers for unit in group.units for name in unit)
        if progress is not None:
            progress(1)
        if not consumers or not known or len(kept) < 2:
            continue
        inverses = {layer.name: inverse_of(statistics[layer.name].second) for layer in consumers}
        order = _order(channels, statistics, ties, consumers, inverses, min(kept))
        costs = [0.0]
        for count in kept[1:]:
            one = Redundancy(group, ties, order, (count,), (0.0,))
            weights, masks = pruned(graph, channels, statistics, [one], [0], inverses)
            costs.append(changes.of(weights, masks))
        found.append(Redundancy(group, ties, order, kept, tuple(costs)))
    return found


def compatible(
    channels: Channels, groups: Sequence[Redundancy], names: Iterable[str]
) -> tuple[list[Redundancy], dict[str, tuple[int, ...]]]:
    """Groups of which no layer touches more than two, and the numbers of those it touches."""
    kept: list[Redundancy] = []
    touched: dict[str, set[int]] = {name: set() for name in names}
    ties = {
        name: {*channels.outputs.get(name, ()), *channels.inputs.get(name, ())} for name in touched
    }
    for one in groups:
        own = set(one.ties)
        layers = [name for name, found in ties.items() if found & own]
        if any(len(touched[name]) >= _TOUCHED for name in layers):
            continue
        for name in layers:
            touched[name].add(len(kept))
        kept.append(one)
    return kept, {name: tuple(sorted(found)) for name, found in touched.items()}


def combinations(
    layer: Layer, channels: Channels, groups: Sequence[Redundancy], touched: Sequence[int]
) -> dict[tuple[tuple[int, int], ...], Masks]:
    """A layer's masks for each combination of the levels of the groups that it touches."""
    found = {}
    for levels in itertools.product(*(range(len(groups[g].kept)) for g in touched)):
        gone: set[int] = set()
        for g, level in zip(touched, levels, strict=True):
            one = groups[g]
            gone.update(one.ties[unit] for unit in one.order[one.kept[level] :])
        outs = _mask(channels.outputs.get(layer.name, ()), gone, layer)
        ins = None
        if layer.groups == 1:
            ins = _mask(channels.inputs.get(layer.name, ()), gone, layer)
        found[tuple(zip(touched, levels, strict=True))] = Masks(outs, ins)
    return found


def pruned(
    graph: Graph,
    channels: Channels,
    statistics: Mapping[str, LayerStatistics],
    groups: Sequence[Redundancy],
    levels: Sequence[int],
    inverses: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Masks]]:
    """Weights with what goes folded into what stays, and the kept channels, of touched layers.

    Args:
        graph, channels, statistics: of the float model.
        groups: of `find`.
        levels: the level of each group.
        inverses: of `inverse_of`, of the layers for which they are at hand.
    """
    gone: set[int] = set()
    for one, level in zip(groups, levels, strict=True):
        gone.update(one.ties[unit] for unit in one.order[one.kept[level] :])
    weights: dict[str, Tensor] = {}
    masks: dict[str, Masks] = {}
    if not gone:
        return weights, masks
    for name, layer in graph.layers.items():
        outs = _mask(channels.outputs.get(name, ()), gone, layer)
        ins = _mask(channels.inputs.get(name, ()), gone, layer) if layer.groups == 1 else None
        if outs is None and ins is None:
            continue
        masks[name] = Masks(outs, ins)
        weight = layer.weight
        if ins is not None:
            inverse = (inverses or {}).get(name)
            if inverse is None:
                inverse = inverse_of(statistics[name].second)
            weight = folded(weight, inverse.to(weight.device), ins)
        weights[name] = weight
    return weights, masks


def inverse_of(second: Tensor, ridge: float = RIDGE) -> Tensor:
    """The inverse of second moments [I, I] with a ridge, in float64.

    Args:
        second: second moments of a layer's inputs.
        ridge: added to the diagonal, a part of its mean.
    """
    h = second.to(torch.float64, copy=True)
    h.diagonal().add_(ridge * float(h.diagonal().mean()) + 1e-12)
    return torch.cholesky_inverse(torch.linalg.cholesky(h))


def folded(weight: Tensor, inverse: Tensor, kept: Tensor) -> Tensor:
    """A weight whose kept inputs carry the others' part: ridge regression of the layer's output.

    With P the inverse, k the kept and g the other inputs, the kept ones explain the others by
    ``-P_kg P_gg^-1``, so that only as large a system is solved as channels go.

    Args:
        weight: [O, I] or [O, I, kh, kw].
        inverse: of `inverse_of` [I, I].
        kept: boolean [I].
    """
    gone = ~kept
    factor = torch.linalg.cholesky(inverse[gone][:, gone])
    explained = torch.cholesky_solve(inverse[gone][:, kept], factor).neg_()  # [gone, kept]
    new = torch.zeros_like(weight)
    moved = torch.einsum("og...,gk->ok...", weight[:, gone].double(), explained)
    new[:, kept] = weight[:, kept] + moved.to(weight.dtype)
    return new


def _firsts(group: Group) -> list[tuple[str, tuple[int, ...]]]:
    return [next(iter(unit.items())) for unit in group.units]


def _kept(count: int, level: float) -> int:
    """Units kept at a level: multiples of 8 where there are 16 or more."""
    keep = max(1, round(count * level))
    if count >= 2 * MULTIPLE and keep < count:
        keep = max(MULTIPLE, round(keep / MULTIPLE) * MULTIPLE)
    return min(keep, count)


def _consumers(graph: Graph, channels: Channels, ties: Sequence[int]) -> list[Layer]:
    wanted = set(ties)
    return [
        layer
        for name, layer in graph.layers.items()
        if layer.groups == 1 and wanted & set(channels.inputs.get(name, ()))
    ]


def _mask(ties: Sequence[int], gone: set[int], layer: Layer) -> Tensor | None:
    if not ties or not gone.intersection(ties):
        return None
    return torch.tensor([tie not in gone for tie in ties], device=layer.weight.device)


class _Inverse:
    """The inverse of a matrix from which rows and columns go, one after the other.

    Only the diagonal is brought up to date at once; the rest many removals at a time, which is a
    matrix product instead of a pass over the whole matrix each.
    """

    def __init__(self, inverse: Tensor) -> None:
        self.inverse = inverse.clone()
        self.diagonal = inverse.diagonal().clone()
        self._late = inverse.new_empty(_LATE, len(inverse))
        self._count = 0

    def remove(self, channel: int) -> None:
        """Takes a row and column out of the matrix."""
        column = self.inverse[channel].clone()
        late = self._late[: self._count]
        column -= late[:, channel] @ late
        column /= column[channel].sqrt()
        self._late[self._count] = column
        self._count += 1
        self.diagonal -= column.square()
        self.diagonal[channel] = 1.0
        if self._count == _LATE:
            self.inverse.addmm_(self._late.T, self._late, alpha=-1)
            self._count = 0


def _order(
    channels: Channels,
    statistics: Mapping[str, LayerStatistics],
    ties: Sequence[int],
    consumers: Sequence[Layer],
    inverses: Mapping[str, Tensor],
    least: int,
) -> tuple[int, ...]:
    """Units, those that go first at the end: backward elimination by what each loses."""
    unit_of = {tie: unit for unit, tie in enumerate(ties)}
    shrinking, weights, members = [], [], []
    for layer in consumers:
        shrinking.append(_Inverse(inverses[layer.name]))
        energy = (
            layer.weight.cpu().double().flatten(2).square().sum((0, 2))
            if layer.conv
            else (layer.weight.cpu().double().square().sum(0))
        )
        diagonal = statistics[layer.name].second.diagonal().double()
        weights.append(energy / float((energy * diagonal).sum() + 1e-30))
        own = [unit_of.get(tie, len(ties)) for tie in channels.inputs[layer.name]]
        members.append(torch.tensor(own))
    gone = torch.zeros(len(ties), dtype=torch.bool)
    removed: list[int] = []
    while len(ties) - len(removed) > least:
        losses = torch.zeros(len(ties) + 1, dtype=torch.float64)
        for inverse, weight, units in zip(shrinking, weights, members, strict=True):
            losses.index_add_(0, units, weight / inverse.diagonal.clamp(min=1e-30))
        worst = int(losses[:-1].masked_fill(gone, torch.inf).argmin())
        gone[worst] = True
        removed.append(worst)
        for inverse, units in zip(shrinking, members, strict=True):
            for channel in (units == worst).nonzero().flatten().tolist():
                inverse.remove(channel)
    left = (~gone).nonzero().flatten().tolist()
    return (*left, *reversed(removed))


class _Changes:
    """How much the margin changes, from the first block that is another on.

    Args:
        graph: the float model.
        batches: of images.
    """

    def __init__(self, graph: Graph, batches: Sequence[Tensor]) -> None:
        self.graph, self.images = graph, list(batches)
        self._number, self._inputs = 0, self.images
        with torch.no_grad():
            self._margins = [margin(graph.forward(x)[1]) for x in self.images]

    def of(self, weights: Mapping[str, Tensor], masks: Mapping[str, Masks]) -> float:
        """The mean square change of the margin, its mean over the images left out.

        A constant is taken back by the biases, and moves no ranking.
        """
        blocks = self.graph.blocks
        first = next(
            i for i, block in enumerate(blocks) if any(one.name in masks for one in block.layers)
        )
        call = _calling(weights, masks)
        changes = []
        with torch.no_grad():
            for x, z in zip(self._at(first), self._margins, strict=True):
                for block in blocks[first:]:
                    x = self.graph.run(block, x, call)
                changes.append(margin(x) - z)
        return float(torch.cat(changes).var(correction=0))

    def _at(self, number: int) -> list[Tensor]:
        """The float inputs of a block; groups come mostly in the order of the blocks."""
        if number < self._number:
            self._number, self._inputs = 0, self.images
        for block in self.graph.blocks[self._number : number]:
            self._inputs = [self.graph.run(block, x) for x in self._inputs]
        self._number = number
        return self._inputs


def _calling(weights: Mapping[str, Tensor], masks: Mapping[str, Masks]) -> LayerCall:
    def call(layer: Layer, x: Tensor) -> Tensor:
        mask = masks.get(layer.name)
        if mask is None:
            return layer.apply(x, layer.weight, layer.bias)
        weight, bias = weights[layer.name], layer.bias
        if mask.outs is not None:
            shape = [-1] + [1] * (weight.dim() - 1)
            weight = weight * mask.outs.to(weight).reshape(shape)
            bias = None if bias is None else bias * mask.outs
        return layer.apply(x, weight, bias)

    return call
