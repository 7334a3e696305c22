"""Configures the cross build for 64-bit ARM Linux, with the Python module when there is a root file
system: configure.py BUILD ARM_HOME [CMAKE_OPTION ...]. Needs pybind11."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pybind11


def python_options(rootfs: Path) -> list[str]:
    """Return the options for the Python of a root file system, none when there is none."""
    headers = sorted(rootfs.glob("usr/include/python3.*"))
    if not headers:
        return []
    version = headers[-1].name.removeprefix("python").replace(".", "")
    return [
        "-DDEFAKEQ_PYTHON=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        "-DPYBIND11_FINDPYTHON=ON",
        # pybind11 would take another interpreter than last time for that of the target
        "-UPYBIND11_PYTHON_EXECUTABLE_LAST",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DPython_INCLUDE_DIR={headers[-1]}",
        f"-DPYTHON_MODULE_EXTENSION=.cpython-{version}-aarch64-linux-gnu.so",
        f"-DCMAKE_CXX_FLAGS=-idirafter {rootfs / 'usr/include'}",
    ]


def main() -> None:
    build, home, *options = sys.argv[1:]
    root = Path(__file__).resolve().parent.parent.parent
    command = ["cmake", "-S", str(root), "-B", build, "-G", "Ninja"]
    command.append(f"-DCMAKE_TOOLCHAIN_FILE={root / 'cmake/toolchains/aarch64-linux.cmake'}")
    command += python_options(Path(home).absolute() / "rootfs") + options
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
