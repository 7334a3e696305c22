"""What all detectors have in common."""

from __future__ import annotations

import abc
import os
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from defakeq.detectors.checkpoint import LoadReport, load_into
from defakeq.interface import Interface


class Detector(nn.Module, abc.ABC):
    """A network with the names of its published weights, and what lies around it.

    Calling it maps (batch, 3, size, size) to logits: (batch, 2), real and forged, or (batch, 1).

    Attributes:
        interface: its preprocessing and its kind of output.
        unused: patterns (of `fnmatch`) of the names in published weights that scoring never reads.
        float_inputs: inputs of layers that are far smaller than the others, so that 8 bits for all
            would lose them: a plan with the same widths everywhere keeps them float (`half_in`).
        published_name: what `defakeq.detectors.build` knows it by; None: it was made otherwise.
    """

    interface: ClassVar[Interface]
    unused: ClassVar[tuple[str, ...]] = ()
    float_inputs: ClassVar[dict[str, tuple[int, ...]]] = {}
    published_name: str | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(3, height, width) of an input."""
        return 3, self.interface.size, self.interface.size

    @abc.abstractmethod
    def features(self, batch: Tensor) -> Tensor:
        """What the public implementation calls the features of a batch."""

    @abc.abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """The logits of features."""

    def forward(self, batch: Tensor) -> Tensor:
        """Return the logits of a batch of preprocessed pictures."""
        return self.classify(self.features(batch))

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """The input of a picture: see :meth:`defakeq.interface.Interface.preprocess`."""
        return self.interface.preprocess(image)

    def score(self, batch: Tensor) -> Tensor:
        """The probability, 0 to 1, that each picture of a batch is forged: float32 (batch,)."""
        return self.interface.probability(self(batch))

    def load_weights(self, path: str | os.PathLike[str]) -> LoadReport:
        """Load a published checkpoint; nothing is changed when it does not fit.

        See :func:`defakeq.detectors.checkpoint.load_into`.
        """
        return load_into(self, path, self.unused)
