"""Exact instruction counts of whole networks: this project's programs, ONNX Runtime and ncnn, int8.

Programs and ONNX files are those of `defakeq bench model`, kept in its cache. ncnn's networks are
made from the float ONNX file with pnnx and quantized by `ncnn_int8`; a network with operators that
it does not know (Swin's) has no row.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.arm import ncnn_int8
from bench.arm.counting import a_call, row
from defakeq.bench.engine import Network
from defakeq.bench.engines import Defakeq, Onnxruntime, prepared
from defakeq.bench.models import network_of
from defakeq_kernels.runtime import load

NETWORKS = ("resnet34", "mobilenetv3_large", "efficientnet_b4", "swin_base")
PLANS = ("8", "4", "half")
CPU = "cortex-a76"
CALLS = (1, 2)
PEER = str(Path(__file__).with_name("peer_run.py"))


def own_row(
    network: Network, plan: str, build: Path, folder: Path, environment: dict[str, str]
) -> dict[str, object]:
    """Return the row of a program."""
    engine = Defakeq(plan)
    program = prepared(network, engine) / engine.file
    x = folder / f"{network.name}.npy"
    np.save(x, np.random.default_rng(2).standard_normal(network.shape()).astype(np.float32))
    command = [str(build / "dq_run"), str(program), str(x), "--bench", "--repeat", "{calls}"]
    work = network.name + (" half" if plan == "half" else "")
    return row(work, engine.bits, "defakeq", CPU, a_call(CPU, command, environment, CALLS))


def _ncnn_file(network: Network, floating: Path, folder: Path) -> Path | None:
    """Return the stem of ncnn's int8 files, made where they are not there."""
    stem = folder / f"{network.name}-int8"
    if stem.with_suffix(".bin").exists():
        return stem
    work = folder / f"{network.name}-ncnn"
    work.mkdir(exist_ok=True)
    shutil.copyfile(floating, work / "float.onnx")
    tool = [sys.executable, "-c", "import pnnx; print(pnnx.EXEC_PATH)"]
    path = subprocess.run(tool, check=True, capture_output=True, text=True).stdout.strip()
    options = ["fp16=0", "ncnnparam=float.param", "ncnnbin=float.bin"]
    subprocess.run([path, "float.onnx", *options], cwd=work, check=True, capture_output=True)
    channels, height, width = network.shape()[1:]
    try:
        ncnn_int8.quantize(work / "float", stem, (channels, height, width))
    except ValueError as error:
        print(f"{network.name}: no row of ncnn: {error}", flush=True)
        return None
    return stem


def peer_rows(
    network: Network, folder: Path, site: Path, environment: dict[str, str]
) -> list[dict[str, object]]:
    """Return the rows of ONNX Runtime, and of ncnn with and without Winograd."""
    engine = Onnxruntime()
    files = prepared(network, engine)
    works: list[tuple[str, Path | None]] = [(engine.name, files / engine.file)]
    stem = _ncnn_file(network, files / "float.onnx", folder)
    works += [("ncnn", stem), ("ncnn direct", stem)]
    python = {**environment, "PYTHONPATH": str(site)}
    rows = []
    for name, path in works:
        if path is not None:
            command = ["python3", PEER, name, str(path), "{calls}"]
            rows.append(row(network.name, 8, name, CPU, a_call(CPU, command, python, CALLS)))
    return rows


def macs_of(name: str) -> int:
    """Return the multiply-accumulates of a network's dense program, an image."""
    engine = Defakeq("4")
    return int(load(prepared(network_of(name), engine) / engine.file, threads=1).info["macs"])


def measure(
    names: list[str], build: Path, home: Path, peers: bool, environment: dict[str, str]
) -> list[dict[str, object]]:
    """Return the rows of some networks: plans of this project, then peers."""
    folder = home / "networks"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        network = network_of(name)
        rows += [own_row(network, plan, build, folder, environment) for plan in PLANS]
        if peers:
            rows += peer_rows(network, folder, home / "site", environment)
    return rows
