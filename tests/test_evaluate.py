"""Evaluations: numbers, reports, sharing and resuming."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from defakeq import metrics  # noqa: E402
from defakeq.data import open_dataset  # noqa: E402
from defakeq.data.generate import Options, generate  # noqa: E402
from defakeq.evaluate import plots, saliency, shards  # noqa: E402
from defakeq.evaluate.run import Settings, evaluate  # noqa: E402
from defakeq.scorer import Scorer, open_float, open_model  # noqa: E402


def run(*arguments):
    from defakeq.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generate(root, Options("Celeb-DF-v2", count=4, frames=3, size=64, splits=("test",)))
    generate(root, Options("FaceForensics++", count=2, frames=2, size=64, splits=("test",)))
    return root


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    files = {kind: out / f"e.{kind}" for kind in ("json", "csv", "html")}
    result = run(
        *("evaluate", "--data", data, "--dataset", "Celeb-DF-v2", "--dataset", "FaceForensics++"),
        *("--repeats", 50, "--chunk", 8, "--misses", 2),
        *(part for kind, path in files.items() for part in (f"--{kind}", path)),
    )
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["e.csv", "e.html", "e.json"]
    return {kind: path.read_text() for kind, path in files.items()} | {"stdout": result.stdout}


def test_json_has_the_metrics_of_the_scores(data, evaluated):
    document = json.loads(evaluated["json"])
    assert set(document["networks"]) == {"compressed", "float"}
    row = document["datasets"]["Celeb-DF-v2"]
    assert (row["samples"], row["evaluated"], row["forged"], row["real"]) == (24, 24, 12, 12)
    found = open_dataset(data, "Celeb-DF-v2")
    for kind, scorer in (("compressed", open_model()), ("float", open_float(None, "embedded"))):
        parts = [scorer.score(b.images) for b in found.batches(7, prepare=scorer.prepare)]
        scores = np.concatenate(parts)
        labels = [sample.label for sample in found.samples]
        frame = row["networks"][kind]["frame"]
        assert frame["auc"] == pytest.approx(metrics.auc(labels, scores), abs=0.01)
        assert frame["accuracy"] == pytest.approx(metrics.accuracy(labels, scores), abs=0.05)
        assert row["networks"][kind]["video"]["count"] == 8
    families = document["datasets"]["FaceForensics++"]["families"]
    assert set(families) == {"FF-DF", "FF-F2F", "FF-FS", "FF-NT"}
    assert families["FF-DF"]["float"]["frame"]["count"] == 8


def test_csv_and_tables_agree_with_the_json(evaluated):
    document = json.loads(evaluated["json"])
    rows = list(csv.DictReader(io.StringIO(evaluated["csv"])))
    assert len(rows) == 4 * (1 + 1) + 4 * (1 + 4)
    for row in rows:
        found = document["datasets"][row["dataset"]]
        part = found["networks"] if row["family"] == "all" else found["families"][row["family"]]
        values = part[row["network"]][row["level"]]
        assert float(row["auc"]) == values["auc"]
        assert float(row["auc_low"]) == values["intervals"]["auc"][0]
    value = document["datasets"]["Celeb-DF-v2"]["networks"]["compressed"]["frame"]["auc"]
    assert f"{value:.3f}" in evaluated["stdout"]
    assert "ms a face" in evaluated["stdout"]


def test_html_stands_alone(evaluated):
    page = evaluated["html"]
    document = json.loads(evaluated["json"])
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("<svg") == 6
    assert page.count('class="curve compressed"') == page.count('class="curve float"') == 4
    assert page.count('class="bar real"') > 1
    for name, row in document["datasets"].items():
        assert f'<section id="{name}">' in page
        auc = row["networks"]["float"]["video"]["auc"]
        assert f"float, AUC {auc:.3f}" in page
        assert f"{row['difference']['changed']} of {row['evaluated']} decisions at 0.5" in page
    assert "times smaller" in page
    assert "By forgery family" in page
    misses = page.count('<figure class="miss">')
    assert misses >= 1
    # Each with the picture, both networks' maps and the float one's gradient.
    assert page.count("data:image/jpeg;base64,") == 4 * misses


def test_a_browser_shows_text_and_plots(evaluated, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    # The page reports on itself, as laid out: its text, and the sizes of plots and pictures.
    script = """<script>addEventListener("load", () => {
      const size = e => { const b = e.getBoundingClientRect(); return [b.width, b.height]; };
      const all = name => [...document.querySelectorAll(name)].map(size);
      const found = {plots: all("svg"), curves: all("polyline.curve"),
        pictures: [...document.images].map(i => i.naturalWidth),
        wide: document.documentElement.scrollWidth, text: document.body.innerText};
      document.body.textContent = "FOUND" + btoa(unescape(encodeURIComponent(
        JSON.stringify(found)))) + "END"; })</script>"""
    path = tmp_path / "page.html"
    path.write_text(evaluated["html"].replace("</body>", script + "</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    match = re.search("FOUND(.*)END", done.stdout)
    assert match, done.stderr
    found = json.loads(base64.b64decode(match.group(1)))
    assert len(found["plots"]) == 6
    assert all(width > 200 and height > 200 for width, height in found["plots"])
    assert all(width > 100 and height > 50 for width, height in found["curves"])
    assert found["pictures"]
    assert min(found["pictures"]) > 50
    assert found["wide"] <= 1200
    for text in ("Evaluation of embedded", "FaceForensics++", "By forgery family", "Worst misses"):
        assert text in found["text"]


SHARED = ("--dataset", "Celeb-DF-v2", "--repeats", "20", "--chunk", "5", "--quiet", "--batch", "4")


def environment():
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }


def test_processes_share_the_work_to_the_byte(data, tmp_path):
    arguments = ("-m", "defakeq", "evaluate", "--data", str(data), *SHARED, "--json")
    assert run(*arguments[2:], tmp_path / "alone.json").exit_code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    started = [
        subprocess.Popen(
            [*launcher, f"--nproc-per-node={count}", *arguments, str(tmp_path / f"{count}.json")],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for count in (1, 2, 3)
    ]
    for process in started:
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output
    files = [(tmp_path / f"{name}.json").read_bytes() for name in ("alone", 1, 2, 3)]
    assert files == files[:1] * 4
    assert json.loads(files[0])["datasets"]["Celeb-DF-v2"]["evaluated"] == 24


def test_a_killed_worker_loses_nothing(data, tmp_path):
    arguments = ["evaluate", "--data", data, *SHARED, "--resume", tmp_path / "chunks"]
    expected = tmp_path / "expected.json"
    assert run(*arguments[:-2], "--json", expected).exit_code == 0
    # The reader stops in the third chunk, so that the kill always comes midway.
    code = (
        "import sys, time\n"
        "from defakeq.evaluate import shards\n"
        "first = shards._score_chunk\n"
        "def slow(data, positions, *rest):\n"
        "    time.sleep(600 if positions[0] >= 10 else 0)\n"
        "    return first(data, positions, *rest)\n"
        "shards._score_chunk = slow\n"
        "from defakeq.cli import main\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment()
    )
    done = tmp_path / "chunks" / "Celeb-DF-v2.000001.json"
    deadline = time.monotonic() + 120
    while not done.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "chunks").iterdir()}
    assert sorted(before) == ["Celeb-DF-v2.000000.json", "Celeb-DF-v2.000001.json"]
    found = tmp_path / "found.json"
    assert run(*arguments, "--json", found).exit_code == 0
    assert found.read_bytes() == expected.read_bytes()
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "chunks").iterdir()}
    assert len(after) == 5
    assert {name: after[name] for name in before} == before


def test_results_of_something_else_are_not_taken(data, tmp_path):
    settings = Settings(data, ("Celeb-DF-v2",), float_model="none", chunk=24, repeats=1)
    evaluate(settings, tmp_path, quiet=True)
    (path,) = tmp_path.iterdir()
    good = json.loads(path.read_text())
    marks = {good["fingerprint"]}
    for change in ({"batch": 5}, {"chunk": 30}, {"frames": 2}, {"float_model": None}):
        evaluate(Settings(**{**vars(settings), **change}), tmp_path, quiet=True)
        marks.add(json.loads(path.read_text())["fingerprint"])
    assert len(marks) == 5
    for damaged in ("", "{", "[]", json.dumps(good | {"fingerprint": "x"})):
        path.write_text(damaged)
        evaluate(settings, tmp_path, quiet=True)
        assert json.loads(path.read_text()) == good


def test_the_world_is_torchrun_s(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert shards.World.from_environment() == shards.World(2, 3)


def test_any_module_of_a_user(data, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"module.gain": torch.tensor(2.0)}}, path)
    arguments = ("--data", data, "--dataset", "Celeb-DF-v2", "--repeats", 2, "--quiet")
    out = tmp_path / "e.json"
    other = ("--float-model", path, "--builder", "user_detectors:Mean")
    assert run("evaluate", "user_detectors:Mean", *arguments, *other, "--json", out).exit_code == 0
    document = json.loads(out.read_text())
    assert document["networks"]["evaluated"]["name"] == "user_detectors:Mean"
    row = document["datasets"]["Celeb-DF-v2"]["networks"]
    assert row["evaluated"]["frame"]["auc"] == row["float"]["frame"]["auc"]
    assert run("evaluate", "user_detectors:Own", *arguments, "--json", out).exit_code == 0
    assert set(json.loads(out.read_text())["networks"]) == {"evaluated"}


def test_occlusion_and_gradient_find_where_a_detector_looks():
    class Corner(torch.nn.Module):
        def forward(self, x):
            return 8 * (x[:, :, :40, :40] - x[:, :, 70:110, 70:110]).std((1, 2, 3))

    rng = np.random.default_rng(0)
    image = np.full((128, 128, 3), 128, np.uint8)
    image[:40, :40] = rng.integers(0, 255, (40, 40, 3))
    scorer = Scorer("corner", Corner(), 0, "")
    for found in (saliency.occlusion(scorer, image), saliency.gradient(scorer, image)):
        assert found.shape == (128, 128)
        assert found[5:35, 5:35].mean() > 3 * np.abs(found[:60, 70:]).mean()
    assert saliency.overlay(image, found).shape == image.shape
    assert saliency.gradient(open_model(), image) is None


def test_roc_keeps_only_corners():
    labels, scores = np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.7, 0.8, 0.9])
    svg = plots.roc(labels, {"compressed": scores}, "ROC")
    points = re.search(r'points="([^"]+)"', svg).group(1).split()
    assert len(points) == 3
    assert plots.roc(labels[:2], {"compressed": scores[:2]}, "ROC") == ""
    assert "AUC 1.000" in svg


def test_generate_and_check_from_the_command_line(tmp_path):
    options = ("--count", 1, "--frames", 1, "--size", 48, "--split", "test")
    result = run("data", "generate", "--out", tmp_path, "--dataset", "DFDC", *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "DFDC: pictures: DFDC_Real 1, DFDC_Fake 1\n"
    assert run("data", "check", "--data", tmp_path, "--dataset", "DFDC").exit_code == 0
    again = run("data", "generate", "--out", tmp_path, "--dataset", "DFDC", *options)
    assert again.exit_code == 2
    assert again.stderr.count("\n") == 1
