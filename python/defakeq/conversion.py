"""From a float model and a plan to a model on packed weights, and to files and back."""

from __future__ import annotations

import copy
import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defakeq.calibrate import OBSERVERS, RangeObserver
from defakeq.first_layers import round_first_layers
from defakeq.fold import (
    Folded,
    Inputs,
    fold_batch_norm,
    fuse_activations,
    replace_module,
)
from defakeq.graphed import GraphedModule
from defakeq.interface import Surroundings
from defakeq.lower import ProgramModule, lower
from defakeq.plan import LayerPlan, QuantPlan, nearest, weight_shape
from defakeq.prunable import drop_constants
from defakeq_kernels import dfq
from defakeq_kernels.nn import QuantConv2d, QuantLayer, QuantLinear
from defakeq_kernels.packed import PackedWeight
from defakeq_kernels.quantize import ActQuant, int8_out

BACKENDS = ("modules", "program")
DETECTOR_BUILDER = "defakeq.detectors:build"

Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


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
        ValueError: a plan that does not fit, a layer that is not called or has hooks, missing or
            unusable calibration batches, an unknown backend or observer; the message names it.
        RuntimeError: the converted model fails on the example inputs, or there is no such device.
    """
    target = _target(device, cuda_graph)
    if backend not in BACKENDS:
        accepted = ", ".join(repr(name) for name in BACKENDS)
        raise ValueError(f"backend: found {backend!r}; accepted is {accepted}")
    if observer not in OBSERVERS:
        raise ValueError(f"observer: found {observer!r}; accepted is one of {OBSERVERS}")
    if not isinstance(plan, QuantPlan):
        raise ValueError(f"plan: found {type(plan).__name__}; accepted is a QuantPlan")
    plan.validate(model)
    static = [name for name, layer in plan.layers.items() if layer.act_bits is not None]
    if static and calibration is None:
        raise ValueError(
            f"calibration: found None; accepted is batches, since layer {static[0]!r} "
            f"{'and others have' if len(static) > 1 else 'has'} quantized activations (act_bits)"
        )
    inputs = _inputs("example_inputs", example_inputs)
    converted = copy.deepcopy(model).eval().requires_grad_(False)
    _check_planned(converted, plan, inputs)
    drop_constants(converted, plan, inputs)
    if isinstance(calibration, (Tensor, Mapping)):
        calibration = [calibration]
    fold_batch_norm(converted, inputs)
    if static:
        calibration = list(calibration or ())
        batches = [_inputs("calibration", batch) for batch in calibration]
        plan = round_first_layers(converted, plan, batches)
    if backend == "program":
        batches = [_inputs("calibration", batch) for batch in calibration or [example_inputs]]
        program = lower(converted, inputs, plan, batches, observer)
        program.surroundings = Surroundings.of(converted)
        return _placed(program, target, cuda_graph)

    pruned = {name: _prunes(converted, name, layer) for name, layer in plan.layers.items()}
    fused = fuse_activations(converted, inputs, pruned)
    acts = _calibrate(converted, plan, fused, static, calibration or (), observer)
    for name, layer in plan.layers.items():
        module = converted.get_submodule(name)
        try:
            swapped = _quantized(module, layer, acts.get(name), fused.get(name, "none"))
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        replace_module(converted, module, swapped)
    _check_converted(converted, inputs)
    return _placed(converted, target, cuda_graph)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    builder: str | None = None,
    builder_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Writes a converted model to a ``.dfq`` file: packed layers and all other parameters.

    Args:
        model: what `convert` or `load` returned.
        path: where to; an existing file is replaced.
        builder: "package.module:function" that returns the unconverted model, so that `load` needs
            none; None: `load` must be given a model, unless `defakeq.detectors.build` made it.
        builder_kwargs: the builder's keyword arguments, of JSON types.

    Raises:
        ValueError: a model without packed layers, a program with fallbacks, a state that a file
            cannot hold, or a builder that does not exist; the message names it.
    """
    if isinstance(model, GraphedModule):
        model = model.model
    if isinstance(model, ProgramModule):
        if builder is not None or builder_kwargs is not None:
            raise ValueError("builder: found with a program, which needs none; accepted is None")
        dfq.write(path, *model.file())
        return
    layers = _quant_layers(model)
    if not layers:
        raise ValueError("model: found no packed layer; accepted is a model made by convert()")
    if "" in layers:
        raise ValueError("model: found a packed layer itself; accepted is a module that holds one")
    if builder_kwargs is not None and builder is None:
        raise ValueError("builder_kwargs: found without a builder; accepted is None")
    tensors: dfq.Tensors = {}
    network: dfq.Network = {}
    for name, layer in layers.items():
        dfq.add_layer(
            tensors,
            network,
            name,
            layer.packed_weight(),
            None if layer.act is None else layer.act.describe(),
            layer.activation,
            None if layer.out is None else int8_out(layer.out),
        )
    for name, value in _float_state(model).items():
        tensors[name] = _to_array(name, value)
    network["model"] = {
        "folded": {
            name: [module.what, module.into]
            for name, module in model.named_modules()
            if isinstance(module, Folded)
        },
    }
    if builder is None and getattr(model, "published_name", None) is not None:
        builder, builder_kwargs = DETECTOR_BUILDER, {"name": model.published_name}
    if builder is not None:
        kwargs = dict(builder_kwargs or {})
        if json.loads(json.dumps(kwargs)) != kwargs:
            raise ValueError("builder_kwargs: found what JSON changes; accepted is JSON types")
        _find_builder(builder)
        network["model"]["builder"] = {"function": builder, "kwargs": kwargs}
    dfq.write(path, tensors, network)


def load(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    trusted: Iterable[str] = (),
) -> nn.Module:
    """Reads a model that `save` wrote.

    Args:
        path: the file.
        model: the model's skeleton, whose parameters do not matter: the unconverted model, a
            converted one, or a function that returns one of these. A module is copied and left as
            it is. None: the builder named in the file is called. A program needs none.
        trusted: builders, as "package.module:function", that a file may name besides the module
            classes and detectors of this package: a file must not choose what code runs.

    Returns:
        The model in evaluation mode; no parameter requires grad.

    Raises:
        ValueError: not such a file, or one that does not fit the skeleton; the message names the
            layer or tensor.
        OSError: the file cannot be read.
    """
    tensors, network = dfq.read(path)
    if "program" in network:  # it needs no skeleton
        return ProgramModule.of_file(tensors, network)
    described = network.get("model")
    if not isinstance(described, dict) or not isinstance(described.get("folded"), dict):
        raise ValueError(
            f"{os.fspath(path)}: network.model: found nothing; accepted is a file by save()"
        )
    loaded = _skeleton(described, model, tuple(trusted)).eval().requires_grad_(False)
    for name, description in network["layers"].items():
        layer = _layer_of(PackedWeight.from_tensors(name, tensors, description), description)
        own = _submodule(loaded, name)
        _check_fits(name, own, layer)
        replace_module(loaded, own, layer)
    for name, values in described["folded"].items():
        if not isinstance(values, list) or len(values) != 2:
            raise ValueError(f"network.model.folded.{name}: found {values!r}; accepted is a pair")
        replace_module(loaded, _submodule(loaded, name), Folded(str(values[0]), str(values[1])))
    _load_floats(loaded, tensors, network["layers"])
    return loaded


# convert


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


def _inputs(what: str, batch: object) -> Inputs:
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    raise ValueError(
        f"{what}: found {type(batch).__name__}; accepted is a tensor, a tuple or list of "
        "positional arguments, or a mapping of keyword arguments"
    )


def _check_planned(model: nn.Module, plan: QuantPlan, inputs: Inputs) -> None:
    """Every planned layer is called by the example inputs and has nothing that a swap drops."""
    called: set[str] = set()
    handles = []
    for name in plan.layers:
        module = model.get_submodule(name)
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"layer {name!r}: found forward hooks, which do not survive a swap; accepted is a "
                "layer without them"
            )
        handles.append(module.register_forward_hook(lambda *_, name=name: called.add(name)))
    args, kwargs = inputs
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for name in plan.layers:
        if name not in called:
            raise ValueError(
                f"layer {name!r}: found no call of it with the example inputs; accepted is layers "
                "that are called as modules"
            )


def _prunes(model: nn.Module, name: str, layer: LayerPlan) -> bool:
    return layer.keep_out is not None and len(layer.keep_out) < weight_shape(model, name)[0]


def _calibrate(
    model: nn.Module,
    plan: QuantPlan,
    fused: Mapping[str, str],
    static: list[str],
    batches: Iterable[Batch],
    observer: str,
) -> dict[str, ActQuant]:
    """Static input quantizations by layer name, from the float model with `fused` put back."""
    if not static:
        return {}
    observers = {name: RangeObserver() for name in static}
    handles = []
    for name in static:
        module, layer = model.get_submodule(name), plan.layers[name]
        hook = _observing(name, module, layer, observers[name])
        handles.append(module.register_forward_pre_hook(hook))
    for name, activation in fused.items():
        handles.append(model.get_submodule(name).register_forward_hook(_applying(activation)))
    if isinstance(batches, (Tensor, Mapping)):
        batches = [batches]
    count = 0
    try:
        with torch.no_grad():
            for batch in batches:
                args, kwargs = _inputs("calibration", batch)
                model(*args, **kwargs)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise ValueError("calibration: found no batch; accepted is at least one")
    acts = {}
    for name in static:
        bits = plan.layers[name].act_bits
        assert bits is not None
        try:
            acts[name] = observers[name].quantization(bits, observer)
        except ValueError as error:
            raise ValueError(f"calibration: layer {name!r}: {error}") from error
    return acts


def _observing(
    name: str, module: nn.Module, layer: LayerPlan, observer: RangeObserver
) -> Callable[..., None]:
    dim = -3 if isinstance(module, nn.Conv2d) else -1
    index: Tensor | None = None
    if layer.keep_in is not None or layer.half_in:
        inputs = module.weight.shape[1]  # type: ignore[index,union-attr]
        kept = range(inputs) if layer.keep_in is None else layer.keep_in
        index = torch.tensor(sorted(set(kept) - set(layer.half_in or ())))

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        if index is not None:
            x = x.index_select(dim, index.to(x.device))
        try:
            observer.update(x)
        except ValueError as error:
            raise ValueError(f"calibration: layer {name!r}: {error}") from error

    return hook


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "relu6": nn.functional.relu6,
    "hardswish": nn.functional.hardswish,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "sigmoid": torch.sigmoid,
}


def _applying(activation: str) -> Callable[..., Tensor]:
    function = _FUNCTIONS[activation]
    return lambda module, args, output: function(output)


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
    layers = _quant_layers(model)
    handles = [
        layer.register_forward_hook(lambda module, *_: reached.add(id(module)))
        for layer in layers.values()
    ]
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
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        if id(layer) not in reached:
            raise RuntimeError(
                f"layer {name!r}: the model holds the layer in a place that a swap cannot reach; "
                "leave it out of the plan"
            )


# save and load


def _quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLayer)}


def _float_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of everything but the packed layers."""
    prefixes = tuple(
        name + "."
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, QuantLayer)
    )
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith(prefixes):
            continue
        if not isinstance(value, Tensor):
            raise ValueError(
                f"state {name!r}: found {type(value).__name__}; accepted is tensors only"
            )
        state[name] = value
    return state


def _to_array(name: str, value: Tensor) -> NDArray[Any]:
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:
        value = value.float()
    try:
        return np.ascontiguousarray(value.numpy()).reshape(tuple(value.shape))
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"state {name!r}: found {value.dtype}, {value.layout}; accepted is dense real tensors"
        ) from error


def _find_builder(builder: str) -> Callable[..., Any]:
    module_name, _, function_name = builder.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"builder: found {builder!r}; accepted is 'package.module:function'")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"builder: found {builder!r}, which cannot be imported: {error}"
        ) from error
    if not callable(function):
        raise ValueError(f"builder: found {builder!r}, which is not callable")
    found: Callable[..., Any] = function
    return found


def _is_own(builder: str) -> bool:
    """Whether the builder is a module class of this package."""
    if not builder.startswith("defakeq."):
        return False
    found = _find_builder(builder)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _skeleton(
    described: Mapping[str, Any],
    model: nn.Module | Callable[[], nn.Module] | None,
    trusted: tuple[str, ...],
) -> nn.Module:
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    what: Any = "model"
    if model is not None:
        built: Any = model()
    else:
        record = described.get("builder")
        if not isinstance(record, dict):
            raise ValueError(
                "model: found None, and the file names no builder; accepted is the unconverted "
                "model or a function that returns it"
            )
        what, kwargs = record.get("function"), record.get("kwargs")
        if not isinstance(what, str) or not isinstance(kwargs, dict):
            raise ValueError("network.model.builder: found no function name and arguments")
        detector = what == DETECTOR_BUILDER and set(kwargs) == {"name"}
        if what not in trusted and not detector and not _is_own(what):
            raise ValueError(
                f"builder: found {what!r} in the file; accepted is module classes and detectors of "
                "this package, and what the argument `trusted` lists"
            )
        built = _find_builder(what)(**kwargs)
    if not isinstance(built, nn.Module):
        raise ValueError(f"{what}: found {type(built).__name__} returned; accepted is a module")
    return built


def _submodule(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules or name == "":
        raise ValueError(
            f"layer {name!r}: not in the model (nearest: {nearest(name, list(modules))!r})"
        )
    return modules[name]


def _layer_of(weight: PackedWeight, description: Mapping[str, Any]) -> QuantLayer:
    act, out = description["act"], description["out"]
    kind = QuantLinear if weight.kind == "linear" else QuantConv2d
    values = {key: out[key] for key in ("scale", "zero_point", "bits")}
    return kind(
        weight,
        None if act["mode"] == "none" else ActQuant(**act),
        description["activation"],
        None if out["dtype"] == "float32" else ActQuant("static", **values),
    )


def _check_fits(name: str, own: nn.Module, layer: QuantLayer) -> None:
    """The skeleton's layer is the one that was packed."""
    if isinstance(own, QuantLayer):
        same_kind = own.kind == layer.kind
        shape = own.weight_shape
    else:
        same_kind = isinstance(own, nn.Linear if layer.kind == "linear" else nn.Conv2d)
        shape = tuple(own.weight.shape) if same_kind else ()  # type: ignore[union-attr,arg-type]
    if not same_kind or shape != layer.weight_shape:
        found = f"{type(own).__name__} with a weight of shape {list(shape)}"
        raise ValueError(
            f"layer {name!r}: found {found} in the model; accepted is a {layer.kind} layer of "
            f"shape {list(layer.weight_shape)}, as in the file"
        )


def _load_floats(
    model: nn.Module, tensors: Mapping[str, NDArray[Any]], layers: Mapping[str, Any]
) -> None:
    packed = {
        key
        for name, description in layers.items()
        for key in PackedWeight.from_tensors(name, tensors, description).names(name)
    }
    stored = {name: array for name, array in tensors.items() if name not in packed}
    for name in stored:
        # folding gives a bias to layers that had none
        owner = model
        path, _, field = name.rpartition(".")
        if field == "bias" and path in dict(model.named_modules()):
            owner = model.get_submodule(path)
            if isinstance(owner, (nn.Linear, nn.Conv2d)) and owner.bias is None:
                owner.bias = nn.Parameter(owner.weight.new_zeros(owner.weight.shape[0]), False)
    own = _float_state(model)
    for name in own:
        if name not in stored:
            raise ValueError(f"tensor {name!r}: found nothing in the file; the model has it")
    for name, array in stored.items():
        if name not in own:
            known = nearest(name, list(own))
            raise ValueError(f"tensor {name!r}: not in the model (nearest: {known!r})")
        if tuple(own[name].shape) != array.shape:
            raise ValueError(
                f"tensor {name!r}: found shape {list(array.shape)} in the file; accepted is "
                f"{list(own[name].shape)}, the model's"
            )
    with torch.no_grad():
        for name, array in stored.items():
            own[name].copy_(torch.from_numpy(np.array(array)))
