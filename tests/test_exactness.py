"""Every instruction set and thread count returns the reference's bytes, extreme values included."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import ZEROS, Case, cases, int8_of, make_act, make_weight

from defakeq_kernels import _core, reference
from defakeq_kernels.quantize import ACTIVATIONS, ActQuant

torch = pytest.importorskip("torch")

from defakeq_kernels import ops  # noqa: E402

THREADS = (1, 2, 3)
UNIT = 2.0**-24


def isas() -> list[str]:
    return list(_core.cpu_info()["isa"]["allowed"])


@contextlib.contextmanager
def everywhere():
    """A function that yields (isa, threads) having set both; all is put back at the end."""
    threads = _core.get_num_threads()

    def settings_of():
        for isa in isas():
            _core.set_isa(isa)
            for count in THREADS:
                _core.set_num_threads(count)
                yield isa, count

    try:
        yield settings_of
    finally:
        _core.set_isa(None)
        _core.set_num_threads(threads)


def assert_same(found: np.ndarray, expected: np.ndarray, where: str) -> None:
    assert found.dtype == expected.dtype, where
    assert found.shape == expected.shape, where
    if found.tobytes() == expected.tobytes():
        return
    different = found != expected
    at = tuple(np.argwhere(different)[0]) if different.any() else ()
    detail = f"{found[at]!r} for {expected[at]!r} at {at}" if at else "in signs of zeros"
    pytest.fail(f"{where}: {int(different.sum())} of {found.size} differ: {detail}")


@settings(max_examples=250, deadline=None)
@given(cases())
def test_any_layer_everywhere(case: Case) -> None:
    expected, blob = case.expected(), case.blob()
    with everywhere() as each:
        for isa, threads in each():
            assert_same(case.native(blob), expected, f"{isa}, {threads} threads")


# Layers large enough for several threads, one a strategy and more.
_LARGE = {
    "gemm": ("linear", (96, 70), {}, (90,)),
    "gemm of many rows": ("linear", (16, 33), {}, (515,)),
    "gemv": ("linear", (300, 520), {}, (1,)),
    "gemv of 4 rows": ("linear", (130, 260), {}, (4,)),
    "gemm, group scales": ("linear", (48, 100), {"group_size": 32}, (30,)),
    "gemv, group scales": ("linear", (300, 520), {"group_size": 64}, (1,)),
    "gemv of 3 rows, group scales": ("linear", (70, 330), {"group_size": 32}, (3,)),
    "gemv, short groups": ("linear", (130, 300), {"group_size": 12}, (2,)),
    "3x3, group scales": (
        "conv2d",
        (20, 40, 3, 3),
        {"group_size": 16, "padding": (1, 1)},
        (1, 7, 7),
    ),
    "pointwise": ("conv2d", (40, 37, 1, 1), {}, (2, 9, 9)),
    "pointwise, stride": ("conv2d", (40, 37, 1, 1), {"stride": (2, 2)}, (2, 15, 15)),
    "3x3": ("conv2d", (37, 24, 3, 3), {"padding": (1, 1)}, (1, 12, 11)),
    "3x3 by Winograd": ("conv2d", (40, 36, 3, 3), {"padding": (1, 1)}, (2, 17, 19)),
    "3x3 dilated": ("conv2d", (20, 24, 3, 3), {"padding": (2, 2), "dilation": (2, 2)}, (2, 9, 8)),
    "first layer": ("conv2d", (32, 3, 3, 3), {"stride": (2, 2), "padding": (1, 1)}, (1, 33, 31)),
    "grouped": ("conv2d", (24, 6, 3, 3), {"groups": 4, "padding": (1, 1)}, (1, 11, 9)),
    "depthwise 3x3": ("conv2d", (75, 1, 3, 3), {"groups": 75, "padding": (1, 1)}, (2, 13, 12)),
    "depthwise 5x5": ("conv2d", (37, 1, 5, 5), {"groups": 37, "padding": (2, 2)}, (1, 17, 16)),
    "depthwise 7x7": ("conv2d", (37, 1, 7, 7), {"groups": 37, "padding": (3, 3)}, (1, 12, 13)),
    "depthwise 3x3, stride": (
        "conv2d",
        (64, 1, 3, 3),
        {"groups": 64, "padding": (1, 1), "stride": (2, 2)},
        (1, 31, 30),
    ),
}


def large_case(name: str, bits: int, mode: str, fill: str, seed: int) -> Case:
    kind, shape, geometry, lead = _LARGE[name]
    rng = np.random.default_rng(seed)
    widths = np.full(shape[0], bits)
    zero_points = "random" if fill == "random" else ("highest" if fill == "zeros" else "lowest")
    weight = make_weight(rng, kind, shape, widths, fill, zero_points, **geometry)
    act = make_act(rng, mode, 8, "high" if fill == "zeros" else "low")
    full = (*lead, shape[1] * weight.groups)
    if mode == "static":
        x = int8_of(rng, "extremes" if fill != "random" else "random", full, -128, 127)
    else:
        x = rng.standard_normal(full).astype(np.float32)
    return Case(weight, act, "hardswish", None, x, None, {})


@pytest.mark.parametrize("name", list(_LARGE))
@pytest.mark.parametrize("bits", [8, 5, 4, 2, 1])
def test_large_layers_everywhere(name: str, bits: int) -> None:
    for fill in ("random", "zeros", "ones"):
        case = large_case(name, bits, "static", fill, seed=bits)
        expected, blob = case.expected(), case.blob()
        with everywhere() as each:
            for isa, threads in each():
                where = f"{fill}, {isa}, {threads} threads"
                assert_same(case.native(blob), expected, where)


@pytest.mark.parametrize("name", list(_LARGE))
@pytest.mark.parametrize(("bits", "mode"), [(4, "none"), (16, "static"), (3, "row"), (6, "tensor")])
def test_large_float_layers_everywhere(name: str, bits: int, mode: str) -> None:
    case = large_case(name, bits, mode, "random", seed=bits)
    expected, blob = case.expected(), case.blob()
    with everywhere() as each:
        for isa, threads in each():
            assert_same(case.native(blob), expected, f"{isa}, {threads} threads")


@pytest.mark.parametrize("name", list(_LARGE))
def test_int8_to_int8_everywhere(name: str) -> None:
    case = large_case(name, 8, "static", "random", seed=3)
    out = ActQuant.static(-2.0, 5.0)
    for activation in ACTIVATIONS:
        case = replace(case, out=out, activation=activation)
        expected, blob = case.expected(), case.blob()
        with everywhere() as each:
            for isa, threads in each():
                where = f"{activation}, {isa}, {threads} threads"
                assert_same(case.native(blob), expected, where)


@pytest.mark.parametrize("mode", ["static", "none", "row", "tensor"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("halves", [None, 1, 3, 7, 19])
def test_depthwise_with_pruned_and_half_precision_outputs(
    mode: str, stride: int, halves: int | None
) -> None:
    channels, h, w = 170, 9, 13
    rng = np.random.default_rng(stride)
    geometry = {"groups": channels, "padding": (1, 1), "stride": (stride, stride)}
    # 4 bits, 8 bits, half precision or nothing; or so many in half precision and none pruned
    widths = rng.choice([4, 8, 16, 0], channels, p=[0.2, 0.2, 0.2, 0.4])
    if halves is not None:
        widths = rng.choice([4, 8], channels)
        widths[rng.choice(channels, halves, replace=False)] = 16
    weight = make_weight(rng, "conv2d", (channels, 1, 3, 3), widths, "random", "random", **geometry)
    shape = (2, h, w, channels)
    numbers = rng.standard_normal(shape).astype(np.float32)
    inputs = [numbers]
    if mode == "static":
        inputs.append(int8_of(rng, "extremes", shape, -128, 127))
    act = make_act(rng, mode, 8, "middle")
    near = int8_of(rng, "random", (2, -(-h // stride), -(-w // stride), channels), -128, 127)
    added = {"residual": near, "residual_scale": 0.03, "residual_zero_point": 5}
    for x in inputs:
        for out, residual in ((None, {}), (ActQuant.static(-2.0, 5.0), added if halves else {})):
            case = Case(weight, act, "relu", out, x, None, residual)
            expected, blob = case.expected(), case.blob()
            with everywhere() as each:
                for isa, threads in each():
                    where = f"{x.dtype}, {out}, {isa}, {threads} threads"
                    assert_same(case.native(blob), expected, where)


@pytest.mark.parametrize("zero", ["random", 0, 255])
@pytest.mark.parametrize("size", [(150, 3, 4), (24, 8, 9), (64, 16, 7), (9, 5, 17)])
def test_depthwise_zero_points_among_the_codes(size: tuple[int, int, int], zero: str | int) -> None:
    channels, h, w = size
    rng = np.random.default_rng(channels)
    geometry: dict[str, Any] = {"groups": channels, "padding": (1, 1)}
    widths = np.full(channels, 8)
    weight = make_weight(rng, "conv2d", (channels, 1, 3, 3), widths, "random", "inside", **geometry)
    (segment,) = weight.segments
    assert segment.zero_point is not None
    assert segment.scale is not None
    if zero != "random":
        segment.zero_point[::2] = zero
    x = int8_of(rng, "extremes", (2, h, w, channels), -128, 127)
    act, out = make_act(rng, "static", 8, "middle"), ActQuant.static(-2.0, 5.0)
    for largest in (None, 1e6):  # with the second, results lie past int32
        if largest is not None:
            segment.scale[-1] = largest
        for activation in ("none", "relu", "hardswish"):
            case = Case(weight, act, activation, out, x, None, {})
            expected, blob = case.expected(), case.blob()
            with everywhere() as each:
                for isa, threads in each():
                    where = f"{largest}, {activation}, {isa}, {threads} threads"
                    assert_same(case.native(blob), expected, where)


@pytest.mark.parametrize("name", ["gemm", "gemv", "3x3", "depthwise 3x3", "first layer"])
def test_torch_ops_return_the_same_bytes(name: str) -> None:
    case = large_case(name, 4, "static", "random", seed=11)
    expected = case.expected()
    packed = torch.empty(case.blob().size, dtype=torch.uint8)
    packed.numpy()[:] = case.blob()
    x = torch.from_numpy(case.x)
    w = case.weight
    before = torch.get_num_threads()
    try:
        for isa in isas():
            _core.set_isa(isa)
            for threads in THREADS:
                torch.set_num_threads(threads)
                if w.kind == "linear":
                    y = ops.linear(x, packed, w.shape[0]).numpy()
                else:
                    geometry = (w.shape[2:], w.stride, w.padding, w.dilation)
                    for nchw in (x.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2).contiguous()):
                        y = ops.conv2d(nchw, packed, w.shape[0], *geometry)
                        y = y.permute(0, 2, 3, 1).contiguous().numpy()
                        assert_same(y, expected, f"{isa}, {threads} threads")
                assert_same(y, expected, f"{isa}, {threads} threads")
    finally:
        _core.set_isa(None)
        torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 3000),
    st.integers(4, 8),
    st.sampled_from(ZEROS),
    st.floats(1e-30, 1e30),
)
def test_quantize_and_dequantize_everywhere(
    seed: int, count: int, bits: int, zero: str, size: float
) -> None:
    rng = np.random.default_rng(seed)
    q = make_act(rng, "static", bits, zero)
    assert q is not None
    x = (rng.standard_normal(count) * size).astype(np.float32)
    ties = (rng.integers(-300, 300, count) + 0.5) * q.scale
    x = np.where(rng.random(count) < 0.3, ties, x).astype(np.float32)
    x[rng.random(count) < 0.02] = np.inf
    x[rng.random(count) < 0.02] = -np.inf
    expected = reference.quantize(x, q)
    restored = reference.dequantize(expected, q)
    try:
        for isa in isas():
            _core.set_isa(isa)
            found = ops.quantize(torch.from_numpy(x), q.scale, q.zero_point, bits)
            assert_same(found.numpy(), expected, isa)
            back = ops.dequantize(found, q.scale, q.zero_point)
            assert_same(back.numpy(), restored, isa)
    finally:
        _core.set_isa(None)


def test_values_that_are_no_numbers_come_out_lowest_everywhere() -> None:
    x = torch.tensor([float("nan"), 1.0, float("inf"), -float("inf")] * 9)
    q = ActQuant("static", 0.5, 3, 6)
    expected = reference.quantize(x.numpy(), q)
    assert expected[0] == q.qmin
    try:
        for isa in isas():
            _core.set_isa(isa)
            assert_same(ops.quantize(x, q.scale, q.zero_point, q.bits).numpy(), expected, isa)
    finally:
        _core.set_isa(None)


# The reference itself


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_fma_rounds_once(seed: int) -> None:
    from fractions import Fraction

    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal(2).astype(np.float32)
    product = np.float64(a) * np.float64(b)
    near = -product * (1 + int(rng.integers(-3, 4)) * 2.0 ** -int(rng.integers(20, 60)))
    tiny = np.float32(2.0 ** -int(rng.integers(30, 120)))
    for c in (np.float32(near), np.float32(rng.standard_normal()), tiny):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        found = reference.fma(a, b, c)
        # nearest: no neighbour is closer, and of two equally close ones the even
        error = abs(Fraction(float(found)) - exact)
        for towards in (-np.inf, np.inf):
            other = np.nextafter(np.float32(found), np.float32(towards))
            distance = abs(Fraction(float(other)) - exact)
            assert error <= distance
            if error == distance:
                assert int(np.float32(found).view(np.int32)) % 2 == 0


def test_reference_accumulators_are_plain_sums() -> None:
    rng = np.random.default_rng(5)
    weight = make_weight(
        rng, "linear", (6, 50), np.full(6, 8), "extremes", "highest", group_size=16
    )
    act = ActQuant("static", 1.0, -128, 8)
    x = int8_of(rng, "extremes", (3, 50), -128, 127)
    (sums,) = reference.accumulators(weight, x, act)
    codes = weight.segments[0].codes.astype(np.int64)
    for row in range(3):
        for n in range(6):
            for g in range(4):
                part = slice(16 * g, min(16 * g + 16, 50))
                total = sum(
                    (int(c) - 255) * (int(v) + 128)
                    for c, v in zip(codes[n, part], x[row, part], strict=True)
                )
                assert sums[row, n, g] == total


# Against float64


def float64_result(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The layer in float64 from the dequantized weight, and the bound of the float32 error."""
    w = case.weight
    f64 = torch.float64
    dense = torch.from_numpy(w.dequantize()).to(f64)
    ints = dense.clone()
    halves = torch.zeros_like(dense)
    if w.half_in_index is not None:
        at = torch.from_numpy(w.half_in_index).long()
        halves[:, at] = dense[:, at]
        ints[:, at] = 0
    bias = torch.zeros(w.shape[0], dtype=f64)
    if w.bias is not None:
        bias[torch.from_numpy(w.out_index).long()] = torch.from_numpy(w.bias).to(f64)
    x = torch.from_numpy(restored_input(case))
    raw = torch.zeros(x.shape, dtype=f64)
    if w.half_in_index is not None:
        values = case.half_input
        if values is None:
            values = case.x[..., w.half_in_index]
        raw[..., at] = torch.from_numpy(values).to(f64)

    def apply(weight: Any, value: Any) -> Any:
        if w.kind == "linear":
            return value @ weight.T
        nchw = torch.nn.functional.conv2d(
            value.permute(0, 3, 1, 2), weight, None, w.stride, w.padding, w.dilation, w.groups
        )
        return nchw.permute(0, 2, 3, 1)

    y = apply(ints, x) + apply(halves, raw) + bias
    size = apply(ints.abs(), x.abs()) + apply(halves.abs(), raw.abs()) + bias.abs()
    # One rounding a step of the longest chain of fma, and those of scales and conversions.
    steps = w.reduction + w.taps * w.half_in_count + w.scale_groups + 8
    error = size * steps * UNIT * 1.01
    residual = case.residual.get("residual")
    if residual is not None:
        r = torch.from_numpy(residual).to(f64)
        if residual.dtype == np.int8:
            scale = float(np.float32(case.residual["residual_scale"]))
            r = (r - case.residual["residual_zero_point"]) * scale
        y = y + r
        error = error + (size + r.abs()) * 4 * UNIT
    slope, own = _ACTIVATION_ERRORS[case.activation]
    error = error * slope + own * (1 + y.abs())
    y = _FUNCTIONS[case.activation](y)
    pruned = torch.ones(w.shape[0], dtype=torch.bool)
    pruned[torch.from_numpy(w.out_index).long()] = False
    y[..., pruned] = 0
    return y.numpy(), error.numpy()


# The largest slope, and the error of our own polynomials relative to 1 + |y|.
_ACTIVATION_ERRORS = {
    "none": (1.0, 0.0),
    "relu": (1.0, 0.0),
    "relu6": (1.0, 0.0),
    "hardswish": (1.5, 2.0**-21),
    "silu": (1.1, 2.0**-20),
    "gelu": (1.13, 2.0**-20),
    "sigmoid": (0.25, 2.0**-20),
}
_FUNCTIONS = {
    "none": lambda y: y,
    "relu": torch.nn.functional.relu,
    "relu6": torch.nn.functional.relu6,
    "hardswish": torch.nn.functional.hardswish,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
}


def restored_input(case: Case) -> np.ndarray:
    """What the layer reads, as float64: the quantized input's exact values."""
    x, act = case.x, case.act
    if act is None:
        return x.astype(np.float64)
    if act.mode == "static":
        q = x if x.dtype == np.int8 else reference.quantize(x, act)
        return (q.astype(np.float64) - act.zero_point) * float(np.float32(act.scale))
    if x.size == 0:
        return x.astype(np.float64)
    axes = tuple(range(1, x.ndim)) if case.weight.kind == "conv2d" else (x.ndim - 1,)
    largest = np.abs(x).max(axis=axes if act.mode == "dynamic_row" else None, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    levels = np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127)
    return levels.astype(np.float64) * scale.astype(np.float64)


@settings(max_examples=120, deadline=None)
@given(cases())
def test_within_the_bound_of_float64(case: Case) -> None:
    found = case.native(case.blob())
    y, error = float64_result(case)
    assert found.shape == y.shape
    if case.out is None:
        assert np.all(np.abs(found - y) <= error)
        return
    steps = float(np.float32(case.out.scale))
    ideal = np.clip(y / steps + case.out.zero_point, case.out.qmin, case.out.qmax)
    slack = 0.5 + (error + np.abs(y) * 8 * UNIT) / steps
    assert np.all(np.abs(found - ideal) <= slack)
