"""The command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import defakeq_kernels


@pytest.fixture
def invoke():
    from defakeq.cli import app

    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def photos():
    pytest.importorskip("torch")
    from defakeq.embedded.data import PHOTOS

    return PHOTOS


def test_info_json(invoke):
    result = invoke("info", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(found["isa"]) == {"built", "supported", "allowed"}
    assert "scalar" in found["isa"]["built"]
    assert found["selected"] in found["isa"]["built"]
    assert found["threads"] >= 1
    assert set(found["torch"]) == {"version", "ops"}
    assert isinstance(found["gpus"], list)


def test_info_names_everything(invoke):
    text = invoke("info").stdout
    for label in (
        "version",
        "processor",
        "built",
        "supported",
        "allowed",
        "threads",
        "torch",
        "GPU",
    ):
        assert label in text


def test_info_and_help_import_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from defakeq.cli import app; "
        "assert CliRunner().invoke(app, ['info']).exit_code == 0; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "assert 'torch' not in sys.modules and 'cv2' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_torch_the_commands_that_need_it_say_so():
    code = (
        "import sys; sys.modules['torch'] = None; from typer.testing import CliRunner; "
        "from defakeq.cli import app; done = CliRunner().invoke(app, sys.argv[1:]); "
        "print(done.output, end=''); sys.exit(done.exit_code)"
    )
    for command in (["detect", "x.jpg"], ["detectors"], ["bench", "model", "resnet34"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "torch: not installed, and this command needs it" in done.stdout + done.stderr


def test_version(invoke):
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"defakeq {defakeq_kernels.__version__}\n"


def test_help_lists_the_commands(invoke):
    text = invoke("--help").stdout
    for command in ("detect", "watch", "explain", "evaluate", "demo", "info", "bench"):
        assert command in text


def test_package_names_are_imported_on_demand():
    code = (
        "import sys, defakeq; assert 'torch' not in sys.modules; assert 'convert' in dir(defakeq)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    import defakeq

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = defakeq.nothing


def test_exports_are_functions_after_their_modules_are_imported():
    pytest.importorskip("torch")
    import defakeq
    import defakeq.conversion

    for name in defakeq.__all__:
        assert callable(getattr(defakeq, name)), name


def test_detect_prints_a_face(invoke, photos):
    result = invoke("detect", photos / "astronaut.jpg")
    assert result.exit_code == 0
    assert "probability of a forgery" in result.stdout
    assert " ms)" in result.stdout


def test_detect_names_what_it_skips_and_what_has_no_face(invoke, photos, tmp_path):
    shutil.copy(photos / "astronaut.jpg", tmp_path / "face.jpg")
    shutil.copy(photos / "brick.jpg", tmp_path / "wall.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    result = invoke("detect", tmp_path)
    assert result.exit_code == 1
    assert "broken.jpg: not a picture" in result.output
    assert "wall.jpg: no face found" in result.stdout
    assert "face.jpg: " in result.stdout


def test_detect_json(invoke, photos, tmp_path):
    good = invoke("detect", photos / "astronaut.jpg", photos / "brick.jpg", "--json")
    assert good.exit_code == 0
    found = json.loads(good.stdout)
    assert found["model"] == "embedded"
    face, wall = found["files"]
    assert 0 <= face["probability"] <= 1
    assert face["faces"][0]["milliseconds"] > 0
    assert wall["probability"] is None
    assert wall["faces"] == []
    bad = invoke("detect", tmp_path / "none.png", "--json")
    assert bad.exit_code == 1
    assert "none.png: no such file" in json.loads(bad.stdout)["files"][0]["error"]


def test_detect_with_a_model_file(invoke, photos, tmp_path):
    from defakeq.embedded.network import PACKED

    copy = tmp_path / "copy.dfq"
    shutil.copy(PACKED, copy)
    picture = photos / "astronaut.jpg"
    own = json.loads(invoke("detect", picture, "--json").stdout)
    other = json.loads(invoke("detect", picture, "--model", copy, "--json").stdout)
    assert other["model"] == str(copy)
    assert other["files"][0]["probability"] == own["files"][0]["probability"]


def test_wrong_input_is_one_line_and_exit_code_2(invoke, photos, tmp_path):
    for arguments in (
        ("detect", photos / "astronaut.jpg", "--model", tmp_path / "none.dfq"),
        ("detect", tmp_path),
        ("demo", photos / "brick.jpg"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert result.output.startswith("defakeq: ")
        assert result.output.count("\n") == 1


def test_demo_shows_both_networks(invoke, photos, tmp_path):
    arguments = ("demo", "--copies", "2", "--repeats", "1", "--people", "2", "--out", tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    for text in ("float32", "compressed", "KiB", "ms", "held-out AUC", "Not trained on"):
        assert text in result.stdout
    assert (tmp_path / "forged.png").stat().st_size > 0
    first = (tmp_path / "report.json").read_text()
    found = json.loads(first)["datasets"]
    assert {name: row["evaluated"] for name, row in found.items()} == {
        "FaceForensics++": 40,
        "Celeb-DF-v2": 16,
    }
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 6
    assert invoke(*arguments).exit_code == 0  # the data is there
    assert (tmp_path / "report.json").read_text() == first
