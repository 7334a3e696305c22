"""Redundancy elimination: what goes, what takes it over, and the files without it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from compress_models import Attention, Residual, images, stored_bytes
from torch import nn

from defakeq.compress import distortion, redundancy, statistics
from defakeq.compress.allocate import Option
from defakeq.compress.bars import Bars
from defakeq.compress.budget import converted
from defakeq.compress.calibration import Calibration
from defakeq.compress.choice import Chosen, Refused, Task, choose_options
from defakeq.compress.graph import Graph, margin
from defakeq.compress.latency import LatencyTable
from defakeq.compress.presets import Preset
from defakeq.compress.quantized import calling
from defakeq.compress.sizes import checkpoint_bytes
from defakeq_kernels.packed import PackedWeight


class _Repeating(nn.Module):
    """Half of the hidden channels are multiples of the other half."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 32, 3, 1, 1)
        self.second = nn.Conv2d(32, 16, 3, 1, 1)
        self.head = nn.Linear(16, 1)
        with torch.no_grad():
            factor = torch.linspace(0.5, 2.0, 16)
            self.first.weight[16:] = self.first.weight[:16] * factor.reshape(-1, 1, 1, 1)
            self.first.bias[16:] = self.first.bias[:16] * factor
        self.eval().requires_grad_(False)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


def _found(model, data):
    graph = Graph(model, data.images)
    stats = statistics.collect(graph, data)
    channels = redundancy.channels_of(graph, data.images[:1])
    return graph, stats, channels, redundancy.find(graph, channels, stats, data.images)


@pytest.fixture(scope="module")
def data():
    return Calibration.of(images())


def test_folding_is_the_least_squares_of_the_output():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 10, generator=generator)
    x = torch.randn(500, 6, generator=generator) @ mixing
    x += 0.1 * torch.randn(500, 10, generator=generator)
    weight = torch.randn(4, 10, generator=generator)
    kept = torch.tensor([True] * 7 + [False] * 3)
    found = redundancy.folded(weight, redundancy.inverse_of(x.T @ x, ridge=0.0), kept)
    wanted = np.linalg.lstsq(x[:, kept].numpy(), (x @ weight.T).numpy(), rcond=None)[0].T
    assert np.allclose(found[:, kept].numpy(), wanted, atol=1e-3)
    assert not found[:, ~kept].any()
    cut = weight * kept
    error = (x @ (found - weight).T).square().sum()
    assert float(error) < 0.3 * float((x @ (cut - weight).T).square().sum())


def test_folding_by_the_inverse_is_the_ridge_regression_on_the_kept_inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 24, generator=generator, dtype=torch.float64)  # fewer rows than unknowns
    second = x[:9].T @ x[:9]
    weight = torch.randn(5, 24, 2, 2, generator=generator)
    kept = torch.arange(24) % 3 != 1
    found = redundancy.folded(weight, redundancy.inverse_of(second), kept)
    ridge = redundancy.RIDGE * second.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    explained = torch.linalg.solve(
        second[kept][:, kept] + ridge[kept][:, kept], second[kept][:, ~kept]
    )
    wanted = weight[:, kept] + torch.einsum("oghw,kg->okhw", weight[:, ~kept].double(), explained)
    torch.testing.assert_close(found[:, kept], wanted.float())
    assert not found[:, ~kept].any()


def test_channels_that_others_explain_go_first_and_cost_nothing(data):
    graph, stats, channels, groups = _found(_Repeating(), data)
    one = next(g for g in groups if any("first" in unit for unit in g.group.units))
    assert one.kept == (32, 24, 16)  # 28 is no multiple of 8
    level = one.kept.index(16)
    kept = {one.group.units[u]["first"][0] % 16 for u in one.order[:16]}
    assert kept == set(range(16))  # one of each pair
    with torch.no_grad():
        spread = float(margin(graph.model(data.images)).var())
    assert one.costs[level] < 1e-4 * spread
    weights, masks = redundancy.pruned(graph, channels, stats, [one], [level])
    assert int(masks["first"].outs.sum()) == int(masks["second"].ins.sum()) == 16
    assert not weights["second"][:, ~masks["second"].ins].any()


def test_removed_rows_leave_the_inverse_of_the_rest(monkeypatch):
    monkeypatch.setattr(redundancy, "_LATE", 3)
    torch.manual_seed(3)
    x = torch.randn(40, 12, dtype=torch.float64)
    matrix = x.T @ x
    inverse = redundancy._Inverse(torch.linalg.inv(matrix))
    kept = torch.ones(12, dtype=torch.bool)
    for channel in (4, 0, 11, 7, 2):
        inverse.remove(channel)
        kept[channel] = False
        rest = torch.linalg.inv(matrix[kept][:, kept])
        torch.testing.assert_close(inverse.diagonal[kept], rest.diagonal())


def test_costs_are_the_measured_change(data):
    model = Residual()
    graph, stats, channels, groups = _found(model, data)
    assert groups
    for one in groups:
        level = len(one.kept) - 1
        weights, masks = redundancy.pruned(graph, channels, stats, [one], [level])
        own = copy.deepcopy(graph.model)
        for name, mask in masks.items():
            module = own.get_submodule(name)
            module.weight.copy_(weights[name])
            if mask.outs is not None:
                module.weight[~mask.outs] = 0
                module.bias[~mask.outs] = 0
        change = margin(own(data.images)) - margin(graph.model(data.images))
        assert one.costs[level] == pytest.approx(float(change.var(correction=0)), rel=1e-2)
        assert one.costs[0] == 0.0


@pytest.mark.parametrize("model", [Residual(), Attention()])
def test_pruned_states_convert_and_run(model, data):
    graph, stats, channels, found = _found(model, data)
    groups, _touched = redundancy.compatible(channels, found, graph.layers)
    assert groups
    levels = [len(g.kept) - 1 for g in groups]
    weights, masks = redundancy.pruned(graph, channels, stats, groups, levels)
    options = {name: Option(8, False, 0, 0.0) for name in graph.layers}
    states = Chosen(options, {}, weights, masks, "").initial(graph)
    states = {name: state.narrow() for name, state in states.items()}
    from defakeq.compress.budget import converted
    from defakeq.compress.quantized import calling

    program = converted(graph.model, states, data.images[:8], mixed=False)
    tensors, network = program.file()
    for name, _layer in graph.layers.items():
        packed = PackedWeight.from_tensors(name, tensors, network["layers"][name])
        size = distortion.payload(
            distortion.Shape(
                packed.stored_out,
                packed.in_count,
                packed.taps,
                packed.bias is not None,
                packed.in_index is None,
                packed.stored_out == packed.shape[0],
            ),
            8,
        )
        assert stored_bytes(packed) == size
        mask = masks.get(name)
        if mask is not None and mask.outs is not None and name not in ("stem", "b", "patch"):
            assert packed.stored_out == int(mask.outs.sum())
    batch = data.images[: graph.batch]
    with torch.no_grad():
        _, wanted = graph.forward(batch, calling(states))
        got = program(batch)
    assert float((got - wanted).abs().max()) < 0.1 * float(wanted.abs().max())


def test_options_count_what_is_kept(data):
    graph, stats, channels, found = _found(Residual(), data)
    groups, touched = redundancy.compatible(channels, found, graph.layers)
    layer = graph.layers["b"]
    rounding = distortion.rounding(layer, stats["b"], (2, 4))
    kept = redundancy.combinations(layer, channels, groups, touched["b"])
    options = distortion.pruned_options(layer, rounding, kept, lambda bits: 1.0)
    assert len(options) == 2 * len(kept)
    whole = next(o for o in options if o.bits == 4 and not any(o.levels.values()))
    assert whole.size == distortion.payload(distortion.Shape.of(layer), 4)
    assert whole.distortion == pytest.approx(
        distortion.measured(layer, stats["b"], (2, 4))[4, False], rel=1e-5
    )
    for option in options:
        masks = kept[tuple(option.levels.items())]
        cost = rounding[option.bits, False].clone()
        if masks.outs is not None:
            cost[~masks.outs] = 0
        if masks.ins is not None:
            cost[:, ~masks.ins] = 0
        assert option.distortion == pytest.approx(float(cost.sum()), rel=1e-4)


class _Normed(nn.Module):
    """Channels that go through a BatchNorm after their activation, so that it is not folded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 32, 3, 1, 1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 16, 3, 1, 1)
        self.head = nn.Linear(16, 1)
        self.norm.running_mean.normal_(0, 0.2)
        self.norm.bias.data.normal_()
        self.eval().requires_grad_(False)

    def forward(self, x):
        x = self.norm(torch.relu(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def test_channels_stay_away_behind_a_norm(data):
    graph, stats, channels, groups = _found(_Normed(), data)
    first = next(g for g, one in enumerate(groups) if "first" in one.group.units[0])
    levels = [len(one.kept) - 1 if g == first else 0 for g, one in enumerate(groups)]
    weights, masks = redundancy.pruned(graph, channels, stats, groups, levels)
    assert int(masks["first"].outs.sum()) == int(masks["second"].ins.sum()) == 16
    options = {name: Option(8, False, 0, 0.0) for name in graph.layers}
    states = Chosen(options, {}, weights, masks, "").initial(graph)
    program = converted(graph.model, states, data.images, mixed=False)
    tensors, network = program.file()
    assert not [step for step in network["program"]["nodes"] if step["op"] == "copy"]
    assert tensors["program.batch_norm_default.add"].shape == (16,)
    with torch.no_grad():
        wanted = torch.cat(
            [graph.forward(x, calling(states))[1] for x in graph.batches(data.images)]
        )
    assert torch.allclose(program(data.images), wanted, atol=0.2 * float(wanted.std()))


def test_refusal_names_the_least_of_both_ways(data, monkeypatch):
    graph, stats, _, _ = _found(_Normed(), data)
    model_bytes = checkpoint_bytes(_Normed())

    def choose(budget, worse):
        task = Task(
            graph, stats, data.images, data.images, Preset(), budget, model_bytes, False,
            LatencyTable.of(None, None), None, 1.0,
        )  # fmt: skip
        room = Task.room
        with monkeypatch.context() as patched:
            patched.setattr(
                Task, "room", lambda own, c: room(own, c) - (10**6 if worse(bool(c.masks)) else 0)
            )
            return choose_options(task, True, Bars(False))

    found = []
    for worse in (lambda masked: False, lambda masked: masked, lambda masked: True):
        with pytest.raises(Refused) as caught:
            choose(1000, worse)
        found.append(caught.value.least)
    both, whole, neither = found
    assert both < whole < 10**6 < neither
    assert choose(math.ceil(whole), lambda masked: masked).masks == {}


def test_channels_go_for_speed_where_the_budget_would_leave_them(data):
    graph, stats, _, _ = _found(_Normed(), data)
    size = checkpoint_bytes(_Normed())

    def kept(speed):
        task = Task(
            graph, stats, data.images, data.images, Preset(speed=speed), size, size, False,
            LatencyTable.of(None, None), None, 1.0,
        )  # fmt: skip
        return choose_options(task, True, Bars(False)).masks

    assert kept(0.0) == {}
    assert int(kept(1e3)["first"].outs.sum()) == 16
