"""Measures what the runtime adds to the kernels: loading, the cost of a node, memory.

    python bench/runtime.py [FILE.dfq ...] [--threads 1,2] [--rounds 5] [--json F]

Prints each figure beside its bar; the exit code is 1 when one is missed.

- Loading: files of 20 MB of random weights of 3x3 and 1x1 convolutions at each width. Times are
  the best of the rounds; `cpu` is what the process itself used, which other work on the machine
  does not stretch. The floor is the bytes that a load has to touch (the file twice, for its
  checksum and for packing, and the runtime layout once) over what one core reads from memory.
- Nodes: programs of 500 nodes of one kind on the smallest values it has; the best of many runs.
- Threads: one small step right after another, and after a pause in which the threads park.
- Memory: resident bytes that loading and running add to a fresh process, over the packed weights
  and the arena; the arena over the largest set of values alive at once. Of the files that are
  given, and of the chain of 4-bit convolutions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from defakeq.bench.machine import machine_record
from defakeq_kernels import _core, dfq
from defakeq_kernels.packed import PackedWeight, Segment, row_bytes
from defakeq_kernels.quantize import ActQuant, int8_out, quantize_weight
from defakeq_kernels.runtime import load
from defakeq_kernels.runtime import loads as program_of

Row = dict[str, Any]

MB = 1e6
ACT = ActQuant.static(-3.0, 3.0)
WIDTHS = (8, 4, 3, 2)
MEMORY_WIDTH = 4
NODES = 500


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


def loads(folder: Path, threads: list[int], rounds: int) -> list[Row]:
    rows: list[Row] = []
    speed = _core.probe_peak()["dram_gbs"] * 1e9
    for bits in WIDTHS:
        path = folder / f"chain{bits}.dfq"
        dfq.write(path, *chain(20_000_000, bits))
        size = path.stat().st_size
        for count in threads:
            best: Row = {}
            for _ in range(rounds):
                cpu = time.process_time()
                info = load(path, count).info
                cpu = time.process_time() - cpu
                if not best or info["load_seconds"] < best["seconds"]:
                    best = {"seconds": info["load_seconds"], "cpu": cpu, "info": info}
            info = best["info"]
            row = {"what": "load", "bits": bits, "threads": count, "ms": best["seconds"] * 1e3}
            row |= {"cpu_ms": best["cpu"] * 1e3, "read_ms": info["read_seconds"] * 1e3}
            row |= {"pack_ms": info["pack_seconds"] * 1e3, "file_mb": size / MB}
            row |= {"packed_mb": info["packed_bytes"] / MB}
            row["floor_ms"] = (2 * size + info["packed_bytes"]) / speed * 1e3
            rows.append(row)
        if bits != MEMORY_WIDTH:
            path.unlink()
    return rows


def nodes(rounds: int) -> list[Row]:
    pixel = (1, 1, 16)
    kinds: dict[str, tuple[tuple[int, ...], dict[str, Any], tuple[int, ...] | None]] = {
        "lookup": ((1,), {"table": "table"}, None),
        "unary": ((1,), {"fn": "relu"}, None),
        "binary": ((1,), {"fn": "add"}, None),
        "convert": ((1,), {}, None),
        "copy": ((1,), {"index": "index", "chunk": 1}, None),
        "layer_norm": ((1, 1), {"eps": 1e-5}, None),
        "softmax": ((1, 1), {}, None),
        "linear": ((1, 16), {"layer": "layer"}, (16, 16)),
        "conv2d": (pixel, {"layer": "layer"}, (16, 16, 1, 1)),
        "conv2d depthwise": (pixel, {"layer": "layer", "groups": 16}, (16, 1, 3, 3)),
    }
    rows: list[Row] = []
    for kind, (shape, attributes, weight) in kinds.items():
        tensors: dfq.Tensors = {"table": np.zeros(256, np.int8), "index": np.zeros(1, np.int32)}
        network: dfq.Network = {"layers": {}}
        groups = attributes.pop("groups", 1)
        if weight is not None:
            dense = np.ones(weight, np.float32)
            padding = {"padding": (weight[2] // 2,) * 2} if len(weight) == 4 else {}
            packed = quantize_weight(
                dense, kind=kind.split()[0], bits=8, **({"groups": groups} | padding)
            )
            dfq.add_layer(tensors, network, "layer", packed, ACT.describe(), out=int8_out(ACT))
        op = kind.split()[0]
        network["program"] = {
            "version": 1,
            "values": [value(shape) for _ in range(NODES + 1)],
            "inputs": [{"name": "x", "value": 0, "layout": "plain"}],
            "outputs": [{"name": "y", "value": NODES, "layout": "plain"}],
            "nodes": [
                {"op": op, "name": str(i), "in": [i] * (2 if op == "binary" else 1), "out": [i + 1]}
                | attributes
                for i in range(NODES)
            ],
        }
        program = program_of(dfq.dumps(tensors, network), 1)
        x = np.zeros((1, *shape), np.float32)
        best = min(timed(lambda: program(x)) for _ in range(100 * rounds))  # noqa: B023
        rows.append({"what": "node", "op": kind, "us": best / NODES * 1e6})
    return rows


def pool() -> list[Row]:
    """One parallel step, right after another and after a pause that parks the threads."""
    shape = (64, 64, 64)
    program = {
        "version": 1,
        "values": [value(shape), value(shape)],
        "inputs": [{"name": "x", "value": 0, "layout": "plain"}],
        "outputs": [{"name": "y", "value": 1, "layout": "plain"}],
        "nodes": [{"op": "unary", "name": "u", "in": [0], "out": [1], "fn": "relu"}],
    }
    data = dfq.dumps({}, {"layers": {}, "program": program})
    x = np.zeros((1, *shape), np.float32)
    rows: list[Row] = []
    for threads in (1, 2):
        run = program_of(data, threads)
        soon = min(timed(lambda: run(x)) for _ in range(300))  # noqa: B023
        late = []
        for _ in range(100):
            time.sleep(2e-3)
            late.append(timed(lambda: run(x)))  # noqa: B023
        cpu = time.process_time()
        time.sleep(1.0)
        cpu = time.process_time() - cpu
        row = {"what": "pool", "threads": threads, "soon_us": soon * 1e6}
        rows.append(row | {"late_us": min(late) * 1e6, "idle_cpu_ms": cpu * 1e3})
    return rows


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def memory(path: Path) -> Row:
    """What a load and a run add to this process."""
    before = resident()
    program = load(path, 1)
    shapes = [port["shape"] for port in program.inputs]
    inputs = [np.zeros((1, *shape), np.float32) for shape in shapes]
    program(*inputs)
    info = program.info
    added = resident() - before - sum(x.nbytes for x in inputs)
    extra = added - info["packed_bytes"] - info["arena_bytes"]
    return {
        "what": "memory",
        "file": path.name,
        "packed_mb": info["packed_bytes"] / MB,
        "arena_mb": info["arena_bytes"] / MB,
        "extra_mb": extra / MB,
        "arena_over_live": info["arena_bytes"] / info["live_bytes"],
    }


def fresh(path: Path) -> Row:
    command = [sys.executable, __file__, "--memory", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: Row = json.loads(done.stdout)
    return row


def report(rows: list[Row]) -> int:
    """Prints the rows; how many bars are missed."""
    missed = 0

    def line(met: bool | None, text: str) -> None:
        nonlocal missed
        missed += met is False
        print(f"{'' if met is None else 'met' if met else 'MISSED':7}{text}")

    for row in rows:
        if row["what"] == "load":
            line(
                row["ms"] <= 150 if row["threads"] == 1 else None,
                f"load, {row['bits']} bits, threads {row['threads']}: {row['ms']:.1f} ms "
                f"(<= 150 with one thread), cpu {row['cpu_ms']:.1f}, read {row['read_ms']:.1f}, "
                f"pack {row['pack_ms']:.1f}, floor {row['floor_ms']:.1f}; "
                f"{row['file_mb']:.1f} MB -> {row['packed_mb']:.1f} MB",
            )
        elif row["what"] == "node":
            line(row["us"] <= 0.3, f"node {row['op']}: {row['us']:.3f} us (<= 0.3)")
        elif row["what"] == "pool":
            line(
                None,
                f"relu 64x64x64, threads {row['threads']}: {row['soon_us']:.0f} us after another, "
                f"{row['late_us']:.0f} us after 2 ms of rest; an idle second uses "
                f"{row['idle_cpu_ms']:.1f} ms of processor",
            )
        else:
            line(
                row["extra_mb"] <= 8,
                f"memory of {row['file']}: packed {row['packed_mb']:.1f} MB + arena "
                f"{row['arena_mb']:.1f} MB + {row['extra_mb']:.1f} MB (<= 8)",
            )
            line(
                row["arena_over_live"] <= 1.15,
                f"arena of {row['file']}: {row['arena_over_live']:.3f} of the largest live set "
                "(<= 1.15)",
            )
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="programs whose memory is measured")
    parser.add_argument("--threads", default="1,2", help="of the loads, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory is not None:
        print(json.dumps(memory(options.memory)))
        return
    threads = [int(t) for t in options.threads.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        rows = loads(Path(folder), threads, options.rounds)
        rows += nodes(options.rounds) + pool()
        chained = Path(folder) / f"chain{MEMORY_WIDTH}.dfq"
        rows += [fresh(path) for path in (chained, *options.files)]
    if options.json:
        record = machine_record(max(threads), None, " ".join(sys.argv))
        document = {"machine": record, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1))
    sys.exit(1 if report(rows) else 0)


if __name__ == "__main__":
    main()
