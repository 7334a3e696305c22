"""What a result was measured on."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import defakeq_kernels
from defakeq_kernels import _core

_PACKAGES = ("numpy", "torch", "onnxruntime", "openvino")


def caches() -> dict[str, str]:
    """Sizes of the first processor's caches, as the system states them: {"L2": "1024K", ...}."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def versions() -> dict[str, str]:
    """Versions of what takes part in a comparison; what is not installed is absent."""
    found = {"python": platform.python_version(), "defakeq": defakeq_kernels.__version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine_record(threads: int, cpus: list[int] | None, command: str) -> dict[str, Any]:
    """Describe the machine and probe one core of it.

    Args:
        threads: how many threads each engine uses.
        cpus: the processors that they are pinned to; None: not pinned.
        command: what was called.

    Returns:
        "cpu", "isa" (the tier in use), "threads", "int8_peak_gmacs" and "fp32_peak_gmacs" (of one
        core, 10^9 multiply-adds a second), "l2_gbs" and "dram_gbs" (10^9 bytes a second, one
        core), "pinned_cpus", "processors", "load" (over the last minute, before the run),
        "caches", "system", "versions", "date", "command".
    """
    info = defakeq_kernels.cpu_info()
    peak = _core.probe_peak()
    return {
        "cpu": info["cpu"],
        "isa": info["selected"],
        "threads": threads,
        "int8_peak_gmacs": round(peak["int8_gmacs"], 2),
        "fp32_peak_gmacs": round(peak["fp32_gmacs"], 2),
        "l2_gbs": round(peak["l2_gbs"], 1),
        "dram_gbs": round(peak["dram_gbs"], 1),
        "pinned_cpus": cpus,
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "caches": caches(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
    }
