"""Where a detector looks, as a picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

import user_detectors  # noqa: E402

from defakeq.detect import Detector  # noqa: E402
from defakeq.embedded.data import FACES, PHOTOS  # noqa: E402
from defakeq.explain import SIDE, explain  # noqa: E402
from defakeq.images import read_image  # noqa: E402
from defakeq.scorer import Scorer, open_float, open_model  # noqa: E402

PHOTO = PHOTOS / "astronaut.jpg"


def panel(found, index):
    width = found.panels.shape[1] // ((found.panels.shape[1]) // (SIDE + 8))
    return found.panels[-SIDE:, index * width + 4 : index * width + 4 + SIDE].astype(int)


def test_both_networks_are_shown_with_the_scores_of_detect():
    scorers = [open_model(), open_float(None, "embedded")]
    found = explain(PHOTO, scorers, cells=3)
    assert found.panels.shape == (SIDE + 44, 4 * (SIDE + 8), 3)
    assert found.box == pytest.approx(FACES["astronaut"], abs=20)
    image = read_image(PHOTO)
    for kind, scorer in zip(("compressed", "float"), scorers, strict=True):
        assert found.scores[kind] == Detector(scorer).inspect(image)[0].probability
    for index in (1, 2, 3):  # gray with color, and none of them like another
        assert np.ptp(panel(found, index), axis=2).max() > 50
        assert np.abs(panel(found, index) - panel(found, index - 1)).mean() > 1


def test_the_map_shows_what_the_score_hangs_on(tmp_path):
    class Corner(torch.nn.Module):
        def forward(self, x):
            return 4 * x[:, :, :40, :40].mean((1, 2, 3))

    image = np.full((200, 200, 3), 60, np.uint8)
    image[20:50, 20:50] = 250  # bright: blurring it lowers the score
    image[150:180, 150:180] = 250
    path = tmp_path / "crop.png"
    cv2.imwrite(str(path), image)
    found = explain(path, [Scorer("corner", Corner(), 0, "")], cells=6)
    assert found.box is None
    assert found.panels.shape[1] == 2 * (SIDE + 8)
    shown = panel(found, 1)
    red = shown[..., 0] - shown[..., 2]
    assert red[40:80, 40:80].mean() > 50
    assert abs(red[230:300, 230:300].mean()) < 5


def test_from_the_command_line(tmp_path):
    from defakeq.cli import app

    out = tmp_path / "x.png"
    arguments = ["explain", str(PHOTO), "--out", str(out), "--cells", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "the largest face" in result.stdout
    assert read_image(out).shape[1] == 4 * (SIDE + 8)
    own = [*arguments, "--model", "user_detectors:Mean"]
    assert CliRunner().invoke(app, own).exit_code == 0
    assert read_image(out).shape[1] == 2 * (SIDE + 8)
    assert isinstance(user_detectors.Mean(), torch.nn.Module)
