"""The checks of a packed weight: every field of `PackedWeight` against ``docs/format.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels.checks import check_range, is_integer, refuse, shown
from defakeq_kernels.codes import HALF_BITS, row_bytes

if TYPE_CHECKING:
    from defakeq_kernels.packed import PackedWeight, Segment

KINDS = ("linear", "conv2d")
MAX_CHANNELS = 1 << 24
MAX_EXTENT = 1 << 12
MAX_ZERO_POINT = 255


def check_weight(w: PackedWeight, name: str) -> None:
    """Refuses a weight with a wrong field, called as in a file (``<name>.seg0.scale``)."""
    _check_geometry(w, name)
    _check_inputs(w, name)
    if not w.segments:
        refuse(f"{name}.bits", "no segment", "at least one")
    stored = np.zeros(w.shape[0], bool)
    for i, segment in enumerate(w.segments):
        _check_segment(w, segment, f"{name}.seg{i}")
        repeated = segment.out_index[stored[segment.out_index]]
        if repeated.size:
            refuse(
                f"{name}.seg{i}.out_index",
                f"output {int(repeated[0])} again",
                "every output stored once",
            )
        stored[segment.out_index] = True
    _check_half_in(w, name)
    if w.bias is not None:
        _check_floats(f"{name}.bias", w.bias, np.float32, (w.stored_out,))


def outputs_of_segments(
    prefix: str, count: int, outs: object, tensors: Mapping[str, NDArray[Any]]
) -> list[NDArray[np.int32]]:
    """The outputs of each segment; one may name none, it has those of no other."""
    if not is_integer(outs) or not 1 <= outs <= MAX_CHANNELS:
        refuse(f"{prefix}.shape", shown(outs), f"1 to {MAX_CHANNELS} outputs")
    stored = np.zeros(int(outs), bool)
    found: list[NDArray[np.int32]] = []
    rest = -1
    for i in range(count):
        field = f"{prefix}.seg{i}.out_index"
        index = tensors.get(field)
        if index is None and rest < 0:
            rest = i
            index = np.empty(0, np.int32)
        else:
            if index is None:
                refuse(field, "nothing", "int32 [count]")
            _check_index(field, index, len(stored))
            if bool(stored[index].any()):
                refuse(field, "an output again", "every output stored once")
            stored[index] = True
        found.append(index)
    if rest >= 0:
        found[rest] = np.flatnonzero(~stored).astype(np.int32)
        codes = tensors.get(f"{prefix}.seg{rest}.codes")
        if not len(found[rest]) or codes is None or codes.shape[:1] != found[rest].shape:
            wanted = f"an index, unless it has the {len(found[rest])} outputs of no other segment"
            refuse(f"{prefix}.seg{rest}.out_index", "nothing", wanted)
    return found


def _check_geometry(w: PackedWeight, name: str) -> None:
    if w.kind not in KINDS:
        refuse(f"{name}.kind", shown(w.kind), '"linear" or "conv2d"')
    rank = 2 if w.kind == "linear" else 4
    if len(w.shape) != rank:
        refuse(f"{name}.shape", shown(list(w.shape)), f"{rank} sizes for {w.kind}")
    for value in w.shape[:2]:
        check_range(f"{name}.shape", value, 1, MAX_CHANNELS)
    for value in w.shape[2:]:
        check_range(f"{name}.shape", value, 1, MAX_EXTENT)
    fixed = w.kind == "linear"
    pairs = (("stride", w.stride, 1), ("padding", w.padding, 0), ("dilation", w.dilation, 1))
    for field, pair, low in pairs:
        if len(pair) != 2:
            refuse(f"{name}.{field}", shown(pair), "two integers")
        for value in pair:
            check_range(f"{name}.{field}", value, low, low if fixed else MAX_EXTENT)
    check_range(f"{name}.groups", w.groups, 1, 1 if fixed else MAX_CHANNELS)
    if w.shape[0] % w.groups or w.shape[1] * w.groups > MAX_CHANNELS:
        refuse(
            f"{name}.groups",
            f"{w.groups} for shape {list(w.shape)}",
            f"a divisor of the outputs, with at most {MAX_CHANNELS} inputs in all",
        )
    check_range(f"{name}.group_size", w.group_size, 0, MAX_CHANNELS)
    if w.group_size % 4:
        refuse(f"{name}.group_size", str(w.group_size), "a multiple of 4, or 0")
    if w.group_size and w.groups > 1:
        refuse(f"{name}.group_size", str(w.group_size), "0 when groups > 1")


def _check_inputs(w: PackedWeight, name: str) -> None:
    for field in ("in_index", "half_in_index"):
        index = getattr(w, field)
        if index is None:
            continue
        if w.groups > 1:
            refuse(f"{name}.{field}", f"an index with groups {w.groups}", "none when groups > 1")
        _check_index(f"{name}.{field}", index, w.shape[1])
    if w.half_in_index is None:
        return
    if w.in_index is None:
        refuse(f"{name}.in_index", "nothing", "the integer inputs, where half_in_index is given")
    shared = np.intersect1d(w.in_index, w.half_in_index)  # type: ignore[arg-type]
    if shared.size:
        refuse(f"{name}.half_in_index", f"input {int(shared[0])}", "inputs not in in_index")


def _check_half_in(w: PackedWeight, name: str) -> None:
    if w.half_in_index is None:
        if w.half_in_weight is not None:
            refuse(f"{name}.half_in_weight", "a tensor", "none without half_in_index")
        return
    shape = (w.stored_out, w.taps * w.half_in_count)
    _check_floats(f"{name}.half_in_weight", w.half_in_weight, np.float16, shape)


def _check_segment(w: PackedWeight, s: Segment, name: str) -> None:
    if not is_integer(s.bits) or s.bits not in (1, 2, 3, 4, 5, 6, 7, 8, HALF_BITS):
        refuse(f"{name}.bits", shown(s.bits), "1 to 8, or 16")
    _check_index(f"{name}.out_index", s.out_index, w.shape[0])
    if s.bits == HALF_BITS:
        _check_floats(f"{name}.codes", s.codes, np.float16, (s.count, w.reduction))
        for field in ("scale", "zero_point"):
            if getattr(s, field) is not None:
                refuse(f"{name}.{field}", "a tensor", "none for 16 bits")
        return
    size = row_bytes(w.reduction, s.bits)
    _check_array(f"{name}.codes", s.codes, np.uint8, (s.count, size))
    used = w.reduction * s.bits - 8 * (size - 1)
    if bool((s.codes[:, -1].astype(np.int32) >> used).any()):
        refuse(f"{name}.codes", "bits set in a row's padding", "zero padding")
    _check_floats(f"{name}.scale", s.scale, np.float32, (s.count, w.scale_groups))
    if s.zero_point is not None:
        _check_array(f"{name}.zero_point", s.zero_point, np.int32, (s.count, w.scale_groups))
        low, high = int(s.zero_point.min()), int(s.zero_point.max())
        if low < -MAX_ZERO_POINT or high > MAX_ZERO_POINT:
            accepted = f"-{MAX_ZERO_POINT} to {MAX_ZERO_POINT}"
            refuse(f"{name}.zero_point", f"{low} to {high}", accepted)


def _check_index(field: str, index: Any, limit: int) -> None:
    if not isinstance(index, np.ndarray) or index.dtype != np.int32 or index.ndim != 1:
        refuse(field, _kind_of(index), "a one-dimensional int32 array")
    if index.size == 0:
        refuse(field, "no entry", "at least one")
    if int(index.min()) < 0 or int(index.max()) >= limit:
        refuse(field, f"{int(index.min())} to {int(index.max())}", f"indices from 0 to {limit - 1}")
    if index.size > 1 and not bool(np.all(index[1:] > index[:-1])):
        refuse(field, "indices out of order", "strictly increasing indices")


def _check_floats(field: str, array: Any, dtype: type, shape: tuple[int, ...]) -> None:
    _check_array(field, array, dtype, shape)
    if not bool(np.isfinite(array).all()):
        refuse(field, "a value that is not finite", "finite values")


def _check_array(field: str, array: Any, dtype: type, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        refuse(field, _kind_of(array), f"{np.dtype(dtype)} with shape {list(shape)}")


def _kind_of(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} with shape {list(value.shape)}"
    return "nothing" if value is None else type(value).__name__
