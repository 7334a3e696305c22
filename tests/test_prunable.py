"""Half plans: what is dropped is consistent between the layers that make and read it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from defakeq import networks  # noqa: E402
from defakeq.prunable import analyse, half_plan  # noqa: E402


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
