"""Deepfake detectors with the parameters' names of their published weights.

`build` makes one, `names` lists them; see docs/detectors.md.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable

import torch

from defakeq import networks
from defakeq.detectors import (
    efficientnet,
    f3net,
    lsda,
    meso,
    npr,
    resnet,
    spsl,
    srm,
    ucf,
    vision_transformers,
    wavelet_clip,
    xception,
)
from defakeq.detectors.base import Detector
from defakeq.detectors.checkpoint import LoadReport, WeightsError

__all__ = ["Detector", "LoadReport", "WeightsError", "build", "names", "untrained"]

_BUILDERS: dict[str, Callable[[], Detector]] = {
    "deit_tiny": vision_transformers.deit_tiny,
    "deit_small": vision_transformers.deit_small,
    "deit_base": vision_transformers.deit_base,
    "vit_small": vision_transformers.vit_small,
    "vit_base": vision_transformers.vit_base,
    "swin_small": vision_transformers.swin_small,
    "swin_base": vision_transformers.swin_base,
    "lsda": lsda.Lsda,
    "npr": npr.Npr,
    "ucf": ucf.Ucf,
    "wavelet_clip": wavelet_clip.WaveletClip,
    "meso4": meso.meso4,
    "mesoinception4": meso.mesoinception4,
    "resnet34": resnet.ResNet34,
    "xception": xception.XceptionDetector,
    "efficientnet_b4": efficientnet.EfficientNetDetector,
    "f3net": f3net.F3Net,
    "spsl": spsl.Spsl,
    "srm": srm.Srm,
}


def names() -> tuple[str, ...]:
    """The names that :func:`build` accepts."""
    return tuple(_BUILDERS)


def build(name: str, pretrained: str | os.PathLike[str] | None = None, seed: int = 0) -> Detector:
    """A detector in evaluation mode.

    Args:
        name: one of :func:`names`.
        pretrained: a published checkpoint: see :meth:`Detector.load_weights`. None: random
            weights.
        seed: of the random weights.

    Raises:
        ValueError: an unknown name, or a checkpoint that does not fit.
    """
    builder = _BUILDERS.get(name)
    if builder is None:
        near = difflib.get_close_matches(str(name), _BUILDERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"name: found {name!r} (nearest: {near!r}); accepted is one of {', '.join(_BUILDERS)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = builder()
    detector.published_name = name
    if pretrained is not None:
        detector.load_weights(pretrained)
    return detector.eval()


def untrained(name: str, seed: int = 0) -> Detector:
    """A detector with random weights that are spread as trained ones are, to measure it with.

    Raises:
        ValueError: an unknown name.
    """
    detector = build(name, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks.randomize(detector, detector.interface.size)
    return detector
