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
