"""The float detector that is to be compressed."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from defakeq import detectors
from defakeq.scorer import EMBEDDED, Scorer, build_module, load_weights, state_digest


def float_detector(detector: str | None, model: str | None, weights: Path | None) -> Scorer:
    """A detector by its name, or by a function that builds it, with its checkpoint.

    Args:
        detector: of `defakeq.detectors`, or "embedded".
        model: "package.module:function".
        weights: a checkpoint; None: the detector's own, or those that `model` returns.

    Raises:
        ValueError: neither or both, an unknown name, or a checkpoint that does not fit.
    """
    if (detector is None) == (model is None):
        found = "neither" if detector is None else "both"
        raise ValueError(f"detector, model: found {found}; accepted is one of them")
    module: nn.Module
    if detector == EMBEDDED:
        from defakeq.embedded.network import load_float

        module = load_float()
    elif detector is not None:
        module = detectors.build(detector)
    else:
        assert model is not None
        module = build_module(model)
    if weights is not None:
        load_weights(module, weights)
    module = module.eval().requires_grad_(False)
    name = detector or model or ""
    digest, size = state_digest(name, module)
    return Scorer(name, module, size, digest)
