"""Compiling recorded launches for a GPU that is not there, and reading what came out.

Needs no driver and no device: Triton brings its own assembler and disassembler.
"""

from __future__ import annotations

import collections
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from defakeq_kernels.triton.start import Launch

_TYPES = {
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
}
_MMA = re.compile(r"[A-Z]G?MMA")
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]+)(.*)")


def signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Types, constants and alignments of a launch, as a call on a device would compile it.

    Tensors and integers that are multiples of 16 are compiled as such; an argument of 1 and one
    that is None are constants. Integers that the kernel does not specialize are neither.
    """
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: dict[Any, Any] = {}
    plain = {p.name for p in launch.kernel.params if p.do_not_specialize}
    for i, (name, value) in enumerate(launch.arguments.items()):
        one = type(value) is int and value == 1 and name not in plain
        if name in launch.constants or value is None or one:
            constants[name] = value
            types[name] = "constexpr"
            continue
        if isinstance(value, Tensor):
            types[name] = "*" + _TYPES[value.dtype]
            multiple = value.data_ptr() % 16 == 0
        elif isinstance(value, int):
            types[name] = "i32"
            multiple = value % 16 == 0 and name not in plain
        else:
            types[name] = "fp32"
            multiple = False
        if multiple:
            aligned[(i,)] = [["tt.divisibility", 16]]
    return types, constants, aligned


def compile_launch(launch: Launch, arch: int) -> Any:
    """The compiled kernel of a recorded launch for compute capability `arch` (87 for 8.7).

    Raises:
        RuntimeError: under TRITON_INTERPRET=1, which replaces the compiler in the whole process.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET: found 1; accepted is a process without it")
    types, constants, aligned = signature(launch)
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=aligned)
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": False,
    }
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


@dataclass(frozen=True)
class Report:
    """What the machine code of a kernel has.

    Attributes:
        registers: of a thread.
        stack, local: bytes of local memory, 0 without spills.
        shared: bytes of shared memory a block.
        instructions: of the whole kernel.
        counts: instructions by name.
        loops: one entry an inner loop with tensor core instructions: counts by name.
    """

    registers: int
    stack: int
    local: int
    shared: int
    instructions: int
    counts: dict[str, int]
    loops: tuple[dict[str, int], ...] = field(default=())

    def like(self, pattern: str) -> int:
        """Instructions whose names begin with a match of `pattern`."""
        return sum(n for name, n in self.counts.items() if re.match(pattern, name))

    @property
    def per_mma(self) -> float:
        """Instructions an MMA instruction in the inner loop that has the most a piece."""
        ratios = []
        for loop in self.loops:
            products = sum(n for name, n in loop.items() if _MMA.match(name))
            ratios.append(sum(loop.values()) / products)
        return max(ratios, default=0.0)


def report(compiled: Any) -> Report:
    """Disassembles a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", path)
        listing = _tool("cuobjdump", "-sass", path)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None
    lines = [m for m in map(_INSTRUCTION.match, listing.splitlines()) if m]
    code = [(int(m[1], 16), m[2], m[3]) for m in lines]
    counts = collections.Counter(name for _, name, _ in code)
    return Report(
        registers=int(found[1]),
        stack=int(found[2]),
        local=int(found[3]),
        shared=compiled.metadata.shared,
        instructions=len(code),
        counts=dict(counts),
        loops=tuple(_product_loops(code)),
    )


def _product_loops(code: list[tuple[int, str, str]]) -> list[dict[str, int]]:
    """The innermost loops that have tensor core instructions."""
    ranges = []
    for at, name, rest in code:
        target = re.search(r"(?:0x|`\(\.L_x?)([0-9a-f]+)", rest) if name.startswith("BRA") else None
        if target and int(target[1], 16) < at:
            ranges.append((int(target[1], 16), at))
    loops: list[tuple[int, int]] = []
    found = []
    for low, high in sorted(ranges, key=lambda r: r[1] - r[0]):
        if any(low <= a and b <= high for a, b in loops):
            continue
        body = collections.Counter(name for at, name, _ in code if low <= at <= high)
        if any(_MMA.match(name) for name in body):
            loops.append((low, high))
            found.append(dict(body))
    return found


def _tool(name: str, *arguments: object) -> str:
    command = [str(_TOOLS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
