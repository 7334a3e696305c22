"""Codes of 1 to 8 bits as little-endian bit streams: ``docs/format.md`` has the diagrams."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defakeq_kernels.checks import is_integer

HALF_BITS = 16

_PACK_CHUNK = 1 << 22


def row_bytes(count: int, bits: int) -> int:
    """Bytes of one packed row of `count` codes of `bits` bits."""
    return (count * bits + 7) // 8


def level_step(bits: int) -> int:
    """The step between the integer levels of neighbouring codes: 2 for 1-bit codes, else 1."""
    return 2 if bits == 1 else 1


def symmetric_zero_point(bits: int) -> int:
    """The zero point of a segment that stores none: 2^(bits-1)."""
    return 1 << (bits - 1)


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Packs each row of `codes` into a little-endian bit stream, padded with zero bits to a byte.

    Args:
        codes: uint8 [rows, count], every value below 2^bits.
        bits: 1 to 8.

    Returns:
        uint8 [rows, ceil(count * bits / 8)].

    Raises:
        ValueError: a wrong width, type, rank, or a code that does not fit.
    """
    _check_width(bits)
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise ValueError(
            f"codes: found {codes.dtype} with shape {codes.shape}; accepted is uint8 [rows, count]"
        )
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"codes: found {int(codes.max())}; accepted is 0 to {(1 << bits) - 1}")
    rows, count = codes.shape
    packed = np.empty((rows, row_bytes(count, bits)), np.uint8)
    for part in _chunks(rows, count):
        stream = np.unpackbits(codes[part, :, None], axis=2, count=bits, bitorder="little")
        stream = stream.reshape(len(stream), count * bits)
        packed[part] = np.packbits(stream, axis=1, bitorder="little")
    return packed


def unpack_codes(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `pack_codes`: uint8 [rows, row bytes] to uint8 [rows, count].

    Raises:
        ValueError: a wrong width, type, rank or row length.
    """
    _check_width(bits)
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != row_bytes(count, bits):
        raise ValueError(
            f"packed: found {packed.dtype} with shape {packed.shape}; accepted is uint8 "
            f"[rows, {row_bytes(count, bits)}] for {count} codes of {bits} bits"
        )
    if bits == 8:
        return packed.copy()
    rows = packed.shape[0]
    codes = np.empty((rows, count), np.uint8)
    for part in _chunks(rows, count):
        stream = np.unpackbits(packed[part], axis=1, count=count * bits, bitorder="little")
        code = stream[:, 0::bits].copy()
        for bit in range(1, bits):
            code |= stream[:, bit::bits] << bit
        codes[part] = code
    return codes


def _chunks(rows: int, count: int) -> list[slice]:
    step = max(1, _PACK_CHUNK // max(1, count))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def _check_width(bits: int) -> None:
    if not is_integer(bits) or not 1 <= bits <= 8:
        raise ValueError(f"bits: found {bits!r}; accepted is an integer from 1 to 8")
