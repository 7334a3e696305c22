"""What the JSON of a network leaves out in a file, because a reader knows it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

LAYER: dict[str, Any] = {
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "groups": 1,
    "group_size": 0,
    "activation": "none",
}
BITS = 8  # of a quantization


def left_out(network: dict[str, Any]) -> dict[str, Any]:
    """A copy of a network without the fields that hold their default.

    Args:
        network: as parsed from JSON, its layers checked.
    """
    result = copy.deepcopy(network)
    for layer in result["layers"].values():
        for key, value in LAYER.items():
            if layer.get(key) == value:
                del layer[key]
    for quantization in _quantizations(result):
        if quantization.get("bits") == BITS and isinstance(quantization["bits"], int):
            del quantization["bits"]
    return result


def fill(network: dict[str, Any]) -> None:
    """The inverse of `left_out`, in place.

    Args:
        network: as parsed from JSON, with layers that are objects; nothing else is known of it.
    """
    for layer in network["layers"].values():
        for key, value in LAYER.items():
            layer.setdefault(key, copy.copy(value))
    for quantization in _quantizations(network):
        quantization.setdefault("bits", BITS)


def _quantizations(network: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects of a network that have a scale and, left out or not, bits."""
    program = network.get("program")
    program = program if isinstance(program, dict) else {}
    values, nodes = program.get("values"), program.get("nodes")
    found = [layer.get(key) for layer in network["layers"].values() for key in ("act", "out")]
    found += values if isinstance(values, list) else []
    for node in nodes if isinstance(nodes, list) else []:
        if isinstance(node, dict):
            found += [node.get(key) for key in ("pool", "hidden", "gate")]
    for entry in found:
        if isinstance(entry, dict) and "scale" in entry:
            yield entry
