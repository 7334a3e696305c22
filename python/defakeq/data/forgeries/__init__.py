"""Forgery families of miniature data, each with a trace of its own.

Every family is a function ``forge(look, grain, image, outline)``: ``image`` is a square float32
image (RGB, 0 to 1), ``outline`` the polygon (x, y) of its inner face. ``look`` decides what the
frames of a video have in common, and comes in the same state for each of them; ``grain`` decides
what differs from frame to frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.data.forgeries import blend, diffuse, resample, upsample, warp

FloatImage = NDArray[np.float32]
Points = NDArray[np.float64]
Forge = Callable[[np.random.Generator, np.random.Generator, FloatImage, Points], Any]

FAMILIES: dict[str, Forge] = {
    "blend": blend.forge,
    "resample": resample.forge,
    "upsample": upsample.forge,
    "diffuse": diffuse.forge,
    "warp": warp.forge,
}

__all__ = ["FAMILIES", "Forge"]
