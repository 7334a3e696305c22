"""The operators of programs on a GPU: layers by our kernels, what lies between by torch's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.torch_functions import BINARY, UNARY
from defakeq_kernels.triton import between, launch
from defakeq_kernels.triton.program_state import State, quantization
from defakeq_kernels.triton.run import Extra, Rows, run


def _operand(node: Mapping[str, Any], i: int) -> int | None:
    found = node["in"]
    return found[i] if i < len(found) and found[i] >= 0 else None


def _apply_layer(state: State, name: str, x: Tensor, rows: Rows, extra: Extra) -> Tensor:
    packed, made = state.program.layer(name)
    shape = (rows.count, made.out_channels)
    kind = torch.float32 if made.out is None else torch.int8
    if made.stored == made.out_channels:
        out = torch.empty(shape, dtype=kind, device=x.device)
    else:
        fill = 0 if made.out is None else made.out["zero_point"]
        if extra.table is not None:
            out = extra.table[fill + 128].expand(shape).contiguous()
        else:
            out = torch.full(shape, fill, dtype=kind, device=x.device)
    run(made, packed, x.contiguous(), rows, extra, out)
    return out


def _layer(state: State, node: Mapping[str, Any]) -> None:
    x = state.raw(node["in"][0])
    residual, half = _operand(node, 1), _operand(node, 2)
    q = None if residual is None else state.quantization(residual)
    extra = Extra(
        None if residual is None else state.raw(residual).contiguous(),
        1.0 if q is None else q.scale,
        0 if q is None else q.zero_point,
        None if half is None else state.raw(half).contiguous(),
        state.table(node, "table"),
    )
    shape = state.value(node["out"][0])["shape"]
    if node["op"] == "conv2d":
        n, h, w, _ = x.shape
        rows = Rows(n, h, w, shape[0], shape[1])
    else:
        x = x.reshape(-1, x.shape[-1])
        rows = Rows(x.shape[0], 1, 1, 1, 1)
    y = _apply_layer(state, node["layer"], x, rows, extra)
    state.put(node["out"][0], y.view(state.batch, *shape))


def _squeeze_excite(state: State, node: Mapping[str, Any]) -> None:
    at = node["in"][0]
    pool = quantization(node["pool"])
    q = _mean(state, at, pool)
    rows = Rows(state.batch, 1, 1, 1, 1)
    for key, table in (("fc1", "table1"), ("fc2", "table2")):
        q = _apply_layer(
            state, node[key], q, rows, Extra(None, 0.0, 0, None, state.table(node, table))
        )
    gate = quantization(node["gate"])
    to = node["out"][0]
    y = between.gate(state.raw(at), state.quantization(at), q, gate, state.quantization(to))
    state.put(to, y)


def _mean(state: State, at: int, out: ActQuant | None) -> Tensor:
    """Means of a value's channels, [batch, channels]; integer sums are exact."""
    x, q = state.raw(at), state.quantization(at)
    x = x.reshape(state.batch, -1, x.shape[-1])
    if q is not None:
        return between.means(x, q, out)
    y = x.sum(1) * float(np.float32(1) / np.float32(x.shape[1]))
    return y if out is None else launch.quantize(y, out.scale, out.zero_point, out.bits)


def _mean_rows(state: State, node: Mapping[str, Any]) -> None:
    at, to = node["in"][0], node["out"][0]
    state.put(to, _mean(state, at, state.quantization(to)))


def _lookup(state: State, node: Mapping[str, Any]) -> None:
    table = state.table(node, "table")
    assert table is not None
    state.put(node["out"][0], between.lookup(state.raw(node["in"][0]), table))


def _convert(state: State, node: Mapping[str, Any]) -> None:
    state.store(node["out"][0], state.real(node["in"][0]))


def _unary(state: State, node: Mapping[str, Any]) -> None:
    state.store(node["out"][0], UNARY[node["fn"]](state.real(node["in"][0])))


def _binary(state: State, node: Mapping[str, Any]) -> None:
    a, b = (state.real(i) for i in node["in"][:2])
    y = BINARY[node["fn"]](a, b)
    state.store(node["out"][0], UNARY[node.get("activation", "none")](y))


def _layer_norm(state: State, node: Mapping[str, Any]) -> None:
    source, at = node["in"][0], node["out"][0]
    x = state.raw(source)
    channels = x.shape[-1]
    x = x.reshape(state.batch, -1, channels)
    gamma, beta = state.table(node, "gamma"), state.table(node, "beta")
    count, eps = node.get("count", channels), node["eps"]
    index, q = state.table(node, "rows"), state.quantization(at)
    if count == channels:
        state.put(at, between.layer_norm(x, state.quantization(source), gamma, beta, eps, q, index))
        return
    else:
        x = state.real(source).reshape(state.batch, -1, channels)
        mean = x.sum(-1, keepdim=True) / count
        d = x - mean
        var = (d.square().sum(-1, keepdim=True) + (count - channels) * mean.square()) / count
        y = d * torch.rsqrt(var + eps)
        y = y if gamma is None else y * gamma
        y = y if beta is None else y + beta
        if q is not None:
            y = launch.quantize(y.contiguous(), q.scale, q.zero_point, q.bits)
    state.put(at, y if index is None else _gathered(state, at, y, index))


def _gathered(state: State, at: int, x: Tensor, index: Tensor) -> Tensor:
    """Rows [batch, n, width] of value `at` by index; -1: filled."""
    once = state.program.once
    y = x.index_select(1, once(("rows", at), lambda: index.clamp(min=0)))
    # on the host, and once: a capture may not wait for the device
    if not once(("filled", at), lambda: (index < 0).any().cpu()):
        return y
    empty = once(("empty", at), lambda: (index < 0)[None, :, None])
    return y.masked_fill(empty, state.fill(at))


def _softmax(state: State, node: Mapping[str, Any]) -> None:
    state.store(node["out"][0], torch.softmax(state.real(node["in"][0]), -1))


def _reduce(state: State, node: Mapping[str, Any]) -> None:
    x, fn = state.real(node["in"][0]), node["fn"]
    reductions: dict[str, Callable[[], Tensor]] = {
        "max": lambda: x.amax(-1),
        "l2": lambda: x.square().sum(-1).sqrt(),
        "sum": lambda: x.sum(-1),
        "mean": lambda: x.mean(-1),
    }
    state.store(node["out"][0], reductions[fn]())


def _strided(state: State, at: int, place: Mapping[str, Any], extents: Mapping[str, int]) -> Tensor:
    """Levels [batch, extents] at the strides of an attribute."""
    flat = state.levels(at).reshape(state.batch, -1).contiguous()
    strides = [place.get(name, 1 if name in ("d", "col") else 0) for name in extents]
    shape = (state.batch, *extents.values())
    return flat.as_strided(shape, (flat.stride(0), *strides), place.get("offset", 0))


def _attention(state: State, node: Mapping[str, Any]) -> None:
    heads, dim = node["heads"], node["head_dim"]
    batches, tq, tk = node["batches"], node["q_tokens"], node["k_tokens"]
    wide = node.get("value_dim", dim)
    sizes = {"q": (tq, dim), "k": (tk, dim), "v": (tk, wide)}
    kind = torch.float16 if state.program.device.type == "cuda" else torch.float32
    parts = []
    for i, (name, (tokens, d)) in enumerate(sizes.items()):
        at = node["in"][i]
        own = state.quantization(at)
        assert own is not None
        # levels are whole numbers of at most 255, exact in half precision
        parts.append(
            between.levels(
                state.raw(at), own.zero_point, node[name], batches, tokens, heads, d, kind
            )
        )
    # windows count as heads, so that a constant bias serves every image
    parts = [p.view(state.batch, batches * heads, *p.shape[2:]) for p in parts]
    query, key, value = parts
    added = _attention_bias(state, node, kind)
    y = F.scaled_dot_product_attention(query, key, value, added, scale=node["alpha"])
    q = state.quantization(node["in"][2])
    assert q is not None
    to = node["out"][0]
    rows = state.table(node, "rows")
    state.put(to, between.heads(y, q.scale, batches, rows, state.quantization(to)))


def _attention_bias(state: State, node: Mapping[str, Any], kind: torch.dtype) -> Tensor | None:
    """What is added to the scores, [batch, batches * heads, q_tokens, k_tokens], or None."""
    operands = [_operand(node, i) for i in (3, 4)]
    bias, mask = operands
    if bias is None and mask is None:
        return None
    heads, batches, tq, tk = (node[k] for k in ("heads", "batches", "q_tokens", "k_tokens"))

    def make() -> Tensor:
        added = torch.zeros((), dtype=torch.float32, device=state.program.device)
        if bias is not None:
            added = added + state.real(bias)[:, None]
        if mask is not None:
            m = state.real(mask)
            added = added + m.repeat(1, batches // m.shape[1], 1, 1)[:, :, None]
        added = added.expand(-1, batches, heads, tq, tk)
        # rows begin at multiples of 16, or torch would copy it at every call
        wide = added.new_zeros((added.shape[0], batches * heads, tq, -(-tk // 16) * 16), dtype=kind)
        wide[..., :tk] = added.reshape(-1, batches * heads, tq, tk)
        return wide[..., :tk]

    fixed = all(i is None or state.value(i).get("tensor") is not None for i in operands)
    made = state.program.once(("attention", node["out"][0]), make) if fixed else make()
    return made.expand(state.batch, -1, -1, -1)


def _matmul(state: State, node: Mapping[str, Any]) -> None:
    batches, m, n, k = (node[key] for key in ("batches", "m", "n", "k"))
    a = _strided(state, node["in"][0], node["a"], {"batch": batches, "row": m, "col": k})
    b = _strided(state, node["in"][1], node["b"], {"batch": batches, "row": k, "col": n})
    state.store(node["out"][0], (a @ b) * node["alpha"])


def _pool2d(state: State, node: Mapping[str, Any]) -> None:
    at, out = node["in"][0], node["out"][0]
    kernel, stride, padding = node["kernel"], node["stride"], node.get("padding", [0, 0])
    ceil = bool(node.get("ceil_mode", False))
    q = state.quantization(at)
    if node["mode"] == "max":
        # int8 is exact in float16
        x = state.raw(at).permute(0, 3, 1, 2)
        wide = x.float() if q is None else x.to(torch.float16)
        y = F.max_pool2d(wide, kernel, stride, padding, ceil_mode=ceil)
        state.put(out, y.to(x.dtype).permute(0, 2, 3, 1))
        return
    x = (state.real(at) if q is None else state.levels(at)).permute(0, 3, 1, 2)
    sums = F.avg_pool2d(x, kernel, stride, padding, ceil, divisor_override=1)
    whole = bool(node.get("count_include_pad", True))
    extents, sizes = x.shape[2:], sums.shape[2:]

    def parts() -> NDArray[np.float32]:
        counts = [
            _window_sizes(extents[d], sizes[d], kernel[d], stride[d], padding[d], whole)
            for d in (0, 1)
        ]
        part = np.float32(1) / np.multiply.outer(*counts).astype(np.float32)
        return part if q is None else part * np.float32(q.scale)

    y = sums * state.program.constant(("pool2d", at, out), parts)
    state.store(out, y.permute(0, 2, 3, 1))


def _window_sizes(
    extent: int, count: int, kernel: int, stride: int, padding: int, whole: bool
) -> NDArray[np.int64]:
    """Positions that each window divides by, along one side."""
    begin = np.arange(count) * stride - padding
    end = np.minimum(begin + kernel, extent + padding)
    if not whole:
        begin, end = np.maximum(begin, 0), np.minimum(end, extent)
    return end - begin


def _adaptive_avg_pool2d(state: State, node: Mapping[str, Any]) -> None:
    at = node["in"][0]
    if list(node["size"]) == [1, 1]:
        _mean_rows(state, node)
        return
    x = state.real(at).permute(0, 3, 1, 2)
    y = F.adaptive_avg_pool2d(x, tuple(node["size"]))
    state.store(node["out"][0], y.permute(0, 2, 3, 1))


def _interpolate(state: State, node: Mapping[str, Any]) -> None:
    x = state.real(node["in"][0])
    axes = []
    for d in (0, 1):
        extent = x.shape[1 + d]
        made = [
            state.program.constant(
                ("interpolate", node["out"][0], d, i),
                functools.partial(_sample, node, d, extent, i),
            )
            for i in range(3)
        ]
        axes.append(made)
    (y0, y1, ly), (x0, x1, lx) = axes
    if node["mode"] == "nearest":
        state.store(node["out"][0], x[:, y0][:, :, x0])
        return
    lx, ly = lx[:, None], ly[:, None, None]
    top, bottom = (
        x[:, y][:, :, x0] + (x[:, y][:, :, x1] - x[:, y][:, :, x0]) * lx for y in (y0, y1)
    )
    state.store(node["out"][0], top + (bottom - top) * ly)


def _sample(node: Mapping[str, Any], d: int, extent: int, which: int) -> NDArray[Any]:
    """Along a side, of each output position: its two neighbours (0, 1), the second's weight (2)."""
    scale = node["scale"][d]
    i = np.arange(node["size"][d], dtype=np.float64)
    if node["mode"] == "nearest":
        position = np.floor(i * scale)
    elif node.get("align_corners", False):
        position = i * scale
    else:
        position = np.maximum((i + 0.5) * scale - 0.5, 0.0)
    low = np.minimum(np.floor(position).astype(np.int64), extent - 1)
    found = (low, np.minimum(low + 1, extent - 1), (position - low).astype(np.float32))
    return found[which]


def _copy(state: State, node: Mapping[str, Any]) -> None:
    chunk, at = node["chunk"], node["out"][0]
    parts = [state.raw(i).expand(state.batch, *state.value(i)["shape"]) for i in node["in"]]
    joined = torch.cat([p.reshape(state.batch, -1, chunk) for p in parts], 1)
    state.put(at, _gathered(state, at, joined, state.program.copy_index(node)))


OPS: dict[str, Callable[[State, Mapping[str, Any]], None]] = {
    "conv2d": _layer,
    "linear": _layer,
    "squeeze_excite": _squeeze_excite,
    "lookup": _lookup,
    "convert": _convert,
    "unary": _unary,
    "binary": _binary,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "attention": _attention,
    "matmul": _matmul,
    "pool2d": _pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean_rows": _mean_rows,
    "reduce": _reduce,
    "interpolate": _interpolate,
    "copy": _copy,
}
