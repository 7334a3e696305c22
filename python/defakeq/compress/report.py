"""What a compression did: as JSON and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from defakeq.compress.allocate import Option
from defakeq.compress.calibration import Calibration
from defakeq.compress.graph import Graph, first_output, margin
from defakeq.compress.quantized import State
from defakeq.compress.reconstruct import BlockResult
from defakeq.compress.statistics import LayerStatistics
from defakeq.metrics import auc

if TYPE_CHECKING:
    from defakeq.compress.pipeline import Compressed

_HURT = 5


def made(
    graph: Graph,
    statistics: Mapping[str, LayerStatistics],
    options: Mapping[str, Option],
    states: Mapping[str, State],
    blocks: list[BlockResult],
    data: Calibration,
    found: Compressed,
    source: nn.Module,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The report of a compression, of JSON types, but for the sizes of the files."""
    layers = []
    for name, layer in graph.layers.items():
        state = states[name]
        outs, ins = layer.weight.shape[:2]
        error = state.grid.weights(state.codes) - state.weight
        cost = (statistics[name].sensitivity.flatten(1).to(error.device) * error.square()).sum()
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(layer.weight.shape),
            "bits": state.grid.bits,
            "symmetric": state.symmetric,
            "act_bits": state.act_bits,
            "outputs": outs,
            "kept_outputs": outs if state.keep_out is None else int(state.keep_out.sum()),
            "inputs": ins,
            "kept_inputs": ins if state.keep_in is None else int(state.keep_in.sum()),
            "restored": 0 if state.half is None else int(state.half.sum()),
            "score": statistics[name].score,
            "expected": options[name].distortion,
            "left": float(cost),
        }
        separation = statistics[name].separation
        if separation is not None:
            entry["separation"] = float(separation.max())
        fisher = statistics[name].fisher
        if fisher is not None:
            entry["fisher"] = float(fisher.mean())
        layers.append(entry)
    total = sum(entry["left"] for entry in layers) or 1.0
    for entry in layers:
        entry["hurt"] = entry["left"] / total
    worst = sorted(layers, key=lambda entry: -entry["hurt"])[:_HURT]
    weights = sum(layer.weight.numel() for layer in graph.layers.values())
    stored = sum(
        e["bits"]
        * e["kept_outputs"]
        * e["kept_inputs"]
        * graph.layers[e["name"]].weight[0, 0].numel()
        for e in layers
    )
    document: dict[str, Any] = {
        **facts,
        "bits_a_weight": stored / weights,
        "layers": layers,
        "blocks": [{"name": block.name, "errors": block.errors} for block in blocks],
        "hurt_most": [entry["name"] for entry in worst],
    }
    document["calibration"] = _agreement(data, found, source)
    return document


def _agreement(data: Calibration, found: Compressed, source: nn.Module) -> dict[str, Any]:
    """The compressed models beside the float one on the calibration images."""
    source = source.eval()
    before = _margins(source, data.images)
    result: dict[str, Any] = {"images": len(data.images)}
    models: dict[str, nn.Module] = {"model": found.model}
    if found.integer is not found.model:
        models["integer"] = found.integer
    if data.labels is not None:
        result["auc_float"] = _auc(data.labels, before)
    for name, model in models.items():
        after = _margins(model, data.images)
        spread = float(before.var()) or 1.0
        result[f"margin_error_{name}"] = float((after - before).square().mean()) / spread
        if data.labels is not None:
            result[f"auc_{name}"] = _auc(data.labels, after)
    return result


def _margins(model: nn.Module, images: Tensor) -> Tensor:
    parts = []
    with torch.no_grad():
        for batch in images.split(16):
            parts.append(margin(first_output(model(batch))).cpu())
    return torch.cat(parts)


def _auc(labels: Tensor, margins: Tensor) -> float:
    return auc(np.asarray(labels), torch.sigmoid(margins.double()).numpy())


def to_html(document: Mapping[str, Any]) -> str:
    """The report as one HTML page, without other files."""
    from defakeq.evaluate.html import table, whole

    facts = [
        ("file", f"{document['size']:,} bytes, {document['part']:.2%} of the float32 checkpoint"),
        ("integer-only", f"{document['integer_size']:,} bytes"),
        ("asked", f"{document['asked']:.2%}, {document['budget']:,} bytes"),
        ("bits a weight", f"{document['bits_a_weight']:.2f}"),
        (
            "microseconds a picture, one thread",
            ", ".join(f"{v:.0f} {k}" for k, v in document["latency"].items()),
        ),
        ("hurt most", ", ".join(document["hurt_most"])),
        ("seconds", ", ".join(f"{k} {v}" for k, v in document["seconds"].items())),
    ]
    facts += [(k.replace("_", " "), f"{v:.4g}") for k, v in document["calibration"].items()]
    rows = [
        [
            escape(e["name"]),
            "×".join(map(str, e["shape"])),
            f"{_bar(e['bits'])} {e['bits']}" + (" sym." if e["symmetric"] else ""),
            str(e["act_bits"]),
            f"{e['kept_outputs']} of {e['outputs']}",
            f"{e['kept_inputs']} of {e['inputs']}",
            str(e["restored"]),
            f"{e['hurt']:.1%}",
        ]
        for e in document["layers"]
    ]
    steps: list[str] = []
    for block in document["blocks"]:
        steps += [name for name in block["errors"] if name not in steps]
    errors = [
        [escape(b["name"]), *(f"{b['errors'][s]:.2e}" if s in b["errors"] else "" for s in steps)]
        for b in document["blocks"]
    ]
    head = ("layer", "shape", "bits", "input bits", "outputs", "inputs", "restored", "hurt")
    body = (
        table(("", ""), [[escape(k), escape(v)] for k, v in facts])
        + "<h2>Layers</h2>"
        + table(head, rows)
        + "<h2>Blocks</h2><p>Squared error relative to the float output, as each step left it.</p>"
        + table(("block", *steps), errors)
    )
    return whole("compression", "Compression", body)


def _bar(bits: int) -> str:
    return (
        f'<svg width="{8 * bits}" height="9"><rect width="{8 * bits}" height="9" '
        'fill="currentColor" opacity="0.5"/></svg>'
    )


def show(document: Mapping[str, Any], console: Any) -> None:
    """Prints the report's head and what became of each layer."""
    from rich.table import Table

    table = Table()
    for column in ("layer", "bits", "outputs", "inputs", "restored", "hurt"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for e in document["layers"]:
        outputs = f"{e['kept_outputs']}/{e['outputs']}"
        inputs = f"{e['kept_inputs']}/{e['inputs']}"
        hurt = f"{e['hurt']:.1%}"
        table.add_row(e["name"], str(e["bits"]), outputs, inputs, str(e["restored"]), hurt)
    console.print(table)
    console.print(
        f"{document['part']:.2%} of the float32 checkpoint, {document['bits_a_weight']:.2f} bits a "
        f"weight; hurt most: {', '.join(document['hurt_most'][:3])}"
    )
    for name, value in document["calibration"].items():
        console.print(f"  on the calibration images: {name.replace('_', ' ')} {value:.4g}")
