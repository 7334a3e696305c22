"""Evaluations: numbers, reports, sharing, resuming, and fifty kinds of bad input."""

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
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from defakeq import metrics  # noqa: E402
from defakeq.data import open_dataset  # noqa: E402
from defakeq.data.generate import Options, generate  # noqa: E402
from defakeq.evaluate import plots, saliency, shards  # noqa: E402
from defakeq.evaluate.run import Settings, evaluate  # noqa: E402
from defakeq.evaluate.scorer import Scorer, open_float, open_model  # noqa: E402

MODULES = '''
import torch
from torch import nn

class Mean(nn.Module):
    """The score is the picture's mean; it has a weight so that a checkpoint can miss it."""
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
    def forward(self, x):
        return self.gain * 4 * x.mean((1, 2, 3))

class Own(Mean):
    def preprocess(self, image):
        return torch.from_numpy(image[::8, ::8].copy()).permute(2, 0, 1).float() / 255
    def score(self, batch):
        return batch.mean((1, 2, 3))

class Wide(nn.Module):
    def forward(self, x):
        return x

class Broken(nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3)) * float("nan")

class TooMuch(Own):
    def score(self, batch):
        return batch.mean((1, 2, 3)) + 2

def number():
    return 3
'''


def run(*arguments):
    from defakeq.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generate(root, Options("Celeb-DF-v2", count=4, frames=3, size=64, splits=("test",)))
    generate(root, Options("FaceForensics++", count=2, frames=2, size=64, splits=("test",)))
    return root


@pytest.fixture
def modules(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "detectors_of_a_user.py").write_text(MODULES)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield "detectors_of_a_user"
    sys.modules.pop("detectors_of_a_user", None)


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
    assert run(*arguments[2:], tmp_path / "1.json").exit_code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    started = [
        subprocess.Popen(
            [*launcher, f"--nproc-per-node={count}", *arguments, str(tmp_path / f"{count}.json")],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for count in (2, 3)
    ]
    for process in started:
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output
    files = [(tmp_path / f"{count}.json").read_bytes() for count in (1, 2, 3)]
    assert files[0] == files[1] == files[2]
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


def test_any_module_of_a_user(data, tmp_path, modules):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"module.gain": torch.tensor(2.0)}}, path)
    arguments = ("--data", data, "--dataset", "Celeb-DF-v2", "--repeats", 2, "--quiet")
    out = tmp_path / "e.json"
    other = ("--float-model", path, "--builder", f"{modules}:Mean")
    assert run("evaluate", f"{modules}:Mean", *arguments, *other, "--json", out).exit_code == 0
    document = json.loads(out.read_text())
    assert document["networks"]["compressed"]["name"] == f"{modules}:Mean"
    row = document["datasets"]["Celeb-DF-v2"]["networks"]
    assert row["compressed"]["frame"]["auc"] == row["float"]["frame"]["auc"]
    assert run("evaluate", f"{modules}:Own", *arguments, "--json", out).exit_code == 0
    assert set(json.loads(out.read_text())["networks"]) == {"compressed"}


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


# Bad input. Each changes a small good data set, the arguments or the environment, and gives one
# clear line and exit code 2, or is counted: (name, change, what stderr or the report has).


class Case:
    """A small FF-DF data set: two real and two forged videos of two frames."""

    def __init__(self, root: Path, modules: str) -> None:
        self.root, self.modules = root, modules
        self.arguments: list = []
        self.data = root / "data"
        self.document: dict = {"FF-DF": {}}
        for label, folder, names in (
            ("FF-real", "original_sequences/youtube", ("000", "001")),
            ("FF-DF", "manipulated_sequences/Deepfakes", ("000_001", "001_000")),
        ):
            for name in names:
                where = f"FaceForensics++/{folder}/c23/frames/{name}"
                self.picture(f"{where}/0.png", 40)
                self.picture(f"{where}/1.png", 200)
                videos = self.document["FF-DF"].setdefault(label, {"test": {"c23": {}}})
                frames = [f"{where}/{index}.png" for index in range(2)]
                videos["test"]["c23"][name] = {"label": label, "frames": frames}

    def picture(self, name: str, value: int) -> Path:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((32, 32, 3), value, np.uint8)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        return path

    @property
    def real(self) -> dict:
        return self.document["FF-DF"]["FF-real"]["test"]["c23"]

    @property
    def frame(self) -> Path:
        return self.data / self.real["000"]["frames"][0]

    def text(self, text: str | bytes) -> None:
        self.document = None  # type: ignore[assignment]
        data = text if isinstance(text, bytes) else text.encode()
        (self.data / "FF-DF.json").write_bytes(data)

    def plain(self) -> None:
        self.picture("real/r.png", 10)
        self.picture("fake/f.png", 250)
        self.arguments += ["--dataset", "folder"]

    def file(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def run(self, model: str | None = None):
        if self.document is not None:
            (self.data / "FF-DF.json").write_text(json.dumps(self.document))
        arguments = list(self.arguments)
        if "--dataset" not in arguments:
            arguments += ["--dataset", "FF-DF"]
        if "--data" not in arguments:
            arguments += ["--data", self.data]
        if "MODEL" in arguments:
            at = arguments.index("MODEL")
            model = arguments[at + 1]
            del arguments[at : at + 2]
        first = [model] if model else [f"{self.modules}:Mean"]
        out = ["--json", self.root / "out.json"] if "--json" not in arguments else []
        return run("evaluate", *first, *arguments, "--repeats=2", "--quiet", *out)


def no_data(c):
    shutil.rmtree(c.data)
    c.document = None


def data_is_file(c):
    no_data(c)
    c.data.write_bytes(b"x")


def empty_folder(c):
    no_data(c)
    c.data.mkdir()


def empty_plain(c):
    empty_folder(c)
    c.arguments += ["--dataset", "folder"]


def option(*values):
    return lambda c: c.arguments.extend(
        value.format(modules=c.modules) if isinstance(value, str) else value for value in values
    )


def json_text(text):
    return lambda c: c.text(text)


def entry(key, value):
    def change(c):
        c.real["000"][key] = value

    return change


def content(data):
    return lambda c: c.frame.write_bytes(data if data is not None else c.frame.read_bytes()[:50])


def picture_is_folder(c):
    c.frame.unlink()
    c.frame.mkdir()


def all_pictures(data):
    def change(c):
        for path in c.data.rglob("*.png"):
            path.write_bytes(data) if data else path.unlink()

    return change


def unreadable_chunk_folder(c):
    c.arguments += ["--resume", c.file("taken", b"x")]


def film_case(name, data, label="fake"):
    def change(c):
        c.plain()
        c.file(f"data/{label}/{name}", data)

    return change


def blank_film(c):
    c.plain()
    path = c.data / "fake" / "blank.avi"
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, fourcc, 25, (64, 64))
    for _ in range(2):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()


def cut_film(c):
    blank_film(c)
    path = c.data / "fake" / "blank.avi"
    path.write_bytes(path.read_bytes()[:200])


def empty_video_folder(c):
    c.plain()
    (c.data / "fake" / "video").mkdir()


def no_fake(c):
    c.plain()
    shutil.rmtree(c.data / "fake")


def same_plain_video(c):
    c.arguments += ["--dataset", "folder"]
    for split in ("train", "test"):
        for label in ("real", "fake"):
            c.picture(f"{split}/{label}/a.png", 9)


def tree(dataset, files):
    def change(c):
        empty_folder(c)
        c.arguments += ["--dataset", dataset]
        for name, text in files.items():
            c.file(f"data/{name}", text.encode())

    return change


def twice(c):
    c.real["001"]["frames"] = c.real["000"]["frames"]


def train_too(c):
    video = c.real["000"]
    c.document["FF-DF"]["FF-real"]["train"] = {"c23": {"000": video}}


def checkpoint(value):
    def change(c):
        path = c.root / "weights.pth"
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            torch.save(value, path)
        c.arguments += ["--float-model", path, "--builder", f"{c.modules}:Mean"]

    return change


def put(where, value):
    def change(c):
        place = c.document["FF-DF"]
        for key in where[:-1]:
            place = place[key]
        place[where[-1]] = value

    return change


def directory_out(c):
    (c.root / "out").mkdir()
    c.arguments += ["--json", c.root / "out"]


def file_for_folder(c):
    c.arguments += ["--csv", c.file("plain", b"x") / "e.csv"]


def rank(number, size):
    def change(c):
        os.environ.update(RANK=number, WORLD_SIZE=size)

    return change


CELEB = "Celeb-DF-v2"
BAD = [
    # the folder and the arguments
    ("no folder", no_data, "error", "data: found .*, which is no folder"),
    ("data is a file", data_is_file, "error", "data: found .*, which is no folder"),
    ("no --data", lambda c: c.arguments.extend(["--data", ""]), "error", "found no FF-DF|neither"),
    ("empty folder", empty_folder, "error", "found neither FF-DF.json nor a folder"),
    ("empty plain folder", empty_plain, "error", "found no folders 'real' and 'fake'"),
    ("unknown data set", option("--dataset", "FFpp"), "error", "dataset: found 'FFpp'"),
    ("data set twice", option("--dataset", "DFDC", "--dataset", "DFDC"), "error", "one twice"),
    ("unknown split", option("--split", "dev"), "error", "split: found 'dev'"),
    ("absent split", option("--split", "val"), "error", "found no sample of FF-DF, split val"),
    ("unknown compression", option("--compression", "c1"), "error", "compression: found 'c1'"),
    ("absent compression", option("--compression", "c40"), "error", "compression: found 'c40'"),
    ("no frames", option("--frames", "0"), "error", "frames: found 0"),
    ("no batch", option("--batch", "0"), "error", "batch: found 0"),
    ("negative workers", option("--workers", "-1"), "error", "workers: found -1"),
    ("no chunk", option("--chunk", "0"), "error", "chunk: found 0"),
    ("output is a folder", directory_out, "error", "out: cannot be written"),
    ("folder of the output is a file", file_for_folder, "error", "e.csv: cannot be written"),
    ("chunks' folder is a file", unreadable_chunk_folder, "error", "taken"),
    ("rank is no number", rank("one", "2"), "error", "RANK: found 'one'"),
    ("rank beyond the world", rank("2", "2"), "error", "RANK: found 2"),
    # the lists
    ("empty JSON", json_text(""), "error", "FF-DF.json: found no JSON"),
    ("cut JSON", json_text('{"FF-DF": {'), "error", r"FF-DF.json: found no JSON .*line 1"),
    ("no UTF-8", json_text(b'{"\xff\xfe": 1}'), "error", "FF-DF.json: found no UTF-8"),
    ("JSON too deep", json_text("[" * 200_000), "error", "FF-DF.json: found JSON nested"),
    ("JSON is a list", json_text("[]"), "error", "FF-DF.json: found list"),
    ("JSON of another", json_text('{"DFDC": {}}'), "error", "found 'DFDC', accepted: 'FF-DF'"),
    ("data set is a list", json_text('{"FF-DF": []}'), "error", "FF-DF: found list"),
    ("label is a list", put(["FF-DF"], []), "error", "FF-DF/FF-DF: found list"),
    ("unknown label", put(["FF-XX"], {}), "unknown label", "FF-DF/FF-XX"),
    ("unknown label of a video", entry("label", "XX"), "unknown label", "c23/000"),
    ("label is no text", entry("label", ["FF-real"]), "unknown label", "c23/000"),
    ("unknown split of a label", put(["FF-DF", "dev"], {}), "unknown split", "FF-DF/dev"),
    ("split is a list", put(["FF-DF", "val"], []), "malformed entry", "FF-DF/val"),
    ("unknown level", put(["FF-DF", "test", "c9"], {}), "malformed entry", "test/c9"),
    ("video is text", put(["FF-DF", "test", "c23", "x"], "x"), "malformed entry", "c23/x"),
    ("frames is text", entry("frames", "a.png"), "malformed entry", "c23/000"),
    ("frame is a number", entry("frames", [3]), "malformed entry", "c23/000"),
    ("no frames in a video", entry("frames", []), "empty video", "c23/000"),
    ("missing frame", lambda c: c.frame.unlink(), "missing file", "000/0.png"),
    ("missing folder", lambda c: shutil.rmtree(c.frame.parent), "missing file", "000/1.png"),
    ("path leads nowhere", entry("frames", ["/none/a.png"]), "missing file", "/none/a.png"),
    ("null in a path", entry("frames", ["a\0.png"]), "missing file", "a"),
    ("same frames twice", twice, "duplicate frame", "000/0.png"),
    ("video in two splits", train_too, "video in two splits", "FF-real/000"),
    ("person in two splits", train_too, "identity in two splits", "000"),
    ("all frames missing", all_pictures(b""), "error", "found no sample .*missing file"),
    # the pictures
    ("empty picture", content(b""), "broken image", "000/0.png"),
    ("cut picture", content(None), "broken image", "000/0.png"),
    ("text as a picture", content(b"no picture"), "broken image", "000/0.png"),
    ("folder as a picture", picture_is_folder, "broken image", "000/0.png"),
    ("all pictures broken", all_pictures(b"x"), "error", "found no picture that can be read"),
    # plain folders and films
    ("no folder of forgeries", no_fake, "error", "found no folder 'fake'"),
    ("empty folder of a video", empty_video_folder, "empty video", "fake/video"),
    ("plain video in two splits", same_plain_video, "video in two splits", "real/a.png"),
    ("empty film", film_case("a.mp4", b""), "broken video", "fake/a.mp4"),
    ("text as a film", film_case("a.avi", b"no film" * 99), "broken video", "fake/a.avi"),
    ("cut film", cut_film, "broken video", "fake/blank.avi"),
    ("film without a face", blank_film, "no face", "fake/blank.avi#0"),
    # the data sets' own lists
    ("no pairs", tree("FF-DF", {"original_sequences/x": ""}), "error", "train.json: no such file"),
    (
        "pairs are text",
        tree("FF-DF", {"original_sequences/x": "", "train.json": '["a"]'}),
        "error",
        "train.json: found another structure",
    ),
    ("no list of tests", tree(CELEB, {"Celeb-real/x": ""}), "error", "List_of_testing_videos.txt"),
    ("odd list of videos", tree("DFDCP", {"dataset.json": "[]"}), "error", "found no list"),
    ("empty labels", tree("DFDC", {"test/labels.csv": ""}), "error", "found no sample of DFDC"),
    (
        "labels of nothing",
        tree("DFDC", {"test/labels.csv": "filename,label\na.mp4,7\n"}),
        "error",
        "1 x unknown label",
    ),
    # the models
    ("no model file", option("MODEL", "none.dfq"), "error", "model: found none.dfq"),
    (
        "text as a model",
        lambda c: c.arguments.extend(["MODEL", str(c.file("a.dfq", b"x" * 99))]),
        "error",
        r"model: found .*a\.dfq",
    ),
    ("no such module", option("MODEL", "no_such_module:build"), "error", "cannot be imported"),
    ("no such function", option("MODEL", "{modules}:none"), "error", "cannot be imported"),
    ("function of a number", option("MODEL", "{modules}:number"), "error", "returned int"),
    ("output of another shape", option("MODEL", "{modules}:Wide"), "error", "an output of"),
    ("scores are no numbers", option("MODEL", "{modules}:Broken"), "error", "found scores .* nan"),
    ("scores above one", option("MODEL", "{modules}:TooMuch"), "error", "found scores"),
    ("no float file", option("--float-model", "none.pth"), "error", "float-model: found none.pth"),
    ("text as a checkpoint", checkpoint(b"x" * 99), "error", "weights.pth: no checkpoint"),
    ("numbers as a checkpoint", checkpoint([1, 2]), "error", "weights.pth: found no state dict"),
    ("checkpoint of another", checkpoint({"w": torch.ones(1)}), "error", "weights.pth: .*gain"),
    ("other preprocessing", option("--float-model", "{modules}:Own"), "error", "preprocessing"),
]


@pytest.mark.parametrize(("change", "kind", "text"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_input_is_named(tmp_path, modules, monkeypatch, change, kind, text):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.chdir(tmp_path)
    case = Case(tmp_path, modules)
    change(case)
    result = case.run()
    if kind == "error":
        lines = result.stderr.strip().splitlines()
        assert result.exit_code == 2, result.output
        assert len(lines) == 1, lines
        assert re.search(text, lines[0]), lines[0]
        assert lines[0].startswith("defakeq: ")
        return
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "out.json").read_text())["datasets"].values()
    found = [p for p in row["report"]["problems"] if p["kind"] == kind and text in p["name"]]
    assert found, row["report"]
    assert row["report"]["counts"][kind] >= len(found)
    assert row["evaluated"] >= 2


def test_there_are_fifty_kinds_of_bad_input():
    assert len({name for name, *_ in BAD}) == len(BAD) >= 50


def test_check_names_problems_and_fails(tmp_path, modules):
    case = Case(tmp_path, modules)
    assert (case.data / "FF-DF.json").write_text(json.dumps(case.document))
    assert run("data", "check", "--data", case.data, "--dataset", "FF-DF").exit_code == 0
    case.frame.write_bytes(b"x")
    result = run("data", "check", "--data", case.data, "--dataset", "FF-DF", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["counts"] == {"broken image": 1}
    assert run("data", "check", "--data", case.data, "--dataset", "DFDC").exit_code == 2


def test_generate_and_check_from_the_command_line(tmp_path):
    options = ("--count", 1, "--frames", 1, "--size", 48, "--split", "test")
    result = run("data", "generate", "--out", tmp_path, "--dataset", "DFDC", *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "DFDC: pictures: DFDC_Real 1, DFDC_Fake 1\n"
    assert run("data", "check", "--data", tmp_path, "--dataset", "DFDC").exit_code == 0
    again = run("data", "generate", "--out", tmp_path, "--dataset", "DFDC", *options)
    assert again.exit_code == 2
    assert again.stderr.count("\n") == 1
