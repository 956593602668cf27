"""Late-fusion Transformer: a Transformer encoder over one token per modality."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modmix.methods.draws import Dropout
from modmix.methods.joint import Joint
from modmix.methods.unimodal import Logits


class TransformerLayer(nn.Module):
    """An encoder layer with post-norm and ReLU (Vaswani et al. 2017), (B, T, D) to (B, T, D).

        x ← LayerNorm(x + attention(x))         x ← LayerNorm(x + W_2 ReLU(W_1 x))

    Equal to `torch.nn.TransformerEncoderLayer`, with dropout in the same places, except that keys
    have no bias: softmax cancels it, so its gradient is rounding error, which Adam turns into full
    steps. Attention is written out: `scaled_dot_product_attention` has no batching rule for
    `torch.func.vmap`.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        assert width % heads == 0, (width, heads)
        self.heads = heads
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, feedforward)
        self.down = nn.Linear(feedforward, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in range(4))

    def forward(self, x_BTD: Tensor) -> Tensor:
        first, second = self.norms
        of_weights, of_attention, of_hidden, of_result = self.dropouts
        x_BTD = first(x_BTD + of_attention(self.attention(x_BTD, of_weights)))
        hidden_BTF = of_hidden(self.up(x_BTD).relu())
        normed_BTD: Tensor = second(x_BTD + of_result(self.down(hidden_BTF)))
        return normed_BTD

    def attention(self, x_BTD: Tensor, dropout: nn.Module) -> Tensor:
        """Multi-head self-attention; H heads of E = D / H units."""
        q_BHTE, k_BHTE, v_BHTE = (
            layer(x_BTD).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for layer in (self.query, self.key, self.value)
        )
        scores_BHTT = q_BHTE @ k_BHTE.mT / math.sqrt(q_BHTE.shape[-1])
        mixed_BHTE = dropout(scores_BHTT.softmax(-1)) @ v_BHTE
        found_BTD: Tensor = self.out(mixed_BHTE.transpose(-3, -2).flatten(-2))
        return found_BTD


class LateTransformer(Joint):
    """Late-fusion Transformer, the simple baseline of Rheude et al. (2025, arXiv 2512.22991).

        t_m = P_m f_m + p_m                     a token per modality
        [c'; t'] = Transformer([c; t_1; …; t_M])    c: learned class token
        z = W c' + b    or, with ``pool="mean"`` and no class token,    z = W mean_m t'_m + b

    p_m distinguishes the modalities; there are no position embeddings. Differs from the published
    method: one token per modality (there a variant; otherwise several), no missing modalities, and
    layer, pooling and defaults are not theirs in every detail.

    Args:
        width: units of a token, a multiple of ``heads``.
        heads: attention heads.
        feedforward: hidden units of each layer's MLP.
        layers: Transformer layers.
        dropout: probability inside the layers.
        pool: "class" or "mean".
    """

    def __init__(
        self,
        features: Mapping[str, int],
        classes: int,
        *,
        width: int = 64,
        heads: int = 4,
        feedforward: int = 128,
        layers: int = 1,
        dropout: float = 0.1,
        pool: str = "class",
    ) -> None:
        super().__init__(features, classes)
        self.project = nn.ModuleList(nn.Linear(d, width) for d in features.values())
        self.token = None
        if pool == "class":
            self.token = nn.Parameter(nn.init.normal_(torch.empty(1, width), std=0.02))
        self.layers = nn.Sequential(
            *(TransformerLayer(width, heads, feedforward, dropout) for _ in range(layers))
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, features: Mapping[str, Tensor]) -> Logits:
        parts = zip(self.project, self.ordered(features), strict=True)
        tokens_BTD = torch.stack([g(f_BD) for g, f_BD in parts], dim=1)
        if self.token is None:
            return Logits(self.classifier(self.layers(tokens_BTD).mean(1)))
        class_B1D = self.token.expand(len(tokens_BTD), 1, -1)
        tokens_BTD = torch.cat([class_B1D.to(tokens_BTD.dtype), tokens_BTD], dim=1)
        return Logits(self.classifier(self.layers(tokens_BTD).select(1, 0)))
