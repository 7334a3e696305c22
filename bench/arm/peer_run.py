"""Runs a peer's layers or networks under emulation: peer_run.py ENGINE FILE ...

ENGINE: onnxruntime or ncnn, whose files after "--direct" run without Winograd. Only numpy and the
engine are imported.
The second call of each lies between two of getsid, at which the emulator prints its count.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np


def count_second(call: Callable[[], None]) -> None:
    """Call twice, the second time between marks."""
    call()
    os.getsid(0)
    call()
    os.getsid(0)


def run_onnxruntime(path: str) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    rng = np.random.default_rng(0)
    if port.type == "tensor(float)":
        x = rng.standard_normal(port.shape).astype(np.float32)
    else:
        x = rng.integers(0, 256, port.shape, dtype=np.uint8)
    count_second(lambda: session.run(None, {port.name: x}))


def run_ncnn(path: str, winograd: bool) -> None:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_vulkan_compute = False
    net.opt.use_winograd_convolution = winograd
    net.load_param(path + ".param")
    net.load_model(path + ".bin")
    with open(path + ".param", encoding="utf-8") as file:
        sizes = dict(part.split("=") for part in file.readlines()[2].split()[5:])
    shape = (int(sizes["2"]), int(sizes["1"]), int(sizes["0"]))
    values = np.random.default_rng(0).integers(-127, 128, shape).astype(np.float32) * np.float32(
        0.03
    )
    x = ncnn.Mat(values)  # does not own them

    def call() -> None:
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], x)
        status, _ = extractor.extract(net.output_names()[0])
        if status != 0:
            raise SystemExit(f"ncnn: extract returned {status}")

    count_second(call)


def main() -> None:
    engine, *paths = sys.argv[1:]
    winograd = True
    for path in paths:
        if engine == "onnxruntime":
            run_onnxruntime(path)
        elif path == "--direct":
            winograd = False
        else:
            run_ncnn(path, winograd)


if __name__ == "__main__":
    main()
