"""Half plans: what is dropped is consistent between the layers that make and read it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from defakeq import networks  # noqa: E402
from defakeq.prunable import analyse, drop_constants, half_plan  # noqa: E402


@pytest.mark.parametrize(
    ("name", "size"), [("resnet34", 64), ("mobilenetv3_large", 64), ("deit_tiny", 32)]
)
def test_half_of_the_channels_go_everywhere(name, size):
    model = networks.build(name, input_size=size)
    x = networks.images(1, size)
    channels = analyse(model, x)
    plan = half_plan(model, x)
    dropped = set()
    for layer, ties in channels.outputs.items():
        kept = plan.layers[layer].keep_out
        if kept is not None:
            dropped.update(t for c, t in enumerate(ties) if c not in set(kept))
    assert dropped
    for layer, ties in channels.outputs.items():
        kept = plan.layers[layer].keep_out or range(len(ties))
        assert [c for c, t in enumerate(ties) if t not in dropped] == list(kept)
    for layer, ties in channels.inputs.items():
        if model.get_submodule(layer).weight.shape[1] == len(ties):
            kept = plan.layers[layer].keep_in or range(len(ties))
            assert [c for c, t in enumerate(ties) if t not in dropped] == list(kept)
    last = list(plan.layers)[-1]
    assert plan.layers[last].keep_out is None


def test_what_is_not_understood_is_named():
    class Strange(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(16, 16)

        def forward(self, x):
            return self.fc(x).cumsum(-1)

    with pytest.raises(ValueError, match="found operation 'cumsum'"):
        half_plan(Strange().eval(), torch.zeros(1, 16))
    with pytest.raises(ValueError, match="fraction: found 1"):
        half_plan(Strange(), torch.zeros(1, 16), fraction=1.0)


class Mixing(torch.nn.Module):
    """Channels that can go, and channels in a product and of a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.free = torch.nn.Conv2d(3, 32, 1)
        self.product = torch.nn.Conv2d(32, 32, 1)
        self.shared = torch.nn.Linear(32, 32)
        self.head = torch.nn.Linear(32, 2)

    def forward(self, x):
        y = self.product(torch.relu(self.free(x))).flatten(2)
        y = torch.bmm(y.mT, y).softmax(-1) @ y.mT
        return self.head(self.shared(torch.relu(self.shared(y))).mean(1))


def test_channels_that_are_mixed_stay():
    torch.manual_seed(0)
    model = Mixing().eval()
    plan = half_plan(model, torch.randn(1, 3, 4, 4))
    dropped = {name for name, layer in plan.layers.items() if layer.keep_out is not None}
    assert dropped == {"free"}
    assert len(plan.layers["product"].keep_in) == 16
    assert all(plan.layers[name].keep_in is None for name in ("shared", "head"))


def test_constants_of_dropped_channels_are_dropped():
    model = networks.build("deit_tiny", input_size=32)
    x = networks.images(1, 32)
    plan = half_plan(model, x)
    kept = list(plan.layers["patch_embed.proj"].keep_out)
    before = model.pos_embed.detach().clone()
    drop_constants(model, plan, ((x,), {}))
    for constant in (model.pos_embed, model.cls_token, model.norm.weight, model.norm.bias):
        there = (constant != 0).reshape(-1, constant.shape[-1]).any(0)
        assert torch.nonzero(there).flatten().tolist() == kept
    assert torch.equal(model.pos_embed[..., kept], before[..., kept])
