"""The networks: names, shapes and counts of the public checkpoints, and what export needs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from defakeq import networks  # noqa: E402

# With two classes.
PARAMETERS = {
    "resnet34": 21285698,
    "resnet50": 23512130,
    "mobilenetv3_large": 4204594,
    "efficientnet_b4": 17552202,
    "xception": 20811050,
    "convnext_tiny": 27821666,
    "swin_base": 86745274,
    "vit_base_patch16": 85800194,
    "deit_tiny": 5524802,
    "deit_small": 21666434,
    "deit_base": 85800194,
    "vit_small": 21666434,
    "swin_small": 48838796,
}

SHAPES = {
    "resnet34": {"conv1.weight": (64, 3, 7, 7), "layer2.0.downsample.0.weight": (128, 64, 1, 1)},
    "resnet50": {"layer1.0.conv3.weight": (256, 64, 1, 1), "layer4.2.bn3.running_var": (2048,)},
    "mobilenetv3_large": {
        "blocks.0.0.conv_pw.weight": (16, 16, 1, 1),
        "blocks.2.0.se.conv_reduce.weight": (24, 72, 1, 1),
        "blocks.6.0.conv.weight": (960, 160, 1, 1),
        "conv_head.bias": (1280,),
    },
    "efficientnet_b4": {
        "blocks.0.0.se.conv_expand.bias": (48,),
        "blocks.5.7.conv_dw.weight": (1632, 1, 5, 5),
        "conv_head.weight": (1792, 448, 1, 1),
    },
    "xception": {
        "block1.rep.0.conv1.weight": (64, 1, 3, 3),
        "block12.rep.4.pointwise.weight": (1024, 728, 1, 1),
        "block3.skipbn.weight": (728,),
    },
    "convnext_tiny": {
        "stem.1.weight": (96,),
        "stages.1.downsample.1.weight": (192, 96, 2, 2),
        "stages.2.blocks.8.gamma": (384,),
        "head.norm.bias": (768,),
    },
    "swin_base": {
        "layers.0.blocks.1.attn.relative_position_bias_table": (169, 4),
        "layers.3.downsample.reduction.weight": (1024, 2048),
    },
    "vit_base_patch16": {"pos_embed": (1, 197, 768), "blocks.11.attn.qkv.weight": (2304, 768)},
}


@pytest.mark.parametrize("name", networks.NAMES)
def test_parameters_are_those_of_the_public_checkpoints(name, monkeypatch):
    monkeypatch.setattr(networks, "randomize", lambda *_: None)  # names and shapes need no values
    with torch.device("meta"):
        model = networks.build(name)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    state = model.state_dict()
    for key, shape in SHAPES.get(name, {}).items():
        assert tuple(state[key].shape) == shape, key


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet34", 64),
        ("resnet50", 64),
        ("mobilenetv3_large", 64),
        ("efficientnet_b4", 64),
        ("xception", 96),
        ("convnext_tiny", 64),
        ("deit_tiny", 64),
        ("swin_small", None),
    ],
)
def test_networks_run_and_export(name, size):
    model = networks.build(name, num_classes=3, seed=1, input_size=size)
    channels, height, width = model.input_size
    assert (channels, height) == (3, width)
    assert size in (None, height)
    x = networks.images(1, height)
    with torch.no_grad():
        y = model(x)
        assert y.shape == (1, 3)
        assert torch.isfinite(y).all()
        exported = torch.export.export(model, (x,)).module()(x)
    torch.testing.assert_close(exported, y, rtol=0, atol=1e-5)


def test_weights_are_those_of_the_seed():
    before = torch.random.get_rng_state()
    first, again, other = (networks.build("deit_tiny", seed=s, input_size=32) for s in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    assert not torch.equal(first.head.weight, other.head.weight)


def test_buffers_of_older_checkpoints_are_accepted():
    model = networks.build("swin_small")
    state = model.state_dict()
    state["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(49, 49)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    model.load_state_dict(state)
    state["layers.0.blocks.1.other"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="other"):
        model.load_state_dict(state)


def test_wrong_arguments_are_named():
    for arguments, message in (
        ({"name": "resnet35"}, "name: found 'resnet35' .nearest: 'resnet"),
        ({"name": "resnet34", "num_classes": 0}, "num_classes: found 0"),
        ({"name": "deit_tiny", "input_size": 40}, "input_size: found 40"),
        ({"name": "swin_small", "input_size": 100}, "input_size: found 100"),
        ({"name": "resnet34", "input_size": 8}, "input_size: found 8"),
    ):
        with pytest.raises(ValueError, match=message):
            networks.build(**arguments)
