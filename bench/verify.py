"""Verifies whole networks: equal bytes everywhere, the oracle's bytes, errors within bounds.

    python bench/verify.py [NETWORK|FILE.dfq ...] [--plans 8,4,half] [--threads 1,2,3]

Of each network and plan, at full size and for one image, prints

- how many nodes the program has, all of them its own: a file with a fallback cannot be made;
- `everywhere`: what every node stores, on every instruction set of this processor and with each
  thread count, against the first; the unequal ones are named;
- `oracle`: the same against `defakeq_kernels.reference_program`, which is numpy and slow;
- `bounds`: nodes further from exact arithmetic on their own operands than their rounding allows,
  and the largest part of a bound that was used.

The exit code is 1 when a node fails. With --save FOLDER, it gets program.dfq, input.npy and
expected.npy of each, to repeat the comparison elsewhere with `dq_run program.dfq input.npy --output
found.npy`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defakeq.bench.engine import Network
from defakeq.bench.engines import PLANS, Defakeq, prepared
from defakeq.bench.models import image_of, network_of
from defakeq.lower.check import instrumented
from defakeq.lower.module import ProgramModule
from defakeq.networks import NAMES
from defakeq_kernels import _core, dfq, reference, reference_program, runtime
from defakeq_kernels.quantize import ActQuant

Array = NDArray[Any]
EIGHT = NAMES[:8]


def stored(tensors: dfq.Tensors, network: dfq.Network, x: Array, threads: int) -> list[Array]:
    """What each node stores, as float32, in the runtime."""
    found: list[Array] = []
    for wide in instrumented(network):
        results = runtime.loads(dfq.dumps(tensors, wide), threads)(x)
        found += results if isinstance(results, list) else [results]
    return [y[0] for y in found[len(network["program"]["inputs"]) :]]


def oracle(tensors: dfq.Tensors, network: dfq.Network, x: Array) -> list[Array]:
    """What each node stores, as float32, in the reference executor."""
    (values,) = reference_program.trace((tensors, network), [x])
    program, found = network["program"], []
    for node in program["nodes"]:
        value, y = program["values"][node["out"][0]], values[node["out"][0]]
        if value["dtype"] == "int8":
            q = ActQuant("static", value["scale"], value["zero_point"], value["bits"])
            y = reference.dequantize(y, q)
        found.append(y)
    return found


def unequal(
    nodes: Sequence[dict[str, Any]], found: list[Array], expected: list[Array]
) -> list[str]:
    """Names of the nodes whose bytes differ."""
    return [
        node["name"]
        for node, y, e in zip(nodes, found, expected, strict=True)
        if y.astype(np.float32).tobytes() != e.astype(np.float32).tobytes()
    ]


def verify(source: Network, plan: str, threads: Sequence[int], save: Path | None) -> bool:
    engine = Defakeq(plan)
    folder = prepared(source, engine)
    tensors, network = dfq.read(folder / engine.file)
    nodes = network["program"]["nodes"]
    x = image_of(source)
    title = f"{source.name} {'file' if source.program else plan}"
    print(f"{title}: {len(nodes)} nodes, no fallback", flush=True)
    fine = True

    def line(what: str, wrong: list[str], more: str, start: float) -> None:
        nonlocal fine
        fine = fine and not wrong
        names = f": {', '.join(wrong[:5])}" if wrong else ""
        seconds = time.perf_counter() - start
        print(f"  {what}: {len(wrong)} nodes differ{names}; {more}; {seconds:.0f} s", flush=True)

    start, first, wrong = time.perf_counter(), None, set()
    allowed = _core.cpu_info()["isa"]["allowed"]
    try:
        for isa in allowed:
            _core.set_isa(isa)
            for count in threads:
                found = stored(tensors, network, x, count)
                first = first or found
                wrong.update(unequal(nodes, found, first))
    finally:
        _core.set_isa(None)
    assert first is not None
    where = f"{', '.join(allowed)} with {', '.join(map(str, threads))} threads"
    line("everywhere", sorted(wrong), where, start)

    start = time.perf_counter()
    line("oracle", unequal(nodes, first, oracle(tensors, network, x)), "all node kinds", start)

    start = time.perf_counter()
    checks = ProgramModule.of_file(tensors, network).check(torch.from_numpy(x))
    outside = [check.name for check in checks if not check.ok]
    used = max(check.error / check.bound for check in checks if check.bound > 0)
    line("bounds", outside, f"largest error {used:.3f} of its bound", start)
    if save is not None:
        target = save / title.replace(" ", "-")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / engine.file, target / "program.dfq")
        np.save(target / "input.npy", x)
        np.save(target / "expected.npy", runtime.load(folder / engine.file, 1)(x))
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=EIGHT, help="names, or .dfq files")
    parser.add_argument("--plans", default=",".join(PLANS), help="with commas; a file has its own")
    parser.add_argument("--threads", default="1,2,3", help="thread counts, with commas")
    parser.add_argument("--cache", type=Path, help="folder of prepared networks")
    parser.add_argument("--save", type=Path, help="folder for inputs and expected outputs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threads = [int(count) for count in options.threads.split(",")]
    fine = True
    for name in options.networks:
        source = network_of(name, options.cache)
        for plan in ["8"] if source.program else options.plans.split(","):
            fine &= verify(source, plan, threads, options.save)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
