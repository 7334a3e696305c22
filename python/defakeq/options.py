"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Detector = Annotated[
    str | None, typer.Option(help="A detector's name (defakeq.detectors), or 'embedded'.")
]
Model = Annotated[
    str | None, typer.Option(help="package.module:function that returns the float module.")
]
Weights = Annotated[Path | None, typer.Option(help="The float checkpoint.")]

NO_TORCH = (
    "torch: not installed, and this command needs it; `pip install torch` first, then "
    "`pip install .` in the project directory"
)


def check_new_file(out: Path) -> None:
    """Refuses what cannot become a detector file, before the work rather than after it.

    Raises:
        ValueError: another suffix, a folder, or no folder to write to.
    """
    if out.suffix != ".dfq":
        raise ValueError(f"out: found {out}; accepted is a name that ends with .dfq")
    if out.exists() and not out.is_file():
        raise ValueError(f"out: found {out}, which is no file that can be written over")
    if not out.parent.is_dir():
        raise ValueError(f"out: found {out}, whose folder does not exist")
