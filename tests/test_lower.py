"""Lowered networks: the runtime returns the oracle's bytes and stays close to the float model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.conversion import convert, save
from defakeq.plan import QuantPlan
from defakeq_kernels import reference_program, runtime
from defakeq_kernels.packed import PackedWeight


class Residual(nn.Module):
    """A stem, a residual block, a depthwise block, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.a = nn.Conv2d(16, 24, 3, padding=1)
        self.b = nn.Conv2d(24, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 5, padding=2, groups=16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.b(F.silu(self.a(x))))
        x = F.hardswish(self.depthwise(x))
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """Patches, one transformer block, a classifier on the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        n, t, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, t, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.proj(y.transpose(1, 2).reshape(n, t, 32))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x[:, 0])


@pytest.mark.parametrize("network", [Residual, Block])
@pytest.mark.parametrize("bits", [8, 4])
def test_lowered_networks_match_the_oracle(network: type[nn.Module], bits: int, tmp_path: Path):
    torch.manual_seed(3)
    model = network().eval()
    batches = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    plan = QuantPlan.uniform(model, bits)
    converted = convert(model, batches[0], plan, calibration=batches, backend="program")
    path = tmp_path / "network.dfq"
    save(converted, path)

    x = batches[0][:2].numpy()
    found = runtime.load(path)(x)
    found = found[0] if isinstance(found, (list, tuple)) else found
    assert found.tobytes() == reference_program.run(path, [x])[0].tobytes()
    with torch.no_grad():
        exact = model(batches[0][:2]).numpy()
        assert converted(batches[0][:2]).numpy().tobytes() == found.tobytes()
    if bits == 8:
        assert np.abs(found - exact).max() <= 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("bias", [False, True])
def test_pictures_around_zero_enter_without_rounding(bias: bool):
    torch.manual_seed(5)
    conv = nn.Conv2d(3, 4, 3, bias=bias)
    conv.weight.data.abs_()  # so that half a step of all inputs would show
    model = nn.Sequential(conv, nn.Flatten()).eval()
    pictures = torch.randint(0, 256, (6, 3, 24, 24)) * (2 / 255) - 1
    plan = QuantPlan.uniform(model, 8)
    converted = convert(model, pictures[:1], plan, pictures.split(1), backend="program")
    nodes = converted.explain()["nodes"]
    assert [node["op"] for node in nodes] == ["binary", "conv2d", "copy"]
    assert all(node.ok for node in converted.check(pictures[:1]))
    tensors, network = converted.file()
    packed = PackedWeight.from_tensors("0", tensors, network["layers"]["0"])
    with torch.no_grad():
        rounded = F.conv2d(pictures, torch.from_numpy(packed.dequantize()), conv.bias).flatten(1)
        assert (converted(pictures) - rounded).abs().max() < 2e-3


def test_what_cannot_be_lowered_stays_with_torch():
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(self.conv(x), dim=1)

    model = Summing().eval()
    x = torch.randn(1, 3, 16, 16)
    plan = QuantPlan.uniform(model, 8)
    converted = convert(model, x, plan, calibration=[x], backend="program")
    assert any("cumsum" in fallback.target for fallback in converted.fallbacks)
    with torch.no_grad():
        exact, found = model(x), converted(x)
    assert (found - exact).abs().max() <= 0.1 * exact.abs().max()
    with pytest.raises(ValueError, match="cumsum"):
        save(converted, "never.dfq")


class Sorting(nn.Module):
    """A part of several results that no program node computes, between two that are lowered."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sort(F.relu(self.conv(x)), dim=1).values)


def test_programs_before_and_after_a_fallback():
    torch.manual_seed(3)
    model = Sorting().eval()
    x = torch.randn(2, 3, 16, 16)
    converted = convert(model, x, QuantPlan.uniform(model, 8), [x], backend="program")
    explained = converted.explain()
    assert explained["stages"] == ["program", "torch", "program"]
    assert [entry["name"] for entry in explained["fallbacks"]] == ["sort"]
    with torch.no_grad():
        assert torch.allclose(converted(x), model(x), atol=0.05)


class Phases(nn.Module):
    """A spectrum, which is complex, between real parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x.mean(1, keepdim=True))
        phases = torch.fft.ifft2(torch.exp(1j * torch.angle(spectrum))).real
        return self.head(F.relu(self.conv(torch.cat([x, phases], 1))).mean((2, 3)))


def test_complex_numbers_stay_with_torch():
    torch.manual_seed(3)
    model = Phases().eval()
    x = torch.randn(2, 3, 16, 16)
    converted = convert(model, x, QuantPlan.uniform(model, 8), [x], backend="program")
    explained = converted.explain()
    assert explained["stages"] == ["program", "torch", "program"]
    assert all("complex64" in entry["reason"] for entry in explained["fallbacks"])
    assert [node for node in converted.check(x[:1]) if not node.ok] == []
    with torch.no_grad():
        exact = model(x)
        assert (converted(x) - exact).abs().max() <= 0.1 * exact.abs().max()


@pytest.mark.parametrize(("bits", "computed"), [(8, 2), (4, 0)])
def test_the_first_layers_silu_is_computed(bits: int, computed: int):
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3), *(nn.Conv2d(8, 8, 3, groups=8) for _ in range(3))]
    parts = [part for layer in layers for part in (layer, nn.SiLU())]
    model = nn.Sequential(*parts, nn.Conv2d(8, 2, 1)).eval()
    x = torch.randn(2, 3, 16, 16)
    plan = QuantPlan.uniform(model, bits)
    converted = convert(model, x[:1], plan, calibration=[x], backend="program")
    tensors, network = converted.file()
    nodes = [node for node in network["program"]["nodes"] if node["op"] == "conv2d"][:4]
    direct = [network["layers"][node["layer"]]["activation"] == "silu" for node in nodes]
    assert direct == [number < computed for number in range(4)]
    assert ["table" in node for node in nodes] == [not fused for fused in direct]
    (found,) = reference_program.run((tensors, network), [x[:1].numpy()])
    assert converted(x[:1]).numpy().tobytes() == found.tobytes()
    assert all(node.ok for node in converted.check(x[:1]))
