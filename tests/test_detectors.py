"""The detectors: names, shapes and outputs of the public code, and strict loading."""

from __future__ import annotations

import re
from dataclasses import asdict

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from detector_reference import RECORDED, batch, fill, published, skeleton  # noqa: E402

from defakeq import detectors  # noqa: E402
from defakeq.detectors.base import Detector  # noqa: E402
from defakeq.interface import Interface  # noqa: E402

NAMES = (
    *("deit_tiny", "deit_small", "deit_base", "vit_small", "vit_base", "swin_small", "swin_base"),
    *("lsda", "npr", "ucf", "wavelet_clip"),
    *("meso4", "mesoinception4", "resnet34", "xception", "efficientnet_b4", "f3net", "spsl", "srm"),
)
LARGE = ("deit_base", "vit_base", "swin_base", "wavelet_clip")  # 0.3 to 1.2 GB
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _names(large):
    return [
        pytest.param(name, marks=[pytest.mark.slow] if large and name in LARGE else [])
        for name in NAMES
    ]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_names():
    assert detectors.names() == NAMES
    assert set(RECORDED) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_those_of_the_public_code(name):
    model, entries = skeleton(name), published(name)
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert all(entries.get(key) == shape for key, shape in own.items())
    rest = set(entries) - set(own)
    matched = {key for key in rest if any(_match(key, p) for p in model.unused)}
    assert rest == matched
    # Every pattern is needed: for the recorded implementation, or for an older one of its kind.
    older = ("*.relative_position_index", "*.attn_mask", "backbone.embeddings.position_ids")
    for pattern in model.unused:
        assert pattern in older or any(_match(key, pattern) for key in rest), pattern


def _match(key, pattern):
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), key) is not None


@pytest.mark.parametrize("name", _names(large=True))
def test_logits_are_those_of_the_public_code(name):
    model = detectors.build(name)
    with torch.no_grad():
        fill(model.state_dict())
        x = batch(2, model.input_size[1])[:1]
        features = model.features(x)
        logits = model(x)
        assert torch.equal(model.classify(features), logits)
    expected = torch.tensor(RECORDED[name]["logits"][:1])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4)
    scores = model.score(x)
    if expected.shape[1] == 2:
        exact = np.exp(expected.numpy()[:, 1]) / np.exp(expected.numpy()).sum(1)
    else:
        exact = 1 / (1 + np.exp(-expected.numpy()[:, 0]))
    assert scores.shape == (1,)
    np.testing.assert_allclose(scores.detach().numpy(), exact, atol=1e-4)


def test_build_is_seeded_and_names_what_is_wrong():
    before = torch.random.get_rng_state()
    first, again, other = (detectors.build("meso4", seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert not torch.equal(first["backbone.fc1.weight"], other["backbone.fc1.weight"])
    assert not detectors.build("meso4").training
    with pytest.raises(ValueError, match=r"name: found 'xeption' \(nearest: 'xception'\)"):
        detectors.build("xeption")


# preprocessing


@pytest.mark.parametrize(
    ("names", "interface"),
    [
        (("deit_tiny", "deit_small", "deit_base"), (224, *IMAGENET, "antialiased_bicubic")),
        (("swin_small", "swin_base"), (224, *IMAGENET, "antialiased_bicubic")),
        (("vit_small", "vit_base"), (224, (0.5,) * 3, (0.5,) * 3, "antialiased_bicubic")),
        (("npr",), (256, *IMAGENET, "antialiased_bilinear")),
        (("wavelet_clip",), (224, (0.5,) * 3, (0.5,) * 3, "cubic")),
        (
            ("lsda", "ucf", *NAMES[11:]),
            (256, (0.5,) * 3, (0.5,) * 3, "cubic"),
        ),
    ],
)
def test_interfaces_are_the_published_ones(names, interface):
    for name in names:
        model = skeleton(name)
        output = "sigmoid" if name == "npr" else "softmax"
        assert tuple(asdict(model.interface).values()) == (*interface, output), name
        assert model.input_size == (3, interface[0], interface[0])


def _picture(height, width, seed=0):
    small = np.random.RandomState(seed).randint(0, 256, (6, 6, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def test_preprocess_cubic():
    image = _picture(300, 200)
    made = skeleton("xception").preprocess(image)
    resized = cv2.resize(image, (256, 256), interpolation=cv2.INTER_CUBIC)
    expected = (resized.astype(np.float64) / 255 - 0.5) / 0.5
    assert made.dtype == torch.float32
    assert made.is_contiguous()
    np.testing.assert_allclose(made.permute(1, 2, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("npr", "BILINEAR"), ("deit_tiny", "BICUBIC")])
def test_preprocess_with_antialiasing_is_pillows(name, kind):
    pillow = pytest.importorskip("PIL.Image")
    image = _picture(400, 500)
    model = skeleton(name)
    size = model.input_size[1]
    resized = pillow.fromarray(image).resize((size, size), pillow.Resampling[kind])
    mean, std = (np.array(v) for v in IMAGENET)
    expected = (np.asarray(resized, np.float64) / 255 - mean) / std
    # Rounding to 8 bits may differ by one.
    np.testing.assert_allclose(
        model.preprocess(image).permute(1, 2, 0).numpy(), expected, atol=1.02 / 255 / min(std)
    )


def test_a_picture_of_the_inputs_size_is_not_resampled():
    image = _picture(256, 256)
    for name in ("npr", "meso4"):
        model = skeleton(name)
        mean, std = (np.array(v) for v in (model.interface.mean, model.interface.std))
        back = model.preprocess(image).permute(1, 2, 0).numpy() * std + mean
        np.testing.assert_allclose(back * 255, image, atol=1e-3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "image: found float32"),
        (np.zeros((8, 8), np.uint8), r"image: found shape \[8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"image: found shape \[8, 8, 4\]"),
        (np.zeros((0, 8, 3), np.uint8), r"image: found shape \[0, 8, 3\]"),
        ("picture", "image: found str"),
    ],
)
def test_what_is_no_picture_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        Interface(16).preprocess(image)


def test_interface_describes_itself_and_checks():
    made = Interface(17, IMAGENET[0], IMAGENET[1], "antialiased_bilinear", "sigmoid")
    assert Interface.of(made.describe()) == made
    for changed, message in (
        ({"size": 0}, "size: found 0"),
        ({"mean": [0.5, 0.5]}, "mean: found"),
        ({"std": [1.0, 0.0, 1.0]}, "std: found"),
        ({"resize": "nearest"}, "resize: found 'nearest'"),
        ({"output": "relu"}, "output: found 'relu'"),
        ({"more": 1}, "interface: found"),
    ):
        with pytest.raises(ValueError, match=message):
            Interface.of(made.describe() | changed)
    with pytest.raises(ValueError, match=r"logits: found shape \[3, 2\]"):
        made.probability(torch.zeros(3, 2))


# loading


def _state(name, seed=5):
    return detectors.build(name, seed=seed).state_dict()


def _checked(path, prefix="", wrapper=()):
    model, state = detectors.build("meso4"), _state("meso4")
    report = model.load_weights(path)
    assert asdict(report) == {
        "path": str(path),
        "wrapper": wrapper,
        "prefix": prefix,
        "loaded": tuple(state),
        "unused": (),
    }
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "wrapper", [(), ("state_dict",), ("model",), ("net",), ("model", "state_dict")]
)
def test_checkpoints_of_all_kinds_load(tmp_path, prefix, wrapper):
    content = {prefix + k: v for k, v in _state("meso4").items()}
    for key in reversed(wrapper):
        content = {"epoch": 3, "best": torch.tensor(0.9), key: content}
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    _checked(path, prefix, wrapper)
    built = detectors.build("meso4", path).state_dict()
    assert all(torch.equal(v, built[k]) for k, v in _state("meso4").items())


def test_safetensors_and_halves_load(tmp_path):
    from safetensors.torch import save_file

    save_file(_state("meso4"), tmp_path / "weights.safetensors")
    _checked(tmp_path / "weights.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in _state("meso4").items()}
    torch.save(half, tmp_path / "half.pth")
    model = detectors.build("meso4")
    model.load_weights(tmp_path / "half.pth")
    assert model.backbone.fc1.weight.dtype == torch.float32
    assert torch.equal(model.backbone.fc1.weight, half["backbone.fc1.weight"].float())


@pytest.mark.parametrize("name", ["ucf", "xception", "f3net", "npr"])
def test_the_published_entries_load(tmp_path, name):
    entries = published(name)
    state = {
        key: torch.zeros(shape, dtype=torch.long if "num_batches" in key else torch.float32)
        for key, shape in entries.items()
    }
    fill(state)
    torch.save(state, tmp_path / "weights.pth")
    model = detectors.build(name)
    report = model.load_weights(tmp_path / "weights.pth")
    assert sorted(report.loaded + report.unused) == sorted(entries)
    assert set(report.loaded) == set(model.state_dict())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_counters_of_batches_may_be_missing(tmp_path):
    state = {k: v for k, v in _state("meso4").items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth")
    report = detectors.build("meso4").load_weights(tmp_path / "weights.pth")
    assert report.loaded == tuple(state)


def test_what_does_not_fit_is_named_and_nothing_changes(tmp_path):
    state = _state("meso4")
    state["backbone.conv9.weight"] = state.pop("backbone.conv2.weight")
    state["backbone.fc2.weight"] = torch.zeros(3, 16)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    model = detectors.build("meso4")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(detectors.WeightsError) as error:
        model.load_weights(path)
    assert error.value.missing == ("backbone.conv2.weight",)
    assert error.value.extra == ("backbone.conv9.weight",)
    assert error.value.misshapen == (("backbone.fc2.weight", (3, 16), (2, 16)),)
    for text in (str(path), "missing: backbone.conv2.weight", "in the network: backbone.conv9"):
        assert text in str(error.value)
    assert "backbone.fc2.weight is [3, 16], accepted is [2, 16]" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_long_lists_are_counted(tmp_path):
    torch.save({"backbone.bn1.weight": torch.ones(8)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"missing: (\S+, ){4}\S+ and \d+ more"):
        detectors.build("meso4").load_weights(tmp_path / "weights.pth")


class _Code:
    def __reduce__(self):
        return (print, ("code of a checkpoint ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: [1, 2], "found no state dict but list; accepted is tensors by name"),
        (lambda s: {}, "found no state dict but dict"),
        (lambda s: {"state_dict": {}}, "accepted is tensors by name"),
        (lambda s: s | {"epoch": 3}, "entry 'epoch': found int"),
        (lambda s: s | {"code": _Code()}, "no checkpoint of tensors only"),
        (
            lambda s: s | {"backbone.fc2.bias": torch.tensor([0.0, float("nan")])},
            "entry 'backbone.fc2.bias': found a value that is not finite",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, content, message):
    path = tmp_path / "weights.pth"
    torch.save(content(_state("meso4")), path)
    with pytest.raises(ValueError, match=message) as error:
        detectors.build("meso4").load_weights(path)
    assert str(path) in str(error.value)
    assert "ran" not in capsys.readouterr().out


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(_state("meso4"), path)
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 2], data[:-64], b"text, no checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"weights\.pth: no checkpoint of tensors only"):
            detectors.build("meso4").load_weights(path)
    with pytest.raises(ValueError, match=r"none\.pth: found no file"):
        detectors.build("meso4").load_weights(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="found no file"):
        detectors.build("meso4").load_weights(tmp_path)


def test_every_detector_is_a_detector():
    for name in NAMES:
        assert isinstance(skeleton(name), Detector)
