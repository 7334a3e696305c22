"""Builds the C++ library and its bindings with CMake.

torch is no build requirement. The torch ops are built when a torch of at least 2.10 is found in the
environment that is installed into. ``DEFAKEQ_TORCH`` overrides the search: the directory of a torch
package, or ``off``. ``DEFAKEQ_BUILD_DIRECTORY`` names a configured CMake build to package instead
of one for this interpreter: a cross build.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MIN_TORCH = (2, 10)


def read_version() -> str:
    """Return the version that the C++ header states."""
    text = (ROOT / "csrc/include/defakeq/version.h").read_text()
    match = re.search(r'#define DEFAKEQ_VERSION "([^"]+)"', text)
    if match is None:
        raise RuntimeError("csrc/include/defakeq/version.h: no DEFAKEQ_VERSION found")
    return match.group(1)


def site_directories() -> list[Path]:
    """Return the package directories of the environment that is installed into.

    With build isolation the interpreter is that of the target environment, but its site-packages
    are taken off ``sys.path``; they are found by the prefix instead.
    """
    found = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    tail = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    if "VIRTUAL_ENV" in os.environ:
        found.append(str(Path(os.environ["VIRTUAL_ENV"]) / tail))
    config = Path(sys.prefix) / "pyvenv.cfg"
    own_only = config.exists() and not re.search(
        r"include-system-site-packages\s*=\s*true", config.read_text(), re.IGNORECASE
    )
    if not own_only:
        found.append(str(Path(sys.base_prefix) / tail))
        found.extend(site.getsitepackages([sys.base_prefix]))
        found.append(site.getusersitepackages())
    found.extend(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    return [Path(path) for path in dict.fromkeys(found)]


def torch_version(package: Path) -> str | None:
    """Return the version of the torch package in ``package``, or None when there is none."""
    try:
        text = (package / "version.py").read_text()
    except OSError:
        return None
    match = re.search(r"__version__ = ['\"]([^'\"]+)['\"]", text)
    return match.group(1) if match else None


def find_torch() -> Path | None:
    """Return the torch package directory to build the ops for, or None, and say which."""
    override = os.environ.get("DEFAKEQ_TORCH", "")
    if override.lower() == "off":
        print("defakeq: DEFAKEQ_TORCH=off, building the torch-free part only", flush=True)
        return None
    candidates = [Path(override)] if override else [d / "torch" for d in site_directories()]
    seen = []
    for package in candidates:
        version = torch_version(package)
        if version is None:
            continue
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        headers = package / "include/torch/csrc/stable/library.h"
        if numbers >= MIN_TORCH and headers.exists():
            print(f"defakeq: building the torch ops for torch {version} in {package}", flush=True)
            return package
        seen.append(f"torch {version} in {package}")
    if override:
        raise RuntimeError(
            f"DEFAKEQ_TORCH: found {override}, accepted: 'off' or the directory of a torch package "
            "of at least 2.10 with its headers"
        )
    detail = f" (found only {', '.join(seen)})" if seen else ""
    print(
        f"defakeq: no torch >= 2.10 in this environment{detail}; building the torch-free part only."
        " For the torch ops, install torch first and then this package again",
        flush=True,
    )
    return None


class CMakeExtension(Extension):
    """An extension whose sources CMake knows."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Configures, builds and installs the CMake project into the package directory."""

    def run(self) -> None:
        self.cmake_build()
        target = Path(self.build_lib) / "defakeq_kernels"
        self.cmake_install(ROOT / "defakeq_kernels" if self.inplace else target)

    def cmake_directory(self) -> Path:
        if "DEFAKEQ_BUILD_DIRECTORY" in os.environ:
            return Path(os.environ["DEFAKEQ_BUILD_DIRECTORY"]).resolve()
        environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
        return (
            ROOT
            / "build"
            / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}-{environment}"
        )

    def cmake_build(self) -> None:
        build = self.cmake_directory()
        if "DEFAKEQ_BUILD_DIRECTORY" in os.environ:
            subprocess.run(["cmake", "--build", str(build)], check=True)
            return
        torch = find_torch()
        build.mkdir(parents=True, exist_ok=True)
        import pybind11

        arguments = [
            "-DCMAKE_BUILD_TYPE=Release",
            "-DDEFAKEQ_PYTHON=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DPYBIND11_FINDPYTHON=ON",
            f"-DDEFAKEQ_TORCH_DIR={torch if torch else ''}",
            "-UDEFAKEQ_TORCH_CPU",
            "-U_Python_*",
            f"-DDEFAKEQ_WERROR={'ON' if os.environ.get('DEFAKEQ_WERROR') == '1' else 'OFF'}",
        ]
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            cache.unlink()  # the checkout has moved
        # An isolated build has its ninja in a directory that is gone the next time.
        ninja = shutil.which("ninja")
        if ninja is not None:
            arguments.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
        command = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *arguments]
        subprocess.run(command, check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)

    def cmake_install(self, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for stale in target.glob("_torch_ops*.so"):
            stale.unlink()
        build = self.cmake_directory()
        subprocess.run(
            ["cmake", "--install", str(build), "--prefix", str(target), "--component", "python"]
            + ([] if self.inplace else ["--strip"]),
            check=True,
        )

    def get_outputs(self) -> list[str]:
        return [str(path) for path in (Path(self.build_lib) / "defakeq_kernels").glob("*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


# Weights that only torch runs, and the photographs of the splits to train on: a wheel without the
# torch ops leaves them out.
TRAINING = ("brick", "camera", "china", "coffee", "flower", "grass", "gravel", "retina", "rocket")
WITHOUT_TORCH = (
    ["*.safetensors", *(f"*photos/{name}.jpg" for name in TRAINING)]
    if os.environ.get("DEFAKEQ_TORCH") == "off"
    else []
)

setup(
    version=read_version(),
    packages=find_packages(include=["defakeq_kernels", "defakeq_kernels.*"])
    + find_packages("python", include=["defakeq", "defakeq.*"]),
    package_dir={"defakeq_kernels": "defakeq_kernels", "defakeq": "python/defakeq"},
    package_data={
        "defakeq_kernels": ["py.typed", "*.pyi", "triton/configs/*.json", "triton/loader/*"],
        "defakeq": [
            "py.typed",
            "**/*.dfq",
            "**/*.safetensors",
            "**/*.json",
            "**/*.jpg",
            "**/*.png",
            "**/*.md",
            "**/*.txt",
        ],
    },
    exclude_package_data={"": WITHOUT_TORCH},
    ext_modules=[CMakeExtension("defakeq_kernels._core")],
    cmdclass={"build_ext": CMakeBuild},
)
