"""The parts that define a detector, against independent computations."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from detector_reference import batch, fill, skeleton  # noqa: E402
from torch import nn  # noqa: E402

from defakeq import detectors  # noqa: E402
from defakeq.detectors import f3net, npr, spsl, srm, wavelet  # noqa: E402
from defakeq.detectors.efficientnet import same_padding  # noqa: E402


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
    model = skeleton("lsda").model.student_encoder.model
    unequal = [i for i, block in enumerate(model._blocks) if block.padding is not None]
    assert model.padding == (0, 1, 0, 1)
    assert unequal == [2, 10, 22]
    assert model._blocks[6]._depthwise_conv.padding == (2, 2)
    assert skeleton("efficientnet_b4").backbone.efficientnet.padding is None


@pytest.mark.parametrize("name", ["xception", "ucf", "srm"])
def test_separable_blocks(name):
    separable = [m for m in skeleton(name).modules() if type(m).__name__ == "Separable"]
    backbones = 2 if name == "srm" else 1
    assert len(separable) == 34 * backbones
    for module in separable:
        depthwise, pointwise = module.conv1, module.pointwise
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
        assert depthwise.kernel_size == (3, 3)
        assert pointwise.kernel_size == (1, 1)
        assert depthwise.bias is None
        assert pointwise.bias is None
