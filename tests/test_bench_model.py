"""The benchmarks of whole networks run and report what they say. No time is asserted."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from bench_fields import MACHINE, MODEL_ROW
from program_builder import Builder
from typer.testing import CliRunner

from defakeq.bench.cli import app
from defakeq_kernels import dfq


def test_a_network_in_torch(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    target = tmp_path / "out" / "model.json"
    arguments = ["model", "mobilenetv3_large", "--engines", "torch", "--rounds", "1"]
    arguments += ["--cache", str(tmp_path / "cache"), "--json", str(target)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(target.read_text())
    for key, kind in MACHINE.items():
        assert isinstance(result["machine"][key], kind), key
    (row,) = result["rows"]
    assert {key: type(value) for key, value in row.items()} == MODEL_ROW
    assert (row["network"], row["plan"], row["engine"]) == ("mobilenetv3_large", "32", "torch")
    assert row["ms"] > 0
    assert row["size_mb"] > 16.8
    for wrong, field in (
        (["model", "nothing"], "network"),
        (["model", "resnet34", "--engines", "nothing"], "engines"),
        (["model", "resnet34", "--plan", "9"], "plan"),
        (["model", "resnet34", "--rounds", "0"], "rounds"),
    ):
        failed = CliRunner().invoke(app, wrong)
        assert failed.exit_code == 2
        assert f"{field}: found" in failed.output


def test_an_absent_engine_is_named(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from defakeq.bench import engines, models

    monkeypatch.setattr(engines.Torch, "modules", ("defakeq_absent",))
    result = models.measure("mobilenetv3_large", engines=["torch"], cache=tmp_path)
    assert result["rows"] == []
    (note,) = result["notes"]
    assert "defakeq_absent not installed" in note
    assert "pip install" in note


def test_a_file_with_its_nodes(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    b = Builder()
    act, mid = b.quant(), b.quant()
    x = b.input((8, 9, 3), act, "nchw")
    layer = b.layer("conv2d", (16, 3, 3, 3), act, mid, padding=1)
    y = b.node("conv2d", [x], (8, 9, 16), mid, layer=layer)
    b.output(b.node("mean_rows", [y], (16,)))
    dfq.write(tmp_path / "tiny.dfq", b.tensors, b.network)
    target, chart = tmp_path / "model.json", tmp_path / "model.png"
    engines = "defakeq,onnxruntime-export,openvino-export,torch"
    arguments = ["model", str(tmp_path / "tiny.dfq"), "--engines", engines, "--rounds", "1"]
    arguments += ["--cache", str(tmp_path / "cache"), "--json", str(target), "--profile"]
    if importlib.util.find_spec("matplotlib") is not None:
        arguments += ["--chart", str(chart)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(target.read_text())
    assert chart.exists() == ("--chart" in arguments)
    assert list(result["rows"][0]) == list(MODEL_ROW)
    assert (result["rows"][0]["network"], result["rows"][0]["plan"]) == ("tiny", "file")
    measured = [row["engine"] for row in result["rows"]]
    assert measured[0] == "defakeq"
    left_out = [note.partition(":")[0] for note in result["notes"]]
    assert sorted(measured + left_out) == sorted(engines.split(","))
    assert "torch" in left_out
    assert [(n["op"], n["shape"]) for n in result["profile"]] == [
        ("conv2d", [8, 9, 16]),
        ("mean_rows", [16]),
    ]
    assert "mean_rows" in done.output
    absent = CliRunner().invoke(app, ["model", str(tmp_path / "absent.dfq")])
    assert absent.exit_code == 2
    assert "network: found" in absent.output


def test_a_pruned_peer_keeps_the_channels_and_nothing_else_of_a_plan(tmp_path):
    from torch import nn

    from defakeq.bench.engines import OpenvinoPruned
    from defakeq.plan import LayerPlan, QuantPlan

    layer = LayerPlan(bits=4, keep_out=range(8), keep_in=range(4), half_out=[0, 1], half_in=[2])
    (tmp_path / "plan.json").write_text(QuantPlan({"conv": layer}).to_json())
    engine = OpenvinoPruned(str(tmp_path / "plan.json"))
    assert (engine.bits, engine.plan) == (8, "plan")
    made = engine._ours._quant_plan(nn.Sequential(), None)
    kept = LayerPlan(bits=8, keep_out=range(8), keep_in=range(4), symmetric=True)
    assert made.layers == {"conv": kept}


def test_an_artefact_is_made_anew_when_its_source_changes(tmp_path, monkeypatch):
    from defakeq.bench import engine as module
    from defakeq.bench.engines import Defakeq, Openvino

    network = module.Network("resnet34", tmp_path)
    before = Openvino().folder(network), Defakeq().folder(network)
    monkeypatch.setattr(module, "_version", lambda name: f"{name} 0")
    assert Openvino().folder(network) != before[0]
    monkeypatch.setattr(module, "_source", lambda name: b"another")
    assert Defakeq().folder(network) != before[1]
    assert Defakeq("4").folder(network) != Defakeq("8").folder(network)


def test_latency_of_layers_by_width(tmp_path, monkeypatch):
    import cv2
    import torch

    from defakeq.compress import latency

    monkeypatch.setattr(latency, "WIDTHS", (4, 8))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0)
    for i in range(2):
        picture = noise.integers(0, 256, (96, 96, 3), np.uint8)
        assert cv2.imwrite(str(pictures / f"{i}.png"), picture)
    table = tmp_path / "table.json"
    arguments = ["latency", "--detector", "embedded", "--data", str(pictures), "--repeat", "1"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(table)])
    assert result.exit_code == 0, result.output
    found = latency.LatencyTable.of(json.loads(table.read_text()), 1e9)
    from defakeq.embedded.network import load_float

    kinds = torch.nn.Conv2d, torch.nn.Linear
    names = {name for name, module in load_float().named_modules() if isinstance(module, kinds)}
    assert found.layers.keys() == names
    assert all(us > 0 for own in found.layers.values() for us in own.values())
    result = CliRunner().invoke(app, [*arguments[:3], "--data", "none", "--json", str(table)])
    assert result.exit_code == 2
    assert "data: found none" in result.output or "which is no folder" in result.output


def test_verification_of_a_program_passes_and_finds_a_wrong_node(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    path = Path(__file__).resolve().parent.parent / "bench/verify.py"
    spec = importlib.util.spec_from_file_location("verify", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    b = Builder(5)
    q = b.quant()
    x = b.input((6, 5, 8), q, "nchw")
    layer = b.layer("conv2d", (16, 8, 3, 3), q, q, "relu", padding=1, bits=4)
    y = b.node("conv2d", [x], (6, 5, 16), q, layer=layer)
    b.output(b.node("mean_rows", [y], (16,)))
    file = tmp_path / "net.dfq"
    dfq.write(file, b.tensors, b.network)
    source = tool.network_of(str(file), tmp_path / "cache")
    assert tool.verify(source, "8", [1, 2], tmp_path)
    expected = np.load(tmp_path / "net-file/expected.npy")
    assert expected.shape == (1, 16)
    right = tool.oracle
    monkeypatch.setattr(tool, "oracle", lambda *given: [y + 1 for y in right(*given)])
    assert not tool.verify(source, "8", [1], None)
    assert "oracle: 2 nodes differ: conv2d0, mean_rows1" in capsys.readouterr().out
