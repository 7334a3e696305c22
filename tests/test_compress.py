"""Compression as a whole: budgets, determinism, errors, the file and its twin."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from compress_models import QUICK, Attention, Residual, images
from compress_models import contents as _bytes
from compress_models import quickly as _run
from torch import nn
from typer.testing import CliRunner

import defakeq
from defakeq import detectors
from defakeq.compress import presets
from defakeq.compress.inspection import inspected
from defakeq.compress.report import to_html
from defakeq.compress.sizes import checkpoint_bytes
from defakeq.compress.summary import carry
from defakeq.compress.veft import Alignment
from defakeq_kernels import dfq, runtime
from defakeq_kernels.packed import PackedWeight

PAPER = dataclasses.replace(
    presets.preset("paper"),
    reconstruction=dataclasses.replace(presets.preset("paper").reconstruction, steps=3),
    alignment=Alignment(steps=2, codes=0.0),
)


@pytest.fixture(scope="module")
def data():
    return images()


@pytest.fixture(scope="module")
def made(data):
    return _run(Residual(48), data)


def test_file_is_never_larger_than_asked(data, tmp_path):
    size = 0.12
    model = Residual(48)
    found = _run(model, data, size=size)
    path = tmp_path / "m.dfq"
    assert found.save(path) == path.stat().st_size == found.report["size"]
    assert path.stat().st_size <= size * checkpoint_bytes(model)
    integer = tmp_path / "i.dfq"
    found.save(integer, integer_only=True)
    assert integer.stat().st_size <= size * checkpoint_bytes(model)
    assert all(layer["restored"] == 0 for layer in inspected(integer)["layers"])


def test_paper_preset_keeps_its_widths_and_budget(data):
    model = Attention(48)
    found = _run(model, data, preset=PAPER, size=0.4)
    assert {layer["bits"] for layer in found.report["layers"]} <= {3, 4, 8}
    assert found.report["pruning"] == "none: not asked for"
    assert found.report["size"] <= 0.4 * checkpoint_bytes(model)
    assert sum(layer["restored"] for layer in found.report["layers"]) > 0


def test_same_seed_gives_same_bytes(made, data):
    again = _run(Residual(48), data)
    assert _bytes(again.model) == _bytes(made.model)
    assert _bytes(again.integer) == _bytes(made.integer)


def test_convert_of_the_result_gives_the_same_file_and_twin(made, data, tmp_path):
    from defakeq.lower.twin import Twin

    calibration = data[0]
    plan = defakeq.QuantPlan.from_json(made.plan.to_json())
    program = defakeq.convert(
        made.float_model, calibration[:1], plan, [calibration], backend="program"
    )
    tensors, network = program.file()
    own_tensors, own_network = made.model.file()
    assert network["program"] == own_network["program"]
    for name, array in tensors.items():
        assert np.array_equal(array, own_tensors[name]), name
    # the twin holds the same weights, and the program gives its scores
    for name, layer in network["layers"].items():
        packed = PackedWeight.from_tensors(name, tensors, layer)
        module = made.float_model.get_submodule(name)
        kept = packed.dequantize()
        if packed.shape == tuple(module.weight.shape):
            stored = np.zeros(packed.shape[0], bool)
            stored[packed.out_index] = True
            inputs = np.arange(packed.shape[1]) if packed.in_index is None else packed.in_index
            wanted = module.weight.numpy()[stored][:, inputs]
            assert np.array_equal(kept[stored][:, inputs], wanted), name
    path = tmp_path / "m.dfq"
    made.save(path)
    scores = runtime.load(path)(calibration[:4].numpy())
    twin = Twin.read(path)(calibration[:4])[0]
    assert np.allclose(np.ravel(scores), twin.numpy().ravel(), atol=2e-3)


def test_report_says_what_was_done(made):
    report = made.report
    json.dumps(report)
    names = [layer["name"] for layer in report["layers"]]
    assert names == ["stem", "a", "b", "dw", "pw", "head"]
    assert report["part"] == report["size"] / report["checkpoint"] <= 0.15
    assert set(report["hurt_most"]) <= set(names)
    assert sum(layer["hurt"] for layer in report["layers"]) == pytest.approx(1.0)
    assert all(layer["fisher"] > 0 for layer in report["layers"])
    assert set(report["processor_seconds"]) == set(report["seconds"])
    calibration = report["calibration"]
    assert 0 <= calibration["auc_float"] <= 1
    assert 0 <= calibration["auc_model"] <= 1
    assert {"statistics", "allocation", "reconstruction", "alignment"} <= set(report["seconds"])
    page = to_html(report)
    assert all(f"<td>{name}</td>" in page for name in names)
    assert "src=" not in page
    assert "href=" not in page


# wrong arguments


@pytest.mark.parametrize("size", [0, -0.1, 1.5, float("nan"), "0.1", True])
def test_wrong_sizes(data, size):
    with pytest.raises(ValueError, match="size: found"):
        _run(Residual(8), data, size=size)


def test_budget_that_cannot_be_kept_names_the_least(data):
    model = Residual(48)
    with pytest.raises(ValueError, match="accepted is at least 0") as caught:
        _run(model, data, size=0.02)
    least = float(str(caught.value).split("at least ")[1].split(" ")[0])
    assert _run(model, data, size=least * 1.05).report["size"] <= least * 1.05 * checkpoint_bytes(
        model
    )


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "calibration: found NoneType"),
        (5, "calibration: found int"),
        ([], "found no batch"),
        ([torch.zeros(4, 3, 16, 16), torch.zeros(4, 3, 8, 8)], "images of one size"),
        (torch.zeros(3, 16, 16), "which the model does not take"),
        (torch.zeros(4, 1, 16, 16), "which the model does not take"),
        (torch.zeros(1, 3, 16, 16), "at least two images"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.uint8), "float32 images"),
        (torch.full((4, 3, 16, 16), torch.nan), "not finite in 4 images"),
        ((torch.rand(4, 3, 16, 16), torch.ones(4).long()), r"found labels \[1\]"),
        ((torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])), r"found labels \[0, 1, 2\]"),
        ((torch.rand(4, 3, 16, 16), torch.tensor([0, 1])), "one label an image"),
    ],
)
def test_wrong_calibration(calibration, message):
    with pytest.raises(ValueError, match=message):
        _run(Residual(8), calibration)


def test_other_wrong_arguments(data):
    with pytest.raises(ValueError, match="preset: found 'fast'"):
        _run(Residual(8), data, preset="fast")
    with pytest.raises(ValueError, match="preset: found None"):
        _run(Residual(8), data, preset=None)
    for seed in (1.5, -1, "1", None, True, 1 << 70):
        with pytest.raises(ValueError, match="seed: found"):
            _run(Residual(8), data, seed=seed)
    for device in ("somewhere", "cuda:99"):
        with pytest.raises(ValueError, match=f"device: found '{device}'"):
            _run(Residual(8), data, device=device)
    with pytest.raises(ValueError, match="limit without a table"):
        _run(Residual(8), data, latency=100.0)
    with pytest.raises(ValueError, match="latency_table: found no table"):
        _run(Residual(8), data, latency=100.0, latency_table={})
    with pytest.raises(ValueError, match="model: found function"):
        _run(lambda x: x, data)


def test_latency_budget_narrows_layers(data, monkeypatch):
    from defakeq.compress import latency

    model = Residual(48)
    monkeypatch.setattr(latency, "WIDTHS", (4,))
    table = latency.measure(model, data[0][:2], repeat=2)
    assert set(table["layers"]) == {"stem", "a", "b", "dw", "pw", "head"}
    assert all(us > 0 for own in table["layers"].values() for us in own.values())
    flat = {name: {str(b): 10.0 * b for b in range(2, 9)} for name in table["layers"]}
    table = {"version": 1, "layers": flat, "other": 5.0}
    found = _run(
        model, data, size=0.6, latency=5.0 + 240.0, latency_table=table, prune=False, veft=False
    )
    bits = sum(10 * layer["bits"] for layer in found.report["layers"])
    assert bits <= 240
    assert found.report["latency"]["predicted"] == 5.0 + bits
    assert found.report["latency"]["measured"] > 0
    with pytest.raises(ValueError, match="more than 5"):
        _run(model, data, latency=5.0, latency_table=table)


def test_narrower_inputs_when_asked(data):
    preset = dataclasses.replace(QUICK, act_average=5.5)
    found = _run(Residual(48), data, preset=preset)
    bits = [layer["act_bits"] for layer in found.report["layers"]]
    assert min(bits) >= 4
    assert min(bits) < 8


# the command line


def make_detector() -> nn.Module:
    """What --model calls."""

    class Detector(Residual):
        def preprocess(self, image):
            small = cv2.resize(image, (16, 16))
            return torch.from_numpy(small).permute(2, 0, 1).float() / 127.5 - 1

        def score(self, x):
            return torch.sigmoid(self(x))

    return Detector(48)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("real", "fake"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(8):
            picture = rng.integers(0, 255, (20, 20, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "data" / kind / f"{i}.png"), picture)
    return tmp_path / "data"


def _invoke(*arguments):
    from defakeq.cli import app

    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_command_line(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "preset", lambda name: QUICK)
    monkeypatch.setattr("defakeq.compress.checks.preset", lambda name: QUICK)
    out, page, document = tmp_path / "m.dfq", tmp_path / "r.html", tmp_path / "r.json"
    unfinished = tmp_path / ".m.dfq.7.abcd.part"  # of a run that was killed while it wrote
    unfinished.touch()
    result = _invoke(
        "compress", "--model", f"{__name__}:make_detector", "--data", pictures, "--out", out,
        "--size", "0.2", "--report", page, "--json", document,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(document.read_text())
    assert report["size"] == out.stat().st_size
    assert not unfinished.exists()
    assert "auc_model" in report["calibration"]
    assert "<h2>Layers</h2>" in page.read_text()
    assert not (tmp_path / "m.dfq.work").exists()
    shown = _invoke("inspect", out)
    assert shown.exit_code == 0, shown.output
    assert f"{out.stat().st_size} bytes" in shown.output.replace("\n", " ")
    found = json.loads(_invoke("inspect", out, "--json").stdout)
    assert (
        found["bytes"] == found["layer_bytes"] + found["other_tensor_bytes"] + found["header_bytes"]
    )
    assert [layer["name"] for layer in found["layers"]] == [e["name"] for e in report["layers"]]
    assert found["compression"]["asked"] == 0.2


def test_a_detectors_file_carries_the_summary():
    detector = detectors.build("meso4").eval()
    images = torch.rand(1, *detector.input_size)
    plan = defakeq.QuantPlan.uniform(detector, 8, act_bits=8)
    found = defakeq.convert(detector, images, plan, images, backend="program")
    document = {"asked": 0.2, "checkpoint": 1, "seed": 0, "layers": [], "hurt_most": []}
    carry(found, {**document, "calibration": {}})
    network = found.file()[1]
    assert network["interface"]
    assert network["compression"]["asked"] == 0.2


def test_full_disk_at_the_end_keeps_the_stages(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("defakeq.compress.checks.preset", lambda name: QUICK)
    out = tmp_path / "m.dfq"
    words = ("compress", "--model", f"{__name__}:make_detector", "--data", pictures, "--out", out)
    words = (*words, "--size", "0.2", "--quiet")

    def write(path, tensors, network):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(dfq, "write", write)
        failed = _invoke(*words)
    assert failed.exit_code != 0
    assert "No space left" in failed.output + str(failed.exception)
    assert not out.exists()
    stages = sorted(path.name for path in (tmp_path / "m.dfq.work").glob("*.stage"))
    assert stages[0] == "alignment.stage"

    def save(value, file):
        raise AssertionError("a stage was made twice")

    monkeypatch.setattr(torch, "save", save)
    done = _invoke(*words)
    assert done.exit_code == 0, done.output
    assert out.stat().st_size > 0
    assert not (tmp_path / "m.dfq.work").exists()


def test_command_line_errors(pictures, tmp_path):
    out = tmp_path / "m.dfq"
    for arguments, message in (
        (("--data", pictures, "--out", out), "detector, model: found neither"),
        (("--data", tmp_path / "no", "--out", out, "--detector", "embedded"), "which is no folder"),
        (
            ("--data", pictures, "--out", tmp_path / "no" / "m.dfq", "--detector", "embedded"),
            "whose folder does not exist",
        ),
    ):
        result = _invoke("compress", *arguments)
        assert result.exit_code == 2
        assert message in result.output.replace("\n", " ")
    assert not out.exists()
    (tmp_path / "no.dfq").write_bytes(b"no")
    assert _invoke("inspect", tmp_path / "no.dfq").exit_code == 2


_RANKS = """
import dataclasses, hashlib, sys
import torch
torch.set_num_threads(1)
from compress_models import Residual, images
import defakeq
from defakeq.compress import presets
from defakeq.compress.distributed import group
from defakeq.compress.learning import Settings
from defakeq.compress.veft import Alignment
from defakeq_kernels import dfq

preset = dataclasses.replace(
    presets.preset("default"),
    reconstruction=Settings(steps=2), alignment=Alignment(steps=2), prune=False,
)
with group() as ranks:
    found = defakeq.compress(
        Residual(32), images(), size=0.3, preset=preset, progress=False, work=sys.argv[1]
    )
    data = dfq.dumps(*found.model.file())
    line = f"{ranks.rank} {hashlib.sha256(data).hexdigest()} {found.report['size']}\\n"
    with open(sys.argv[2] + str(ranks.rank), "w") as file:
        file.write(line)
"""


def test_processes_share_the_work(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    paths = [str(Path(__file__).parent), *sys.path]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    done = subprocess.run(
        [*command, script, tmp_path / "work", tmp_path / "rank"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((tmp_path / f"rank{i}").read_text().split() for i in (0, 1))
    assert first[1:] == second[1:]
    assert (tmp_path / "work" / "alignment.stage").exists()
