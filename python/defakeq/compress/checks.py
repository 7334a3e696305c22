"""Arguments of `compress` that torch would refuse in its own words, or late."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, nn

from defakeq.compress.distortion import WIDTHS
from defakeq.compress.graph import Graph
from defakeq.compress.presets import Preset, preset
from defakeq.lower import check_whole, fallbacks
from defakeq.plan import QuantPlan

_SEEDS = 1 << 32  # what numpy and torch both take


def check_seed(seed: Any) -> int:
    """The seed as an int.

    Raises:
        ValueError: no whole number from 0 to 2^32 - 1.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < _SEEDS:
        raise ValueError(f"seed: found {seed!r}; accepted is a whole number from 0 to 2^32 - 1")
    return number


def check_preset(chosen: Any) -> Preset:
    """The preset, by its name or as it is.

    Raises:
        ValueError: neither a `Preset` nor the name of one.
    """
    return chosen if isinstance(chosen, Preset) else preset(chosen)


def check_device(device: str | torch.device | None) -> torch.device:
    """The device of the optimization; None: CUDA where there is one.

    Raises:
        ValueError: a device that is none or that this machine or build does not have.
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"device: found {device!r}, which cannot be used here ({_first_line(error)}); accepted "
            "is cpu, or cuda where there is one"
        ) from error
    return found


def check_taken(model: nn.Module, images: Tensor) -> None:
    """Whether a model takes images like these, for when something has failed with them.

    Raises:
        ValueError: it does not; the message has its own reason.
    """
    own = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            own(images)
    except Exception as error:
        shape = ", ".join(["N", *map(str, images.shape[1:])])
        raise ValueError(
            f"calibration: found images [{shape}], which the model does not take "
            f"({_first_line(error)}); accepted is float32 [N, C, H, W] as the model takes them"
        ) from error


def check_lowered(graph: Graph, images: Tensor) -> None:
    """Whether a program can compute the whole model, before minutes go into it.

    Raises:
        ValueError: it cannot; the message names the first operator that is left.
    """
    model = graph.model
    check_whole(fallbacks(model, ((images[:1],), {}), QuantPlan.uniform(model, min(WIDTHS))))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
