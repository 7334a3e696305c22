"""Vision transformers, ViT (arXiv 2010.11929) and DeiT (arXiv 2012.12877), of 16x16 patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.networks.convnext import Mlp

_EPS = 1e-6
_PATCH = 16


class Attention(nn.Module):
    """Attention of all tokens."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        b, tokens, channels = x.shape
        size = channels // self.heads
        q, k, v = self.qkv(x).reshape(b, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.proj(y.transpose(1, 2).reshape(b, tokens, channels))
        return y


class Block(nn.Module):
    """Attention and an MLP, each added to its input."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=_EPS)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PatchEmbed(nn.Module):
    """A vector for each patch."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, _PATCH, _PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, h / 16 * w / 16, channels)."""
        y: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return y


class VisionTransformer(nn.Module):
    """The input is (batch, 3, size, size), the output (batch, num_classes).

    Raises:
        ValueError: a `size` that is no multiple of 16.
    """

    def __init__(self, channels: int, heads: int, num_classes: int, size: int, depth: int = 12):
        super().__init__()
        if size <= 0 or size % _PATCH:
            raise ValueError(f"input_size: found {size}; accepted is a multiple of {_PATCH}")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // _PATCH) ** 2 + 1, channels))
        self.patch_embed = PatchEmbed(channels)
        self.blocks = nn.Sequential(*(Block(channels, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.head = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the class tokens of a batch of images, (batch, channels)."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        token: Tensor = self.norm(self.blocks(x))[:, 0]
        return token

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        logits: Tensor = self.head(self.features(x))
        return logits


def vit_tiny(num_classes: int, size: int = 224) -> VisionTransformer:
    """DeiT-T."""
    return VisionTransformer(192, 3, num_classes, size)


def vit_small(num_classes: int, size: int = 224) -> VisionTransformer:
    """ViT-S/16, and DeiT-S."""
    return VisionTransformer(384, 6, num_classes, size)


def vit_base(num_classes: int, size: int = 224) -> VisionTransformer:
    """ViT-B/16, and DeiT-B."""
    return VisionTransformer(768, 12, num_classes, size)
