"""How far a program's nodes may be from exact arithmetic: intervals of what each may store.

The runtime's integer sums are exact; what it rounds is stated in `defakeq_kernels.reference` and
`reference_program`: each float32 step once, sums in a fixed order, exp and erf by polynomials. A
node's error is bounded from its operands by the standard model of rounding (N. J. Higham, "Accuracy
and Stability of Numerical Algorithms", 2002, chapter 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from defakeq.lower.twin import Twin, dequantized, quantized
from defakeq_kernels.torch_functions import UNARY

ULP = 2.0**-24  # of one rounding to float32
EXP = 4e-7  # relative error of exp, absolute error of erf and what is made of them
_LANES = 16


class Interval(NamedTuple):
    """The least and the largest number that each element may hold."""

    low: Tensor
    high: Tensor


class Bounds(Twin):
    """The intervals in which a node's stored results must lie, given its exact operands."""

    def stored(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Interval:
        """The interval of every element of a node's result, as stored."""
        value = self.program["values"][node["out"][0]]
        shape = value["shape"]
        special = getattr(self, f"_stored_{node['op']}", None)
        if special is not None:
            low, high = special(node, ins, value)
            return Interval(low.reshape(shape), high.reshape(shape))
        y = self.node(node, ins)
        error = getattr(self, f"_error_{node['op']}")(node, ins, y)
        return self._rounded(y.reshape(shape), error.reshape(shape), value)

    def entered(self, number: int, x: Tensor) -> Interval:
        """The interval of an input of the program."""
        return self._rounded(x, torch.zeros_like(x), self.program["values"][number])

    @staticmethod
    def _rounded(y: Tensor, error: Tensor, value: Mapping[str, Any]) -> Interval:
        slack = error + 4 * ULP * y.abs()
        return Interval(Twin.store(value, y - slack), Twin.store(value, y + slack))

    # layers

    def _product_error(self, name: str, x: Tensor, half: Tensor | None) -> Tensor:
        """What the sums, scales and bias of a layer may be off by."""
        packed = self.weight(name)[2]
        steps = 8.0
        if packed.group_size:
            steps += -(-packed.in_count // packed.group_size) * packed.taps
        if packed.half_in_index is not None:
            steps += packed.taps * packed.half_in_count
        ordered = self.layers[name]["act"]["mode"] == "none"
        if ordered or any(segment.bits == 16 for segment in packed.segments):
            steps += packed.reduction
        magnitude = self.magnitude(name)._product(
            name, x.abs(), None if half is None else half.abs()
        )
        return magnitude * (steps * ULP)

    def magnitude(self, name: str) -> Twin:
        """A twin whose layer has absolute weights."""
        weight, bias, packed = self.weight(name)
        other = Twin(self.tensors, {"layers": self.layers, "program": self.program})
        other._weights[name] = (weight.abs(), None if bias is None else bias.abs(), packed)
        return other

    def _stored_layer(
        self, node: Mapping[str, Any], ins: Sequence[Tensor | None], value: Mapping[str, Any]
    ) -> Interval:
        x, residual, half = (*ins, None, None)[:3]
        assert x is not None
        name = node["layer"]
        y = self.summed(name, x, residual, half)
        error = self._product_error(name, x, half)
        if residual is not None:
            error = error + 4 * ULP * residual.abs().reshape(error.shape)
        return self._finished(name, y, error, node.get("table"), value)

    _stored_conv2d = _stored_layer
    _stored_linear = _stored_layer

    def _finished(
        self, name: str, y: Tensor, error: Tensor, table: str | None, value: Mapping[str, Any]
    ) -> Interval:
        """After the activation or the table of a layer."""
        layer = self.layers[name]
        absent = torch.ones(y.shape[-1], dtype=torch.bool)
        absent[torch.from_numpy(self.weight(name)[2].out_index).long()] = False
        if layer["activation"] != "none":
            error = 1.2 * error + EXP * (1 + y.abs())
            y = UNARY[layer["activation"]](y)
        y[..., absent], error[..., absent] = 0.0, 0.0
        if table is None:
            return self._rounded(y, error, value)
        low, high = self._rounded(y, error, layer["out"] | {"dtype": "int8"})
        ends = (quantized(low, layer["out"]), quantized(high, layer["out"]))
        entries = torch.from_numpy(np.asarray(self.tensors[table])).long()
        least = most = entries[ends[0] + 128]
        for step in range(1, int((ends[1] - ends[0]).max()) + 1):
            other = entries[torch.minimum(ends[0] + step, ends[1]) + 128]
            least, most = torch.minimum(least, other), torch.maximum(most, other)
        return Interval(dequantized(least, value), dequantized(most, value))

    def _stored_squeeze_excite(
        self, node: Mapping[str, Any], ins: Sequence[Tensor | None], value: Mapping[str, Any]
    ) -> Interval:
        x = ins[0]
        assert x is not None
        pool, hidden, gate = ({"dtype": "int8", **node[k]} for k in ("pool", "hidden", "gate"))
        mean = x.mean((0, 1))
        held = self._rounded(mean, 4 * ULP * mean.abs(), pool)
        for i, stage in ((1, hidden), (2, gate)):
            name = node[f"fc{i}"]
            middle, width = (held.low + held.high) / 2, (held.high - held.low) / 2
            y = self._product(name, middle, None)
            spread = self.magnitude(name)._product(name, width, None)
            bias = self.weight(name)[1]
            if bias is not None:
                spread = spread - bias.abs()
            error = spread + self._product_error(name, middle.abs() + width, None)
            held = self._finished(name, y, error, node.get(f"table{i}"), stage)
        ends = torch.stack([x * held.low, x * held.high])
        low = self._rounded(ends.amin(0), torch.zeros(()), value).low
        return Interval(low, self._rounded(ends.amax(0), torch.zeros(()), value).high)

    def _stored_lookup(
        self, node: Mapping[str, Any], ins: Sequence[Tensor | None], value: Mapping[str, Any]
    ) -> Interval:
        y = self.node(node, ins)
        return Interval(y, y)

    # elementwise

    def _error_convert(self, node: Any, ins: Sequence[Any], y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    _error_copy = _error_convert

    def _error_unary(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        x, function = ins[0], UNARY[node["fn"]]
        step = 2 * ULP
        spread = torch.maximum(
            (function(x * (1 + step)) - y).abs(), (function(x * (1 - step)) - y).abs()
        )
        return spread.nan_to_num(0.0) + EXP * (1 + y.abs()) + EXP * x.abs()

    def _error_binary(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        a, b = ins
        error = 4 * ULP * (a.abs() + b.abs())
        if node["fn"] in ("mul", "div"):
            error = 4 * ULP * (a * b if node["fn"] == "mul" else a / b).abs()
        if node.get("activation", "none") == "none":
            return error.expand(y.shape)
        return (1.2 * error + EXP * (1 + a.abs() + b.abs())).expand(y.shape)

    # rows

    def _error_layer_norm(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        x = ins[0].reshape(-1, ins[0].shape[-1])
        width = x.shape[-1]
        count = int(node.get("count", width))
        steps = -(-width // _LANES) + 10
        mean = x.sum(-1, keepdim=True) / count
        d = x - mean
        e_mean = steps * ULP * x.abs().sum(-1, keepdim=True) / count
        e_d = e_mean + 4 * ULP * (x.abs() + mean.abs())
        variance = ((d * d).sum(-1, keepdim=True) + (count - width) * mean * mean) / count
        total = variance + float(node["eps"])
        e_variance = (
            steps * ULP * total
            + 2
            * ((d.abs() * e_d).sum(-1, keepdim=True) + (count - width) * mean.abs() * e_mean)
            / count
        )
        inverse = total.rsqrt()
        error = e_d * inverse + (d * inverse).abs() * (e_variance / total + 6 * ULP)
        gamma, beta = torch.ones(()), torch.zeros(())
        if node.get("gamma"):
            gamma, beta = self._tensor(node["gamma"]), self._tensor(node["beta"])
        error = error * gamma.abs() + 2 * ULP * ((d * inverse * gamma).abs() + beta.abs())
        if node.get("rows"):
            rows = self._tensor(node["rows"]).long()
            error = error[rows.clamp(min=0)]
        return error

    def _error_softmax(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        x = ins[0]
        top = x.amax(-1, keepdim=True)
        steps = -(-x.shape[-1] // _LANES) + 12
        shift = 4 * ULP * (x.abs() + top.abs())
        most = shift.amax(-1, keepdim=True)
        return y * (shift + most + 2 * EXP + steps * ULP) + 1e-37

    def _error_reduce(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        x = ins[0]
        steps = -(-x.shape[-1] // _LANES) + 10
        if node["fn"] == "max":
            return 2 * ULP * y.abs()
        total = y.abs() if node["fn"] == "l2" else x.abs().sum(-1)
        return steps * ULP * (total / x.shape[-1] if node["fn"] == "mean" else total)

    def _error_mean_rows(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        x = ins[0].reshape(-1, ins[0].shape[-1])
        return (x.shape[0] + 4) * ULP * x.abs().mean(0)

    def _error_pool2d(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        if node["mode"] == "max":
            return torch.zeros_like(y)
        steps = int(np.prod(node["kernel"])) + 4
        return steps * ULP * self._pool2d(node, [ins[0].abs()])

    def _error_adaptive_avg_pool2d(
        self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor
    ) -> Tensor:
        steps = ins[0].shape[0] * ins[0].shape[1] + 4
        return steps * ULP * self._adaptive_avg_pool2d(node, [ins[0].abs()])

    def _error_interpolate(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        if node["mode"] == "nearest":
            return torch.zeros_like(y)
        return 16 * ULP * self._interpolate(node, [ins[0].abs()])

    # products

    def _error_matmul(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        return 4 * ULP * y.abs()

    def _error_attention(self, node: Mapping[str, Any], ins: Sequence[Any], y: Tensor) -> Tensor:
        parts = self.attention_parts(node, ins)
        scores, v = parts.scores, parts.v
        shift = 8 * ULP * (parts.magnitude + parts.magnitude.amax(-1, keepdim=True))
        e = torch.exp(scores - scores.amax(-1, keepdim=True))
        off = torch.expm1(shift) + EXP
        p = torch.round(e * 255)
        uncertain = torch.round(255 * e * (1 + off)) - torch.round(255 * e * (1 - off))
        total = p.sum(-1, keepdim=True)
        result = (p @ v) / total
        error = uncertain @ v.abs() + uncertain.sum(-1, keepdim=True) * result.abs()
        error = error / (total - uncertain.sum(-1, keepdim=True)).clamp(min=1)
        error = error + 8 * ULP * (p @ v.abs()) / total
        return self.attention_rows(node, error)
