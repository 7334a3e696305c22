"""Image classifiers of timm with two classes: DeiT, ViT and Swin.

The parameters have the names of timm 1.0 (``timm.create_model(NAME, num_classes=2)``) for
deit_tiny_patch16_224, deit_small_patch16_224, deit_base_patch16_224, vit_small_patch16_224,
vit_base_patch16_224, swin_small_patch4_window7_224 and swin_base_patch4_window7_224. Sizes, means
and deviations are those of timm's pretrained configurations. The whole picture is resized: timm's
own evaluation crops its middle, but a picture of a face has been cropped already.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from defakeq.detectors.base import Detector
from defakeq.interface import Interface
from defakeq.networks.swin import Swin
from defakeq.networks.vit import VisionTransformer

_IMAGENET = Interface(
    224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize="antialiased_bicubic"
)
_HALF = Interface(224, resize="antialiased_bicubic")


class Vit(Detector, VisionTransformer):
    """A vision transformer; its features are the class token, (batch, channels)."""

    def features(self, batch: Tensor) -> Tensor:
        """Return the class tokens, (batch, channels)."""
        return VisionTransformer.features(self, batch)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        logits: Tensor = self.head(features)
        return logits


class Deit(Vit):
    """DeiT (arXiv 2012.12877), without distillation token."""

    interface = _IMAGENET


class AugregVit(Vit):
    """ViT (arXiv 2010.11929) as trained by arXiv 2106.10270."""

    interface = _HALF


class SwinDetector(Detector, Swin):
    """Swin (arXiv 2103.14030); its features are the last patches, (batch, 7, 7, channels)."""

    interface = _IMAGENET
    unused: ClassVar[tuple[str, ...]] = ("*.relative_position_index", "*.attn_mask")

    def features(self, batch: Tensor) -> Tensor:
        """Return the last patches, (batch, 7, 7, channels)."""
        return Swin.features(self, batch)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (batch, 2)."""
        logits: Tensor = self.head(features)
        return logits


def deit_tiny() -> Deit:
    """DeiT-Tiny."""
    return Deit(192, 3, 2, 224)


def deit_small() -> Deit:
    """DeiT-Small."""
    return Deit(384, 6, 2, 224)


def deit_base() -> Deit:
    """DeiT-Base."""
    return Deit(768, 12, 2, 224)


def vit_small() -> AugregVit:
    """ViT-S/16."""
    return AugregVit(384, 6, 2, 224)


def vit_base() -> AugregVit:
    """ViT-B/16."""
    return AugregVit(768, 12, 2, 224)


def swin_small() -> SwinDetector:
    """Swin-S."""
    return SwinDetector(96, (2, 2, 18, 2), (3, 6, 12, 24), 2, 224)


def swin_base() -> SwinDetector:
    """Swin-B."""
    return SwinDetector(128, (2, 2, 18, 2), (4, 8, 16, 32), 2, 224)
