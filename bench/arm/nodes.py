"""Instructions of every node of a program, with the least that its multiply-accumulates need.

    python -m bench.arm.nodes --build BUILD --home ARM_HOME MODEL.dfq INPUT.npy [--cpu CPU]

The program runs with its profile on; the emulator's plugin notes the count at every reading of the
clock, of which the profile makes one after each node.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path

from bench.arm.counting import EMULATE
from defakeq_kernels.runtime import load

MACS_PER_INSTRUCTION = 16  # sdot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--cpu", default="cortex-a76")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    command = [str(EMULATE), "--marks", arguments.cpu, str(arguments.build / "dq_run")]
    command += [*arguments.files, "--profile", "--repeat", "2", "--threads", "1"]
    environment = {**os.environ, "DEFAKEQ_ARM_HOME": str(arguments.home)}
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    marks = [int(n) for n in re.findall(r"^mark (\d+)$", run.stderr, re.MULTILINE)]
    nodes = load(arguments.files[0], threads=1).nodes
    # a run reads the clock before and after the program, before the first node, after each
    counts = [b - a for a, b in pairwise(marks)]
    last = counts[-(len(nodes) + 2) :]
    print(f"{'node':40s} {'op':20s} {'shape':18s} {'thousands':>10s} {'floor':>10s} {'ratio':>6s}")
    print(f"{'(input)':79s} {last[0] / 1e3:10.1f}")
    for node, count in zip(nodes, last[1:], strict=False):
        floor = node["macs"] / MACS_PER_INSTRUCTION
        ratio = f"{count / floor:6.2f}" if floor > 0 else ""
        shape = "x".join(map(str, node["shape"]))
        print(
            f"{node['name']:40s} {node['op']:20s} {shape:18s} {count / 1e3:10.1f} "
            f"{floor / 1e3:10.1f} {ratio}"
        )
    print(f"{'all':79s} {sum(last) / 1e3:10.1f}")


if __name__ == "__main__":
    main()
