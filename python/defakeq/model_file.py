"""Converted models as ``.dfq`` files."""

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

from defakeq.fold import Folded, call_layers, replace_module
from defakeq.graphed import GraphedModule
from defakeq.lower import ProgramModule
from defakeq.plan import nearest
from defakeq_kernels import dfq
from defakeq_kernels.nn import QuantConv2d, QuantLayer, QuantLinear
from defakeq_kernels.packed import PackedWeight
from defakeq_kernels.quantize import ActQuant, int8_out

DETECTOR_BUILDER = "defakeq.detectors:build"


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
    layers = quant_layers(model)
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
    call_layers(loaded, quant_layers(loaded).values())
    return loaded


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """The packed layers by name."""
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
