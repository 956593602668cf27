"""Transformer encoder over tokens or sequences (Vaswani et al. 2017), pre-norm.

Shapes: B batch, L positions, D width, H heads, E = D / H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modmix.base.errors import InputError
from modmix.encoders.base import Encoder


class Transformer(Encoder):
    """Layers of self-attention and a feed-forward network, then the mean without padding.

    Tokens are embedded, frames of a sequence are projected to the width; a learned vector per
    position is added. Token 0 and all-zero frames are padding: they are masked in attention and
    left out of the mean, so the amount of padding does not change the features. Rows that are all
    padding give zeros.

    Layers are those of `torch.nn.TransformerEncoderLayer` with ``norm_first`` and GELU, followed by
    a last layer norm; keys have no bias, which the softmax would cancel. Attention is two matrix
    products and a softmax, as torch's fused attention has no batching rule under `torch.func.vmap`.

    Raises:
        InputError: ``heads`` does not divide ``width``.

    Example:
        >>> encoder = Transformer((4,), vocabulary=27, width=8, heads=2)
        >>> encoder(torch.tensor([[3, 1, 2, 0], [0, 0, 0, 0]])).shape
        torch.Size([2, 8])
    """

    features: int

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        vocabulary: int | None = None,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        feedforward: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        assert len(shape) == (2 if vocabulary is None else 1), shape
        if width % heads:
            raise InputError(
                f"heads of transformer must divide its width, got {heads} heads and width {width}; "
                "change one of them"
            )
        self.is_tokens = vocabulary is not None
        self.embedding = (
            nn.Linear(shape[-1], width) if vocabulary is None else nn.Embedding(vocabulary, width)
        )
        self.positions_LD = nn.Parameter(torch.empty(shape[0], width))
        nn.init.normal_(self.positions_LD, std=0.02)
        self.dropout = _dropout(dropout)
        self.layers = nn.ModuleList(
            _Layer(width, heads, feedforward, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.features = width

    def forward(self, inputs: Tensor) -> Tensor:
        """Map tokens (B, L) or frames (B, L, F) to features (B, D)."""
        padding_BL = inputs == 0 if self.is_tokens else (inputs == 0).all(2)
        x_BLD = self.dropout(self.embedding(inputs) + self.positions_LD)
        for layer in self.layers:
            x_BLD = layer(x_BLD, padding_BL)
        real_BL1 = (~padding_BL).unsqueeze(2)
        total_BD = self.norm(x_BLD).masked_fill(~real_BL1, 0.0).sum(1)
        mean_BD: Tensor = total_BD / real_BL1.sum(1).clamp(min=1)
        return mean_BD


class _Layer(nn.Module):
    """Self-attention and a feed-forward network, each on normalised inputs and added to them."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.attention_out = nn.Linear(width, width)
        self.linear1, self.linear2 = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.dropouts = nn.ModuleList(_dropout(dropout) for _ in range(4))
        for linear in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(linear.weight, gain=0.5**0.5)  # torch's, for all in one matrix
        for linear in (self.query, self.value, self.attention_out):
            nn.init.zeros_(linear.bias)

    def forward(self, x_BLD: Tensor, padding_BL: Tensor) -> Tensor:
        of_weights, of_attention, of_hidden, of_output = self.dropouts
        attended_BLD = self._attended(self.norm1(x_BLD), padding_BL, of_weights)
        x_BLD = x_BLD + of_attention(attended_BLD)
        hidden_BLF = of_hidden(nn.functional.gelu(self.linear1(self.norm2(x_BLD))))
        result_BLD: Tensor = x_BLD + of_output(self.linear2(hidden_BLF))
        return result_BLD

    def _attended(self, x_BLD: Tensor, padding_BL: Tensor, dropout: nn.Module) -> Tensor:
        query_BHLE, key_BHLE, value_BHLE = (
            part(x_BLD).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores_BHLL = query_BHLE @ key_BHLE.mT / math.sqrt(key_BHLE.shape[-1])
        # Finite, because a softmax over only -inf is NaN.
        lowest = torch.finfo(scores_BHLL.dtype).min
        scores_BHLL = scores_BHLL.masked_fill(padding_BL[:, None, None], lowest)
        weights_BHLL = dropout(scores_BHLL.softmax(3))
        result_BLD: Tensor = self.attention_out(
            (weights_BHLL @ value_BHLE).transpose(1, 2).flatten(2)
        )
        return result_BLD


def _dropout(p: float) -> nn.Module:
    """Dropout, which the model replaces by its own; the identity if it has no effect."""
    return nn.Dropout(p) if p > 0 else nn.Identity()
