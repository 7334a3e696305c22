"""Measures what the runtime adds to the kernels: loading, the cost of a node, memory.

    python bench/runtime.py [--threads 1,2] [--rounds 5] [--json F]

Each line gives a figure beside its bar. The files hold random weights of 3x3 and 1x1 convolutions,
20 MB of them at each width; the floor of a load is the bytes it has to touch (the file twice, for
its checksum and for packing, and the runtime layout once) over the bandwidth of a large copy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from defakeq_kernels import dfq
from defakeq_kernels.packed import PackedWeight, Segment, row_bytes
from defakeq_kernels.quantize import ActQuant, int8_out
from defakeq_kernels.runtime import load

MB = 1e6
ACT = ActQuant.static(-3.0, 3.0)
WIDTHS = (8, 4, 3, 2)


def value(shape: tuple[int, ...]) -> dict[str, Any]:
    q = {"scale": ACT.scale, "zero_point": ACT.zero_point, "bits": ACT.bits}
    return {"dtype": "int8", "shape": list(shape), **q}


def chain(size: int, bits: int) -> tuple[dfq.Tensors, dfq.Network]:
    """Convolutions 3x3 256, 1x1 256 to 1024 and 1x1 back over 4x4 pixels: about `size` bytes."""
    rng = np.random.default_rng(bits)
    tensors: dfq.Tensors = {}
    program: dict[str, Any] = {"version": 1, "values": [value((4, 4, 256))], "nodes": []}
    network: dfq.Network = {"layers": {}, "program": program}
    shapes = [(256, 256, 3, 3), (1024, 256, 1, 1), (256, 1024, 1, 1)]
    stored = 0
    while stored < size:
        for shape in shapes:
            outputs, inputs, height, width = shape
            row = row_bytes(inputs * height * width, bits)
            codes = rng.integers(0, 256, (outputs, row), dtype=np.uint8)
            scale = rng.uniform(1e-3, 2e-3, (outputs, 1)).astype(np.float32)
            zero = rng.integers(0, 1 << bits, (outputs, 1)).astype(np.int32)
            index = np.arange(outputs, dtype=np.int32)
            segment = Segment(bits, index, codes, scale, zero)
            padding = (height // 2, width // 2)
            weight = PackedWeight("conv2d", shape, (segment,), padding=padding)
            name = f"layer{len(program['nodes'])}"
            dfq.add_layer(tensors, network, name, weight, ACT.describe(), out=int8_out(ACT))
            at = len(program["values"])
            program["values"].append(value((4, 4, outputs)))
            node = {"op": "conv2d", "name": name, "layer": name, "in": [at - 1], "out": [at]}
            program["nodes"].append(node)
            stored += outputs * row
    last = len(program["values"]) - 1
    program["inputs"] = [{"name": "x", "value": 0, "layout": "nchw"}]
    program["outputs"] = [{"name": "y", "value": last, "layout": "nchw"}]
    return tensors, network


def bandwidth() -> float:
    """Bytes a second that one thread copies, read and written ones together."""
    source = np.ones(1 << 26, np.uint8)
    target = np.empty_like(source)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def loads(folder: Path, threads: list[int], rounds: int) -> list[dict[str, Any]]:
    rows = []
    speed = bandwidth()
    for bits in WIDTHS:
        path = folder / f"chain{bits}.dfq"
        dfq.write(path, *chain(20_000_000, bits))
        size = path.stat().st_size
        for count in threads:
            seconds, parts = [], []
            for _ in range(rounds):
                start = time.perf_counter()
                program = load(path, count)
                seconds.append(time.perf_counter() - start)
                parts.append((program.info["read_seconds"], program.info["pack_seconds"]))
            read, pack = (statistics.median(p) for p in zip(*parts, strict=True))
            packed = program.info["packed_bytes"]
            rows.append(
                {
                    "bits": bits,
                    "threads": count,
                    "file_mb": size / MB,
                    "packed_mb": packed / MB,
                    "read_ms": read * 1e3,
                    "pack_ms": pack * 1e3,
                    "load_ms": statistics.median(seconds) * 1e3,
                    "floor_ms": (2 * size + packed) / speed * 1e3,
                }
            )
        path.unlink()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="of the loads, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads = [int(t) for t in options.threads.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        rows = loads(Path(folder), threads, options.rounds)
    for row in rows:
        print(
            f"load, {row['bits']} bits, {row['threads']} threads: {row['load_ms']:7.1f} ms "
            f"(bar 150 with 1 thread; read {row['read_ms']:.1f}, pack {row['pack_ms']:.1f}, "
            f"floor {row['floor_ms']:.1f}; {row['file_mb']:.1f} MB -> {row['packed_mb']:.1f} MB)"
        )
    if options.json:
        options.json.write_text(json.dumps({"loads": rows}, indent=1))


if __name__ == "__main__":
    main()
