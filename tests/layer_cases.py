"""Layers, inputs and settings for tests of exactness, drawn at random with extreme values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from defakeq_kernels import _core, reference
from defakeq_kernels.packed import PackedWeight, Segment, pack_codes, row_bytes, scale_groups
from defakeq_kernels.quantize import ACTIVATIONS, ActQuant, int8_out

FILLS = ("random", "extremes", "zeros", "ones")


@dataclass
class Case:
    """One call of an operator."""

    weight: PackedWeight
    act: ActQuant | None
    activation: str
    out: ActQuant | None
    x: np.ndarray
    half_input: np.ndarray | None
    residual: dict[str, Any]

    def blob(self) -> np.ndarray:
        return _core.pack_layer(
            self.weight.spec(
                None if self.act is None else self.act.describe(),
                self.activation,
                None if self.out is None else int8_out(self.out),
            )
        )

    def expected(self) -> np.ndarray:
        return getattr(reference, self.weight.kind)(
            self.weight,
            self.x,
            act=self.act,
            activation=self.activation,
            out=self.out,
            half_input=self.half_input,
            **self.residual,
        )

    def native(self, blob: np.ndarray) -> np.ndarray:
        op = getattr(_core, self.weight.kind)
        return op(blob, self.x, half_input=self.half_input, **self.residual)


def codes_of(rng: np.random.Generator, fill: str, shape: tuple[int, int], bits: int) -> np.ndarray:
    top = (1 << bits) - 1
    if fill == "zeros":
        return np.zeros(shape, np.uint8)
    if fill == "ones":
        return np.full(shape, top, np.uint8)
    if fill == "extremes":
        return (rng.integers(0, 2, shape) * top).astype(np.uint8)
    return rng.integers(0, top + 1, shape).astype(np.uint8)


def int8_of(rng: np.random.Generator, fill: str, shape: Any, low: int, high: int) -> np.ndarray:
    if fill == "zeros":
        return np.full(shape, low, np.int8)
    if fill == "ones":
        return np.full(shape, high, np.int8)
    if fill == "extremes":
        return np.where(rng.integers(0, 2, shape), low, high).astype(np.int8)
    return rng.integers(low, high + 1, shape).astype(np.int8)


def make_weight(
    rng: np.random.Generator,
    kind: str,
    shape: tuple[int, ...],
    widths: np.ndarray,
    fill: str,
    zero_points: str,
    *,
    group_size: int = 0,
    groups: int = 1,
    in_index: np.ndarray | None = None,
    half_in_index: np.ndarray | None = None,
    bias: bool = True,
    **geometry: Any,
) -> PackedWeight:
    """A layer in the storage format; widths: one an output, 0 for a pruned one."""
    taps = int(np.prod(shape[2:], dtype=np.int64))
    ins = shape[1] if in_index is None else len(in_index)
    reduction, g = taps * ins, scale_groups(taps, ins, group_size)
    segments = []
    for bits in np.unique(widths[widths > 0]):
        bits = int(bits)
        index = np.flatnonzero(widths == bits).astype(np.int32)
        if bits == 16:
            half = rng.standard_normal((len(index), reduction)).astype(np.float16)
            segments.append(Segment(16, index, half))
            continue
        codes = codes_of(rng, fill, (len(index), reduction), bits)
        packed = pack_codes(codes, bits)
        assert packed.shape[1] == row_bytes(reduction, bits)
        size = (len(index), g)
        zero = {
            "none": None,
            "random": rng.integers(-255, 256, size).astype(np.int32),
            "lowest": np.full(size, -255, np.int32),
            "highest": np.full(size, 255, np.int32),
            "inside": rng.integers(0, 1 << bits, size).astype(np.int32),
        }[zero_points]
        scale = np.exp(rng.uniform(-9, -3, (len(index), g))).astype(np.float32)
        segments.append(Segment(bits, index, packed, scale, zero))
    stored = sum(s.count for s in segments)
    half_in = None
    if half_in_index is not None:
        half_in = rng.standard_normal((stored, taps * len(half_in_index))).astype(np.float16)
    return PackedWeight(
        kind=kind,
        shape=shape,
        segments=tuple(segments),
        groups=groups,
        group_size=group_size,
        in_index=in_index,
        half_in_index=half_in_index,
        half_in_weight=half_in,
        bias=rng.standard_normal(stored).astype(np.float32) if bias else None,
        **geometry,
    ).validate()


def make_act(rng: np.random.Generator, mode: str, bits: int, zero: str) -> ActQuant | None:
    if mode == "none":
        return None
    if mode != "static":
        return ActQuant.dynamic(mode)
    half = 1 << (bits - 1)
    point = {"low": -half, "high": half - 1, "middle": int(rng.integers(-half, half))}[zero]
    return ActQuant("static", float(np.float32(rng.uniform(1e-3, 0.1))), point, bits)


@st.composite
def cases(draw: Any) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["linear", "conv2d"]))
    groups, geometry = 1, {}
    outs, ins = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    if kind == "conv2d":
        kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
        layout = draw(st.sampled_from(["plain", "first", "grouped", "depthwise"]))
        if layout == "first":
            ins = draw(st.integers(1, 4))
        elif layout == "grouped":
            groups = draw(st.integers(2, 5))
            outs, ins = groups * draw(st.integers(1, 18)), draw(st.integers(2, 9))
        elif layout == "depthwise":
            groups = draw(st.integers(2, 70))
            outs, ins = groups * draw(st.integers(1, 2)), 1
        pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
        geometry = {
            "stride": draw(pairs),
            "padding": draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
            "dilation": draw(pairs),
        }
        shape: tuple[int, ...] = (outs, ins, *kernel)
    else:
        shape = (outs, ins)

    widths = rng.choice(draw(st.sampled_from(WIDTH_SETS)), outs)
    if draw(st.booleans()):
        widths[rng.random(outs) < 0.4] = 0
        if not widths.any():
            widths[0] = 8
    in_index = half_in_index = None
    group_size = 0
    if groups == 1:
        group_size = draw(st.sampled_from([0, 0, 4, 8, 32]))
        if ins > 1 and draw(st.booleans()):
            kept = np.sort(rng.choice(ins, int(rng.integers(1, ins + 1)), replace=False))
            halves = 0
            if len(kept) > 1:
                halves = draw(st.integers(0, min(3, len(kept) - 1)))
            chosen = np.sort(rng.choice(kept, halves, replace=False))
            in_index = np.setdiff1d(kept, chosen).astype(np.int32)
            half_in_index = chosen.astype(np.int32) if halves else None
    fill = draw(st.sampled_from(FILLS))
    weight = make_weight(
        rng,
        kind,
        shape,
        widths,
        fill,
        draw(st.sampled_from(["none", "random", "lowest", "highest", "inside"])),
        group_size=group_size,
        groups=groups,
        in_index=in_index,
        half_in_index=half_in_index,
        bias=draw(st.booleans()),
        **geometry,
    )
    mode = draw(st.sampled_from(["none", "static", "static", "tensor", "row"]))
    act = make_act(rng, mode, draw(st.integers(4, 8)), draw(st.sampled_from(ZEROS)))
    return finish_case(draw, rng, weight, act, fill)


WIDTH_SETS = [[1], [2], [3], [4], [5], [6], [7], [8], [16], [4, 8], [2, 16], [1, 3, 5, 7, 16]]
ZEROS = ["low", "middle", "high"]


def finish_case(
    draw: Any, rng: np.random.Generator, weight: PackedWeight, act: ActQuant | None, fill: str
) -> Case:
    channels = weight.shape[1] * weight.groups
    if weight.kind == "linear":
        lead: tuple[int, ...] = draw(
            st.sampled_from([(1,), (3,), (0, 2), (5,), (2, 9), (40,), (2, 3, 4)])
        )
    else:
        fits = [weight.dilation[d] * (weight.shape[2 + d] - 1) + 1 for d in range(2)]
        lead = (draw(st.integers(0, 2)), *(fit + draw(st.integers(0, 6)) for fit in fits))
    shape = (*lead, channels)
    if act is not None and act.mode == "static" and draw(st.booleans()):
        x = int8_of(rng, draw(st.sampled_from(FILLS)), shape, act.qmin, act.qmax)
    else:
        x = (rng.standard_normal(shape) * rng.choice([0.0, 0.1, 2.0, 300.0])).astype(np.float32)
    half_input = None
    if weight.half_in_count and (x.dtype == np.int8 or draw(st.booleans())):
        half_input = rng.standard_normal((*lead, weight.half_in_count)).astype(np.float32)
    out = None
    if draw(st.booleans()):
        out = make_act(rng, "static", draw(st.integers(4, 8)), draw(st.sampled_from(ZEROS)))
    case = Case(weight, act, draw(st.sampled_from(ACTIVATIONS)), out, x, half_input, {})
    how = draw(st.sampled_from(["none", "float", "int8"]))
    if how != "none":
        shape_out = case.expected().shape
        if how == "float":
            case.residual = {"residual": rng.standard_normal(shape_out).astype(np.float32)}
        else:
            case.residual = {
                "residual": int8_of(rng, fill, shape_out, -128, 127),
                "residual_scale": float(np.float32(rng.uniform(0.01, 1.0))),
                "residual_zero_point": int(rng.integers(-128, 128)),
            }
    return case
