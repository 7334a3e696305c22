"""A converted model as a module of torch: traced, compiled, exported, copied, moved."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.conversion import convert, load, save
from defakeq.lower import ProgramModule
from defakeq.plan import QuantPlan

RUN = torch.ops.defakeq.run_program.default


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def converted() -> ProgramModule:
    torch.manual_seed(0)
    model = Small().eval()
    x = images(4)
    plan = QuantPlan.uniform(model, 4)
    return convert(model, x, plan, calibration=[x], backend="program")


def targets(graph: torch.fx.Graph) -> list[object]:
    return [node.target for node in graph.nodes if node.op == "call_function"]


def test_exports_as_one_op_for_every_batch(converted, tmp_path):
    shapes = {"inputs": ({0: torch.export.Dim("batch", min=1, max=32)},)}
    exported = torch.export.export(converted, (images(3),), dynamic_shapes=shapes)
    calls = [t for t in targets(exported.graph) if getattr(t, "namespace", "") == "defakeq"]
    assert calls == [RUN]
    assert "program0" in exported.state_dict
    torch.export.save(exported, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    for count in (1, 3, 6):
        assert torch.equal(again(images(count)), converted(images(count)))


@pytest.mark.parametrize("grad", [False, True])
def test_compiles_without_a_break(converted, grad):
    torch._dynamo.reset()
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.set_grad_enabled(grad):
        for count in (2, 3, 4):
            y = compiled(images(count))
            assert torch.equal(y, converted(images(count)))
            assert not y.requires_grad


def test_copies_pickles_and_files_give_the_same(converted, tmp_path):
    x = images(2)
    expected = converted(x)
    buffer = io.BytesIO()
    torch.save(converted, buffer)
    buffer.seek(0)
    save(converted, tmp_path / "net.dfq")
    others = [copy.deepcopy(converted), torch.load(buffer, weights_only=False)]
    others.append(load(tmp_path / "net.dfq"))
    for other in others:
        assert torch.equal(other(x), expected)
    fresh = copy.deepcopy(converted)
    fresh.load_state_dict(converted.state_dict())
    assert torch.equal(fresh(x), expected)


def test_stays_what_it_is_when_the_model_is_moved_or_cast(converted):
    x = images(2)
    outer = nn.Sequential(copy.deepcopy(converted), nn.Identity())
    for moved in (outer.half(), outer.double(), outer.to("meta"), outer.train()):
        assert torch.equal(moved(x), converted(x))
    assert torch.equal(converted(x.double()), converted(x))
    assert outer.training


def test_threads_are_torchs_or_its_own(converted):
    expected = converted(images(2))
    other = copy.deepcopy(converted)
    for threads in (1, 2, 3):
        other.threads = threads
        assert torch.equal(other(images(2)), expected)
    other.threads = 5000
    with pytest.raises((ValueError, RuntimeError), match="threads: found 5000"):
        other(images(2))


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 8, 8, 3), (3, 8, 8)])
def test_refuses_other_shapes_by_name(converted, shape):
    with pytest.raises((ValueError, RuntimeError), match=r"input 'x': found float32\["):
        converted(torch.zeros(shape))


def test_inputs_that_require_grad_are_refused(converted):
    x = images(2).requires_grad_()
    with pytest.raises(RuntimeError, match="found a tensor that requires grad"):
        converted(x)
    with torch.no_grad():
        assert torch.equal(converted(x), converted(images(2)))


def test_a_missing_folder_is_named(converted, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no such folder: '.*/absent'"):
        save(converted, tmp_path / "absent" / "net.dfq")


def test_explains_its_nodes(converted):
    nodes = converted.explain()["nodes"]
    assert nodes[0]["op"] == "conv2d"
    assert all(n["kernel"] for n in nodes)


def test_what_has_no_batch_is_refused_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + shift

    class Mean(Two):
        def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return super().forward(x, shift).mean()

    x, plan = torch.randn(4, 4), QuantPlan.uniform(Two(), 8, act_bits=None)
    converted = convert(Two(), (x, torch.ones(4, 1)), plan, backend="program")
    with pytest.raises(ValueError, match=r"shift: found shape \[1, 1\]; accepted is one entry"):
        converted(x, torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"example_inputs: found shape \[1\]; accepted is"):
        convert(Two(), (x, torch.ones(1)), plan, backend="program")
    with pytest.raises(ValueError, match="one number for all images; accepted is outputs with"):
        convert(Mean(), (x, torch.ones(4, 1)), plan, backend="program")
