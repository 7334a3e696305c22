"""Reads and writes ``.dfq`` files: a network of packed weights in a safetensors container.

``docs/format.md`` describes every byte. A file is refused with a `ValueError` that names the wrong
field; nothing is allocated from a size that has not been checked against the file's own.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from defakeq_kernels import compact, defaults
from defakeq_kernels.checks import refuse, shown
from defakeq_kernels.packed import FLOAT_OUT, NO_ACT, PackedWeight
from defakeq_kernels.quantize import ACTIVATIONS, check_act, check_out

FORMAT = "defakeq"
VERSION = "1"
MAX_HEADER = 1 << 24
MAX_DEPTH = 32

Tensors = dict[str, NDArray[Any]]
Network = dict[str, Any]

_DTYPES = {
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("uint8"),
    "I8": np.dtype("int8"),
    "I16": np.dtype("int16"),
    "U16": np.dtype("uint16"),
    "F16": np.dtype("float16"),
    "I32": np.dtype("int32"),
    "U32": np.dtype("uint32"),
    "F32": np.dtype("float32"),
    "I64": np.dtype("int64"),
    "U64": np.dtype("uint64"),
    "F64": np.dtype("float64"),
}
# A header starts with these bytes; the eight digits of the checksum follow them.
_HEADER_START = (f'{{"__metadata__":{{"format":"{FORMAT}","version":"{VERSION}","crc32":"').encode()
_CRC_AT = 8 + len(_HEADER_START)
_CRC_BLANK = b"00000000"


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    network: Any,
    form: str = "compact",
) -> None:
    """Writes a file as a whole: it appears under `path` complete, or not at all.

    Args:
        path: where to; an existing file is replaced.
        tensors: arrays by name, those of the layers and any others.
        network: {"layers": {name: description}, ...}; everything else in it is the caller's, of
            the types that JSON has. `add_layer` makes descriptions.
        form: of the header: "compact", or "plain" for other readers of safetensors files, which
            then find each array by its name.

    Raises:
        ValueError: a wrong tensor, network or form, by name. Nothing is written.
        OSError: the file cannot be written.
    """
    data = dumps(tensors, network, form)
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "found no such folder", str(path.parent))
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # as when the disk is full
        raise


def read(path: str | os.PathLike[str]) -> tuple[Tensors, Network]:
    """Reads a file: (arrays by name, network). All layers have been validated.

    Raises:
        ValueError: not a valid file; the message names the field.
        OSError: the file cannot be read.
    """
    return loads(Path(path).read_bytes())


def dumps(tensors: Mapping[str, NDArray[Any]], network: Any, form: str = "compact") -> bytes:
    """The bytes that `write` writes; equal arguments and versions of zlib give equal bytes."""
    if form not in ("compact", "plain"):
        refuse("form", shown(form), '"compact" or "plain"')
    arrays: Tensors = {}
    for name, array in tensors.items():
        if not isinstance(name, str) or name in ("", "__metadata__"):
            refuse("tensor name", shown(name), "a non-empty string that is not __metadata__")
        if name.startswith(compact.PREFIX):
            refuse("tensor name", shown(name), f"one that does not start with {compact.PREFIX}")
        if (
            not isinstance(array, np.ndarray)
            or array.dtype.newbyteorder("=") not in _DTYPES.values()
        ):
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            refuse(f"tensor {shown(name)}", str(found), f"a numpy array of {sorted(_DTYPES)}")
        if array.ndim > compact.MAX_RANK:
            refuse(
                f"tensor {shown(name)}", f"{array.ndim} dimensions", f"at most {compact.MAX_RANK}"
            )
        arrays[name] = np.asarray(array, order="C")
    try:
        text = json.dumps(
            network, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"network: found {error}; accepted is what JSON can hold") from error
    parsed = _parse("network", text.encode("utf-8", "surrogatepass"))
    _check_network(arrays, parsed)
    if "tensors" in parsed:
        refuse("network.tensors", shown(parsed["tensors"]), "nothing: the key is kept for the file")
    stored = defaults.left_out(parsed)
    if form == "plain":
        header, payload = _encoded(arrays, _text(stored))
    else:
        joined, stored["tensors"] = compact.join(arrays, _DTYPES)
        header, payload = _encoded(joined, compact.deflated(_text(stored)))
    if len(header) > MAX_HEADER:
        refuse("header length", str(len(header)), f"at most {MAX_HEADER}")
    data = len(header).to_bytes(8, "little") + header + payload
    return data[:_CRC_AT] + _checksum(data) + data[_CRC_AT + len(_CRC_BLANK) :]


def _text(network: Any) -> str:
    return json.dumps(network, ensure_ascii=False, separators=(",", ":"))


def _encoded(tensors: Tensors, network: str) -> tuple[bytes, bytes]:
    """(header, payload) of a file whose checksum has not been filled in."""
    raw = safetensors.numpy.save(tensors)
    length = int.from_bytes(raw[:8], "little")
    table = _text(json.loads(raw[8 : 8 + length]))[1:-1]
    header = _HEADER_START + _CRC_BLANK + f'","network":{_text(network)}}}'.encode()
    header += (f",{table}}}" if table else "}").encode()
    return header + b" " * (-len(header) % 8), raw[8 + length :]


def loads(data: bytes) -> tuple[Tensors, Network]:
    """The inverse of `dumps`, with all checks of `read`."""
    header, payload_at = _read_header(data)
    network_text = _check_metadata(header, data)
    _check_table(header, len(data) - payload_at)
    crc = header["__metadata__"]["crc32"]
    computed = _checksum(data).decode()
    if crc != computed:
        refuse("crc32", shown(crc), f"{computed}, the checksum of the content")
    network = _parse("network", compact.inflated(network_text))
    try:
        tensors = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise ValueError(f"header: found {error}; accepted is a safetensors file") from error
    _layers(network)
    if "tensors" in network:
        tensors = compact.split(tensors, network.pop("tensors"), _DTYPES)
    defaults.fill(network)
    _check_network(tensors, network)
    return tensors, network


def add_layer(
    tensors: Tensors,
    network: Network,
    name: str,
    weight: PackedWeight,
    act: Mapping[str, Any] | None = None,
    activation: str = "none",
    out: Mapping[str, Any] | None = None,
) -> None:
    """Adds a packed layer to what `write` takes.

    Args:
        tensors, network: added to in place.
        name: the layer's name, new in both.
        weight: the packed weight.
        act: input quantization, `ActQuant.describe()`; None: weight-only float32 math.
        activation: the fused epilogue, by name.
        out: output description, `int8_out(...)`; None: float32.

    Raises:
        ValueError: a name in use, or a wrong description, by name.
    """
    layers = network.setdefault("layers", {})
    added = weight.validate(name).to_tensors(name)
    taken = [key for key in added if key in tensors]
    if name in layers or taken:
        refuse("name", shown(taken[0] if taken else name), "a name that is not in use")
    description = {
        **weight.describe(),
        "act": dict(act if act is not None else NO_ACT),
        "activation": activation,
        "out": dict(out if out is not None else FLOAT_OUT),
    }
    _check_epilogue(name, description)
    tensors.update(added)
    layers[name] = description


def constant(tensors: Mapping[str, NDArray[Any]], value: Mapping[str, Any]) -> NDArray[Any]:
    """A constant value of a program: its tensor, or the columns of it that an index names.

    Args:
        tensors: of the file.
        value: an entry of the program's values with ``tensor``.
    """
    array = tensors[value["tensor"]]
    if value.get("index") is not None:
        array = array.reshape(-1, array.shape[-1])[:, tensors[value["index"]]]
    return array.reshape(value["shape"])


def copy_index(tensors: Mapping[str, NDArray[Any]], node: Mapping[str, Any]) -> NDArray[np.int32]:
    """The whole index, int32 [n], of a program's copy: the tensor, or repetitions of it.

    Args:
        tensors: of the file.
        node: an entry of the program's nodes whose operation is "copy".
    """
    index = tensors[node["index"]]
    if node.get("step") is None:
        return index
    rounds = np.arange(node["repeats"], dtype=np.int64)[:, None]
    whole: NDArray[np.int32] = (index + rounds * tensors[node["step"]]).reshape(-1).astype(np.int32)
    return whole


def layer(
    tensors: Mapping[str, NDArray[Any]], network: Mapping[str, Any], name: str
) -> PackedWeight:
    """The packed weight of a layer; its "act", "activation" and "out" are in the network.

    Raises:
        ValueError: no such layer, or a wrong one.
    """
    if name not in network["layers"]:
        refuse("name", shown(name), f"one of {shown(sorted(network['layers']))}")
    return PackedWeight.from_tensors(name, tensors, network["layers"][name])


def _plain(value: object) -> Any:
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    raise TypeError(f"{type(value).__name__}")


def _checksum(data: bytes) -> bytes:
    """CRC-32 of a file in which the checksum's own digits are zeros, as eight hex digits."""
    view = memoryview(data)
    crc = zlib.crc32(_CRC_BLANK, zlib.crc32(view[:_CRC_AT]))
    crc = zlib.crc32(view[_CRC_AT + len(_CRC_BLANK) :], crc)
    return f"{crc:08x}".encode()


def _parse(field: str, data: bytes) -> Any:
    """Strict JSON: UTF-8, no repeated keys, no NaN, at most MAX_DEPTH levels."""

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            repeated = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {shown(repeated)} twice")
        return result

    def no_constant(text: str) -> Any:
        raise ValueError(text)

    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=no_repeats, parse_constant=no_constant
        )
        _check_depth(value)
    except RecursionError:
        refuse(field, "deep nesting", f"at most {MAX_DEPTH} levels")
    except ValueError as error:
        raise ValueError(f"{field}: found {error}; accepted is strict JSON") from error
    return value


def _check_depth(value: Any) -> None:
    """Refuses deep nesting, and the scalars that no other strict reader takes."""
    level = [[value]]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for container in level:
            if isinstance(container, dict):
                items = [*container.keys(), *container.values()]
            else:
                items = container
            for item in items:
                if isinstance(item, (dict, list)):
                    inner.append(item)
                elif isinstance(item, str):
                    item.encode("utf-8")
                elif isinstance(item, float) and not math.isfinite(item):
                    raise ValueError("a number out of range")
        if not inner:
            return
        level = inner
    raise ValueError(f"more than {MAX_DEPTH} levels of nesting")


def _read_header(data: bytes) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        refuse("header length", f"a file of {len(data)} bytes", "at least 8 bytes")
    length = int.from_bytes(data[:8], "little")
    limit = min(MAX_HEADER, len(data) - 8)
    if length > limit or length % 8:
        refuse("header length", str(length), f"a multiple of 8 up to {limit}")
    header = _parse("header", data[8 : 8 + length])
    if not isinstance(header, dict):
        refuse("header", shown(header), "an object")
    return header, 8 + length


def _check_metadata(header: dict[str, Any], data: bytes) -> str:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict):
        refuse("__metadata__", shown(metadata), "an object of strings")
    for key in ("format", "version", "crc32", "network"):
        if not isinstance(metadata.get(key), str):
            refuse(f"__metadata__.{key}", shown(metadata.get(key)), "a string")
    if metadata["format"] != FORMAT:
        refuse("__metadata__.format", shown(metadata["format"]), f'"{FORMAT}"')
    if metadata["version"] != VERSION:
        refuse("__metadata__.version", shown(metadata["version"]), f'"{VERSION}"')
    if data[8:_CRC_AT] != _HEADER_START:
        refuse("header", shown(data[8:_CRC_AT]), f"a start of {_HEADER_START!r}")
    text: str = metadata["network"]
    return text


def _check_table(header: Mapping[str, Any], payload: int) -> None:
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        field = f"tensor {shown(name)}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            refuse(field, shown(entry), "dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            refuse(f"{field} dtype", shown(dtype), f"one of {sorted(_DTYPES)}")
        if not compact.are_sizes(shape):
            refuse(f"{field} shape", shown(shape), f"up to {compact.MAX_RANK} sizes")
        if not compact.are_sizes(offsets) or len(offsets) != 2:
            refuse(f"{field} data_offsets", shown(offsets), "two offsets")
        begin, end = offsets
        item = _DTYPES[dtype].itemsize
        size = item
        for extent in shape:
            size *= extent
        if not begin <= end <= payload or end - begin != size or begin % item:
            refuse(
                f"{field} data_offsets",
                shown(offsets),
                f"{size} bytes for its shape, aligned, within the {payload} of the file",
            )
        spans.append((begin, end, field))
    at = 0
    for begin, end, field in sorted(spans):
        if begin != at:
            refuse(f"{field} data_offsets", f"a start at {begin}", f"a start at {at}")
        at = end
    if at != payload:
        refuse("data_offsets", f"{at} bytes of tensors", f"the {payload} of the file")


def _layers(network: Any) -> dict[str, dict[str, Any]]:
    """The descriptions of a network's layers, each an object."""
    if not isinstance(network, dict):
        refuse("network", shown(network), "an object")
    layers = network.get("layers")
    if not isinstance(layers, dict):
        refuse("network.layers", shown(layers), "an object")
    for name, description in layers.items():
        if not isinstance(name, str) or not name:
            refuse("network.layers", f"the name {shown(name)}", "a non-empty string")
        if not isinstance(description, dict):
            refuse(f"network.layers.{name}", shown(description), "an object")
    return layers


def _check_network(tensors: Mapping[str, NDArray[Any]], network: Any) -> None:
    for name, description in _layers(network).items():
        PackedWeight.from_tensors(name, tensors, description)
        _check_epilogue(name, description)


def _check_epilogue(name: str, description: Mapping[str, Any]) -> None:
    check_act(description.get("act"), f"{name}.act")
    if description.get("activation") not in ACTIVATIONS:
        found = shown(description.get("activation"))
        refuse(f"{name}.activation", found, f"one of {ACTIVATIONS}")
    check_out(description.get("out"), f"{name}.out")
