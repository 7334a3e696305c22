"""The networks whose instructions are counted: this project's programs, ONNX Runtime's and ncnn's.

Programs and ONNX files are those of `defakeq bench model`, kept in its cache. ncnn's networks are
made from the float ONNX file with pnnx and quantized by `ncnn_int8`; a network with operators that
it does not know (Swin's) has none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.arm import ncnn_int8
from defakeq.bench.engine import Network
from defakeq.bench.engines import Defakeq, Onnxruntime, prepared
from defakeq.bench.models import network_of
from defakeq_kernels.runtime import load

NETWORKS = ("mobilenetv3_large", "resnet34", "efficientnet_b4", "swin_base")
PLANS = ("8", "4", "half")
# On the other CPUs the larger ones take long, with the peers'.
WHOLE, SMALL = ("cortex-a76",), ("mobilenetv3_large",)
# Vectors of 512 bits, which no board has: layers tell enough.
LAYERS_ONLY = "max"


def names_for(cpu: str, names: list[str]) -> list[str]:
    """Return those of the networks that are counted on a CPU."""
    if cpu == LAYERS_ONLY:
        return []
    return [name for name in names if name in SMALL or cpu in WHOLE]


def work_of(name: str, plan: str) -> str:
    """Return what a row calls a network with a plan."""
    return name + (" half" if plan == "half" else "")


def bits_of(plan: str) -> int:
    """Return the bits of a plan's weights."""
    return Defakeq(plan).bits


def program_of(name: str, plan: str) -> Path:
    """Return the program of a network, made where it is not there."""
    engine = Defakeq(plan)
    return prepared(network_of(name), engine) / engine.file


def input_of(name: str, folder: Path) -> Path:
    """Return a file with an input of a network."""
    path = folder / f"{name}.npy"
    shape = network_of(name).shape()
    np.save(path, np.random.default_rng(2).standard_normal(shape).astype(np.float32))
    return path


def onnx_of(name: str) -> Path:
    """Return a network's int8 file for ONNX Runtime, beside the float one."""
    engine = Onnxruntime()
    return prepared(network_of(name), engine) / engine.file


def _to_ncnn(network: Network, floating: Path, folder: Path) -> None:
    work = folder / f"{network.name}-ncnn"
    work.mkdir(exist_ok=True)
    shutil.copyfile(floating, work / "float.onnx")
    tool = [sys.executable, "-c", "import pnnx; print(pnnx.EXEC_PATH)"]
    path = subprocess.run(tool, check=True, capture_output=True, text=True).stdout.strip()
    options = ["fp16=0", "ncnnparam=float.param", "ncnnbin=float.bin"]
    subprocess.run([path, "float.onnx", *options], cwd=work, check=True, capture_output=True)


def ncnn_of(name: str, folder: Path) -> Path | None:
    """Return the stem of ncnn's int8 files, made where they are not there; None: it cannot."""
    stem, network = folder / f"{name}-int8", network_of(name)
    source = folder / f"{name}-ncnn/float"
    if stem.with_suffix(".bin").exists():
        return stem
    if not source.with_suffix(".bin").exists():
        _to_ncnn(network, onnx_of(name).with_name("float.onnx"), folder)
    channels, height, width = network.shape()[1:]
    try:
        ncnn_int8.quantize(source, stem, (channels, height, width))
    except ValueError as error:
        print(f"{name}: no row of ncnn: {error}", flush=True)
        return None
    return stem


def nodes_of(name: str, plan: str) -> int:
    """Return the number of nodes of a network's program."""
    return len(load(program_of(name, plan), threads=1).nodes)


def macs_of(name: str) -> int:
    """Return the multiply-accumulates of a network's dense program, an image."""
    return int(load(program_of(name, "4"), threads=1).info["macs"])
