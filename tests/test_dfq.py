from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packed import assert_same, random_packed

from defakeq_kernels import _core, dfq
from defakeq_kernels.packed import PackedWeight, Segment, pack_codes
from defakeq_kernels.quantize import ActQuant, int8_out, quantize_weight

SAMPLE = Path(__file__).parent / "data" / "sample.dfq"
HEADER_START = b'{"__metadata__":{"format":"defakeq","version":"1","crc32":"'
CRC_AT = 8 + len(HEADER_START)
# A field of the container, or one of a layer.
NAMED = re.compile(
    r"^(header length|header|__metadata__[\w.]*|crc32|network|network\.layers.*|tensor .*"
    r"|data_offsets|.*\.(kind|shape|stride|padding|dilation|groups|group_size|bits|act|activation"
    r"|out|mode|dtype|(seg\d+\.)?(bits|out_index|codes|scale|zero_point)"
    r"|in_index|half_in_index|half_in_weight|bias)): found .*accepted is ",
    re.DOTALL,
)


def sample() -> tuple[dfq.Tensors, dfq.Network]:
    """A small network that has everything; every stored number is spelled out here."""

    def counting(dtype: type, *shape: int) -> np.ndarray:
        return np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype)

    def coded(bits: int, index: list[int], length: int, scales: int, zero: bool) -> Segment:
        codes = (counting(np.uint8, len(index), length) * 3) % (1 << bits)
        return Segment(
            bits,
            np.array(index, np.int32),
            pack_codes(codes, bits),
            counting(np.float32, len(index), scales) / np.float32(64),
            counting(np.int32, len(index), scales) - 5 if zero else None,
        )

    half = Segment(16, np.array([5], np.int32), counting(np.float16, 1, 18) / np.float16(8))
    conv = PackedWeight(
        kind="conv2d",
        shape=(6, 5, 3, 2),
        segments=(coded(2, [0, 4], 18, 6, True), coded(4, [1, 2], 18, 6, False), half),
        stride=(2, 1),
        padding=(1, 1),
        group_size=4,
        in_index=np.array([0, 2, 4], np.int32),
        half_in_index=np.array([1], np.int32),
        half_in_weight=counting(np.float16, 5, 6) / np.float16(16),
        bias=counting(np.float32, 5),
    )
    tensors: dfq.Tensors = {"table": np.arange(5, dtype=np.int8)}
    network: dfq.Network = {"classes": ["real", "fake"], "note": "caf\u00e9"}
    act = ActQuant.static(-1, 3)
    dfq.add_layer(tensors, network, "conv", conv, act.describe(), "silu", int8_out(act))
    linear = PackedWeight("linear", (3, 7), (coded(1, [0, 1, 2], 7, 1, False),))
    dfq.add_layer(tensors, network, "fc", linear, ActQuant.dynamic("row").describe())
    return tensors, network


def assert_equal_tensors(a: dfq.Tensors, b: dfq.Tensors) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype
        assert array.shape == b[name].shape
        assert array.tobytes() == b[name].tobytes()


def seal(data: bytes) -> bytes:
    """Puts the right checksum into bent bytes, so that the checks behind it are reached."""
    if data[8:CRC_AT] != HEADER_START:
        return data
    blank = data[:CRC_AT] + b"00000000" + data[CRC_AT + 8 :]
    return blank[:CRC_AT] + dfq._checksum(blank) + blank[CRC_AT + 8 :]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Any, payload: bytes) -> bytes:
    """A sealed file with this header."""
    text = (
        header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    )
    text += b" " * (-len(text) % 8)
    return seal(len(text).to_bytes(8, "little") + text + payload)


def refusal(data: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        dfq.loads(data)
    return str(caught.value)


def read_or_refuse(data: bytes) -> tuple[dfq.Tensors, dfq.Network] | str:
    try:
        return dfq.loads(data)
    except ValueError as error:
        return str(error)


def native_refusal(data: bytes) -> str:
    try:
        _core.parse_dfq(data)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def test_a_network_comes_back(tmp_path: Path) -> None:
    tensors, network = sample()
    tensors["scalar"] = np.array(2.5)
    tensors["nothing"] = np.zeros((0, 3), np.int64)
    tensors["turned"] = np.arange(6, dtype=np.float32).reshape(2, 3).T
    path = tmp_path / "net.dfq"
    dfq.write(path, tensors, network)
    got_tensors, got_network = dfq.read(path)
    assert got_network == network
    assert_equal_tensors(got_tensors, tensors)
    expected = PackedWeight.from_tensors("conv", tensors, network["layers"]["conv"])
    assert_same(dfq.layer(got_tensors, got_network, "conv"), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["net.dfq"]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_layers_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = {f"layer.{i}": random_packed(rng) for i in range(int(rng.integers(0, 4)))}
    tensors: dfq.Tensors = {}
    network: dfq.Network = {"layers": {}}
    for name, weight in weights.items():
        dfq.add_layer(tensors, network, name, weight)
    data = dfq.dumps(tensors, network)
    got = dfq.loads(data)
    assert got[1] == network
    for name, weight in weights.items():
        assert_same(dfq.layer(*got, name), weight)
    assert dfq.dumps(*got) == data


def test_a_plain_file_is_a_safetensors_file_of_named_arrays() -> None:
    tensors, network = sample()
    data = dfq.dumps(tensors, network, "plain")
    assert_equal_tensors(safetensors.numpy.load(data), tensors)
    got_tensors, got_network = dfq.loads(data)
    assert got_network == network
    assert_equal_tensors(got_tensors, tensors)


def many_layers() -> tuple[dfq.Tensors, dfq.Network]:
    """Layers that all have zero points and a bias."""
    rng = np.random.default_rng(3)
    tensors: dfq.Tensors = {}
    network: dfq.Network = {}
    for i, (outs, group_size) in enumerate(((5, None), (3, 4), (4, None))):
        weight = rng.normal(size=(outs, 10)).astype(np.float32)
        bias = rng.normal(size=outs).astype(np.float32)
        half = np.array([1]) if i == 2 else None
        packed = quantize_weight(
            weight, kind="linear", bits=4, group_size=group_size, bias=bias, half_out=half
        )
        dfq.add_layer(tensors, network, f"layer{i}", packed)
    return tensors, network


def test_a_file_leaves_out_default_fields() -> None:
    tensors, network = many_layers()
    network["program"] = {"values": [{"scale": 0.5, "bits": 8}, {"scale": 0.5, "bits": 4}, {}]}
    data = dfq.dumps(tensors, network, "plain")
    stored = json.loads(split(data)[0]["__metadata__"]["network"])
    assert stored["layers"]["layer0"].keys() == {"kind", "shape", "bits", "act", "out"}
    assert stored["layers"]["layer1"]["group_size"] == 4
    assert stored["layers"]["layer0"]["act"].keys() == {"mode", "scale", "zero_point"}
    assert stored["program"]["values"] == [{"scale": 0.5}, {"scale": 0.5, "bits": 4}, {}]
    assert dfq.loads(data)[1] == network


def payload_tensors(header: dict[str, Any], payload: bytes) -> dfq.Tensors:
    """The tensors of a file as stored, writable."""
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + payload
    return {key: array.copy() for key, array in safetensors.numpy.load(data).items()}


def test_equal_networks_give_equal_bytes() -> None:
    assert dfq.dumps(*sample()) == dfq.dumps(*sample())


def test_files_of_this_version_stay_readable() -> None:
    tensors, network = dfq.read(SAMPLE)
    expected_tensors, expected_network = sample()
    zero = "conv.seg0.zero_point"  # the file was written before zero points had one byte
    expected_tensors[zero] = expected_tensors[zero].astype(np.int16)
    assert network == expected_network
    assert_equal_tensors(tensors, expected_tensors)


def test_the_native_reader_agrees() -> None:
    """Both readers take and refuse the same bent files."""
    summary = _core.read_dfq(str(SAMPLE))
    assert [layer["name"] for layer in summary["layers"]] == ["conv", "fc"]
    assert summary["tensors"].keys() == sample()[0].keys()
    files = (
        dfq.dumps(*sample(), "plain"),
        dfq.dumps(*many_layers(), "plain"),
        dfq.dumps(*many_layers()),
    )
    read = 0
    for seed in range(6000):
        rng = np.random.default_rng([1, seed])
        good = files[seed % 3]
        data = bent_text(rng, good) if seed % 2 else bent_table(rng, good)
        ours, theirs = read_or_refuse(data), native_refusal(data)
        assert isinstance(ours, str) == bool(theirs), (seed, ours, theirs)
        if theirs:
            assert NAMED.match(theirs), (seed, theirs)
        read += not theirs
    assert 150 < read < 3000


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "net.dfq"
    tensors, network = sample()
    dfq.write(path, tensors, network)
    before = path.read_bytes()
    bad = {**tensors, "conv.bias": tensors["conv.bias"][:-1]}
    with pytest.raises(ValueError, match=r"^conv\.bias: found float32 with shape \[4\]"):
        dfq.write(path, bad, network)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        dfq.write(path, {}, {"layers": {}})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.dfq"]


@pytest.mark.parametrize(
    ("tensors", "network", "named"),
    [
        ({}, [], "network"),
        ({}, {}, "network.layers"),
        ({}, {"layers": {}, "x": float("nan")}, "network"),
        ({}, {"layers": {}, "x": object()}, "network"),
        ({}, {"layers": {"": {}}}, "network.layers"),
        ({}, {"layers": {"a": 3}}, "network.layers.a"),
        ({}, {"layers": {"a": {}}}, "a.bits"),
        ({"x": np.zeros(2, np.complex64)}, {"layers": {}}, "tensor 'x'"),
        ({"x": [1.0]}, {"layers": {}}, "tensor 'x'"),
        ({"x": np.zeros((1,) * 9)}, {"layers": {}}, "tensor 'x'"),
        ({"__metadata__": np.zeros(1)}, {"layers": {}}, "tensor name"),
    ],
)
def test_write_names_the_fault(tensors: Any, network: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(named)}: found "):
        dfq.dumps(tensors, network)


def test_add_layer_names_the_fault() -> None:
    tensors, network = sample()
    weight = dfq.layer(tensors, network, "fc")
    with pytest.raises(ValueError, match=r"^name: found 'fc\.seg0\.codes'"):
        dfq.add_layer(tensors, network, "fc", weight)
    with pytest.raises(ValueError, match=r"^new\.activation: found 'tanh'"):
        dfq.add_layer(tensors, network, "new", weight, activation="tanh")
    with pytest.raises(ValueError, match=r"^new\.act\.scale: found nothing"):
        dfq.add_layer(tensors, network, "new", weight, act={"mode": "static"})
    assert "new" not in network["layers"]
    with pytest.raises(ValueError, match=r"^name: found 'new'; accepted is one of"):
        dfq.layer(tensors, network, "new")


def edited(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """The sample with a change to its header and network, sealed again."""
    header, payload = split(dfq.dumps(*sample(), "plain"))
    network = json.loads(header["__metadata__"]["network"])
    change(header, network["layers"])
    if isinstance(header["__metadata__"], dict):
        header["__metadata__"]["network"] = json.dumps(network)
    return join(header, payload)


HEADER_FAULTS: list[tuple[Callable[[Any, Any], Any], str]] = [
    (lambda h, _: h.update(__metadata__=3), "__metadata__"),
    (lambda h, _: h["__metadata__"].update(format="x"), "__metadata__.format"),
    (lambda h, _: h["__metadata__"].update(version="2"), "__metadata__.version"),
    (lambda h, _: h["__metadata__"].pop("crc32"), "__metadata__.crc32"),
    (lambda h, _: h["table"].update(dtype="BF16"), "tensor 'table' dtype"),
    (lambda h, _: h["table"].update(shape=[-5]), "tensor 'table' shape"),
    (lambda h, _: h["table"].update(shape=[2**62, 2**62]), "tensor 'table' data_offsets"),
    (lambda h, _: h["table"].update(shape=[4]), "tensor 'table' data_offsets"),
    (lambda h, _: h["table"].update(data_offsets=[0, 5]), "tensor '.*' data_offsets"),
    (lambda h, _: h["table"].update(more=1), "tensor 'table'"),
    (lambda h, _: h.pop("table"), "tensor .* data_offsets|data_offsets"),
    (lambda _, n: n["conv"].update(kind="conv3d"), "conv.kind"),
    (lambda _, n: n["conv"].pop("shape"), "conv.shape"),
    (lambda _, n: n["conv"].update(stride=None), "conv.stride"),
    (lambda _, n: n["conv"].update(shape=[6, 5, 3]), "conv.shape"),
    (lambda _, n: n["conv"].update(shape=[6, 5, True, 2]), "conv.shape"),
    (lambda _, n: n["conv"].update(shape=[4, 5, 3, 2]), r"conv.seg\d.out_index"),
    (lambda _, n: n["conv"].update(padding=[0, 1, 2]), "conv.padding"),
    (lambda _, n: n["conv"].update(group_size="4"), "conv.group_size"),
    (lambda _, n: n["conv"].update(bits=[2, 4, 15]), "conv.seg2.scale"),
    (lambda _, n: n["conv"].update(bits=[2, 4]), "conv.half_in_weight"),
    (lambda _, n: n["conv"].update(bits=[2, 4, 16, 8]), "conv.seg3.out_index"),
    (lambda _, n: n["conv"].update(act=None), "conv.act"),
    (lambda _, n: n["conv"]["act"].update(mode="some"), "conv.act.mode"),
    (lambda _, n: n["conv"]["act"].update(scale=0), "conv.act.scale"),
    (lambda _, n: n["conv"]["act"].update(zero_point=200), "conv.act.zero_point"),
    (lambda _, n: n["fc"]["act"].update(bits=7), "fc.act.zero_point, fc.act.bits"),
    (lambda _, n: n["conv"].update(activation="tanh"), "conv.activation"),
    (lambda _, n: n["conv"]["out"].update(dtype="int4"), "conv.out.dtype"),
    (lambda _, n: n["conv"]["out"].update(bits=99), "conv.out.bits"),
]


@pytest.mark.parametrize(("change", "named"), HEADER_FAULTS)
def test_read_names_the_field(change: Any, named: str) -> None:
    assert re.match(f"({named}): found .*; accepted is ", refusal(edited(change)))


def test_read_names_bad_text_and_sizes() -> None:
    good = dfq.dumps(*sample(), "plain")
    header, payload = split(good)
    text = json.dumps(header, separators=(",", ":")).encode()
    twice = text[:-1] + b',"table":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}'
    assert refusal(join(twice, payload)).startswith("header: found the key 'table' twice")
    assert refusal(join(b"[" * 100000, payload)).startswith("header: found ")
    assert refusal(join(text.replace(b"[", b"[NaN,", 1), payload)).startswith("network: found NaN")
    bare = text.replace(b'"shape":[', b'"shape":[Infinity,', 1)
    assert refusal(join(bare, payload)).startswith("header: found Infinity")
    assert refusal(good[:7]).startswith("header length: found a file of 7 bytes")
    assert refusal(b"\xff" * 64).startswith("header length: found 18446744073709551615")
    assert refusal(seal(good + b"\0")).startswith("data_offsets: found ")
    assert refusal(good[:-1] + bytes([good[-1] ^ 1])).startswith("crc32: found ")
    deep: Any = []
    for _ in range(40):
        deep = [deep]
    header["__metadata__"]["network"] = json.dumps({"layers": {}, "deep": deep})
    assert refusal(join(header, payload)).startswith("network: found more than 32 levels")


@pytest.mark.parametrize("form", ["plain", "compact"])
def test_every_byte_is_guarded(form: str) -> None:
    good = dfq.dumps(*sample(), form)
    for at in range(len(good)):
        bent = bytearray(good)
        bent[at] ^= 1 << at % 8
        assert NAMED.match(refusal(bytes(bent))), at


def bent_bytes(rng: np.random.Generator, good: bytes) -> bytes:
    data = bytearray(good)
    at = int(rng.integers(len(data)))
    match int(rng.integers(6)):
        case 0:
            del data[at:]
        case 1:
            data += bytes(int(rng.integers(1, 40)))
        case 2:
            for bit in rng.integers(0, 8 * len(data), int(rng.integers(1, 5))):
                data[int(bit) // 8] ^= 1 << int(bit) % 8
        case 3:
            data[at] = int(rng.integers(256))
        case 4:
            length = int.from_bytes(data[:8], "little")
            moved = [length + 8, length - 8, 0, 2**64 - 1, int(rng.integers(len(data)))]
            data[:8] = moved[int(rng.integers(5))].to_bytes(8, "little")
        case _:
            del data[at : at + 8]
    return bytes(data)


def bent_text(rng: np.random.Generator, good: bytes) -> bytes:
    """A character of the header changed, and sealed."""
    length = int.from_bytes(good[:8], "little")
    at = 8 + int(rng.integers(length))
    mark = b'0123456789-.e{}[],:"\\ '[int(rng.integers(22))]
    return seal(good[:at] + bytes([mark]) + good[at + 1 :])


def bent_table(rng: np.random.Generator, good: bytes) -> bytes:
    """The table of tensors or the stored numbers changed, and sealed."""
    header, payload = split(good)
    names = [n for n in header if n != "__metadata__"]
    name = names[int(rng.integers(len(names)))]
    entry = header[name]
    match int(rng.integers(6)):
        case 0:
            entry["data_offsets"] = [int(n) for n in rng.integers(0, 200, 2)]
        case 1:
            entry["data_offsets"] = header[names[int(rng.integers(len(names)))]]["data_offsets"]
        case 2:
            entry["shape"] = [int(n) for n in rng.integers(-1, 6, int(rng.integers(4)))]
        case 3:
            entry["dtype"] = ["U8", "I32", "F32", "F16", "I64", "BOOL"][int(rng.integers(6))]
        case 4:
            header = {k + "x" if k == name else k: v for k, v in header.items()}
        case _:
            at = int(rng.integers(len(payload)))
            payload = payload[:at] + bytes([int(rng.integers(256))]) + payload[at + 1 :]
    return join(header, payload)


def test_ten_thousand_mutations_are_refused_by_name_or_read_well() -> None:
    good = dfq.dumps(*sample(), "plain")
    tensors, network = dfq.loads(good)
    read = 0
    for seed in range(10_000):
        rng = np.random.default_rng([2, seed])
        kind = seed % 4
        if kind == 0:
            data = bent_bytes(rng, good)
        elif kind == 1:
            data = seal(bent_bytes(rng, good))
        else:
            data = bent_text(rng, good) if kind == 2 else bent_table(rng, good)
        got = read_or_refuse(data)
        if isinstance(got, str):
            assert NAMED.match(got), (seed, got)
            continue
        read += 1
        if kind == 0:
            assert data == good, seed
        if data == good:
            assert_equal_tensors(got[0], tensors)
            assert got[1] == network
        for name in got[1]["layers"]:
            weight = dfq.layer(*got, name)
            assert weight.validate().dequantize().shape == weight.shape
    assert 100 < read < 5000
