"""What a compressed file says of itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from defakeq.compress import summary
from defakeq_kernels import dfq
from defakeq_kernels.packed import HALF_BITS, PackedWeight


def inspected(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file's layers, sizes, and the summary that `compress` left in it.

    Raises:
        ValueError: no such file, by the field that is wrong.
        OSError: it cannot be read.
    """
    try:
        tensors, network = dfq.read(path)
    except ValueError as error:
        raise ValueError(f"model: found {path}; accepted is a .dfq file: {error}") from error
    layers = []
    for name, description in network["layers"].items():
        packed = PackedWeight.from_tensors(name, tensors, description)
        half = sum(s.count for s in packed.segments if s.bits == HALF_BITS)
        narrow = {s.bits: s.count for s in packed.segments if s.bits != HALF_BITS}
        own = sum(tensors[key].nbytes for key in packed.names(name) & tensors.keys())
        layers.append(
            {
                "name": name,
                "kind": packed.kind,
                "shape": list(packed.shape),
                "outputs": {str(bits): count for bits, count in narrow.items()},
                "restored": half,
                "kept_outputs": packed.stored_out,
                "kept_inputs": packed.in_count + (packed.half_in_count or 0),
                "act_bits": description["act"]["bits"] if _static(description) else None,
                "bytes": own,
            }
        )
    size = Path(path).stat().st_size
    weights = sum(layer["bytes"] for layer in layers)
    tables = sum(array.nbytes for array in tensors.values()) - weights
    return {
        "path": os.fspath(path),
        "bytes": size,
        "layer_bytes": weights,
        "other_tensor_bytes": tables,
        "header_bytes": size - weights - tables,
        "nodes": len(network.get("program", {}).get("nodes", [])),
        "compression": network.get(summary.KEY),
        "layers": layers,
    }


def _static(description: dict[str, Any]) -> bool:
    return bool(description["act"]["mode"] != "none")


def show(found: dict[str, Any], console: Any) -> None:
    """Prints it as a table."""
    from rich.table import Table

    table = Table()
    for column in ("layer", "shape", "outputs x bits", "restored", "inputs", "input bits", "bytes"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in found["layers"]:
        shape = "x".join(str(int(n)) for n in np.asarray(layer["shape"]))
        outputs = ", ".join(f"{count} x {bits}" for bits, count in layer["outputs"].items())
        table.add_row(
            layer["name"],
            shape,
            outputs,
            str(layer["restored"]),
            str(layer["kept_inputs"]),
            "float" if layer["act_bits"] is None else str(layer["act_bits"]),
            str(layer["bytes"]),
        )
    console.print(table)
    console.print(
        f"{found['path']}: {found['bytes']} bytes: layers {found['layer_bytes']}, other tensors "
        f"{found['other_tensor_bytes']}, header {found['header_bytes']}; {found['nodes']} nodes"
    )
    kept = found["compression"]
    if kept is not None:
        part = found["bytes"] / kept["checkpoint"]
        console.print(
            f"{part:.2%} of the float32 checkpoint ({kept['checkpoint']} bytes), asked was "
            f"{kept['asked']:.2%}; {kept['pruned']} outputs pruned; "
            f"hurt most: {', '.join(kept['hurt'])}"
        )
        for name, value in kept["calibration"].items():
            console.print(f"  on the calibration images: {name.replace('_', ' ')} {value}")
