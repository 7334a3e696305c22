"""convert(device=..., cuda_graph=...) where there is no GPU: errors that say what is missing."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import defakeq  # noqa: E402
from defakeq.graphed import GraphedModule  # noqa: E402


def converted(**options: Any) -> Any:
    model = nn.Sequential(nn.Linear(16, 8)).eval()
    plan = defakeq.QuantPlan.uniform(model, 4)
    x = torch.ones(2, 16)
    return defakeq.convert(model, x, plan, x, **options)


def test_devices_are_checked_before_anything_else(monkeypatch: Any) -> None:
    assert next(converted(device="cpu").buffers()).device.type == "cpu"
    with pytest.raises(ValueError, match="device: found 'mps'; accepted is 'cpu' or 'cuda'"):
        converted(device="mps")
    with pytest.raises(ValueError, match="device: found 'gpu'"):
        converted(device="gpu")
    with pytest.raises(ValueError, match="cuda_graph: found True for device 'cpu'"):
        converted(cuda_graph=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="device: found no CUDA device"):
        converted(device="cuda", cuda_graph=True)


def test_graphs_take_cuda_tensors_only() -> None:
    model = GraphedModule(converted())
    with pytest.raises(ValueError, match="input 0: found a tensor on cpu; accepted is CUDA"):
        model(torch.ones(2, 16))
    with pytest.raises(ValueError, match="keep: found 0"):
        GraphedModule(converted(), keep=0)


def test_a_graphed_model_is_saved_as_the_model_itself(tmp_path: Any) -> None:
    model = converted()
    defakeq.save(GraphedModule(model), tmp_path / "a.dfq")
    defakeq.save(model, tmp_path / "b.dfq")
    assert (tmp_path / "a.dfq").read_bytes() == (tmp_path / "b.dfq").read_bytes()
