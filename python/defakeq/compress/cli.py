"""``defakeq compress`` and ``defakeq inspect``."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from defakeq import options

# Heavy imports (torch, OpenCV) stay inside the commands.


def compress(
    data: Annotated[Path, typer.Option(help="Folder of calibration pictures, or of a data set.")],
    out: Annotated[Path, typer.Option(help="The file to write (.dfq).")],
    detector: options.Detector = None,
    model: options.Model = None,
    weights: options.Weights = None,
    size: Annotated[float, typer.Option(help="Part of the float32 checkpoint at most.")] = 0.10,
    preset: Annotated[str, typer.Option(help="default, quick or paper.")] = "default",
    images: Annotated[int, typer.Option(min=2, help="Calibration pictures at most.")] = 256,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set in --data.")] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "train",
    latency: Annotated[
        float | None, typer.Option(help="Milliseconds a picture at most; needs a table.")
    ] = None,
    latency_table: Annotated[
        Path | None, typer.Option(help="JSON of 'defakeq bench latency' on the target.")
    ] = None,
    prune: Annotated[bool, typer.Option(help="Let redundant channels go.")] = True,
    veft: Annotated[bool, typer.Option(help="Fine-tune, and restore some channels.")] = True,
    integer: Annotated[Path | None, typer.Option(help="Write the integer-only model too.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report as JSON.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of finished stages, to continue from; OUT.work if left out."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every choice.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bars, no table.")] = False,
) -> None:
    """Compress a detector; a killed run continues when the command is given again."""
    import torch
    from rich.console import Console

    from defakeq.compress.distributed import group
    from defakeq.compress.images import from_folder
    from defakeq.compress.pipeline import compress as run
    from defakeq.compress.report import show, to_html
    from defakeq.compress.source import float_detector
    from defakeq.compress.workdir import write_whole

    options.check_new_file(out)
    if threads is not None:
        torch.set_num_threads(threads)
    scorer = float_detector(detector, model, weights)
    calibration = from_folder(data, scorer, images, dataset, split, seed)
    table = None if latency_table is None else json.loads(latency_table.read_text())
    folder = work or out.with_name(f"{out.name}.work")
    with group() as ranks:
        found = run(
            scorer.module,
            calibration,
            size=size,
            latency=None if latency is None else 1000 * latency,
            preset=preset,
            prune=prune,
            veft=veft,
            seed=seed,
            progress=not quiet,
            latency_table=table,
            work=folder,
        )
        if not ranks.first:
            return
    found.save(out)
    if integer is not None:
        found.save(integer, integer_only=True)
    if json_file is not None:
        write_whole(json_file, (json.dumps(found.report, indent=1) + "\n").encode())
    if report is not None:
        write_whole(report, to_html(found.report).encode())
    for part in out.parent.glob(f".{glob.escape(out.name)}.*.part"):  # of a run that was killed
        part.unlink(missing_ok=True)
    if work is None:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    if not quiet:
        show(found.report, Console())
        typer.echo(f"{out}: {found.report['size']} bytes")


def inspect(
    path: Annotated[Path, typer.Argument(help="A program (.dfq).", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a file holds: widths, kept and restored channels, bytes a layer."""
    from defakeq.compress.inspection import inspected

    found: dict[str, Any] = inspected(path)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from rich.console import Console

    from defakeq.compress.inspection import show

    show(found, Console())
