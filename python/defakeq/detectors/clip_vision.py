"""CLIP's vision transformer (arXiv 2103.00020), with the names of the package transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SLOPE = 1.702  # of CLIP's GELU, x * sigmoid(1.702 x)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), as SiLU of 1.702 x."""
    return F.silu(x * _SLOPE) / _SLOPE


class Embeddings(nn.Module):
    """A vector for each patch and for the class, and their positions."""

    def __init__(self, channels: int, patch: int, size: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(channels) * channels**-0.5)
        self.patch_embedding = nn.Conv2d(3, channels, patch, patch, bias=False)
        self.position_embedding = nn.Embedding((size // patch) ** 2 + 1, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, size, size) to (batch, tokens, channels)."""
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class Attention(nn.Module):
    """Attention of all tokens."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        b, tokens, channels = x.shape
        shape = (b, tokens, self.heads, channels // self.heads)
        q, k, v = (
            layer(x).reshape(shape).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.out_proj(y)
        return out


class Mlp(nn.Module):
    """Two dense layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., channels) to the same shape."""
        y: Tensor = self.fc2(quick_gelu(self.fc1(x)))
        return y


class Layer(nn.Module):
    """Attention and an MLP, each added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(channels, heads)
        self.layer_norm1 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        self.layer_norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        x = x + self.self_attn(self.layer_norm1(x))
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, channels: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(channels, heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        for layer in self.layers:
            x = layer(x)
        return x


class ClipVision(nn.Module):
    """The input is (batch, 3, size, size), the output the class token, (batch, channels).

    Args:
        channels, heads, depth: those of ViT-L/14 when left out.
        patch, size: height and width of a patch and of the input.
    """

    def __init__(
        self,
        channels: int = 1024,
        heads: int = 16,
        depth: int = 24,
        patch: int = 14,
        size: int = 224,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(channels, patch, size)
        self.pre_layrnorm = nn.LayerNorm(channels)  # spelt as published
        self.encoder = Encoder(channels, heads, depth)
        self.post_layernorm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the class tokens after the last LayerNorm."""
        x = self.encoder(self.pre_layrnorm(self.embeddings(x)))
        token: Tensor = self.post_layernorm(x[:, 0])
        return token
