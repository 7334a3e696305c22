"""Weights that lie on a given grid keep their codes, whatever is folded around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from defakeq import QuantPlan, convert
from defakeq.plan import LayerPlan
from defakeq_kernels import dfq
from defakeq_kernels.packed import PackedWeight, unpack_codes
from defakeq_kernels.quantize import quantize_weight


def _on_grid(
    shape: tuple[int, ...], bits: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.01, 0.1, shape[0]).astype(np.float32)
    zero = rng.integers(0, 1 << bits, shape[0]).astype(np.int32)
    # the first row never uses the outer codes, so no search could find its grid
    codes = rng.integers(0, 1 << bits, shape)
    codes[0] = np.clip(codes[0], 1, 2)
    view = (-1,) + (1,) * (len(shape) - 1)
    weight = (codes - zero.reshape(view)) * scale.reshape(view)
    return weight.astype(np.float32), scale, zero, codes


def _codes(packed: PackedWeight) -> np.ndarray:
    (segment,) = packed.segments
    return unpack_codes(segment.codes, segment.bits, packed.reduction)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_given_grid_keeps_codes(bits: int) -> None:
    weight, scale, zero, codes = _on_grid((6, 10), bits)
    packed = quantize_weight(weight, kind="linear", bits=bits, scale=scale, zero_point=zero)
    assert np.array_equal(_codes(packed), codes)
    assert np.array_equal(packed.segments[0].scale[:, 0], scale)
    assert np.array_equal(packed.segments[0].zero_point[:, 0], zero)


def test_given_grid_is_checked() -> None:
    weight, scale, zero, _ = _on_grid((6, 10), 4)
    with pytest.raises(ValueError, match="scale, zero_point: found one without"):
        quantize_weight(weight, kind="linear", bits=4, scale=scale)
    with pytest.raises(ValueError, match="with group_size"):
        quantize_weight(weight, kind="linear", bits=4, scale=scale, zero_point=zero, group_size=4)
    with pytest.raises(ValueError, match="scale: found -0"):
        quantize_weight(weight, kind="linear", bits=4, scale=-scale, zero_point=zero)
    with pytest.raises(ValueError, match="zero_point: found 308 to 315"):
        quantize_weight(weight, kind="linear", bits=4, scale=scale, zero_point=zero + 300)
    model = nn.Sequential(nn.Linear(10, 6))
    plan = QuantPlan({"0": LayerPlan(bits=4, scale=(1.0,) * 5, zero_point=(0,) * 5)})
    with pytest.raises(ValueError, match="scale: found 5 values; accepted is 6"):
        plan.validate(model)


class _Scaled(nn.Module):
    """A layer whose outputs are multiplied by constants, some negative, as LayerScale does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(10, 6)
        self.head = nn.Linear(6, 2)
        self.gamma = nn.Parameter(torch.tensor([1.0, -0.5, 2.0, 0.25, -3.0, 1.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.fc(x) * self.gamma))


@pytest.mark.parametrize("symmetric", [False, True])
def test_grid_survives_lowering_with_factors(symmetric: bool) -> None:
    model = _Scaled().eval()
    weight, scale, zero, codes = _on_grid((6, 10), 4)
    if symmetric:
        zero[:] = 8
        weight = ((codes - 8) * scale[:, None]).astype(np.float32)
    with torch.no_grad():
        model.fc.weight.copy_(torch.from_numpy(weight))
    grid = {"scale": tuple(scale.tolist())}
    if not symmetric:
        grid["zero_point"] = tuple(zero.tolist())
    layer = LayerPlan.from_dict({"bits": 4, "symmetric": symmetric, **grid})
    plan = QuantPlan.from_json(QuantPlan({"fc": layer, "head": LayerPlan()}).to_json())
    x = torch.randn(8, 10, generator=torch.Generator().manual_seed(1))
    program = convert(model, x, plan, [x], backend="program")
    tensors, network = dfq.loads(dfq.dumps(*program.file()))
    packed = PackedWeight.from_tensors("fc", tensors, network["layers"]["fc"])
    wanted = weight * model.gamma.detach().numpy()[:, None]
    assert np.allclose(packed.dequantize(), wanted, rtol=1e-6, atol=0)
