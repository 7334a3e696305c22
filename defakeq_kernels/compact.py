"""The compact form of a file's header: deflated JSON, and one tensor for each element type.

A tensor of its own takes about a hundred bytes of a safetensors header, and a layer's JSON two to
three hundred, which in a network of many small layers is much beside their contents.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels.checks import is_integer, refuse, shown

PREFIX = "*."  # of the names of joint tensors
# Arrays of the first type are stored as the second where that loses nothing.
NARROWER = {"F32": "F16", "I32": "I16"}
MAX_TEXT = 1 << 24
MAX_RANK = 8
_RAW = -zlib.MAX_WBITS  # deflate without a header: the file has a checksum

Tensors = dict[str, NDArray[Any]]


def are_sizes(value: object) -> bool:
    """Whether a value of a header is a list of natural numbers, as many as a shape may have."""
    return (
        isinstance(value, list)
        and len(value) <= MAX_RANK
        and all(is_integer(n) and n >= 0 for n in value)
    )


def deflated(text: str) -> str:
    """A network's JSON as base64 of its deflate stream (RFC 4648, RFC 1951)."""
    packer = zlib.compressobj(zlib.Z_BEST_COMPRESSION, zlib.DEFLATED, _RAW, zlib.DEF_MEM_LEVEL)
    return base64.b64encode(packer.compress(text.encode()) + packer.flush()).decode()


def inflated(text: str) -> bytes:
    """The inverse of `deflated`; JSON comes back as it is. At most 2^24 bytes are made.

    Raises:
        ValueError: what `text` is instead.
    """
    if text.startswith("{"):
        return text.encode()
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        packed = b""
    if not packed or base64.b64encode(packed).decode() != text:
        refuse("network", shown(text), "JSON, or base64 of a deflate stream of it")
    unpacker = zlib.decompressobj(_RAW)
    try:
        data = unpacker.decompress(packed, MAX_TEXT + 1)
    except zlib.error:
        data = b""
    if len(data) > MAX_TEXT or not unpacker.eof or unpacker.unused_data:
        refuse("network", "a bad deflate stream", f"a whole one, of at most {MAX_TEXT} bytes")
    return data


def join(
    tensors: Mapping[str, NDArray[Any]], types: Mapping[str, np.dtype[Any]]
) -> tuple[Tensors, Any]:
    """All tensors of one element type in one, and the table that tells them apart.

    Args:
        tensors: by name.
        types: the element types by the names that they have in a file.

    Returns:
        ({"*.F32": array [n], ...}, {"F32": {name: shape, ...}, ...}), the names in the order of
        their parts. "F32/F16" are float32 arrays that are stored as float16, without loss.
    """
    codes = {dtype: code for code, dtype in types.items()}
    parts: dict[str, Tensors] = {}
    for name, array in sorted(tensors.items()):
        code = codes[array.dtype.newbyteorder("=")]
        narrow = _narrowed(array, types[NARROWER[code]]) if code in NARROWER else None
        if narrow is not None:
            code, array = f"{code}/{NARROWER[code]}", narrow
        parts.setdefault(code, {})[name] = array
    joined = {
        PREFIX + code: np.concatenate([array.reshape(-1) for array in held.values()])
        for code, held in parts.items()
    }
    table = {
        code: {name: list(array.shape) for name, array in held.items()}
        for code, held in parts.items()
    }
    return joined, table


def split(
    tensors: Mapping[str, NDArray[Any]], table: object, types: Mapping[str, np.dtype[Any]]
) -> Tensors:
    """The inverse of `join`, for tensors and a table of which nothing has been checked.

    Raises:
        ValueError: a table that is none, or does not fit the tensors, by name.
    """
    if not isinstance(table, dict):
        refuse("network.tensors", shown(table), "an object")
    joint = {PREFIX + code for code in table}
    result = {name: array for name, array in tensors.items() if name not in joint}
    for code, shapes in table.items():
        if not isinstance(shapes, dict):
            refuse(f"network.tensors.{code}", shown(shapes), "an object")
        whole = _whole(tensors.get(PREFIX + code), code, types)
        at = 0
        for name, shape in shapes.items():
            field = f"network.tensors.{code}.{name}"
            if not are_sizes(shape):
                refuse(field, shown(shape), f"up to {MAX_RANK} sizes")
            if name in result or name in tensors:
                refuse(field, "a name in use", "every tensor once")
            count = math.prod(shape)
            if count > whole.size - at:
                refuse(field, shown(shape), f"at most the {whole.size - at} elements that are left")
            result[name] = whole[at : at + count].reshape(shape)
            at += count
        if at != whole.size:
            refuse(f"network.tensors.{code}", f"{at} elements", f"the {whole.size} of the tensor")
    return result


def _narrowed(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    return narrow if np.array_equal(narrow.astype(array.dtype), array) else None


def _whole(
    array: NDArray[Any] | None, code: str, types: Mapping[str, np.dtype[Any]]
) -> NDArray[Any]:
    """A joint tensor with the elements that its parts have."""
    wide, narrow = code.partition("/")[::2]
    stored = narrow or wide
    if stored not in types or (narrow and NARROWER.get(wide) != narrow):
        accepted = sorted(types) + [f"{a}/{b}" for a, b in NARROWER.items()]
        refuse("network.tensors", f"the type {shown(code)}", f"one of {accepted}")
    if array is None or array.ndim != 1 or array.dtype != types[stored]:
        found = "nothing" if array is None else f"{array.dtype} with {array.ndim} dimensions"
        refuse(f"tensor {shown(PREFIX + code)}", found, f"{stored} with one dimension")
    return array.astype(types[wide]) if narrow else array
