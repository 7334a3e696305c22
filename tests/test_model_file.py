"""Converted models in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_model import Small, folded_names, settled, small_inputs  # noqa: E402
from torch import nn  # noqa: E402

import defakeq  # noqa: E402
from defakeq.plan import QuantPlan  # noqa: E402
from defakeq_kernels import dfq  # noqa: E402
from defakeq_kernels.nn import ActQuant, QuantLinear  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
