"""Plans: JSON, uniform plans and validation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_model import Small  # noqa: E402
from torch import nn  # noqa: E402

from defakeq.plan import LayerPlan, QuantPlan  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
        ('{"version": 1, "layers": {"x": {"bits": []}}}', "layer 'x': bits: found no width"),
        (
            '{"version": 1, "layers": {"x": {"scale": [null], "zero_point": [1]}}}',
            r"layer 'x': scale: found \[None\]; accepted is numbers",
        ),
        ('{"version": true, "layers": {}}', "version: found True"),
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


@pytest.mark.parametrize(
    ("model", "skip", "message"),
    [
        (None, (), "model: found NoneType; accepted is a torch.nn.Module"),
        (nn.Linear(2, 2), 0, "skip: found 0; accepted is names"),
        (nn.Linear(2, 2), ["", 1], "skip: found 1; accepted is names"),
    ],
)
def test_uniform_refuses_by_name(model: Any, skip: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantPlan.uniform(model, 8, skip=skip)


@pytest.mark.parametrize("text", [None, b"\xff", "[" * 100_000])
def test_what_is_no_text_of_a_plan_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="plan: found no JSON"):
        QuantPlan.from_json(text)
