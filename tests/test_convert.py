"""Calibration and conversion."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_model import Small, folded_names, settled, small_inputs  # noqa: E402
from torch import nn  # noqa: E402

import defakeq  # noqa: E402
from defakeq import conversion  # noqa: E402
from defakeq.calibrate import RangeObserver  # noqa: E402
from defakeq.fold import Folded  # noqa: E402
from defakeq.plan import LayerPlan, QuantPlan  # noqa: E402
from defakeq_kernels.nn import QuantConv2d, QuantLinear  # noqa: E402
from defakeq_kernels.quantize import ActQuant  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_observer_ranges() -> None:
    values = torch.randn(200_000)
    values[0], values[1] = 80.0, -60.0
    observer = RangeObserver()
    for part in values.split(10_000):
        observer.update(part)
    assert (observer.minimum, observer.maximum) == (-60.0, 80.0)
    errors = {}
    for bits in (8, 4):
        for method in ("minmax", "percentile", "mse"):
            q = observer.quantization(bits, method)
            assert (q.mode, q.bits) == ("static", bits)
            restored = torch.from_numpy(q.dequantize(q.quantize(values.numpy())))
            errors[method] = float(((restored - values) ** 2).mean())
        assert errors["mse"] <= 1.02 * min(errors.values())
        assert errors["mse"] < {8: 0.8, 4: 0.1}[bits] * errors["minmax"]


def test_one_image_far_above_all_others_costs_them_less() -> None:
    images = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    images[5] *= 8
    images[6] = 0  # and nearly black ones do not count for more than they are
    images[7] *= 1e-4
    others = images[[0, *range(8, 64)]]

    def error(parts: Sequence[torch.Tensor], count: int) -> float:
        observer = RangeObserver()
        for part in parts:
            observer.update(part, count)
        found = observer.quantization(8)
        off = torch.from_numpy(found.dequantize(found.quantize(others.numpy()))) - others
        return float(off.square().mean())

    pooled = error([images], 1)
    assert error(list(images), 1) < 0.4 * pooled
    assert error(images.split(16), 16) < 0.4 * pooled


def test_observer_finds_the_ranges_of_one_sided_and_constant_values() -> None:
    positive = RangeObserver()
    positive.update(torch.rand(5000) * 6)
    q = positive.quantization(8)
    assert q.zero_point == -128
    assert q.scale == pytest.approx(6 / 255, rel=0.02)
    constant = RangeObserver()
    for value in (3.0, 3.0):
        constant.update(torch.full((10,), value))
    q = constant.quantization(8)
    assert float(q.dequantize(q.quantize([3.0]))[0]) == pytest.approx(3.0, rel=0.01)
    zeros = RangeObserver()
    zeros.update(torch.zeros(4))
    assert zeros.quantization(8).quantize([0.0])[0] == zeros.quantization(8).zero_point
    with pytest.raises(ValueError, match="not finite"):
        zeros.update(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="found no activations"):
        RangeObserver().quantization(8)
    with pytest.raises(ValueError, match="observer: found 'best'"):
        zeros.quantization(8, "best")


def test_ranges_are_of_the_integer_inputs_only() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    x = torch.rand(100, 4) * torch.tensor([1.0, 100.0, 1.0, 1000.0])
    plan = QuantPlan({"0": LayerPlan(keep_in=[0, 1, 2], half_in=[1])})
    converted = defakeq.convert(model, x, plan, [x], observer="minmax")
    assert converted[0].act.scale == pytest.approx(1 / 255, rel=0.05)


def relative_error(found: Any, wanted: Any) -> float:
    return float(torch.mean((found - wanted) ** 2) / torch.mean(wanted**2))


@pytest.mark.parametrize(
    ("bits", "act_bits", "limit"), [(8, 8, 1e-3), (8, None, 1e-3), (5, 7, 0.1)]
)
def test_converted_models_are_close(bits: int, act_bits: int | None, limit: float) -> None:
    model, x = settled(Small()), small_inputs(16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = QuantPlan.uniform(model, bits, act_bits)
    converted = defakeq.convert(model, x[:1], plan, [x[:8], x[8:]])
    with torch.no_grad():
        assert relative_error(converted(x), model(x)) < limit
    for name, module in model.named_modules():
        assert not isinstance(module, (QuantLinear, QuantConv2d, Folded)), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert folded_names(converted) == ["stem.1", "stem.2", "norm", "act", "head.1"]
    fused = {"stem.0": "hardswish", "conv": "relu", "head.0": "gelu", "depthwise": "none"}
    for name, activation in fused.items():
        assert converted.get_submodule(name).activation == activation


def test_more_bits_are_better() -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    x, errors = torch.randn(500, 64), []
    for bits in (1, 2, 3, 4, 6, 8):
        converted = defakeq.convert(model, x[:1], QuantPlan.uniform(model, bits), [x])
        with torch.no_grad():
            errors.append(relative_error(converted(x), model(x)))
    assert errors == sorted(errors, reverse=True)
    errors = []
    for act_bits in (4, 5, 6, 7, 8):
        plan = QuantPlan.uniform(model, 8, act_bits)
        with torch.no_grad():
            errors.append(relative_error(defakeq.convert(model, x, plan, [x])(x), model(x)))
    assert errors == sorted(errors, reverse=True)


def test_pruned_and_half_precision_channels_arrive_in_the_layers() -> None:
    model, x = settled(Small()), small_inputs()
    plan = QuantPlan(
        {
            "conv": LayerPlan(
                bits=[2] * 8 + [6] * 8,
                keep_out=range(12),
                keep_in=range(1, 16),
                half_out=[3],
                half_in=[5],
                group_size=4,
                symmetric=True,
            )
        }
    )
    converted = defakeq.convert(model, x[:1], plan, [x])
    weight = converted.conv.packed_weight()
    assert [s.bits for s in weight.segments] == [2, 6, 16]
    assert weight.stored_out == 12
    assert list(weight.in_index) == [c for c in range(1, 16) if c != 5]
    assert list(weight.half_in_index) == [5]
    assert weight.group_size == 4
    assert weight.segments[0].zero_point is None
    assert isinstance(converted.stem[0], nn.Conv2d)
    assert not any(p.requires_grad for p in converted.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert converted(x).shape == (4, 2)  # with grad mode on
    assert torch.all(converted.conv(torch.randn(1, 16, 4, 4))[:, 12:] == 0)


def test_shared_layers_stay_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = self.a

        def forward(self, x: Any) -> Any:
            return self.b(self.a(x).relu())

    model, x = Shared().eval(), torch.randn(50, 6)
    converted = defakeq.convert(model, x, QuantPlan.uniform(model, 8), [x])
    assert converted.a is converted.b
    assert relative_error(converted(x), model(x).detach()) < 1e-3


def test_inputs_may_be_keyword_arguments_and_several() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, x: Any, y: Any) -> Any:
            return self.a(x) + self.b(y)

    model, x, y = Two().eval(), torch.randn(9, 4), torch.randn(9, 5)
    plan = QuantPlan.uniform(model, 8)
    first = defakeq.convert(model, (x, y), plan, [(x, y)])
    second = defakeq.convert(model, {"x": x, "y": y}, plan, [{"x": x, "y": y}])
    assert torch.equal(first(x, y), second(x, y))


def test_convert_refuses_by_name() -> None:
    model, x = settled(Small()), small_inputs()
    plan = QuantPlan.uniform(model, 8)
    with pytest.raises(ValueError, match="backend: found 'onnx'; accepted is 'modules'"):
        defakeq.convert(model, x, plan, [x], backend="onnx")
    with pytest.raises(ValueError, match="observer: found 'best'"):
        defakeq.convert(model, x, plan, [x], observer="best")
    with pytest.raises(ValueError, match=r"calibration: found None.*'stem\.0'"):
        defakeq.convert(model, x, plan)
    with pytest.raises(ValueError, match="calibration: found no batch"):
        defakeq.convert(model, x, plan, [])
    with pytest.raises(ValueError, match=r"layer 'stem\.0': found a value that is not"):
        defakeq.convert(model, x, plan, [x * float("nan")])
    with pytest.raises(ValueError, match="calibration: found str"):
        defakeq.convert(model, x, plan, ["x"])
    with pytest.raises(ValueError, match="example_inputs: found int"):
        defakeq.convert(model, 3, plan, [x])
    with pytest.raises(ValueError, match="plan: found dict"):
        defakeq.convert(model, x, {}, [x])
    with pytest.raises(ValueError, match="layer 'con'"):
        defakeq.convert(model, x, QuantPlan({"con": LayerPlan()}), [x])
    with pytest.raises(RuntimeError, match=r"example_inputs: the model fails: .*channels"):
        defakeq.convert(model, x[:, :1], plan, [x])
    with pytest.raises(RuntimeError, match=r"calibration batch 1: the model fails: .*channels"):
        defakeq.convert(model, x, plan, [x, x[:, :1]])
    half = copy.deepcopy(model).half()
    with pytest.raises(ValueError, match=r"layer 'stem\.0': found weights of torch.float16"):
        defakeq.convert(half, x.half(), plan, [x.half()])
    model.conv.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="layer 'conv': found forward hooks"):
        defakeq.convert(model, x, plan, [x])


def test_layers_that_are_not_called_as_modules_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.a, self.b, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how
            self.hidden = [self.a]

        def forward(self, x: Any) -> Any:
            if self.how == "unused":
                return self.a(x)
            if self.how == "weight":
                return self.b(self.a(x)) * self.b.weight.sum()
            return self.b(self.hidden[0](x))

    x = torch.randn(3, 4)
    for how, kind, message in (
        ("unused", ValueError, "layer 'b': found no call"),
        ("weight", RuntimeError, "fails on the example inputs .*weight"),
        ("hidden", RuntimeError, "layer 'a': the model holds"),
    ):
        model = Odd(how)
        with pytest.raises(kind, match=message):
            defakeq.convert(model, x, QuantPlan.uniform(model, 8), [x])


def test_transformer_encoders_call_their_packed_layers(tmp_path: Path) -> None:
    block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(block, 2).eval()
    padding = torch.tensor([[False] * 4 + [True], [False] * 5])
    inputs = {"src": torch.randn(2, 5, 16), "src_key_padding_mask": padding}
    quantized = defakeq.convert(model, inputs, QuantPlan.uniform(model, 8), [inputs])
    with torch.no_grad():
        found, wanted = quantized(**inputs), model(**inputs)
    assert float((found - wanted)[:, :4].abs().max()) < 0.1
    defakeq.save(quantized, tmp_path / "encoder.dfq")
    assert torch.equal(defakeq.load(tmp_path / "encoder.dfq", model)(**inputs), found)


def test_calls_by_keyword_and_scripted_models_are_refused_by_name() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            return self.fc(input=x)

    model, x = Keyword(), torch.randn(2, 4)
    plan = QuantPlan.uniform(model, 8)
    with pytest.raises(ValueError, match="layer 'fc': found a call with the keyword 'input'"):
        defakeq.convert(model, x, plan, x)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="model: found RecursiveScriptModule; accepted is"):
        defakeq.convert(scripted, x, plan, x)


@pytest.mark.parametrize("backend", ["modules", "program"])
@pytest.mark.parametrize(("batches", "found"), [([], "no"), (iter(()), "no"), (3, "int")])
def test_calibration_has_batches(backend: str, batches: Any, found: str) -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    plan = QuantPlan.uniform(model, 8)
    with pytest.raises(ValueError, match=f"calibration: found {found}"):
        defakeq.convert(model, torch.randn(2, 4), plan, batches, backend)


def test_programs_need_an_image() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    x, plan = torch.randn(0, 4), QuantPlan.uniform(model, 8)
    with pytest.raises(ValueError, match=r"example_inputs: found shape \[0, 4\]; accepted is"):
        defakeq.convert(model, x, plan, [torch.randn(1, 4)], backend="program")


@pytest.mark.parametrize(
    ("levels", "slope", "start"),
    [
        (np.arange(256), 1 / 255, 0.0),
        (np.arange(256), 2 / 255, -1.0),
        (np.arange(3, 240), 2 / 255, -1.0),
        (np.arange(256), 1 / 255 / 0.229, -0.485 / 0.229),
    ],
)
@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_every_level_of_a_picture_keeps_its_code(levels, slope, start, method):
    x = (levels * np.float32(slope) + np.float32(start)).astype(np.float32)
    observer = RangeObserver()
    for part in torch.from_numpy(x).split(100):
        observer.update(part)
    act = observer.quantization(8, method)
    codes = act.quantize(x).astype(int)
    steps = np.diff(codes)
    middle = np.abs(x[1:] + x[:-1]) < 1e-6  # the two around zero may meet
    assert set(steps[~middle]) == {1}
    assert set(steps[middle]) <= {0, 1}
    assert act.dequantize(np.int8(act.zero_point)) == 0


def test_one_image_without_a_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    image = torch.randn(3, 9, 9)
    converted = defakeq.convert(model, image, QuantPlan.uniform(model, 8), [image])
    with torch.no_grad():
        found, expected = converted(image), model(image)
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.parametrize(("slope", "start", "half"), [(2, -1.0, 1 / 255), (1, 0.0, None)])
def test_zero_midway_between_levels_is_found(slope, start, half):
    observer = RangeObserver()
    observer.update(torch.arange(256) * (slope / 255) + start)
    found = observer.half_level()
    assert found == half if half is None else found == pytest.approx(half, rel=1e-5)


def test_codes_at_the_ends_of_a_range_stand_for_the_mean_result():
    values = torch.cat([torch.linspace(-2, 2, 4000), torch.full((100,), -9.0)])
    observer = RangeObserver()
    observer.update(values)
    act = ActQuant.static(-2.0, 1.5, 8)
    found = observer.results_at_ends(torch.nn.functional.silu, act)
    codes = act.quantize(values.numpy())
    for code in (-128, 127):
        mean = torch.nn.functional.silu(values[torch.from_numpy(codes == code)]).mean()
        assert found[code] == pytest.approx(float(mean), abs=0.01)
    rectified = observer.results_at_ends(torch.relu, ActQuant.static(0.0, 2.0, 8))
    assert list(rectified) == [127]  # the first code is zero's


def test_other_values_have_no_levels():
    rng = np.random.default_rng(0)
    for x in (rng.random(5000), np.arange(20) / 20, np.arange(300) / 299, rng.random(100) ** 2):
        observer = RangeObserver()
        observer.update(torch.from_numpy(x.astype(np.float32)))
        assert observer._lattice.quantization() is None


@pytest.mark.parametrize("backend", ["modules", "program"])
def test_first_layers_are_rounded_for_pictures(backend, monkeypatch):
    rng = np.random.default_rng(1)
    smooth = rng.integers(0, 256, (8, 3, 2, 2)).repeat(8, 2).repeat(8, 3)
    pixels = np.clip(smooth + rng.integers(-2, 3, smooth.shape), 0, 255)
    x = torch.from_numpy((pixels / 127.5 - 1).astype(np.float32))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    with torch.no_grad():  # a high-pass layer
        model[0].weight -= model[0].weight.mean((2, 3), keepdim=True)
    plan = QuantPlan.uniform(model[:1], 8)
    error = []
    for _ in range(2):
        converted = conversion.convert(model, x[:1], plan, [x], backend=backend)
        with torch.no_grad():
            error.append(float((converted(x) - model(x)).norm() / model(x).norm()))
        monkeypatch.setattr(conversion, "round_first_layers", lambda model, plan, batches: plan)
    assert error[0] < 0.75 * error[1], error
