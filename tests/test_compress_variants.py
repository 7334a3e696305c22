"""The ablations that `bench/accuracy/compare.py` measures: each makes a file within its budget."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from compress_models import QUICK, Residual, images, quickly

from defakeq.compress.budget import file_size
from defakeq.compress.sizes import checkpoint_bytes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench/accuracy"))

import compare
import paired

METHODS = [
    "default, greedy",
    "default, neither",
    "default, S_l and no pruning",
    "default, fixed channels",
    "paper, no HAQ",
]


@pytest.mark.parametrize("method", METHODS)
def test_variant_keeps_its_budget(method):
    preset, veft = compare.variants()[method]
    preset = dataclasses.replace(
        preset,
        reconstruction=dataclasses.replace(preset.reconstruction, steps=2),
        alignment=dataclasses.replace(preset.alignment, steps=2),
    )
    model = Residual(48)
    found = quickly(model, images(), size=0.2, preset=preset, veft=veft)
    assert found.report["size"] <= 0.2 * checkpoint_bytes(model)
    bits = {layer["bits"] for layer in found.report["layers"]}
    if preset.objective == "uniform":
        assert len(bits) == 1
    if not veft:
        assert "alignment" not in found.report["seconds"]


def test_rows_of_other_numbers_of_images_are_apart():
    row = {"method": "default", "size": 0.1, "detector": "meso4", "part": 0.1, "bytes": 1}
    rows = [
        {**row, "method": "float", "size": 1.0, "mean": 0.8, "images": 256, "seed": 0},
        {**row, "mean": 0.79, "images": 256, "seed": 0},
        {**row, "mean": 0.77, "images": 64, "seed": 0},
    ]
    lines = compare.table(rows).splitlines()
    assert [line.split("  ")[1] for line in lines[2:]] == ["default, 64 images", "default"]
    assert "77.00" in lines[2]
    assert "79.00" in lines[3]
    assert paired.label(rows[2]) == "default, 64 images"


def test_restored_channels_that_take_more_than_expected_stay_out(monkeypatch):
    monkeypatch.setattr("defakeq.compress.veft.SEGMENT_JSON", -400)
    model = Residual(48)
    preset = dataclasses.replace(QUICK, restored=0.3)
    found = quickly(model, images(), size=0.15, preset=preset)
    assert found.report["size"] <= 0.15 * checkpoint_bytes(model)


def test_summary_gives_way_to_the_budget(monkeypatch):
    monkeypatch.setattr("defakeq.compress.pipeline.file_size", _larger_with_summary)
    model = Residual(48)
    found = quickly(model, images(), size=0.15)
    assert found.report["size"] <= 0.15 * checkpoint_bytes(model)
    _, network = found.model.file()
    assert "compression" not in network


def _larger_with_summary(program):
    _, network = program.file()
    return file_size(program) + (1 << 20 if "compression" in network else 0)
