"""What a program computes, node by node in numpy: the oracle of the runtime.

It is plain and slow. Integer sums are exact; float32 steps are those of the kernels, each rounded
once and in their order, so every value has the runtime's bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels import dfq, reference
from defakeq_kernels.packed import is_integer, shown
from defakeq_kernels.quantize import ACTIVATIONS, ActQuant, check_quantization
from defakeq_kernels.reference import Float32, fma

Array = NDArray[Any]
Source = str | os.PathLike[str] | tuple[Mapping[str, Array], Mapping[str, Any]]

VERSION = 1
LANES = 16
UNARY = (
    *("relu", "relu6", "hardswish", "silu", "gelu", "sigmoid", "tanh", "hardsigmoid", "exp"),
    *("log", "sqrt", "rsqrt", "abs", "neg", "square", "reciprocal"),
)
BINARY = ("add", "sub", "mul", "div", "max", "min")
_ONE = np.float32(1)


def run(source: Source, inputs: Sequence[Array]) -> list[Array]:
    """The outputs of a program.

    Args:
        source: path of a ``.dfq`` file, or (arrays by name, network) as `dfq.read` returns.
        inputs: float32 arrays [batch, ...] in the order of the program's inputs.

    Returns:
        float32 arrays [batch, ...], one an output.

    Raises:
        ValueError: a malformed program or a wrong input, by name.
    """
    program = _Program(source)
    batch = program.check_inputs(inputs)
    images = [program.outputs_of(program.execute([x[i] for x in inputs])) for i in range(batch)]
    if images:
        return [np.stack(parts) for parts in zip(*images, strict=True)]
    return [np.zeros((0, *program.port_shape(port)), np.float32) for port in program.outputs]


def trace(source: Source, inputs: Sequence[Array]) -> list[list[Array]]:
    """Every value of every image: int8 or float32 arrays [image][value], in stored form."""
    program = _Program(source)
    batch = program.check_inputs(inputs)
    return [program.execute([x[i] for x in inputs]) for i in range(batch)]


@dataclass(frozen=True)
class _Value:
    dtype: str
    shape: tuple[int, ...]
    quantization: ActQuant | None
    tensor: str | None
    base: int
    offset: int
    array: Array | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _bad(field: str, found: str, accepted: str) -> NoReturn:
    raise ValueError(f"{field}: found {found}; accepted is {accepted}")


def _get(where: str, holder: Mapping[str, Any], key: str) -> Any:
    if key not in holder:
        _bad(f"{where}.{key}", "nothing", "a value")
    return holder[key]


def _sizes(field: str, value: object, count: int | None = None, low: int = 1) -> tuple[int, ...]:
    if (
        not isinstance(value, (list, tuple))
        or (count is not None and len(value) != count)
        or not all(is_integer(v) and v >= low for v in value)
    ):
        wanted = "sizes" if count is None else f"{count} integers"
        _bad(field, shown(value), f"a list of {wanted} from {low} on")
    return tuple(int(v) for v in value)


def _integer(field: str, value: object, low: int, high: int = 1 << 40) -> int:
    if not is_integer(value) or not low <= value <= high:
        _bad(field, shown(value), f"an integer from {low} to {high}")
    return int(value)


def _number(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        _bad(field, shown(value), "a finite number")
    return float(value)


def _quantization(field: str, value: object) -> ActQuant:
    if not isinstance(value, Mapping):
        _bad(field, shown(value), "an object with scale, zero_point and bits")
    scale, zero, bits = (_get(field, value, key) for key in ("scale", "zero_point", "bits"))
    check_quantization(scale, zero, bits, f"{field}.")
    return ActQuant("static", float(scale), int(zero), int(bits))


class _Program:
    def __init__(self, source: Source) -> None:
        self.tensors: Mapping[str, Array]
        if isinstance(source, tuple):
            self.tensors, self.network = source
        else:
            self.tensors, self.network = dfq.read(source)
        program = self.network.get("program")
        if not isinstance(program, Mapping):
            _bad("program", shown(program), "an object")
        if program.get("version") != VERSION:
            _bad("program.version", shown(program.get("version")), str(VERSION))
        for key in ("values", "inputs", "outputs", "nodes"):
            if not isinstance(program.get(key), list):
                _bad(f"program.{key}", shown(program.get(key)), "a list")
            for i, item in enumerate(program[key]):
                if not isinstance(item, Mapping):
                    _bad(f"program.{key}[{i}]", shown(item), "an object")
        self.values = [self._value(i, v) for i, v in enumerate(program["values"])]
        for i, value in enumerate(self.values):
            self._check_view(i, value)
        self.inputs = [self._port("inputs", i, p) for i, p in enumerate(program["inputs"])]
        self.outputs = [self._port("outputs", i, p) for i, p in enumerate(program["outputs"])]
        self.nodes = program["nodes"]

    def _value(self, i: int, v: Mapping[str, Any]) -> _Value:
        field = f"values[{i}]"
        dtype = _get(field, v, "dtype")
        if dtype not in ("int8", "float32"):
            _bad(f"{field}.dtype", shown(dtype), '"int8" or "float32"')
        shape = _sizes(f"{field}.shape", _get(field, v, "shape"))
        tensor, array = v.get("tensor"), None
        if tensor is not None:
            array = self.constant(field, v, shape)
            if array.dtype != np.dtype(dtype) or array.shape != shape:
                found = f"{array.dtype} {list(array.shape)}"
                _bad(f"{field}.tensor", found, f"{dtype} {list(shape)}")
        base = -1
        if v.get("base") is not None:
            base = _integer(f"{field}.base", v["base"], 0)
        offset = _integer(f"{field}.offset", v.get("offset", 0), 0)
        quantization = _quantization(field, v) if dtype == "int8" else None
        return _Value(dtype, shape, quantization, tensor, base, offset, array)

    def constant(self, field: str, v: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
        """A constant value: a tensor, or the columns of one that an index names."""
        array = self.tensor(f"{field}.tensor", v.get("tensor"))
        if v.get("index") is None:
            return array
        index = self.tensor(f"{field}.index", v["index"])
        columns = array.shape[-1] if array.ndim else 1
        if index.dtype != np.int32 or index.ndim != 1 or index.size == 0:
            _bad(f"{field}.index", f"{index.dtype} {list(index.shape)}", "int32 [count]")
        if int(index.min()) < 0 or int(index.max()) >= columns:
            found = f"{index.min()} to {index.max()}"
            _bad(f"{field}.index", found, f"0 to {columns - 1}")
        wide = array.reshape(-1, columns)[:, index]
        if wide.size != math.prod(shape):
            _bad(f"{field}.index", f"{wide.size} elements", f"{math.prod(shape)}")
        return wide.reshape(shape)

    def _check_view(self, i: int, value: _Value) -> None:
        if value.base < 0:
            return
        field = f"values[{i}].base"
        if value.base >= len(self.values):
            _bad(field, str(value.base), f"a value below {len(self.values)}")
        base = self.values[value.base]
        if base.base >= 0 or base.tensor is not None or value.tensor is not None:
            _bad(field, f"value {value.base}", "a value that is neither a view nor a constant")
        if (base.dtype, base.quantization) != (value.dtype, value.quantization):
            _bad(field, f"value {value.base}", "one of the same dtype and quantization")
        if value.offset + value.size > base.size:
            found = f"{value.offset} + {value.size} elements"
            _bad(f"values[{i}].offset", found, f"up to {base.size}")

    def _port(self, kind: str, i: int, p: Mapping[str, Any]) -> tuple[str, int, bool]:
        field = f"{kind}[{i}]"
        at = _integer(f"{field}.value", _get(field, p, "value"), 0)
        if at >= len(self.values):
            _bad(f"{field}.value", str(at), f"a value below {len(self.values)}")
        layout = _get(field, p, "layout")
        if layout not in ("nchw", "plain"):
            _bad(f"{field}.layout", shown(layout), '"nchw" or "plain"')
        if layout == "nchw" and len(self.values[at].shape) != 3:
            _bad(f"{field}.layout", '"nchw"', '"plain" unless the value is [H, W, C]')
        return str(p.get("name", "")), at, layout == "nchw"

    def tensor(self, field: str, name: object) -> Array:
        if not isinstance(name, str) or name not in self.tensors:
            _bad(field, shown(name), "the name of a tensor")
        return self.tensors[name]

    def port_shape(self, port: tuple[str, int, bool]) -> tuple[int, ...]:
        shape = self.values[port[1]].shape
        return (shape[2], shape[0], shape[1]) if port[2] else shape

    def check_inputs(self, inputs: Sequence[Array]) -> int:
        if len(inputs) != len(self.inputs):
            _bad("inputs", f"{len(inputs)} arrays", f"{len(self.inputs)}")
        batch = len(inputs[0]) if inputs and np.ndim(inputs[0]) else 1
        for port, x in zip(self.inputs, inputs, strict=True):
            wanted = (batch, *self.port_shape(port))
            if x.dtype != np.float32 or x.shape != wanted:
                found = f"{x.dtype} {list(x.shape)}"
                _bad(f"input {port[0]}", found, f"float32 {list(wanted)}")
        return batch

    def execute(self, images: Sequence[Array]) -> list[Array]:
        state = _State(self)
        for (_, at, nchw), image in zip(self.inputs, images, strict=True):
            x = image.transpose(1, 2, 0) if nchw else image
            state.store("inputs", at, np.ascontiguousarray(x))
        for i, node in enumerate(self.nodes):
            _Node(self, state, i, node).run()
        return state.all()

    def outputs_of(self, values: list[Array]) -> list[Array]:
        result = []
        for name, at, nchw in self.outputs:
            q = self.values[at].quantization
            y = values[at]
            if y.size == 0 and self.values[at].size:
                _bad(f"output {name}", "a value that no node writes", "a written value")
            y = y if q is None else reference.dequantize(y, q)
            result.append(np.ascontiguousarray(y.transpose(2, 0, 1) if nchw else y))
        return result


class _State:
    """The values of one image. Views share the storage of their bases."""

    def __init__(self, program: _Program) -> None:
        self.program = program
        self.storage: dict[int, Array] = {}
        self.written: dict[int, NDArray[np.bool_]] = {}

    def _place(self, at: int) -> tuple[int, slice]:
        v = self.program.values[at]
        if v.base < 0:
            return at, slice(0, v.size)
        return v.base, slice(v.offset, v.offset + v.size)

    def load(self, field: str, at: int) -> Array:
        v = self.program.values[at]
        if v.array is not None:
            return v.array
        base, part = self._place(at)
        if base not in self.storage or not bool(self.written[base][part].all()):
            _bad(field, f"value {at} before it is written", "values in the order of the nodes")
        return self.storage[base][part].reshape(v.shape)

    def put(self, field: str, at: int, y: Array) -> None:
        v = self.program.values[at]
        if v.tensor is not None:
            _bad(field, f"the constant {at}", "a value that can be written")
        if y.size != v.size:
            _bad(field, f"{v.size} elements", f"{y.size}")
        base, part = self._place(at)
        if base not in self.storage:
            size = self.program.values[base].size
            self.storage[base] = np.zeros(size, np.dtype(v.dtype))
            self.written[base] = np.zeros(size, bool)
        if bool(self.written[base][part].any()):
            _bad(field, f"value {at} again", "each value written once")
        assert y.dtype == self.storage[base].dtype
        self.storage[base][part] = y.reshape(-1)
        self.written[base][part] = True

    def store(self, field: str, at: int, y: Array) -> None:
        q = self.program.values[at].quantization
        self.put(field, at, y.astype(np.float32, copy=False) if q is None else _store(y, q))

    def all(self) -> list[Array]:
        result = []
        for i, v in enumerate(self.program.values):
            base, part = self._place(i)
            if v.array is not None:
                result.append(v.array)
            elif base in self.storage and bool(self.written[base][part].all()):
                result.append(self.storage[base][part].reshape(v.shape).copy())
            else:
                result.append(np.zeros(0, np.dtype(v.dtype)))
        return result


def _store(y: Array, q: ActQuant) -> NDArray[np.int8]:
    with np.errstate(all="ignore"):
        return reference.quantize(y, q)


def _lane_blocks(x: Float32) -> Float32:
    """[..., C] -> [..., blocks, 16]; absent elements are +0."""
    pad = -x.shape[-1] % LANES
    wide = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)])
    return wide.reshape(*x.shape[:-1], -1, LANES)


def _tree(lanes: Float32, join: Callable[[Any, Any], Any]) -> Float32:
    for half in (8, 4, 2, 1):
        lanes = join(lanes[..., :half], lanes[..., half : 2 * half])
    return lanes[..., 0]


def lane_sum(x: Float32) -> Float32:
    """Sums over the last dimension in the fixed order of 16 lanes."""
    blocks = _lane_blocks(x)
    acc = np.zeros((*x.shape[:-1], LANES), np.float32)
    for i in range(blocks.shape[-2]):
        acc = acc + blocks[..., i, :]
    return _tree(acc, np.add)


def lane_squares(x: Float32) -> Float32:
    """Sums of squares over the last dimension, one fma a step, in the order of `lane_sum`."""
    blocks = _lane_blocks(x)
    acc = np.zeros((*x.shape[:-1], LANES), np.float32)
    for i in range(blocks.shape[-2]):
        acc = fma(blocks[..., i, :], blocks[..., i, :], acc)
    return _tree(acc, np.add)


def lane_max(x: Float32) -> Float32:
    """Maxima over the last dimension. NaNs are passed over; the first of equal lanes wins."""
    pad = -x.shape[-1] % LANES
    wide = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)], constant_values=-np.inf)
    blocks = wide.reshape(*x.shape[:-1], -1, LANES)
    acc = np.full((*x.shape[:-1], LANES), -np.inf, np.float32)
    for i in range(blocks.shape[-2]):
        acc = _greater(blocks[..., i, :], acc)
    best = acc[..., 0]
    for lane in range(1, LANES):
        best = _greater(acc[..., lane], best)
    return np.asarray(best, np.float32)


def _greater(a: Any, b: Any) -> Any:
    return np.where(a > b, a, b)


def _less(a: Any, b: Any) -> Any:
    return np.where(a < b, a, b)


def _clamp6(x: Float32) -> Float32:
    return _less(_greater(x, np.float32(0)), np.float32(6))


def _tanh(x: Float32) -> Float32:
    e = reference._exp(np.abs(x) * np.float32(-2))
    return np.copysign((_ONE - e) / (_ONE + e), x)


def _unary(fn: str, x: Float32) -> Float32:
    simple: dict[str, Callable[[Float32], Any]] = {
        "tanh": _tanh,
        "hardsigmoid": lambda v: _clamp6(v + np.float32(3)) * np.float32(1.0 / 6.0),
        "exp": reference._exp,
        "log": _log,
        "sqrt": np.sqrt,
        "rsqrt": lambda v: _ONE / np.sqrt(v),
        "abs": np.abs,
        "neg": lambda v: v * np.float32(-1),
        "square": lambda v: v * v,
        "reciprocal": lambda v: _ONE / v,
    }
    with np.errstate(all="ignore"):
        y = simple[fn](x) if fn in simple else reference.activate(fn, x)
    return np.asarray(y, np.float32)


def _log(x: Float32) -> Float32:
    """2 atanh((m - 1) / (m + 1)) + e ln 2 of x = m 2^e, m in [sqrt(1/2), sqrt(2))."""
    x = np.asarray(x, np.float32)
    small = (x > 0) & (x < np.finfo(np.float32).tiny)
    scaled = np.ascontiguousarray(np.where(small, x * np.float32(8388608), x))
    usable = (scaled > 0) & np.isfinite(scaled)
    bits = np.where(usable, scaled, _ONE).astype(np.float32).view(np.int32)
    e = (bits - np.int32(0x3F3504F3)) >> 23
    m = (bits - (e << 23)).astype(np.int32).view(np.float32)
    exponent = np.where(small, np.float32(-23), np.float32(0)) + e.astype(np.float32)
    t = (m - _ONE) / (m + _ONE)
    s = t * t
    p = np.full_like(s, np.float32(2) / np.float32(9))
    for step in (2 / 7, 2 / 5, 2 / 3, 2.0):
        p = fma(p, s, np.float32(step))
    y = fma(exponent, np.float32(0.693147180559945), p * t)
    y = np.where(x == 0, np.float32(-np.inf), y)
    y = np.where(x == np.inf, x, y)
    return np.where((x < 0) | np.isnan(x), np.float32(np.nan), y)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": _greater,
    "min": _less,
}


class _Node:
    """One node: reads its operands, computes, stores."""

    def __init__(
        self, program: _Program, state: _State, index: int, node: Mapping[str, Any]
    ) -> None:
        self.program, self.state, self.node = program, state, node
        self.where = f"nodes[{index}] {node.get('name', '')}".rstrip()
        count = len(program.values)
        self.ins = list(_sizes(f"{self.where}.in", _get(self.where, node, "in"), low=-1))
        outs = _sizes(f"{self.where}.out", _get(self.where, node, "out"), 1, 0)
        self.at = outs[0]
        for key, ids in (("in", self.ins), ("out", outs)):
            if any(i >= count for i in ids):
                _bad(f"{self.where}.{key}", shown(ids), f"values below {count}")
        self.out = program.values[self.at]

    def run(self) -> None:
        op = _get(self.where, self.node, "op")
        method = _OPS.get(op) if isinstance(op, str) else None
        if method is None:
            _bad(f"{self.where}.op", shown(op), f"one of {sorted(_OPS)}")
        with np.errstate(all="ignore"):
            method(self)

    # operands and attributes

    def field(self, key: str) -> str:
        return f"{self.where}.{key}"

    def has(self, i: int) -> bool:
        return i < len(self.ins) and self.ins[i] >= 0

    def value(self, i: int) -> _Value:
        if not self.has(i):
            _bad(self.field("in"), f"no operand {i}", "a value")
        return self.program.values[self.ins[i]]

    def raw(self, i: int) -> Array:
        self.value(i)
        return self.state.load(self.field("in"), self.ins[i])

    def real(self, i: int) -> Float32:
        q = self.value(i).quantization
        return self.raw(i) if q is None else reference.dequantize(self.raw(i), q)

    def levels(self, i: int) -> NDArray[np.float64]:
        """q - zero point of an int8 operand; integer sums of them are exact in float64."""
        return self.raw(i).astype(np.float64) - self.int8(i).zero_point

    def int8(self, i: int) -> ActQuant:
        q = self.value(i).quantization
        if q is None:
            _bad(self.field("in"), f"float32 operand {i}", "int8")
        return q

    def attribute(self, key: str) -> Any:
        return _get(self.where, self.node, key)

    def pair(self, key: str, low: int = 1) -> tuple[int, int]:
        a, b = _sizes(self.field(key), self.attribute(key), 2, low)
        return a, b

    def count_of(self, key: str, low: int = 1) -> int:
        return _integer(self.field(key), self.attribute(key), low)

    def choice(self, key: str, accepted: Sequence[str], default: str | None = None) -> str:
        value = self.node.get(key, default)
        if value not in accepted:
            _bad(self.field(key), shown(value), f"one of {accepted}")
        return str(value)

    def optional(self, key: str, dtype: str, shape: tuple[int, ...] | None) -> Array | None:
        name = self.node.get(key)
        if name is None:
            return None
        array = self.program.tensor(self.field(key), name)
        if array.dtype != np.dtype(dtype) or (shape is not None and array.shape != shape):
            found = f"{array.dtype} {list(array.shape)}"
            _bad(self.field(key), found, f"{dtype} {'' if shape is None else list(shape)}")
        return array

    def image(self, i: int = 0) -> tuple[int, int, int]:
        shape = self.value(i).shape
        if len(shape) != 3:
            _bad(self.field("in"), f"shape {list(shape)}", "[H, W, C]")
        return shape[0], shape[1], shape[2]

    def expect(self, shape: Sequence[int]) -> None:
        if self.out.shape != tuple(shape):
            _bad(self.field("out"), f"shape {list(self.out.shape)}", str(list(shape)))

    def expect_size(self, count: int) -> None:
        if self.out.size != count:
            _bad(self.field("out"), f"shape {list(self.out.shape)}", f"{count} elements")

    def put(self, y: Array) -> None:
        self.state.put(self.field("out"), self.at, y)

    def store(self, y: Array) -> None:
        self.state.store(self.field("out"), self.at, y)

    def table(self, key: str) -> NDArray[np.int8] | None:
        return self.optional(key, "int8", (256,))

    # layers

    def layer_of(self, key: str) -> tuple[Any, Mapping[str, Any]]:
        name, layers = self.attribute(key), self.program.network["layers"]
        if name not in layers:
            _bad(self.field(key), shown(name), "the name of a layer")
        return dfq.layer(self.program.tensors, self.program.network, name), layers[name]

    def layer(self) -> None:
        kind = self.node["op"]
        weight, spec = self.layer_of("layer")
        if weight.kind != kind:
            _bad(self.field("layer"), f"a {weight.kind} layer", f"a {kind} layer")
        x, table = self.raw(0), self.table("table")
        act = None
        if spec["act"]["mode"] != "none":
            fields = spec["act"]
            act = ActQuant(fields["mode"], fields["scale"], fields["zero_point"], fields["bits"])
        if self.value(0).quantization is not None and act != self.value(0).quantization:
            _bad(self.field("in"), f"{self.value(0).quantization}", f"the layer's act {act}")
        out = None
        if spec["out"]["dtype"] == "int8":
            out = _quantization(self.field("layer.out"), spec["out"])
        if table is None and out != self.out.quantization:
            _bad(self.field("out"), f"{self.out.quantization}", f"the layer's out {out}")
        if table is not None and (
            out is None or self.out.quantization is None or spec["activation"] != "none"
        ):
            _bad(self.field("table"), "a table", "none unless int8 is stored without activation")
        options: dict[str, Any] = {"act": act, "activation": spec["activation"], "out": out}
        if self.has(1):
            if _matrix(self.value(1).shape) != _matrix(self.out.shape):
                _bad(self.field("in"), f"residual {self.value(1).shape}", f"{self.out.shape}")
            options["residual"] = self.raw(1).reshape(self.out.shape)
            q = self.value(1).quantization
            if q is not None:
                options["residual_scale"] = q.scale
                options["residual_zero_point"] = q.zero_point
        if self.has(2):
            options["half_input"] = self.raw(2)
        if kind == "conv2d":
            self.image()
            if "half_input" in options:
                options["half_input"] = options["half_input"][None]
            if "residual" in options:
                options["residual"] = options["residual"][None]
            y = reference.conv2d(weight, x[None], **options)[0]
        else:
            if "residual" in options:
                options["residual"] = options["residual"].reshape(*x.shape[:-1], -1)
            y = reference.linear(weight, x, **options)
            if _matrix(y.shape) == _matrix(self.out.shape):
                y = y.reshape(self.out.shape)
        self.expect(y.shape)
        self.put(y if table is None else _look_up(table, y))

    def squeeze_excite(self) -> None:
        height, width, channels = self.image()
        self.expect((height, width, channels))
        pool = _quantization(self.field("pool"), self.attribute("pool"))
        q = _store(self.rows_mean(0, height * width, channels), pool)[None]
        read = pool
        for key, table_key, result in (("fc1", "table1", "hidden"), ("fc2", "table2", "gate")):
            weight, spec = self.layer_of(key)
            table = self.table(table_key)
            kept = _quantization(self.field(result), self.attribute(result))
            out = _quantization(self.field(f"{key}.out"), spec["out"])
            act = _quantization(self.field(f"{key}.act"), spec["act"])
            if act != read or (table is None and out != kept):
                _bad(self.field(key), f"{act} to {out}", f"{read} to {kept}")
            q = reference.linear(weight, q, act=act, activation=spec["activation"], out=out)
            q = q if table is None else _look_up(table, q)
            read = kept
        self.store(self.real(0) * reference.dequantize(q, read)[0])

    # element-wise

    def lookup(self) -> None:
        table = self.table("table")
        if table is None or self.out.quantization is None:
            _bad(self.field("table"), shown(self.node.get("table")), "a tensor, and an int8 out")
        self.int8(0)
        self.expect_size(self.value(0).size)
        self.put(_look_up(table, self.raw(0)))

    def convert(self) -> None:
        self.expect_size(self.value(0).size)
        self.store(self.real(0))

    def unary(self) -> None:
        self.expect_size(self.value(0).size)
        self.store(_unary(self.choice("fn", UNARY), self.real(0)))

    def binary(self) -> None:
        fn = self.choice("fn", BINARY)
        activation = self.choice("activation", ACTIVATIONS, "none")
        a, b = self.real(0), self.real(1)
        accepted = (a.shape, (a.shape[-1],), (1,), (*a.shape[:-1], 1))
        if b.shape not in accepted:
            _bad(self.field("in"), f"shape {list(b.shape)}", f"one of {accepted}")
        self.expect_size(a.size)
        q = self.value(0).quantization
        if fn in ("add", "sub") and q is not None:
            levels = (self.raw(0).astype(np.int32) - q.zero_point).astype(np.float32)
            addend = b if fn == "add" else -b
            wide = np.broadcast_to(addend, a.shape)
            y = fma(levels, np.float32(q.scale), wide)
        else:
            y = np.asarray(_BINARY[fn](a, b), np.float32)
        self.store(reference.activate(activation, y))

    # rows

    def layer_norm(self) -> None:
        x = self.real(0)
        channels = x.shape[-1]
        x = x.reshape(-1, channels)
        gamma = self.optional("gamma", "float32", (channels,))
        beta = self.optional("beta", "float32", (channels,))
        count = _integer(self.field("count"), self.node.get("count", channels), channels)
        eps = np.float32(_number(self.field("eps"), self.attribute("eps")))
        part = _ONE / np.float32(count)
        mean = (lane_sum(x) * part)[:, None]
        d = x - mean
        absent = np.float32(count - channels)
        var = (lane_squares(d)[:, None] + absent * (mean * mean)) * part
        y = d * (_ONE / np.sqrt(var + eps))
        if gamma is not None or beta is not None:
            shift = np.zeros(channels, np.float32) if beta is None else beta
            scale = np.ones(channels, np.float32) if gamma is None else gamma
            y = fma(y, scale, shift)
        q = self.out.quantization
        stored = y if q is None else _store(y, q)
        index = self.optional("rows", "int32", (self.out.size // channels,))
        self.put(stored if index is None else _gather(stored, index, self.fill(), self.field))

    def fill(self) -> Any:
        q = self.out.quantization
        return np.float32(0) if q is None else np.int8(q.zero_point)

    def softmax(self) -> None:
        x = self.real(0)
        self.expect_size(x.size)
        e = reference._exp(x - lane_max(x)[..., None])
        self.store(e * (_ONE / lane_sum(e))[..., None])

    def reduce(self) -> None:
        x = self.real(0)
        fn = self.choice("fn", ("mean", "sum", "max", "l2"))
        self.expect_size(x.size // x.shape[-1])
        if fn == "max":
            self.store(lane_max(x))
        elif fn == "l2":
            self.store(np.sqrt(lane_squares(x)))
        else:
            y = lane_sum(x)
            self.store(y if fn == "sum" else y * (_ONE / np.float32(x.shape[-1])))

    # products

    def elements(self, key: str, i: int, extents: dict[str, int]) -> NDArray[np.float64]:
        """q - zero point of operand i at the strides of attribute `key`."""
        layout = self.attribute(key)
        if not isinstance(layout, Mapping):
            _bad(self.field(key), shown(layout), "an object of strides")
        at: Any = _integer(self.field(f"{key}.offset"), layout.get("offset", 0), 0)
        for d, (name, extent) in enumerate(extents.items()):
            default = 1 if name in ("d", "col") else 0
            stride = _integer(self.field(f"{key}.{name}"), layout.get(name, default), 0)
            at = at + (np.arange(extent) * stride).reshape(-1, *([1] * (len(extents) - 1 - d)))
        size = self.value(i).size
        if int(np.max(at)) >= size:
            _bad(self.field(key), f"element {int(np.max(at))}", f"elements below {size}")
        return self.levels(i).reshape(-1)[at]

    def attention(self) -> None:
        heads, dim = self.count_of("heads"), self.count_of("head_dim")
        value_dim = _integer(self.field("value_dim"), self.node.get("value_dim", dim), 1)
        batches, tq, tk = (self.count_of(k) for k in ("batches", "q_tokens", "k_tokens"))
        alpha = np.float32(_number(self.field("alpha"), self.attribute("alpha")))
        self.expect_size(batches * tq * heads * value_dim)
        q = self.elements("q", 0, {"batch": batches, "token": tq, "head": heads, "d": dim})
        k = self.elements("k", 1, {"batch": batches, "token": tk, "head": heads, "d": dim})
        v = self.elements("v", 2, {"batch": batches, "token": tk, "head": heads, "d": value_dim})
        acc = (q.transpose(0, 2, 1, 3) @ k.transpose(0, 2, 3, 1)).astype(np.float32)
        bias: Any = np.float32(0)
        if self.has(3):
            bias = self.real(3)
            if bias.shape != (heads, tq, tk):
                _bad(self.field("in"), f"bias {bias.shape}", f"{(heads, tq, tk)}")
        s = fma(acc, alpha, np.broadcast_to(bias, acc.shape))
        if self.has(4):
            mask = self.real(4)
            if mask.shape[1:] != (tq, tk) or batches % mask.shape[0]:
                _bad(self.field("in"), f"mask {mask.shape}", f"[divisor of {batches}, {tq}, {tk}]")
            s = s + mask[np.arange(batches) % mask.shape[0]][:, None]
        e = reference._exp(s - lane_max(s)[..., None])
        p = np.rint(e * np.float32(255)).astype(np.float64)
        inverse = _ONE / p.sum(axis=-1, keepdims=True).astype(np.float32)
        sums = (p @ v.transpose(0, 2, 1, 3)).astype(np.float32)
        y = (sums * inverse) * np.float32(self.int8(2).scale)
        y = y.transpose(0, 2, 1, 3).reshape(batches * tq, heads * value_dim)
        rows = self.optional("rows", "int32", (batches * tq,))
        if rows is not None:
            if not np.array_equal(np.sort(rows), np.arange(batches * tq)):
                _bad(self.field("rows"), "rows left out or repeated", "every row once")
            placed = np.empty_like(y)
            placed[rows] = y
            y = placed
        self.store(y)

    def matmul(self) -> None:
        batches, m, n, k = (self.count_of(key) for key in ("batches", "m", "n", "k"))
        alpha = np.float32(_number(self.field("alpha"), self.attribute("alpha")))
        self.expect_size(batches * m * n)
        a = self.elements("a", 0, {"batch": batches, "row": m, "col": k})
        b = self.elements("b", 1, {"batch": batches, "row": k, "col": n})
        self.store((a @ b).astype(np.float32) * alpha)

    # pooling

    def window_mean(self, window: Array, divisor: int) -> Float32:
        """The mean of [positions, C] raw values."""
        part = _ONE / np.float32(divisor)
        q = self.value(0).quantization
        if q is not None:
            sums = (window.astype(np.int64) - q.zero_point).sum(axis=0).astype(np.float32)
            return sums * (np.float32(q.scale) * part)
        total = np.zeros(window.shape[1], np.float32)
        for row in window:
            total = total + row
        return total * part

    def rows_mean(self, i: int, rows: int, channels: int) -> Float32:
        return self.window_mean(self.raw(i).reshape(rows, channels), rows)

    def mean_rows(self) -> None:
        channels = self.value(0).shape[-1]
        self.expect_size(channels)
        self.store(self.rows_mean(0, self.value(0).size // channels, channels))

    def adaptive_avg_pool2d(self) -> None:
        height, width, channels = self.image()
        oh, ow = self.pair("size")
        self.expect((oh, ow, channels))
        y = np.empty((oh, ow, channels), np.float32)
        for i in range(oh):
            y0, y1 = i * height // oh, -(-(i + 1) * height // oh)
            for j in range(ow):
                x0, x1 = j * width // ow, -(-(j + 1) * width // ow)
                window = self.raw(0)[y0:y1, x0:x1].reshape(-1, channels)
                y[i, j] = self.window_mean(window, len(window))
        self.store(y)

    def pool2d(self) -> None:
        extents = self.image()
        mode = self.choice("mode", ("max", "avg"))
        kernel, stride = self.pair("kernel"), self.pair("stride")
        padding = _sizes(self.field("padding"), self.node.get("padding", [0, 0]), 2, 0)
        ceil = bool(self.node.get("ceil_mode", False))
        whole = bool(self.node.get("count_include_pad", True))
        size = [_pool_size(extents[d], kernel[d], stride[d], padding[d], ceil) for d in (0, 1)]
        self.expect((*size, extents[2]))
        x = self.raw(0)
        if mode == "max" and self.value(0).quantization != self.out.quantization:
            _bad(self.field("out"), f"{self.out.quantization}", "the quantization of the input")
        y = np.empty(self.out.shape, x.dtype if mode == "max" else np.float32)
        for i in range(size[0]):
            for j in range(size[1]):
                begin = (i * stride[0] - padding[0], j * stride[1] - padding[1])
                spans, counted = [], 1
                for d in (0, 1):
                    end = min(begin[d] + kernel[d], extents[d] + padding[d])
                    counted *= end - begin[d]
                    spans.append(slice(max(begin[d], 0), min(end, extents[d])))
                window = x[spans[0], spans[1]].reshape(-1, extents[2])
                if mode == "max":
                    y[i, j] = _window_max(window)
                else:
                    y[i, j] = self.window_mean(window, counted if whole else len(window))
        if mode == "max":
            self.put(y)
        else:
            self.store(y)

    def interpolate(self) -> None:
        height, width, channels = self.image()
        size = self.pair("size")
        self.expect((*size, channels))
        mode = self.choice("mode", ("nearest", "bilinear"))
        corners = bool(self.node.get("align_corners", False))
        ratios = self.attribute("scale")
        if not isinstance(ratios, (list, tuple)) or len(ratios) != 2:
            _bad(self.field("scale"), shown(ratios), "two numbers")
        scale = [_number(self.field("scale"), r) for r in ratios]
        x = self.real(0)
        if mode == "nearest":
            at = [
                np.minimum(np.floor(np.arange(n) * s).astype(np.int64), extent - 1)
                for n, s, extent in zip(size, scale, (height, width), strict=True)
            ]
            self.store(x[at[0]][:, at[1]])
            return
        axes = []
        for n, s, extent in zip(size, scale, (height, width), strict=True):
            i = np.arange(n, dtype=np.float64)
            pos = i * s if corners else np.maximum((i + 0.5) * s - 0.5, 0.0)
            low = np.minimum(np.floor(pos).astype(np.int64), extent - 1)
            high = np.minimum(low + 1, extent - 1)
            axes.append((low, high, (pos - low).astype(np.float32)))
        (y0, y1, ly), (x0, x1, lx) = axes
        lx, ly = lx[None, :, None], ly[:, None, None]
        top = fma(x[y0][:, x1] - x[y0][:, x0], lx, x[y0][:, x0])
        bottom = fma(x[y1][:, x1] - x[y1][:, x0], lx, x[y1][:, x0])
        self.store(fma(bottom - top, ly, top))

    def copy(self) -> None:
        chunk = self.count_of("chunk")
        index = self.optional("index", "int32", None)
        if index is None or index.ndim != 1:
            _bad(self.field("index"), shown(self.node.get("index")), "a tensor int32 [n]")
        self.expect_size(index.size * chunk)
        parts = []
        for i in range(len(self.ins)):
            v = self.value(i)
            if (v.dtype, v.quantization) != (self.out.dtype, self.out.quantization):
                _bad(self.field("in"), f"operand {i} of {v.quantization}", f"{self.out}")
            if v.size % chunk:
                _bad(self.field("chunk"), str(chunk), f"a divisor of {v.size}")
            parts.append(self.raw(i).reshape(-1, chunk))
        self.put(_gather(np.concatenate(parts), index, self.fill(), self.field))


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """A shape as rows and channels."""
    return math.prod(shape[:-1]), shape[-1]


def _look_up(table: NDArray[np.int8], q: Array) -> NDArray[np.int8]:
    return table[q.astype(np.int64) + 128]


def _gather(x: Array, index: Array, fill: Any, field: Callable[[str], str]) -> Array:
    """Rows of x by index; -1: filled."""
    if index.size and (int(index.min()) < -1 or int(index.max()) >= len(x)):
        _bad(field("index"), f"{index.min()} to {index.max()}", f"-1 to {len(x) - 1}")
    y = x[np.maximum(index, 0)]
    y[index < 0] = fill
    return y


def _window_max(window: Array) -> Array:
    if window.dtype == np.int8:
        return np.asarray(window.max(axis=0))
    best = np.full(window.shape[1], -np.inf, np.float32)
    for row in window:
        best = _greater(row, best)
    return best


def _pool_size(extent: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    span = extent + 2 * padding - kernel
    if not ceil:
        return span // stride + 1
    size = -(-span // stride) + 1
    # torch: the last window starts inside the image or its leading padding.
    return size - 1 if (size - 1) * stride >= extent + padding else size


_OPS: dict[str, Callable[[_Node], None]] = {
    "conv2d": _Node.layer,
    "linear": _Node.layer,
    **{
        name: getattr(_Node, name)
        for name in (
            *("squeeze_excite", "lookup", "convert", "unary", "binary", "layer_norm", "softmax"),
            *("attention", "matmul", "pool2d", "adaptive_avg_pool2d", "mean_rows", "reduce"),
            *("interpolate", "copy"),
        )
    },
}
