"""Data-cache misses of layers and of a network, in the emulator's model of two levels without
prefetching."""

from __future__ import annotations

from pathlib import Path

from bench.arm.counting import misses
from bench.arm.networks import bits_of, input_of, program_of, work_of
from bench.arm.peer_layers import LAYERS

CPUS = ("cortex-a53", "cortex-a76")
NETWORK, PLAN = "mobilenetv3_large", "4"


def works(build: Path, folder: Path, network: bool) -> list[tuple[str, int, list[str]]]:
    """Return what is run: its name, its bits, the command but for the number of calls."""
    found = [
        (layer.name, bits, [str(build / "defakeq_bench"), "--work", layer.name, "--bits", str(bits),
                            "--calls"])
        for layer in LAYERS
        for bits in (8, 4, 2)
    ]  # fmt: skip
    if network:
        files = [str(program_of(NETWORK, PLAN)), str(input_of(NETWORK, folder))]
        command = [str(build / "dq_run"), *files, "--bench", "--repeat"]
        found.append((work_of(NETWORK, PLAN), bits_of(PLAN), command))
    return found


def measure(
    build: Path, folder: Path, network: bool, environment: dict[str, str]
) -> list[dict[str, object]]:
    """Return the misses of one warm call, a row a work, width and core."""
    rows: list[dict[str, object]] = []
    for cpu in CPUS:
        for work, bits, command in works(build, folder, network):
            one, two = (misses(cpu, [*command, str(calls)], environment) for calls in (1, 2))
            first, second = (b - a for a, b in zip(one, two, strict=True))
            print(f"{work:32s} {bits} bits  {cpu:11s} {first} and {second} misses", flush=True)
            rows.append(
                {"work": work, "bits": bits, "engine": "defakeq", "cpu": cpu,
                 "l1_misses": first, "l2_misses": second}
            )  # fmt: skip
    return rows
