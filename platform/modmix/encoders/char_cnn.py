"""1D convolutions over characters or other tokens with max pooling over time (Kim 2014).

Shapes: B batch, L positions, D embedding, F filters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.base.errors import InputError
from modmix.encoders.base import Encoder


class CharCNN(Encoder):
    """Embedding, convolutions of several kernel widths, ReLU, and max pooling over real tokens.

    Convolutions use "same" zero padding, (width − 1) // 2 to the left and width // 2 to the right,
    and padding tokens have zero embeddings. So texts shorter than a kernel work, the amount of
    padding does not change the features, and rows without tokens give zeros. The features are the
    ``filters`` of every width, concatenated.

    Raises:
        InputError: ``widths`` is empty.

    Example:
        >>> encoder = CharCNN((4,), vocabulary=27, widths=[2, 3], filters=8)
        >>> encoder(torch.tensor([[3, 1, 2, 0], [5, 0, 0, 0]])).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        vocabulary: int,
        embedding: int = 128,
        widths: Sequence[int] = (3, 4, 5),
        filters: int = 64,
    ) -> None:
        super().__init__()
        assert len(shape) == 1, shape
        if not widths:
            raise InputError("widths of char_cnn must hold at least one width, got []; give [3]")
        self.widths = tuple(widths)
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding, filters, w) for w in widths)
        self.features = filters * len(self.widths)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        padding_B1L = (tokens_BL == 0).unsqueeze(1)
        embedded_BDL = self.embedding(tokens_BL).mT.masked_fill(padding_B1L, 0.0)
        pooled = []
        for width, convolution in zip(self.widths, self.convolutions, strict=True):
            around = F.pad(embedded_BDL, ((width - 1) // 2, width // 2))
            values_BFL = convolution(around).relu()
            # Masking with 0 is safe for the maximum: ReLU outputs are at least 0.
            pooled.append(values_BFL.masked_fill(padding_B1L, 0.0).amax(2))
        return torch.cat(pooled, 1)
