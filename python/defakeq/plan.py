"""What becomes of each layer of a model: widths, kept channels, half-precision channels."""

from __future__ import annotations

import difflib
import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn

from defakeq_kernels.nn.layers import explicit_padding, has_forward_of

MAX_REDUCTION = 33025  # the longest sum of products of 8-bit numbers that fits int32
VERSION = 1

_INDICES = ("keep_out", "keep_in", "half_out", "half_in")


@dataclass(frozen=True)
class LayerPlan:
    """One layer's part of a plan. Index arguments may be any sequences of integers.

    Attributes:
        bits: weight width, 1 to 8, or 16 for half precision; one value or one an output.
        act_bits: input width, 4 to 8 (static int8 quantization, calibrated); None: the layer is
            weight-only, with float32 math.
        keep_out: outputs that are kept, the others are exactly zero; None: all.
        keep_in: inputs that are read, those in `half_in` included; None: all.
        half_out: kept outputs stored in half precision; None: none.
        half_in: kept inputs that stay float, with half-precision weights; None: none.
        group_size: inputs that share a weight scale, a multiple of 4; None: all.
        symmetric: weights without zero points.
        scale, zero_point: the weights' grid, one value each for every output, to which the weights
            are rounded; None: searched. `zero_point` is None when symmetric.

    Raises:
        ValueError: naming the field.
    """

    bits: int | tuple[int, ...] = 8
    act_bits: int | None = 8
    keep_out: tuple[int, ...] | None = None
    keep_in: tuple[int, ...] | None = None
    half_out: tuple[int, ...] | None = None
    half_in: tuple[int, ...] | None = None
    group_size: int | None = None
    symmetric: bool = False
    scale: tuple[float, ...] | None = None
    zero_point: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if getattr(self.bits, "ndim", None) == 0:
            object.__setattr__(self, "bits", self.bits.item())  # type: ignore[union-attr]
        if not _is_int(self.bits):
            object.__setattr__(self, "bits", _integers("bits", self.bits))
        else:
            object.__setattr__(self, "bits", int(self.bits))  # type: ignore[arg-type]
        widths = (self.bits,) if isinstance(self.bits, int) else self.bits
        if not widths:
            raise ValueError("bits: found no width; accepted is one, or one an output")
        for width in widths:
            if not (1 <= width <= 8 or width == 16):
                raise ValueError(f"bits: found {width}; accepted is 1 to 8, or 16")
        if self.act_bits is not None:
            if not _is_int(self.act_bits) or not 4 <= self.act_bits <= 8:
                raise ValueError(
                    f"act_bits: found {self.act_bits!r}; accepted is 4 to 8, or None (weight-only)"
                )
            object.__setattr__(self, "act_bits", int(self.act_bits))
        for name in _INDICES:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _channels(name, value))
        if self.group_size is not None:
            if not _is_int(self.group_size) or self.group_size <= 0 or self.group_size % 4:
                raise ValueError(
                    f"group_size: found {self.group_size!r}; accepted is a positive multiple of 4"
                )
            object.__setattr__(self, "group_size", int(self.group_size))
        if not isinstance(self.symmetric, bool):
            raise ValueError(f"symmetric: found {self.symmetric!r}; accepted is True or False")
        self._check_grid()

    def _check_grid(self) -> None:
        if self.scale is None and self.zero_point is None:
            return
        if self.scale is None or (self.zero_point is None) != self.symmetric or self.group_size:
            raise ValueError(
                "scale, zero_point: found one without the other, or with group_size; accepted is "
                "both (scale alone when symmetric), with one scale an output"
            )
        try:
            scales = tuple(float(value) for value in self.scale)
        except (TypeError, ValueError):
            raise ValueError(f"scale: found {self.scale!r}; accepted is numbers") from None
        if not all(0.0 < value < float("inf") for value in scales):
            raise ValueError("scale: found a value that is not positive; accepted is positive ones")
        object.__setattr__(self, "scale", scales)
        if self.zero_point is not None:
            object.__setattr__(self, "zero_point", _integers("zero_point", self.zero_point))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; those that are None, except `act_bits`, left out."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.name == "act_bits":
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> LayerPlan:
        """The inverse of `to_dict`; absent fields take their defaults.

        Raises:
            ValueError: an unknown or wrong field, by name.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"layer plan: found {type(values).__name__}; accepted is an object")
        known = [field.name for field in fields(LayerPlan)]
        for key in values:
            if key not in known:
                raise ValueError(
                    f"{key}: found in a layer plan, where it is unknown (nearest: "
                    f"{nearest(str(key), known)!r}); accepted is {', '.join(known)}"
                )
        return LayerPlan(**values)


@dataclass(frozen=True)
class QuantPlan:
    """What to quantize and how: a `LayerPlan` for each layer, by the layer's name in the model.

    Layers that are not named stay as they are.
    """

    layers: Mapping[str, LayerPlan]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Mapping):
            raise ValueError(
                f"layers: found {type(self.layers).__name__}; accepted is a mapping of layer names"
            )
        for name, layer in self.layers.items():
            if not isinstance(name, str) or not isinstance(layer, LayerPlan):
                raise ValueError(
                    f"layers: found {name!r}: {type(layer).__name__}; accepted is a LayerPlan for "
                    "each layer name"
                )
        object.__setattr__(self, "layers", dict(self.layers))

    @staticmethod
    def uniform(
        model: nn.Module,
        bits: int,
        act_bits: int | None = 8,
        skip: Iterable[str] = (),
        *,
        group_size: int | None = None,
        symmetric: bool = False,
    ) -> QuantPlan:
        """The same widths for every Conv2d and Linear that the kernels can run.

        Args:
            model: the model to be converted; only looked at.
            bits, act_bits, symmetric: as in `LayerPlan`.
            skip: layers to leave as they are: names, names of modules whose layers are all left,
                or patterns with ``*`` and ``?``.
            group_size: as in `LayerPlan`; grouped convolutions get one scale an output.

        Raises:
            ValueError: an entry of `skip` that matches no module, or a wrong width.
        """
        if not isinstance(model, nn.Module):
            raise ValueError(f"model: found {type(model).__name__}; accepted is a torch.nn.Module")
        skip = (skip,) if not isinstance(skip, Iterable) or isinstance(skip, str) else tuple(skip)
        if wrong := [entry for entry in skip if not isinstance(entry, str)]:
            raise ValueError(f"skip: found {wrong[0]!r}; accepted is names of the model's modules")
        layers = quantizable_layers(model)
        for entry in skip:
            if not any(_skips(entry, name) for name in layers):
                everything = [name for name, _ in model.named_modules() if name]
                if any(fnmatch.fnmatchcase(name, entry) for name in everything):
                    continue
                raise ValueError(
                    f"skip: found {entry!r}, which matches no module (nearest: "
                    f"{nearest(entry, everything)!r}); accepted is names of the model's modules"
                )
        floats = getattr(model, "float_inputs", {})  # of a detector
        chosen = {}
        for name, module in layers.items():
            if any(_skips(entry, name) for entry in skip):
                continue
            size = None if getattr(module, "groups", 1) > 1 else group_size
            chosen[name] = LayerPlan(
                bits=bits,
                act_bits=act_bits,
                group_size=size,
                symmetric=symmetric,
                half_in=None if act_bits is None else floats.get(name),
            )
        return QuantPlan(chosen)

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as JSON text; `from_json` reads it."""
        layers = {name: layer.to_dict() for name, layer in self.layers.items()}
        return json.dumps({"version": VERSION, "layers": layers}, indent=indent)

    @staticmethod
    def from_json(text: str) -> QuantPlan:
        """A plan from `to_json`'s text.

        Raises:
            ValueError: what is no plan, with the layer and the field.
        """
        try:
            document = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"plan: found no JSON ({error}); accepted is a plan's text") from None
        if not isinstance(document, dict) or not isinstance(document.get("layers"), dict):
            raise ValueError('plan: found no "layers" object; accepted is a plan\'s text')
        found = document.get("version")
        if not _is_int(found) or found != VERSION:
            raise ValueError(f"version: found {found!r}; accepted is {VERSION}")
        layers = {}
        for name, values in document["layers"].items():
            try:
                layers[name] = LayerPlan.from_dict(values)
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from None
        return QuantPlan(layers)

    def validate(self, model: nn.Module) -> None:
        """Checks the plan against a model.

        Raises:
            ValueError: with one line for each layer that is wrong: its name, what was found, what
                is accepted, and for an unknown name the nearest one that exists.
        """
        problems = []
        modules = dict(model.named_modules())
        layers = quantizable_layers(model)
        for name, layer in self.layers.items():
            if name not in modules:
                known = nearest(name, list(layers) or list(modules))
                problems.append(f"layer {name!r}: not in the model (nearest: {known!r})")
                continue
            reason = why_not(model, name, layer)
            if reason is None:
                reason = _misfit(layer, modules[name])
            if reason is not None:
                problems.append(f"layer {name!r}: {reason}")
        if problems:
            raise ValueError("\n".join(problems))


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The Conv2d and Linear modules that the kernels can run, by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if why_not(model, name) is None}


def why_not(model: nn.Module, name: str, layer: LayerPlan | None = None) -> str | None:
    """Why a module cannot be swapped for a quantized one; None when it can."""
    module = model.get_submodule(name)
    if name == "":
        return "found the model itself; accepted is a layer inside it: wrap it in nn.Sequential"
    if not (has_forward_of(module, nn.Conv2d) or has_forward_of(module, nn.Linear)):
        kind = type(module).__name__
        return (
            f"found {kind}; accepted is Conv2d and Linear, and subclasses that keep their forward"
        )
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return (
            "found a layer of MultiheadAttention, which reads its weight without calling it; "
            "accepted is layers that are called"
        )
    if isinstance(module, nn.Conv2d):
        try:
            explicit_padding(module)
        except ValueError as error:
            return str(error)
    shape = weight_shape(model, name)
    inputs = shape[1]
    if layer is not None and layer.keep_in is not None:
        inputs = len(layer.keep_in) - len(layer.half_in or ())
    reduction = inputs * int(np.prod(shape[2:], dtype=np.int64))
    if reduction > MAX_REDUCTION:
        return (
            f"found a reduction over {reduction} weights; accepted is at most {MAX_REDUCTION}, "
            "whose integer sums fit 32 bits"
        )
    return None


def weight_shape(model: nn.Module, name: str) -> tuple[int, ...]:
    """The weight's shape of a Conv2d or Linear: (outputs, inputs of a group, ...)."""
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)


def nearest(name: str, names: Sequence[str]) -> str:
    """The most similar of `names`."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return close[0] if close else ""


def _skips(entry: str, name: str) -> bool:
    return name == entry or name.startswith(entry + ".") or fnmatch.fnmatchcase(name, entry)


def _misfit(layer: LayerPlan, module: nn.Module) -> str | None:
    """What of a layer's plan does not fit the layer."""
    groups = int(getattr(module, "groups", 1))
    outs, ins = module.weight.shape[0], module.weight.shape[1]  # type: ignore[index,union-attr]
    if not isinstance(layer.bits, int) and len(layer.bits) != outs:
        return f"bits: found {len(layer.bits)} widths; accepted is one, or {outs}"
    for name in ("scale", "zero_point"):
        value = getattr(layer, name)
        if value is not None and len(value) != outs:
            return f"{name}: found {len(value)} values; accepted is {outs}"
    if groups > 1:
        for name in ("keep_in", "half_in", "group_size"):
            if getattr(layer, name) is not None:
                return f"{name}: found with {groups} convolution groups; accepted is None"
    for name, limit in (("keep_out", outs), ("half_out", outs), ("keep_in", ins), ("half_in", ins)):
        index = getattr(layer, name)
        if index and index[-1] >= limit:
            return f"{name}: found channel {index[-1]}; accepted is 0 to {limit - 1}"
    for half, keep in (("half_out", "keep_out"), ("half_in", "keep_in")):
        kept = getattr(layer, keep)
        lost = sorted(set(getattr(layer, half) or ()) - set(kept)) if kept is not None else []
        if lost:
            return f"{half}: found channel {lost[0]}; accepted is channels of {keep}"
    for name in ("keep_out", "keep_in"):
        if getattr(layer, name) == ():
            return f"{name}: found no channel; accepted is at least one, or None for all"
    kept_in = ins if layer.keep_in is None else len(layer.keep_in)
    if layer.half_in is not None and len(layer.half_in) == kept_in:
        return "half_in: found every kept input; accepted is fewer, one must stay integer"
    return None


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _integers(name: str, value: Any) -> tuple[int, ...]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"{name}: found {value!r}; accepted is integers")
    values = tuple(value)
    for item in values:
        if not _is_int(item):
            raise ValueError(f"{name}: found {item!r}; accepted is integers")
    return tuple(int(item) for item in values)


def _channels(name: str, value: Any) -> tuple[int, ...]:
    """Channel indices, sorted."""
    index = tuple(sorted(_integers(name, value)))
    if index and index[0] < 0:
        raise ValueError(f"{name}: found {index[0]}; accepted is channel indices from 0 on")
    if len(set(index)) != len(index):
        repeated = next(a for a, b in pairwise(index) if a == b)
        raise ValueError(f"{name}: found channel {repeated} twice; accepted is each channel once")
    return index
