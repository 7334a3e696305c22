"""Every kernel family against the reference, under Triton's interpreter or on a GPU.

Run by tests/test_triton_interpreter.py in a process of its own, since TRITON_INTERPRET=1 replaces
the compiler in the whole process, and by tests/test_triton_gpu.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from defakeq_kernels import reference
from defakeq_kernels.nn import ActQuant, QuantConv2d, QuantLinear
from defakeq_kernels.triton import config, launch, run
from defakeq_kernels.triton.bounds import error_bound
from defakeq_kernels.triton.pack import pack
from defakeq_kernels.triton.start import INTERPRETED

STATIC = ActQuant.static(-2, 3)
DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def on_gpu(layer: Any, x: Any, **extra: Any) -> Any:
    packed, made = pack(layer.packed_weight(), layer.act, layer.activation, layer.out)
    packed, x = packed.to(DEVICE), x.to(DEVICE)
    extra = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in extra.items()}
    out_int8 = layer.out is not None
    if layer.kind == "linear":
        return launch.linear(x, packed, layer.out_features, out_int8, **extra).cpu()
    geometry = (made.kernel, made.stride, made.padding, made.dilation)
    return launch.conv2d(x, packed, layer.out_channels, *geometry, out_int8, **extra).cpu()


def plain(value: Any, kind: str) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    value = value.float() if value.dtype == torch.float16 else value
    return np.ascontiguousarray((value if kind == "linear" else value.permute(0, 2, 3, 1)).numpy())


def expected(layer: Any, x: Any, **extra: Any) -> Any:
    kind = layer.kind
    options = {"act": layer.act, "activation": layer.activation, "out": layer.out}
    options |= {name: plain(value, kind) for name, value in extra.items()}
    y = torch.from_numpy(getattr(reference, kind)(layer.packed_weight(), plain(x, kind), **options))
    return y if kind == "linear" else y.permute(0, 3, 1, 2)


def linear(outputs: int, inputs: int, **options: Any) -> QuantLinear:
    return QuantLinear.from_float(nn.Linear(inputs, outputs), **options)


def conv(channels: int, outputs: int, kernel: Any, geometry: Any = None, **options: Any) -> Any:
    return QuantConv2d.from_float(
        nn.Conv2d(channels, outputs, kernel, **(geometry or {})), **options
    )


def int8(*shape: int) -> torch.Tensor:
    x = torch.randint(-128, 128, shape, dtype=torch.int8)
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def check(layer: Any, x: Any, **extra: Any) -> None:
    """Equal bytes for integer layers, the computed bound for others."""
    y, wanted = on_gpu(layer, x, **extra), expected(layer, x, **extra)
    assert y.shape == wanted.shape
    integer = (
        layer.act is not None
        and 16 not in layer.bits
        and not layer._buffers.get("half_in_index") is not None
    )
    if integer:
        assert torch.equal(y, wanted)
        return
    geometry = {}
    if layer.kind == "conv2d":
        names = ("stride", "padding", "dilation", "groups")
        geometry = {name: getattr(layer, name) for name in names}
    if x.dtype == torch.int8:
        x = (x.float() - layer.act.zero_point) * layer.act.scale
    bound = error_bound(layer.dequantized_weight(), x, y, layer.activation, **geometry)
    assert torch.all((y.double() - wanted.double()).abs() <= bound)
    assert torch.all(bound <= 0.02 * wanted.abs().max())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width(bits: int, symmetric: bool) -> None:
    check(linear(20, 200, bits=bits, symmetric=symmetric, act=STATIC), torch.randn(5, 200))
    check(linear(20, 200, bits=bits, symmetric=symmetric), torch.randn(5, 200).half())


def test_bytes_in_long_units(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setitem(config.DEVICES, 87, config.DEVICES[90])
    layer = linear(24, 384, bits=8, act=STATIC)
    check(layer, int8(70, 384))
    check(linear(24, 384, bits=8, symmetric=True, act=STATIC), torch.randn(70, 384))
    check(
        conv(128, 20, 3, {"padding": 1}, bits=8, act=STATIC, activation="relu"), int8(2, 128, 6, 6)
    )
    check(conv(256, 20, 1, {"groups": 2}, bits=8, act=STATIC), int8(2, 256, 6, 6))


@pytest.mark.parametrize("inputs", [6, 28, 100])
def test_a_single_row_of_any_length(inputs: int) -> None:
    check(linear(20, inputs, bits=4, act=STATIC, activation="silu"), int8(1, inputs))
    check(linear(20, inputs, bits=3), torch.randn(1, inputs).half())


@pytest.mark.parametrize("rows", [2, 16, 20])
def test_channels_that_are_eight_bytes(rows: int) -> None:
    check(linear(20, 72, bits=4, act=STATIC), int8(rows, 72))
    check(conv(184, 20, 1, bits=4, act=STATIC), int8(rows, 184, 1, 1))
    check(conv(184, 20, 1, bits=8, act=STATIC), int8(1, 184, 1, rows))


def test_convolutions_whose_channels_are_eight_bytes() -> None:
    check(
        conv(24, 20, 3, {"padding": 1}, bits=4, act=ActQuant("static", 0.1, 5)), int8(1, 24, 5, 5)
    )
    check(conv(80, 20, 1, {"groups": 2}, bits=8, act=STATIC), int8(1, 80, 5, 5))


MIXED = torch.tensor([8] * 6 + [4] * 6 + [1] * 4 + [2] * 3)


@pytest.mark.parametrize(
    "act", [None, STATIC, ActQuant.dynamic(), ActQuant.dynamic("row")], ids=str
)
def test_mixed_pruned_and_half(act: ActQuant | None) -> None:
    keep = {"keep_out": torch.arange(1, 19), "keep_in": torch.arange(0, 137, 2)}
    x = torch.randn(20, 137)
    check(linear(19, 137, bits=MIXED, **keep, act=act, activation="silu"), x)
    halves = {"half_out": [2, 5], "half_in": torch.tensor([4, 10])}
    layer = linear(19, 137, bits=MIXED, **keep, **halves, act=act, activation="gelu")
    check(layer, x)
    assert torch.all(on_gpu(layer, x)[:, 0] == 0)
    if act is STATIC:
        q = torch.ops.defakeq.quantize(x, act.scale, act.zero_point, act.bits)
        check(layer, q, half_input=x[:, [4, 10]])


@pytest.mark.parametrize("group_size", [16, 32, 128])
@pytest.mark.parametrize("bits", [3, 8])
def test_scale_groups(bits: int, group_size: int) -> None:
    layer = linear(24, 320, bits=bits, group_size=group_size, act=STATIC)
    check(layer, torch.randn(9, 320))
    check(linear(24, 320, bits=bits, group_size=group_size), torch.randn(9, 320).half())


@pytest.mark.parametrize("half_out", [None, [3]])
def test_split_reduction(half_out: Any) -> None:
    options = {"bits": 4, "half_out": half_out}
    integer = linear(24, 2048, **options, act=STATIC, activation="relu")
    floats = linear(24, 2048, **options, group_size=None if half_out else 128)
    for layer, x in ((integer, torch.randn(20, 2048)), (floats, torch.randn(20, 2048).half())):
        _, made = pack(layer.packed_weight(), layer.act, layer.activation)
        device, kind = config.DEVICES[87], torch.int8 if layer.act else torch.float16
        chosen = config.choose(made, kind, 20, device)
        assert config.parts(made, kind, 20, chosen, device) > 1
        check(layer, x)


@pytest.mark.parametrize("length", [1024, 1100])
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 7, "act": STATIC, "activation": "relu"},
        {"bits": 4, "symmetric": True},
        {"bits": 3, "group_size": 128},
        {"bits": 4, "keep_out": torch.arange(0, 24, 3), "act": ActQuant.dynamic("row")},
    ],
    ids=str,
)
def test_few_rows_take_one_launch(
    options: dict[str, Any], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []
    whole = run._gemv
    monkeypatch.setattr(run, "_gemv", lambda *a: (launched.append(1), whole(*a)))
    monkeypatch.setattr(run, "_product", None)
    layer = linear(24, length, **options)
    x = torch.randn(9, length)
    check(layer, x if layer.act else x.half())
    assert launched


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {
        "channels": 64,
        "kernel": 3,
        "geometry": {"padding": 1},
        "bits": 4,
        "activation": "relu",
    },
    "geometry": {
        "channels": 48,
        "kernel": (3, 5),
        "bits": 3,
        "activation": "gelu",
        "geometry": {"stride": (2, 1), "padding": (2, 1), "dilation": (2, 1)},
    },
    "pointwise": {"channels": 40, "kernel": 1, "bits": 4, "activation": "hardswish"},
    "strided pointwise": {"channels": 40, "kernel": 1, "geometry": {"stride": 2}, "bits": 5},
    "first": {
        "channels": 3,
        "kernel": 7,
        "geometry": {"stride": 2, "padding": 3},
        "bits": 8,
        "activation": "sigmoid",
    },
    "grouped": {"channels": 48, "kernel": 3, "geometry": {"padding": 1, "groups": 3}, "bits": 4},
    "depthwise": {
        "channels": 24,
        "kernel": 3,
        "geometry": {"padding": 1, "groups": 24},
        "bits": 4,
        "activation": "silu",
    },
    "depthwise pruned": {
        "channels": 12,
        "kernel": 5,
        "geometry": {"padding": 2, "groups": 12},
        "bits": 8,
        "keep_out": torch.arange(0, 24, 3),
        "half_out": [3, 9],
    },
    "scale groups": {
        "channels": 80,
        "kernel": (1, 3),
        "geometry": {"padding": (0, 1)},
        "group_size": 32,
        "bits": 4,
    },
    "pruned": {
        "channels": 80,
        "kernel": 3,
        "geometry": {"padding": 1},
        "bits": 4,
        "keep_in": torch.arange(0, 80, 2),
        "half_in": torch.tensor([4, 6]),
        "half_out": [2],
        "keep_out": torch.arange(0, 24, 2),
    },
}


@pytest.mark.parametrize("act", [None, STATIC, ActQuant.dynamic("row")], ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(case: dict[str, Any], act: ActQuant | None) -> None:
    x = torch.randn(2, case["channels"], 8, 7).to(memory_format=torch.channels_last)
    layer = conv(outputs=24, act=act, **case)
    check(layer, x if act else x.half())


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "gelu"])
def test_int8_stays_int8(activation: str) -> None:
    weight = conv(64, 32, 3, {"padding": 1}, bits=4).packed_weight()
    layer = QuantConv2d(weight, act=STATIC, activation=activation, out=ActQuant.static(-1, 2))
    x, residual = int8(1, 64, 9, 9), int8(1, 32, 9, 9)
    check(layer, x)
    check(layer, x, residual=residual, residual_scale=0.02, residual_zero_point=3)


def test_extreme_values_are_exact() -> None:
    layer = linear(8, 4096, bits=8, act=ActQuant("static", 0.1, 127))
    check(layer, torch.full((2, 4096), -128, dtype=torch.int8))


def test_quantize_and_dequantize() -> None:
    x = torch.cat([torch.randn(5000) * 9, torch.tensor([float("nan"), float("inf"), -1e30, 0.25])])
    q = launch.quantize(x.to(DEVICE), 0.1, 3, 7)
    assert torch.equal(q.cpu(), torch.ops.defakeq.quantize(x, 0.1, 3, 7))
    y = launch.dequantize(q, 0.1, 3)
    assert torch.equal(y.cpu(), torch.ops.defakeq.dequantize(q.cpu(), 0.1, 3))


def test_views_and_empty_batches() -> None:
    layer = linear(20, 64, bits=4, act=STATIC)
    x = torch.randn(4, 6, 128)
    check(layer, x[:, ::2, 64:])
    check(layer, x[:, :, ::2])
    assert on_gpu(layer, torch.empty(0, 64)).shape == (0, 20)
    nchw = torch.randn(1, 64, 5, 5)
    check(conv(64, 8, 3, bits=4, act=STATIC), nchw)


def test_large_calls_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = conv(32, 8, 3, bits=4, act=ActQuant.dynamic("row"))
    x = torch.randn(5, 32, 6, 6)
    calls = []
    whole = run._run_part
    monkeypatch.setattr(run, "_run_part", lambda *a: (calls.append(a[3].images), whole(*a)))
    monkeypatch.setattr(run, "_MAX_ELEMENTS", 2 * 32 * 36)
    check(layer, x)
    assert calls == [2, 2, 1]


def test_two_runs_are_identical() -> None:
    layer = linear(24, 2048, bits=4)
    x = torch.randn(3, 2048).half()
    assert torch.equal(on_gpu(layer, x), on_gpu(layer, x))
