"""The kernels on the sizes they are judged by: dq_gemm, dq_gemv and dq_dwconv.

    pytest bench --benchmark-columns=median,iqr,rounds

Each benchmark calls the layer from Python and so includes a microsecond or two of the call;
`defakeq bench ops` times the same layers natively and beside other engines.
"""

from __future__ import annotations

import numpy as np
import pytest

from defakeq.bench.layers import layer_input, layer_spec
from defakeq.bench.shapes import load_shapes
from defakeq_kernels import _core

WORKS = [w for w in load_shapes("table") if w.kind != "small"]


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("work", WORKS, ids=lambda w: w.name.replace(" ", "_"))
def test_layer(benchmark, work, bits):
    rng = np.random.default_rng(0)
    blob = _core.pack_layer(layer_spec(work, bits, rng))
    x, half_input = layer_input(work, rng)
    call = _core.conv2d if work.is_conv else _core.linear
    benchmark.group = work.base
    out = benchmark(call, blob, x, half_input=half_input)
    seconds = benchmark.stats.stats.median if benchmark.stats else None
    if seconds:
        benchmark.extra_info["gmacs"] = work.macs / seconds * 1e-9
        benchmark.extra_info["of_peak"] = work.macs / seconds * 1e-9 / _core.int8_peak_gmacs()
    assert out.dtype == np.int8
    assert out.shape[-1] == work.outputs
    assert out.size == work.positions * work.outputs
