"""The torch-free runtime: loading, running and refusing programs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from program_builder import Builder

from defakeq_kernels import _core, dfq
from defakeq_kernels.packed import PackedWeight, Segment
from defakeq_kernels.quantize import int8_out, quantize_weight
from defakeq_kernels.runtime import load, loads

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
    dfq.write(path.with_name("layers.dfq"), {}, {"layers": {}})
    with pytest.raises(RuntimeError, match=r"network\.program: found nothing; accepted is a pro"):
        load(path.with_name("layers.dfq"))


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


def wide():
    """Enough work for its threads."""
    b = Builder(1)
    q = b.quant()
    x = b.input((48, 48, 32), q)
    for _ in range(2):
        layer = b.layer("conv2d", (32, 32, 3, 3), q, q, padding=1)
        x = b.node("conv2d", [x], (48, 48, 32), q, layer=layer)
    b.output(x)
    return dfq.dumps(b.tensors, b.network)


WIDE = wide()


def wide_image(seed=1):
    return np.random.default_rng(seed).standard_normal((1, 48, 48, 32)).astype(np.float32)


def test_threads_take_turns():
    program = loads(WIDE, 2)
    wants = [program(wide_image(s)).tobytes() for s in range(3)]
    wrong = []

    def work(seed):
        for _ in range(50):
            if program(wide_image(seed)).tobytes() != wants[seed]:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_follows_a_change_of_the_instruction_set():
    """Depthwise kernels and attention want scratch of different sizes on each."""
    b = Builder(0)
    q = b.quant()
    x = b.input((12, 12, 48), q)
    for size in (3, 5, 7):
        name = b.layer("conv2d", (48, 1, size, size), q, q, groups=48, padding=size // 2)
        x = b.node("conv2d", [x], (12, 12, 48), q, layer=name)
    heads = {"batch": 0, "token": 48, "head": 16}
    sizes = {"heads": 3, "head_dim": 16, "batches": 1, "q_tokens": 144, "k_tokens": 144}
    layouts = {n: {"offset": 0, **heads} for n in "qkv"}
    y = b.node("attention", [x] * 3, (1, 144, 48), None, **sizes, **layouts, alpha=1e-3)
    b.output(y)
    data = dfq.dumps(b.tensors, b.network)
    x = np.random.default_rng(0).standard_normal((2, 12, 12, 48)).astype(np.float32)
    tiers = _core.cpu_info()["isa"]["allowed"]
    found = set()
    try:
        for first in tiers:
            _core.set_isa(first)
            program = loads(data, 2)
            for isa in [*tiers, *reversed(tiers)]:
                _core.set_isa(isa)
                found.add(program(x).tobytes())
                assert all(node["kernel"].endswith(f"__{isa}") for node in program.nodes)
    finally:
        _core.set_isa(None)
    assert len(found) == 1


@pytest.mark.parametrize("bits", [8, 3])
def test_names_winograd_and_gives_the_same_bytes(bits):
    b = Builder()
    q = b.quant()
    x = b.input((32, 30, 40), q)
    layer = b.layer("conv2d", (36, 40, 3, 3), q, q, "relu", bits=bits, padding=(1, 1))
    b.output(b.node("conv2d", [x], (32, 30, 36), q, layer=layer))
    data = dfq.dumps(b.tensors, b.network)
    x = np.random.default_rng(0).standard_normal((1, 32, 30, 40)).astype(np.float32)
    found = set()
    info = _core.cpu_info()["isa"]
    try:
        for isa in (i for i in info["built"] if i in info["supported"]):
            _core.set_isa(isa)
            for threads in (1, 2, 3):
                program = loads(data, threads)
                found.add(program(x).tobytes())
                winograd = isa in {"avx2", "avx512vnni", "neon"}
                assert (
                    program.nodes[0]["kernel"] == f"{'winograd' if winograd else 'direct'}__{isa}"
                )
    finally:
        _core.set_isa(None)
    assert len(found) == 1


def thread_states():
    """State and voluntary context switches of the other threads of this process."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        if int(task) == threading.get_native_id():
            continue
        with open(f"/proc/self/task/{task}/status") as file:
            lines = dict(line.rstrip("\n").split(":\t", 1) for line in file)
        found[task] = (lines["State"][0], int(lines["voluntary_ctxt_switches"]))
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="no /proc")
def test_threads_park_when_idle():
    before = set(thread_states())
    program = loads(WIDE, 3)
    program(wide_image())
    own = {task: state for task, state in thread_states().items() if task not in before}
    assert len(own) == 2
    for _ in range(1000):  # until they have given up waiting actively
        own = {task: state for task, state in thread_states().items() if task in own}
        if all(state == "S" for state, _ in own.values()):
            break
        time.sleep(0.01)
    time.sleep(0.2)
    after = thread_states()
    assert all(after[task] == state for task, state in own.items()), "they wake without work"
    del program
    assert not set(own) & set(thread_states())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runs_after_a_fork_in_the_middle_of_a_run():
    program = loads(WIDE, 2)
    want = program(wide_image()).tobytes()
    stop = threading.Event()

    def work():
        while not stop.is_set():
            program(wide_image())

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if program(wide_image()).tobytes() == want else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        worker.join()
    assert program(wide_image()).tobytes() == want


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runs_after_fork():
    program = loads(WIDE, 2)
    want = program(wide_image()).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if program(wide_image()).tobytes() == want else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert program(wide_image()).tobytes() == want


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
def test_memory_that_is_not_there_is_refused_by_name(tmp_path):
    """An arena of 400 MB, and packed weights of 25 MB, in a process that may have 16 more."""
    big = Builder()
    x = big.input((100_000_000,))
    big.output(big.node("unary", [x], (100_000_000,), None, fn="relu"))
    y = big.node("unary", [x], (100_000_000,), None, fn="abs")
    big.output(big.node("mean_rows", [y], (100_000_000,)))
    heavy = Builder()
    x = heavy.input((4096,), heavy.quant())
    index = np.arange(4096, dtype=np.int32)
    codes = np.zeros((4096, 2048), np.uint8)
    for _ in range(3):
        name = f"layer{len(heavy.network['layers'])}"
        segment = Segment(4, index, codes, np.full((4096, 1), 0.01, np.float32))
        weight = PackedWeight("linear", (4096, 4096), (segment,))
        q = heavy.quant()
        out = int8_out(q)
        dfq.add_layer(heavy.tensors, heavy.network, name, weight, q.describe(), out=out)
        x = heavy.node("linear", [x], (4096,), q, layer=name)
    heavy.output(x)
    dfq.write(tmp_path / "arena.dfq", big.tensors, big.network)
    dfq.write(tmp_path / "packed weights.dfq", heavy.tensors, heavy.network)
    code = """
import pathlib, re, resource, sys
from defakeq_kernels.runtime import loads
paths = [pathlib.Path(path) for path in sys.argv[1:]]
files = {path.stem: path.read_bytes() for path in paths}
used = int(re.search(r"VmSize:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text()).group(1))
limit = used * 1024 + (16 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, data in files.items():
    try:
        loads(data, 1)
    except RuntimeError as error:
        print(error)
        assert str(error).startswith(f"{name}: found "), error
        assert str(error).endswith(" bytes; accepted is what the memory holds"), error
    else:
        raise AssertionError(name)
"""
    files = [tmp_path / "arena.dfq", tmp_path / "packed weights.dfq"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


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


@pytest.mark.parametrize("threads", ["2", 1.5, True, 0, 1025, 10**20])
def test_thread_counts_are_integers_in_range(path, threads):
    with pytest.raises(ValueError, match=r"threads: found .*; accepted is an integer from 1 to"):
        load(path, threads=threads)


def test_content_is_bytes_and_programs_print_their_ports(path):
    with pytest.raises(ValueError, match="data: found str; accepted is bytes"):
        loads("content")
    assert repr(load(path, threads=1)).startswith("Program(")
    assert "threads=1)" in repr(load(path, threads=1))
