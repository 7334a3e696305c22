"""Programs are called as the models that they were made of, also after a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from defakeq.conversion import convert, load, save
from defakeq.lower import ProgramModule
from defakeq.plan import QuantPlan
from defakeq_kernels import dfq, runtime


class Crossed(nn.Module):
    """Reads its second argument first, and returns first what it computes last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        early = self.first(y)
        return F.relu(self.second(early) + x), early


class Nested(Crossed):
    def forward(self, given: dict[str, Any], unused: Tensor, scale: float = 2.0) -> dict[str, Any]:
        x, (y,) = given["x"], given["more"]
        late, early = super().forward(x, y)
        return {"late": late * scale, "rest": [None, early, x], "name": "rows"}


def rows(seed: int, count: int = 4) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def made(model: nn.Module, given: Any, batches: list[Any] | None = None) -> ProgramModule:
    model.eval()
    calibration = [given] if batches is None else batches
    program = convert(model, given, QuantPlan.uniform(model, 8), calibration, backend="program")
    assert isinstance(program, ProgramModule)
    return program


def again(program: ProgramModule, folder: Path) -> ProgramModule:
    save(program, folder / "net.dfq")
    loaded = load(folder / "net.dfq")
    assert isinstance(loaded, ProgramModule)
    return loaded


def close(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        if isinstance(b, Tensor):
            assert float((a - b).abs().max()) < 0.05 * float(b.abs().max())
        else:
            assert a == b


@torch.no_grad()
def test_arguments_and_results_keep_their_order_in_files(tmp_path):
    torch.manual_seed(0)
    model, given = Crossed(), (rows(1), rows(2))
    program = made(model, given)
    close(program(*given), model(*given))
    loaded = again(program, tmp_path)
    for x, y in zip(loaded(*given), program(*given), strict=True):
        assert torch.equal(x, y)
    assert torch.equal(loaded(given[0], y=given[1])[0], program(*given)[0])
    native = runtime.load(tmp_path / "net.dfq")
    assert [port["name"] for port in native.inputs] == ["x", "y"]
    arrays = native(*(x.numpy() for x in given))
    for x, y in zip(arrays, program(*given), strict=True):
        np.testing.assert_array_equal(x, y.numpy())
    assert "call" not in dfq.read(tmp_path / "net.dfq")[1]


@torch.no_grad()
def test_nested_arguments_and_results(tmp_path):
    torch.manual_seed(0)
    model = Nested()
    given = ({"x": rows(1), "more": [rows(2)]}, rows(3))
    program = made(model, given)
    expected = model(*given)
    for module in (program, again(program, tmp_path)):
        found = module(*given)
        close(found, expected)
        assert list(found) == ["late", "rest", "name"]
        assert torch.equal(found["rest"][2], given[0]["x"])
        turned = module({"more": [rows(2)], "x": rows(1)}, rows(3))
        assert torch.equal(turned["late"], found["late"])
        assert torch.equal(module(rows(1), rows(2), rows(3))["late"], found["late"])  # flat
        assert all(r.ok for r in module.check(*tree_map(lambda t: t[:1], given)))
    native = runtime.load(tmp_path / "net.dfq")
    late, early = native(rows(1).numpy(), rows(2).numpy())
    np.testing.assert_array_equal(late, program(*given)["late"].numpy())
    np.testing.assert_array_equal(early, program(*given)["rest"][1].numpy())
    compiled = torch.compile(program, fullgraph=True)
    assert torch.equal(compiled(*given)["late"], program(*given)["late"])


@torch.no_grad()
def test_keywords_are_taken_by_name_in_calibration_too(tmp_path):
    torch.manual_seed(0)
    model = Crossed()
    given = {"x": 50 * rows(1), "y": rows(2)}
    turned = dict(reversed(given.items()))
    program = made(model, given, [turned])
    same = made(model, given, [given])
    for module in (program, again(program, tmp_path)):
        for a, b in zip(module(**turned), same(**given), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, x: p({"x": x}, x), r"inputs\['arguments'\]\[0\]: found \['x'\]"),
        (lambda p, x: p({"x": x, "more": [x, x]}, x), r"\['more'\]: found 2; accepted is 1"),
        (lambda p, x: p({"x": x, "more": [1.0]}, x), r"\['more'\]\[0\]: found float"),
        (lambda p, x: p({"x": x, "more": [x]}), "found 1; accepted is 2"),
        (lambda p, x: p({"x": x, "more": [x]}, x, 3.0), "found 3; accepted is 2"),
        (lambda p, x: p(x, x), "accepted is 3"),
    ],
)
def test_other_arguments_are_refused_by_place(nested: ProgramModule, call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call(nested, rows(1))


@pytest.fixture(scope="module")
def nested() -> ProgramModule:
    torch.manual_seed(0)
    return made(Nested(), ({"x": rows(1), "more": [rows(2)]}, rows(3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda call: call.pop("takes"), "network.call: found"),
        (lambda call: call.update(inputs=["a"]), "network.call.inputs: found"),
        (lambda call: call.update(inputs=["x"] * 3), "network.call.inputs: found"),
        (lambda call: call.update(takes={"value": None}), "network.call.takes: found"),
        (lambda call: call.update(returns={"output": 9}), "an output below 2"),
        (lambda call: call.update(returns={"input": -1}), "an input below 3"),
        (lambda call: call.update(returns={"set": []}), "an output below 2"),
        (
            lambda call: call["takes"]["dict"].update(keywords={"dict": {"k": {"input": 0}}}),
            "each of 3 once",
        ),
    ],
)
def test_a_wrong_description_of_a_call_is_refused(nested, change, message, tmp_path):
    tensors, network = nested.file()
    change(network["call"])
    dfq.write(tmp_path / "net.dfq", tensors, network)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "net.dfq")


class Looked(nn.Module):
    """A lookup, which torch does, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.layer = nn.Linear(8, 4)

    def forward(self, index: Tensor) -> Tensor:
        return self.layer(self.table(index))


def test_no_images_come_out_as_none_behind_a_fallback():
    torch.manual_seed(0)
    program = made(Looked(), torch.arange(6).reshape(2, 3))
    assert program.fallbacks
    assert program(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, 4)


class Mixing(nn.Module):
    """Takes the mean of the batch, or its statistics, away."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(2, track_running_stats=False) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.norm is None:
            return y - y.mean(0, keepdim=True)
        return self.norm(y.reshape(-1, 2, 4))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_models_that_mix_the_images_of_a_batch_are_refused(norm: bool, count: int):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="depends on the other images of its batch"):
        made(Mixing(norm), rows(1, 4), [rows(2, count)])
    model = Mixing(norm).eval()
    plan = QuantPlan.uniform(model, 8)
    with torch.no_grad():
        close(convert(model, rows(1), plan, [rows(1)])(rows(1)), model(rows(1)))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


def test_models_that_change_with_a_call_are_refused():
    with pytest.raises(ValueError, match=r"found 'calls', which a call changes"):
        made(Counting(), rows(1))
