"""The fake-quantized torch model of a program: float math, rounded where int8 values are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from defakeq_kernels import dfq
from defakeq_kernels.packed import PackedWeight
from defakeq_kernels.torch_functions import BINARY, UNARY


class AttentionParts(NamedTuple):
    """Logits [batches, heads, queries, keys], the sums of their absolute terms, and values."""

    scores: Tensor
    magnitude: Tensor
    v: Tensor


class Twin:
    """Runs a program's nodes in float64 on dequantized weights.

    int8 values are held as the real numbers that they stand for.

    Args:
        tensors, network: of a ``.dfq`` file with a program.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]], network: Mapping[str, Any]) -> None:
        self.tensors = tensors
        self.layers: Mapping[str, Any] = network["layers"]
        self.program: Mapping[str, Any] = network["program"]
        self._values: Sequence[Mapping[str, Any]] = self.program["values"]
        self._weights: dict[str, tuple[Tensor, Tensor | None, PackedWeight]] = {}

    @staticmethod
    def read(path: Any) -> Twin:
        """The twin of a file."""
        return Twin(*dfq.read(path))

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs for inputs with a batch of any size."""
        images = [self.image([x[i] for x in inputs]) for i in range(inputs[0].shape[0])]
        return [torch.stack([image[k] for image in images]) for k in range(len(images[0]))]

    def image(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for one image, inputs without a batch."""
        held = self.values(inputs)
        outputs = []
        for port in self.program["outputs"]:
            y = held[port["value"]].float()
            outputs.append(y.permute(2, 0, 1) if port["layout"] == "nchw" else y)
        return outputs

    def values(self, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """Every value of the program for one image, as real numbers in float64."""
        held: dict[int, Tensor] = {}
        for port, x in zip(self.program["inputs"], inputs, strict=True):
            x = x.double()
            x = x.permute(1, 2, 0) if port["layout"] == "nchw" else x
            self.put(held, port["value"], x)
        for node in self.program["nodes"]:
            result = self.node(node, [self.get(held, v) for v in node["in"]])
            self.put(held, node["out"][0], result)
        return held

    def get(self, held: dict[int, Tensor], number: int) -> Tensor | None:
        """A value, read through its base where it is a view; None for an absent operand."""
        if number < 0:
            return None
        value = self._values[number]
        if number not in held and "tensor" in value:
            array = dfq.constant(self.tensors, value)
            held[number] = torch.from_numpy(np.asarray(array)).double()
        if "base" in value:
            count = int(np.prod(value["shape"]))
            flat = held[value["base"]].reshape(-1)
            return flat[value["offset"] : value["offset"] + count].reshape(value["shape"])
        return held[number]

    def put(self, held: dict[int, Tensor], number: int, result: Tensor) -> None:
        """Stores a value: rounded to its quantization when it has one."""
        value = self._values[number]
        result = self.store(value, result).reshape(value["shape"])
        if "base" not in value:
            held[number] = result
            return
        base = value["base"]
        if base not in held:
            held[base] = torch.zeros(self._values[base]["shape"], dtype=torch.float64)
        flat = held[base].view(-1)
        flat[value["offset"] : value["offset"] + result.numel()] = result.reshape(-1)

    @staticmethod
    def probabilities(e: Tensor) -> Tensor:
        """The factors of attention's values, at most 1 before, in whole 255ths after."""
        return torch.round(e * 255)

    @staticmethod
    def store(value: Mapping[str, Any], y: Tensor) -> Tensor:
        """The nearest number that a value can hold."""
        if value["dtype"] == "float32":
            return y
        return dequantized(quantized(y, value), value)

    # nodes

    def node(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        """What a node computes, before it is stored.

        Raises:
            ValueError: an unknown kind of node.
        """
        method = getattr(self, f"_{node['op']}", None)
        if method is None:
            raise ValueError(f"op: found {node['op']!r}; accepted is a kind of program node")
        result: Tensor = method(node, ins)
        return result

    def weight(self, name: str) -> tuple[Tensor, Tensor | None, PackedWeight]:
        """Dequantized weight and bias of a layer."""
        if name not in self._weights:
            packed = PackedWeight.from_tensors(name, self.tensors, self.layers[name])
            bias = None
            if packed.bias is not None:
                bias = torch.zeros(packed.shape[0], dtype=torch.float64)
                stored = torch.from_numpy(packed.out_index).long()
                bias[stored] = torch.from_numpy(packed.bias).double()
            dense = torch.from_numpy(packed.dequantize()).double()
            self._weights[name] = (dense, bias, packed)
        return self._weights[name]

    def _product(self, name: str, x: Tensor, half: Tensor | None) -> Tensor:
        weight, bias, packed = self.weight(name)
        if half is not None:
            assert packed.half_in_index is not None
            wide = x.clone()
            wide[..., torch.from_numpy(packed.half_in_index).long()] = half
            x = wide
        if packed.kind == "linear":
            return F.linear(x, weight, bias)
        y = F.conv2d(
            x.permute(2, 0, 1)[None],
            weight,
            bias,
            packed.stride,
            packed.padding,
            packed.dilation,
            packed.groups,
        )
        return y[0].permute(1, 2, 0)

    def _layer(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        x, residual, half = (*ins, None, None)[:3]
        assert x is not None
        name = node["layer"]
        y = self.summed(name, x, residual, half)
        return self._epilogue(name, y, node.get("table"), self._values[node["out"][0]])

    _conv2d = _layer
    _linear = _layer

    def summed(self, name: str, x: Tensor, residual: Tensor | None, half: Tensor | None) -> Tensor:
        """A layer's products, bias and residual."""
        y = self._product(name, x, half)
        if residual is not None:
            stored = torch.from_numpy(self.weight(name)[2].out_index).long()
            y[..., stored] += residual.reshape(y.shape)[..., stored]
        return y

    def _epilogue(self, name: str, y: Tensor, table: str | None, out: Mapping[str, Any]) -> Tensor:
        layer = self.layers[name]
        if layer["activation"] != "none":
            y = UNARY[layer["activation"]](y)
        if table is None:
            return y
        return self.looked_up(y, layer["out"], table, out)

    def looked_up(
        self, y: Tensor, read: Mapping[str, Any], table: str, out: Mapping[str, Any]
    ) -> Tensor:
        """The table's entries for values that are rounded to `read`."""
        q = quantized(y, read)
        entries = torch.from_numpy(np.asarray(self.tensors[table])).long()
        return dequantized(entries[q + 128], out)

    def _squeeze_excite(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        x = ins[0]
        assert x is not None
        stages = [{"dtype": "int8", **node[key]} for key in ("pool", "hidden", "gate")]
        y = self.store(stages[0], x.mean((0, 1)))
        for i in (1, 2):
            y = self._product(node[f"fc{i}"], y, None)
            y = self._epilogue(node[f"fc{i}"], y, node.get(f"table{i}"), stages[i])
            y = self.store(stages[i], y)
        return x * y

    def _lookup(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        assert ins[0] is not None
        read, out = (self._values[node[key][0]] for key in ("in", "out"))
        return self.looked_up(ins[0], read, node["table"], out)

    def _convert(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        assert ins[0] is not None
        return ins[0]

    def _unary(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        assert ins[0] is not None
        y: Tensor = UNARY[node["fn"]](ins[0])
        return y

    def _binary(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        a, b = ins
        assert a is not None
        assert b is not None
        y: Tensor = BINARY[node["fn"]](a, b)
        activation = node.get("activation", "none")
        return y if activation == "none" else UNARY[activation](y)

    def _layer_norm(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        x = ins[0]
        assert x is not None
        width = x.shape[-1]
        x = x.reshape(-1, width)
        count = int(node.get("count", width))
        mean = x.sum(-1, keepdim=True) / count
        d = x - mean
        variance = ((d * d).sum(-1, keepdim=True) + (count - width) * mean * mean) / count
        y = d / (variance + node["eps"]).sqrt()
        if node.get("gamma"):
            y = y * self._tensor(node["gamma"])
        if node.get("beta"):
            y = y + self._tensor(node["beta"])
        if node.get("rows"):
            rows = self._tensor(node["rows"]).long()
            y = torch.where(rows[:, None] >= 0, y[rows.clamp(min=0)], torch.zeros(()).double())
        return y

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.tensors[name])).double()

    def _softmax(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        assert ins[0] is not None
        return ins[0].softmax(-1)

    def attention_parts(
        self, node: Mapping[str, Any], ins: Sequence[Tensor | None]
    ) -> AttentionParts:
        """Logits, and values [batches, heads, tokens, size]."""
        heads, dim = int(node["heads"]), int(node["head_dim"])
        value_dim = int(node.get("value_dim", dim))
        batches, tq, tk = int(node["batches"]), int(node["q_tokens"]), int(node["k_tokens"])
        parts = []
        for i, (letter, tokens, size) in enumerate(
            (("q", tq, dim), ("k", tk, dim), ("v", tk, value_dim))
        ):
            x = ins[i]
            assert x is not None
            s = node[letter]
            parts.append(
                torch.as_strided(
                    x.reshape(-1),
                    (batches, heads, tokens, size),
                    (s["batch"], s["head"], s["token"], 1),
                    s["offset"],
                )
            )
        q, k, v = parts
        # alpha is of the integer product; q and k are real numbers here
        scales = [float(np.float32(self._values[node["in"][i]]["scale"])) for i in (0, 1)]
        scores = q @ k.transpose(-1, -2) * (float(node["alpha"]) / (scales[0] * scales[1]))
        magnitude = scores.abs()
        bias, mask = (*ins, None, None)[3:5]
        if bias is not None:
            scores, magnitude = scores + bias, magnitude + bias.abs()
        if mask is not None:
            masks = mask.repeat(batches // mask.shape[0], 1, 1)[:, None]
            scores, magnitude = scores + masks, magnitude + masks.abs()
        return AttentionParts(scores, magnitude, v)

    def attention_rows(self, node: Mapping[str, Any], y: Tensor) -> Tensor:
        """[batches, heads, tokens, size] as the node's rows, in its order."""
        y = y.transpose(1, 2).reshape(-1, y.shape[1] * y.shape[3])
        if node.get("rows"):
            rows = self._tensor(node["rows"]).long()
            out = torch.empty_like(y)
            out[rows] = y
            y = out
        return y

    def _attention(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        scores, _, v = self.attention_parts(node, ins)
        p = self.probabilities(torch.exp(scores - scores.amax(-1, keepdim=True)))
        return self.attention_rows(node, (p @ v) / p.sum(-1, keepdim=True))

    def _matmul(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        sizes = {"a": (node["m"], node["k"]), "b": (node["k"], node["n"])}
        parts, scales = [], []
        for i, letter in enumerate("ab"):
            x, s = ins[i], node[letter]
            assert x is not None
            strides = (s["batch"], s["row"], s.get("col", 1))
            shape = (int(node["batches"]), *(int(n) for n in sizes[letter]))
            parts.append(torch.as_strided(x.reshape(-1), shape, strides, s["offset"]))
            scales.append(float(np.float32(self._values[node["in"][i]]["scale"])))
        return parts[0] @ parts[1] * (float(node["alpha"]) / (scales[0] * scales[1]))

    def _pool2d(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        assert ins[0] is not None
        x = ins[0].permute(2, 0, 1)[None]
        size = {"padding": node.get("padding", [0, 0])}
        size |= {"kernel_size": node["kernel"], "stride": node["stride"]}
        ceil = bool(node.get("ceil_mode", False))
        if node["mode"] == "max":
            y = F.max_pool2d(x, ceil_mode=ceil, **size)
        else:
            include = bool(node.get("count_include_pad", True))
            y = F.avg_pool2d(x, ceil_mode=ceil, count_include_pad=include, **size)
        return y[0].permute(1, 2, 0)

    def _adaptive_avg_pool2d(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        assert ins[0] is not None
        y = F.adaptive_avg_pool2d(ins[0].permute(2, 0, 1)[None], node["size"])
        return y[0].permute(1, 2, 0)

    def _mean_rows(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        assert ins[0] is not None
        return ins[0].reshape(-1, ins[0].shape[-1]).mean(0)

    def _reduce(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        x = ins[0]
        assert x is not None
        if node["fn"] == "max":
            return x.amax(-1)
        if node["fn"] == "l2":
            return x.square().sum(-1).sqrt()
        return x.mean(-1) if node["fn"] == "mean" else x.sum(-1)

    def _interpolate(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        x = ins[0]
        assert x is not None
        positions = []
        for extent, size, scale in zip(x.shape, node["size"], node["scale"], strict=False):
            i = torch.arange(size, dtype=torch.float64)
            if node["mode"] == "nearest":
                positions.append((i * scale).floor().clamp(max=extent - 1))
            elif node.get("align_corners"):
                positions.append(i * scale)
            else:
                positions.append(((i + 0.5) * scale - 0.5).clamp(min=0))
        for dim, position in enumerate(positions):
            low = position.floor().long().clamp(max=x.shape[dim] - 1)
            high = (low + 1).clamp(max=x.shape[dim] - 1)
            shape = [1, 1, 1]
            shape[dim] = -1
            part = (position - low).reshape(shape)
            x = x.index_select(dim, low) * (1 - part) + x.index_select(dim, high) * part
        return x

    def _copy(self, node: Mapping[str, Any], ins: Sequence[Tensor | None]) -> Tensor:
        chunk = int(node["chunk"])
        parts = [x.reshape(-1, chunk) for x in ins if x is not None]
        chunks = torch.cat(parts)
        index = torch.from_numpy(dfq.copy_index(self.tensors, node)).long()
        y = chunks[index.clamp(min=0)]
        return torch.where(index[:, None] >= 0, y, torch.zeros((), dtype=y.dtype))


def quantized(y: Tensor, quantization: Mapping[str, Any]) -> Tensor:
    """int64 levels of real numbers, zero point included."""
    half = 1 << (int(quantization["bits"]) - 1)
    q = torch.round(y / float(np.float32(quantization["scale"]))) + quantization["zero_point"]
    return q.clamp(-half, half - 1).long()


def dequantized(q: Tensor, quantization: Mapping[str, Any]) -> Tensor:
    """The real numbers of int8 levels."""
    scale = float(np.float32(quantization["scale"]))
    return (q - int(quantization["zero_point"])).double() * scale
