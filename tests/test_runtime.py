"""The torch-free runtime: loading, running and refusing programs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from defakeq_kernels import _core, dfq
from defakeq_kernels.quantize import quantize_weight
from defakeq_kernels.runtime import load

ACT = {"mode": "static", "scale": 0.02, "zero_point": -3, "bits": 8}
HIDDEN = {"dtype": "int8", "scale": 0.05, "zero_point": 4, "bits": 8}


def quantized(q, shape, **more):
    return {
        "dtype": "int8",
        "shape": shape,
        **{k: q[k] for k in ("scale", "zero_point", "bits")},
    } | more


def network():
    """conv 3x3 -> conv 1x1 with the first as residual -> linear over the pixels, float32 out."""
    rng = np.random.default_rng(0)
    tensors, net = {}, {}

    def layer(name, shape, bits, act, out, activation="none", **geometry):
        kind = "linear" if len(shape) == 2 else "conv2d"
        weight = rng.standard_normal(shape).astype(np.float32) * 0.2
        bias = rng.standard_normal(shape[0]).astype(np.float32)
        packed = quantize_weight(weight, kind=kind, bits=bits, bias=bias, **geometry)
        dfq.add_layer(tensors, net, name, packed, act=act, activation=activation, out=out)

    hidden_act = {**HIDDEN, "mode": "static"}
    del hidden_act["dtype"]
    layer("a", (16, 3, 3, 3), 8, ACT, HIDDEN, "relu", padding=(1, 1), stride=(2, 2))
    layer("b", (16, 16, 1, 1), 4, hidden_act, HIDDEN)
    layer("c", (5, 16), 3, hidden_act, None)
    net["program"] = {
        "version": 1,
        "values": [
            quantized(ACT, [8, 6, 3]),
            quantized(HIDDEN, [4, 3, 16]),
            quantized(HIDDEN, [4, 3, 16]),
            {"dtype": "float32", "shape": [12, 5]},
        ],
        "inputs": [{"name": "image", "value": 0, "layout": "nchw"}],
        "outputs": [
            {"name": "scores", "value": 3, "layout": "plain"},
            {"name": "map", "value": 2, "layout": "nchw"},
        ],
        "nodes": [
            {"op": "conv2d", "name": "a", "layer": "a", "in": [0], "out": [1]},
            {"op": "conv2d", "name": "b", "layer": "b", "in": [1, 1], "out": [2]},
            {"op": "linear", "name": "c", "layer": "c", "in": [2], "out": [3]},
        ],
    }
    return tensors, net


@pytest.fixture
def path(tmp_path):
    tensors, net = network()
    dfq.write(tmp_path / "net.dfq", tensors, net)
    return tmp_path / "net.dfq"


def image(batch=2, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 6)).astype(np.float32)


def expected(x):
    """The same network, operator by operator."""
    tensors, net = network()

    def packed(name):
        spec = dfq.layer(tensors, net, name).spec()
        description = net["layers"][name]
        return _core.pack_layer(spec | {k: description[k] for k in ("act", "activation", "out")})

    scale, zero = np.float32(ACT["scale"]), ACT["zero_point"]
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    inverse = np.float32(1) / scale
    q = np.clip(nhwc * inverse, -128 - zero, 127 - zero)
    a = _core.conv2d(packed("a"), (np.rint(q) + zero).astype(np.int8))
    b = _core.conv2d(packed("b"), a, a, HIDDEN["scale"], HIDDEN["zero_point"])
    scores = _core.linear(packed("c"), b.reshape(len(x), 12, 16))
    image = (b.astype(np.float32) - HIDDEN["zero_point"]) * np.float32(HIDDEN["scale"])
    return scores, image.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_runs_as_its_operators_do(path, threads):
    program = load(path, threads)
    x = image()
    scores, feature_map = program(x)
    want_scores, want_map = expected(x)
    assert scores.tobytes() == want_scores.tobytes()
    assert feature_map.tobytes() == np.ascontiguousarray(want_map).tobytes()
    assert program.threads == threads
    program.threads = 2
    assert program(x)[0].tobytes() == want_scores.tobytes()
    assert [r.shape[0] for r in program(image(0))] == [0, 0]


def test_describes_itself(path):
    program = load(path, 1)
    assert program.inputs == [{"name": "image", "shape": (3, 8, 6)}]
    assert program.outputs[1] == {"name": "map", "shape": (16, 4, 3)}
    assert [n["name"] for n in program.nodes] == ["a", "b", "c"]
    assert program.nodes[1]["macs"] == 16 * 16 * 12
    info = program.info
    assert info["live_bytes"] <= info["arena_bytes"] <= 1.15 * info["live_bytes"]
    times = program.profile(image(), repeat=3)
    assert all(t["seconds"] >= 0 for t in times)
    with pytest.raises(ValueError, match="repeat: found 0"):
        program.profile(image(), repeat=0)


def test_takes_strided_arrays_and_dlpack(path):
    program = load(path, 1)
    x = image()
    want = program(x)[0].tobytes()
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert program(channels_last)[0].tobytes() == want

    class Lent:
        def __dlpack__(self, **_):
            return x.__dlpack__()

        def __dlpack_device__(self):
            return x.__dlpack_device__()

    assert program(Lent())[0].tobytes() == want


def test_names_wrong_inputs(path):
    program = load(path, 1)
    with pytest.raises(ValueError, match=r"input 'image': found float64\[2, 3, 8, 6\]"):
        program(image().astype(np.float64))
    with pytest.raises(ValueError, match=r"accepted is float32\[N, 3, 8, 6\]"):
        program(image()[0])
    with pytest.raises(ValueError, match="inputs: found 2; accepted is one array for each"):
        program(image(), image())
    with pytest.raises(ValueError, match="inputs: found 0"):
        program()
    with pytest.raises(ValueError, match="input 'image': found list"):
        program([1.0])
    with pytest.raises(ValueError, match="threads: found 0"):
        load(path, 0)
    with pytest.raises(RuntimeError, match="cannot open"):
        load(path.with_name("absent.dfq"))


def change(net, keys, value):
    for key in keys[:-1]:
        net = net[key]
    net[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["program"], 3, "network.program: found 3"),
        (["program", "version"], 2, "program.version: found 2"),
        (
            ["program", "nodes", 1, "op"],
            "conv3d",
            'node "b" op: found "conv3d"; accepted is',
        ),
        (["program", "nodes", 1, "layer"], "z", r'node "b" \(conv2d\) layer: found no layer "z"'),
        (["program", "nodes", 1, "in"], [2], 'node "b" in: found value 2 before'),
        (["program", "nodes", 1, "out"], [1], 'node "b" out: found value 1 again'),
        (["program", "nodes", 1, "in"], [9], "in: found 9; accepted is an integer from -1 to 3"),
        (["program", "nodes", 0, "in"], [1], "in: found int8"),
        (["program", "values", 1, "shape"], [4, 4, 16], r"out: found .*shape \[4, 3, 16\]"),
        (["program", "values", 1, "scale"], 0.06, "out: found int8 of scale 0.06"),
        (["program", "values", 3, "dtype"], "int4", r"values\[3\].dtype: found"),
        (["program", "outputs"], [], "program.outputs: found"),
        (["program", "outputs", 0, "layout"], "nchw", "layout: found"),
        (["program", "inputs", 0, "value"], 3, "found"),
    ],
)
def test_names_wrong_programs(tmp_path, keys, value, message):
    tensors, net = network()
    change(net, keys, value)
    dfq.write(tmp_path / "bad.dfq", tensors, net)
    with pytest.raises(RuntimeError, match=message):
        load(tmp_path / "bad.dfq", 1)


def test_two_threads_take_turns(path):
    program = load(path, 2)
    wants = [program(image(seed=s))[0].tobytes() for s in range(2)]
    wrong = []

    def work(seed):
        for _ in range(200):
            if program(image(seed=seed))[0].tobytes() != wants[seed]:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_runs_after_fork(path):
    program = load(path, 2)
    want = program(image())[0].tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if program(image())[0].tobytes() == want else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert program(image())[0].tobytes() == want


def test_needs_no_torch(path):
    code = (
        "import sys, numpy as np; sys.modules['torch'] = None\n"
        "from defakeq_kernels.runtime import load\n"
        f"print(load({str(path)!r})(np.zeros((1, 3, 8, 6), np.float32))[0].shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(1, 12, 5)"
