"""What this machine and this installation offer."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs that the driver reports; asks the driver, not torch."""
    for library in ("libcuda.so.1", ctypes.util.find_library("cuda") or ""):
        try:
            driver = ctypes.CDLL(library) if library else None
        except OSError:
            driver = None
        if driver is not None:
            break
    else:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    names = []
    for index in range(count.value):
        device, text = ctypes.c_int(0), ctypes.create_string_buffer(256)
        if driver.cuDeviceGet(ctypes.byref(device), index) == 0:
            driver.cuDeviceGetName(text, len(text), device)
            names.append(text.value.decode(errors="replace"))
    return names


def collect() -> dict[str, Any]:
    """Return version, processor, instruction sets, threads, torch and GPUs as plain values.

    ``torch`` is a dict with ``version`` (None without torch) and ``ops`` (whether the torch ops are
    built). Raises ``ImportError`` when the native library is missing.
    """
    import defakeq_kernels

    cpu = defakeq_kernels.cpu_info()
    folders = [Path(str(part)) for part in defakeq_kernels.__path__]
    built = any(any(folder.glob("_torch_ops*.so")) for folder in folders)
    return {
        "version": defakeq_kernels.__version__,
        "cpu": cpu["cpu"],
        "isa": {name: list(cpu["isa"][name]) for name in ("built", "supported", "allowed")},
        "selected": cpu["selected"],
        "threads": cpu["threads"],
        "torch": {"version": _version("torch"), "ops": built},
        "gpus": gpus(),
        "triton": _version("triton"),
    }


def lines(info: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what :func:`collect` returned as pairs of a label and a text."""
    torch = info["torch"]
    if torch["version"] is None:
        torch_text = "not installed (the torch-free part works)"
    elif torch["ops"]:
        torch_text = f"{torch['version']}, ops built"
    else:
        torch_text = f"{torch['version']}, ops not built: install defakeq again with torch present"
    return [
        ("version", info["version"]),
        ("processor", info["cpu"]),
        ("kernels built", " ".join(info["isa"]["built"])),
        ("kernels supported", " ".join(info["isa"]["supported"])),
        ("kernels allowed", " ".join(info["isa"]["allowed"])),
        ("kernels in use", info["selected"]),
        ("threads", str(info["threads"])),
        ("torch", torch_text),
        ("GPU", ", ".join(info["gpus"]) or "none"),
        ("triton", info["triton"] or "not installed"),
    ]
