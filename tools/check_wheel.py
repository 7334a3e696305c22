"""Checks the wheel in a fresh environment without torch.

    python tools/check_wheel.py

Builds the wheel of this tree (reusing what is built), installs it with its dependencies into a new
virtual environment, and runs a program there: the bytes must be those of this environment. Needs
pip, setuptools, pybind11, cmake and ninja, and numpy and defakeq_kernels to compare with.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

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


def main() -> None:
    from defakeq_kernels import runtime

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        wheels = folder / "wheels"
        build = ("--no-build-isolation", "--no-deps", "--quiet", "--wheel-dir", wheels)
        run(sys.executable, "-m", "pip", "wheel", *build, ROOT)
        (wheel,) = wheels.glob("*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
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
