"""Published names and shapes of the detectors, and weights and inputs that any code can make.

``data/detector_names.json`` has, for each detector, the names and shapes in a state dict of the
public implementation named there, and the logits that implementation gave once for `fill`'s
weights and `batch`'s pictures. In a name, ``{0-2,5}`` stands for 0, 1, 2 and 5.
"""

from __future__ import annotations

import json
import re
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import torch

from defakeq import detectors

RECORDED = json.loads((Path(__file__).parent / "data" / "detector_names.json").read_text())

_FIXED = ("_DCT_all", "_DCT_all_T", "base", "kernel", "h0", "h1", "g0", "g1")


def _choices(text):
    found = []
    for part in text.split(","):
        numbers = re.fullmatch(r"(\d+)-(\d+)", part)
        found += (
            [str(i) for i in range(int(numbers[1]), int(numbers[2]) + 1)] if numbers else [part]
        )
    return found


def skeleton(name):
    """A detector without weights."""
    with torch.device("meta"):
        return detectors._BUILDERS[name]()


def published(name):
    """{entry: shape} of the public implementation's state dict."""
    entries = {}
    for pattern, shape in RECORDED[name]["names"].items():
        parts = re.split(r"\{([^}]*)\}", pattern)
        choices = [_choices(p) if i % 2 else [p] for i, p in enumerate(parts)]
        entries.update(dict.fromkeys(map("".join, product(*choices)), tuple(shape)))
    return entries


def fill(state):
    """Give every entry of a state dict values that follow from its name and shape."""
    for name, tensor in state.items():
        leaf = name.rpartition(".")[2]
        if not tensor.is_floating_point() or leaf in _FIXED:
            continue
        u = np.random.RandomState(zlib.crc32(name.encode())).random_sample(tuple(tensor.shape))
        if leaf == "running_var" or (leaf == "weight" and tensor.dim() == 1):
            u += 0.5
        elif tensor.dim() < 2:
            u = (u - 0.5) * 0.2
        else:
            # EfficientNet's gates halve what they pass: more, or nothing of the picture is left.
            gain = 1.36 if "._" in name else 1.0
            u = (u - 0.5) * gain * np.sqrt(12 / tensor[0].numel())
        tensor.copy_(torch.from_numpy(np.asarray(u, np.float32)))


def batch(count, size, seed=0):
    """Pictures, (count, 3, size, size): smooth with a little grain, of values from -1 to 1."""
    random = np.random.RandomState(seed)
    coarse = torch.from_numpy(random.random_sample((count, 3, 7, 7)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    grain = torch.from_numpy(random.random_sample((count, 3, size, size)).astype(np.float32))
    return (1.6 * smooth + 0.4 * grain - 1).contiguous()
