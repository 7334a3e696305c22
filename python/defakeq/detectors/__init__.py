"""Deepfake detectors with the parameters' names of their published weights.

`build` makes one, `names` lists them; see docs/detectors.md.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable

import torch

from defakeq.detectors.base import Detector
from defakeq.detectors.checkpoint import LoadReport, WeightsError
from defakeq.detectors.efficientnet import efficientnet_b4
from defakeq.detectors.f3net import f3net
from defakeq.detectors.lsda import lsda
from defakeq.detectors.meso import meso4, mesoinception4
from defakeq.detectors.npr import npr
from defakeq.detectors.resnet import resnet34
from defakeq.detectors.spsl import spsl
from defakeq.detectors.srm import srm
from defakeq.detectors.ucf import ucf
from defakeq.detectors.vision_transformers import (
    deit_base,
    deit_small,
    deit_tiny,
    swin_base,
    swin_small,
    vit_base,
    vit_small,
)
from defakeq.detectors.wavelet_clip import wavelet_clip
from defakeq.detectors.xception import xception

__all__ = ["Detector", "LoadReport", "WeightsError", "build", "names"]

_BUILDERS: dict[str, Callable[[], Detector]] = {
    function.__name__: function
    for function in (
        deit_tiny,
        deit_small,
        deit_base,
        vit_small,
        vit_base,
        swin_small,
        swin_base,
        lsda,
        npr,
        ucf,
        wavelet_clip,
        meso4,
        mesoinception4,
        resnet34,
        xception,
        efficientnet_b4,
        f3net,
        spsl,
        srm,
    )
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
    if pretrained is not None:
        detector.load_weights(pretrained)
    return detector.eval()
