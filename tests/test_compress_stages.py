"""Each stage of compression alone, against results computed another way."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from compress_models import Attention, Residual, images, stored_bytes
from torch import nn

from defakeq.compress import (
    allocate,
    closed_form,
    distortion,
    grid,
    reconstruct,
    sizes,
    statistics,
    veft,
)
from defakeq.compress.allocate import ActOption, Option, Problem
from defakeq.compress.calibration import Calibration
from defakeq.compress.graph import Graph, margin
from defakeq.compress.greedy import greedy
from defakeq.compress.grid import Grid
from defakeq.compress.quantized import State, calling
from defakeq_kernels.packed import PackedWeight
from defakeq_kernels.quantize import quantize_weight


@pytest.fixture(scope="module")
def data():
    return Calibration.of(images())


@pytest.fixture(scope="module")
def graph(data):
    return Graph(Residual(), data.images)


@pytest.fixture(scope="module")
def stats(graph, data):
    return statistics.collect(graph, data)


# the graph


@pytest.mark.parametrize("model", [Residual(), Attention()])
def test_blocks_compute_the_model(model, data):
    graph = Graph(model, data.images)
    assert [layer.name for block in graph.blocks for layer in block.layers] == list(graph.layers)
    batch = data.images[: graph.batch]
    _, y = graph.forward(batch)
    assert torch.allclose(y, model(batch), atol=1e-5)


def test_rows_are_the_inputs_of_products(graph, data):
    seen = {}

    def call(layer, x):
        y = layer.apply(x, layer.weight, layer.bias)
        rows = layer.rows(x)
        size = layer.weight.shape[0] // layer.groups
        weight = layer.weight.reshape(layer.groups, size, -1)
        products = (rows @ weight.transpose(1, 2)).transpose(1, 2)  # groups, outs, positions
        products = products.reshape(layer.groups, size, x.shape[0], -1).permute(2, 0, 1, 3)
        wanted = y - (
            0 if layer.bias is None else layer.bias.reshape(-1, 1, 1) if layer.conv else layer.bias
        )
        seen[layer.name] = torch.allclose(products.reshape(wanted.shape), wanted, atol=1e-4)
        return y

    graph.forward(data.images[: graph.batch], call)
    assert seen == dict.fromkeys(graph.layers, True)


def test_margin_is_the_log_odds():
    z = torch.tensor([[0.3], [-2.0]])
    assert torch.equal(margin(z), z[:, 0])
    two = torch.tensor([[0.5, 1.5], [2.0, -1.0]])
    p = two.softmax(1)[:, 1]
    assert torch.allclose(margin(two), torch.log(p / (1 - p)), atol=1e-5)


# statistics


def test_statistics_against_hooks(data):
    model = Residual()
    graph = Graph(model, data.images)
    found = statistics.collect(graph, data)
    inputs, outputs = {}, {}
    for name in ("a", "dw", "head"):

        def hook(_, args, y, name=name):
            inputs[name], outputs[name] = args[0], y

        model.get_submodule(name).register_forward_hook(hook)
    model(data.images)
    x = inputs["a"]
    own = found["a"]
    assert torch.allclose(own.mean, x.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(own.variance, x.var((0, 2, 3), correction=0), atol=1e-4)
    assert torch.allclose(own.high, x.amax((0, 2, 3)), atol=1e-5)
    energy = x.flatten(2).square().sum(2).sqrt().mean(0)
    assert torch.allclose(own.energy, energy, rtol=1e-4)
    score = (model.a.weight.abs() * energy.reshape(1, -1, 1, 1)).mean()
    assert own.score == pytest.approx(float(score), rel=1e-4)
    channels = x.movedim(1, -1).reshape(-1, x.shape[1])
    assert torch.allclose(own.second, channels.T @ channels / len(channels), atol=1e-4)
    dw = (model.dw.weight.abs() * found["dw"].energy.reshape(-1, 1, 1, 1)).mean()
    assert found["dw"].score == pytest.approx(float(dw), rel=1e-4)
    pooled = outputs["a"].mean((2, 3))
    real, forged = pooled[data.labels == 0], pooled[data.labels == 1]
    wanted = (forged.mean(0) - real.mean(0)).abs() / ((real.var(0) + forged.var(0)) / 2).sqrt()
    assert torch.allclose(own.separation, wanted, rtol=1e-3)


class Windows(nn.Module):
    """A layer whose batch is the windows of all images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        size = x.shape[2] // 2
        windows = x.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
        inner = torch.relu(self.inner(windows.reshape(-1, size * size, 3)))
        return self.head(inner.reshape(x.shape[0], -1, 8).mean(1))


def test_windows_belong_to_their_images(data):
    model = Windows()
    own = statistics.collect(Graph(model, data.images), data)["inner"]
    pixels = data.images.movedim(1, -1).flatten(1, 2)
    assert torch.allclose(own.energy, pixels.square().sum(1).sqrt().mean(0), rtol=1e-4)
    assert own.positions == pixels.shape[1]
    pooled = model.inner(pixels).mean(1)
    real, forged = pooled[data.labels == 0], pooled[data.labels == 1]
    wanted = (forged.mean(0) - real.mean(0)).abs() / ((real.var(0) + forged.var(0)) / 2).sqrt()
    assert torch.allclose(own.separation, wanted, rtol=1e-3)


def test_sensitivity_is_the_mean_square_of_derivatives(data):
    model = Residual().requires_grad_(True)
    found = statistics.collect(Graph(model, data.images), data)
    square, loss = 0.0, 0.0
    for i in range(len(data.images)):
        z = model(data.images[i : i + 1])
        (gradient,) = torch.autograd.grad(z.sum(), [model.head.weight])
        square = square + gradient.square() / len(data.images)
        error = torch.sigmoid(z.detach()) - data.labels[i]
        loss = loss + (gradient * error).square() / len(data.images)
    assert torch.allclose(found["head"].sensitivity, square, rtol=1e-3)
    assert torch.allclose(found["head"].fisher, loss, rtol=1e-3)


# grids


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_grid_is_about_as_good_as_the_packer(bits, symmetric):
    rows = torch.randn(12, 40, generator=torch.Generator().manual_seed(bits)) + 0.3
    found = grid.fit(rows, bits, symmetric=symmetric)
    assert float((found.zero - found.zero.round()).abs().max()) == 0
    assert float(found.zero.abs().max()) <= 255
    assert float((found.top - found.zero).abs().max()) <= 255
    error = (found.nearest(rows) - rows).square().sum()
    packed = quantize_weight(rows.numpy(), kind="linear", bits=bits, symmetric=symmetric)
    other = (torch.from_numpy(packed.dequantize()) - rows).square().sum()
    assert float(error) <= 1.1 * float(other)


def test_feedback_beats_nearest_on_correlated_inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    rows = torch.randn(8, 24, generator=generator)
    second = x.T @ x / len(x)
    own = grid.fit(rows, 3)

    def error(codes):
        return float(((own.weights(codes) - rows) @ x.T).square().sum())

    found = grid.feedback(rows, own, second).round().clamp(0, own.top)
    assert error(found) < 0.7 * error(own.codes(rows))
    # a diagonal second moment leaves nothing to take over
    plain = grid.feedback(rows, own, torch.eye(24))
    assert torch.equal(plain.round().clamp(0, own.top), own.codes(rows))


def test_rows_with_inputs_of_their_own_are_fed_back_alone():
    torch.manual_seed(4)
    x = torch.randn(6, 40, 9) @ torch.randn(9, 9)
    second = x.transpose(1, 2) @ x
    second[2] = 0  # inputs that are always zero
    rows = torch.randn(6, 9)
    fitted = grid.fit(rows, 3)
    found = grid.feedback(rows, fitted, second).round()
    scales = grid.refit(rows, found.clamp(0, 7), fitted, second)
    for i in range(6):
        own = grid.Grid(3, fitted.scale[i : i + 1], fitted.zero[i : i + 1])
        alone = grid.feedback(rows[i : i + 1], own, second[i]).round()
        assert torch.equal(alone[0], found[i])
        scale = grid.refit(rows[i : i + 1], alone.clamp(0, 7), own, second[i])
        torch.testing.assert_close(scale, scales[i : i + 1])


def test_grids_of_many_rows_are_those_of_each(monkeypatch):
    torch.manual_seed(1)
    rows, importance = torch.randn(9, 20), torch.rand(9, 20)
    whole = [grid.fit(rows, 3, own) for own in (None, importance[0], importance)]
    monkeypatch.setattr(grid, "_CACHED", 40)
    for one, own in zip(whole, (None, importance[0], importance), strict=True):
        found = grid.fit(rows, 3, own)
        assert torch.equal(found.scale, one.scale)
        assert torch.equal(found.zero, one.zero)


def test_refit_is_the_least_squares_scale():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 16, generator=generator)
    rows = torch.randn(4, 16, generator=generator)
    own = grid.fit(rows, 3)
    codes = own.codes(rows)
    scale = grid.refit(rows, codes, own, x.T @ x)
    for row in range(4):
        a = (x @ (codes[row] - own.zero[row])).numpy()
        b = (x @ rows[row]).numpy()
        assert float(scale[row]) == pytest.approx(float(a @ b / (a @ a)), rel=1e-3)


# allocation


def _options(rng, count):
    return [
        Option(b, False, int(rng.integers(10, 40)) * b, float(rng.uniform(1, 9)) * 4.0**-b)
        for b in range(2, 2 + count)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_milp_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    layers = {f"l{i}": _options(rng, 4) for i in range(5)}
    budget = sum(o[1].size for o in layers.values()) + int(rng.integers(0, 60))
    found = allocate.solve(Problem(layers, budget))
    best = min(
        (sum(o.distortion for o in chosen), sum(o.size for o in chosen))
        for chosen in itertools.product(*layers.values())
        if sum(o.size for o in chosen) <= budget
    )
    assert found.size <= budget
    assert found.cost == pytest.approx(best[0], rel=1e-5)


@pytest.mark.parametrize("price", [0.0, 0.01])
def test_milp_with_latency_groups_and_inputs(price):
    rng = np.random.default_rng(0)
    groups = [[0.0, 0.02, 0.3]]
    layers = {}
    for i in range(3):
        own = []
        for level, kept in enumerate((1.0, 0.5, 0.25)):
            for o in _options(rng, 3):
                size, latency = int(o.size * kept), 8.0 * o.bits * kept
                own.append(Option(o.bits, False, size, o.distortion, latency, {0: level}))
        layers[f"l{i}"] = own
    acts = {
        f"l{i}": [ActOption(b, 2.0**-b * (i + 1), 10.0 * b) for b in (4, 6, 8)] for i in range(3)
    }
    found = allocate.solve(Problem(layers, 150, groups, 70.0, price, acts, 190.0))
    best = np.inf
    for level in range(3):
        own = [[o for o in layers[f"l{i}"] if o.levels[0] == level] for i in range(3)]
        for chosen in itertools.product(*own):
            if sum(o.size for o in chosen) > 150 or sum(o.latency for o in chosen) > 70:
                continue
            for picked in itertools.product(*acts.values()):
                if sum(a.volume for a in picked) <= 190:
                    costs = groups[0][level] + sum(o.distortion for o in (*chosen, *picked))
                    best = min(best, costs + price * sum(o.latency for o in chosen))
    assert found.cost == pytest.approx(best, rel=1e-5)
    assert all(o.levels[0] == found.levels[0] for o in found.options.values())


@pytest.mark.parametrize("seed", range(4))
def test_greedy_keeps_the_budget_and_is_no_better_than_exact(seed):
    rng = np.random.default_rng(seed)
    groups = [[0.0, 0.02, 0.3], [0.0, 0.05]]
    layers = {}
    for i in range(4):
        own = []
        touched = (0, 1) if i == 1 else (i % 2,)
        widths = _options(rng, 4)
        for levels in itertools.product(*(range(len(groups[g])) for g in touched)):
            part = 0.75 ** sum(levels)
            for o in widths:
                size, latency = int(o.size * part), 8.0 * part
                at = dict(zip(touched, levels, strict=True))
                own.append(Option(o.bits, False, size, part * o.distortion, latency, at))
        layers[f"l{i}"] = own
    least = sum(min(o.size for o in own) for own in layers.values())
    for budget in (1.1 * least, 1.5 * least, 10 * least):
        problem = Problem(layers, budget, groups, price=0.001)
        found, exact = greedy(problem), allocate.solve(problem)
        assert found.size <= budget
        assert found.cost >= exact.cost * (1 - 1e-5)
        assert sum(o.size for o in found.options.values()) == found.size
        for option in found.options.values():
            assert all(found.levels[g] == level for g, level in option.levels.items())
        distortion = sum(o.distortion + 0.001 * o.latency for o in found.options.values())
        distortion += sum(costs[level] for costs, level in zip(groups, found.levels, strict=True))
        assert found.cost == pytest.approx(distortion)
    assert found.cost == pytest.approx(exact.cost, rel=1e-5)  # where all fits


def test_greedy_refuses_what_it_cannot_do():
    layers = {"l": [Option(2, False, 100, 1.0, 5.0), Option(3, False, 150, 0.5, 7.0)]}
    with pytest.raises(ValueError, match="at least 100"):
        greedy(Problem(layers, 99))
    with pytest.raises(ValueError, match="exact: found False"):
        greedy(Problem(layers, 200, latency=4.0))


def test_impossible_budgets_are_named():
    layers = {"l": [Option(2, False, 100, 1.0, 5.0), Option(3, False, 150, 0.5, 7.0)]}
    with pytest.raises(ValueError, match="at least 100"):
        allocate.solve(Problem(layers, 99))
    with pytest.raises(ValueError, match="4 microseconds"):
        allocate.solve(Problem(layers, 200, latency=4.0))


def test_distortion_is_the_taylor_term(graph, stats):
    layer, own = graph.layers["a"], stats["a"]
    found = distortion.measured(layer, own, (2, 4, 8))
    rows = layer.weight.flatten(1)
    error = grid.fit(rows, 4).nearest(rows) - rows
    assert found[4, False] == pytest.approx(
        float((own.sensitivity.flatten(1) * error**2).sum()), rel=1e-4
    )
    assert found[2, False] > found[4, False] > found[8, False]
    assert distortion.scored(layer, own, (3, 4))[3, False] == own.score / 8


# sizes


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_payload_is_what_a_layer_stores(bits, symmetric):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(24, 10, 3, 3)).astype(np.float32)
    half = np.array([2, 5, 7])
    packed = quantize_weight(
        weight, kind="conv2d", bits=bits, symmetric=symmetric, bias=np.ones(24, np.float32),
        half_out=half,
    )  # fmt: skip
    shape = sizes.Shape(24, 10, 9, True)
    assert _stored(packed) == sizes.payload(shape, bits, symmetric, half=3)
    plain = quantize_weight(
        weight, kind="conv2d", bits=bits, symmetric=symmetric, bias=np.ones(24, np.float32)
    )
    assert _stored(packed) - _stored(plain) == 3 * sizes.half_cost(shape, bits, symmetric)
    kept = np.arange(0, 24, 2)
    fewer = quantize_weight(
        weight, kind="conv2d", bits=bits, symmetric=symmetric, bias=np.ones(24, np.float32),
        keep_out=kept, half_out=half[half % 2 == 0],
    )  # fmt: skip
    shape = sizes.Shape(len(kept), 10, 9, True, all_outputs=False)
    assert _stored(fewer) == sizes.payload(shape, bits, symmetric, half=1)


def _stored(packed):
    """Bytes of a layer's tensors in a file, with scales that float16 holds."""

    def narrow(segment):
        if segment.scale is None:
            return segment
        return replace(segment, scale=segment.scale.astype(np.float16).astype(np.float32))

    return stored_bytes(replace(packed, segments=tuple(map(narrow, packed.segments))))


def test_narrow_states_keep_what_float16_cannot_hold():
    scale = torch.tensor([0.1, 0.2, 0.3])
    codes = torch.tensor([[0.0, 3.0], [1.0, 2.0], [2.0, 2.0]])
    zero = torch.full((3,), 2.0)
    state = State(Grid(2, scale, zero), codes, torch.tensor([1e-9, 0.7, -3.0]), torch.zeros(3, 2))
    found = state.narrow()
    assert torch.equal(found.grid.scale[:2], scale[:2].half().float())
    assert found.grid.scale[2] == 1.0  # of weights that are all zero
    assert torch.equal(found.bias, state.bias.half().float())
    small = replace(state, grid=Grid(2, scale * torch.tensor([1.0, 1e-6, 1.0]), zero))
    assert torch.equal(small.narrow().grid.scale[:2], small.grid.scale[:2].half().float())
    assert float(small.narrow().grid.scale[1]) > 0
    tiny = replace(state, grid=Grid(2, scale * 1e-6, zero), bias=state.bias * 1e6)
    assert torch.equal(tiny.narrow().grid.scale[:2], tiny.grid.scale[:2])
    assert torch.equal(tiny.narrow().bias, tiny.bias)


def test_checkpoint_is_four_bytes_a_value():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert sizes.checkpoint_bytes(model) == 4 * (3 * 8 * 9 + 8 + 4 * 8)


# reconstruction


def _quantized(graph, stats, data, bits, settings, seed=0):
    options = {name: Option(bits, False, 0, 0.0) for name in graph.layers}
    states = reconstruct.initial(graph, options, {})
    results = reconstruct.reconstruct(graph, data.images, states, settings, seed)
    batch = data.images[: graph.batch]
    _, y = graph.forward(batch)
    _, z = graph.forward(batch, calling(states))
    return float((y - z).square().mean()), results, states


def test_each_step_of_reconstruction_helps(graph, stats, data):
    settings = reconstruct.Settings
    plain, _, _ = _quantized(graph, stats, data, 2, settings("nearest", False, steps=0, bias=False))
    fed, _, _ = _quantized(graph, stats, data, 2, settings("nearest", True, steps=0))
    learned, results, states = _quantized(graph, stats, data, 2, settings(steps=60))
    assert fed < plain
    assert learned < 0.5 * plain
    assert len(results) == len(graph.blocks)
    for state in states.values():
        assert torch.equal(state.codes, state.codes.round())
        assert float(state.codes.min()) >= 0
        assert float(state.codes.max()) <= 3


def test_adaround_beats_nearest(graph, stats, data):
    soft = reconstruct.Settings("adaround", False, steps=150, rate=0.1, scale_rate=0.0, bias=False)
    _, results, states = _quantized(graph, stats, data, 2, soft)
    better = [r.errors["learned"] < 0.9 * r.errors["nearest"] for r in results]
    assert sum(better) >= len(better) - 1
    for name, state in states.items():
        near = state.grid.position(graph.layers[name].weight.flatten(1))
        inside = (near > 0) & (near < state.grid.top)
        assert bool(((state.codes - near).abs() < 1 + 1e-4)[inside].all())  # up or down only


def test_fisher_directions_are_the_margin_s_derivatives(graph, data):
    x = data.images[: graph.batch]
    for block in graph.blocks[:2]:
        x = graph.run(block, x)
    (found,) = reconstruct.fisher_directions(graph, 1, [x])
    step = 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    z = []
    for y in (x + step, x - step):
        for block in graph.blocks[2:]:
            y = graph.run(block, y)
        z.append(margin(y))
    p = torch.sigmoid(sum(z) / 2)
    slope = (z[0] - z[1]) / 2 * (p * (1 - p)).sqrt()
    along = (found * step).flatten(1).sum(1)
    assert torch.allclose(along, slope, rtol=0.1, atol=0.1 * float(slope.abs().max()))
    settings = reconstruct.Settings(steps=30, fisher=True)
    _, results, _ = _quantized(graph, None, data, 2, settings)
    assert all(min(r.errors.values()) <= r.errors["nearest"] for r in results)


def test_searched_grids_serve_the_output(graph):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 20, generator=generator) * torch.linspace(0.1, 3, 20)
    rows = torch.randn(6, 20, generator=generator)
    second = x.T @ x / len(x)
    first = grid.fit(rows, 3)
    found = closed_form.least_output_error(rows, first, second, symmetric=False)

    def error(own):
        return ((own.nearest(rows) - rows) @ x.T).square().sum(1)

    assert bool((error(found) <= error(first)).all())
    assert float(error(found).sum()) < 0.95 * float(error(first).sum())


def test_reconstruction_is_deterministic(graph, stats, data):
    settings = reconstruct.Settings(steps=6)
    first = _quantized(graph, stats, data, 3, settings, seed=5)[2]
    second = _quantized(graph, stats, data, 3, settings, seed=5)[2]
    for name, state in first.items():
        assert torch.equal(state.codes, second[name].codes)
        assert torch.equal(state.grid.scale, second[name].grid.scale)


# VEFT


def test_contrastive_loss_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    positive = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    own = torch.tensor([[True, False, False], [False, True, False]])
    negatives = torch.cat([a, torch.tensor([[1.0, 1.0]])])
    found = float(veft.contrastive(a, positive, negatives, own))
    t, r = veft.TEMPERATURE, 2**-0.5
    losses = []
    for near, far in ((r, [0.0, r]), (1.0, [0.0, r])):
        e = [np.exp(v / t) for v in (near, *far)]
        losses.append(-np.log(e[0] / sum(e)))
    assert found == pytest.approx(float(np.mean(losses)), rel=1e-4)


def test_alignment_never_hurts_held_out_images(graph, stats, data):
    _, _, states = _quantized(
        graph, stats, data, 2, reconstruct.Settings("nearest", False, steps=0)
    )
    _tuned, before, after = veft.align(graph, data.images, states, veft.Alignment(steps=20), 1)
    assert after.total < before.total
    kept, same, _ = veft.align(graph, data.images, states, veft.Alignment(steps=1, rate=5.0), 1)
    assert all(torch.equal(kept[n].codes, states[n].codes) for n in states)
    assert same == before


def test_large_models_keep_their_codes(graph, stats, data, monkeypatch):
    _, _, states = _quantized(graph, stats, data, 4, reconstruct.Settings(steps=0))
    monkeypatch.setattr(veft, "_MOST_WEIGHTS", 100)
    learned = []

    def groups(self, settings, real=veft.Learned.parameters):
        learned.append(settings.rate)
        found = real(self, settings)
        assert not any(group["params"][0] is self.position for group in found)
        return found

    monkeypatch.setattr(veft.Learned, "parameters", groups)
    kept, _, _ = veft.align(graph, data.images, states, veft.Alignment(steps=2))
    assert learned == [0.0] * len(states)
    assert all(torch.equal(kept[n].codes, states[n].codes) for n in states)


def test_chosen_channels_recover_most(graph, stats, data):
    _, _, states = _quantized(
        graph, stats, data, 2, reconstruct.Settings("nearest", False, steps=0)
    )
    chosen = veft.choose(graph, states, stats, 0.05, 10**6, slower=10.0)
    total = sum(len(s.codes) for s in states.values())
    count = sum(int(s.half.sum()) for s in chosen.values() if s.half is not None)
    assert count == round(0.05 * total)

    def gains(name):
        error = states[name].dense(graph.layers[name]) - graph.layers[name].weight
        return (stats[name].sensitivity * error.square()).flatten(1).sum(1)

    every = torch.cat([gains(name) for name in states])
    taken = torch.cat([gains(name)[s.half] for name, s in chosen.items() if s.half is not None])
    assert torch.equal(taken.sort()[0], every.sort()[0][-count:])
    measure = veft.Measure(graph, data.images, chosen)
    assert measure.of(chosen, True) != measure.of(chosen, False)
    room = 900
    few = veft.choose(graph, states, stats, 0.05, room, slower=10.0)
    taken = sum(
        int(s.half.sum()) * sizes.half_cost(sizes.Shape.of(graph.layers[n]), 2) + sizes.SEGMENT_JSON
        for n, s in few.items()
        if s.half is not None
    )
    assert 0 < taken <= room
    none = veft.choose(graph, states, stats, 0.05, 10**6, slower=0.0)
    assert all(state.half is None for state in none.values())


def test_plan_of_states_packs_their_codes(graph, stats, data):
    from defakeq.compress.budget import converted

    _, _, states = _quantized(graph, stats, data, 3, reconstruct.Settings(steps=4))
    chosen = veft.choose(graph, states, stats, 0.1, 10**6, slower=10.0)
    tensors, network = converted(graph.model, chosen, data.images[:4], mixed=True).file()
    for name, state in chosen.items():
        packed = PackedWeight.from_tensors(name, tensors, network["layers"][name])
        wanted = state.dense(graph.layers[name], mixed=True)
        assert np.array_equal(packed.dequantize(), wanted.numpy().reshape(packed.shape))
