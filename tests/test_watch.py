"""Watching films: what is drawn, what is written, and when it ends."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

import user_detectors  # noqa: E402

from defakeq import watch  # noqa: E402
from defakeq.detect import Detector, FaceScore  # noqa: E402
from defakeq.embedded.data import load_photo  # noqa: E402

FRAMES = 7


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "clip.avi"
    face = load_photo("astronaut")[:256, 100:356]
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, fourcc, 12, (256, 256))
    for index in range(FRAMES):
        writer.write(np.ascontiguousarray(np.roll(face, 2 * index, 1)[..., ::-1]))
    writer.release()
    return path


def frames(path):
    capture = cv2.VideoCapture(str(path))
    found = []
    while True:
        ok, frame = capture.read()
        if not ok:
            return found, capture.get(cv2.CAP_PROP_FPS)
        found.append(frame)


@pytest.mark.parametrize("suffix", sorted(watch.CODECS))
def test_an_annotated_film_is_written(film, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    detector = Detector(user_detectors.Mean())
    seen = watch.watch(str(film), detector, out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    before, after = frames(film), frames(out)
    assert seen.frames == len(seen.scores) == len(after[0]) == len(before[0]) == FRAMES
    assert after[1] == pytest.approx(before[1])
    face = detector.inspect(np.ascontiguousarray(before[0][0][..., ::-1]))[0]
    assert seen.scores[0] == face.probability
    x, y, width, height = (round(value) for value in face.box)
    change = np.abs(after[0][0].astype(int) - before[0][0]).mean(2)
    assert change[:12, :100].mean() > 20  # the frame rate
    assert change[y : y + height, x : x + 2].mean() > 20  # the box
    assert change[y + height // 3 : y + height - 9, x + 9 : x + width - 9].mean() < 10


def test_limit_and_search_in_every_other_frame(film):
    class Counted(Detector):
        looked: tuple = ()

        def inspect(self, image, frame=None):
            self.looked = (*self.looked, frame)
            return super().inspect(image, frame)

    detector = Counted(user_detectors.Mean())
    seen = watch.watch(str(film), detector, film.with_name("o.avi"), limit=5, every=2)
    assert (seen.frames, detector.looked) == (5, (0, 2, 4))
    with pytest.raises(ValueError, match="every: found 0"):
        watch.watch(str(film), detector, film.with_name("o.avi"), every=0)


def test_rate_is_that_of_the_clock(film, tmp_path):
    ticks = itertools.count(100, 0.25)
    detector = Detector(user_detectors.Mean())
    seen = watch.watch(str(film), detector, tmp_path / "o.avi", clock=lambda: next(ticks))
    assert seen.rate == pytest.approx(4)


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt, True), (ValueError, False)])
def test_an_interrupt_keeps_the_film_and_an_error_does_not(film, tmp_path, error, kept):
    class Stopped(Detector):
        def inspect(self, image, frame=None):
            if frame == 3:
                raise error("stopped")
            return []

    out = tmp_path / "out.avi"
    if kept:
        seen = watch.watch(str(film), Stopped(user_detectors.Mean()), out)
        assert (seen.frames, seen.probability) == (3, None)
        assert len(frames(out)[0]) == 3
    else:
        with pytest.raises(ValueError, match="stopped"):
            watch.watch(str(film), Stopped(user_detectors.Mean()), out)
        assert not list(tmp_path.iterdir())


def test_colors_go_from_green_to_red():
    frame = np.zeros((90, 90, 3), np.uint8)
    for score, channel in ((0.0, 1), (1.0, 0)):
        drawn = watch.annotate(frame, [FaceScore((30, 40, 40, 30), score, 1.0)], 9.0, score)
        assert drawn[69, 50].argmax() == channel


def test_from_the_command_line(film, tmp_path):
    from defakeq.cli import app

    out = tmp_path / "out.avi"
    result = CliRunner().invoke(app, ["watch", str(film), "--out", str(out), "--frames", "2"])
    assert result.exit_code == 0, result.stderr
    assert "2 frames, 2 with a face; probability of a forgery 0." in result.stdout
    assert f"wrote {out}" in result.stdout
