"""The baselines that compression is compared with."""

from __future__ import annotations

import pytest
from compress_models import Attention, Residual, images

from defakeq.compress import baselines
from defakeq.compress.inspection import inspected
from defakeq.compress.sizes import checkpoint_bytes
from defakeq_kernels import dfq


@pytest.mark.parametrize("name", ["adaround", "brecq", "magnitude"])
def test_baselines_keep_the_budget(name, tmp_path):
    model, size = Residual(48), 0.25
    found = baselines.baseline(name, model, images(16), size, steps=3)
    assert found.size <= size * checkpoint_bytes(model)
    path = tmp_path / "m.dfq"
    dfq.write(path, *found.model.file())
    layers = inspected(path)["layers"]
    widths = [int(bits) for layer in layers for bits in layer["outputs"]]
    if name == "magnitude":
        assert set(widths) == {8}
        kept = {layer["name"]: layer["kept_outputs"] for layer in layers}
        assert kept["a"] < model.a.weight.shape[0]
    elif name == "brecq":
        assert (widths[0], widths[-1]) == (8, 8)
        assert len(set(widths[1:-1])) == 1
    else:
        assert len(set(widths)) == 1
    assert found.bits == pytest.approx(sum(widths) / len(widths), abs=3)


@pytest.mark.parametrize("name", ["adalog", "fima-q"])
def test_transformer_baselines_run(name):
    model = Attention(48)
    found = baselines.baseline(name, model, images(16), 0.5, steps=3)
    assert found.size <= 0.5 * checkpoint_bytes(model)


def test_wrong_baselines():
    with pytest.raises(ValueError, match="baseline: found 'gptq'"):
        baselines.baseline("gptq", Residual(8), images(4))
    with pytest.raises(ValueError, match="at 2 bits everywhere"):
        baselines.baseline("nearest", Residual(48), images(4), 0.02)
