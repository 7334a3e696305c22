"""The few PTX instructions that kernels inline, on numbers: enough to check them without a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

WORD = 0xFFFFFFFF


def run(text: str, outputs: int, inputs: list[int]) -> list[int]:
    """The output words of an inline PTX block: operands $0.. are outputs, then inputs."""
    registers: dict[str, int] = {f"${outputs + i}": word for i, word in enumerate(inputs)}

    def value(name: str) -> int:
        return int(name, 16) if name.startswith("0x") else int(name) if name.isdigit() else (
            registers[name]
        )  # fmt: skip

    for line in re.split(r"[;{}]", text):
        line = line.strip()
        if not line or line.startswith(".reg"):
            continue
        name, operands = line.split(None, 1)
        target, *sources = (part.strip() for part in operands.split(","))
        registers[target] = OPERATIONS[name](*map(value, sources)) & WORD
    return [registers[f"${i}"] for i in range(outputs)]


def lop3(a: int, b: int, c: int, table: int) -> int:
    result = 0
    for bit in range(32):
        index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
        result |= (table >> index & 1) << bit
    return result


def prmt(a: int, b: int, selector: int) -> int:
    data = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    chosen = [selector >> 4 * i & 15 for i in range(4)]
    assert all(c < 8 for c in chosen), "sign replication is not modelled"
    return int.from_bytes(bytes(data[c] for c in chosen), "little")


def _bits(x: Any) -> int:
    return int(np.asarray(x, np.float32).view(np.uint32))


def _float(word: int) -> np.float32:
    return np.uint32(word).view(np.float32)


def _bfloat(x: np.float32) -> int:
    word = _bits(x)
    assert word & 0xFFFF == 0, f"{x} is not a bfloat16"
    return word >> 16


def _halves(word: int) -> np.ndarray:
    return np.array([word], np.uint32).view(np.float16).astype(np.float32)


def sub_f16x2(a: int, b: int) -> int:
    return int((_halves(a) - _halves(b)).astype(np.float16).view(np.uint32)[0])


def fma_bf16x2(a: int, b: int, c: int) -> int:
    parts = []
    for shift in (0, 16):
        x, y, z = (_float((word >> shift & 0xFFFF) << 16) for word in (a, b, c))
        parts.append(_bfloat(np.float32(x * y + z)))
    return parts[0] | parts[1] << 16


OPERATIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "shl.b32": lambda a, n: a << n,
    "shr.b32": lambda a, n: a >> n,
    "xor.b32": lambda a, b: a ^ b,
    "lop3.b32": lop3,
    "prmt.b32": prmt,
    "sub.f16x2": sub_f16x2,
    "fma.rn.bf16x2": fma_bf16x2,
    "sub.f32": lambda a, b: _bits(_float(a) - _float(b)),
    "cvt.rn.bf16x2.f32": lambda high, low: _bfloat(_float(high)) << 16 | _bfloat(_float(low)),
}
