"""Miniature data: layouts, determinism, disjoint sources, and the trace of every family."""

from __future__ import annotations

import hashlib
import json

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from defakeq.data import degrade, open_dataset, sources
from defakeq.data.forgeries import FAMILIES
from defakeq.data.forgeries.region import face_mask
from defakeq.data.forgeries.upsample import transposed_convolution
from defakeq.data.generate import FAMILY_OF, GENERATED, Options, generate
from defakeq.embedded.data import SCENES


@pytest.fixture(scope="module")
def shots():
    """Frames of several people, with outlines."""
    cast = sources.people("train", 5, 0, "tests")
    return [
        next(sources.shoot(np.random.default_rng(i), p.base, 1, 128)) for i, p in enumerate(cast)
    ]


def forged(family, shots):
    return [
        FAMILIES[family](np.random.default_rng(i), np.random.default_rng(99 + i), image, outline)
        for i, (image, outline) in enumerate(shots)
    ]


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def residual(image):
    return image - cv2.GaussianBlur(image, (0, 0), 1.0)


def inside(shot, values):
    mask = face_mask(128, shot[1]) > 0.95
    return values[mask]


@pytest.mark.parametrize("name", GENERATED)
def test_every_layout_is_read_from_its_json_and_from_its_folders(tmp_path, name):
    options = Options(name, count=2, frames=2, size=64, seed=3)
    manifest = generate(tmp_path, options)
    found = open_dataset(tmp_path, name, split=None)
    assert not found.report
    assert len(found) == sum(manifest["pictures"].values())
    assert {sample.label for sample in found.samples} == {0, 1}
    batch = next(found.batches(3, 32, 0))
    assert batch.images.shape == (3, 32, 32, 3)
    if name == "folder":
        return
    (tmp_path / "dataset_json" / f"{name}.json").unlink()
    again = open_dataset(tmp_path, name, split="test")
    chosen = [sample for sample in found.samples if sample.split == "test"]
    if name != "DeepFakeDetection":  # whose folders know no splits
        assert [sample.path for sample in again.samples] == [sample.path for sample in chosen]
        assert [sample.family for sample in again.samples] == [sample.family for sample in chosen]
    assert "missing file" not in again.report.counts()


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    options = Options("folder", count=1, frames=2, size=64, splits=("test",), degrade=("noise:2",))
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        generate(tmp_path / name, Options(**{**vars(options), "seed": seed}))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    one, other = digest(tmp_path / "a"), digest(tmp_path / "c")
    assert not set(one.values()) & set(other.values())


def test_sources_of_the_splits_are_disjoint(tmp_path):
    manifest = generate(tmp_path, Options("folder", count=6, frames=1, size=48, families=("warp",)))
    parts = [set(manifest["sources"][split]) for split in ("train", "val", "test")]
    assert all(len(part) == 6 for part in parts)
    assert len(set.union(*parts)) == 18
    assert sum("photograph" in source for source in parts[2]) == 2
    assert not any("photograph" in source for source in parts[0] | parts[1])
    scenes = [set(names) for names in SCENES.values()]
    assert len(set.union(*scenes)) == sum(map(len, scenes))
    data = open_dataset(tmp_path, split=None)
    assert not data.report


def test_one_family_stands_for_each_benchmark():
    assert set(FAMILY_OF.values()) == set(FAMILIES)
    fakes = ["DFD_fake", "CelebDFv1_fake", "CelebDFv2_fake", "DFDC_Fake", "DFDCP_FakeA"]
    assert len({FAMILY_OF[name] for name in fakes}) == 5


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_forgeries_change_the_face_and_little_else(family, shots):
    for (image, outline), made in zip(shots, forged(family, shots), strict=True):
        assert made.shape == image.shape
        assert made.dtype == np.float32
        assert 0 <= made.min() <= made.max() <= 1
        change = np.abs(made - image).mean(2)
        face = face_mask(128, outline)
        assert change[face > 0.9].mean() > 0.001
        if family != "blend":  # which also swaps the other way round
            assert change[face < 0.01].mean() < 1e-3


def test_blend_differs_in_color_inside(shots):
    shifts = []
    for shot, made in zip(shots, forged("blend", shots), strict=True):
        outside = face_mask(128, shot[1], 0.1) < 0.01
        difference = made - shot[0]
        shifts.append(np.abs(inside(shot, difference).mean(0) - difference[outside].mean(0)).max())
    assert np.median(shifts) > 0.02


def test_resampled_face_lost_its_finest_detail(shots):
    for shot, made in zip(shots, forged("resample", shots), strict=True):
        before, after = inside(shot, residual(shot[0])).std(), inside(shot, residual(made)).std()
        assert after < 0.75 * before


def peaks(image, shot):
    """The spectrum at multiples of a quarter of the sampling rate, over its neighbourhood's."""
    mask = face_mask(128, shot[1])[..., None]
    flat = (residual(image) * mask).mean(2)
    power = np.abs(np.fft.fft2(flat)) ** 2
    ratios = []
    for y, x in ((0, 32), (32, 0), (0, 64), (64, 0)):
        ys, xs = np.arange(y - 4, y + 5) % 128, np.arange(x - 4, x + 5) % 128
        ratios.append(power[y, x] / np.median(power[np.ix_(ys, xs)]))
    return max(ratios)


def test_upsampling_leaves_spectral_peaks(shots):
    made = forged("upsample", shots)
    after = [peaks(image, shot) for image, shot in zip(made, shots, strict=True)]
    before = [peaks(shot[0], shot) for shot in shots]
    assert min(after) > 30
    assert np.median(after) > 10 * np.median(before)
    for family in ("resample", "diffuse", "warp"):
        others = [peaks(i, s) for i, s in zip(forged(family, shots), shots, strict=True)]
        assert np.median(others) < np.median(after) / 5


def test_transposed_convolution_is_torch_s():
    import torch

    rng = np.random.default_rng(0)
    image = rng.random((6, 5, 3)).astype(np.float32)
    surplus = np.zeros((2, 3))
    kernel = torch.tensor([0.5, 1, 0.5])
    weight = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    y = torch.nn.functional.conv_transpose2d(
        x, weight, stride=2, padding=1, output_padding=1, groups=3
    )[0].permute(1, 2, 0)
    found = transposed_convolution(image, surplus)
    # The last row and column see the border, which the two extend differently.
    assert np.allclose(found[:-1, :-1], y.numpy()[:-1, :-1], atol=1e-6)
    uneven = transposed_convolution(image, np.full((2, 3), 0.1))
    assert np.allclose(uneven[::2, ::2], found[::2, ::2] * 1.2, atol=1e-6)
    assert np.allclose(uneven[1::2, 1::2], found[1::2, 1::2], atol=1e-6)


def texture(image, shot):
    """The typical strength of the second finest vertical detail inside the face."""
    even, odd = image[::2], image[1::2]
    detail = (even[:, ::2] + even[:, 1::2] - odd[:, ::2] - odd[:, 1::2]) / 2
    return np.median(np.abs(detail[(face_mask(128, shot[1]) > 0.95)[::2, ::2]]))


def test_diffusion_smooths_and_its_new_noise_is_white(shots):
    smooth = forged("diffuse", shots)
    for index, (shot, made) in enumerate(zip(shots, smooth, strict=True)):
        assert texture(made, shot) < 0.9 * texture(shot[0], shot)
        look = np.random.default_rng(index)
        other = FAMILIES["diffuse"](look, np.random.default_rng(7), *shot)
        noise = (other - made).mean(2)
        mask = face_mask(128, shot[1]) > 0.95
        both = mask[:, 1:] & mask[:, :-1]
        assert abs(np.corrcoef(noise[:, 1:][both], noise[:, :-1][both])[0, 1]) < 0.06
        bright = shot[0].mean(2) > np.median(shot[0].mean(2)[mask])
        ratio = noise[mask & bright].std() / noise[mask & ~bright].std()
        assert 0.8 < ratio < 1.25


def test_warp_moves_the_mouth_and_keeps_the_eyes_apart(shots):
    from defakeq.data.forgeries.warp import moves

    for index, (_, outline) in enumerate(shots):
        field = moves(np.random.default_rng(index), 128, outline)
        low, high = outline.min(0), outline.max(0)
        mouth = (low + (high - low) * [0.5, 0.77]).astype(int)
        far = np.linalg.norm(field, axis=2)
        around = far[mouth[1] - 8 : mouth[1] + 8, mouth[0] - 20 : mouth[0] + 20]
        assert around.max() > 1
        assert far[:4].max() < 0.5


@pytest.mark.parametrize("kind", sorted(degrade.DEGRADATIONS))
def test_degradations_grow_with_their_strength(kind, shots):
    frames = [image for image, _ in shots[:2]]
    errors = []
    for strength in degrade.STRENGTHS:
        out = degrade.DEGRADATIONS[kind](np.random.default_rng(0), frames, strength)
        assert [image.shape for image in out] == [image.shape for image in frames]
        assert all(image.dtype == np.float32 for image in out)
        errors.append(np.mean([np.square(a - b).mean() for a, b in zip(out, frames, strict=True)]))
    assert errors == sorted(errors)
    assert errors[0] > 0


def test_video_compression_keeps_a_still_picture_s_error(shots):
    image = shots[0][0]
    out = degrade.video(np.random.default_rng(0), [image] * 4, 5)
    assert np.square(out[3] - image).mean() <= np.square(out[0] - image).mean()


def test_films_are_written_and_read(tmp_path):
    options = Options(
        "folder", count=1, frames=3, size=64, splits=("test",), families=("warp",), films=True
    )
    generate(tmp_path, options)
    found = open_dataset(tmp_path)
    assert [sample.frame for sample in found.samples] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "UADFV"}, "dataset: found 'UADFV'"),
        ({"count": 0}, "count: found 0"),
        ({"frames": 0}, "frames: found 0"),
        ({"size": 10}, "size: found 10"),
        ({"seed": -1}, "seed: found -1"),
        ({"splits": ("dev",)}, "splits: found 'dev'"),
        ({"splits": ()}, "splits: found none"),
        ({"compressions": ("c99",)}, "compressions: found 'c99'"),
        ({"families": ("gan",)}, "families: found 'gan'"),
        ({"degrade": ("jpeg:9",)}, "degrade: found 'jpeg:9'"),
        ({"degrade": ("fog:1",)}, "degrade: found 'fog:1'"),
        ({"dataset": "DFDC", "films": True}, "films: found 'DFDC'"),
    ],
)
def test_options_that_cannot_be(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        generate(tmp_path, Options(**{"dataset": "folder", **change}))
    assert not list(tmp_path.iterdir())


def test_data_is_not_overwritten(tmp_path):
    options = Options("DFDC", count=1, frames=1, size=48, splits=("test",))
    manifest = generate(tmp_path, options)
    assert manifest == json.loads((tmp_path / "dataset_json/DFDC.generated.json").read_text())
    with pytest.raises(ValueError, match="out: found"):
        generate(tmp_path, options)
