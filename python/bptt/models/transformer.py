"""A transformer encoder: every step looks at every other; beside the recurrent layers.

    a = x + O attention(norm(x));    y = a + W gelu(V norm(a))
    attention of a head = softmax(Q K' / sqrt(d)) V over the steps within the length

Positions are told by sines and cosines added to the input.

Source: Vaswani et al. 2017 (arXiv 1706.03762); the norm in front, Xiong et al. 2020 (arXiv
2002.04745).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import valid

HEAD = 32  # features of a head, at most


class Transformer(nn.Module):
    """Inputs [B, T, I] to features [B, T, width], called as a recurrent layer is.

    Args:
        inputs: I.
        width: features of a step; a multiple of 2.
        layers: on top of each other.
        dropout: on what attention and feed-forward layers add.
    """

    def __init__(self, inputs: int, width: int, *, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be a multiple of 2, got {width}")
        self.input = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, hx: None = None, lengths: Tensor | None = None) -> Any:
        """Features, 0 past the lengths [B], and None, as there is no state."""
        within = valid(x, lengths)
        h = self.input(x)
        h = h + positions(h.shape[1], h.shape[2], h)
        seen = within.squeeze(2)[:, None, None, :]
        for block in self.blocks:
            h = block(h, seen)
        return self.norm(h) * within, None


class Block(nn.Module):
    """Attention and a feed-forward network, each added to what comes in."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = next(n for n in range(-(-width // HEAD), width + 1) if width % n == 0)
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x [B, T, width]; seen bool [B, 1, 1, T]: the steps that may be looked at."""
        split = self.query_key_value(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, heads, T, d]
        looked = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.dropout(self.merge(looked.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feed(self.feed_norm(x)))


def positions(steps: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines [steps, width] of each step's number, at falling rates."""
    rates = 1e4 ** (-torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    angles = torch.arange(steps, device=like.device, dtype=like.dtype)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
