"""Multiply-accumulates a cycle of the ARM kernels' inner loops, by llvm-mca's models of the cores.

A model knows the pipelines, not the memory: it ranks loops, it is no time. LLVM has no model of the
Cortex-A76, whose back end is the Neoverse N1's, nor of the A710, for which the Neoverse N2 stands.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

MODELS = {
    "cortex-a53": "cortex-a53",
    "cortex-a55": "cortex-a55",
    "cortex-a72": "cortex-a72",
    "cortex-a76": "neoverse-n1",
    "cortex-a710": "neoverse-n2",
}
PRODUCTS = {"sdot": 16, "usmmla": 32}
BRANCH = re.compile(r"^(b\.\w+|cbn?z|tbn?z)\s.*?(0x[0-9a-f]+)")


class Loop(NamedTuple):
    """An inner loop: what it computes, its object file, which function, its cores."""

    kernel: str
    source: str
    function: str
    models: tuple[str, ...]
    products: str = "integer"  # or "float", or "dot" alone


LOOPS = (
    Loop(
        "gemm, 8 bits and fewer, sdot",
        "neondot/dq_gemm_q8",
        "gemm_s8",
        ("cortex-a76", "cortex-a55"),
    ),
    Loop("gemm, 8 bits and fewer, usmmla", "i8mm/dq_gemm_q8", "gemm_s8", ("cortex-a710",)),
    Loop(
        "gemm, 8 bits, smull",
        "neon/dq_gemm_q8",
        r"gemm_s8.*::operator\(\)<4>",
        ("cortex-a72", "cortex-a53"),
    ),
    Loop(
        "gemm, 8 bits, extreme codes",
        "neon/dq_gemm_q8",
        "sum_extremes<2>",
        ("cortex-a72", "cortex-a53"),
    ),
    Loop(
        "gemm, 6 bits and fewer, smlal",
        "neon/dq_gemm_q8",
        r"sum_low_bits\(.*Finish const&\)$|sum_chains\(",
        ("cortex-a72", "cortex-a53"),
    ),
    Loop(
        "winograd 3x3, smlal",
        "neon/dq_winograd",
        "winograd_products",
        ("cortex-a72", "cortex-a53"),
    ),
    Loop(
        "dwconv 3x3, few bits, smlal",
        "neon/dq_dwconv",
        "dw_chain_rows<true, 3, 1>",
        ("cortex-a72", "cortex-a53", "cortex-a76"),
    ),
    Loop(
        "dwconv 3x3, sdot",
        "neondot/dq_dwconv",
        r"dw_3x3_rows<.*0, true>",
        ("cortex-a76", "cortex-a55"),
        "dot",
    ),
    Loop(
        "dwconv 3x3, zero points, sdot",
        "neondot/dq_dwconv",
        r"dw_3x3_rows<.*1, true>",
        ("cortex-a76", "cortex-a55"),
        "dot",
    ),
    Loop(
        "dwconv 3x3, 8 bits, smlal",
        "neon/dq_dwconv",
        r"dw_3x3_rows<.*2, true>",
        ("cortex-a72", "cortex-a53"),
    ),
    Loop(
        "gemm, 4 float32 outputs, fmla",
        "neondot/dq_gemm_f32",
        "tile<4, 1>",
        ("cortex-a76", "cortex-a72", "cortex-a53"),
        "float",
    ),
)


def products_of(text: str, products: str) -> int:
    """Return the multiply-accumulates of one instruction."""
    name = text.split()[0]
    if products == "float":
        return 4 if name == "fmla" else 0
    if name in PRODUCTS:
        return PRODUCTS[name]
    if products != "dot" and re.match(r"smla?l2?$|smull2?$", name):
        return 8 if ".8h" in text.split(",")[0] else 4
    return 0


def inner_loops(path: Path, function: str) -> list[list[str]]:
    """Return the innermost loops of the functions whose demangled name matches."""
    dump = subprocess.run(
        ["llvm-objdump-19", "-d", "-C", "--no-show-raw-insn", str(path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    code: list[str] = []
    at: dict[str, int] = {}
    active = False
    for line in dump.splitlines():
        head = re.match(r"^[0-9a-f]+ <(.+)>:$", line)
        if head:
            active = re.search(function, head[1]) is not None
        body = re.match(r"\s*([0-9a-f]+):\s+([a-z].*)", line)
        if body and active:
            at[f"0x{body[1]}"] = len(code)
            code.append(re.sub(r"\s*(//.*|<[^>]*>.*)", "", body[2]).strip())
    spans = []
    for end, text in enumerate(code):
        branch = BRANCH.match(text)
        if branch and at.get(branch[2], end + 1) <= end:
            spans.append((at[branch[2]], end))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [code[first : last + 1] for first, last in inner]


def measure(objects: Path) -> list[dict[str, object]]:
    """Return a row a loop and core, of the object files below ``objects``."""
    rows: list[dict[str, object]] = []
    for loop in LOOPS:
        tier, file = loop.source.split("/")
        folder = objects / f"CMakeFiles/defakeq_kernels_{tier}.dir"
        found = list(folder.rglob(f"{file}_*.cpp.o"))
        if len(found) != 1:
            raise RuntimeError(f"{loop.source}: found {len(found)} object files, accepted: 1")
        bodies = inner_loops(found[0], loop.function)
        if not bodies:
            raise RuntimeError(f"{loop.source}: no loop in a function named {loop.function}")
        # the most products, of loops with as many the shortest
        macs, _, body = max(
            ((sum(products_of(t, loop.products) for t in b), -len(b), b) for b in bodies),
            key=lambda found: found[:2],
        )
        straight = "\n".join(t for t in body if not BRANCH.match(t)) + "\n"
        for core in loop.models:
            report = subprocess.run(
                [
                    "llvm-mca-19",
                    "-mtriple=aarch64",
                    f"-mcpu={MODELS[core]}",
                    "-mattr=+dotprod,+i8mm,+fullfp16",
                    "-iterations=200",
                ],
                input=straight,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            cycles = int(re.search(r"Total Cycles:\s+(\d+)", report)[1])  # type: ignore[index]
            rows.append(
                {
                    "kernel": loop.kernel,
                    "model": core,
                    "mac_per_cycle": round(200 * macs / cycles, 2),
                    "instructions": len(body),
                    "macs": macs,
                    "stack_references": sum("[sp" in text for text in body),
                }
            )
    return rows
