"""The bars of the ARM kernels beside what `make bench-arm` counted: bars.py arm.json."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.arm.networks import NETWORKS

CONV, POINTWISE, DEPTHWISE = "conv 3x3 64@56x56", "conv 1x1 728@16x16", "dwconv 3x3 728@16x16"
SYMMETRIC = " symmetric"  # without zero points

Bar = tuple[str, float, str, float]  # what, found, "<=" or ">=", accepted


class Counts:
    """The rows and loops of a file, by name."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.rows = {
            (row["work"], row["engine"], row["bits"], row["cpu"]): row["instructions"]
            for row in document["rows"]
        }
        self.loops = {(loop["kernel"], loop["model"]): loop for loop in document["loops"]}

    def ours(self, work: str, bits: int, cpu: str) -> float:
        """Return millions of instructions of this project's."""
        return float(self.rows[work, "defakeq", bits, cpu]) / 1e6

    def best(self, work: str, cpu: str) -> float:
        """Return millions of instructions of the best peer."""
        return (
            min(
                float(count)
                for (name, engine, _, on), count in self.rows.items()
                if (name, on) == (work, cpu) and engine != "defakeq"
            )
            / 1e6
        )

    def rate(self, kernel: str, model: str) -> float:
        """Return the multiply-accumulates a cycle of a loop."""
        return float(self.loops[kernel, model]["mac_per_cycle"])


def bars(c: Counts) -> Iterator[Bar]:
    """Yield every bar."""
    sdot = c.rate("gemm, 8 bits and fewer, sdot", "cortex-a76")
    usmmla = c.rate("gemm, 8 bits and fewer, usmmla", "cortex-a710")
    eight = c.rate("gemm, 8 bits, smull", "cortex-a72")
    low = c.rate("gemm, 6 bits and fewer, smlal", "cortex-a72")
    for bits, accepted in ((8, 31.0), (4, 28.0), (2, 26.0)):
        yield f"sdot, {bits} bits, MAC/cycle on the A76 model", sdot, ">=", accepted
    for bits, accepted in ((8, 60.0), (4, 50.0)):
        yield f"usmmla, {bits} bits, MAC/cycle on the A710 model", usmmla, ">=", accepted
    yield "smull, 8 bits, MAC/cycle on the A72 model", eight, ">=", 7.5
    for bits, fewer in ((4, 1.3), (2, 1.4)):
        yield f"smlal, {bits} bits, MAC/cycle on the A72 model", low, ">=", eight
        ratio = c.ours(POINTWISE, 8, "cortex-a53") / c.ours(POINTWISE, bits, "cortex-a53")
        yield f"{POINTWISE}, 8 bits over {bits} on cortex-a53", ratio, ">=", fewer
    yield (
        "stack references of the inner loops",
        float(sum(loop["stack_references"] for loop in c.loops.values())),
        "<=",
        0.0,
    )
    for bits in (8, 4, 2):
        yield f"{CONV}, {bits} bits, M on cortex-a76", c.ours(CONV, bits, "cortex-a76"), "<=", 10.5
    best = c.best(CONV, "cortex-a53")
    for bits, accepted in ((4, 20.0), (2, 18.0)):
        found = c.ours(CONV, bits, "cortex-a53")
        yield f"{CONV}, {bits} bits, M on cortex-a53", found, "<=", accepted
        yield f"{CONV}, {bits} bits over the best peer on cortex-a53", found / best, "<=", 1.0
    best = c.best(DEPTHWISE, "cortex-a76")
    symmetric = c.ours(DEPTHWISE + SYMMETRIC, 8, "cortex-a76") / best
    yield f"{DEPTHWISE}, 8 bits symmetric, as the peers'", symmetric, "<=", 0.5
    for bits in (8, 4, 2):
        ratio = c.ours(DEPTHWISE, bits, "cortex-a76") / best
        yield f"{DEPTHWISE}, {bits} bits with zero points", ratio, "<=", 0.5
        half = c.ours(CONV + " half-in-out", bits, "cortex-a76") / c.ours(CONV, bits, "cortex-a76")
        yield f"{CONV}, {bits} bits, half the channels", half, "<=", 0.30
    for name, suffix, accepted in (("4 bits", "", 0.85), ("half", " half", 0.40)):
        ratios = [
            c.ours(network + suffix, 4, "cortex-a76") / c.best(network, "cortex-a76")
            for network in NETWORKS
        ]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        yield f"four networks, {name} over the best peer on cortex-a76", mean, "<=", accepted


def behind(c: Counts) -> Iterator[tuple[str, int, str, float]]:
    """Yield the dense works in which a peer does fewer: work, bits, CPU, ours over the best."""
    peers = {(work, cpu) for work, engine, _, cpu in c.rows if engine != "defakeq"}
    for work, engine, bits, cpu in c.rows:
        if engine == "defakeq" and (work, cpu) in peers:
            ratio = c.ours(work, bits, cpu) / c.best(work, cpu)
            if ratio > 1:
                yield work, bits, cpu, ratio


def main() -> None:
    counts = Counts(json.loads(Path(sys.argv[1]).read_text()))
    for what, found, relation, accepted in bars(counts):
        met = found >= accepted if relation == ">=" else found <= accepted
        state = "met" if met else "MISSED"
        print(f"{what:62s} {found:8.3f} {relation} {accepted:6.2f}  {state}")
    print("\nwhere a peer does fewer instructions, ours over the best")
    for work, bits, cpu, ratio in behind(counts):
        print(f"{work:24s} {bits} bits  {cpu:12s} {ratio:6.3f}")


if __name__ == "__main__":
    main()
