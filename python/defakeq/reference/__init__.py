"""Small detectors that were trained on generated data: the ground on which compression is judged.

Their figures say nothing about real forgeries. ``bench/accuracy/train.py`` makes the weights; each
``weights/NAME.json`` has the seeds, the log and the held-out AUC of every forgery family.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from defakeq.reference.data import Evaluation, evaluation
from defakeq.reference.networks import NETWORKS, Reference

__all__ = ["NAMES", "Evaluation", "build", "evaluation", "report"]

WEIGHTS = Path(__file__).parent / "weights"
NAMES = tuple(NETWORKS)


def _checked(name: str) -> str:
    if name not in NAMES:
        near = difflib.get_close_matches(str(name), NAMES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"name: found {name!r} (nearest: {near!r}); accepted is one of {', '.join(NAMES)}"
        )
    return name


def build(name: str) -> Reference:
    """Return a trained detector in evaluation mode, its weights float32.

    It has ``input_size``, ``preprocess``, ``features`` and ``score`` as all detectors
    (:class:`defakeq.detectors.Detector`). Raises ``ValueError`` for an unknown name.
    """
    from safetensors.torch import load_file

    model = NETWORKS[_checked(name)]()
    stored = load_file(str(WEIGHTS / f"{name}.safetensors"))
    model.load_state_dict({key: value.to(model.state_dict()[key]) for key, value in stored.items()})
    return model.eval().requires_grad_(False)


def report(name: str) -> dict[str, Any]:
    """Return how a detector was trained and what it reached. Raises ``ValueError`` as `build`."""
    found: dict[str, Any] = json.loads((WEIGHTS / f"{_checked(name)}.json").read_text())
    return found


def meso4() -> Reference:
    """Return the trained Meso-4."""
    return build("meso4")


def resnet34() -> Reference:
    """Return the trained ResNet-34."""
    return build("resnet34")


def efficientnet() -> Reference:
    """Return the trained EfficientNet."""
    return build("efficientnet")


def vit() -> Reference:
    """Return the trained vision transformer."""
    return build("vit")
