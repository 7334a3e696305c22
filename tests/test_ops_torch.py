"""The torch ops: tracing, layouts, refusals."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from defakeq_kernels import _core  # noqa: E402
from defakeq_kernels import ops as dq  # noqa: E402
from defakeq_kernels.quantize import quantize_weight  # noqa: E402

STATIC = {"mode": "static", "scale": 0.05, "zero_point": 3, "bits": 8}
INT8_OUT = {"dtype": "int8", "scale": 0.25, "zero_point": -5, "bits": 8}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def values(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(rng(seed).standard_normal(shape).astype(np.float32))


def int8_values(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.from_numpy(rng(seed).integers(-128, 128, shape, dtype=np.int8))


def linear_layer(outputs=37, inputs=19, act=STATIC, activation="none", out=None, **options):
    weight = rng().standard_normal((outputs, inputs)).astype(np.float32)
    bias = rng(5).standard_normal(outputs).astype(np.float32)
    packed = quantize_weight(weight, kind="linear", bias=bias, **options)
    return packed, torch.from_numpy(_core.pack_layer(packed.spec(act, activation, out)))


def conv_layer(outputs=13, inputs=6, kernel=3, act=STATIC, activation="none", out=None, **options):
    groups = options.get("groups", 1)
    weight = rng().standard_normal((outputs, inputs // groups, kernel, kernel)).astype(np.float32)
    packed = quantize_weight(weight, kind="conv2d", **options)
    return packed, torch.from_numpy(_core.pack_layer(packed.spec(act, activation, out)))


def conv(x, blob, outputs=13, kernel=3, stride=1, padding=1, out_int8=False, **options):
    return dq.conv2d(
        x,
        blob,
        outputs,
        (kernel, kernel),
        (stride, stride),
        (padding, padding),
        out_int8=out_int8,
        **options,
    )


CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def check_op(op, *args):
    with torch.no_grad():
        torch.library.opcheck(op, args, test_utils=("test_autograd_registration", *CHECKS))


@pytest.mark.parametrize("x", [values(5, 19), values(2, 3, 19), values(0, 19), int8_values(4, 19)])
@pytest.mark.parametrize("out", [None, INT8_OUT])
def test_linear_opcheck(x, out):
    _, blob = linear_layer(out=out)
    check_op(torch.ops.defakeq.linear.default, x, blob, 37, out is not None)


def test_linear_opcheck_with_residual_and_half_input():
    _, blob = linear_layer(half_in=[1, 7])
    residual, half = int8_values(5, 37), values(5, 2)
    check_op(
        torch.ops.defakeq.linear.default,
        *(int8_values(5, 19), blob, 37, False, residual, 0.5, 2, half),
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("out", [None, INT8_OUT])
def test_conv2d_opcheck(channels_last, batch, out):
    _, blob = conv_layer(out=out, padding=1, stride=2)
    x = values(batch, 6, 9, 8)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    window = (3, 3, 2, 2, 1, 1, 1, 1)
    check_op(torch.ops.defakeq.conv2d.default, x, blob, 13, window, out is not None)


@pytest.mark.parametrize(
    "x",
    [
        values(7),
        values(3, 5),
        values(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        values(5, 3).t(),
        values(0, 3),
        torch.tensor(1.5),
    ],
)
def test_quantize_and_dequantize_opcheck(x):
    check_op(torch.ops.defakeq.quantize.default, x, 0.1, 3, 6)
    check_op(torch.ops.defakeq.dequantize.default, dq.quantize(x, 0.1, 3, 6), 0.1, 3)


def test_quantize_is_round_to_nearest_even_and_clamped():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 1e9, -1e9, float("nan"), float("inf")])
    assert dq.quantize(x, 1.0, 0, 8).tolist() == [0, 2, 2, 0, 127, -128, -128, 127]
    assert dq.quantize(x, 1.0, 2, 4).tolist() == [2, 4, 4, 2, 7, -8, -8, 7]
    q = int8_values(3, 50)
    assert torch.equal(dq.quantize(dq.dequantize(q, 0.25, 7), 0.25, 7, 8), q)


def test_large_elementwise_runs_in_threads():
    x = values(300, 1000)
    q = dq.quantize(x, 0.02, -3, 8)
    reference = torch.clamp(torch.round(x * np.float32(1 / np.float32(0.02))) - 3, -128, 127)
    assert torch.equal(q, reference.to(torch.int8))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("conv", conv_layer(padding=1, out=INT8_OUT)[1])
        self.register_buffer(
            "head", linear_layer(4, 13, {**STATIC, "scale": 0.25, "zero_point": -5})[1]
        )

    def forward(self, x):
        y = conv(x, self.conv, out_int8=True)
        return dq.linear(y.permute(0, 2, 3, 1)[:, 0], self.head, 4) * 2


def test_compile_fullgraph_matches_eager():
    net = Net()
    x = values(2, 6, 9, 8)
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), net(x))
        assert torch.equal(compiled(values(3, 6, 7, 8)), net(values(3, 6, 7, 8)))


def test_compile_with_inductor_matches_eager():
    net = Net()
    x = values(2, 6, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, fullgraph=True)(x), net(x), rtol=0, atol=0)


def test_export_and_run(tmp_path):
    net = Net()
    x = values(2, 6, 9, 8)
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=16)
        program = torch.export.export(net, (x,), dynamic_shapes={"x": {0: batch}})
        names = [str(node.target) for node in program.graph.nodes]
        assert "defakeq.conv2d.default" in names
        assert "defakeq.linear.default" in names
        torch.export.save(program, tmp_path / "net.pt2")
        loaded = torch.export.load(tmp_path / "net.pt2").module()
        assert torch.equal(loaded(x), net(x))
        assert torch.equal(loaded(x[:1]), net(x[:1]))


def linear_views(dtype):
    make = values if dtype == torch.float32 else int8_values
    base = make(6, 8, 40)
    yield "rows at a stride", base[0, ::2, 3:22]
    yield "offset", base[1:, 2:, 5:24]
    yield "columns at a stride", base[..., 1:39:2]
    yield "transposed", make(19, 6).t()
    yield "permuted", make(19, 4, 5).permute(2, 1, 0)
    yield "expanded", make(1, 19).expand(7, 19)
    yield "one row", base[2, 3, :19]
    yield "empty", base[:0, :, :19]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_linear_reads_views(dtype):
    _, blob = linear_layer()
    for name, x in linear_views(dtype):
        before = x.clone()
        expected = dq.linear(x.clone(memory_format=torch.contiguous_format), blob, 37)
        found = dq.linear(x, blob, 37)
        assert found.shape == (*x.shape[:-1], 37), name
        assert found.is_contiguous(), name
        assert torch.equal(found, expected), name
        assert torch.equal(x, before), name


def conv_views(dtype):
    make = values if dtype == torch.float32 else int8_values
    base = make(3, 12, 11, 10)
    last = base.contiguous(memory_format=torch.channels_last)
    yield "nchw", base[:, :6]
    yield "channels at a stride", base[:, ::2]
    yield "cropped", base[1:, 2:8, 1:9, 2:]
    yield "channels_last slice", last[:, 3:9]
    yield "channels_last crop", last[:, :6, 1:10, 1:]
    yield "flipped axes", base[:, :6].transpose(2, 3)
    yield "expanded", make(1, 6, 9, 8).expand(4, 6, 9, 8)
    yield "large", make(2, 6, 70, 65)
    yield "empty", base[:0, :6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_conv2d_reads_views(dtype):
    _, blob = conv_layer(padding=1)
    for name, x in conv_views(dtype):
        dense = x.clone(memory_format=torch.contiguous_format)
        expected = conv(dense.contiguous(memory_format=torch.channels_last), blob)
        found = conv(x, blob)
        assert torch.equal(found, expected), name
        assert found.is_contiguous(memory_format=torch.channels_last), name


def test_channels_last_enters_without_a_copy_of_other_values():
    """The op and the numpy entry point, which is channels-last, agree to the byte."""
    _, blob = conv_layer(padding=1, out=INT8_OUT)
    x = values(2, 6, 9, 8).contiguous(memory_format=torch.channels_last)
    reference = _core.conv2d(blob.numpy(), x.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(conv(x, blob, out_int8=True).permute(0, 2, 3, 1).numpy(), reference)


def test_residual_and_half_input_in_any_layout():
    _, blob = conv_layer(padding=1, half_in=[0, 4])
    x = int8_values(2, 6, 9, 8)
    residual, half = values(2, 13, 9, 8), values(2, 2, 9, 8, seed=9)
    last = torch.channels_last
    expected = conv(
        x.contiguous(memory_format=last),
        blob,
        residual=residual.contiguous(memory_format=last),
        half_input=half.contiguous(memory_format=last),
    )
    assert torch.equal(conv(x, blob, residual=residual, half_input=half), expected)
    plain = conv(x, blob, half_input=half)
    torch.testing.assert_close(plain + residual, expected, rtol=1e-5, atol=1e-5)


def test_results_do_not_depend_on_threads():
    _, blob = linear_layer(64, 96)
    _, conv_blob = conv_layer(padding=1)
    x, image = values(70, 96), values(2, 6, 40, 33)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append((dq.linear(x, blob, 64), conv(image, conv_blob)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        assert torch.equal(found[0][1], other[1])


def test_pruned_outputs_are_zero():
    keep = [0, 3, 4, 9, 30]
    packed, blob = linear_layer(act=None, keep_out=keep)
    x = values(3, 19)
    y = dq.linear(x, blob, 37)
    gone = [i for i in range(37) if i not in keep]
    assert torch.equal(y[:, gone], torch.zeros(3, len(gone)))
    reference = x.double() @ torch.from_numpy(packed.dequantize()).double().t()
    bias = torch.from_numpy(packed.bias).double()
    torch.testing.assert_close(y[:, keep].double(), reference[:, keep] + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_other_dtypes_are_refused_by_name(dtype):
    _, blob = linear_layer()
    _, conv_blob = conv_layer(padding=1)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"x: found {name}, accepted: float32 or int8"):
        dq.linear(torch.zeros(2, 19, dtype=dtype), blob, 37)
    with pytest.raises(ValueError, match=rf"x: found {name}, accepted: float32 or int8"):
        conv(torch.zeros(1, 6, 5, 5, dtype=dtype), conv_blob)
    with pytest.raises(ValueError, match=rf"x: found {name}, accepted: float32"):
        dq.quantize(torch.zeros(2, dtype=dtype), 0.1)


def test_wrong_arguments_are_refused_by_name():
    _, blob = linear_layer()
    _, conv_blob = conv_layer(padding=1)
    _, half_blob = linear_layer(half_in=[2])
    x, image = values(2, 19), values(1, 6, 5, 5)
    cases = [
        (lambda: dq.linear(values(2, 18), blob, 37), r"x: found \[2, 18\].*19"),
        (lambda: dq.linear(torch.tensor(1.0), blob, 37), r"x: found \[\]"),
        (lambda: dq.linear(x, blob, 36), "out_features: found 36, accepted: 37"),
        (lambda: dq.linear(x, blob, 37, True), "out_int8: found True, accepted: False"),
        (lambda: dq.linear(x, conv_blob, 37), "packed: found a conv2d layer"),
        (lambda: dq.linear(x, blob.float(), 37), r"packed: found float32\["),
        (lambda: dq.linear(x, blob[:-64], 37), "packed: found"),
        (lambda: dq.linear(x, torch.zeros_like(blob), 37), "packed: found no runtime layout"),
        (lambda: dq.linear(x, blob, 37, residual=values(2, 36)), r"residual: found \[2, 36\]"),
        (
            lambda: dq.linear(x, blob, 37, residual=int8_values(2, 37)),
            "residual_scale: found 0",
        ),
        (lambda: dq.linear(x, blob, 37, residual=x.double()), "residual"),
        (lambda: dq.linear(int8_values(2, 19), half_blob, 37), "half_input: found nothing"),
        (
            lambda: dq.linear(int8_values(2, 19), half_blob, 37, half_input=values(2, 2)),
            r"half_input: found \[2, 2\], accepted: \[2, 1\]",
        ),
        (lambda: conv(image, blob), "packed: found a linear layer"),
        (lambda: conv(image[0], conv_blob), r"x: found \[6, 5, 5\]"),
        (lambda: conv(values(1, 5, 5, 5), conv_blob), r"x: found \[1, 5, 5, 5\]"),
        (lambda: conv(image, conv_blob, stride=2), r"stride: found \[2, 2\], accepted: \[1, 1\]"),
        (lambda: conv(image, conv_blob, kernel=1), r"kernel: found \[1, 1\]"),
        (lambda: dq.conv2d(image, conv_blob, 13, (3,)), "window: found 7 integers"),
        (lambda: dq.quantize(x, 0.0), "scale: found 0"),
        (lambda: dq.quantize(x, float("nan")), "scale: found"),
        (lambda: dq.quantize(x, 1.0, 200), "zero_point: found 200"),
        (lambda: dq.quantize(x, 1.0, 0, 9), "bits: found 9, accepted: 4 to 8"),
        (lambda: dq.dequantize(x, 1.0), "q: found float32, accepted: int8"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_int8_input_of_a_dynamic_layer_is_refused():
    act = {"mode": "dynamic_row", "scale": 1.0, "zero_point": 0, "bits": 8}
    _, blob = linear_layer(act=act)
    with pytest.raises(ValueError, match="x: found int8, accepted: float32"):
        dq.linear(int8_values(2, 19), blob, 37)


def test_inputs_that_require_grad_are_refused_while_grad_mode_is_on():
    _, blob = linear_layer()
    _, conv_blob = conv_layer(padding=1)
    x = values(2, 19).requires_grad_()
    image = values(1, 6, 5, 5).requires_grad_()
    for call in (
        lambda: dq.linear(x, blob, 37),
        lambda: dq.linear(x * 2, blob, 37),
        lambda: conv(image, conv_blob),
        lambda: dq.quantize(x, 0.1),
    ):
        with pytest.raises(RuntimeError, match=r"x: found a tensor that requires grad.*detach"):
            call()
    with pytest.raises(RuntimeError, match="residual: found a tensor that requires grad"):
        dq.linear(x.detach(), blob, 37, residual=values(2, 37).requires_grad_())
    expected = dq.linear(x.detach(), blob, 37)
    with torch.no_grad():
        assert torch.equal(dq.linear(x, blob, 37), expected)
    with torch.inference_mode():
        made_here = values(2, 19)
        assert torch.equal(dq.linear(x, blob, 37), expected)
    assert torch.equal(dq.linear(made_here, blob, 37), expected)
    assert x.grad is None
    assert x._version == 0


def test_meta_tensors_give_shapes():
    blob = linear_layer()[1].to("meta")
    assert dq.linear(torch.empty(2, 3, 19, device="meta"), blob, 37).shape == (2, 3, 37)
    image = torch.empty(2, 6, 9, 8, device="meta")
    out = conv(image, blob, out_int8=True)
    assert out.shape == (2, 13, 9, 8)
    assert out.dtype == torch.int8
    assert out.is_contiguous(memory_format=torch.channels_last)
