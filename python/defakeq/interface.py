"""What lies around a detector's network: pictures to inputs, outputs to scores."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

RESIZES = ("cubic", "antialiased_bilinear", "antialiased_bicubic")
OUTPUTS = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Interface:
    """How a detector reads pictures and says what it found.

    Attributes:
        size: height and width of the input in pixels.
        mean, std: of each of red, green and blue, of values from 0 to 1.
        resize: "cubic": OpenCV's, which looks at 4 x 4 pixels whatever the scale;
            "antialiased_bilinear", "antialiased_bicubic": Pillow's and torchvision's.
        output: "softmax": two logits, the second that of a forgery; "sigmoid": one logit.

    Raises:
        ValueError: a value that is not accepted; the message names it.
    """

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: str = "cubic"
    output: str = "softmax"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 1 <= self.size <= 4096:
            raise ValueError(f"size: found {self.size!r}; accepted is 1 to 4096")
        for what, values in (("mean", self.mean), ("std", self.std)):
            numbers = [v for v in values if isinstance(v, int | float) and np.isfinite(v)]
            if len(values) != 3 or len(numbers) != 3 or (what == "std" and min(numbers) <= 0):
                raise ValueError(f"{what}: found {values!r}; accepted is three finite numbers")
        for what, value, accepted in (
            ("resize", self.resize, RESIZES),
            ("output", self.output, OUTPUTS),
        ):
            if value not in accepted:
                raise ValueError(f"{what}: found {value!r}; accepted is one of {accepted}")

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """The input of a picture.

        Args:
            image: uint8 RGB (height, width, 3) of any size; the whole of it is resized.

        Returns:
            float32 (3, size, size), normalized.

        Raises:
            ValueError: an array of another type or shape.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            found = getattr(image, "dtype", type(image).__name__)
            raise ValueError(f"image: found {found}; accepted is an array of uint8")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(
                f"image: found shape {list(image.shape)}; accepted is [height, width, 3], RGB"
            )
        if self.resize == "cubic":
            if image.shape[:2] != (self.size, self.size):
                image = cv2.resize(  # type: ignore[assignment]
                    image, (self.size, self.size), interpolation=cv2.INTER_CUBIC
                )
            pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        else:
            pixels = F.interpolate(
                torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None],
                size=(self.size, self.size),
                mode=self.resize.removeprefix("antialiased_"),
                antialias=True,
            )[0]
        mean = torch.tensor(self.mean).reshape(3, 1, 1)
        std = torch.tensor(self.std).reshape(3, 1, 1)
        return ((pixels.float() / 255 - mean) / std).contiguous()

    def probability(self, logits: Tensor) -> Tensor:
        """The probabilities of "forged", float32 (batch,), of a network's output.

        Raises:
            ValueError: an output of another shape.
        """
        classes = 2 if self.output == "softmax" else 1
        if logits.dim() != 2 or logits.shape[1] != classes:
            raise ValueError(
                f"logits: found shape {list(logits.shape)}; accepted is [batch, {classes}]"
            )
        if self.output == "softmax":
            return logits.float().softmax(1)[:, 1]
        return logits.float().sigmoid()[:, 0]

    def describe(self) -> dict[str, Any]:
        """The same as JSON types, for :meth:`of`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def of(described: object) -> Interface:
        """The interface that :meth:`describe` described.

        Raises:
            ValueError: something else.
        """
        if not isinstance(described, Mapping) or set(described) != set(
            Interface.__dataclass_fields__
        ):
            raise ValueError(f"interface: found {described!r}; accepted is what describe() gives")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in described.items()
        }
        return Interface(**values)


class Surroundings:
    """`input_size`, `preprocess` and `score` of a detector whose network something else runs.

    Args:
        source: an interface, or a module that has one as its attribute `interface`, or a module
            that has some of the three itself. Of such a module everything but its submodules is
            kept, and where its methods call it, the other network runs.
    """

    NAMES = ("input_size", "preprocess", "score")

    def __init__(self, source: Interface | nn.Module) -> None:
        own = source if isinstance(source, Interface) else getattr(source, "interface", None)
        self.interface = own if isinstance(own, Interface) else None
        self._shell: nn.Module | None = None
        if self.interface is None:
            assert isinstance(source, nn.Module)
            self._shell = copy.copy(source)
            self._shell.__dict__["_modules"] = {}

    def get(self, name: str, network: nn.Module) -> Any:
        """One of `NAMES`, with `network` in the place of the module's own.

        Raises:
            AttributeError: the module has none of that name.
        """
        if self.interface is not None:
            size = self.interface.size
            if name == "input_size":
                return 3, size, size
            if name == "preprocess":
                return self.interface.preprocess
            interface = self.interface
            return lambda batch: interface.probability(network(batch))
        assert self._shell is not None
        shell = copy.copy(self._shell)
        shell.__dict__["forward"] = network.forward
        return getattr(shell, name)

    @staticmethod
    def of(source: nn.Module) -> Surroundings | None:
        """The surroundings of a module; None when it has none."""
        if isinstance(getattr(source, "interface", None), Interface):
            return Surroundings(source)
        if any(hasattr(source, name) for name in Surroundings.NAMES):
            return Surroundings(source)
        return None
