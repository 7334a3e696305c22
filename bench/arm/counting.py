"""Exact counts of a guest's instructions, by the emulator's plugin."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

EMULATE = Path(__file__).resolve().parents[2] / "tools/arm/emulate.sh"


def _numbers(
    option: str, names: tuple[str, ...], cpu: str, command: list[str], environment: dict[str, str]
) -> list[int]:
    result = subprocess.run(
        [str(EMULATE), option, cpu, *command],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    found = dict(re.findall(r"^(\w+) (\d+)$", result.stderr, re.MULTILINE))
    if result.returncode != 0 or not set(names) <= found.keys():
        raise RuntimeError(f"{' '.join(command)} on {cpu}: {result.stderr[-500:]}")
    return [int(found[name]) for name in names]


def count(cpu: str, command: list[str], environment: dict[str, str]) -> int:
    """Return the guest's instructions of one run."""
    return _numbers("--count", ("instructions",), cpu, command, environment)[0]


def misses(cpu: str, command: list[str], environment: dict[str, str]) -> list[int]:
    """Return the guest's misses of the first and of the second level of data cache in one run."""
    return _numbers("--misses", ("first", "second"), cpu, command, environment)


def a_call(
    cpu: str, command: list[str], environment: dict[str, str], calls: tuple[int, int] = (1, 3)
) -> int:
    """Return the instructions of one call: what more calls add. `{calls}` in the command counts."""
    few, many = (
        count(cpu, [part.replace("{calls}", str(n)) for part in command], environment)
        for n in calls
    )
    return (many - few) // (calls[1] - calls[0])


def row(work: str, bits: int, engine: str, cpu: str, instructions: int) -> dict[str, object]:
    """Return a row of the results, and print it."""
    print(f"{work:32s} {bits} bits  {engine:18s} {cpu:11s} {instructions / 1e6:9.3f} M", flush=True)
    return {"work": work, "bits": bits, "engine": engine, "cpu": cpu, "instructions": instructions}
