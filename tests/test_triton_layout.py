"""The GPU runtime layout, the inline PTX that reads it, configurations and error paths."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from defakeq_kernels import ops, packed  # noqa: E402
from defakeq_kernels.nn import ActQuant, QuantConv2d, QuantLinear  # noqa: E402
from defakeq_kernels.triton import layout  # noqa: E402
from defakeq_kernels.triton import pack as packing  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent / "triton"))
import ptx  # noqa: E402

STATIC = ActQuant.static(-2, 3)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(layer: Any) -> tuple[Any, layout.GpuLayout]:
    return packing.pack(layer.packed_weight(), layer.act, layer.activation, layer.out)


def linear(outputs: int, inputs: int, **options: Any) -> QuantLinear:
    return QuantLinear.from_float(nn.Linear(inputs, outputs), **options)


def unpacked(blob: Any, found: layout.GpuLayout, number: int) -> np.ndarray:
    """Codes [count, units, unit] of a segment, read field by field as the page says."""
    segment = found.segments[number]
    weights = found.section(blob, "weights").numpy()
    a_step, at = layout.units_a_step(segment.bits), segment.offset
    codes: Any = 0
    for width in layout.planes(segment.bits):
        row = layout.plane_row_bytes(segment.bits, width, found.units, found.unit)
        plane = weights[at : at + segment.count * row].reshape(segment.count, -1, found.unit)
        at += segment.count * row
        fields = [plane >> (i * width) & ((1 << width) - 1) for i in range(8 // width)]
        codes = codes << width | np.stack(fields, 2).reshape(segment.count, -1, found.unit)
    assert codes.shape[1] % a_step == 0
    return codes[:, : found.units]


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_hold_the_codes(bits: int) -> None:
    layer = linear(5, 250, bits=bits, act=STATIC)
    blob, found = made(layer)
    assert (found.unit, found.units, found.pitch) == (64, 4, 256)
    codes = unpacked(blob, found, 0).reshape(5, -1)
    stored = packed.unpack_codes(layer.packed_weight().segments[0].codes, bits, 250)
    assert np.array_equal(codes[:, :250], stored ^ 128 if bits == 8 else stored)
    assert not codes[:, 250:].any()


def test_scale_groups_are_padded_to_whole_units() -> None:
    blob, found = made(linear(3, 100, bits=4, group_size=24))
    assert (found.unit, found.span, found.pitch, found.scale_groups) == (32, 1, 5 * 32, 5)
    index = found.section(blob, "in_index").numpy().reshape(5, 32)
    assert np.array_equal(index[1, :24], np.arange(24, 48))
    assert (index[:, 24:] == -1).all()
    assert (index[4, :4] == np.arange(96, 100)).all()
    assert (index[4, 4:] == -1).all()


def test_tiles_cover_every_output_once_and_never_mix() -> None:
    conv = nn.Conv2d(32, 48, 3, groups=4)
    bits = torch.tensor([4, 8] * 24)
    layer = QuantConv2d.from_float(conv, bits=bits, keep_out=torch.arange(0, 47), act=STATIC)
    _, found = made(layer)
    index = layer.packed_weight().out_index
    seen = []
    for bits_, first, last, group, _, begin, count, _ in found.tiles(16).tolist():
        segment = next(s for s in found.segments if s.first == begin)
        assert (segment.bits, segment.count) == (bits_, count)
        assert begin <= first < last <= begin + count
        assert (index[first:last] // 12 == group).all()
        seen += range(first, last)
    assert sorted(seen) == list(range(47))


def test_the_description_is_read_back_and_forgotten_with_its_memory() -> None:
    blob, found = made(linear(8, 64, bits=4, act=STATIC, activation="gelu"))
    assert layout.read_layout(blob) is found
    other = blob.clone()
    assert layout.read_layout(other) == found
    key = (other.untyped_storage()._cdata, 0)
    assert key in layout._KNOWN
    del other
    made(linear(8, 64))
    assert key not in layout._KNOWN


def test_foreign_tensors_are_refused() -> None:
    layer = linear(8, 64, bits=4)
    with pytest.raises(ValueError, match=r"packed: found a tensor of .* no GPU layout"):
        layout.read_layout(layer.packed)
    with pytest.raises(ValueError, match=r"packed: found torch\.float32"):
        layout.read_layout(torch.zeros(100))
    with pytest.raises(ValueError, match="no GPU layout"):
        layout.read_layout(torch.zeros(3, dtype=torch.uint8))


def test_reductions_that_could_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="reduction of 131072 positions; accepted is at most"):
        made(linear(1, 131072, bits=1, act=STATIC))


# the inline PTX


@pytest.mark.parametrize("bits", range(1, 9))
def test_inline_ptx_expands_every_code(bits: int) -> None:
    triton = pytest.importorskip("triton")
    del triton
    import triton.language as tl

    from defakeq_kernels.triton import unpack

    random = np.random.default_rng(bits)
    widths = layout.planes(bits)
    step = 64 if bits == 1 else 1 << (8 - bits)
    for unit in range(layout.units_a_step(bits)):
        for words in random.integers(0, 1 << 32, (64, len(widths))).tolist():
            raw = [np.array([w], np.uint32).view(np.uint8).astype(int) for w in words]
            code: Any = 0
            for width, plane in zip(widths, raw, strict=True):
                field = plane >> unit % (8 // width) * width & ((1 << width) - 1)
                code = code << width | field
            if bits == 8:
                code = code ^ 128
            level = 2 * code - 1 if bits == 1 else code - (1 << (bits - 1))
            v = level * step
            if bits < 8:
                (word,) = ptx.run(unpack.int8_asm(bits, unit), 1, words)
                assert np.array([word], np.uint32).view(np.int8).tolist() == v.tolist()
            both = ptx.run(unpack.half_asm(bits, unit), 2, words)
            assert np.array(both, np.uint32).view(np.float16).tolist() == v.tolist()
            both = ptx.run(unpack.bfloat_asm(bits, unit), 2, words)
            wide = np.array(both, np.uint32).view(np.uint16).astype(np.uint32) << 16
            factor = unpack.float_step(bits, tl.bfloat16)
            assert wide.view(np.float32).tolist() == (level * factor).tolist()


# configurations


def test_configurations_fit_their_devices_and_the_nearest_is_taken() -> None:
    from defakeq_kernels.triton import config

    assert config.nearest(86, (80, 87, 90)) == 80
    assert config.nearest(120, (87, 89, 90)) == 90
    assert config.nearest(80, (87, 89, 90)) == 87
    for arch, device in config.DEVICES.items():
        assert set(config.shipped(arch)) == set(config.all_keys())
        for bits in (1, 3, 4, 8, 16):
            _, found = made(linear(64, 512, bits=bits))
            for kind in (torch.float16, torch.float32):
                for m in (1, 40, 1000):
                    chosen = config.choose(found, kind, m, device)
                    assert config.shared_bytes(found, kind, chosen, device) <= device.shared
    with pytest.raises(RuntimeError, match="shared memory"):
        config.fitted(found, torch.float32, chosen, config.Device(75, 512, 1))


def test_long_units_are_hoppers_integer_bytes() -> None:
    from defakeq_kernels.triton import config

    hopper, orin = config.DEVICES[90], config.DEVICES[87]
    _, found = made(linear(64, 512, bits=8, act=STATIC))
    assert config.unit(found, torch.int8, hopper) == 128
    assert config.unit(found, torch.int8, orin) == config.unit(found, torch.float16, hopper) == 64
    for bits, inputs in ((4, 512), (8, 320), (torch.tensor([8, 4] * 32), 512)):
        _, other = made(linear(64, inputs, bits=bits, act=STATIC))
        assert config.unit(other, torch.int8, hopper) == 64


def test_few_rows_leave_room_for_a_second_block() -> None:
    from defakeq_kernels.triton import config

    for device in config.DEVICES.values():
        for outputs in (256, 64 * device.processors):
            _, found = made(linear(outputs, 512, bits=4))
            chosen = config.gemv(found, torch.float16, 1, device)
            assert chosen is not None
            blocks = -(-outputs // chosen.bn)
            assert chosen.bn == 16 or 10 * blocks >= 9 * device.processors
            step = 128
            slice_bytes = chosen.bn * step // 2 + chosen.bm * step * 2
            used = chosen.slices * chosen.stages * slice_bytes
            assert used * (2 if blocks > device.processors else 1) <= device.shared


def test_a_sliced_packed_tensor_must_stay_aligned() -> None:
    packed, _ = made(linear(64, 512, bits=4))
    whole = torch.cat([torch.zeros(16, dtype=torch.uint8), packed])
    with pytest.raises(ValueError, match="packed: found"):
        layout.read_layout(whole[16:])


def test_layers_of_one_storage_keep_their_own_layouts() -> None:
    first, one = made(linear(64, 512, bits=4))
    second, two = made(linear(32, 256, bits=3))
    gap = torch.zeros(-first.numel() % 256, dtype=torch.uint8)
    whole = torch.cat([first, gap, second])
    at = first.numel() + gap.numel()
    for _ in range(2):
        assert layout.read_layout(whole[at:]) == two
        assert layout.read_layout(whole[: first.numel()]) == one


def test_tuning_happens_only_on_request(monkeypatch: Any, tmp_path: Path) -> None:
    from defakeq_kernels.triton import config

    monkeypatch.setenv("DEFAKEQ_CACHE", str(tmp_path))
    monkeypatch.delenv("DEFAKEQ_AUTOTUNE", raising=False)
    monkeypatch.setattr(config, "_TUNED", {})
    _, found = made(linear(64, 512, bits=4))
    device = config.DEVICES[87]
    measured = []

    def measure(c: config.Config) -> float:
        measured.append(c)
        return 1.0 if c != config.Config(32, 16, 4, 3) else 0.5

    shipped = config.choose(found, torch.float16, 1, device, measure)
    assert not measured
    monkeypatch.setenv("DEFAKEQ_AUTOTUNE", "1")
    assert config.choose(found, torch.float16, 1, device, measure) == config.Config(32, 16, 4, 3)
    assert len(measured) == len(config.candidates(found, torch.float16, 1, device)) > 4
    monkeypatch.setattr(config, "_TUNED", {})
    monkeypatch.delenv("DEFAKEQ_AUTOTUNE")
    assert config.choose(found, torch.float16, 1, device) == config.Config(32, 16, 4, 3) != shipped
    assert len(json.loads(config.tuned_file(device).read_text())) == 1


@pytest.mark.parametrize("size", [(5, 0), (7, 5)])
def test_old_devices_are_named(monkeypatch: Any, size: tuple[int, int]) -> None:
    from types import SimpleNamespace

    from defakeq_kernels.triton import config

    old = SimpleNamespace(major=size[0], minor=size[1], name="Old", multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: old)
    config.device_of.cache_clear()
    with pytest.raises(RuntimeError, match=rf"Old \(sm_{size[0]}{size[1]}\); accepted is sm_80"):
        config.device_of(0)
    config.device_of.cache_clear()


def test_missing_triton_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [n for n in sys.modules if n.startswith("defakeq_kernels.triton.")]:
        if name.rpartition(".")[2] not in ("layout", "pack", "config"):
            monkeypatch.delitem(sys.modules, name)
            monkeypatch.delattr(name, raising=False)
    with pytest.raises(RuntimeError, match=r"without Triton .*; accepted is triton"):
        ops._on_gpu("linear")(torch.zeros(1))


def test_ops_have_cuda_kernels_and_fakes_for_half_types() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name in ("linear", "conv2d", "quantize", "dequantize", "run_program"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"defakeq::{name}", "CUDA")
    with FakeTensorMode():
        x = torch.empty(3, 64, dtype=torch.float16, device="cuda")
        blob = torch.empty(100, dtype=torch.uint8, device="cuda")
        y = torch.ops.defakeq.linear(x, blob, 10, False)
        assert (y.dtype, tuple(y.shape), y.device.type) == (torch.float16, (3, 10), "cuda")
        assert torch.ops.defakeq.linear(x, blob, 10, True).dtype == torch.int8


def test_layers_pack_for_the_device_they_move_to(monkeypatch: Any) -> None:
    """There is no device here: the packer is asked, and the copy stays in main memory."""
    layer = linear(8, 64, bits=4, act=STATIC)
    before = layer(torch.ones(1, 64))
    blob = layer._pack(layer.packed_weight(), torch.device("cpu"))
    assert torch.equal(blob, layer.packed)
    asked = []
    monkeypatch.setattr(packing, "pack", lambda *a: asked.append(a) or made(copy.deepcopy(layer)))
    with pytest.raises((RuntimeError, AssertionError)):
        layer._pack(layer.packed_weight(), torch.device("cuda"))
    assert asked
    with pytest.raises((RuntimeError, AssertionError)):
        layer.to("cuda")
    assert torch.equal(layer(torch.ones(1, 64)), before)


def test_layers_say_how_they_run_on_a_gpu() -> None:
    conv = nn.Conv2d(64, 32, 3, padding=1)
    layer = QuantConv2d.from_float(conv, bits=4, act=STATIC)
    layer._buffers["packed"], _ = made(layer)
    found = layer._explain_gpu()
    assert (found["strategy"], found["kernel"], found["fallbacks"]) == ("product", "product", [])
    assert found["packed_bytes"] == layer.packed.numel() > found["storage_bytes"] > 0
    pruned = QuantConv2d.from_float(conv, bits=4, keep_in=torch.arange(0, 64, 2), act=STATIC)
    pruned._buffers["packed"], _ = made(pruned)
    assert "lays out" in pruned._explain_gpu()["fallbacks"][0]
    first = QuantConv2d.from_float(nn.Conv2d(3, 8, 3), bits=8, act=STATIC)
    assert made(first)[1].strategy == "patches"
    assert made(first)[1].units * made(first)[1].unit == 32


def test_small_products_are_spread_over_the_processors() -> None:
    from defakeq_kernels.triton import config

    _, found = made(linear(512, 1024, bits=4))
    device, big = config.DEVICES[90], config.Config(128, 128, 8, 3)
    assert config.spread(found, 100_000, big, device) == big
    small = config.spread(found, 256, big, device)
    assert (small.bn, small.bm, small.warps) == (64, 32, 4)
    assert config.parts(found, torch.float16, 1, small, device) > 1
    assert config.parts(found, torch.float16, 1000, small, device) == 1
