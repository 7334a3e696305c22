"""Every architecture of the benchmarks, at every plan: lowered as the model is, and run as lowered.

Small networks of the same blocks; the whole ones run with ``-m slow``.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_networks import SMALL, build
from torch import Tensor, nn

from defakeq import networks
from defakeq.conversion import convert
from defakeq.fold import fold_batch_norm
from defakeq.lower.capture import capture, prepare
from defakeq.lower.emit import Emitter
from defakeq.lower.finish import assemble, calibrate
from defakeq.lower.ideal import Ideal
from defakeq.plan import QuantPlan
from defakeq.prunable import drop_constants, half_plan
from defakeq_kernels import reference_program

PLANS = ("8", "4", "half")


def plan_of(name: str, model: nn.Module, x: Tensor) -> QuantPlan:
    if name == "restored":
        return restored_plan(model, x)
    return half_plan(model, x[:1]) if name == "half" else QuantPlan.uniform(model, int(name))


def restored_plan(model: nn.Module, x: Tensor) -> QuantPlan:
    """The half plan with three half-precision inputs in every layer that has as many."""
    layers = {}
    for name, layer in half_plan(model, x[:1], bits=8).layers.items():
        module = model.get_submodule(name)
        inputs = layer.keep_in or range(module.weight.shape[1])
        if getattr(module, "groups", 1) == 1 and len(inputs) > 3:
            layer = replace(layer, half_in=tuple(inputs)[1:6:2])
        layers[name] = layer
    return QuantPlan(layers)


def zeroed(model: nn.Module, plan: QuantPlan, x: Tensor) -> Tensor:
    """The float model's result with dropped channels set to zero by hooks."""
    model = copy.deepcopy(model)
    drop_constants(model, plan, ((x,), {}))
    fold_batch_norm(model, ((x,), {}))
    for name, layer in plan.layers.items():
        module = model.get_submodule(name)
        channels = 1 if isinstance(module, nn.Conv2d) else -1

        def read(_, args, kept=layer.keep_in, dim=channels):
            x = args[0]
            if kept is None:
                return None
            gone = torch.ones(x.shape[dim], dtype=torch.bool)
            gone[list(kept)] = False
            return (x.index_fill(dim, torch.nonzero(gone).flatten(), 0.0),)

        def written(_, args, y, kept=layer.keep_out, dim=channels):
            if kept is None:
                return None
            gone = torch.ones(y.shape[dim], dtype=torch.bool)
            gone[list(kept)] = False
            return y.index_fill(dim, torch.nonzero(gone).flatten(), 0.0)

        module.register_forward_pre_hook(read)
        module.register_forward_hook(written)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("plan_name", ["8", "half", "restored"])
def test_without_rounding_a_program_is_the_pruned_model(name: str, plan_name: str):
    model, size = build(name)
    x = networks.images(1, size)
    plan = plan_of(plan_name, model, x)
    expected = zeroed(model, plan, x)
    drop_constants(model, plan, ((x,), {}))
    inputs = ((x,), {})
    captured = capture(prepare(model, plan, inputs), inputs)
    emitter = Emitter(captured, plan)
    emitter.run()
    quants = calibrate(captured, {0: emitter}, [(x,)], "minmax")[0]
    found = Ideal(emitter, *assemble(emitter, quants))(x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if plan_name == "restored":
        asking = [name for name, layer in plan.layers.items() if layer.half_in]
        given = {step.name for step in emitter.draft.steps if len(step.ins) == 3}
        assert given.issuperset(asking)
    if plan_name == "half":
        shapes = [emitter.draft.values[step.outs[0]].shape for step in emitter.draft.steps]
        widths = [spec.weight.shape[0] for spec in emitter.layers.values()]
        dense = [m.weight.shape[0] for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert sum(widths) < 0.7 * sum(dense), shapes


@pytest.mark.parametrize(
    ("name", "plan_name"),
    [(name, plan) for name in SMALL for plan in ("8", "half")]
    + [("resnet50", "restored"), ("efficientnet", "restored"), ("vit", "restored")],
)
def test_every_node_is_within_its_rounding(name: str, plan_name: str):
    model, size = build(name)
    x = networks.images(2, size)
    converted = convert(model, x, plan_of(plan_name, model, x), [x], backend="program")
    assert converted.fallbacks == []
    wrong = [node for node in converted.check(x[:1]) if not node.ok]
    assert wrong == []
    found = converted(x[:1]).numpy()
    (expected,) = reference_program.run(converted.file(), [x[:1].numpy()])
    assert np.array_equal(found, expected)


def test_a_wrong_node_is_found():
    model, size = build("resnet34")
    x = networks.images(1, size)
    converted = convert(model, x, QuantPlan.uniform(model, 8), [x], backend="program")
    (stage,) = converted.stages
    right = dict(stage.tensors)
    converted(x)  # loaded with the right weights
    run = converted._run_once
    name = next(n for n in right if n.startswith("layer1.conv1") and n.endswith(".bias"))
    broken = {**right, name: right[name] + 0.5}
    converted._run_once = lambda tensors, network, arrays: run(broken, network, arrays)
    wrong = {node.name for node in converted.check(x) if not node.ok}
    assert wrong == {"layer1.conv1"}
    with pytest.raises(ValueError, match="found a batch of 2"):
        converted.check(x.repeat(2, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NAMES)
@pytest.mark.parametrize("plan_name", PLANS)
def test_whole_networks(name: str, plan_name: str):
    model = networks.build(name)
    x = networks.images(2, model.input_size[1])
    converted = convert(model, x, plan_of(plan_name, model, x), [x], backend="program")
    assert converted.fallbacks == []
    assert [node for node in converted.check(x[:1]) if not node.ok] == []
