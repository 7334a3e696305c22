"""Wavelet-CLIP (arXiv 2409.18301).

Names, shapes and numbers are those of lalithbharadwajbaru/Wavelet-CLIP: the class token of CLIP's
ViT-L/14, 1024 numbers, is taken apart by three levels of the wavelet db6, a dense layer changes
the 137 coarsest coefficients, and a second one classifies what they and the others give back.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from defakeq.detectors.base import Detector
from defakeq.detectors.clip_vision import ClipVision
from defakeq.detectors.wavelet import DB6, Analysis, Synthesis
from defakeq.interface import Interface

_LEVELS = 3


def coarsest(length: int) -> int:
    """Coefficients of the last level of a signal."""
    for _ in range(_LEVELS):
        length = (length + len(DB6) - 1) // 2
    return length


class WaveletClip(Detector):
    """The input is (batch, 3, 224, 224), the features are (batch, channels).

    Args:
        channels, heads, depth: of the vision transformer; ViT-L/14's when left out.
    """

    interface = Interface(224)
    unused: ClassVar[tuple[str, ...]] = ("backbone.embeddings.position_ids",)

    def __init__(self, channels: int = 1024, heads: int = 16, depth: int = 24) -> None:
        super().__init__()
        self.backbone = ClipVision(channels, heads, depth)
        self.head = nn.Linear(channels, 2)
        self.dwt = Analysis(_LEVELS)
        self.idwt = Synthesis()
        self.slp = nn.Linear(coarsest(channels), coarsest(channels))

    def features(self, batch: Tensor) -> Tensor:
        """Return the class tokens, (batch, channels)."""
        token: Tensor = self.backbone(batch)
        return token

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        low, high = self.dwt(features.unsqueeze(1))
        logits: Tensor = self.head(self.idwt(self.slp(low), high).squeeze(1))
        return logits
