"""QuantLinear and QuantConv2d: construction, calls, state, copies and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from defakeq_kernels import _core, reference  # noqa: E402
from defakeq_kernels.nn import ActQuant, PackedWeight, QuantConv2d, QuantLinear  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def reference_of(layer: Any, x: Any, **extra: Any) -> Any:
    """The numpy reference's result for a float32 or int8 torch input."""
    options = {"act": layer.act, "activation": layer.activation, "out": layer.out, **extra}
    weight = layer.packed_weight()
    if layer.kind == "linear":
        return torch.from_numpy(reference.linear(weight, x.numpy(), **options))
    nhwc = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())
    return torch.from_numpy(reference.conv2d(weight, nhwc, **options)).permute(0, 3, 1, 2)


def mixed_linear(act: ActQuant | None = None, activation: str = "none") -> QuantLinear:
    bits = torch.tensor([8] * 6 + [4] * 6 + [1] * 4 + [2] * 3)
    return QuantLinear.from_float(
        nn.Linear(37, 19),
        bits=bits,
        keep_out=torch.arange(1, 19),
        keep_in=torch.arange(0, 37, 2),
        half_out=[2, 5],
        half_in=torch.tensor([4, 10]),
        act=act,
        activation=activation,
    )


ACTS = {
    "none": None,
    "static": ActQuant.static(-3, 3),
    "tensor": ActQuant.dynamic(),
    "row": ActQuant.dynamic("row"),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("shape", [(37,), (3, 37), (2, 5, 37), (0, 37)])
def test_linear_is_the_reference(act: ActQuant | None, shape: tuple[int, ...]) -> None:
    layer = mixed_linear(act, "silu")
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 19)
    assert torch.equal(y, reference_of(layer, x))
    assert torch.all(y[..., 0] == 0)


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": "valid", "dilation": (1, 2)},
        {"kernel_size": 3, "padding": "same", "groups": 12},
        {"kernel_size": 1, "groups": 3, "bias": False},
    ],
)
def test_conv2d_is_the_reference(act: ActQuant | None, options: dict[str, Any]) -> None:
    conv = nn.Conv2d(12, 24, **options)
    layer = QuantConv2d.from_float(conv, bits=5, act=act, activation="gelu", half_out=[3])
    for x in (torch.randn(2, 12, 11, 13), torch.randn(0, 12, 11, 13)):
        y = layer(x)
        assert y.shape == conv(x).shape
        assert torch.equal(y, reference_of(layer, x))
        assert torch.equal(layer(x.to(memory_format=torch.channels_last)), y)
    assert torch.equal(layer(x.new_ones(12, 9, 9)), layer(x.new_ones(1, 12, 9, 9))[0])


def test_eight_bits_are_close_to_the_float_layer() -> None:
    linear, conv = nn.Linear(64, 32), nn.Conv2d(16, 32, 3, padding=1)
    x, image = torch.randn(20, 64).clamp(-3, 3), torch.randn(2, 16, 8, 8).clamp(-3, 3)
    for layer, own, value in ((linear, QuantLinear, x), (conv, QuantConv2d, image)):
        wanted = layer(value)
        found = own.from_float(layer, act=ActQuant.static(-3, 3))(value)
        assert torch.mean((found - wanted) ** 2) < 1e-3 * torch.mean(wanted**2)


def test_views_with_offsets_and_strides() -> None:
    layer = mixed_linear(ActQuant.static(-3, 3))
    base = torch.randn(9, 80)
    for view in (base[1:, 3:40], base[::2, 5:42], base.t()[:37].t(), base[:, :74:2]):
        assert torch.equal(layer(view), layer(view.contiguous()))
    conv = QuantConv2d.from_float(nn.Conv2d(4, 8, 3), act=ActQuant.static(-3, 3))
    base = torch.randn(3, 6, 12, 12)
    for view in (base[:, 1:5, 2:, ::2], base[1:, ::1][:, 2:].transpose(2, 3)):
        assert torch.equal(conv(view), conv(view.contiguous()))


def test_dequantized_weight_has_the_original_shape_and_zeros() -> None:
    layer = mixed_linear()
    w = layer.dequantized_weight()
    assert w.dtype == torch.float32
    assert w.shape == (19, 37)
    assert torch.all(w[0] == 0)
    assert torch.all(w[:, 1::2] == 0)
    assert torch.all(w[1:, 0::2].abs().sum(1) > 0)
    bias = layer.dequantized_bias()
    assert bias is not None
    assert bias[0] == 0
    x = torch.randn(5, 37)
    wanted = x.double() @ w.double().T + bias.double()
    assert torch.allclose(layer(x).double(), wanted, atol=1e-5)


def test_half_precision_channels_keep_their_weights() -> None:
    linear = nn.Linear(16, 8)
    layer = QuantLinear.from_float(linear, bits=1, half_out=[6], half_in=[2, 9])
    w = layer.dequantized_weight()
    rounded = linear.weight.detach().half().float()
    assert torch.equal(w[6], rounded[6])
    assert torch.equal(w[:, [2, 9]], rounded[:, [2, 9]])
    assert not torch.equal(w[0], rounded[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_cast_and_cast_back(dtype: Any) -> None:
    layer = mixed_linear(ActQuant.static(-3, 3))
    x, residual = torch.randn(4, 37).to(dtype), torch.randn(4, 19).to(dtype)
    y = layer(x, residual)
    assert y.dtype == dtype
    assert torch.equal(y, layer(x.float(), residual.float()).to(dtype))


def test_int8_in_and_out_with_residual_and_half_input() -> None:
    act, out = ActQuant.static(-2, 6), ActQuant.static(-1, 4, bits=6)
    built = mixed_linear(act, "relu")
    layer = QuantLinear(built.packed_weight(), act, "relu", out)
    x = torch.randint(-128, 128, (6, 37), dtype=torch.int8)
    half, residual = torch.randn(6, 2), torch.randint(-128, 128, (6, 19), dtype=torch.int8)
    y = layer(x, residual, half, residual_scale=0.05, residual_zero_point=-3)
    extra = {
        "half_input": half.numpy(),
        "residual": residual.numpy(),
        "residual_scale": 0.05,
        "residual_zero_point": -3,
    }
    assert y.dtype == torch.int8
    assert torch.equal(y, reference_of(layer, x, **extra))
    assert torch.all(y[:, 0] == out.zero_point)
    with pytest.raises(ValueError, match="half_input: found nothing"):
        layer(x)


def test_half_inputs_read_the_float_input() -> None:
    linear = nn.Linear(8, 4, bias=False)
    layer = QuantLinear.from_float(linear, half_in=[3], act=ActQuant.static(-1, 1))
    x = torch.zeros(1, 8)
    x[0, 3] = 1000.0  # far outside the quantized range
    assert torch.equal(layer(x)[0], linear.weight.detach()[:, 3].half().float() * 1000)


def test_refuses_by_name() -> None:
    layer = mixed_linear(ActQuant.static(-3, 3))
    x = torch.randn(2, 37)
    with pytest.raises(ValueError, match=r"x: found torch\.float64; accepted is float32, float16"):
        layer(x.double())
    with pytest.raises(ValueError, match="x: found"):
        layer(torch.randn(2, 36))
    with pytest.raises(ValueError, match="residual: found"):
        layer(x, torch.randn(2, 18))
    with pytest.raises(RuntimeError, match="x: found a tensor that requires grad"):
        layer(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="residual: found a tensor that requires grad"):
        layer(x, torch.randn(2, 19, requires_grad=True))
    with pytest.raises(RuntimeError, match="x: found a tensor that requires grad"):
        layer(x.half().requires_grad_())
    with torch.no_grad():
        layer(x.clone().requires_grad_())
    dynamic = mixed_linear(ActQuant.dynamic())
    with pytest.raises(ValueError, match="x: found int8"):
        dynamic(torch.zeros(1, 37, dtype=torch.int8), None, torch.zeros(1, 2))


def test_from_float_refuses_by_name() -> None:
    linear, conv = nn.Linear(8, 4), nn.Conv2d(8, 4, 3)
    wrong = [
        (linear, {"bits": 9}, "bits: found 9"),
        (linear, {"bits": torch.tensor([8, 8])}, "bits: found"),
        (linear, {"keep_out": [4]}, "keep_out: found 4"),
        (linear, {"keep_in": torch.tensor([True] * 8)}, "keep_in: found a mask"),
        (linear, {"half_in": [1], "keep_in": [0, 2]}, "half_in: found channel 1"),
        (linear, {"group_size": 6}, "group_size: found 6"),
        (linear, {"activation": "tanh"}, "activation: found 'tanh'"),
        (linear, {"act": 8}, "act: found int"),
        (conv, {}, "module: found Conv2d"),
        (nn.Conv2d(8, 4, 3, padding_mode="reflect"), {}, "padding_mode: found 'reflect'"),
        (nn.Conv2d(8, 4, 2, padding="same"), {}, "padding: found 'same'"),
        (nn.Conv2d(8, 4, 3, groups=2), {"keep_in": [0]}, "keep_in"),
        (linear, {}, "module: found Linear"),
    ]
    for module, options, message in wrong:
        swapped = {"module: found Conv2d": QuantLinear, "module: found Linear": QuantConv2d}
        own = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
        with pytest.raises(ValueError, match=message):
            swapped.get(message, own).from_float(module, **options)


def test_explain_tells_what_runs() -> None:
    layer = mixed_linear(ActQuant.static(-3, 3))
    info = layer.explain()
    assert info["strategy"] == "gemm"
    assert info["stored_outputs"] == 18
    assert info["macs"] == 18 * 19
    assert info["macs_skipped"] == 19 * 37 - 18 * 19
    assert [s["bits"] for s in info["segments"]] == [1, 2, 4, 8, 16]
    assert info["storage_bytes"] == layer.packed_weight().nbytes
    assert any("2 outputs stored in half precision" in text for text in info["fallbacks"])
    assert any("weight-only" in text for text in mixed_linear().explain()["fallbacks"])
    try:
        _core.set_isa("scalar")
        assert any("scalar kernels" in text for text in layer.explain()["fallbacks"])
    finally:
        _core.set_isa(None)


def test_prints_what_it_is() -> None:
    text = repr(mixed_linear(ActQuant.static(-3, 3), "silu"))
    for part in ("shape=[19, 37]", "2x16bit", "static:8bit", "in_index=17", "activation=silu"):
        assert part in text


# State


def other_linear() -> QuantLinear:
    torch.manual_seed(7)
    return mixed_linear(ActQuant.static(-1, 5))


def test_state_dict_survives_a_file_and_carries_the_calibration() -> None:
    layer, other = mixed_linear(ActQuant.static(-3, 3), "gelu"), other_linear()
    x = torch.randn(3, 37)
    assert not torch.equal(layer(x), other(x))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(layer(x), other(x))
    assert other.act == layer.act
    assert other.activation == "gelu"


def test_state_dict_holds_the_storage_format_only() -> None:
    state = mixed_linear().state_dict()
    assert "packed" not in state
    weight = mixed_linear().packed_weight()
    assert isinstance(weight, PackedWeight)
    bytes_held = sum(t.numel() * t.element_size() for k, t in state.items() if k[0] != "_")
    assert bytes_held == weight.nbytes


def test_state_dict_loads_with_assign_and_inside_a_model() -> None:
    model, other = nn.Sequential(mixed_linear()), nn.Sequential(other_linear())
    other.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(3, 37)
    assert torch.equal(model(x), other(x))


def test_state_of_another_construction_is_refused() -> None:
    layer = other_linear()
    x = torch.randn(2, 37)
    before = layer(x)
    plain = QuantLinear.from_float(nn.Linear(37, 19), bits=4).state_dict()
    with pytest.raises(RuntimeError, match=r"bits: found \[4\] in the state; accepted is \[1, 2"):
        layer.load_state_dict(plain)
    state = mixed_linear().state_dict()
    state["seg0_scale"] = state["seg0_scale"].half()
    with pytest.raises(RuntimeError, match=r"seg0_scale: found torch\.float16"):
        layer.load_state_dict(state)
    state = mixed_linear().state_dict()
    state["in_index"] = state["in_index"].flip(0)
    with pytest.raises(RuntimeError, match="in_index"):
        layer.load_state_dict(state)
    state = mixed_linear().state_dict()
    del state["bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(state)
    assert torch.isfinite(layer(x)).all()
    fresh = other_linear()
    with pytest.raises(RuntimeError, match="extra_state"):
        fresh.load_state_dict({**state, "_extra_state": torch.zeros(3, dtype=torch.uint8)})
    assert torch.equal(fresh(x), before)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "pickle"],
)
def test_copies_build_their_own_runtime_layout(duplicate: Any) -> None:
    layer = mixed_linear(ActQuant.static(-3, 3), "hardswish")
    copied = duplicate(layer)
    assert copied.packed.data_ptr() != layer.packed.data_ptr()
    assert copied.packed.data_ptr() % 64 == 0
    x = torch.randn(3, 37)
    assert torch.equal(copied(x), layer(x))
    assert set(copied.state_dict()) == set(layer.state_dict())


def test_changes_of_type_leave_the_layer_as_it_is() -> None:
    layer = mixed_linear(ActQuant.static(-3, 3))
    x = torch.randn(3, 37)
    wanted = layer(x)
    model = nn.Sequential(layer, nn.Linear(19, 2))
    for change in (model.half, model.double, model.bfloat16, model.float):
        change()
        assert layer.get_buffer("seg0_scale").dtype == torch.float32
        assert torch.equal(layer(x), wanted)


def test_export_and_compile() -> None:
    x, image = torch.randn(4, 37), torch.randn(2, 6, 9, 9)
    conv = QuantConv2d.from_float(
        nn.Conv2d(6, 10, 3, padding=1), bits=3, act=ActQuant.static(-3, 3), activation="silu"
    )
    for layer, value in ((mixed_linear(ActQuant.dynamic("row")), x), (conv, image)):
        wanted = layer(value)
        exported = torch.export.export(layer, (value,))
        assert torch.equal(exported.module()(value), wanted)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(value), wanted)
        assert torch.equal(compiled(value.half()), layer(value.half()))
