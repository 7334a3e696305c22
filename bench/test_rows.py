"""Passes over rows (dq_rows) and the cost of a call, through the torch operators."""

from __future__ import annotations

import numpy as np
import pytest

from defakeq.bench.layers import layer_spec
from defakeq.bench.shapes import parse_work
from defakeq_kernels import _core

torch = pytest.importorskip("torch")
ops = pytest.importorskip("defakeq_kernels.ops")

SIZES = [8, 196 * 768]


@pytest.mark.parametrize("count", SIZES)
def test_quantize(benchmark, count):
    x = torch.linspace(-4, 4, count)
    benchmark.group = f"rows {count}"
    out = benchmark(torch.ops.defakeq.quantize, x, 0.03, 3, 8)
    assert out.dtype == torch.int8
    assert out.shape == x.shape


@pytest.mark.parametrize("count", SIZES)
def test_dequantize(benchmark, count):
    q = torch.arange(count).remainder(255).sub(127).to(torch.int8)
    benchmark.group = f"rows {count}"
    out = benchmark(ops.dequantize, q, 0.03, 3)
    assert out.dtype == torch.float32
    assert out.shape == q.shape


@pytest.mark.parametrize("count", SIZES)
def test_torch_add(benchmark, count):
    """What a call of torch costs, for comparison."""
    x = torch.rand(count)
    benchmark.group = f"rows {count}"
    out = benchmark(torch.add, x, x)
    assert out.shape == x.shape


def test_small_linear(benchmark):
    work = parse_work("small op 8")
    packed = torch.from_numpy(_core.pack_layer(layer_spec(work, 8, np.random.default_rng(0))))
    x = torch.zeros(1, 8, dtype=torch.int8)
    benchmark.group = "rows 8"
    out = benchmark(torch.ops.defakeq.linear, x, packed, 8, True)
    assert out.shape == (1, 8)
