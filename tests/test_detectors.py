"""The detectors: names, shapes and outputs of the public code, their parts, and strict loading."""

from __future__ import annotations

import re
from dataclasses import asdict

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from detector_reference import RECORDED, batch, fill, published  # noqa: E402
from torch import nn  # noqa: E402

from defakeq import detectors  # noqa: E402
from defakeq.detectors import f3net, npr, spsl, srm, wavelet  # noqa: E402
from defakeq.detectors.base import Detector  # noqa: E402
from defakeq.detectors.efficientnet import same_padding  # noqa: E402
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


def _skeleton(name):
    with torch.device("meta"):
        return detectors._BUILDERS[name]()


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
    model, entries = _skeleton(name), published(name)
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
        model = _skeleton(name)
        output = "sigmoid" if name == "npr" else "softmax"
        assert tuple(asdict(model.interface).values()) == (*interface, output), name
        assert model.input_size == (3, interface[0], interface[0])


def _picture(height, width, seed=0):
    small = np.random.RandomState(seed).randint(0, 256, (6, 6, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def test_preprocess_cubic():
    image = _picture(300, 200)
    made = _skeleton("xception").preprocess(image)
    resized = cv2.resize(image, (256, 256), interpolation=cv2.INTER_CUBIC)
    expected = (resized.astype(np.float64) / 255 - 0.5) / 0.5
    assert made.dtype == torch.float32
    assert made.is_contiguous()
    np.testing.assert_allclose(made.permute(1, 2, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("npr", "BILINEAR"), ("deit_tiny", "BICUBIC")])
def test_preprocess_with_antialiasing_is_pillows(name, kind):
    pillow = pytest.importorskip("PIL.Image")
    image = _picture(400, 500)
    model = _skeleton(name)
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
        model = _skeleton(name)
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


# the parts that define a detector


def test_phase_picture_is_numpys():
    x = batch(2, 64)
    grey = x.numpy().astype(np.float64).mean(1)
    phases = np.angle(np.fft.fft2(grey))
    expected = np.fft.ifft2(np.cos(phases) + 1j * np.sin(phases)).real
    np.testing.assert_allclose(spsl.phase_picture(x)[:, 0].numpy(), expected, atol=1e-5)


def test_phase_picture_ignores_contrast():
    x = batch(1, 32)
    torch.testing.assert_close(spsl.phase_picture(3 * x), spsl.phase_picture(x), atol=1e-4, rtol=0)


def test_spsl_reads_the_picture_and_its_phases():
    model = detectors.build("spsl")
    seen = []
    model.backbone.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = batch(1, 256)
    with torch.no_grad():
        model(x)
    assert torch.equal(seen[0], torch.cat([x, spsl.phase_picture(x)], 1))


def test_dct_is_scipys_and_bands_are_triangles():
    fft = pytest.importorskip("scipy.fft")
    head = f3net.FadHead(64)
    x = batch(2, 64)
    for one in head.filters:
        nn.init.zeros_(one.learnable)
    edges = ((0, 22), (22, 32), (32, 128), (0, 128))  # 64 // 2.82 = 22
    u, v = np.mgrid[:64, :64]
    spectrum = fft.dctn(x.numpy().astype(np.float64), axes=(2, 3), norm="ortho")
    with torch.no_grad():
        made = head(x).numpy()
    assert made.shape == (2, 12, 64, 64)
    for i, (start, end) in enumerate(edges):
        kept = spectrum * ((u + v >= start) & (u + v <= end))
        expected = fft.idctn(kept, axes=(2, 3), norm="ortho")
        np.testing.assert_allclose(made[:, 3 * i : 3 * i + 3], expected, atol=1e-5)
    np.testing.assert_allclose(made[:, 9:], x.numpy(), atol=1e-5)


def test_learned_part_of_a_band():
    one = f3net.Filter(4, 0, 8)
    with torch.no_grad():
        one.learnable.copy_(torch.linspace(-8, 8, 16).reshape(4, 4))
    expected = 1 + np.tanh(np.linspace(-8, 8, 16) / 2).reshape(4, 4)
    np.testing.assert_allclose(one.weights().detach().numpy(), expected, atol=1e-6)


def test_residual_filters_of_the_rich_model():
    filters = srm.residual_filters().numpy() * np.float32([4, 12, 2]).reshape(3, 1, 1)
    second = np.array([1, -2, 1])
    square, line = np.zeros((5, 5)), np.zeros((5, 5))
    square[1:4, 1:4] = -np.outer(second, second)
    line[2, 1:4] = second
    np.testing.assert_array_equal(filters[0], square)
    np.testing.assert_array_equal(filters[2], line)
    # The 5x5 one of Fridrich and Kodovsky (2012): symmetric, blind to constants and planes.
    np.testing.assert_array_equal(filters[1][2], [-2, 8, -12, 8, -2])
    np.testing.assert_array_equal(filters[1][0], [-1, 2, -2, 2, -1])
    np.testing.assert_array_equal(filters[1][1], [2, -6, 8, -6, 2])
    np.testing.assert_array_equal(filters[1], filters[1][::-1, ::-1])
    np.testing.assert_array_equal(filters[1], filters[1].T)
    y, x = np.mgrid[:5, :5]
    for one in filters:
        assert (one.sum(), (one * x).sum(), (one * y).sum()) == (0, 0, 0)


def test_fixed_filters_sum_over_channels_and_clamp():
    x = 40 * batch(1, 16)
    made = srm.FixedFilters()(x)[0].numpy()
    grey = x.numpy()[0].sum(0)
    for i, kernel in enumerate(srm.residual_filters().numpy()):
        expected = cv2.filter2D(grey, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        np.testing.assert_allclose(made[i], np.clip(expected, -3, 3), atol=1e-4)
    assert np.abs(made).max() == 3


def test_channel_filters_are_a_third_of_the_channels_each():
    part = srm.ChannelFilters(6).eval()
    part.out_conv = nn.Identity()
    x = batch(2, 16)[:, :, :, :].repeat(1, 2, 1, 1)
    made = part(x).numpy()
    kernels = srm.residual_filters().numpy()
    for channel in range(6):
        for copy in range(3):
            kernel = kernels[(3 * channel + copy) // 6]
            expected = cv2.filter2D(
                x[0, channel].numpy(), -1, kernel, borderType=cv2.BORDER_CONSTANT
            )
            at = 3 * channel + copy
            np.testing.assert_allclose(made[0, at], np.clip(expected, -3, 3), atol=1e-5)


def test_dual_attention_is_the_formula():
    part = srm.DualAttention(16, size=4)
    with torch.no_grad():
        fill({f"a.{k}": v for k, v in part.state_dict().items()})
        x, y = batch(2, 4).repeat(1, 6, 1, 1)[:, :16].split(1)
        to_x, to_y = (t.numpy() for t in part(x, y))
    state = {k: v.numpy().squeeze() for k, v in part.state_dict().items()}

    def conv(name, value):
        return state[name + ".weight"] @ value + state[name + ".bias"][:, None]

    def softmax(value):
        e = np.exp(value - value.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    a, b = (t.numpy().reshape(16, 16) for t in (x, y))
    keys_a = conv("key_conv_share", conv("key_conv1", a))
    keys_b = conv("key_conv_share", conv("key_conv2", b))
    energy = keys_a.T @ keys_b
    of_a = softmax(energy @ state["linear1.weight"].T + state["linear1.bias"])
    of_b = softmax(energy.T @ state["linear2.weight"].T + state["linear2.bias"])
    want_a = state["gamma1"] * (conv("value_conv2", b) @ of_a.T) + a
    want_b = state["gamma2"] * (conv("value_conv1", a) @ of_b.T) + b
    np.testing.assert_allclose(to_x.reshape(16, 16), want_a, atol=1e-5)
    np.testing.assert_allclose(to_y.reshape(16, 16), want_b, atol=1e-5)


def test_npr_residual_is_what_the_corner_pixel_explains():
    x = batch(2, 32)
    made = npr.residual(x).numpy()
    corner = np.kron(x.numpy()[:, :, ::2, ::2], np.ones((1, 1, 2, 2), np.float32))
    np.testing.assert_array_equal(made, x.numpy() - corner)
    upsampled = torch.from_numpy(corner)
    assert not npr.residual(upsampled).any()


def test_wavelet_is_orthonormal_with_six_vanishing_moments():
    low = np.array(wavelet.DB6)
    high = wavelet.Synthesis().g1.numpy().ravel().astype(np.float64)
    assert abs(low.sum() - np.sqrt(2)) < 1e-12
    for shift in range(6):
        for a, b, expected in ((low, low, 1.0), (high, high, 1.0), (low, high, 0.0)):
            product = (a[2 * shift :] * b[: 12 - 2 * shift]).sum()
            assert abs(product - expected * (shift == 0)) < 1e-6
    for power in range(6):
        assert abs((high * np.arange(12) ** power).sum()) < 1e-6 * 12**power


def test_wavelet_is_numpys_convolution():
    x = batch(1, 64).flatten()[None, None, :1024]
    with torch.no_grad():
        low, high = wavelet.Analysis(3)(x)
    filters = np.array(wavelet.DB6)
    mirror = filters[::-1] * np.array([-1, 1] * 6)[::-1]
    signal = x.numpy().ravel().astype(np.float64)
    for level in range(3):
        # Every second entry of the full convolution with the reversed synthesis filters.
        detail = np.convolve(signal, mirror[::-1])[1::2]
        signal = np.convolve(signal, filters[::-1])[1::2]
        np.testing.assert_allclose(high[level].numpy().ravel(), detail, atol=1e-5)
    np.testing.assert_allclose(low.numpy().ravel(), signal, atol=1e-5)
    assert [t.shape[-1] for t in (low, *high)] == [137, 517, 264, 137]


@pytest.mark.parametrize("length", [1024, 768, 101])
def test_wavelet_is_pywaveletss(length):
    pywt = pytest.importorskip("pywt")
    x = batch(1, 64).flatten()[None, None, :length]
    low, high = wavelet.Analysis(3)(x)
    expected = pywt.wavedec(x.numpy().ravel(), "db6", mode="zero", level=3)
    for found, want in zip((low, *reversed(high)), expected, strict=True):
        np.testing.assert_allclose(found.numpy().ravel(), want, atol=1e-5)
    changed = [expected[0] * 2, *expected[1:]]
    back = wavelet.Synthesis()(2 * low, high).numpy().ravel()
    np.testing.assert_allclose(back, pywt.waverec(changed, "db6", mode="zero"), atol=1e-5)


def test_wavelet_gives_the_signal_back():
    x = batch(1, 64).flatten()[None, None, :1024]
    back = wavelet.Synthesis()(*wavelet.Analysis(3)(x))
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)


def test_padding_is_tensorflows():
    # output, before, after: ceil(size / stride), the odd pixel behind
    for size, kernel, stride in ((380, 3, 2), (95, 5, 2), (24, 5, 2), (190, 3, 1), (7, 5, 1)):
        before, after = same_padding(size, kernel, stride)
        assert (size + before + after - kernel) // stride + 1 == -(-size // stride)
        assert after - before in (0, 1)
    model = _skeleton("lsda").model.student_encoder.model
    unequal = [i for i, block in enumerate(model._blocks) if block.padding is not None]
    assert model.padding == (0, 1, 0, 1)
    assert unequal == [2, 10, 22]
    assert model._blocks[6]._depthwise_conv.padding == (2, 2)
    assert _skeleton("efficientnet_b4").backbone.efficientnet.padding is None


@pytest.mark.parametrize("name", ["xception", "ucf", "srm"])
def test_separable_blocks(name):
    separable = [m for m in _skeleton(name).modules() if type(m).__name__ == "Separable"]
    backbones = 2 if name == "srm" else 1
    assert len(separable) == 34 * backbones
    for module in separable:
        depthwise, pointwise = module.conv1, module.pointwise
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
        assert depthwise.kernel_size == (3, 3)
        assert pointwise.kernel_size == (1, 1)
        assert depthwise.bias is None
        assert pointwise.bias is None


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
        assert isinstance(_skeleton(name), Detector)
