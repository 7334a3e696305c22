"""The runtime gives the oracle's bytes for every kind of node, on every ISA and thread count."""

from __future__ import annotations

import json

import numpy as np
import pytest
from program_builder import Builder

from defakeq_kernels import _core, dfq, reference_program
from defakeq_kernels.quantize import ActQuant

runtime = pytest.importorskip("defakeq_kernels.runtime")

THREADS = (1, 2, 3)
Q = ActQuant.static(-3, 3)
OTHER = ActQuant.static(-1, 5, 6)
KINDS = (None, Q)


def unary(b, q, out):
    x = b.input((5, 7, 37), q)
    for fn in reference_program.UNARY:
        b.output(b.node("unary", [x], (5, 7, 37), out, fn=fn))


def binary(b, q, out):
    x = b.input((9, 37), q)
    y = b.input((9, 37), OTHER)
    others = [y] + [
        b.constant(b.rng.uniform(0.5, 2, shape).astype(np.float32))
        for shape in ((37,), (1,), (9, 1))
    ]
    for fn in reference_program.BINARY:
        for activation in ("none", "relu", "gelu"):
            for other in others:
                ends = {"fn": fn, "activation": activation}
                b.output(b.node("binary", [x, other], (9, 37), out, **ends))


def binary_of_few_channels(b, q, out):
    for rows, channels in ((40, 3), (12, 24), (64, 1), (6, 40)):
        shape = (rows, channels)
        x, y = b.input(shape, q), b.input(shape, OTHER)
        others = [
            b.constant(b.rng.uniform(0.5, 2, size).astype(np.float32))
            for size in ((channels,), (1,), (rows, 1))
        ]
        for other in [y, *others]:
            b.output(b.node("binary", [x, other], shape, out, fn="sub", activation="relu"))


def convert(b, q, out):
    x = b.input((6, 5, 21), q, "nchw")
    b.output(b.node("convert", [x], (6, 5, 21), out), "nchw")


def layer_norm(b, q, out):
    for channels in (1, 16, 37, 70):
        x = b.input((6, channels), q)
        rows = b.tensor(np.array([3, -1, 0, 5, 4, 1, 2], np.int32))
        gamma = b.tensor(b.rng.standard_normal(channels).astype(np.float32))
        options = {"eps": 1e-5, "count": channels + 2}
        b.output(b.node("layer_norm", [x], (6, channels), out, **options))
        beta = b.tensor(b.rng.standard_normal(channels).astype(np.float32))
        for one in ({"gamma": gamma}, {"beta": beta}):
            b.output(b.node("layer_norm", [x], (6, channels), out, **options, **one))
        options |= {"gamma": gamma, "beta": beta, "rows": rows}
        b.output(b.node("layer_norm", [x], (7, channels), out, **options))


def rows(b, q, out):
    x = b.input((6, 37), q)
    b.output(b.node("softmax", [x], (6, 37), out))
    for fn in ("mean", "sum", "max", "l2"):
        b.output(b.node("reduce", [x], (6, 1), out, fn=fn))
    b.output(b.node("mean_rows", [x], (37,), out))


def pooling(b, q, out):
    x = b.input((9, 8, 70), q, "nchw")
    b.output(b.node("adaptive_avg_pool2d", [x], (4, 3, 70), out, size=[4, 3]), "nchw")
    for whole in (False, True):
        geometry = {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1]}
        geometry |= {"ceil_mode": whole, "count_include_pad": whole}
        size = (5, 5, 70) if whole else (5, 4, 70)
        b.output(b.node("pool2d", [x], size, q, mode="max", **geometry), "nchw")
        b.output(b.node("pool2d", [x], size, out, mode="avg", **geometry), "nchw")


def interpolate(b, q, out):
    x = b.input((7, 5, 21), q, "nchw")
    for mode, corners in (("nearest", False), ("bilinear", False), ("bilinear", True)):
        scale = [6 / 10, 4 / 8] if corners else [7 / 11, 5 / 9]
        options = {"mode": mode, "align_corners": corners, "scale": scale, "size": [11, 9]}
        b.output(b.node("interpolate", [x], (11, 9, 21), out, **options), "nchw")


def products(b, q, out):
    heads, dim, tokens = 3, 20, 19
    width = heads * dim
    x = b.input((4, tokens, 3 * width), Q)
    stride = {"batch": tokens * 3 * width, "token": 3 * width, "head": dim}
    layouts = {n: {"offset": i * width, **stride} for i, n in enumerate("qkv")}
    sizes = {"heads": heads, "head_dim": dim, "batches": 4, "q_tokens": tokens, "k_tokens": tokens}
    bias = b.constant(b.rng.standard_normal((heads, tokens, tokens)).astype(np.float32))
    hidden = np.where(b.rng.random((2, tokens, tokens)) < 0.3, -100.0, 0.0)
    mask = b.constant(hidden.astype(np.float32))
    order = b.tensor(b.rng.permutation(4 * tokens).astype(np.int32))
    for ins in ([x] * 3, [x, x, x, bias], [x, x, x, bias, mask], [x, x, x, -1, mask]):
        shape = (4, tokens, width)
        b.output(b.node("attention", ins, shape, out, **sizes, **layouts, alpha=1e-4))
    options = {**sizes, **layouts, "alpha": 1e-3, "rows": order}
    b.output(b.node("attention", [x] * 3, shape, out, **options))
    y = b.input((2, 9, 21), OTHER)
    z = b.input((2, 13, 21), Q)
    strides = {
        "a": {"offset": 0, "batch": 189, "row": 21, "col": 1},
        "b": {"offset": 0, "batch": 273, "row": 1, "col": 21},
    }
    sizes = {"batches": 2, "m": 9, "n": 13, "k": 21, "alpha": 1e-3}
    b.output(b.node("matmul", [y, z], (2, 9, 13), out, **sizes, **strides))


def layers(b, q, out):
    x = b.input((9, 8, 12), Q, "nchw")
    table = b.tensor(b.rng.integers(-128, 128, 256).astype(np.int8))
    options = {"padding": 1, "bits": 4}
    first = b.layer("conv2d", (24, 12, 3, 3), Q, OTHER, **options)
    y = b.node("conv2d", [x], (9, 8, 24), Q, layer=first, table=table)
    second = b.layer("conv2d", (24, 24, 1, 1), Q, out, "relu", bits=3)
    b.output(b.node("conv2d", [y, y], (9, 8, 24), out, layer=second), "nchw")
    fc1 = b.layer("linear", (8, 24), Q, Q, "relu")
    fc2 = b.layer("linear", (24, 8), Q, Q)
    parts = {"pool": Q, "hidden": Q, "gate": Q}
    described = {
        key: {"scale": v.scale, "zero_point": v.zero_point, "bits": v.bits}
        for key, v in parts.items()
    }
    ends = {"fc1": fc1, "fc2": fc2, "table2": table}
    b.output(b.node("squeeze_excite", [y], (9, 8, 24), OTHER, **ends, **described), "nchw")
    head = b.layer("linear", (10, 24), Q, out, half_in=[1, 7])
    half = b.input((9, 8, 2))
    b.output(b.node("linear", [y, -1, half], (9, 8, 10), out, layer=head))


def movement(b, q, out):
    x = b.input((12, 10), q)
    y = b.input((3, 10), q)
    index = b.tensor(b.rng.integers(-1, 30, 40).astype(np.int32))
    b.output(b.node("copy", [x, y], (40, 5), q, index=index, chunk=5))
    index, step = (b.tensor(np.array(a, np.int32)) for a in ([0, 1, 24, -1, 7], [2, 2, 1, 0, -1]))
    again = {"index": index, "step": step, "repeats": 6, "chunk": 5}
    b.output(b.node("copy", [x, y], (30, 5), q, **again))
    if q is not None:
        kept = out or Q
        levels = b.rng.integers(kept.qmin, kept.qmax + 1, 256)
        table = b.tensor(levels.astype(np.int8))
        b.output(b.node("lookup", [x], (12, 10), kept, table=table))


def depthwise(b, q, out):
    """Whole strips of channels and parts of one, whose lanes take segments of the output row."""
    kept = q or Q
    for channels, kernel, stride, symmetric in (
        (16, 3, 1, True), (24, 5, 2, False), (72, 3, 2, True), (96, 7, 1, False), (200, 5, 1, True)
    ):  # fmt: skip
        x = b.input((9, 29, channels), kept)
        options = {"groups": channels, "padding": kernel // 2, "symmetric": symmetric}
        shape = (channels, 1, kernel, kernel)
        layer = b.layer("conv2d", shape, kept, out, "relu", stride=stride, **options)
        size = (-(-9 // stride), -(-29 // stride), channels)
        b.output(b.node("conv2d", [x], size, out, layer=layer))


def gates(b, q, out):
    """Means over rows, products by channel and normalized rows of whole blocks."""
    for channels in (16, 72, 200):
        x = b.input((23, channels), q)
        gate = b.constant(b.rng.integers(-32, 32, channels).astype(np.int8), OTHER)
        b.output(b.node("mean_rows", [x], (channels,), out))
        b.output(b.node("binary", [x, gate], (23, channels), out, fn="mul"))
        options = {"eps": 1e-6, "gamma": b.tensor(b.rng.standard_normal(channels).astype("f4"))}
        options["beta"] = b.tensor(b.rng.standard_normal(channels).astype("f4"))
        b.output(b.node("layer_norm", [x], (23, channels), out, **options))


CASES = (
    unary, binary, binary_of_few_channels, convert, layer_norm, rows, pooling,
    interpolate, products, layers, movement, depthwise, gates,
)  # fmt: skip


@pytest.mark.parametrize("out", [None, OTHER], ids=("float", "int8"))
@pytest.mark.parametrize("q", KINDS, ids=("from float", "from int8"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_node_everywhere(case, q, out, tmp_path):
    b = Builder(7)
    case(b, q, out)
    path = tmp_path / "program.dfq"
    dfq.write(path, b.tensors, b.network)
    program = json.loads(json.dumps(b.program))
    inputs = []
    for port in program["inputs"]:
        shape = program["values"][port["value"]]["shape"]
        shape = [shape[2], *shape[:2]] if port["layout"] == "nchw" else shape
        x = b.rng.standard_normal((2, *shape)) * b.rng.choice([0.5, 2.0, 90.0], (2, *shape))
        inputs.append(x.astype(np.float32))
    expected = reference_program.run(path, inputs)
    names = {node["out"][0]: node for node in program["nodes"]}
    try:
        for isa in _core.cpu_info()["isa"]["allowed"]:
            _core.set_isa(isa)
            for threads in THREADS:
                loaded = runtime.load(path, threads=threads)
                found = loaded(*inputs)
                found = list(found) if isinstance(found, (list, tuple)) else [found]
                for port, y, e in zip(program["outputs"], found, expected, strict=True):
                    node = names[port["value"]]
                    where = f"{isa}, {threads} threads, {node['op']} {node.get('fn', '')}"
                    assert y.shape == e.shape, where
                    same = (y.view(np.int32) == e.view(np.int32)) | (np.isnan(y) & np.isnan(e))
                    assert same.all(), f"{where}: {int((~same).sum())} of {y.size} differ"
    finally:
        _core.set_isa(None)
