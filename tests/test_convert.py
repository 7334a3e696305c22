"""Plans, folding, calibration, conversion and model files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import defakeq  # noqa: E402
from defakeq import conversion  # noqa: E402
from defakeq.calibrate import RangeObserver  # noqa: E402
from defakeq.fold import Folded, fold_batch_norm, fuse_activations  # noqa: E402
from defakeq.plan import LayerPlan, QuantPlan  # noqa: E402
from defakeq_kernels import dfq  # noqa: E402
from defakeq_kernels.nn import ActQuant, QuantConv2d, QuantLinear  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def settled(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with BatchNorm statistics that do something."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.track_running_stats:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


class Small(nn.Module):
    """Convolutions with BatchNorm, a residual, a depthwise layer and a head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish()
        )
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.head = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = x + self.act(self.norm(self.conv(x)))
        return self.head(self.depthwise(x).mean((2, 3)))


def small_inputs(count: int = 4) -> Any:
    return torch.randn(count, 3, 20, 18)


def folded_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Folded)]


# Plans


def test_uniform_plans_every_layer_but_the_skipped() -> None:
    model = Small()
    plan = QuantPlan.uniform(model, 4, skip=["head"], group_size=8)
    assert list(plan.layers) == ["stem.0", "conv", "depthwise"]
    assert plan.layers["conv"] == LayerPlan(bits=4, act_bits=8, group_size=8)
    assert plan.layers["depthwise"].group_size is None
    plan.validate(model)
    assert "head.0" not in QuantPlan.uniform(model, 4, skip=["*.0"]).layers
    assert QuantPlan.uniform(model, 8, act_bits=None).layers["conv"].act_bits is None
    with pytest.raises(ValueError, match=r"skip: found 'haed'.*nearest: 'head'"):
        QuantPlan.uniform(model, 4, skip=["haed"])


def test_uniform_leaves_out_what_the_kernels_cannot_run() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)
            self.reflect = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
            self.long = nn.Linear(40_000, 2)
            self.plain = nn.Linear(8, 2)

    assert list(QuantPlan.uniform(Other(), 8).layers) == ["plain"]
    for name, message in (
        ("attention.out_proj", "MultiheadAttention"),
        ("reflect", "padding_mode: found 'reflect'"),
        ("long", "reduction over 40000"),
        ("attention", "found MultiheadAttention; accepted is Conv2d and Linear"),
    ):
        with pytest.raises(ValueError, match=f"layer {name!r}.*{message}"):
            QuantPlan({name: LayerPlan()}).validate(Other())


def test_plans_survive_json() -> None:
    plan = QuantPlan(
        {
            "a.0": LayerPlan(
                bits=torch.tensor([1, 16, 3]),
                act_bits=None,
                keep_out=torch.tensor([2, 0]),
                keep_in=[5, 1],
                half_out=np.array([2]),
                half_in=(5,),
                symmetric=True,
            ),
            "b": LayerPlan(bits=2, act_bits=5, group_size=32),
        }
    )
    assert plan.layers["a.0"].keep_out == (0, 2)
    again = QuantPlan.from_json(plan.to_json())
    assert again == plan
    assert json.loads(plan.to_json())["layers"]["b"]["bits"] == 2


def test_wrong_plan_texts_are_refused_with_the_layer_and_field() -> None:
    for text, message in (
        ("{", "plan: found no JSON"),
        ("[]", 'no "layers"'),
        ('{"version": 9, "layers": {}}', "version: found 9"),
        ('{"version": 1, "layers": {"x": {"bit": 4}}}', "layer 'x': bit: .*nearest: 'bits'"),
        ('{"version": 1, "layers": {"x": {"bits": 9}}}', "layer 'x': bits: found 9"),
        ('{"version": 1, "layers": {"x": {"act_bits": 3}}}', "layer 'x': act_bits: found 3"),
        ('{"version": 1, "layers": {"x": {"keep_in": [1, 1]}}}', "keep_in: found channel 1 twice"),
        ('{"version": 1, "layers": {"x": {"keep_in": "a"}}}', "keep_in: found 'a'"),
        ('{"version": 1, "layers": {"x": {"symmetric": 1}}}', "symmetric: found 1"),
        ('{"version": 1, "layers": {"x": {"group_size": 6}}}', "group_size: found 6"),
        ('{"version": 1, "layers": {"x": 4}}', "layer 'x': layer plan: found int"),
    ):
        with pytest.raises(ValueError, match=message):
            QuantPlan.from_json(text)


def test_validation_names_every_wrong_layer() -> None:
    plan = QuantPlan(
        {
            "conf": LayerPlan(),
            "conv": LayerPlan(keep_in=[16]),
            "depthwise": LayerPlan(keep_in=[0]),
            "norm": LayerPlan(),
            "stem.0": LayerPlan(bits=[8, 8]),
            "head.0": LayerPlan(keep_out=[1], half_out=[2]),
            "head.2": LayerPlan(half_in=range(8)),
        }
    )
    with pytest.raises(ValueError) as error:
        plan.validate(Small())
    lines = str(error.value).splitlines()
    assert len(lines) == 7
    for line, message in zip(
        lines,
        (
            "layer 'conf': not in the model (nearest: 'conv')",
            "layer 'conv': keep_in: found channel 16; accepted is 0 to 15",
            "layer 'depthwise': keep_in: found with 16 convolution groups",
            "layer 'norm': found BatchNorm2d",
            "layer 'stem.0': bits: found 2 widths; accepted is one, or 16",
            "layer 'head.0': half_out: found channel 2; accepted is channels of keep_out",
            "layer 'head.2': half_in: found every kept input",
        ),
        strict=True,
    ):
        assert line.startswith(message)


# Folding


def fold_all(model: nn.Module, x: Any) -> list[str]:
    """Folds in place and checks that the result is the same."""
    model = settled(model)
    with torch.no_grad():
        wanted = model(x.clone())
        folded = fold_batch_norm(model, ((x.clone(),), {}))
        found = model(x.clone())
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert folded_names(model) == folded
    return folded


def test_folds_batch_norm() -> None:
    assert fold_all(Small(), small_inputs()) == ["stem.1", "norm"]
    linear = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9, affine=False))
    assert fold_all(linear, torch.randn(5, 6)) == ["1"]


class Untraceable(nn.Module):
    """Python control flow on values, which symbolic tracing cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Any) -> Any:
        if float(x.sum()) > 1e9:
            x = -x
        return self.act(self.norm(self.conv(x)))


def test_folds_where_the_model_cannot_be_traced() -> None:
    assert fold_all(Untraceable(), small_inputs()) == ["norm"]


class Reads(nn.Module):
    """conv, norm and activation, used in the way `how` says."""

    def __init__(self, how: Callable[[Any, Any], Any], traceable: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Hardswish()
        self.how, self.traceable = how, traceable
        self.kept: Any = None

    def forward(self, x: Any) -> Any:
        if not self.traceable and float(x.sum()) > 1e9:
            x = -x
        return self.how(self, x)


def norm_and_skip(m: Any, x: Any) -> Any:
    y = m.conv(x)
    return m.act(m.norm(y)) + y


def conv_twice(m: Any, x: Any) -> Any:
    return m.norm(m.conv(m.conv(x)))


def norm_twice(m: Any, x: Any) -> Any:
    return m.norm(m.norm(m.conv(x)))


def both_returned(m: Any, x: Any) -> Any:
    y = m.conv(x)
    return torch.cat([m.norm(y), y.flip(0)])


def kept_aside(m: Any, x: Any) -> Any:
    m.kept = m.conv(x)
    return m.norm(m.kept)


def something_between(m: Any, x: Any) -> Any:
    return m.norm(m.conv(x).sqrt().nan_to_num())


def viewed(m: Any, x: Any) -> Any:
    y = m.conv(x)
    z = y.view(-1)
    return m.norm(y) + z.view(y.shape)


def functional_norm(m: Any, x: Any) -> Any:
    y = m.conv(x)
    return F.batch_norm(y, m.norm.running_mean, m.norm.running_var)


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize(
    "how",
    [
        norm_and_skip,
        conv_twice,
        norm_twice,
        both_returned,
        kept_aside,
        something_between,
        viewed,
        functional_norm,
    ],
)
def test_does_not_fold_where_the_output_is_read_elsewhere(how: Any, traceable: bool) -> None:
    assert fold_all(Reads(how, traceable), small_inputs()) == []


def test_does_not_fold_what_has_no_fixed_statistics_or_other_readers() -> None:
    x = small_inputs()
    free = nn.BatchNorm2d(4, track_running_stats=False)
    assert fold_all(nn.Sequential(nn.Conv2d(3, 4, 1), free), x) == []
    hooked = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    hooked[0].register_forward_hook(lambda *_: None)
    assert fold_all(hooked, x) == []
    weighted = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)
    )
    assert fold_all(weighted, x) == []

    class Louder(nn.BatchNorm2d):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    assert fold_all(nn.Sequential(nn.Conv2d(3, 4, 1), Louder(4)), x) == []


def fused_in(model: nn.Module, x: Any, **pruned: bool) -> dict[str, str]:
    names = {n: pruned.get(n, False) for n, m in model.named_modules() if hasattr(m, "weight")}
    return fuse_activations(model.eval(), ((x,), {}), names)


def test_fuses_activations() -> None:
    x = small_inputs()
    for module, name in (
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardswish(), "hardswish"),
        (nn.SiLU(inplace=True), "silu"),
        (nn.GELU(), "gelu"),
        (nn.Sigmoid(), "sigmoid"),
    ):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), module, nn.Conv2d(4, 4, 1))
        assert fused_in(model, x) == {"0": name}
        assert isinstance(model[1], Folded)


def test_does_not_fuse_what_is_shared_or_different() -> None:
    x = small_inputs()
    shared = nn.Hardswish()
    twice = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.Conv2d(4, 4, 1), shared)
    assert fused_in(twice, x) == {}
    tanh = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(approximate="tanh"))
    assert fused_in(tanh, x) == {}

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 1), nn.SiLU()

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            return y * self.act(y)

    assert fused_in(Skip(), x) == {}
    sigmoid = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid())
    names = {"0": True}
    assert fuse_activations(sigmoid.eval(), ((x,), {}), names) == {}


# Calibration


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


# Conversion


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


# Files


@pytest.fixture
def converted() -> tuple[nn.Module, nn.Module, Any]:
    model, x = settled(Small()), small_inputs()
    plan = QuantPlan.uniform(model, 4, skip=["stem"])
    return defakeq.convert(model, x[:1], plan, [x]), model, x


def test_files_give_the_same_model_back(converted: Any, tmp_path: Path) -> None:
    quantized, model, x = converted
    path = tmp_path / "small.dfq"
    defakeq.save(quantized, path)
    with torch.no_grad():
        wanted = quantized(x)
        for skeleton in (model, quantized, Small, lambda: Small(16)):
            loaded = defakeq.load(path, skeleton)
            assert not loaded.training
            assert torch.equal(loaded(x), wanted)
            assert folded_names(loaded) == folded_names(quantized)
    assert isinstance(model.conv, nn.Conv2d)
    again = tmp_path / "again.dfq"
    defakeq.save(defakeq.load(path, Small), again)
    assert again.read_bytes() == path.read_bytes()


def test_files_are_small(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    plan = QuantPlan.uniform(model, 2, act_bits=None)
    path = tmp_path / "two.dfq"
    defakeq.save(defakeq.convert(model, torch.randn(1, 512), plan), path)
    weights = 2 * 512 * 512 // 4
    assert weights < path.stat().st_size < 1.2 * weights


def test_builders_are_called_only_when_trusted(converted: Any, tmp_path: Path) -> None:
    quantized, _, x = converted
    path = tmp_path / "small.dfq"
    name = f"{__name__}:Small"
    defakeq.save(quantized, path, builder=name, builder_kwargs={"width": 16})
    with pytest.raises(ValueError, match=r"builder: found '.*:Small' in the file; accepted"):
        defakeq.load(path)
    assert torch.equal(defakeq.load(path, trusted=[name])(x), quantized(x))
    for wrong, message in (
        ("os", "accepted is 'package.module:function'"),
        (f"{__name__}:Missing", "cannot be imported"),
        ("no.such.module:f", "cannot be imported"),
        (f"{__name__}:__doc__", "not callable"),
    ):
        with pytest.raises(ValueError, match=f"builder: found '{wrong}'.*{message}"):
            defakeq.save(quantized, path, builder=wrong)
    with pytest.raises(ValueError, match="builder_kwargs"):
        defakeq.save(quantized, path, builder=name, builder_kwargs={"width": (1, 2)})
    with pytest.raises(ValueError, match="builder_kwargs: found without a builder"):
        defakeq.save(quantized, path, builder_kwargs={"width": 16})


def test_files_may_not_call_functions_of_this_package(converted: Any, tmp_path: Path) -> None:
    quantized, _, _ = converted
    path = tmp_path / "small.dfq"
    defakeq.save(quantized, path, builder="defakeq.conversion:load", builder_kwargs={"path": "x"})
    with pytest.raises(ValueError, match=r"builder: found 'defakeq\.conversion:load' in the"):
        defakeq.load(path)


def test_modules_of_this_package_are_built(tmp_path: Path) -> None:
    network = pytest.importorskip("defakeq.embedded.network")
    model, x = settled(network.EmbeddedDetector()), torch.randn(2, 3, 128, 128)
    quantized = defakeq.convert(model, x[:1], QuantPlan.uniform(model, 8, act_bits=None))
    path = tmp_path / "detector.dfq"
    defakeq.save(quantized, path, builder="defakeq.embedded.network:EmbeddedDetector")
    with torch.no_grad():
        assert torch.equal(defakeq.load(path)(x), quantized(x))


def test_load_names_what_does_not_fit(converted: Any, tmp_path: Path) -> None:
    quantized, _, _ = converted
    path = tmp_path / "small.dfq"
    defakeq.save(quantized, path)
    with pytest.raises(ValueError, match="the file names no builder"):
        defakeq.load(path)
    with pytest.raises(ValueError, match=r"layer 'conv': found Conv2d .*\[8, 8, 3, 3\]"):
        defakeq.load(path, Small(8))
    with pytest.raises(ValueError, match="layer 'conv': not in the model"):
        defakeq.load(path, nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="model: found int returned"):
        defakeq.load(path, lambda: 3)
    larger = Small()
    larger.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"tensor 'extra\.weight': found nothing in the file"):
        defakeq.load(path, larger)
    tensors, network = dfq.read(path)
    dfq.write(path, {**tensors, "stem.8.weight": np.zeros(3, np.float32)}, network)
    with pytest.raises(ValueError, match=r"tensor 'stem\.8\.weight': not in the model"):
        defakeq.load(path, Small)
    dfq.write(path, {**tensors, "stem.0.weight": np.zeros(3, np.float32)}, network)
    with pytest.raises(ValueError, match=r"tensor 'stem\.0\.weight': found shape \[3\]"):
        defakeq.load(path, Small)
    del network["model"]
    dfq.write(path, tensors, network)
    with pytest.raises(ValueError, match=r"network\.model: found nothing"):
        defakeq.load(path, Small)


def test_save_refuses_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model: found no packed layer"):
        defakeq.save(Small(), tmp_path / "x.dfq")
    layer = QuantLinear.from_float(nn.Linear(4, 4), act=ActQuant.static(-1, 1))
    with pytest.raises(ValueError, match="model: found a packed layer itself"):
        defakeq.save(layer, tmp_path / "x.dfq")
    model = nn.Sequential(layer)
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="phase"):
        defakeq.save(model, tmp_path / "x.dfq")
    assert not (tmp_path / "x.dfq").exists()


def test_other_types_of_parameters_survive(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).bfloat16())
        model.register_buffer("steps", torch.tensor(7))
        model.register_buffer("mask", torch.tensor([True, False]))
        return model

    model = build()
    model[0] = QuantLinear.from_float(model[0], bits=4)
    path = tmp_path / "x.dfq"
    defakeq.save(model, path)
    torch.manual_seed(9)
    loaded = defakeq.load(path, build)
    assert torch.equal(loaded[1].weight, model[1].weight)
    assert loaded[1].weight.dtype == torch.bfloat16
    assert torch.equal(loaded.steps, model.steps)
    assert torch.equal(loaded.mask, model.mask)


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
