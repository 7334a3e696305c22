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
from pathlib import Path

from bench.arm import cache, loops
from bench.arm.counting import a_call, row
from bench.arm.estimate import estimates
from bench.arm.networks import NETWORKS, macs_of
from bench.arm.networks import measure as measure_networks
from bench.arm.peer_layers import LAYERS, file_name

CPUS = ("cortex-a53", "cortex-a76", "max")  # of the tiers neon, neondot and i8mm
VARIANTS = ("", " half-out", " half-in-out")


def own_rows(cpus: list[str], build: Path, environment: dict[str, str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for cpu in cpus:
        for layer in LAYERS:
            for variant in VARIANTS if layer.groups == 1 else VARIANTS[:1]:
                for bits in (8, 4, 2):
                    work = layer.name + variant
                    command = [str(build / "defakeq_bench"), "--calls", "{calls}", "--work", work]
                    command += ["--bits", str(bits)]
                    found = a_call(cpu, command, environment)
                    rows.append(row(work, bits, "defakeq", cpu, found))
    return rows


def peer_rows(
    cpus: list[str], folder: Path, site: Path, environment: dict[str, str]
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    script = str(Path(__file__).with_name("peer_run.py"))
    for cpu in cpus:
        for layer in LAYERS:
            stem = str(folder / file_name(layer))
            for engine, path in (
                ("onnxruntime", stem + ".onnx"),
                ("onnxruntime nhwc", stem + ".nhwc.onnx"),
                ("ncnn", stem),
                ("ncnn direct", stem),
            ):
                command = ["python3", script, engine.removesuffix(" nhwc"), path, "{calls}"]
                python = {**environment, "PYTHONPATH": str(site)}
                rows.append(row(layer.name, 8, engine, cpu, a_call(cpu, command, python)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--no-peers", action="store_true", help="count this project's kernels only")
    parser.add_argument(
        "--keep-peers", action="store_true", help="take the peers' rows from the file as it is"
    )
    parser.add_argument("--cpus", nargs="+", default=list(CPUS), choices=CPUS)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    arguments = parser.parse_args()
    environment = {"DEFAKEQ_ARM_HOME": str(arguments.home)}
    modelled = loops.measure(arguments.build)
    for loop in modelled:
        print(
            f"{loop['kernel']:32s} {loop['model']:12s} {loop['mac_per_cycle']:6} MAC/cycle, "
            f"{loop['stack_references']} stack references"
        )
    count_peers = not (arguments.no_peers or arguments.keep_peers)
    rows: list[dict[str, object]] = []
    if arguments.keep_peers:
        before = json.loads(arguments.json.read_text())["rows"]
        rows += [row for row in before if row["engine"] != "defakeq"]
    document = {"rows": rows, "loops": modelled, "cache": [], "estimates": []}

    def save() -> None:  # after each part: the whole takes an hour
        temporary = arguments.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(arguments.json)

    rows += own_rows(arguments.cpus, arguments.build, environment)
    save()
    if count_peers:
        folder = arguments.home / "layers"
        subprocess.run([sys.executable, "-m", "bench.arm.peer_layers", str(folder)], check=True)
        rows += peer_rows(arguments.cpus, folder, arguments.home / "site", environment)
        save()
    for name in arguments.networks:
        rows += measure_networks([name], arguments.build, arguments.home, count_peers, environment)
        save()
    macs = {layer.name: layer.macs for layer in LAYERS}
    macs |= {name: macs_of(name) for name in arguments.networks}
    document["estimates"] = estimates(rows, modelled, macs)
    document["cache"] = cache.measure(arguments.build, environment)
    save()


if __name__ == "__main__":
    main()
