"""Data-cache misses of layers, in the emulator's model of two levels without prefetching."""

from __future__ import annotations

from pathlib import Path

from bench.arm.counting import misses

WORKS = ("conv 3x3 64@56x56", "conv 1x1 728@16x16", "dwconv 3x3 728@16x16")
CPUS = ("cortex-a53", "cortex-a76")


def measure(build: Path, environment: dict[str, str]) -> list[dict[str, object]]:
    """Return the misses of one warm call, a row a layer, width and core."""
    rows: list[dict[str, object]] = []
    for cpu in CPUS:
        for work in WORKS:
            for bits in (8, 4, 2):
                command = [str(build / "defakeq_bench"), "--work", work, "--bits", str(bits)]
                one, two = (
                    misses(cpu, [*command, "--calls", str(calls)], environment) for calls in (1, 2)
                )
                first, second = (b - a for a, b in zip(one, two, strict=True))
                print(f"{work:32s} {bits} bits  {cpu:11s} {first} and {second} misses", flush=True)
                rows.append(
                    {"work": work, "bits": bits, "engine": "defakeq", "cpu": cpu,
                     "l1_misses": first, "l2_misses": second}
                )  # fmt: skip
    return rows
