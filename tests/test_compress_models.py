"""Which models can be compressed, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compress_models import Residual, images
from compress_models import quickly as _run
from torch import nn

from defakeq.compress import pipeline
from defakeq_kernels import runtime


@pytest.fixture(scope="module")
def data():
    return images()


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        if x.mean() > 0:
            x = -x
        return self.head(x.mean((2, 3)))


class _Empty(nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3))


def test_models_that_cannot_be_compressed(data):
    with pytest.raises(ValueError, match=r"model: torch.export cannot capture it"):
        _run(_Branching(), data)
    with pytest.raises(ValueError, match="no Conv2d or Linear"):
        _run(_Empty(), data)


def test_activations_that_are_not_finite(data):
    model = Residual(16)
    model.a.weight.fill_(1e38)
    with pytest.raises(ValueError, match="layer 'b': found values that are not finite"):
        _run(model, data)


class _Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.up(self.stem(x)).mean((2, 3)))


def test_what_no_program_computes_is_refused_before_any_stage(data, monkeypatch):
    monkeypatch.setattr(pipeline, "collect", lambda *_: pytest.fail("a stage has begun"))
    with pytest.raises(ValueError, match=r"conv_transpose2d.*which no program node computes"):
        _run(_Transposed(), data)


class _Dictionary(Residual):
    """Results by name, as DeepfakeBench's detectors return them."""

    def forward(self, x):
        z = super().forward(x)
        return {"cls": z, "prob": torch.sigmoid(z)}


def test_results_in_a_dictionary(data, tmp_path):
    model = _Dictionary(48)
    found = _run(model, data)
    tuple_of = _run(Residual(48), data)
    path = tmp_path / "m.dfq"
    found.save(path)
    x = data[0][:2]
    results = runtime.load(path)(x.numpy())
    wanted = found.model(x)
    assert list(wanted) == ["cls", "prob"]
    for result, value in zip(results, wanted.values(), strict=True):
        assert np.array_equal(np.ravel(result), np.ravel(value.numpy()))
    assert torch.equal(wanted["cls"], tuple_of.model(x))  # the first is what counts


class _Nothing(Residual):
    def forward(self, x):
        super().forward(x)
        return {}


def test_a_model_without_results(data):
    with pytest.raises(ValueError, match=r"model: .*accepted is"):
        _run(_Nothing(48), data)
