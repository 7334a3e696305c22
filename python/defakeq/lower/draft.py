"""A program under construction: values, nodes and where the elements of a torch tensor lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defakeq.lower.capture import Node


@dataclass
class Value:
    """One tensor of a program. `quant` is the key of an int8 value's quantization."""

    dtype: str
    shape: tuple[int, ...]
    quant: Any = None
    tensor: str | None = None
    index: str | None = None
    base: int | None = None
    offset: int = 0
    is_input: bool = False

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass
class Ref:
    """Where a torch tensor's elements lie in a program.

    Attributes:
        values: program values; their elements are numbered one after the other.
        index: int32 of the torch tensor's shape: that number, or -1 where a zero is not stored.
        source: the graph's node whose values these are, for calibration.
    """

    values: tuple[int, ...]
    index: Tensor
    source: Node | None


@dataclass
class Step:
    """A node of the program; `layer` and the like stay open until calibration."""

    op: str
    name: str
    ins: list[int]
    outs: list[int]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Rows:
    """A dense operand: value [.., width]; logical channel i is column columns[i], -1: none."""

    value: int
    rows: int
    width: int
    columns: NDArray[np.int64]


class Draft:
    """Values, steps and constant tensors."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.steps: list[Step] = []
        self.tensors: dict[str, NDArray[Any]] = {}
        self._copies: dict[Any, int] = {}
        self._index_names: dict[bytes, str] = {}
        self._converted: dict[Any, int] = {}
        self._constants: dict[Any, int] = {}
        self._names: set[str] = set()

    def value(self, dtype: str, shape: tuple[int, ...], quant: Any = None, **more: Any) -> int:
        """A new value's number."""
        self.values.append(Value(dtype, tuple(int(n) for n in shape), quant, **more))
        return len(self.values) - 1

    def step(self, op: str, name: str, ins: list[int], out: int, **attributes: Any) -> Step:
        """Appends a node."""
        while ins and ins[-1] == -1:
            ins = ins[:-1]
        step = Step(op, self.unique(name), ins, [out], attributes)
        self.steps.append(step)
        return step

    def unique(self, name: str) -> str:
        """The name, with a number when it is taken."""
        found, n = name, 2
        while found in self._names:
            found, n = f"{name}.{n}", n + 1
        self._names.add(found)
        return found

    def tensor(self, name: str, array: NDArray[Any]) -> str:
        """Stores a tensor; equal ones of one name are shared."""
        found, n = name, 2
        while found in self.tensors:
            held = self.tensors[found]
            if held.dtype == array.dtype and np.array_equal(held, array):
                return found
            found, n = f"{name}.{n}", n + 1
        self.tensors[found] = np.ascontiguousarray(array)
        return found

    def constant(self, name: str, array: NDArray[np.float32]) -> int:
        """A float32 value held in the file."""
        array = np.ascontiguousarray(array, dtype=np.float32)
        key = (array.shape, array.tobytes())
        if key not in self._constants:
            stored, index = _repeats(array)
            tensor = self.tensor(f"program.{name}", stored)
            where = None if index is None else self.tensor("program.repeats", index)
            self._constants[key] = self.value("float32", array.shape, tensor=tensor, index=where)
        return self._constants[key]

    def whole(self, value: int) -> Ref:
        """A reference to all of a value, in its own shape."""
        shape = self.values[value].shape
        index = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)
        return Ref((value,), index, None)

    def dtype(self, ref: Ref) -> str:
        """The type of a reference's values."""
        return self.values[ref.values[0]].dtype

    def quant(self, ref: Ref) -> Any:
        """The key of the quantization of a reference's values."""
        return self.values[ref.values[0]].quant

    def convert(self, ref: Ref, dtype: str, quant: Any = None) -> Ref:
        """The same elements in another type or quantization; nothing when they have it."""
        converted = []
        for number in ref.values:
            value = self.values[number]
            if value.dtype == dtype and (dtype == "float32" or value.quant == quant):
                converted.append(number)
                continue
            key = (number, dtype, quant)
            if key not in self._converted:
                out = self.value(dtype, value.shape, quant)
                name = "x" if ref.source is None else ref.source.name
                self.step("convert", f"{name}.convert", [number], out)
                self._converted[key] = out
            converted.append(self._converted[key])
        return Ref(tuple(converted), ref.index, ref.source)

    # dense operands

    def rows(self, ref: Ref, order: Tensor, name: str, fill: bool = False) -> Rows:
        """The operand [rows, channels] whose elements `order` numbers.

        Channels that are absent throughout are left out; with `fill`, zeros take their places.
        A copy is made where the elements do not lie row by row.
        """
        order = order.reshape(-1, order.shape[-1])
        if not fill or bool((order >= 0).all()):
            found = self._in_place(ref, order)
            if found is not None:
                return found
        present = torch.ones(order.shape[1], dtype=torch.bool) if fill else (order >= 0).any(0)
        kept = order[:, present].contiguous()
        value = self.copy(ref, kept, (kept.shape[0], kept.shape[1]), name)
        columns = np.full(order.shape[1], -1, np.int64)
        columns[present.numpy()] = np.arange(int(present.sum()))
        return Rows(value, kept.shape[0], kept.shape[1], columns)

    def _in_place(self, ref: Ref, order: Tensor) -> Rows | None:
        first = order[0].long()
        present = first >= 0
        if not bool(present.any()):
            return None
        if len(ref.values) > 1 and not self._join(ref):
            return None
        number = ref.values[0]
        value = self.values[number]
        width = value.count
        if order.shape[0] > 1:
            stride = int((order[1].long() - first)[present].min())
            width = stride if stride > 0 and value.shape[-1] % stride == 0 else value.shape[-1]
        base = int(first[present].min()) // width * width
        columns = first[present] - base
        if int(columns.max()) >= width or len(set(columns.tolist())) != len(columns):
            return None
        starts = torch.arange(order.shape[0], dtype=torch.int32) * width + base
        expected = starts[:, None] + columns[None, :].int()
        if not torch.equal(order[:, present], expected):
            return None
        if not bool((order[:, ~present] < 0).all()):
            return None
        rows = order.shape[0]
        if base or rows * width != value.count or width != value.shape[-1]:
            viewed = self.view(number, base, (rows, width))
            if viewed is None:
                return None
            number = viewed
        all_columns = np.full(order.shape[1], -1, np.int64)
        all_columns[present.numpy()] = columns.numpy()
        return Rows(number, rows, width, all_columns)

    def view(self, number: int, offset: int, shape: tuple[int, ...]) -> int | None:
        """A value that is a part of another; None when there can be none."""
        value = self.values[number]
        if value.tensor is not None:
            return None
        base = number
        if value.base is not None:
            base, offset = value.base, offset + value.offset
        key = ("view", base, offset, shape)
        if key not in self._copies:
            self._copies[key] = self.value(
                value.dtype, shape, value.quant, base=base, offset=offset
            )
        return self._copies[key]

    def _join(self, ref: Ref) -> bool:
        """Makes the values of a concatenation views of one new value, where they can be."""
        values = [self.values[v] for v in ref.values]
        bases = {v.base for v in self.values if v.base is not None}
        width = values[0].shape[-1]
        for number, value in zip(ref.values, values, strict=True):
            same = (value.dtype, value.quant) == (values[0].dtype, values[0].quant)
            held = value.tensor is not None or value.base is not None or value.is_input
            if not same or held or number in bases or value.shape[-1] != width:
                return False
        total = sum(v.count for v in values)
        if ref.index.numel() < total or bool((ref.index < 0).any()):
            return False
        base = self.value(values[0].dtype, (total // width, width), values[0].quant)
        at = 0
        for value in values:
            value.base, value.offset = base, at
            at += value.count
        ref.values = (base,)
        return True

    def copy(self, ref: Ref, order: Tensor, shape: tuple[int, ...], name: str) -> int:
        """A new value of `shape` with the elements that `order` numbers."""
        flat = order.reshape(-1).numpy().astype(np.int64)
        key = (ref.values, shape, flat.tobytes())
        if key not in self._copies:
            sizes = [self.values[v].count for v in ref.values]
            chunk = _chunk(flat, [*sizes, shape[-1]])
            starts = flat[::chunk]
            index = np.where(starts < 0, -1, starts // chunk).astype(np.int32)
            first = self.values[ref.values[0]]
            out = self.value(first.dtype, shape, first.quant)
            parts = _parts(index)
            for i, part in enumerate(parts):
                size = len(flat) // len(parts)
                to = out
                if len(parts) > 1:
                    to = self.value(first.dtype, (size,), first.quant, base=out, offset=i * size)
                self._copy_step(ref, part, chunk, to, name)
            self._copies[key] = out
        return self._copies[key]

    def _copy_step(
        self, ref: Ref, index: NDArray[np.int32], chunk: int, out: int, name: str
    ) -> None:
        step = self.step("copy", f"{name}.copy", list(ref.values), out, chunk=chunk)
        period, moves = _period(index)
        if moves is not None:
            step.attributes["repeats"] = index.size // period.size
            step.attributes["step"] = self._indices(f"program.{step.name}.step", moves)
        step.attributes["index"] = self._indices(f"program.{step.name}.index", period)

    def _indices(self, name: str, array: NDArray[np.int32]) -> str:
        """The name of a tensor of indices; equal ones are stored once."""
        data = array.tobytes()
        if data not in self._index_names:
            self._index_names[data] = self.tensor(name, array)
        return self._index_names[data]


def _repeats(
    array: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int32] | None]:
    """An array [rows, ...] whose columns repeat, as the different ones and where they go.

    They are numbered by their first places, so equal patterns have equal indices.
    """
    if array.ndim < 3 or array.size < 1024:
        return array, None
    flat = array.reshape(array.shape[0], -1)
    columns = np.ascontiguousarray(flat.T).view(f"V{4 * flat.shape[0]}").ravel()
    numbers: dict[bytes, int] = {}
    index = np.array([numbers.setdefault(c.tobytes(), len(numbers)) for c in columns], np.int32)
    if len(numbers) * 2 > flat.shape[1]:
        return array, None
    first = np.unique(index, return_index=True)[1]
    return np.ascontiguousarray(flat[:, first]), index


def _parts(index: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """Equal parts of an index that have a period each; the index itself where there are none."""
    for count in (1, 2, 4):
        parts = np.split(index, count) if index.size % count == 0 else []
        if parts and all(_period(part)[1] is not None for part in parts):
            return parts
    return [index]


def _period(
    index: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int32] | None]:
    """One period of an index and what each repetition adds to it; the index itself without one.

    A concatenation of channels moves on evenly from pixel to pixel, but by another step in each
    of its parts.
    """
    for size in range(1, index.size // 4 + 1) if index.size >= 256 else ():
        if index.size % size or not np.array_equal(
            index[2 * size : 3 * size] - index[size : 2 * size],
            index[size : 2 * size] - index[:size],
        ):
            continue
        rows = index.reshape(-1, size)
        moves = rows[1] - rows[0]
        if bool((np.diff(rows, axis=0) == moves).all()):
            return rows[0].copy(), moves
    return index, None


def _chunk(flat: NDArray[np.int64], sizes: list[int]) -> int:
    """The longest run length that all moves are made of."""
    chunk = math.gcd(flat.size, *sizes)
    absent = flat < 0
    follows = np.where(absent[1:], absent[:-1], (flat[1:] == flat[:-1] + 1) & ~absent[:-1])
    breaks = np.flatnonzero(~follows) + 1
    if breaks.size:
        chunk = math.gcd(chunk, int(np.gcd.reduce(breaks)))
    starts = flat[np.concatenate([[0], breaks])]
    starts = starts[starts >= 0]
    if starts.size:
        chunk = math.gcd(chunk, int(np.gcd.reduce(starts)))
    return chunk
