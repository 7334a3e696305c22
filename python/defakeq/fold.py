"""Folds BatchNorm and activations into the layer before them, where that is safe.

Safe means: the layer's output goes into the one module and nowhere else. What happens is watched
in a run of the model, operation by operation; where torch.fx can trace the model, its graph must
agree.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from defakeq.inputs import Inputs
from defakeq_kernels.nn.layers import has_forward_of

_NORMS = {nn.BatchNorm2d: (nn.Conv2d, 4), nn.BatchNorm1d: (nn.Linear, 2)}
_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
}


class Folded(nn.Identity):
    """In the place of a module whose work the layer before it now does.

    Args:
        what: the replaced module's class.
        into: the name of the layer.
    """

    def __init__(self, what: str, into: str) -> None:
        super().__init__()
        self.what = what
        self.into = into

    def extra_repr(self) -> str:
        """What was folded and where to."""
        return f"{self.what} -> {self.into}"


def fold_batch_norm(model: nn.Module, inputs: Inputs) -> list[str]:
    """Folds each BatchNorm into the Conv2d or Linear before it, in place.

    Args:
        model: in evaluation mode.
        inputs: positional and keyword arguments that the model is called with.

    Returns:
        The names of the folded BatchNorms.
    """
    producers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if any(has_forward_of(module, kind) for kind in (nn.Conv2d, nn.Linear))
        and _untouched(module)
    }
    norms: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if type(module) in _NORMS
        and _untouched(module)
        and not module.training
        and module.running_mean is not None
    }
    folded = []
    for producer, consumer, rank in _links(model, inputs, producers, norms):
        layer, norm = producers[producer], norms[consumer]
        kind, expected_rank = _NORMS[type(norm)]
        if not isinstance(layer, kind) or rank != expected_rank:
            continue
        _fold_into(layer, norm)
        replace_module(model, norm, Folded(type(norm).__name__, producer))
        folded.append(consumer)
    return folded


def fuse_activations(model: nn.Module, inputs: Inputs, names: Mapping[str, bool]) -> dict[str, str]:
    """Takes away the activation modules that the named layers' kernels can apply, in place.

    Args:
        model: in evaluation mode.
        inputs: positional and keyword arguments that the model is called with.
        names: the layers, with whether some of their outputs are pruned. A pruned output stays
            zero, so an activation that maps zero elsewhere is not fused there.

    Returns:
        Layer name to the kernels' name of its activation.
    """
    producers = {
        name: module
        for name, module in model.named_modules()
        if name in names and not module._forward_hooks
    }
    activations = {
        name: module
        for name, module in model.named_modules()
        if type(module) in _ACTIVATIONS
        and not (isinstance(module, nn.GELU) and module.approximate != "none")
        and not _has_hooks(module)
    }
    fused = {}
    for producer, consumer, _ in _links(model, inputs, producers, activations):
        module = activations[consumer]
        if isinstance(module, nn.Sigmoid) and names[producer]:
            continue
        replace_module(model, module, Folded(type(module).__name__, producer))
        fused[producer] = _ACTIVATIONS[type(module)]
    return fused


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever the model holds `old`."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def call_layers(model: nn.Module, layers: Collection[nn.Module]) -> None:
    """Has torch's transformer encoders that hold one of `layers` call them.

    In evaluation mode they would hand the layers' weights to one fused operator.
    """
    for module in model.modules():
        if not isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)):
            continue
        if any(child is layer for child in module.modules() for layer in layers):
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _untouched(module: nn.Module) -> bool:
    """No hooks and no parametrization: what the parameters say is what is computed."""
    return not _has_hooks(module) and not parametrize.is_parametrized(module)


def _fold_into(layer: nn.Module, norm: nn.Module) -> None:
    weight, bias = layer.weight, layer.bias
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(weight, Tensor)
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    with torch.no_grad():
        factor = (variance.double() + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
        if isinstance(norm.weight, Tensor):
            factor = factor * norm.weight.double()
        offset = -mean.double() if bias is None else bias.double() - mean.double()  # type: ignore[operator]
        offset = offset * factor
        if isinstance(norm.bias, Tensor):
            offset = offset + norm.bias.double()
        scaled = weight.double() * factor.reshape(-1, *([1] * (weight.dim() - 1)))
    requires_grad = weight.requires_grad
    layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad)
    layer.bias = nn.Parameter(offset.to(weight.dtype), requires_grad)


@dataclass
class _Output:
    """The output of a watched layer: who reads it."""

    ref: weakref.ref[Tensor]
    rank: int
    readers: set[str | None] = field(default_factory=set)
    overwritten: bool = False  # by an in-place reader: later readers see that one's result


class _Watch(TorchDispatchMode):
    """Notes which modules' operations read the outputs of the producers."""

    def __init__(
        self, producers: Mapping[str, nn.Module], consumers: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.producers = producers
        self.consumers = consumers
        self.calls: Counter[str] = Counter()
        self.outputs: dict[str, _Output] = {}
        self._inside: list[str] = []
        self._by_id: dict[int, _Output] = {}

    def _find(self, value: object) -> _Output | None:
        found = self._by_id.get(id(value))
        return found if found is not None and found.ref() is value else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            output = self._find(value) if isinstance(value, Tensor) else None
            if output is not None and not output.overwritten:
                output.readers.add(self._inside[-1] if self._inside else None)
        return func(*args, **kwargs)

    def run(self, model: nn.Module, inputs: Inputs) -> Any:
        handles = []
        for name, module in self.producers.items():
            handles.append(module.register_forward_hook(self._produced(name)))
        for name, module in self.consumers.items():
            handles.append(module.register_forward_pre_hook(self._entered(name)))
            handles.append(module.register_forward_hook(self._left(name)))
        args, kwargs = inputs
        try:
            with torch.no_grad(), self:
                return model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _produced(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.calls[name] += 1
            if isinstance(output, Tensor):
                record = _Output(weakref.ref(output), output.dim())
                self.outputs[name] = record
                self._by_id[id(output)] = record

        return hook

    def _entered(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self.calls[name] += 1
            self._inside.append(name)

        return hook

    def _left(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._inside.pop()
            record = self._find(output)
            if record is not None and name in record.readers:
                record.overwritten = True

        return hook


def _links(
    model: nn.Module,
    inputs: Inputs,
    producers: Mapping[str, nn.Module],
    consumers: Mapping[str, nn.Module],
) -> list[tuple[str, str, int]]:
    """(producer, consumer, rank of the tensor) where the output goes there and nowhere else."""
    if not producers or not consumers:
        return []
    watch = _Watch(producers, consumers)
    result = watch.run(model, inputs)
    gc.collect()  # what is still alive is held by the model or is part of its result
    found = []
    for producer, output in watch.outputs.items():
        if len(output.readers) != 1:
            continue
        (consumer,) = output.readers
        held = output.ref() is not None and not output.overwritten
        if consumer is None or held or watch.calls[producer] != 1 or watch.calls[consumer] != 1:
            continue
        found.append((producer, consumer, output.rank))
    del result
    graph = _trace(model) if found else None
    if graph is None:
        return found
    return [link for link in found if _agrees(graph, link[0], link[1])]


def _trace(model: nn.Module) -> fx.Graph | None:
    try:
        return fx.Tracer().trace(copy.deepcopy(model))
    except Exception:  # whatever a model's code raises on symbolic values: it cannot be traced
        return None


def _agrees(graph: fx.Graph, producer: str, consumer: str) -> bool:
    """Whether the graph, where it shows the layer, has its output go to the consumer only."""
    nodes = [n for n in graph.nodes if n.op == "call_module" and n.target == producer]
    if not nodes:
        return True
    if len(nodes) != 1 or len(nodes[0].users) != 1:
        return False
    (user,) = nodes[0].users
    calls = [n for n in graph.nodes if n.op == "call_module" and n.target == consumer]
    return calls == [user]
