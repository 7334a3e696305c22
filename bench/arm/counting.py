"""Exact counts of a guest's instructions, by the emulator's plugin."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

EMULATE = Path(__file__).resolve().parents[2] / "tools/arm/emulate.sh"


def _run(option: str, cpu: str, command: list[str], environment: dict[str, str]) -> str:
    result = subprocess.run(
        [str(EMULATE), option, cpu, *command],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} on {cpu}: {result.stderr[-500:]}")
    return result.stderr


def _number(name: str, text: str) -> int:
    found = re.findall(rf"^{name} (\d+)$", text, re.MULTILINE)
    if len(found) != 1:
        raise RuntimeError(f"the emulator printed {name} {len(found)} times; expected: once")
    return int(found[0])


def count(cpu: str, command: list[str], environment: dict[str, str]) -> int:
    """Return the guest's instructions of one run."""
    return _number("instructions", _run("--count", cpu, command, environment))


def misses(cpu: str, command: list[str], environment: dict[str, str]) -> tuple[int, int]:
    """Return the guest's misses of the first and of the second level of data cache in one run."""
    text = _run("--misses", cpu, command, environment)
    return _number("first", text), _number("second", text)


def a_call(
    cpu: str, command: list[str], environment: dict[str, str], calls: tuple[int, int] = (1, 3)
) -> int:
    """Return the instructions of one call: what more calls add. `{calls}` in the command counts."""
    few, many = (
        count(cpu, [part.replace("{calls}", str(n)) for part in command], environment)
        for n in calls
    )
    return (many - few) // (calls[1] - calls[0])


def last_run(cpu: str, command: list[str], environment: dict[str, str]) -> int:
    """Return the instructions between a program's last two readings of the clock."""
    marks = re.findall(r"^mark (\d+)$", _run("--marks", cpu, command, environment), re.MULTILINE)
    return int(marks[-1]) - int(marks[-2])


def between_calls(cpu: str, command: list[str], environment: dict[str, str]) -> list[int]:
    """Return the instructions between a program's calls of getsid, which it makes in pairs."""
    found = re.findall(r"^call (\d+)$", _run("--marks", cpu, command, environment), re.MULTILINE)
    marks = [int(n) for n in found]
    return [last - first for first, last in zip(marks[::2], marks[1::2], strict=True)]


def row(work: str, bits: int, engine: str, cpu: str, instructions: int) -> dict[str, object]:
    """Return a row of the results, and print it."""
    print(f"{work:32s} {bits} bits  {engine:18s} {cpu:11s} {instructions / 1e6:9.3f} M", flush=True)
    return {"work": work, "bits": bits, "engine": engine, "cpu": cpu, "instructions": instructions}
