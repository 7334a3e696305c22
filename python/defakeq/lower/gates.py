"""Squeeze-excite blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from defakeq.lower.capture import Captured, Node, args_of
from defakeq.lower.draft import Ref, Rows
from defakeq.lower.groups import (
    Gate,
    Group,
)
from defakeq.lower.layers import LayerSpec, factor_of, folded
from defakeq.lower.products import Products, pre_of

aten = torch.ops.aten


class Gates(Products):
    """Emits squeeze-excite blocks as one node each."""

    def _gate(self, gate: Gate) -> Ref:
        ref = self.int8(self.ref(gate.x))
        index = ref.index[0].permute(1, 2, 0)
        present = (index.reshape(-1, index.shape[-1]) >= 0).any(0)
        rows = self.draft.rows(ref, index, gate.out.name)
        if np.count_nonzero(rows.columns >= 0) != rows.width:
            kept = torch.nonzero(present).flatten()
            part = self.dense(ref, index[:, :, kept], gate.out.name)
            columns = np.full(len(present), -1, np.int64)
            columns[kept.numpy()] = np.arange(len(kept))
            rows = Rows(part.value, part.rows, part.width, columns)
        height, width = int(index.shape[0]), int(index.shape[1])
        layout = np.empty(rows.width, np.int64)
        inside = np.flatnonzero(rows.columns >= 0)
        layout[rows.columns[inside]] = inside
        pool = self.key(gate.pool, "pool")
        attributes: dict[str, Any] = {"pool": pool}
        hidden_rows = Rows(-1, 1, rows.width, rows.columns)
        attributes["hidden"], stored = self._gate_layer(gate.fc1, hidden_rows, None, 1, attributes)
        columns = np.full(gate_outs(gate.fc1, self.captured), -1, np.int64)
        columns[stored] = np.arange(len(stored))
        second = Rows(-1, 1, len(stored), columns)
        attributes["gate"], _ = self._gate_layer(gate.fc2, second, layout, 2, attributes)
        quant = self.key(gate.out)
        out = self.draft.value("int8", (height, width, rows.width), quant)
        x = self.shaped(rows.value, (height, width, rows.width))
        name = self.layer_name(gate.fc1.layer).rpartition(".")[0] or gate.out.name
        self.draft.step("squeeze_excite", name, [x], out, **attributes)
        result = torch.full((height, width, len(present)), -1, dtype=torch.int32)
        own = torch.arange(height * width * rows.width, dtype=torch.int32)
        result[..., torch.from_numpy(layout)] = own.reshape(height, width, rows.width)
        return Ref((out,), result.permute(2, 0, 1)[None], gate.out)

    def _gate_layer(
        self, group: Group, rows: Rows, layout: Any, which: int, attributes: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Adds one of the two layers; its quantization's key, and the channel of each output."""
        node, layer = group.layer, self.plan_of(group.layer)
        constants = self.captured.constants
        bias_node = args_of(node)[2] if len(args_of(node)) > 2 else None
        bias = constants[bias_node] if isinstance(bias_node, Node) else None
        weight, offset = folded(constants[args_of(node)[1]], bias, group.affine)
        weight = weight.reshape(len(weight), -1)
        name = self.layer_name(node)
        outs = gate_outs(group, self.captured)
        ins = weight.size // outs
        spec = LayerSpec(
            self.draft.unique(name) if name in self.layers else name,
            "linear",
            weight,
            offset.astype(np.float32),
            np.arange(outs),
            np.arange(ins),
            layer,
            factor=factor_of(group.affine, outs),
        )
        kept = self._kept(spec)
        function = group.function
        assert function is not None
        if layout is None:
            layout = kept if function.keeps_zero else np.arange(outs)
        spec.channels = np.where(np.isin(layout, kept), layout, -1)
        weight = np.where(spec.channels[:, None] >= 0, weight[layout], 0).astype(np.float32)
        assert spec.bias is not None
        spec.bias = np.where(spec.channels >= 0, spec.bias[layout], 0).astype(np.float32)
        self._set_columns(spec, weight, rows)
        self.layers[spec.name] = spec
        attributes[f"fc{which}"] = spec.name
        quant = self.key(group.out)
        if function.name in ("relu", "relu6"):
            spec.activation = function.name
        else:
            pre = self.key(pre_of(group), "pre")
            self.functions[pre] = (quant, function.apply)
            table = f"{spec.name}.table"
            self.tables[table] = (pre, quant, function.apply)
            attributes[f"table{which}"], attributes[f"fn{which}"] = table, function.label
            attributes[f"pre{which}"] = pre
        return quant, layout


def gate_outs(group: Group, captured: Captured) -> int:
    """The model's output channels of a squeeze-excite layer."""
    weight = captured.constants[args_of(group.layer)[1]]
    return int(weight.shape[0])
