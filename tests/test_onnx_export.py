"""Programs made by hand, exported to ONNX and compared with the numpy reference."""

import numpy as np
import pytest

from defakeq_kernels import dfq, reference
from defakeq_kernels.quantize import ActQuant, int8_out, quantize_weight

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from defakeq.onnx_export import check, export, run_onnxruntime, run_openvino

Q = [ActQuant("static", s, z) for s, z in ((0.03, 5), (0.05, -20), (0.04, 3), (0.06, 0))]


def value(shape, q=None, **more):
    if q is None:
        return {"dtype": "float32", "shape": list(shape), **more}
    numbers = {"scale": q.scale, "zero_point": q.zero_point, "bits": q.bits}
    return {"dtype": "int8", "shape": list(shape), **numbers, **more}


class Build:
    def __init__(self):
        self.tensors, self.network = {}, {"layers": {}}
        self.values, self.nodes = [], []
        self.rng = np.random.default_rng(0)

    def add(self, *args, **more):
        self.values.append(value(*args, **more))
        return len(self.values) - 1

    def node(self, op, ins, out, **attributes):
        self.nodes.append({"op": op, "name": f"n{len(self.nodes)}", "in": ins, "out": [out]})
        self.nodes[-1].update(attributes)
        return out

    def layer(self, name, shape, act, out, activation="none", bits=4, **more):
        kind = "conv2d" if len(shape) == 4 else "linear"
        fan = np.sqrt(np.prod(shape[1:]))
        w = (self.rng.standard_normal(shape) / fan).astype(np.float32)
        bias = self.rng.standard_normal(shape[0]).astype(np.float32) * np.float32(0.1)
        packed = quantize_weight(w, bits=bits, kind=kind, bias=bias, **more)
        described = None if out is None else int8_out(out)
        dfq.add_layer(
            self.tensors, self.network, name, packed, act.describe(), activation, described
        )
        return packed

    def write(self, path, inputs, outputs):
        def port(name, v):
            shape = self.values[v]["shape"]
            return {"name": name, "value": v, "layout": "nchw" if len(shape) == 3 else "plain"}

        self.network["program"] = {
            "version": 1,
            "values": self.values,
            "inputs": [port(f"x{i}", v) for i, v in enumerate(inputs)],
            "outputs": [port(f"y{i}", v) for i, v in enumerate(outputs)],
            "nodes": self.nodes,
        }
        dfq.write(path, self.tensors, self.network)
        return path


def engines():
    found = [run_onnxruntime]
    try:
        import openvino  # noqa: F401
    except ImportError:
        return found
    return [*found, run_openvino]


def conv_net(tmp_path):
    b = Build()
    x = b.add([8, 8, 8], Q[0])
    y = b.add([8, 8, 8], Q[1])
    z = b.add([8, 8, 8], Q[2])
    w = b.layer("conv", (8, 8, 3, 3), Q[0], Q[1], "relu", padding=1)
    v = b.layer("mixed", (8, 8, 1, 1), Q[1], Q[2], bits=[2, 4, 4, 8, 3, 4, 16, 16])
    b.node("conv2d", [x], y, layer="conv")
    b.node("conv2d", [y, x], z, layer="mixed")
    return b.write(tmp_path / "net.dfq", [x], [z]), w, v


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("weights", ["exact", "int8"])
def test_a_residual_conv_net_agrees_with_the_reference(tmp_path, weights, activations):
    path, w, v = conv_net(tmp_path)
    export(path, tmp_path / "net.onnx", weights=weights, activations=activations)
    x = np.random.default_rng(1).standard_normal((1, 8, 8, 8)).astype(np.float32)
    q = reference.quantize(x, Q[0])
    y = reference.conv2d(w, q, act=Q[0], activation="relu", out=Q[1])
    z = reference.conv2d(
        v, y, act=Q[1], out=Q[2], residual=q, residual_scale=Q[0].scale, residual_zero_point=5
    )
    expected = reference.dequantize(z, Q[2]).transpose(0, 3, 1, 2)
    for run in engines():
        (found,) = run(tmp_path / "net.onnx", [x.transpose(0, 3, 1, 2).copy()])
        steps = np.abs(found - expected) / Q[2].scale
        assert steps.max() < 3.01, run.__name__
        assert np.mean(steps) < 0.1, run.__name__


@pytest.mark.parametrize(("ins", "groups"), [(1, 8), (4, 2)])
def test_grouped_convolutions_of_mixed_widths_agree_with_the_reference(tmp_path, ins, groups):
    b = Build()
    x, y = b.add([8, 8, 8], Q[0]), b.add([8, 8, 8], Q[1])
    bits = [4, 4, 16, 4, 8, 4, 4, 16]
    b.layer("conv", (8, ins, 3, 3), Q[0], Q[1], bits=bits, padding=1, groups=groups)
    b.node("conv2d", [x], y, layer="conv")
    b.write(tmp_path / "net.dfq", [x], [y])
    export(tmp_path / "net.dfq", tmp_path / "net.onnx")
    found = check(tmp_path / "net.onnx", tmp_path / "net.dfq")
    assert found
    assert max(found.values()) < 1.01, found


def test_a_node_without_onnx_form_is_named(tmp_path):
    b = Build()
    x, y = b.add([4, 4, 8], Q[0]), b.add([4, 4, 8], Q[1])
    b.node("fft", [x], y)
    b.write(tmp_path / "net.dfq", [x], [y])
    with pytest.raises(ValueError, match=r"'n0' .fft. cannot be exported"):
        export(tmp_path / "net.dfq", tmp_path / "net.onnx")


def test_squeeze_excite_pool_and_head_run(tmp_path):
    b = Build()
    x, y = b.add([8, 8, 8], Q[0]), b.add([8, 8, 8], Q[1])
    p, m, s = b.add([4, 4, 8], Q[1]), b.add([8], Q[1]), b.add([5])
    parts = {
        key: {"scale": 0.02, "zero_point": -9, "bits": 8} for key in ("pool", "hidden", "gate")
    }
    stored = ActQuant("static", 0.02, -9)
    b.layer("fc1", (4, 8), stored, stored, "relu")
    b.layer("fc2", (8, 4), stored, stored, "sigmoid")
    b.layer("head", (5, 8), Q[1], None, bits=8)
    b.node("squeeze_excite", [x], y, fc1="fc1", fc2="fc2", **parts)
    b.node("pool2d", [y], p, mode="max", kernel=[2, 2], stride=[2, 2], padding=[0, 0])
    b.node("mean_rows", [p], m)
    b.node("linear", [m], s, layer="head")
    b.write(tmp_path / "net.dfq", [x], [s])
    export(tmp_path / "net.dfq", tmp_path / "net.onnx", batch=True)
    data = np.random.default_rng(1).standard_normal((2, 8, 8, 8)).astype(np.float32)
    results = [run(tmp_path / "net.onnx", [data])[0] for run in engines()]
    for result in results:
        assert result.shape == (2, 5)
        np.testing.assert_allclose(result, results[0], atol=0.1)


def test_attention_agrees_with_the_plain_formula(tmp_path):
    b = Build()
    x, n = b.add([6, 48], Q[0]), b.add([1, 6, 16], Q[3])
    strides = {"batch": 6 * 48, "token": 48, "head": 8}
    at = {key: {**strides, "offset": 16 * i} for i, key in enumerate("qkv")}
    alpha = float(np.float32(Q[0].scale ** 2 / np.sqrt(8)))
    sizes = {"batches": 1, "q_tokens": 6, "k_tokens": 6, "heads": 2, "head_dim": 8}
    b.node("attention", [x, x, x], n, alpha=alpha, **at, **sizes)
    flat = b.add([96], Q[3], base=n, offset=0)
    b.write(tmp_path / "net.dfq", [x], [flat])
    export(tmp_path / "net.dfq", tmp_path / "net.onnx")
    data = np.random.default_rng(1).standard_normal((1, 6, 48)).astype(np.float32)
    f = reference.dequantize(reference.quantize(data, Q[0]), Q[0])[0]
    q, k, v = (f[:, 16 * i : 16 * i + 16].reshape(6, 2, 8).swapaxes(0, 1) for i in range(3))
    e = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(8))
    expected = ((e / e.sum(-1, keepdims=True)) @ v).swapaxes(0, 1).reshape(1, 96)
    for run in engines():
        (found,) = run(tmp_path / "net.onnx", [data])
        np.testing.assert_allclose(found, expected, atol=2 * Q[3].scale)


def test_copies_and_padded_average_pools_agree_with_numpy(tmp_path):
    b = Build()
    x, y, z = b.add([8, 8, 8], Q[0]), b.add([4, 4, 8], Q[1]), b.add([3, 8], Q[1])
    b.node("pool2d", [x], y, mode="avg", kernel=[3, 3], stride=[2, 2], padding=[1, 1])
    b.tensors["index"] = np.array([3, -1, 15], np.int32)
    b.node("copy", [y], z, index="index", chunk=8)
    b.write(tmp_path / "net.dfq", [x], [y, z])
    export(tmp_path / "net.dfq", tmp_path / "net.onnx")
    data = np.random.default_rng(1).standard_normal((1, 8, 8, 8)).astype(np.float32)
    f = reference.dequantize(reference.quantize(data, Q[0]), Q[0])[0]
    f = np.pad(f, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(f, (3, 3), (1, 2))[:, ::2, ::2]
    expected = windows.mean((3, 4))
    rows = expected.reshape(8, 16).T
    for run in engines():
        pooled, copied = run(tmp_path / "net.onnx", [data])
        np.testing.assert_allclose(pooled[0], expected, atol=1.01 * Q[1].scale)
        moved = np.stack([rows[3], np.zeros(8), rows[15]])
        np.testing.assert_allclose(copied[0], moved, atol=1.01 * Q[1].scale)


def test_check_reports_the_difference_of_each_engine(tmp_path):
    pytest.importorskip("defakeq_kernels.reference_program")
    from defakeq.onnx_export import check

    path, _, _ = conv_net(tmp_path)
    export(path, tmp_path / "net.onnx")
    found = check(tmp_path / "net.onnx", path)
    assert set(found) == {run.__name__.removeprefix("run_") for run in engines()}
    assert max(found.values()) < 3.01


@pytest.mark.parametrize("fn", ["silu", "gelu", "hardswish", "sigmoid", "requantize", "relu"])
def test_tables_are_recognised(fn):
    from defakeq.onnx_export.tables import TABLES, recognise

    x = (np.arange(-128, 128) - Q[0].zero_point) * Q[0].scale
    y = np.rint(TABLES[fn](x) / Q[1].scale) + Q[1].zero_point
    table = np.clip(y, -128, 127).astype(np.int8)
    assert recognise(table, Q[0], Q[1]) == fn
    assert recognise(table[::-1].copy(), Q[0], Q[1]) is None
