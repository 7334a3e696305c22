"""The reference detectors: their weights, their data, and what they reach on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from defakeq import metrics, reference  # noqa: E402
from defakeq.data.forgeries import FAMILIES  # noqa: E402
from defakeq.reference import data  # noqa: E402

TRAIN = Path(__file__).parent.parent / "bench" / "accuracy" / "train.py"
SETTINGS = ("--pairs", "6", "--faces", "2", "--shards", "1", "--batch", "2", "--scale", "0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DEFAKEQ_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def faces(cache):
    return reference.evaluation("test", 40, 1)


def auc(model, found):
    with torch.no_grad():
        batch = torch.stack([model.preprocess(image) for image in found.images])
        return metrics.auc(found.labels, model.score(batch).numpy())


@pytest.mark.parametrize("name", reference.NAMES)
def test_detectors_find_the_forgeries_that_they_know_and_others(name, faces):
    model = reference.build(name)
    assert model.input_size == (3, 64, 64)
    assert not model.training
    found = {family: auc(model, faces.family(family)) for family in FAMILIES}
    assert found["blend"] > 0.82, found
    assert sum(value > 0.6 for family, value in found.items() if family != "blend") >= 2, found
    # The report is that of these weights: 40 people differ by chance from its 200.
    stated = reference.report(name)["results"]["test"]
    assert {family: row["frame_auc"] for family, row in stated.items()} == pytest.approx(
        found, abs=0.12
    )


def test_weights_are_small_and_of_16_bits():
    files = [reference.WEIGHTS / f"{name}.safetensors" for name in reference.NAMES]
    assert sum(path.stat().st_size for path in files) < 25e6
    for path in files:
        types = {value.dtype for value in load_file(str(path)).values()}
        assert types <= {torch.float16, torch.int64}


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"name: found 'meso5' \(nearest: 'meso4'\)"):
        reference.build("meso5")


def test_evaluation_is_made_once_and_has_all_families(cache, faces):
    assert faces.images.shape == (240, 64, 64, 3)
    assert sorted(set(faces.families)) == sorted([*FAMILIES, "real"])
    assert faces.labels.sum() == 200
    (path,) = cache.glob("reference-test-40*")
    made = path.stat().st_mtime_ns
    again = reference.evaluation("test", 40, 1)
    assert path.stat().st_mtime_ns == made
    assert np.array_equal(again.images, faces.images)
    assert len(faces.family("warp").labels) == 80
    with pytest.raises(ValueError, match="family: found 'wrap'"):
        faces.family("wrap")
    with pytest.raises(ValueError, match="count: found 0"):
        reference.evaluation("test", 0)


def test_weak_forgeries_are_not_trained_on(cache):
    pairs = data.training_pairs(30, 2)
    change = np.abs(pairs[:, 0].astype(int) - pairs[:, 1]).mean((1, 2, 3))
    assert 5 < len(pairs) < 30
    assert change.min() >= data.LEAST_CHANGE


def test_training_writes_weights_and_a_report(cache, tmp_path):
    command = [sys.executable, str(TRAIN), *SETTINGS, "--people", "3", "--output", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", "meso4"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meso4.json", "meso4.safetensors"]
    report = json.loads((tmp_path / "meso4.json").read_text())
    assert set(report["results"]["test"]) == set(FAMILIES)
    stored = load_file(str(tmp_path / "meso4.safetensors"))
    assert set(stored) == set(reference.build("meso4").state_dict())
