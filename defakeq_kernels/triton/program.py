"""Whole programs on a GPU: layers by our kernels, everything between them by torch's.

Values are those of the CPU's runtime ([H, W, C] images, int8 where the program says so) with a
batch in front. Layers, integer means and element-wise steps give the CPU's bytes; softmax,
attention, normalization and float functions are torch's own and may differ in the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from defakeq_kernels import dfq, runtime
from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.triton import launch, layout
from defakeq_kernels.triton.run import Extra, Rows, run

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "none": lambda x: x,
    "relu": lambda x: torch.fmax(x, torch.zeros_like(x)),
    "relu6": lambda x: torch.fmax(x, torch.zeros_like(x)).clamp(max=6),
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "neg": torch.neg,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
}


_KNOWN: dict[int, tuple[StorageWeakRef, dict[tuple[int, torch.device], GpuProgram]]] = {}


def run_program(
    program: Tensor, inputs: Sequence[Tensor], out_shapes: Sequence[int], threads: int = 0
) -> list[Tensor]:
    """`torch.ops.defakeq.run_program` on the GPU that holds the inputs.

    The file's content is checked and packed when it is first run on a device and kept as long as
    `program` lives; it may be in main memory. `threads` is of no effect.

    Raises:
        ValueError: no float32 inputs on one device, or a wrong shape, by name.
        RuntimeError: `program` is no valid file.
    """
    if not inputs or any(x.device != inputs[0].device for x in inputs):
        raise ValueError("inputs: found none or several devices; accepted is tensors of one device")
    for i, x in enumerate(inputs):
        if x.dtype != torch.float32 or x.dim() < 1:
            raise ValueError(
                f"inputs[{i}]: found {x.dtype} {list(x.shape)}; accepted is float32 [N, ...]"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"inputs[{i}]: found a tensor that requires grad; accepted is one that does not: "
                "call under torch.no_grad(), or detach() it"
            )
    results = _loaded(program, inputs[0].device)(inputs)
    found = [n for y in results for n in (y.dim() - 1, *y.shape[1:])]
    if found != list(out_shapes):
        raise ValueError(f"out_shapes: found {list(out_shapes)}; accepted is {found}")
    return [y.contiguous() for y in results]


def _loaded(data: Tensor, device: torch.device) -> GpuProgram:
    storage = data.untyped_storage()
    for key in [key for key, known in _KNOWN.items() if known[0].expired()]:
        del _KNOWN[key]
    _, held = _KNOWN.setdefault(storage._cdata, (StorageWeakRef(storage), {}))
    at = (data._version, device)
    if at not in held:
        content = bytes(data.cpu().numpy())
        runtime.loads(content)  # every check of a file
        held[at] = GpuProgram(*dfq.loads(content), device)
    return held[at]


class GpuProgram:
    """A checked program on a device.

    Args:
        tensors, network: of a ``.dfq`` file that `defakeq_kernels.runtime` accepts: it is not
            checked again.
        device: where to run.

    Raises:
        ValueError: a network without a program, or an operator that is not known here.
    """

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]], network: Mapping[str, Any], device: torch.device
    ) -> None:
        program = network.get("program")
        if not isinstance(program, Mapping):
            raise ValueError("program: found none; accepted is a file with a program")
        self.device = device
        self.values = program["values"]
        self.inputs, self.outputs = program["inputs"], program["outputs"]
        self.nodes = program["nodes"]
        unknown = sorted({n["op"] for n in self.nodes if n["op"] not in _OPS})
        if unknown:
            raise ValueError(f"nodes: found {unknown[0]!r}; accepted is one of {sorted(_OPS)}")
        self._tensors = tensors
        self._moved: dict[str, Tensor] = {}
        self._based = {v["base"] for v in self.values if v.get("base") is not None}
        self._layers = {name: self._layer(network, name) for name in self._used_layers()}

    def _used_layers(self) -> set[str]:
        keys = ("layer", "fc1", "fc2")
        return {node[key] for node in self.nodes for key in keys if key in node}

    def _layer(self, network: Mapping[str, Any], name: str) -> tuple[Tensor, layout.GpuLayout]:
        spec = network["layers"][name]
        act = None if spec["act"]["mode"] == "none" else ActQuant(**spec["act"])
        out = None
        if spec["out"]["dtype"] == "int8":
            out = _quantization(spec["out"])
        weight = dfq.layer(self._tensors, network, name)
        packed, description = layout.pack(weight, act, spec["activation"], out)
        moved = packed.to(self.device)
        layout.remember(moved, description)
        return moved, description

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs [batch, ...] of float inputs [batch, ...], all on the device, float32.

        Raises:
            ValueError: an input of a wrong shape, by name.
        """
        state = _State(self, inputs[0].shape[0] if inputs else 1)
        for port, x in zip(self.inputs, inputs, strict=True):
            wanted = self._port_shape(port)
            if tuple(x.shape[1:]) != wanted or x.shape[0] != state.batch:
                raise ValueError(
                    f"input {port.get('name', '')}: found {list(x.shape)}; accepted is "
                    f"{[state.batch, *wanted]}"
                )
            x = x.permute(0, 2, 3, 1) if port["layout"] == "nchw" else x
            state.store(port["value"], x.float())
        for node in self.nodes:
            _OPS[node["op"]](state, node)
        found = []
        for port in self.outputs:
            y = state.real(port["value"])
            found.append(y.permute(0, 3, 1, 2) if port["layout"] == "nchw" else y)
        return found

    def _port_shape(self, port: Mapping[str, Any]) -> tuple[int, ...]:
        shape = tuple(self.values[port["value"]]["shape"])
        return (shape[2], *shape[:2]) if port["layout"] == "nchw" else shape

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file on the device."""
        if name not in self._moved:
            array = np.array(self._tensors[name])
            self._moved[name] = torch.from_numpy(array).to(self.device)
        return self._moved[name]

    def layer(self, name: str) -> tuple[Tensor, layout.GpuLayout]:
        """The runtime layout of a layer and its description."""
        return self._layers[name]


def _quantization(v: Mapping[str, Any]) -> ActQuant:
    return ActQuant("static", v["scale"], v["zero_point"], v["bits"])


class _State:
    """The values of a batch. Views share the memory of their bases."""

    def __init__(self, program: GpuProgram, batch: int) -> None:
        self.program, self.batch = program, batch
        self.held: dict[int, Tensor] = {}

    def value(self, at: int) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.program.values[at]
        return found

    def quantization(self, at: int) -> ActQuant | None:
        v = self.value(at)
        return _quantization(v) if v["dtype"] == "int8" else None

    def raw(self, at: int) -> Tensor:
        """[batch, shape] as stored; [1, shape] of a constant."""
        v = self.value(at)
        if v.get("tensor") is not None:
            return self.program.tensor(v["tensor"])[None]
        base = v.get("base")
        if base is None:
            return self.held[at].view(self.batch, *v["shape"])
        size, offset = int(np.prod(v["shape"])), v.get("offset", 0)
        part = self.held[base].view(self.batch, -1)[:, offset : offset + size]
        return part.reshape(self.batch, *v["shape"])

    def real(self, at: int) -> Tensor:
        q = self.quantization(at)
        x = self.raw(at)
        return x if q is None else launch.dequantize(x.contiguous(), q.scale, q.zero_point)

    def levels(self, at: int) -> Tensor:
        """q - zero point in float32."""
        q = self.quantization(at)
        assert q is not None
        return (self.raw(at).to(torch.int32) - q.zero_point).float()

    def put(self, at: int, y: Tensor) -> None:
        v = self.value(at)
        base = v.get("base")
        if base is None and at not in self.program._based:
            self.held[at] = y.contiguous()
            return
        owner = at if base is None else base
        if owner not in self.held:
            size = int(np.prod(self.value(owner)["shape"]))
            self.held[owner] = torch.empty(self.batch, size, dtype=y.dtype, device=y.device)
        flat = y.reshape(self.batch, -1)
        begin = v.get("offset", 0)
        self.held[owner].view(self.batch, -1)[:, begin : begin + flat.shape[1]] = flat

    def store(self, at: int, y: Tensor) -> None:
        q = self.quantization(at)
        if q is None:
            self.put(at, y.float())
        else:
            self.put(at, launch.quantize(y.float().contiguous(), q.scale, q.zero_point, q.bits))

    def fill(self, at: int) -> float | int:
        q = self.quantization(at)
        return 0.0 if q is None else q.zero_point

    def table(self, node: Mapping[str, Any], key: str) -> Tensor | None:
        name = node.get(key)
        return None if name is None else self.program.tensor(name)


def _operand(node: Mapping[str, Any], i: int) -> int | None:
    found = node["in"]
    return found[i] if i < len(found) and found[i] >= 0 else None


def _apply_layer(state: _State, name: str, x: Tensor, rows: Rows, extra: Extra) -> Tensor:
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


def _layer(state: _State, node: Mapping[str, Any]) -> None:
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


def _squeeze_excite(state: _State, node: Mapping[str, Any]) -> None:
    at = node["in"][0]
    pool = _quantization(node["pool"])
    mean = _means(state, at, (1, 2))
    q = launch.quantize(mean, pool.scale, pool.zero_point, pool.bits)
    rows = Rows(state.batch, 1, 1, 1, 1)
    for key, table in (("fc1", "table1"), ("fc2", "table2")):
        q = _apply_layer(
            state, node[key], q, rows, Extra(None, 0.0, 0, None, state.table(node, table))
        )
    gate = _quantization(node["gate"])
    real = launch.dequantize(q, gate.scale, gate.zero_point)
    state.store(node["out"][0], state.real(at) * real[:, None, None])


def _means(state: _State, at: int, dims: tuple[int, ...]) -> Tensor:
    """Means over `dims`; integer sums are exact."""
    x, q = state.raw(at), state.quantization(at)
    count = int(np.prod([x.shape[d] for d in dims]))
    part = np.float32(1) / np.float32(count)
    if q is None:
        return x.sum(dims) * float(part)
    sums = (x.sum(dims, dtype=torch.int32) - count * q.zero_point).float()
    return sums * float(np.float32(q.scale) * part)


def _lookup(state: _State, node: Mapping[str, Any]) -> None:
    table = state.table(node, "table")
    assert table is not None
    state.put(node["out"][0], table[state.raw(node["in"][0]).to(torch.int32) + 128])


def _convert(state: _State, node: Mapping[str, Any]) -> None:
    state.store(node["out"][0], state.real(node["in"][0]))


def _unary(state: _State, node: Mapping[str, Any]) -> None:
    state.store(node["out"][0], _UNARY[node["fn"]](state.real(node["in"][0])))


def _binary(state: _State, node: Mapping[str, Any]) -> None:
    a, b = (state.real(i) for i in node["in"][:2])
    y = _BINARY[node["fn"]](a, b)
    state.store(node["out"][0], _UNARY[node.get("activation", "none")](y))


def _layer_norm(state: _State, node: Mapping[str, Any]) -> None:
    x = state.real(node["in"][0])
    channels = x.shape[-1]
    x = x.reshape(state.batch, -1, channels)
    gamma, beta = state.table(node, "gamma"), state.table(node, "beta")
    count, eps = node.get("count", channels), node["eps"]
    if count == channels:
        y = F.layer_norm(x, (channels,), gamma, beta, eps)
    else:
        mean = x.sum(-1, keepdim=True) / count
        d = x - mean
        var = (d.square().sum(-1, keepdim=True) + (count - channels) * mean.square()) / count
        y = d * torch.rsqrt(var + eps)
        y = y if gamma is None else y * gamma
        y = y if beta is None else y + beta
    at, index = node["out"][0], state.table(node, "rows")
    if index is None:
        state.store(at, y)
        return
    q = state.quantization(at)
    if q is not None:
        y = launch.quantize(y.contiguous(), q.scale, q.zero_point, q.bits)
    state.put(at, _gathered(y, index, state.fill(at)))


def _gathered(x: Tensor, index: Tensor, fill: float | int) -> Tensor:
    """Rows [batch, n, width] by index; -1: filled."""
    y = x.index_select(1, index.clamp(min=0))
    return torch.where((index >= 0)[None, :, None], y, torch.tensor(fill, dtype=y.dtype))


def _softmax(state: _State, node: Mapping[str, Any]) -> None:
    state.store(node["out"][0], torch.softmax(state.real(node["in"][0]), -1))


def _reduce(state: _State, node: Mapping[str, Any]) -> None:
    x, fn = state.real(node["in"][0]), node["fn"]
    reductions: dict[str, Callable[[], Tensor]] = {
        "max": lambda: x.amax(-1),
        "l2": lambda: x.square().sum(-1).sqrt(),
        "sum": lambda: x.sum(-1),
        "mean": lambda: x.mean(-1),
    }
    state.store(node["out"][0], reductions[fn]())


def _strided(
    state: _State, at: int, place: Mapping[str, Any], extents: Mapping[str, int]
) -> Tensor:
    """Levels [batch, extents] at the strides of an attribute."""
    flat = state.levels(at).reshape(state.batch, -1).contiguous()
    strides = [place.get(name, 1 if name in ("d", "col") else 0) for name in extents]
    shape = (state.batch, *extents.values())
    return flat.as_strided(shape, (flat.stride(0), *strides), place.get("offset", 0))


def _attention(state: _State, node: Mapping[str, Any]) -> None:
    heads, dim = node["heads"], node["head_dim"]
    batches, tq, tk = node["batches"], node["q_tokens"], node["k_tokens"]
    wide = node.get("value_dim", dim)
    sizes = {"q": (tq, dim), "k": (tk, dim), "v": (tk, wide)}
    kind = torch.float16 if state.program.device.type == "cuda" else torch.float32
    parts = []
    for i, (name, (tokens, d)) in enumerate(sizes.items()):
        extents = {"batch": batches, "token": tokens, "head": heads, "d": d}
        x = _strided(state, node["in"][i], node[name], extents)
        # levels are whole numbers of at most 255, exact in half precision
        parts.append(x.permute(0, 1, 3, 2, 4).reshape(-1, heads, tokens, d).to(kind))
    added = None
    bias, mask = _operand(node, 3), _operand(node, 4)
    if bias is not None:
        added = state.real(bias)[:, None]
    if mask is not None:
        m = state.real(mask)
        m = m.repeat(1, batches // m.shape[1], 1, 1)[:, :, None]
        added = m if added is None else added + m
    if added is not None:
        added = added.expand(state.batch, batches, heads, tq, tk)
        added = added.reshape(-1, heads, tq, tk).to(kind)
    query, key, value = parts
    y = F.scaled_dot_product_attention(query, key, value, added, scale=node["alpha"])
    q = state.quantization(node["in"][2])
    assert q is not None
    y = y.float() * q.scale
    y = y.permute(0, 2, 1, 3).reshape(state.batch, batches * tq, heads * wide)
    rows = state.table(node, "rows")
    if rows is not None:
        placed = torch.empty_like(y)
        placed[:, rows.long()] = y
        y = placed
    state.store(node["out"][0], y)


def _matmul(state: _State, node: Mapping[str, Any]) -> None:
    batches, m, n, k = (node[key] for key in ("batches", "m", "n", "k"))
    a = _strided(state, node["in"][0], node["a"], {"batch": batches, "row": m, "col": k})
    b = _strided(state, node["in"][1], node["b"], {"batch": batches, "row": k, "col": n})
    state.store(node["out"][0], (a @ b) * node["alpha"])


def _mean_rows(state: _State, node: Mapping[str, Any]) -> None:
    at = node["in"][0]
    dims = tuple(range(1, len(state.value(at)["shape"])))
    state.store(node["out"][0], _means(state, at, dims))


def _pool2d(state: _State, node: Mapping[str, Any]) -> None:
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
    counts = [
        _window_sizes(x.shape[2 + d], sums.shape[2 + d], kernel[d], stride[d], padding[d], whole)
        for d in (0, 1)
    ]
    part = np.float32(1) / np.multiply.outer(*counts).astype(np.float32)
    if q is not None:
        part = part * np.float32(q.scale)
    y = sums * torch.from_numpy(part).to(x.device)
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


def _adaptive_avg_pool2d(state: _State, node: Mapping[str, Any]) -> None:
    at = node["in"][0]
    if list(node["size"]) == [1, 1]:
        state.store(node["out"][0], _means(state, at, (1, 2)))
        return
    x = state.real(at).permute(0, 3, 1, 2)
    y = F.adaptive_avg_pool2d(x, tuple(node["size"]))
    state.store(node["out"][0], y.permute(0, 2, 3, 1))


def _interpolate(state: _State, node: Mapping[str, Any]) -> None:
    x = state.real(node["in"][0])
    size, scale = node["size"], node["scale"]
    axes = []
    for d, (n, s) in enumerate(zip(size, scale, strict=True)):
        extent = x.shape[1 + d]
        i = np.arange(n, dtype=np.float64)
        if node["mode"] == "nearest":
            position = np.floor(i * s)
        elif node.get("align_corners", False):
            position = i * s
        else:
            position = np.maximum((i + 0.5) * s - 0.5, 0.0)
        low = np.minimum(np.floor(position).astype(np.int64), extent - 1)
        high = np.minimum(low + 1, extent - 1)
        weight = (position - low).astype(np.float32)
        axes.append([torch.from_numpy(a).to(x.device) for a in (low, high, weight)])
    (y0, y1, ly), (x0, x1, lx) = axes
    if node["mode"] == "nearest":
        state.store(node["out"][0], x[:, y0][:, :, x0])
        return
    lx, ly = lx[:, None], ly[:, None, None]
    top, bottom = (
        x[:, y][:, :, x0] + (x[:, y][:, :, x1] - x[:, y][:, :, x0]) * lx for y in (y0, y1)
    )
    state.store(node["out"][0], top + (bottom - top) * ly)


def _copy(state: _State, node: Mapping[str, Any]) -> None:
    chunk, at = node["chunk"], node["out"][0]
    parts = [state.raw(i).expand(state.batch, *state.value(i)["shape"]) for i in node["in"]]
    joined = torch.cat([p.reshape(state.batch, -1, chunk) for p in parts], 1)
    index = state.table(node, "index")
    assert index is not None
    state.put(at, _gathered(joined, index, state.fill(at)))


_OPS: dict[str, Callable[[_State, Mapping[str, Any]], None]] = {
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
