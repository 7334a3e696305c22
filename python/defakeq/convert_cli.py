"""``defakeq detectors`` and ``defakeq convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from defakeq import options

# Heavy imports (torch, OpenCV) stay inside the commands.


def detectors(
    check: Annotated[
        list[str] | None, typer.Option(help="Convert this one and compare its scores; repeatable.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Generated ones to score (--check).")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the detectors whose published weights can be loaded; --check converts some to 8 bits."""
    import json
    from dataclasses import asdict

    import torch

    from defakeq.detectors import build, names

    if check:
        from defakeq.detectors.check import check as compare

        # One after the other: each is shown as soon as it is known.
        for found in compare(tuple(check), pictures):
            if as_json:
                typer.echo(json.dumps(asdict(found)))
                continue
            typer.echo(
                f"{found.name:16} {found.parameters / 1e6:6.2f} M parameters  "
                f"{found.bytes / 1e6:6.2f} MB  differences of {found.pictures} scores: "
                f"mean {found.mean:.4f}, most {found.most:.4f}"
            )
        return
    if as_json:
        raise ValueError("json: found without check; accepted is --check NAME --json")
    for name in names():
        with torch.device("meta"):
            model = build(name)
        count = sum(p.numel() for p in model.parameters())
        size = model.input_size[1]
        typer.echo(f"{name:16} {size} x {size}  {count / 1e6:6.2f} M parameters")


def convert(
    data: Annotated[Path, typer.Option(help="Folder of calibration pictures, or of a data set.")],
    out: Annotated[Path, typer.Option(help="The file to write (.dfq).")],
    detector: options.Detector = None,
    model: options.Model = None,
    weights: options.Weights = None,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Of all weights.")] = 8,
    backend: Annotated[str, typer.Option(help="program, or modules with torch.")] = "program",
    images: Annotated[int, typer.Option(min=2, help="Calibration pictures at most.")] = 64,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set in --data.")] = None,
    split: Annotated[str, typer.Option(help="Its split.")] = "train",
    seed: Annotated[int, typer.Option(help="Of the pictures that are drawn.")] = 0,
) -> None:
    """Convert a detector as it is, all layers to one width; 'compress' finds better widths."""
    from defakeq import conversion
    from defakeq.compress.images import from_folder
    from defakeq.compress.source import float_detector
    from defakeq.plan import QuantPlan

    options.check_new_file(out)
    scorer = float_detector(detector, model, weights)
    found = from_folder(data, scorer, images, dataset, split, seed)
    plan = QuantPlan.uniform(scorer.module, bits)
    converted = conversion.convert(
        scorer.module, found.images[:1], plan, found.images.split(8), backend=backend
    )
    conversion.save(converted, out, model if backend == "modules" else None)
    typer.echo(f"{out}: {out.stat().st_size} bytes, {scorer.size} before")
