"""Exact instruction counts and modelled inner loops of the ARM kernels, beside other engines.

    python -m bench.arm --build BUILD --home ARM_HOME --json FILE

BUILD is the cross build with DEFAKEQ_BENCH, ARM_HOME what tools/arm/setup.sh made; peers run when
their wheels are unpacked in ARM_HOME/site. `make bench-arm` does all of that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.arm import cache, loops, networks
from bench.arm.bars import SYMMETRIC
from bench.arm.counting import a_call, between_calls, last_run, row
from bench.arm.estimate import estimates
from bench.arm.peer_layers import LAYERS, file_name

CPUS = ("cortex-a53", "cortex-a76", "max-128", "max")  # of the tiers neon, neondot and twice i8mm
VARIANTS = ("", " half-out", " half-in-out")
NHWC, DIRECT = "onnxruntime nhwc", "ncnn direct"  # no transposes; no Winograd
REPEATS = 3  # of a peer's layer
PEER = str(Path(__file__).with_name("peer_run.py"))

Row = dict[str, Any]
Task = Callable[[], list[Row]]


class Counts:
    """What is counted on one CPU, as tasks that may run at the same time."""

    def __init__(self, cpu: str, build: Path, home: Path) -> None:
        self.cpu, self.build, self.home = cpu, build, home
        self.environment = {"DEFAKEQ_ARM_HOME": str(home)}

    def layer(self, work: str, bits: int) -> list[Row]:
        """Return the row of a layer of this project's."""
        command = [str(self.build / "defakeq_bench"), "--calls", "{calls}", "--work", work]
        command += ["--bits", str(bits)]
        return [row(work, bits, "defakeq", self.cpu, a_call(self.cpu, command, self.environment))]

    def network(self, name: str, plan: str) -> list[Row]:
        """Return the row of a program."""
        x = networks.input_of(name, self.home / "networks")
        command = [str(self.build / "dq_run"), str(networks.program_of(name, plan)), str(x)]
        command += ["--threads", "1"]
        # it reads the clock before and after the program, before the first node, after each
        marks = networks.nodes_of(name, plan) + 3
        found = last_run(self.cpu, command, self.environment, marks)
        work, bits = networks.work_of(name, plan), networks.bits_of(plan)
        return [row(work, bits, "defakeq", self.cpu, found)]

    def peer(self, engine: str, works: list[tuple[str, str, Path]], repeats: int = 1) -> list[Row]:
        """Return the rows of an engine, for its works and how it runs them: the least of the
        repeats, which do not agree."""
        files: list[str] = []
        for _, label, path in works:
            if label == DIRECT and "--direct" not in files:
                files.append("--direct")
            files += [str(path)] * repeats
        python = {**self.environment, "PYTHONPATH": str(self.home / "site")}
        counts = between_calls(self.cpu, ["python3", PEER, engine, *files], python)
        least = [min(counts[i : i + repeats]) for i in range(0, len(counts), repeats)]
        return [
            row(work, 8, label, self.cpu, found)
            for (work, label, _), found in zip(works, least, strict=True)
        ]

    def own_tasks(self, names: list[str]) -> list[Task]:
        """Return the tasks of this project's layers and networks."""
        tasks: list[Task] = []
        for layer in LAYERS:
            for variant in VARIANTS if layer.groups == 1 else VARIANTS[:1]:
                work = layer.name + variant
                tasks += [lambda w=work, b=bits: self.layer(w, b) for bits in (8, 4, 2)]
            if layer.groups > 1:
                tasks.append(lambda w=layer.name + SYMMETRIC: self.layer(w, 8))
        for name in names:
            tasks += [lambda n=name, p=plan: self.network(n, p) for plan in networks.PLANS]
        return tasks

    def peer_tasks(self, names: list[str]) -> list[Task]:
        """Return the tasks of the peers, of which each imports its engine."""
        stems = {layer.name: self.home / "layers" / file_name(layer) for layer in LAYERS}
        works: dict[str, list[tuple[str, str, Path]]] = {
            "onnxruntime": [
                *((name, "onnxruntime", Path(f"{stem}.onnx")) for name, stem in stems.items()),
                *((name, NHWC, Path(f"{stem}.nhwc.onnx")) for name, stem in stems.items()),
            ],
            "ncnn": [
                (name, label, stem) for label in ("ncnn", DIRECT) for name, stem in stems.items()
            ],
        }
        tasks: list[Task] = [lambda e=engine: self.peer(e, works[e], REPEATS) for engine in works]
        folder = self.home / "networks"
        for name in names:
            onnx = [(name, "onnxruntime", networks.onnx_of(name))]
            tasks.append(lambda works=onnx: self.peer("onnxruntime", works))
            stem = networks.ncnn_of(name, folder)
            if stem is not None:
                ncnn = [(name, "ncnn", stem)]
                tasks.append(lambda works=ncnn: self.peer("ncnn", works))
        return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="programs that run at the same time")
    parser.add_argument("--no-peers", action="store_true", help="count this project's kernels only")
    parser.add_argument(
        "--keep-peers", action="store_true", help="take the peers' rows from the file as it is"
    )
    parser.add_argument("--cpus", nargs="+", default=list(CPUS), choices=CPUS)
    parser.add_argument(
        "--networks", nargs="*", default=list(networks.NETWORKS), choices=networks.NETWORKS
    )
    arguments = parser.parse_args()
    environment = {"DEFAKEQ_ARM_HOME": str(arguments.home)}
    modelled = loops.measure(arguments.build)
    for loop in modelled:
        print(
            f"{loop['kernel']:32s} {loop['model']:12s} {loop['mac_per_cycle']:6} MAC/cycle, "
            f"{loop['stack_references']} stack references"
        )
    rows: list[Row] = []
    if arguments.keep_peers:
        before = json.loads(arguments.json.read_text())["rows"]
        rows += [row for row in before if row["engine"] != "defakeq"]
    document = {"rows": rows, "loops": modelled, "cache": [], "estimates": []}

    def save() -> None:
        temporary = arguments.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(arguments.json)

    folder = arguments.home / "networks"
    folder.mkdir(parents=True, exist_ok=True)
    with_peers = not (arguments.no_peers or arguments.keep_peers)
    if with_peers:
        layers = str(arguments.home / "layers")
        subprocess.run([sys.executable, "-m", "bench.arm.peer_layers", layers], check=True)
    for name in arguments.networks:  # one after the other: torch captures one model at a time
        for plan in networks.PLANS:
            networks.program_of(name, plan)
    for cpu in arguments.cpus:
        counts = Counts(cpu, arguments.build, arguments.home)
        names = networks.names_for(cpu, arguments.networks)
        tasks = counts.own_tasks(names)
        tasks += counts.peer_tasks(names) if with_peers else []
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for found in pool.map(lambda task: task(), tasks):
                rows += found
        save()
    macs = {layer.name: layer.macs for layer in LAYERS}
    macs |= {name: networks.macs_of(name) for name in arguments.networks}
    document["estimates"] = estimates(rows, modelled, macs)
    network = cache.NETWORK in arguments.networks
    document["cache"] = cache.measure(arguments.build, folder, network, environment)
    save()


if __name__ == "__main__":
    main()
