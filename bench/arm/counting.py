"""Exact counts of a guest's instructions, by the emulator's plugin.

A count depends on the files and the CPU only, so it is kept: in ARM_HOME/counts.json.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import threading
from functools import cache
from pathlib import Path

EMULATE = Path(__file__).resolve().parents[2] / "tools/arm/emulate.sh"
_PRINTED = re.compile(r"^(?:instructions|mark|call|first|second) \d+$", re.MULTILINE)
_lock = threading.Lock()


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _key(option: str, cpu: str, command: list[str], environment: dict[str, str]) -> str:
    """What a count depends on, wherever it lies: libraries beside a program, a peer's in PYTHONPATH
    and both files of ncnn's."""
    found = []
    for part in command:
        path = Path(part)
        files = [path, path.with_suffix(".param"), path.with_suffix(".bin")]
        if path.suffix == "" and path.is_file():
            files += sorted(path.parent.glob("*.so"))
        digests = [_digest(file) for file in files if file.is_file()]
        found.append([path.name if digests else part, *digests])
    site = Path(environment.get("PYTHONPATH", "/nowhere"))
    found.append(sorted(path.name for path in site.glob("*.dist-info")))
    return hashlib.sha256(json.dumps([option, cpu, found]).encode()).hexdigest()


def _run(option: str, cpu: str, command: list[str], environment: dict[str, str]) -> str:
    """Return what the plugin prints."""
    key = _key(option, cpu, command, environment)
    kept = Path(environment["DEFAKEQ_ARM_HOME"]) / "counts.json"
    with _lock:
        counts = json.loads(kept.read_text()) if kept.exists() else {}
    if key in counts:
        return str(counts[key])
    result = subprocess.run(
        [str(EMULATE), option, cpu, *command],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} on {cpu}: {result.stderr[-500:]}")
    printed = "\n".join(_PRINTED.findall(result.stderr))
    with _lock, kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of other runs
        counts = json.loads(kept.read_text()) if kept.exists() else {}
        part = kept.with_suffix(".part")
        part.write_text(json.dumps({**counts, key: printed}, indent=0))
        part.replace(kept)
    return printed


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


def last_run(cpu: str, command: list[str], environment: dict[str, str], marks: int) -> int:
    """Return the instructions from the first to the last of a program's last readings of the clock,
    of which each takes some thirty itself."""
    found = re.findall(r"^mark (\d+)$", _run("--marks", cpu, command, environment), re.MULTILINE)
    return int(found[-1]) - int(found[-marks])


def between_calls(cpu: str, command: list[str], environment: dict[str, str]) -> list[int]:
    """Return the instructions between a program's calls of getsid, which it makes in pairs."""
    found = re.findall(r"^call (\d+)$", _run("--marks", cpu, command, environment), re.MULTILINE)
    marks = [int(n) for n in found]
    return [last - first for first, last in zip(marks[::2], marks[1::2], strict=True)]


def row(work: str, bits: int, engine: str, cpu: str, instructions: int) -> dict[str, object]:
    """Return a row of the results, and print it."""
    print(f"{work:32s} {bits} bits  {engine:18s} {cpu:11s} {instructions / 1e6:9.3f} M", flush=True)
    return {"work": work, "bits": bits, "engine": engine, "cpu": cpu, "instructions": instructions}
