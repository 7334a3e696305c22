"""One array of all layers in one tensor: `*.scale`, `*.zero_point` and `*.bias` of a file.

A tensor takes about a hundred bytes of a file's header, which in a network of many small layers is
much beside their contents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels.checks import is_integer, refuse, shown
from defakeq_kernels.codes import HALF_BITS
from defakeq_kernels.packed import scale_groups

FIELDS = ("scale", "zero_point", "bias")

Tensors = dict[str, NDArray[Any]]
Layers = Mapping[str, Mapping[str, Any]]


def join(tensors: Mapping[str, NDArray[Any]], layers: Layers) -> Tensors:
    """The tensors of a file: an array that all layers have, of one type, is in one tensor.

    Args:
        tensors: arrays by name, those of the layers checked.
        layers: their descriptions by name.

    Raises:
        ValueError: a name that is kept for these tensors.
    """
    joined = dict(tensors)
    for field in FIELDS:
        if f"*.{field}" in tensors:
            refuse("tensor name", shown(f"*.{field}"), "a name other than those of joint tensors")
        keys = [key for name in layers for key in _keys(field, name, layers[name]["bits"])]
        found = [tensors[key] for key in keys if key in tensors]
        if len(found) > 1 and len(found) == len(keys) and len({a.dtype for a in found}) == 1:
            for key in keys:
                del joined[key]
            joined[f"*.{field}"] = np.concatenate([array.reshape(-1) for array in found])
    return joined


def split(tensors: Mapping[str, NDArray[Any]], layers: Layers) -> Tensors:
    """The inverse of `join`, for a file of which nothing but its table has been checked.

    Raises:
        ValueError: a tensor or a field of a layer that does not fit, by name.
    """
    result = {key: array for key, array in tensors.items() if key not in _JOINT}
    for field in FIELDS:
        whole = tensors.get(f"*.{field}")
        if whole is None:
            continue
        if whole.ndim != 1:
            refuse(f"*.{field}", f"{whole.ndim} dimensions", "one")
        at = 0
        for name, description in layers.items():
            for key, shape in _shapes(field, name, description, tensors):
                if key in tensors:
                    refuse(key, "a tensor", f"none beside *.{field}")
                count = math.prod(shape)
                if count > whole.size - at:
                    refuse(f"*.{field}", f"{whole.size} values", f"at least {at + count}")
                result[key] = whole[at : at + count].reshape(shape)
                at += count
        if at != whole.size:
            refuse(f"*.{field}", f"{whole.size} values", f"{at}, those of all layers")
    return result


_JOINT = {f"*.{field}" for field in FIELDS}


def _keys(field: str, name: str, widths: list[int]) -> list[str]:
    """The tensors of a layer that a joint one holds; half-precision segments have none."""
    if field == "bias":
        return [f"{name}.bias"]
    return [f"{name}.seg{i}.{field}" for i, bits in enumerate(widths) if bits != HALF_BITS]


def _shapes(
    field: str, name: str, description: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a layer's arrays, from its codes and its description."""
    widths = _integers(f"{name}.bits", description.get("bits"), 1)
    counts = []
    for i in range(len(widths)):
        codes = tensors.get(f"{name}.seg{i}.codes")
        if codes is None or codes.ndim != 2 or not codes.shape[0]:
            refuse(f"{name}.seg{i}.codes", "no rows of codes", "two dimensions")
        counts.append(codes.shape[0])
    keys = _keys(field, name, widths)
    if field == "bias":
        yield keys[0], (sum(counts),)
        return
    shape = _integers(f"{name}.shape", description.get("shape"), 2)
    if len(shape) not in (2, 4):
        refuse(f"{name}.shape", shown(shape), "2 or 4 sizes")
    inputs = tensors.get(f"{name}.in_index")
    in_count = shape[1] if inputs is None else inputs.size
    size = description.get("group_size")
    if not is_integer(size) or size < 0:
        refuse(f"{name}.group_size", shown(size), "a multiple of 4, or 0")
    groups = scale_groups(math.prod(shape[2:]), in_count, size)
    integer = [count for count, bits in zip(counts, widths, strict=True) if bits != HALF_BITS]
    for key, count in zip(keys, integer, strict=True):
        yield key, (count, groups)


def _integers(field: str, value: object, least: int) -> list[int]:
    if not isinstance(value, list) or len(value) < least:
        refuse(field, shown(value), f"a list of at least {least} positive integers")
    for entry in value:
        if not is_integer(entry) or entry < 1:
            refuse(field, shown(value), "positive integers")
    return value
