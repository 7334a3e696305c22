"""Files with a compact header: deflated JSON, and one tensor an element type."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dfq import (
    assert_equal_tensors,
    join,
    many_layers,
    native_refusal,
    payload_tensors,
    read_or_refuse,
    refusal,
    split,
)

from defakeq_kernels import _core, compact, dfq


def test_a_compact_file_joins_the_arrays_of_a_type() -> None:
    tensors, network = many_layers()
    tensors["empty"] = np.zeros((0, 3), np.int64)
    tensors["scalar"] = np.array(2.5, np.float32)
    data = dfq.dumps(tensors, network)
    stored = safetensors.numpy.load(data)
    assert stored.keys() == {"*.F32", "*.F32/F16", "*.F16", "*.I8", "*.I32/I16", "*.I64", "*.U8"}
    sizes = {name: array.size for name, array in tensors.items()}
    assert sum(array.size for array in stored.values()) == sum(sizes.values())
    assert len(data) < 0.6 * len(dfq.dumps(tensors, network, "plain"))
    got_tensors, got_network = dfq.loads(data)
    assert got_network == network
    assert_equal_tensors(got_tensors, tensors)
    summary = _core.parse_dfq(data)
    assert summary["tensors"].keys() == tensors.keys()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 300, 30000]), st.sampled_from([1, 6, 255]))
def test_both_readers_inflate_any_text(seed: int, length: int, letters: int) -> None:
    """Texts that compress well, hardly, and with all kinds of blocks."""
    rng = np.random.default_rng(seed)
    text = "".join(chr(32 + int(n)) for n in rng.integers(0, letters, length))
    network = {"layers": {}, "text": text * int(rng.integers(1, 4))}
    data = dfq.dumps({}, network)
    assert dfq.loads(data)[1] == network
    assert _core.parse_dfq(data)["metadata"]["network"] == compact_text(data)


def compact_text(data: bytes) -> str:
    return compact.inflated(split(data)[0]["__metadata__"]["network"]).decode()


@pytest.mark.parametrize("strategy", [zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_both_readers_inflate_what_any_encoder_writes(level: int, strategy: int) -> None:
    text = json.dumps({"layers": {}, "text": "abcabcabd" * 9000 + str(list(range(3000)))})
    packer = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    packed = packer.compress(text.encode()) + packer.flush()
    data = with_network(base64.b64encode(packed).decode())
    assert dfq.loads(data)[1] == json.loads(text)
    assert _core.parse_dfq(data)["metadata"]["network"] == text


def with_network(text: str) -> bytes:
    header, payload = split(dfq.dumps({}, {"layers": {}}))
    header["__metadata__"]["network"] = text
    return join(header, payload)


def test_bent_streams_are_refused_by_both_readers_or_read_alike() -> None:
    text = json.dumps({"layers": {}, "text": "abcabcabd" * 40 + str(list(range(300)))}).encode()
    refused = 0
    for seed in range(3000):
        rng = np.random.default_rng([3, seed])
        packer = zlib.compressobj(int(rng.integers(10)), zlib.DEFLATED, -15)
        packed = bytearray(packer.compress(text) + packer.flush())
        if seed % 3 == 0:
            del packed[int(rng.integers(len(packed))) :]
        else:
            at = int(rng.integers(min(len(packed), 4 if seed % 3 == 1 else 1 << 20)))
            packed[at] ^= 1 << int(rng.integers(8))
        data = with_network(base64.b64encode(packed).decode())
        ours, theirs = read_or_refuse(data), native_refusal(data)
        assert isinstance(ours, str) == bool(theirs), (seed, ours, theirs)
        if theirs:
            refused += 1
            assert str(ours).startswith("network")
            assert theirs.startswith("network")
        else:
            assert _core.parse_dfq(data)["metadata"]["network"] == compact_text(data), seed
    assert 1500 < refused < 2900


@pytest.mark.parametrize(
    "text",
    ["", "x", "QUJD", "e30", "e30=", "qwA\n", "qw A", "qwAA=A==", "====", "qwB=", "[]", "qwA=qwA="],
)
def test_text_that_is_no_network_is_refused(text: str) -> None:
    data = with_network(text)
    for message in (refusal(data), native_refusal(data)):
        assert message.startswith("network: found "), message


def test_a_text_beyond_the_limit_is_refused() -> None:
    """A few kilobytes that would become 32 megabytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(b'{"layers":{}' + b" " * (1 << 25) + b"}") + packer.flush()
    data = with_network(base64.b64encode(packed).decode())
    for message in (refusal(data), native_refusal(data)):
        assert re.match("network: found a bad deflate stream.*16777216 bytes", message), message


def test_sixteen_bits_are_stored_where_they_hold_all() -> None:
    """float32 and int32 arrays come back as they were, in half the bytes."""
    tensors: dfq.Tensors = {
        "narrow": np.array([1.5, -0.0, 65504.0, 2.0**-24], np.float32),
        "wide": np.array([1.5, 1 / 3], np.float32),
        "large": np.array([65536.0], np.float32),
        "infinite": np.array([np.inf, np.nan], np.float32),
        "near": np.array([-32768, 32767], np.int32),
        "far": np.array([1, 32768], np.int32),
        "double": np.array([1.5]),
    }
    data = dfq.dumps(tensors, {"layers": {}})
    table = json.loads(compact_text(data))["tensors"]
    found = {code: set(shapes) for code, shapes in table.items()}
    assert found == {
        "F32/F16": {"narrow"},
        "F32": {"wide", "large", "infinite"},
        "I32/I16": {"near"},
        "I32": {"far"},
        "F64": {"double"},
    }
    assert_equal_tensors(dfq.loads(data)[0], tensors)
    native = _core.parse_dfq(data)["tensors"]
    assert {name: t["nbytes"] for name, t in native.items()} == {
        name: array.nbytes for name, array in tensors.items()
    }


def test_both_readers_widen_alike() -> None:
    """A program's outputs are the same from a plain and from a compact file of narrow numbers."""
    tensors, network = many_layers()
    for name, array in tensors.items():
        if array.dtype == np.float32:
            tensors[name] = array.astype(np.float16).astype(np.float32)
    plain, small = (dfq.dumps(tensors, network, form) for form in ("plain", "compact"))
    assert "F32/F16" in compact_text(small)
    assert "I32/I16" in compact_text(small)
    assert_equal_tensors(dfq.loads(plain)[0], dfq.loads(small)[0])
    assert _core.parse_dfq(plain)["layers"] == _core.parse_dfq(small)["layers"]


def shapes_of(network: dict[str, Any], code: str) -> dict[str, Any]:
    found: dict[str, Any] = network["tensors"][code]
    return found


JOINT_FAULTS: list[tuple[Callable[[dfq.Tensors, dict[str, Any]], Any], str]] = [
    (lambda t, n: t.update({"*.F32": t["*.F32"][:-1]}), r"network\.tensors\.F32\.layer2"),
    (lambda t, n: t.update({"*.F32": np.append(t["*.F32"], t["*.F32"])}), r"network\.tensors\.F32"),
    (lambda t, n: t.update({"*.F32": t["*.F32"][None]}), r"tensor .\*\.F32"),
    (lambda t, n: t.pop("*.U8"), r"tensor .\*\.U8"),
    (
        lambda t, n: t.update({"layer1.bias": t["*.F32"][:3]}),
        r"network\.tensors\.F32\.layer1\.bias",
    ),
    (lambda t, n: n["tensors"].pop("U8"), r"layer0\.seg0\.(codes|out_index)"),
    (lambda t, n: n["tensors"].update(F32=3), r"network\.tensors\.F32"),
    (lambda t, n: n.update(tensors=[]), r"network\.tensors"),
    (lambda t, n: n.update(tensors=None), r"network\.tensors"),
    (lambda t, n: n["tensors"].update(X9={}), r"network\.tensors: found the type"),
    (lambda t, n: n["tensors"].update({"F32/I16": {}}), r"network\.tensors: found the type"),
    (lambda t, n: n["tensors"].update({"F32/F16": {}}), r"tensor .\*\.F32/F16"),
    (lambda t, n: t.update({"*.F32": t["*.F32"].view(np.int32)}), r"tensor .\*\.F32"),
    (
        lambda t, n: shapes_of(n, "F32").update({"layer0.bias": [-5]}),
        r"network\.tensors\.F32\.layer0",
    ),
    (lambda t, n: shapes_of(n, "F32").update({"layer0.bias": [2**62, 2**62]}), r"network\.tensors"),
    (lambda t, n: shapes_of(n, "F32").update({"layer0.bias": 5}), r"network\.tensors\.F32\.layer0"),
    (lambda t, n: shapes_of(n, "F32").update({"layer0.bias": [1] * 9}), r"network\.tensors\.F32"),
    (lambda t, n: shapes_of(n, "U8").pop("layer2.seg0.codes"), r"network\.tensors\.U8"),
]


@pytest.mark.parametrize(("change", "named"), JOINT_FAULTS)
def test_a_wrong_joint_tensor_is_named(change: Any, named: str) -> None:
    data = dfq.dumps(*many_layers())
    header, payload = split(data)
    metadata = header["__metadata__"]
    raw = payload_tensors(header, payload)
    network = json.loads(compact_text(data))
    change(raw, network)
    metadata["network"] = compact.deflated(json.dumps(network))
    header, payload = split(safetensors.numpy.save(raw))
    data = join({"__metadata__": metadata, **header}, payload)
    for message in (refusal(data), native_refusal(data)):
        assert re.match(f"({named})", message), message
        assert "found" in message


def test_names_that_the_file_needs_are_kept() -> None:
    with pytest.raises(ValueError, match=r"^tensor name: found '\*\.F32'"):
        dfq.dumps({"*.F32": np.zeros(1, np.float32)}, {"layers": {}})
    with pytest.raises(ValueError, match=r"^network\.tensors: found 3"):
        dfq.dumps({}, {"layers": {}, "tensors": 3})
    with pytest.raises(ValueError, match=r"^form: found 'small'"):
        dfq.dumps({}, {"layers": {}}, "small")
