"""Checks the wheel in a fresh environment without torch.

    python tools/check_wheel.py              build this tree's wheel without torch, and check it
    python tools/check_wheel.py tag WHEEL    check a wheel's size and platform tag only

Reuses what is built. The wheel is smaller than 3 MB and promises the C library that auditwheel
finds it to need (where auditwheel is installed). It is installed with its dependencies into a new
virtual environment, and runs a program there: the bytes must be those of this environment. Needs
pip, setuptools, pybind11, cmake and ninja, and numpy and defakeq_kernels to compare with.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 3_000_000

THERE = """
import importlib.util, pathlib, sys
import numpy as np
import defakeq_kernels
from defakeq_kernels import dfq, runtime

assert importlib.util.find_spec("torch") is None, "the environment has torch"
assert str(pathlib.Path(defakeq_kernels.__file__)).startswith(sys.prefix), defakeq_kernels.__file__
folder = pathlib.Path(sys.argv[1])
dfq.read(folder / "net.dfq")
program = runtime.load(folder / "net.dfq", threads=2)
np.save(folder / "there.npy", program(np.load(folder / "x.npy")))
try:
    import defakeq_kernels.ops
except ImportError as error:
    assert "needs torch >= 2.10" in str(error), error
else:
    raise AssertionError("the torch ops were imported without torch")
print(program.info, defakeq_kernels.cpu_info()["selected"])
"""


def run(*command: object, **options: Any) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)


def network(path: Path) -> np.ndarray:
    """Writes a program of two layers; its input."""
    sys.path.insert(0, str(ROOT / "tests"))
    from program_builder import Builder

    from defakeq_kernels import dfq

    b = Builder(5)
    q = b.quant()
    image = b.input((16, 16, 3), q, "nchw")
    conv = b.layer("conv2d", (32, 3, 3, 3), q, q, "relu", padding=1, bits=4)
    hidden = b.node("conv2d", [image], (16, 16, 32), q, layer=conv)
    mean = b.node("mean_rows", [hidden], (32,), q)
    row = b.value((1, 32), q, base=mean, offset=0)
    head = b.layer("linear", (2, 32), q, None, bits=3)
    b.output(b.node("linear", [row], (1, 2), None, layer=head))
    dfq.write(path, b.tensors, b.network)
    rng = np.random.default_rng(6)
    return rng.standard_normal((2, 3, 16, 16)).astype(np.float32)


def platform_tag(wheel: Path) -> str | None:
    """The most general platform that auditwheel accepts for a wheel; None without auditwheel."""
    if importlib.util.find_spec("auditwheel") is None:
        print("auditwheel is not installed: the platform tag is not checked", flush=True)
        return None
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    if shown.returncode != 0:
        sys.exit(f"{wheel.name}: auditwheel says: {shown.stdout}{shown.stderr}")
    tag: str = json.loads(shown.stdout)["overall_tag"]
    return tag


def check_tag(wheel: Path) -> None:
    """Exits with a message where a wheel is too large or says less than it needs."""
    size = wheel.stat().st_size
    if size >= LARGEST:
        sys.exit(f"{wheel.name}: found {size} bytes, accepted: less than {LARGEST}")
    found, own = platform_tag(wheel), wheel.stem.split("-")[-1]
    print(f"{wheel.name}: {size / 1e6:.2f} MB, auditwheel: {found}", flush=True)
    if found is None:
        return
    needs, says = (re.fullmatch(r"manylinux_2_(\d+)_(.+)", tag) for tag in (found, own))
    if needs is None or says is None or needs[2] != says[2] or int(needs[1]) > int(says[1]):
        sys.exit(f"{wheel.name}: found {own}, accepted: {found} or a later glibc's")


def built(folder: Path) -> Path:
    """The wheel of this tree without the torch ops, tagged for this machine's C library."""
    version = platform.libc_ver()[1].replace(".", "_")
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", folder / "build"]
    command += ["bdist_wheel", "--dist-dir", folder, "--bdist-dir", folder / "bdist"]
    command += ["--plat-name", f"manylinux_{version}_{platform.machine()}"]
    run(*command, cwd=ROOT, env={**os.environ, "DEFAKEQ_TORCH": "off"})
    (wheel,) = folder.glob("*.whl")
    check_tag(wheel)
    return wheel


def main() -> None:
    if sys.argv[1:2] == ["tag"]:
        return check_tag(Path(sys.argv[2]))
    from defakeq_kernels import runtime

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        wheel = built(folder / "wheels")
        home = folder / "environment"
        venv.create(home, with_pip=True)
        there = home / "bin/python"
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        run(there, "-m", "pip", "install", "--quiet", wheel, env=clean, cwd=folder)
        x = network(folder / "net.dfq")
        np.save(folder / "x.npy", x)
        run(there, "-I", "-c", THERE, folder, cwd=folder)
        expected = runtime.load(folder / "net.dfq", threads=1)(x)
        found = np.load(folder / "there.npy")
        if found.shape != expected.shape or found.tobytes() != expected.tobytes():
            sys.exit("the wheel's results differ from those of this environment")
        print("the wheel runs without torch, with the same bytes")


if __name__ == "__main__":
    main()
