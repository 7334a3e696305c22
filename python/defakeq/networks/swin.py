"""Swin Transformer (arXiv 2103.14030) with 4x4 patches and windows of 7x7 patches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defakeq.networks.convnext import Mlp

_BLOCKED = -100.0  # added to the logits of patches that are no neighbours


def _windows(x: Tensor, size: int) -> Tensor:
    """(batch, h, w, channels) to (batch * windows, size * size, channels)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, size * size, c)


def _relative_index(size: int) -> Tensor:
    """For each pair of positions in a window, the row of the bias table: (size^2, size^2)."""
    at = torch.arange(size)
    y, x = (grid.flatten() for grid in torch.meshgrid(at, at, indexing="ij"))
    down = y[:, None] - y[None, :] + size - 1
    right = x[:, None] - x[None, :] + size - 1
    return down * (2 * size - 1) + right


def _shift_mask(resolution: int, size: int, shift: int) -> Tensor:
    """What is added to the logits after a cyclic shift: (windows, size^2, size^2)."""
    region = torch.zeros(resolution, dtype=torch.long)
    region[-size:] = 1
    region[-shift:] = 2
    label = (region[:, None] * 3 + region[None, :]).reshape(1, resolution, resolution, 1)
    label = _windows(label, size).squeeze(-1)
    differ = label[:, :, None] != label[:, None, :]
    return torch.zeros(differ.shape).masked_fill(differ, _BLOCKED)


class WindowAttention(nn.Module):
    """Attention inside windows, with a bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_index(window), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def bias(self) -> Tensor:
        """The bias of the logits, (1, heads, tokens, tokens)."""
        table: Tensor = self.relative_position_bias_table[self.relative_position_index.flatten()]
        tokens = self.relative_position_index.shape[0]
        return table.reshape(tokens, tokens, self.heads).permute(2, 0, 1).unsqueeze(0)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map (batch * windows, tokens, channels) to the same shape."""
        b, tokens, channels = x.shape
        size = channels // self.heads
        q, k, v = self.qkv(x).reshape(b, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        bias = self.bias()
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).repeat(b // mask.shape[0], 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y = self.proj(y.transpose(1, 2).reshape(b, tokens, channels))
        return y

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Older checkpoints hold what is computed here.
        state.pop(prefix + "relative_position_index", None)
        super()._load_from_state_dict(state, prefix, *rest)


class Block(nn.Module):
    """Attention in (shifted) windows and an MLP, each added to its input."""

    attn_mask: Tensor | None

    def __init__(self, channels: int, heads: int, resolution: int, window: int, shifted: bool):
        super().__init__()
        self.window = min(window, resolution)
        self.shift = window // 2 if shifted and resolution > window else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, self.window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        mask = _shift_mask(resolution, self.window, self.shift) if self.shift else None
        self.register_buffer("attn_mask", mask, persistent=False)

    def _attention(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        size, shift = self.window, self.shift
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        x = self.attn(_windows(x, size), self.attn_mask)
        x = x.reshape(b, h // size, w // size, size, size, c).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h, w, c)
        return torch.roll(x, (shift, shift), (1, 2)) if shift else x

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, h, w, channels) to the same shape."""
        x = x + self._attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        state.pop(prefix + "attn_mask", None)
        super()._load_from_state_dict(state, prefix, *rest)


class Merge(nn.Module):
    """Makes one patch of 2x2 and doubles the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, h, w, channels) to (batch, h / 2, w / 2, 2 channels)."""
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5)
        y: Tensor = self.reduction(self.norm(x.reshape(b, h // 2, w // 2, 4 * c)))
        return y


class Stage(nn.Module):
    """Blocks of one resolution, after merging patches unless it is the first."""

    def __init__(self, channels: int, heads: int, resolution: int, depth: int, merge: bool):
        super().__init__()
        self.downsample = Merge(channels // 2) if merge else nn.Identity()
        self.blocks = nn.Sequential(
            *(Block(channels, heads, resolution, 7, i % 2 == 1) for i in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, h, w, channels) to the same shape, or to the one after merging."""
        y: Tensor = self.blocks(self.downsample(x))
        return y


class PatchEmbed(nn.Module):
    """A vector for each 4x4 patch."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, h, w) to (batch, h / 4, w / 4, channels)."""
        y: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return y


class Head(nn.Module):
    """The classifier of the mean patch."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, h, w, channels) to (batch, num_classes)."""
        y: Tensor = self.fc(x.mean((1, 2)))
        return y


class Swin(nn.Module):
    """The input is (batch, 3, size, size), the output (batch, num_classes).

    Raises:
        ValueError: a `size` that windows do not tile.
    """

    def __init__(
        self,
        channels: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        num_classes: int,
        size: int,
    ):
        super().__init__()
        if size <= 0 or size % 224:
            raise ValueError(f"input_size: found {size}; accepted is a multiple of 224")
        self.patch_embed = PatchEmbed(channels)
        self.layers = nn.Sequential(
            *(
                Stage(channels << i, heads[i], (size // 4) >> i, depth, i > 0)
                for i, depth in enumerate(depths)
            )
        )
        self.norm = nn.LayerNorm(channels << (len(depths) - 1))
        self.head = Head(channels << (len(depths) - 1), num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the last patches of a batch of images, (batch, size / 32, size / 32, channels)."""
        y: Tensor = self.norm(self.layers(self.patch_embed(x)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        logits: Tensor = self.head(self.features(x))
        return logits


def swin_small(num_classes: int, size: int = 224) -> Swin:
    """Swin-S."""
    return Swin(96, (2, 2, 18, 2), (3, 6, 12, 24), num_classes, size)


def swin_base(num_classes: int, size: int = 224) -> Swin:
    """Swin-B."""
    return Swin(128, (2, 2, 18, 2), (4, 8, 16, 32), num_classes, size)
