"""The embedded detector: its data, its network, its report and what it can tell apart."""

from __future__ import annotations

import ast
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from defakeq.embedded import data  # noqa: E402
from defakeq.embedded.network import (  # noqa: E402
    CHECKPOINT,
    PACKED,
    REPORT,
    EmbeddedDetector,
    load_float,
    to_input,
)
from defakeq.embedded.train import HELD_OUT, auc, predict  # noqa: E402


@pytest.fixture(scope="module")
def report():
    return json.loads(REPORT.read_text())


@pytest.fixture(scope="module")
def held_out_faces():
    """Procedural faces that neither training nor the choice of a plan has seen."""
    return data.samples("test", "procedural", 60)


@pytest.fixture(scope="module")
def compressed():
    from defakeq.scorer import open_model

    return open_model().module


def test_splits_share_no_photograph_and_no_seed():
    names = [name for scenes in data.SCENES.values() for name in scenes] + list(data.FACES)
    assert len(names) == len(set(names))
    assert {path.stem for path in data.PHOTOS.glob("*.jpg")} == set(names)
    firsts = sorted(data.SEEDS.values())
    assert all(after - before >= 10_000_000 for before, after in pairwise(firsts))


def test_a_wheel_without_torch_leaves_out_the_photographs_to_train_on():
    setup = (Path(__file__).parent.parent / "setup.py").read_text()
    listed = re.search(r"^TRAINING = (\(.+\))$", setup, re.MULTILINE)
    assert listed is not None
    scenes = data.SCENES["train"] + data.SCENES["validation"]
    assert set(ast.literal_eval(listed[1])) == set(scenes)


def test_every_photograph_has_its_licence():
    text = (data.PHOTOS / "LICENSES.md").read_text()
    for path in data.PHOTOS.glob("*.jpg"):
        assert f"| {path.stem} |" in text


def test_photographs_of_people_are_in_the_test_split_only():
    with pytest.raises(ValueError, match="astronaut"):
        list(data.bases("train", "astronaut", 1))
    assert next(data.bases("test", "astronaut", 1)).image.shape[2] == 3


@pytest.mark.parametrize("kind", ["procedural", "scene"])
def test_samples_repeat_by_seed(kind):
    first, labels = data.samples("validation", kind, 2, seed=3)
    again, _ = data.samples("validation", kind, 2, seed=3)
    other, _ = data.samples("validation", kind, 2, seed=4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (4, data.INPUT_SIZE, data.INPUT_SIZE, 3)
    assert labels.tolist() == [0, 1, 0, 1]


def test_forgery_changes_the_face_and_is_reproducible():
    image = data.to_float(next(data.bases("test", "astronaut", 1)).image)
    size = image.shape[0]
    outline = data.face_outline((size * 0.15, size * 0.15, size * 0.7, size * 0.7))
    for seed in range(8):
        forged = data.forge(np.random.default_rng(seed), image, outline)
        again = data.forge(np.random.default_rng(seed), image, outline)
        assert np.array_equal(forged, again)
        assert forged.min() >= 0
        assert forged.max() <= 1
        assert np.abs(forged - image).max() > 2 / 255


def test_forgery_without_a_mask_would_be_the_image():
    image = data.to_float(next(data.bases("test", "astronaut", 1)).image)
    size = image.shape[0]
    mask = data.blend_mask(
        np.random.default_rng(0),
        size,
        data.face_outline((0.2 * size, 0.2 * size, 0.6 * size, 0.6 * size)),
    )
    assert mask.shape == (size, size)
    assert mask[:3].max() == 0
    assert mask.max() > 0.9
    soft = ((mask > 0.05) & (mask < 0.95)).sum()
    assert soft > size


def test_both_classes_pass_the_same_camera():
    image = data.to_float(data.load_photo("flower")[:160, :160])
    assert np.array_equal(data.finish(5, image), data.finish(5, image.copy()))
    assert not np.array_equal(data.finish(5, image), data.finish(6, image))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"'nobody'.*astronaut"):
        data.load_photo("nobody")
    with pytest.raises(ValueError, match=r"split: found 'all'"):
        data.split_scenes("all")
    with pytest.raises(ValueError, match="crops: found float64"):
        to_input(np.zeros((1, 128, 128, 3)))
    with pytest.raises(ValueError, match=r"\(1, 64, 64, 3\)"):
        to_input(np.zeros((1, 64, 64, 3), np.uint8))


def test_auc_counts_pairs_in_order():
    rng = np.random.default_rng(0)
    labels = (rng.random(60) < 0.4).astype(np.float32)
    scores = rng.integers(0, 9, 60).astype(float)
    real, forged = scores[labels == 0], scores[labels == 1]
    wins = (forged[:, None] > real).mean() + 0.5 * (forged[:, None] == real).mean()
    assert auc(labels, scores) == pytest.approx(wins, abs=1e-12)
    with pytest.raises(ValueError, match="found 2 forged and 0 real"):
        auc(np.ones(2, np.float32), np.zeros(2))


def test_files_are_small():
    assert CHECKPOINT.stat().st_size < 2_000_000
    assert PACKED.stat().st_size < 1_000_000
    assert PACKED.stat().st_size < CHECKPOINT.stat().st_size / 2


def test_report_says_what_was_measured_and_how(report):
    assert set(report["held_out"]) == set(HELD_OUT) == set(report["compressed"]["held_out"])
    assert report["command"].startswith("python -m defakeq.embedded.train")
    assert report["compressed"]["command"].startswith("python -m defakeq.embedded.build")
    assert report["compressed"]["bytes"] == PACKED.stat().st_size
    assert report["parameters"] == sum(p.numel() for p in EmbeddedDetector().parameters())
    assert "Not trained on" in report["not_trained_on"]
    for name, row in report["held_out"].items():
        assert 0.5 < row["auc"] <= 1, name


def test_network_takes_any_batch():
    model = EmbeddedDetector().eval()
    with torch.inference_mode():
        assert model(torch.zeros(0, 3, 128, 128)).shape == (0,)
        assert model(torch.zeros(3, 3, 128, 128)).shape == (3,)


def test_float_network_tells_held_out_forgeries(held_out_faces):
    images, labels = held_out_faces
    assert auc(labels, predict(load_float(), images)) > 0.82


def test_compressed_network_keeps_the_scores(held_out_faces, compressed):
    images, labels = held_out_faces
    before, after = predict(load_float(), images), predict(compressed, images)
    assert auc(labels, after) > 0.82
    assert abs(auc(labels, after) - auc(labels, before)) < 0.02
    assert np.corrcoef(before, after)[0, 1] > 0.97


def test_compressed_scores_do_not_depend_on_batch_and_threads(held_out_faces, compressed):
    images = held_out_faces[0][:6]
    whole = predict(compressed, images)
    single = np.concatenate([predict(compressed, image[None]) for image in images])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert np.array_equal(predict(compressed, images), whole)
    finally:
        torch.set_num_threads(threads)
    assert np.allclose(single, whole, atol=1e-5)
