"""From a draft to a file's tensors and network: calibration, tables and packed weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defakeq.calibrate import RangeObserver
from defakeq.lower.capture import Captured, Node
from defakeq.lower.emit import Emitter
from defakeq_kernels import dfq
from defakeq_kernels.quantize import ActQuant, int8_out

PROGRAM_VERSION = 1
_MOST = 1 << 18


def calibrate(
    captured: Captured,
    emitters: Mapping[int, Emitter],
    batches: Iterable[Sequence[Tensor]],
    method: str,
) -> dict[int, dict[Any, ActQuant]]:
    """The quantization of every key of every emitter, from the values of the float graph."""
    of_node: dict[Node, list[RangeObserver]] = {}
    observers: dict[int, dict[Any, RangeObserver]] = {}
    for number, emitter in emitters.items():
        observers[number] = {key: RangeObserver() for key in emitter.observed}
        for key, nodes in emitter.observed.items():
            for node in nodes:
                of_node.setdefault(node, []).append(observers[number][key])
    count = 0

    def visit(node: Node, value: Any) -> None:
        for observer in of_node.get(node, ()):
            try:
                observer.update(_sample(value))
            except ValueError as error:
                raise ValueError(f"calibration: node {node.name!r}: {error}") from error

    for batch in batches:
        for i in range(batch[0].shape[0]):
            captured.run([x[i : i + 1] for x in batch], visit)
            count += 1
    if count == 0 and of_node:
        raise ValueError("calibration: found no image; accepted is at least one")
    return {n: _choose(emitter, observers[n], method) for n, emitter in emitters.items()}


def _sample(value: Tensor) -> Tensor:
    """At most a few hundred thousand of the values, with the extremes."""
    flat = value.detach().flatten()
    if flat.numel() <= _MOST:
        return flat
    step = -(-flat.numel() // _MOST) | 1
    low, high = torch.aminmax(flat)
    return torch.cat([flat[::step], low[None], high[None]])


def _choose(
    emitter: Emitter, observers: dict[Any, RangeObserver], method: str
) -> dict[Any, ActQuant]:
    quants = {}
    for key, observer in observers.items():
        bits = emitter.bits.get(key, 8)
        if key not in emitter.functions:
            quants[key] = observer.quantization(bits, method)
    for key, (_, function) in emitter.functions.items():
        quants[key] = observers[key].quantization_before(function)
    for name, (pre, _, function) in emitter.tables.items():
        emitter.table_ends[name] = observers[pre].results_at_ends(function, quants[pre])
    return quants


def table_of(
    pre: ActQuant,
    out: ActQuant,
    function: Callable[[Tensor], Tensor],
    known: Mapping[int, float] | None = None,
) -> NDArray[np.int8]:
    """int8 [256]: the output of each input, at its index + 128; `known` has outputs by input."""
    q = np.arange(-128, 128).astype(np.int8)
    levels = (q.astype(np.float64) - pre.zero_point) * float(np.float32(pre.scale))
    y = function(torch.from_numpy(levels)).numpy()
    for code, output in (known or {}).items():
        y[code + 128] = output
    return out.quantize(np.nan_to_num(y).astype(np.float32))


def assemble(emitter: Emitter, quants: dict[Any, ActQuant]) -> tuple[dfq.Tensors, dfq.Network]:
    """The file's tensors and network."""
    draft = emitter.draft
    tensors: dfq.Tensors = dict(draft.tensors)
    network: dfq.Network = {"layers": {}}
    for name, (pre, out, function) in emitter.tables.items():
        tensors[name] = table_of(quants[pre], quants[out], function, emitter.table_ends.get(name))
    nodes = []
    for step in draft.steps:
        attributes = dict(step.attributes)
        if step.op in ("conv2d", "linear"):
            _add_layer(emitter, quants, step, attributes, tensors, network)
        elif step.op == "squeeze_excite":
            _add_gate(emitter, quants, step, attributes, tensors, network)
        elif step.op in ("attention", "matmul"):
            q, k, scale = attributes["alpha"]
            scales = (float(np.float32(quants[key].scale)) for key in (q, k))
            attributes["alpha"] = float(np.float32(math.prod(scales) * scale))
        nodes.append(
            {"op": step.op, "name": step.name, "in": step.ins, "out": step.outs, **attributes}
        )
    values = []
    for value in draft.values:
        entry: dict[str, Any] = {"dtype": value.dtype, "shape": list(value.shape)}
        if value.dtype == "int8":
            entry.update(_described(quants[value.quant]))
        if value.tensor is not None:
            entry["tensor"] = value.tensor
        if value.index is not None:
            entry["index"] = value.index
        if value.base is not None:
            entry["base"], entry["offset"] = value.base, value.offset
        values.append(entry)
    network["program"] = {
        "version": PROGRAM_VERSION,
        "values": values,
        "inputs": emitter.inputs,
        "outputs": emitter.outputs,
        "nodes": nodes,
    }
    return tensors, network


def _described(quant: ActQuant) -> dict[str, Any]:
    return {"scale": quant.scale, "zero_point": quant.zero_point, "bits": quant.bits}


def _add_layer(
    emitter: Emitter,
    quants: dict[Any, ActQuant],
    step: Any,
    attributes: dict[str, Any],
    tensors: dfq.Tensors,
    network: dfq.Network,
) -> None:
    spec = emitter.layers[attributes["layer"]]
    x = emitter.draft.values[step.ins[0]]
    out = emitter.draft.values[step.outs[0]]
    act = quants[x.quant].describe() if x.dtype == "int8" else None
    pre = attributes.pop("pre", None)
    described = None
    if out.dtype == "int8":
        described = int8_out(quants[pre if pre is not None else out.quant])
    dfq.add_layer(tensors, network, spec.name, spec.pack(), act, spec.activation, described)


def _add_gate(
    emitter: Emitter,
    quants: dict[Any, ActQuant],
    step: Any,
    attributes: dict[str, Any],
    tensors: dfq.Tensors,
    network: dfq.Network,
) -> None:
    keys = [attributes[name] for name in ("pool", "hidden", "gate")]
    for which in (1, 2):
        spec = emitter.layers[attributes[f"fc{which}"]]
        pre = attributes.pop(f"pre{which}", keys[which])
        act = quants[keys[which - 1]].describe()
        dfq.add_layer(
            tensors, network, spec.name, spec.pack(), act, spec.activation, int8_out(quants[pre])
        )
    for name in ("pool", "hidden", "gate"):
        attributes[name] = _described(quants[attributes[name]])
