"""Finding, cutting out and scoring faces; reading pictures, folders and videos."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from defakeq import faces, images  # noqa: E402
from defakeq.detect import Detector, scan_all  # noqa: E402
from defakeq.embedded.data import FACES, PHOTOS, load_photo  # noqa: E402


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(0, width) * max(0, height)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


class Brightness(torch.nn.Module):
    """A stand-in whose score is known: the crop's mean."""

    def forward(self, x):
        return x.mean((1, 2, 3))


@pytest.mark.parametrize("name", sorted(FACES))
def test_faces_of_the_photographs_are_found(name):
    found = faces.find_faces(load_photo(name))
    assert len(found) == 1
    assert overlap(found[0], FACES[name]) > 0.7


def test_large_pictures_are_searched_smaller_and_boxes_scaled_back():
    image = load_photo("astronaut")
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    found = faces.find_faces(large)
    assert overlap(found[0], tuple(4 * v for v in FACES["astronaut"])) > 0.7


def test_picture_without_a_face():
    assert faces.find_faces(load_photo("brick")) == []


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 4), np.uint8)],
)
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match=f"image: found {image.dtype}"):
        faces.find_faces(image)


def test_crop_inside_is_the_picture_and_outside_its_mirror():
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    assert np.array_equal(faces.crop_square(image, (1, 2, 3)), image[2:5, 1:4])
    beyond = faces.crop_square(image, (-2, -1, 4))
    assert beyond.shape == (4, 4, 3)
    assert np.array_equal(beyond[1:, 2:], image[:3, :2])
    assert np.array_equal(beyond[0, 2:], image[0, :2])
    assert np.array_equal(beyond[1:, 1], image[:3, 0])
    with pytest.raises(ValueError, match="square: found"):
        faces.crop_square(image, (6, 0, 3))


def test_margin_box_is_centred():
    left, top, side = faces.margin_box((100, 50, 80, 60), 1.5)
    assert side == 120
    assert (left + side / 2, top + side / 2) == (140, 80)


def test_read_image_gives_rgb(tmp_path):
    path = tmp_path / "röd bild.png"
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 200
    path.write_bytes(cv2.imencode(".png", red[..., ::-1])[1].tobytes())
    assert np.array_equal(images.read_image(path), red)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jpg", None, "no such file"),
        ("empty.jpg", b"", "the file is empty"),
        ("text.png", b"no picture at all", "not a picture"),
        ("cut.png", "cut", "damaged"),
        ("text.mp4", b"no video at all", "not a video"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content == "cut":
        content = cv2.imencode(".png", np.zeros((50, 50, 3), np.uint8))[1].tobytes()[:40]
    if content is not None:
        path.write_bytes(content)
    result = Detector(Brightness()).scan(path)
    assert name in result.error
    assert message in result.error
    assert result.faces == []
    assert result.probability is None


def test_folder_is_collected_in_order_and_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.png", "sub/c.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = images.collect([tmp_path, tmp_path / "a.png", tmp_path / "missing.jpg"])
    names = ["a.png", "b.JPG", "sub/c.mp4", "missing.jpg"]
    assert found == [tmp_path / name for name in names]
    empty = tmp_path / "nothing"
    empty.mkdir()
    with pytest.raises(ValueError, match="nothing: found no picture"):
        images.collect([empty])


def test_score_is_the_model_s_probability():
    crops = np.stack([np.full((128, 128, 3), value, np.uint8) for value in (0, 51, 255)])
    expected = 1 / (1 + np.exp(-(np.array([0, 51, 255]) / 127.5 - 1)))
    assert np.allclose(Detector(Brightness()).score(crops), expected, atol=1e-6)


def test_model_with_another_output_is_refused():
    detector = Detector(torch.nn.Flatten())
    with pytest.raises(ValueError, match="model: found an output of"):
        detector.score(np.zeros((2, 128, 128, 3), np.uint8))


def test_missing_and_foreign_model_files_are_refused(tmp_path):
    picture = [PHOTOS / "astronaut.jpg"]
    with pytest.raises(ValueError, match=r"model: found .*none\.dfq"):
        list(scan_all(picture, str(tmp_path / "none.dfq")))
    foreign = tmp_path / "foreign.dfq"
    foreign.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"foreign\.dfq"):
        list(scan_all(picture, str(foreign)))


def test_photograph_is_scanned():
    result = next(iter(scan_all([PHOTOS / "astronaut.jpg"])))
    assert result.error is None
    assert result.kind == "image"
    assert len(result.faces) == 1
    assert overlap(result.faces[0].box, FACES["astronaut"]) > 0.7
    assert 0 <= result.probability == result.faces[0].probability <= 1
    assert result.to_dict()["faces"][0]["frame"] is None


def test_real_photograph_scores_below_most_of_its_forged_copies():
    from defakeq.demo import crop_of, forged_copy

    detector = Detector()
    image, box = load_photo("astronaut"), FACES["astronaut"]
    real = detector.score(crop_of(image, box)[None])[0]
    crops = [crop_of(forged_copy(image, box, seed), box) for seed in range(20)]
    assert (detector.score(np.stack(crops)) > real).mean() >= 0.7


def test_video_frames_are_spread_evenly(tmp_path):
    path = tmp_path / "clip.avi"
    image = load_photo("astronaut")[..., ::-1]
    height, width = image.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    assert writer.isOpened()
    for index in range(9):
        writer.write(np.ascontiguousarray(image) if index < 8 else np.zeros_like(image))
    writer.release()
    assert [index for index, _ in images.read_frames(path, 3)] == [0, 4, 8]
    result = Detector(Brightness()).scan(path, frames=3)
    assert result.error is None
    assert result.kind == "video"
    assert [face.frame for face in result.faces] == [0, 4]
    assert result.probability == pytest.approx(np.mean([f.probability for f in result.faces]))
    with pytest.raises(ValueError, match="count: found 0"):
        list(images.read_frames(path, 0))
