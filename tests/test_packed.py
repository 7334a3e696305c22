from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defakeq_kernels.packed import PackedWeight, Segment, pack_codes, row_bytes, unpack_codes
from defakeq_kernels.quantize import ActQuant, int8_out, quantize_weight

SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 16]


def random_indices(rng: np.random.Generator, limit: int, least: int) -> np.ndarray:
    count = int(rng.integers(least, limit + 1))
    return np.sort(rng.choice(limit, count, replace=False)).astype(np.int32)


def random_packed(rng: np.random.Generator) -> PackedWeight:
    """A valid weight with every stored value drawn at random: no quantizer is involved."""
    kind = "linear" if rng.random() < 0.4 else "conv2d"
    groups = int(rng.integers(2, 4)) if kind == "conv2d" and rng.random() < 0.3 else 1
    outs = groups * int(rng.integers(1, 9))
    ins = int(rng.integers(1, 14))
    spatial = () if kind == "linear" else tuple(int(n) for n in rng.integers(1, 4, 2))
    taps = int(np.prod(spatial, dtype=int))
    group_size = int(rng.choice([0, 4, 8])) if groups == 1 else 0
    in_index = half_in = None
    if groups == 1 and rng.random() < 0.5:
        in_index = random_indices(rng, ins, 1)
        rest = np.setdiff1d(np.arange(ins), in_index).astype(np.int32)
        if rest.size and rng.random() < 0.7:
            half_in = rest[: int(rng.integers(1, rest.size + 1))]
    count = ins if in_index is None else len(in_index)
    length = taps * count
    scales = 1 if group_size == 0 else taps * -(-count // group_size)
    kept = random_indices(rng, outs, 1)
    widths = rng.choice(WIDTHS, len(kept))
    segments = []
    for bits in rng.permutation(np.unique(widths)):
        index = kept[widths == bits]
        n = len(index)
        if bits == 16:
            segments.append(Segment(16, index, rng.standard_normal((n, length)).astype(np.float16)))
            continue
        codes = rng.integers(0, 1 << bits, (n, length)).astype(np.uint8)
        zero = rng.integers(-255, 256, (n, scales)).astype(np.int32)
        segments.append(
            Segment(
                int(bits),
                index,
                pack_codes(codes, int(bits)),
                rng.standard_normal((n, scales)).astype(np.float32),
                zero if rng.random() < 0.7 else None,
            )
        )
    half_weight = None
    if half_in is not None:
        half_weight = rng.standard_normal((len(kept), taps * len(half_in))).astype(np.float16)
    bias = rng.standard_normal(len(kept)).astype(np.float32) if rng.random() < 0.5 else None
    return PackedWeight(
        kind=kind,
        shape=(outs, ins, *spatial),
        segments=tuple(segments),
        groups=groups,
        group_size=group_size,
        in_index=in_index,
        half_in_index=half_in,
        half_in_weight=half_weight,
        bias=bias,
    ).validate()


def bit_at(row: np.ndarray, bit: int) -> int:
    return int(row[bit // 8]) >> (bit % 8) & 1


def naive_dequantize(w: PackedWeight) -> np.ndarray:
    """One weight at a time, one bit at a time, as the format is described."""
    outs, ins = w.shape[:2]
    kh, kw = w.shape[2:] if len(w.shape) == 4 else (1, 1)
    dense = np.zeros((outs, ins, kh, kw), np.float32)
    columns = list(range(ins)) if w.in_index is None else w.in_index.tolist()
    a_tap = -(-len(columns) // w.group_size) if w.group_size else 0
    stored = 0
    for s in w.segments:
        for row, n in enumerate(s.out_index.tolist()):
            for tap in range(kh * kw):
                for i, c in enumerate(columns):
                    k = tap * len(columns) + i
                    g = tap * a_tap + i // w.group_size if w.group_size else 0
                    if s.bits == 16:
                        value = np.float32(s.codes[row, k])
                    else:
                        code = sum(bit_at(s.codes[row], k * s.bits + b) << b for b in range(s.bits))
                        zero = 2 ** (s.bits - 1) if s.zero_point is None else s.zero_point[row, g]
                        level = (2 if s.bits == 1 else 1) * code - int(zero)
                        value = np.float32(level) * s.scale[row, g]
                    dense[n, c, tap // kw, tap % kw] = value
                if w.half_in_index is not None:
                    for h, c in enumerate(w.half_in_index.tolist()):
                        at = tap * len(w.half_in_index) + h
                        dense[n, c, tap // kw, tap % kw] = np.float32(w.half_in_weight[stored, at])
            stored += 1
    return dense.reshape(w.shape)


def assert_same(a: PackedWeight, b: PackedWeight) -> None:
    assert a.describe() == b.describe()
    ta, tb = a.to_tensors("x"), b.to_tensors("x")
    assert ta.keys() == tb.keys()
    for key, array in ta.items():
        assert array.dtype == tb[key].dtype
        np.testing.assert_array_equal(array, tb[key])


@given(SEEDS, st.integers(1, 8), st.integers(0, 9), st.integers(0, 70))
def test_pack_is_inverted_by_unpack(seed: int, bits: int, rows: int, count: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count)).astype(np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (rows, row_bytes(count, bits))
    np.testing.assert_array_equal(unpack_codes(packed, bits, count), codes)
    for row in range(rows):
        stream = sum(int(c) << (k * bits) for k, c in enumerate(codes[row]))
        assert packed[row].tobytes() == stream.to_bytes(row_bytes(count, bits), "little")


@given(SEEDS, st.integers(1, 8), st.integers(1, 5), st.integers(1, 40))
def test_unpack_is_inverted_by_pack(seed: int, bits: int, rows: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (rows, row_bytes(count, bits))).astype(np.uint8)
    packed[:, -1] &= 255 >> (8 * packed.shape[1] - count * bits)
    np.testing.assert_array_equal(pack_codes(unpack_codes(packed, bits, count), bits), packed)


def test_packing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 32, (11, 9)).astype(np.uint8)
    whole = pack_codes(codes, 5)
    monkeypatch.setattr("defakeq_kernels.codes._PACK_CHUNK", 20)
    np.testing.assert_array_equal(pack_codes(codes, 5), whole)
    np.testing.assert_array_equal(unpack_codes(whole, 5, 9), codes)


def test_pack_refuses_by_name() -> None:
    codes = np.array([[4]], np.uint8)
    with pytest.raises(ValueError, match="codes: found 4; accepted is 0 to 3"):
        pack_codes(codes, 2)
    with pytest.raises(ValueError, match="bits: found 9"):
        pack_codes(codes, 9)
    with pytest.raises(ValueError, match="codes: found int64"):
        pack_codes(codes.astype(np.int64), 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"packed: found uint8 with shape \(1, 1\)"):
        unpack_codes(codes, 4, 3)


@settings(deadline=None)
@given(SEEDS)
def test_dequantize_agrees_with_the_description(seed: int) -> None:
    w = random_packed(np.random.default_rng(seed))
    np.testing.assert_array_equal(w.dequantize(), naive_dequantize(w))


@settings(deadline=None)
@given(SEEDS)
def test_tensors_give_the_weight_back(seed: int) -> None:
    w = random_packed(np.random.default_rng(seed))
    tensors = w.to_tensors("a.b")
    assert_same(PackedWeight.from_tensors("a.b", tensors, w.describe()), w)
    zeros = 0
    for s in w.segments:
        if s.zero_point is not None:
            narrow = s.bits < 8 and s.zero_point.min() >= -128 and s.zero_point.max() <= 127
            zeros += (3 if narrow else 2) * s.zero_point.size
    implied = 4 * max(s.count for s in w.segments) if w.stored_out == w.shape[0] else 0
    assert w.nbytes == sum(a.nbytes for a in tensors.values()) + zeros + implied


@settings(deadline=None)
@given(SEEDS)
def test_the_spec_for_the_native_packer_has_every_field(seed: int) -> None:
    w = random_packed(np.random.default_rng(seed))
    act = ActQuant.static(-1, 3)
    spec = w.spec(act.describe(), "relu", int8_out(act))
    assert spec["act"]["mode"] == "static"
    assert spec["out"]["zero_point"] == act.zero_point
    assert w.spec()["act"]["mode"] == "none"
    assert w.spec()["out"]["dtype"] == "float32"
    for given_segment, s in zip(spec["segments"], w.segments, strict=True):
        assert given_segment["codes"].dtype == (np.uint16 if s.bits == 16 else np.uint8)
        assert given_segment["codes"].tobytes() == s.codes.tobytes()
    if w.half_in_weight is not None:
        assert spec["half_in_weight"].dtype == np.uint16


def small() -> PackedWeight:
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((6, 9, 3, 1)).astype(np.float32)
    return quantize_weight(
        weight,
        kind="conv2d",
        bits=[3, 3, 3, 5, 16, 5],
        keep_in=[0, 1, 2, 4, 5, 7],
        half_in=[2, 7],
        keep_out=[0, 2, 3, 4, 5],
        group_size=4,
        bias=np.arange(6, dtype=np.float32),
    )


SEGMENT_FAULTS: list[tuple[int, str, Any, str]] = [
    (0, "bits", 9, r"w\.seg0\.bits"),
    (0, "bits", 4, r"w\.seg0\.codes"),
    (0, "out_index", np.array([2, 0], np.int32), r"w\.seg0\.out_index"),
    (0, "out_index", np.array([0, 6], np.int32), r"w\.seg0\.out_index"),
    (0, "out_index", np.array([0, 2]), r"w\.seg0\.out_index"),
    (0, "out_index", np.array([], np.int32), r"w\.seg0\.out_index"),
    (1, "out_index", np.array([2, 5], np.int32), r"w\.seg1\.out_index"),
    (0, "codes", np.full((2, 5), 255, np.uint8), r"w\.seg0\.codes"),
    (0, "scale", None, r"w\.seg0\.scale"),
    (0, "scale", np.full((2, 3), np.inf, np.float32), r"w\.seg0\.scale"),
    (0, "scale", np.ones((2, 2), np.float32), r"w\.seg0\.scale"),
    (1, "zero_point", np.full((2, 3), 256, np.int32), r"w\.seg1\.zero_point"),
    (1, "zero_point", np.full((2, 3), -256, np.int32), r"w\.seg1\.zero_point"),
    (2, "scale", np.ones((1, 3), np.float32), r"w\.seg2\.scale"),
    (2, "codes", np.full((1, 12), np.nan, np.float16), r"w\.seg2\.codes"),
]


@pytest.mark.parametrize(("i", "field", "value", "named"), SEGMENT_FAULTS)
def test_validate_names_the_segment_field(i: int, field: str, value: Any, named: str) -> None:
    w = small()
    segments = list(w.segments)
    segments[i] = replace(segments[i], **{field: value})
    with pytest.raises(ValueError, match=rf"^{named}: found .*; accepted is "):
        replace(w, segments=tuple(segments)).validate("w")


LAYER_FAULTS: list[tuple[str, Any]] = [
    ("kind", "conv3d"),
    ("shape", (6, 9)),
    ("shape", (6, 0, 3, 1)),
    ("stride", (0, 1)),
    ("padding", (-1, 0)),
    ("dilation", (1, 5000)),
    ("groups", 4),
    ("group_size", 6),
    ("in_index", None),
    ("in_index", np.array([0, 1, 1, 5], np.int32)),
    ("half_in_index", np.array([2, 9], np.int32)),
    ("half_in_index", np.array([2, 5], np.int32)),
    ("half_in_weight", None),
    ("half_in_weight", np.zeros((5, 5), np.float16)),
    ("bias", np.zeros(6, np.float32)),
    ("bias", np.full(5, np.nan, np.float32)),
]


@pytest.mark.parametrize(("field", "value"), LAYER_FAULTS)
def test_validate_names_the_layer_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^w\.{field}: found .*; accepted is "):
        replace(small(), **{field: value}).validate("w")


def test_validate_refuses_pruned_inputs_of_groups() -> None:
    w = quantize_weight(np.ones((4, 2, 1, 1), np.float32), kind="conv2d", groups=2)
    with pytest.raises(ValueError, match=r"w\.in_index: found an index with groups 2"):
        replace(w, in_index=np.array([0], np.int32)).validate("w")
    with pytest.raises(ValueError, match=r"w\.group_size: found 4; accepted is 0 when groups > 1"):
        replace(w, group_size=4).validate("w")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 4])
def test_quantized_weights_are_near(bits: int, symmetric: bool, group_size: int | None) -> None:
    """No row is worse than the plain grid from its minimum to its maximum."""
    rng = np.random.default_rng(bits)
    weight = rng.standard_normal((16, 24)).astype(np.float32)
    weight *= np.float32(10.0) ** rng.integers(-3, 4, (16, 1)).astype(np.float32)
    w = quantize_weight(
        weight, kind="linear", bits=bits, symmetric=symmetric, group_size=group_size
    )
    got = w.dequantize()
    if symmetric:
        assert all(s.zero_point is None for s in w.segments)
        low = -np.abs(weight).max(axis=1, keepdims=True)
        high = -low
    else:
        low, high = weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True)
    step = (high - low) / (2**bits - 1)
    plain = low + np.rint((weight - low) / step) * step
    # The plain grid's zero is not an integer level; moving it there costs up to half a step.
    bound = ((np.abs(plain - weight) + step / 2) ** 2).mean(axis=1)
    assert (((got - weight) ** 2).mean(axis=1) <= bound).all()


def test_the_range_search_helps_gaussian_rows() -> None:
    weight = np.random.default_rng(3).standard_normal((64, 512)).astype(np.float32)
    for bits, most in ((1, 0.37), (2, 0.16), (3, 0.045), (4, 0.0125), (8, 8e-5)):
        got = quantize_weight(weight, kind="linear", bits=bits).dequantize()
        assert ((got - weight) ** 2).mean() < most, bits


def test_rows_far_from_zero_keep_their_resolution() -> None:
    weight = (1 + 0.01 * np.random.default_rng(4).standard_normal((8, 64))).astype(np.float32)
    for bits in (2, 4, 8):
        w = quantize_weight(weight, kind="linear", bits=bits)
        error = np.abs(w.dequantize() - weight).max()
        assert error < 0.03
        (segment,) = w.segments
        assert segment.zero_point is not None
        codes = unpack_codes(segment.codes, bits, 64).astype(int)
        assert np.abs(codes - segment.zero_point).max() <= 255


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, -1e30, 3e38])
def test_constant_rows_are_exact_to_rounding(bits: int, value: float) -> None:
    weight = np.full((2, 5), value, np.float32)
    got = quantize_weight(weight, kind="linear", bits=bits).dequantize()
    np.testing.assert_allclose(got, weight, rtol=1e-6)


@settings(deadline=None)
@given(SEEDS)
def test_quantize_stores_what_was_asked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outs, ins = int(rng.integers(1, 12)), int(rng.integers(2, 12))
    weight = rng.standard_normal((outs, ins, 3, 2)).astype(np.float32)
    widths = rng.choice(WIDTHS, outs)
    keep_out = random_indices(rng, outs, 1)
    keep_in = random_indices(rng, ins, 2)
    half_in = keep_in[: int(rng.integers(0, len(keep_in)))]
    half_out = keep_out[: int(rng.integers(0, len(keep_out) + 1))]
    bias = rng.standard_normal(outs).astype(np.float32)
    w = quantize_weight(
        weight,
        kind="conv2d",
        bits=widths,
        keep_out=rng.permutation(keep_out),
        keep_in=keep_in,
        half_out=half_out,
        half_in=half_in,
        bias=bias,
        stride=2,
        padding=(1, 0),
    )
    assert w.stride == (2, 2)
    assert w.padding == (1, 0)
    assert sorted(w.out_index) == keep_out.tolist()
    np.testing.assert_array_equal(w.bias, bias[w.out_index])
    for s in w.segments:
        for n in s.out_index:
            assert s.bits == (16 if n in half_out else widths[n])
    got = w.dequantize()
    halves = weight.astype(np.float16).astype(np.float32)
    pruned = np.ones_like(weight, bool)
    pruned[np.ix_(keep_out, keep_in)] = False
    assert not got[pruned].any()
    np.testing.assert_array_equal(got[np.ix_(keep_out, half_in)], halves[np.ix_(keep_out, half_in)])
    np.testing.assert_array_equal(got[np.ix_(half_out, keep_in)], halves[np.ix_(half_out, keep_in)])


WEIGHT = np.ones((4, 8), np.float32)
QUANTIZE_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "conv1d"}, "kind"),
    ({"kind": "conv2d"}, "weight"),
    ({"weight": np.ones((4, 8), np.int32)}, "weight"),
    ({"weight": np.full((4, 8), np.nan, np.float32)}, "weight"),
    ({"weight": np.full((4, 8), 7e4, np.float32), "bits": 16}, "weight"),
    ({"weight": np.zeros((0, 8), np.float32)}, "weight"),
    ({"bits": 9}, "bits"),
    ({"bits": 0}, "bits"),
    ({"bits": 2.5}, "bits"),
    ({"bits": [4, 4]}, "bits"),
    ({"group_size": 6}, "group_size"),
    ({"group_size": 0}, "group_size"),
    ({"keep_out": []}, "keep_out"),
    ({"keep_out": [0, 4]}, "keep_out"),
    ({"keep_out": [-1]}, "keep_out"),
    ({"keep_out": [1, 1]}, "keep_out"),
    ({"keep_in": [0.5]}, "keep_in"),
    ({"keep_in": [0, 1], "half_in": [0, 1]}, "keep_in"),
    ({"keep_in": [0, 1], "half_in": [2]}, "half_in"),
    ({"keep_out": [0, 1], "half_out": [2]}, "half_out"),
    ({"bias": np.ones(3, np.float32)}, "bias"),
    ({"bias": np.full(4, np.inf, np.float32)}, "bias"),
    ({"groups": 2, "keep_in": [0]}, "keep_in, half_in"),
    ({"stride": (1, 2, 3)}, "stride"),
]


@pytest.mark.parametrize(("arguments", "named"), QUANTIZE_FAULTS)
def test_quantize_names_the_argument(arguments: dict[str, Any], named: str) -> None:
    call = {"weight": WEIGHT, "kind": "linear", **arguments}
    with pytest.raises(ValueError, match=rf"^{named}: found .*accepted is "):
        quantize_weight(call.pop("weight"), **call)


@given(
    st.floats(-1e6, 1e6, width=32),
    st.floats(-1e6, 1e6, width=32),
    st.integers(4, 8),
)
def test_static_activations_represent_zero_and_their_range(a: float, b: float, bits: int) -> None:
    low, high = min(a, b), max(a, b)
    q = ActQuant.static(low, high, bits)
    assert q.qmin == -(2 ** (bits - 1))
    assert q.qmax == 2 ** (bits - 1) - 1
    assert q.qmin <= q.zero_point <= q.qmax
    x = np.linspace(low, high, 33, dtype=np.float32)
    got = q.quantize(np.append(x, np.float32(0)))
    assert got.min() >= q.qmin
    assert got.max() <= q.qmax
    assert got[-1] == q.zero_point
    assert np.abs(q.dequantize(got)[:-1] - x).max() <= q.scale * 1.001


def test_static_quantization_of_extremes() -> None:
    q = ActQuant.static(-1, 2)
    got = q.quantize(np.array([np.inf, -np.inf, np.nan, 1e38, -1e38], np.float32))
    assert got.tolist() == [127, -128, -128, 127, -128]
    # Halves round to even: 0.5, 1.5 and 2.5 steps.
    one = ActQuant("static", 1.0, 0, 8)
    assert one.quantize(np.array([0.5, 1.5, 2.5, -0.5], np.float32)).tolist() == [0, 2, 2, 0]
    assert ActQuant.static(0, 0).scale == 1.0


def test_dynamic_activations() -> None:
    assert ActQuant.dynamic().describe() == {
        "mode": "dynamic_tensor",
        "scale": 1.0,
        "zero_point": 0,
        "bits": 8,
    }
    assert ActQuant.dynamic("row").mode == "dynamic_row"
    with pytest.raises(ValueError, match="per: found 'column'"):
        ActQuant.dynamic("column")
    with pytest.raises(ValueError, match="mode: found 'dynamic_row'"):
        ActQuant.dynamic("row").quantize(np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("still",), "mode"),
        (("static", 0.0), "scale"),
        (("static", float("nan")), "scale"),
        (("static", 1e39), "scale"),
        (("static", 1.0, 128), "zero_point"),
        (("static", 1.0, 8, 4), "zero_point"),
        (("static", 1.0, 0, 3), "bits"),
        (("dynamic_row", 1.0, 1), "mode"),
    ],
)
def test_activation_parameters_are_checked(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: found "):
        ActQuant(*arguments)
    with pytest.raises(ValueError, match="low, high: found"):
        ActQuant.static(1, 0)
