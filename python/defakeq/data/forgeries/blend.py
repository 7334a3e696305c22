"""A swap of a face with a changed copy of itself: a mask's edge, another color and sharpness."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from defakeq.embedded.data import forge as self_blend


def forge(
    look: np.random.Generator,
    grain: np.random.Generator,
    image: NDArray[np.float32],
    outline: NDArray[np.float64],
    full: bool = True,
) -> NDArray[Any]:
    """Return a self-blended copy; see :func:`defakeq.embedded.data.forge`."""
    del grain
    return self_blend(look, image, outline, full)
