"""``defakeq data``: make miniature data sets, and check data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="data",
    help="Make miniature data sets, and check data sets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _about() -> None:
    """Make miniature data sets, and check data sets."""


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    dataset: Annotated[list[str], typer.Option(help="Layout; may be given several times.")],
    count: Annotated[int, typer.Option(help="Real videos a split.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    frames: Annotated[int, typer.Option(help="Pictures a video.")] = 4,
    size: Annotated[int, typer.Option(help="Pixels of a picture's side.")] = 128,
    split: Annotated[
        list[str] | None, typer.Option(help="train, val, test; all when left out.")
    ] = None,
    compression: Annotated[
        list[str] | None, typer.Option(help="raw, c23, c40, where a data set has several.")
    ] = None,
    degrade: Annotated[
        list[str] | None, typer.Option(help="jpeg, video, blur or noise, and a strength: jpeg:3.")
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(help="Forgery families of the layout 'folder'.")
    ] = None,
    films: Annotated[bool, typer.Option(help="Write films in the layout 'folder'.")] = False,
    skimage: Annotated[
        bool, typer.Option(help="Add scikit-image's photographs as backgrounds.")
    ] = False,
) -> None:
    """Write miniature data in the layout of a public data set (docs/data.md)."""
    from defakeq.data import generate as module

    for name in dataset:
        options = module.Options(
            name,
            count,
            seed,
            frames,
            size,
            tuple(split or module.SPLITS),
            tuple(compression or ("c23",)),
            tuple(degrade or ()),
            tuple(family or module.FAMILIES),
            skimage,
            films,
        )
        manifest = module.generate(out, options)
        pictures = ", ".join(f"{label} {n}" for label, n in manifest["pictures"].items())
        typer.echo(f"{name}: pictures: {pictures}")


@app.command()
def check(
    data: Annotated[Path, typer.Option(help="Folder of the data.")],
    dataset: Annotated[list[str] | None, typer.Option(help="Names; 'folder' if left out.")] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "all",
    compression: Annotated[str, typer.Option(help="raw, c23 or c40.")] = "c23",
    frames: Annotated[int | None, typer.Option(help="Frames a video; all if left out.")] = None,
    decode: Annotated[bool, typer.Option(help="Read every picture, not only the lists.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    workers: Annotated[int, typer.Option(help="Threads that read.")] = 2,
) -> None:
    """Read a data set and name everything that is wrong with it.

    Exit code 1: something is left out, or in two splits.
    """
    from defakeq.data import FOLDER, open_dataset

    documents: list[dict[str, Any]] = []
    for name in dataset or [FOLDER]:
        found = open_dataset(data, name, None if split == "all" else split, compression, frames)
        readable = len(found)
        if decode:
            readable = sum(len(batch.samples) for batch in found.batches(64, 64, workers))
        families: dict[str, int] = {}
        for sample in found.samples:
            families[sample.family] = families.get(sample.family, 0) + 1
        document = {"dataset": name, "samples": len(found), "readable": readable}
        documents.append(document | {"families": families} | found.report.to_dict())
    if as_json:
        typer.echo(json.dumps(documents, indent=2))
    else:
        for row in documents:
            kinds = ", ".join(f"{family} {n}" for family, n in row["families"].items())
            typer.echo(f"{row['dataset']}: {row['samples']} samples ({kinds})")
            for problem in row["problems"]:
                typer.echo(f"  {problem['kind']}: {problem['name']} {problem['detail']}".rstrip())
            for kind, number in row["counts"].items():
                typer.echo(f"  {number} x {kind}")
    if any(row["problems"] for row in documents):
        raise typer.Exit(1)
