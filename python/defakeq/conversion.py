"""From a float model and a plan to a model on packed weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from defakeq.calibrate import OBSERVERS, calibrate
from defakeq.first_layers import round_first_layers
from defakeq.fold import call_layers, fold_batch_norm, fuse_activations, replace_module
from defakeq.graphed import GraphedModule
from defakeq.inputs import Batch, Inputs, as_inputs, run
from defakeq.interface import Surroundings
from defakeq.lower import lower
from defakeq.model_file import load, quant_layers, save
from defakeq.plan import LayerPlan, QuantPlan, weight_shape
from defakeq.prunable import drop_constants
from defakeq_kernels.nn import QuantConv2d, QuantLayer, QuantLinear
from defakeq_kernels.quantize import ActQuant

__all__ = ["BACKENDS", "Batch", "convert", "load", "save"]

BACKENDS = ("modules", "program")


def convert(
    model: nn.Module,
    example_inputs: Batch,
    plan: QuantPlan,
    calibration: Iterable[Batch] | None = None,
    backend: str = "modules",
    *,
    observer: str = "mse",
    device: str | torch.device | None = None,
    cuda_graph: bool = False,
) -> nn.Module:
    """A copy of `model` in evaluation mode with the planned layers on packed weights.

    BatchNorm is folded into the layer before it, and a ReLU, ReLU6, Hardswish, SiLU, GELU or
    Sigmoid module after a planned layer into that layer, wherever the layer's output goes nowhere
    else. Everything not planned or folded is kept; no parameter requires grad any more, since
    packed layers have no gradient.

    Args:
        model: the float model; left as it is.
        example_inputs: what the model is called with: a tensor, positional arguments as a tuple
            or list, or keyword arguments as a mapping.
        plan: what to do with each layer.
        calibration: batches, each as `example_inputs`, from which the input ranges of layers with
            `act_bits` are taken. A single tensor is one batch.
        backend: "modules": each layer is swapped one for one, tensors stay torch's. "program": the
            whole model is lowered to a program, with int8 values from layer to layer; what cannot
            be lowered stays torch's, as `explain()` lists. Layers that are not planned get
            half-precision weights.
        observer: how ranges are chosen: "mse", "percentile" or "minmax".
        device: where the result goes, for example "cuda"; conversion itself runs on the CPU. None:
            it stays there.
        cuda_graph: replay the result as one CUDA graph, captured at the first call with a shape.

    Returns:
        The converted model: for "modules" a copy, `QuantLayer.explain()` of a layer says how it
        runs; for "program" a `defakeq.lower.ProgramModule`; with `cuda_graph` a
        `defakeq.graphed.GraphedModule` around it. Each has the `input_size`, `preprocess` and
        `score` that the model has.

    Raises:
        ValueError: a plan that does not fit, a layer that is not called, has hooks or is not
            float32, missing or unusable calibration batches, an unknown backend or observer, for
            "program" a model whose results for one image depend on others; the message names it.
        RuntimeError: the model fails on the example inputs or a calibration batch, or the converted
            one on the former, or there is no such device.
    """
    target = _target(device, cuda_graph)
    if backend not in BACKENDS:
        accepted = ", ".join(repr(name) for name in BACKENDS)
        raise ValueError(f"backend: found {backend!r}; accepted is {accepted}")
    if observer not in OBSERVERS:
        raise ValueError(f"observer: found {observer!r}; accepted is one of {OBSERVERS}")
    if not isinstance(plan, QuantPlan):
        raise ValueError(f"plan: found {type(plan).__name__}; accepted is a QuantPlan")
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        found = type(model).__name__
        raise ValueError(f"model: found {found}; accepted is a torch.nn.Module, not scripted")
    plan.validate(model)
    static = [name for name, layer in plan.layers.items() if layer.act_bits is not None]
    if static and calibration is None:
        raise ValueError(
            f"calibration: found None; accepted is batches, since layer {static[0]!r} "
            f"{'and others have' if len(static) > 1 else 'has'} quantized activations (act_bits)"
        )
    inputs = as_inputs("example_inputs", example_inputs)
    converted = copy.deepcopy(model).eval().requires_grad_(False)
    _check_planned(converted, plan, inputs)
    drop_constants(converted, plan, inputs)
    if isinstance(calibration, (Tensor, Mapping)):
        calibration = [calibration]
    if calibration is not None and not isinstance(calibration, Iterable):
        found = type(calibration).__name__
        raise ValueError(f"calibration: found {found}; accepted is batches")
    call_layers(converted, [converted.get_submodule(name) for name in plan.layers])
    fold_batch_norm(converted, inputs)
    if static:
        calibration = list(calibration or ())
        batches = [as_inputs("calibration", batch) for batch in calibration]
        plan = round_first_layers(converted, plan, batches)
    if backend == "program":
        given = [example_inputs] if calibration is None else calibration
        batches = [as_inputs("calibration", batch) for batch in given]
        program = lower(converted, inputs, plan, batches, observer)
        program.surroundings = Surroundings.of(converted)
        return _placed(program, target, cuda_graph)

    pruned = {name: _prunes(converted, name, layer) for name, layer in plan.layers.items()}
    fused = fuse_activations(converted, inputs, pruned)
    acts = calibrate(converted, plan, fused, static, calibration or (), observer)
    for name, layer in plan.layers.items():
        module = converted.get_submodule(name)
        try:
            swapped = _quantized(module, layer, acts.get(name), fused.get(name, "none"))
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        replace_module(converted, module, swapped)
    _check_converted(converted, inputs)
    return _placed(converted, target, cuda_graph)


def _target(device: str | torch.device | None, cuda_graph: bool) -> torch.device:
    """The device of the result, which exists."""
    try:
        target = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: found {device!r}; accepted is 'cpu' or 'cuda'") from error
    if target.type not in ("cpu", "cuda"):
        raise ValueError(f"device: found {device!r}; accepted is 'cpu' or 'cuda'")
    if cuda_graph and target.type != "cuda":
        raise ValueError(f"cuda_graph: found True for device {str(target)!r}; accepted is 'cuda'")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "device: found no CUDA device that torch can use (torch.cuda.is_available() is "
            "False: no driver, or a CPU build of torch); accepted is 'cpu'"
        )
    return target


def _placed(model: nn.Module, target: torch.device, cuda_graph: bool) -> nn.Module:
    if target.type == "cpu":
        return model
    moved = model.to(target)
    if not cuda_graph:
        return moved
    graphed = GraphedModule(moved)
    graphed.surroundings = Surroundings.of(moved)
    return graphed


def _check_planned(model: nn.Module, plan: QuantPlan, inputs: Inputs) -> None:
    """Every planned layer is called by the example inputs and has nothing that a swap drops."""
    called: set[str] = set()
    keywords: dict[str, str] = {}
    handles = []

    def noting(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
            if kwargs:
                keywords[name] = next(iter(kwargs))
            called.add(name)

        return hook

    for name in plan.layers:
        module = model.get_submodule(name)
        weight = module.weight
        if isinstance(weight, Tensor) and weight.dtype != torch.float32:
            raise ValueError(
                f"layer {name!r}: found weights of {weight.dtype}; accepted is float32: convert "
                "model.float()"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"layer {name!r}: found forward hooks, which do not survive a swap; accepted is a "
                "layer without them"
            )
        handles.append(module.register_forward_hook(noting(name), with_kwargs=True))
    try:
        run("example_inputs", model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name, keyword in keywords.items():
        raise ValueError(
            f"layer {name!r}: found a call with the keyword {keyword!r}; accepted is layers that "
            "are called with one positional argument"
        )
    for name in plan.layers:
        if name not in called:
            raise ValueError(
                f"layer {name!r}: found no call of it with the example inputs; accepted is layers "
                "that are called as modules"
            )


def _prunes(model: nn.Module, name: str, layer: LayerPlan) -> bool:
    return layer.keep_out is not None and len(layer.keep_out) < weight_shape(model, name)[0]


def _quantized(
    module: nn.Module, layer: LayerPlan, act: ActQuant | None, activation: str
) -> QuantLayer:
    options: dict[str, Any] = {
        "bits": layer.bits if isinstance(layer.bits, int) else torch.tensor(layer.bits),
        "symmetric": layer.symmetric,
        "group_size": layer.group_size,
        "act": act,
        "activation": activation,
        "scale": layer.scale,
        "zero_point": layer.zero_point,
    }
    for name in ("keep_out", "keep_in", "half_out", "half_in"):
        index = getattr(layer, name)
        options[name] = torch.tensor(index) if index else None
    if isinstance(module, nn.Linear):
        return QuantLinear.from_float(module, **options)
    assert isinstance(module, nn.Conv2d)
    return QuantConv2d.from_float(module, **options)


def _check_converted(model: nn.Module, inputs: Inputs) -> None:
    """The swapped layers are all reached, and nothing reads what they no longer have."""
    reached: set[int] = set()
    layers = quant_layers(model)
    # No hooks: some modules take another path where layers have them.
    for layer in layers.values():
        layer.forward = _noting(layer, reached)  # type: ignore[method-assign]
    args, kwargs = inputs
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        raise RuntimeError(
            f"model: the converted model fails on the example inputs ({error}); leave the layers "
            "that its code reads other than by calling them out of the plan"
        ) from error
    finally:
        for layer in layers.values():
            del layer.forward
    for name, layer in layers.items():
        if id(layer) not in reached:
            raise RuntimeError(
                f"layer {name!r}: the model holds the layer in a place that a swap cannot reach; "
                "leave it out of the plan"
            )


def _noting(layer: QuantLayer, reached: set[int]) -> Callable[..., Any]:
    forward = layer.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        reached.add(id(layer))
        return forward(*args, **kwargs)

    return call
