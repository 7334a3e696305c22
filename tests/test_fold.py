"""Folding of BatchNorm and fusion of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from small_model import Small, folded_names, settled, small_inputs  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from defakeq.fold import Folded, fold_batch_norm, fuse_activations  # noqa: E402


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
