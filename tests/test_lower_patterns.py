"""Operators and spelled-out patterns: each lowers to the node it is, and computes the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.conversion import convert
from defakeq.plan import QuantPlan
from defakeq_kernels import reference_program


class Between(nn.Module):
    """A function of a convolution's result, before a linear layer that reads it flat."""

    def __init__(self, function: Callable[..., Tensor], size: int, bare: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Identity() if bare else nn.Linear(size, 4)
        self.function = function
        self.gamma = nn.Parameter(torch.rand(16) + 0.5)
        self.beta = nn.Parameter(torch.randn(16))
        self.matrix = nn.Parameter(torch.randn(16, 24) / 4)
        self.table = nn.Parameter(torch.randn(4, 16, 16))
        self.register_buffer("mean", torch.randn(16))
        self.register_buffer("variance", torch.rand(16) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, self.conv(x)).flatten(1))


def silu(m: Between, x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def hardswish(m: Between, x: Tensor) -> Tensor:
    return F.hardsigmoid(x) * x


def gelu(m: Between, x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def layer_norm(m: Between, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    y = (x - mean) / torch.sqrt(variance + 1e-6)
    return m.gamma[:, None, None] * y + m.beta[:, None, None]


def layer_norm_by_var(m: Between, x: Tensor) -> Tensor:
    x = x.flatten(2).transpose(1, 2)
    y = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, False, keepdim=True) + 1e-5)
    return y * m.gamma + m.beta


def _heads(x: Tensor) -> Tensor:
    """[1, 16, 4, 4] to [1, 4 heads, 16 tokens, 4]."""
    return x.reshape(x.shape[0], 4, 4, 16).transpose(2, 3)


def attention(m: Between, x: Tensor) -> Tensor:
    q, k, v = _heads(x) * 0.5, _heads(x + 1), _heads(-x)
    return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)


def biased_attention(m: Between, x: Tensor) -> Tensor:
    q, k, v = _heads(x), _heads(x + 1), _heads(-x)
    scores = torch.matmul(q, k.transpose(-2, -1)) / 2 + m.table
    return torch.matmul(F.dropout(scores.softmax(-1), 0.1, False), v).transpose(1, 2)


def masked_attention(m: Between, x: Tensor) -> Tensor:
    """As windows have it: a mask a window, in a view of five dimensions."""
    q, k, v = (_heads(part).reshape(2, 2, 16, 4) for part in (x, x + 1, -x))
    mask = torch.zeros(2, 16, 16).masked_fill(torch.eye(16, dtype=torch.bool), -100.0)
    mask[0] = 0
    scores = (q @ k.mT * 0.5 + m.table[:2]).view(1, 2, 2, 16, 16)
    scores = (scores + mask[:, None][None]).view(2, 2, 16, 16)
    return (scores.softmax(-1) @ v).flatten()[None]


def single_head(m: Between, x: Tensor) -> Tensor:
    x = x.flatten(2)
    return torch.bmm(torch.bmm(x.mT, x + 0.1).softmax(-1), x.mT)


def product(m: Between, x: Tensor) -> Tensor:
    x = x.flatten(2)
    return torch.bmm(x.mT, x)


def product_by_rows(m: Between, x: Tensor) -> Tensor:
    x = x.reshape(x.shape[0], 4, 4, 16)
    return x @ x.relu().mT


def constant_product(m: Between, x: Tensor) -> Tensor:
    return x.flatten(2).mT @ m.matrix


def softmax_of_rows(m: Between, x: Tensor) -> Tensor:
    return x.flatten(2).softmax(-1)


def softmax_of_channels(m: Between, x: Tensor) -> Tensor:
    return x.softmax(1)


def channel_mean(m: Between, x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)


def channel_max(m: Between, x: Tensor) -> Tensor:
    return x.amax(1)


def spatial_sum(m: Between, x: Tensor) -> Tensor:
    return x.sum((2, 3))


def spatial_max(m: Between, x: Tensor) -> Tensor:
    return x.amax((2, 3), keepdim=True)


def norm(m: Between, x: Tensor) -> Tensor:
    y = x.flatten(2)
    return torch.linalg.vector_norm(y, dim=-1)


def bilinear(m: Between, x: Tensor) -> Tensor:
    return F.interpolate(x, size=(7, 6), mode="bilinear", align_corners=False)


def bilinear_corners(m: Between, x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def nearest(m: Between, x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def stacked(m: Between, x: Tensor) -> Tensor:
    return torch.stack([x, x.relu()], 2)


def spatial_gate(m: Between, x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean(1, keepdim=True))


def outer(m: Between, x: Tensor) -> Tensor:
    return x.mean(2, keepdim=True) - x.mean(3, keepdim=True)


def from_constant(m: Between, x: Tensor) -> Tensor:
    return m.beta[:, None, None] - x


def repeated(m: Between, x: Tensor) -> Tensor:
    """A constant that differs where one stored element is repeated."""
    return x.mean(3, keepdim=True).expand(x.shape) + m.table[0, :4, :4]


def batch_norm(m: Between, x: Tensor) -> Tensor:
    return F.batch_norm(x.relu(), m.mean, m.variance, m.gamma, m.beta)


# function, elements of its result, ops that must be there, ops that must not
CASES = [
    (silu, 256, {"conv2d"}, {"binary", "lookup"}),
    (hardswish, 256, {"conv2d"}, {"binary", "lookup"}),
    (gelu, 256, {"conv2d"}, {"binary", "lookup"}),
    (layer_norm, 256, {"layer_norm"}, {"binary", "reduce"}),
    (layer_norm_by_var, 256, {"layer_norm"}, {"binary", "reduce"}),
    (attention, 256, {"attention"}, {"matmul", "softmax"}),
    (biased_attention, 256, {"attention"}, {"matmul", "softmax"}),
    (masked_attention, 256, {"attention"}, {"matmul", "softmax"}),
    (single_head, 256, {"attention"}, {"matmul", "softmax"}),
    (product, 256, {"matmul"}, set()),
    (product_by_rows, 64, {"matmul"}, set()),
    (constant_product, 384, {"linear"}, {"matmul"}),
    (softmax_of_rows, 256, {"softmax"}, set()),
    (softmax_of_channels, 256, {"softmax"}, {"copy"}),
    (channel_mean, 16, {"reduce"}, {"copy"}),
    (channel_max, 16, {"reduce"}, {"copy"}),
    (spatial_sum, 16, {"reduce"}, set()),
    (spatial_max, 16, {"pool2d"}, {"copy"}),
    (norm, 16, {"reduce"}, set()),
    (bilinear, 672, {"interpolate"}, set()),
    (bilinear_corners, 1024, {"interpolate"}, set()),
    (nearest, 1024, {"conv2d"}, set()),
    (stacked, 512, {"conv2d"}, {"copy"}),
    (spatial_gate, 256, {"binary", "reduce"}, {"copy"}),
    (outer, 256, {"binary"}, set()),
    (from_constant, 256, {"binary"}, set()),
    (repeated, 256, {"binary"}, set()),
    (batch_norm, 256, {"conv2d"}, set()),
]


@pytest.mark.parametrize(
    ("function", "size", "there", "absent"), CASES, ids=lambda v: getattr(v, "__name__", "")
)
@pytest.mark.parametrize("bare", [False, True], ids=["int8", "float"])
def test_patterns(function, size: int, there: set[str], absent: set[str], bare: bool):
    torch.manual_seed(1)
    model = Between(function, size, bare).eval()
    x = torch.randn(1, 3, 4, 4)
    plan = QuantPlan.uniform(model, 8)
    converted = convert(model, x, plan, [x], backend="program", observer="minmax")
    assert converted.fallbacks == []
    ops = {node["op"] for node in converted.explain()["nodes"]}
    assert there <= ops
    if not bare:
        assert not absent & ops
    assert [node for node in converted.check(x) if not node.ok] == []
    with torch.no_grad():
        exact, found = model(x), converted(x)
    (expected,) = reference_program.run(converted.file(), [x.numpy()])
    assert np.array_equal(found.numpy().reshape(-1), expected.reshape(-1))
    assert (found - exact).abs().max() <= 0.06 * exact.abs().max() + 1e-3


@pytest.mark.parametrize("negative", [False, True])
def test_maxima_go_before_norms_of_positive_weights(negative: bool):
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(16), nn.MaxPool2d(2),
        nn.Conv2d(16, 4, 1), nn.Flatten(), nn.Linear(16, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[2].weight.uniform_(0.5, 1.5)
        model[2].bias.normal_()
        model[2].running_mean.normal_()
        if negative:
            model[2].weight[5] = -1
    x = torch.randn(8, 3, 4, 4)
    plan = QuantPlan.uniform(model, 8)
    converted = convert(model, x[:1], plan, [x], backend="program")
    ops = [node["op"] for node in converted.explain()["nodes"]]
    moved = ["conv2d", "pool2d", "binary", "binary"]
    assert ops[:4] == (["conv2d", "binary", "binary", "pool2d"] if negative else moved)
    assert [node for node in converted.check(x[:1]) if not node.ok] == []
    with torch.no_grad():
        exact, found = model(x), converted(x)
    assert (found - exact).abs().max() <= 0.05 * exact.abs().max()
