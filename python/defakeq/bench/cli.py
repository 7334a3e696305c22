"""``defakeq bench``: the command line of the benchmarks."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from defakeq import options

app = typer.Typer(
    help="Measure the kernels, alone or beside other engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """Measure the kernels, alone or beside other engines."""


def _fail(message: object) -> typer.Exit:
    if isinstance(message, ImportError) and message.name == "torch":
        message = options.NO_TORCH
    typer.echo(f"defakeq bench: {message}", err=True)
    return typer.Exit(2)


def _widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"bits: found {text!r}; accepted is for example 8,4,2") from None


@app.command()
def ops(
    threads: Annotated[
        int, typer.Option(help="Threads of each engine; processors are pinned.")
    ] = 1,
    bits: Annotated[str, typer.Option(help="Widths of our weights, 1 to 8.")] = "8,4,2",
    peers: Annotated[
        bool, typer.Option("--peers", help="The same work in torch, ONNX Runtime and OpenVINO.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.")
    ] = None,
    work: Annotated[
        list[str] | None, typer.Option(help="Only work whose name contains this; repeatable.")
    ] = None,
    shapes: Annotated[
        str, typer.Option(help="A shape file that comes with the package, or a path.")
    ] = "table",
    rounds: Annotated[int, typer.Option(help="How many times each is measured.")] = 15,
    cold: Annotated[
        bool, typer.Option("--cold", help="Empty the caches before each call (ours only).")
    ] = False,
    list_shapes: Annotated[
        bool, typer.Option("--list", help="List the shape files and the work, measure nothing.")
    ] = False,
) -> None:
    """Layers of real detectors: microseconds, GMAC/s, GB/s and the fraction of the peak.

    DEFAKEQ_ISA=scalar|avx2|avx512vnni chooses the kernels.
    """
    # Before an engine is imported, which reads them once.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    try:
        from defakeq.bench.ops import measure, select
        from defakeq.bench.shapes import load_shapes, shape_files

        works = select(load_shapes(shapes), work or [])
        if list_shapes:
            typer.echo(f"shape files: {', '.join(shape_files())}")
            for item in works:
                typer.echo(f"{item.name}{f' * {item.count}' if item.count > 1 else ''}")
            return
        result = measure(
            works,
            threads=threads,
            bits=_widths(bits),
            peers=peers,
            cold=cold,
            rounds=rounds,
            command=_command(),
            say=lambda line: typer.echo(line, err=True),
            on_rows=_Printer(),
        )
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(result, indent=1) + "\n")
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        if isinstance(error, typer.Exit | typer.Abort):
            raise
        raise _fail(error) from error
    _print_machine(result["machine"])


@app.command()
def model(
    network: Annotated[
        list[str], typer.Argument(help="Names of networks or detectors, or .dfq files.")
    ],
    engines: Annotated[
        str, typer.Option(help="Which engines, with commas between.")
    ] = "defakeq,torch,torch-int8,onnxruntime,openvino",
    threads: Annotated[
        int, typer.Option(help="Threads of each engine; processors are pinned.")
    ] = 1,
    plan: Annotated[str, typer.Option(help="Of our program: 8, 4, half, or a plan's JSON.")] = "8",
    rounds: Annotated[int, typer.Option(help="How many times each is measured.")] = 15,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw a PNG chart.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="A table of our program's nodes too.")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of prepared networks.")] = None,
) -> None:
    """Whole networks: milliseconds, size, resident memory and the first inference.

    Engines: defakeq, torch, torch-int8, onnxruntime, openvino; onnxruntime-export and
    openvino-export run our program, exported, so pruned channels are gone there too;
    openvino-pruned runs the same channels at 8 bits throughout.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    try:
        from defakeq.bench import models

        sources = [models.network_of(name, cache) for name in network]
        result: dict[str, Any] = {}
        for name, source in zip(network, sources, strict=True):
            found = models.measure(
                name,
                engines=engines.split(","),
                plan=plan,
                threads=threads,
                rounds=rounds,
                profile=profile,
                cache=cache,
                command=_command(),
                say=lambda line: typer.echo(line, err=True),
            )
            _print_table(found["rows"])
            if profile:
                _print_nodes(source.name, found["profile"])
            result.setdefault("machine", found.pop("machine"))
            for key, items in found.items():
                result.setdefault(key, []).extend(items)
            if json_file is not None:
                json_file.parent.mkdir(parents=True, exist_ok=True)
                json_file.write_text(json.dumps(result, indent=1) + "\n")
        if chart is not None and result["rows"]:
            models.draw(result["rows"], chart)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        if isinstance(error, typer.Exit | typer.Abort):
            raise
        raise _fail(error) from error
    _print_machine(result["machine"])


@app.command()
def latency(
    data: Annotated[Path, typer.Option(help="Folder of pictures to calibrate with.")],
    json_file: Annotated[Path, typer.Option("--json", help="Write the table to this file.")],
    detector: options.Detector = None,
    model: options.Model = None,
    weights: options.Weights = None,
    images: Annotated[int, typer.Option(min=2, help="Pictures at most.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the program.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="How many times each width runs.")] = 20,
) -> None:
    """Microseconds of each layer of a detector by width, for 'defakeq compress --latency-table'."""
    try:
        from defakeq.compress.images import from_folder
        from defakeq.compress.latency import measure
        from defakeq.compress.source import float_detector
        from defakeq.compress.workdir import write_whole

        scorer = float_detector(detector, model, weights)
        pictures = from_folder(data, scorer, images).images
        table = measure(scorer.module, pictures, repeat, threads)
        write_whole(json_file, (json.dumps(table, indent=1) + "\n").encode())
    except (ImportError, OSError, ValueError) as error:
        raise _fail(error) from error
    typer.echo(f"{json_file}: {len(table['layers'])} layers")


# The same line begins the table of `dq_run --bench`.
HEAD = (
    f"{'network':24} {'plan':8} {'engine':20} {'threads':>7} {'ms':>10} {'size_mb':>9} "
    f"{'rss_mb':>8} {'first_ms':>9} {'gmacs':>8}"
)


def _print_table(rows: list[dict[str, Any]]) -> None:
    typer.echo(HEAD)
    for row in rows:
        typer.echo(
            f"{row['network']:24} {row['plan']:8} {row['engine']:20} {row['threads']:7} "
            f"{row['ms']:10.4f} {row['size_mb']:9.3f} {row['rss_mb']:8.1f} {row['first_ms']:9.2f} "
            f"{row['gmacs']:8.2f}"
        )


def _print_nodes(network: str, nodes: list[dict[str, Any]]) -> None:
    total = sum(node["us"] for node in nodes)
    typer.echo(f"{network + ': node':44} {'us':>9} {'%':>5} {'GMAC/s':>7}  shape, op, kernel")
    for node in nodes:
        shape = "x".join(map(str, node["shape"]))
        typer.echo(
            f"{node['node'][-44:]:44} {node['us']:9.1f} {100 * node['us'] / total:5.1f} "
            f"{node['gmacs']:7.1f}  {shape}, {node['op']}, {node['kernel']}"
        )
    typer.echo(f"{'sum':44} {total:9.1f}")


def _command() -> str:
    tier = os.environ.get("DEFAKEQ_ISA", "")
    lead = f"DEFAKEQ_ISA={tier} " if tier else ""
    return lead + shlex.join(["defakeq", *sys.argv[1:]])


class _Printer:
    """Prints rows as they come, below a head."""

    def __init__(self) -> None:
        self.begun = False

    def __call__(self, rows: list[dict[str, Any]]) -> None:
        from defakeq.bench.ops import OURS

        if not self.begun:
            numbers = f"{'us':>10} {'GMAC/s':>8} {'of peak':>8} {'GB/s':>7}"
            typer.echo(f"{'work':42} {'bits':>4}  {'engine':22} {numbers}")
            self.begun = True
        for row in sorted(rows, key=lambda r: not r["engine"].startswith(OURS)):
            line = f"{row['work']:42} {row['bits']:4}  {row['engine']:22} {row['us']:10.2f}"
            if row["gmacs"] is not None:
                line += f" {row['gmacs']:8.1f} {row['of_peak']:8.3f} {row['gbs']:7.1f}"
            typer.echo(line)


def _print_machine(machine: dict[str, Any]) -> None:
    typer.echo(
        f"\n{machine['cpu']}, {machine['isa']}, {machine['threads']} thread(s) on processor(s) "
        f"{machine['pinned_cpus']}; one core: int8 {machine['int8_peak_gmacs']} GMAC/s, "
        f"fp32 {machine['fp32_peak_gmacs']} GMAC/s, L2 {machine['l2_gbs']} GB/s, "
        f"DRAM {machine['dram_gbs']} GB/s"
    )
