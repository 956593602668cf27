"""LSTM over characters or other tokens.

Shapes: B batch, L positions, D embedding, H units.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modmix.encoders.base import Encoder


class CharLSTM(Encoder):
    """Embedding, LSTM, and the last layer's hidden state at the last non-padding token.

    Rows without tokens give zeros. Parameter names and initialisation are those of
    `torch.nn.Embedding` and `torch.nn.LSTM`. All positions are computed and the last real one is
    gathered, because packed sequences would need the lengths on the CPU, a synchronisation.

    torch's LSTM kernel does not support `torch.func.vmap`: when ``stacked``, a loop over positions
    computes the same values from the same parameters.

    Example:
        >>> encoder = CharLSTM((4,), vocabulary=27, units=8)
        >>> encoder(torch.tensor([[3, 1, 2, 0], [0, 0, 0, 0]])).shape
        torch.Size([2, 8])
    """

    features: int

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        vocabulary: int,
        embedding: int = 128,
        units: int = 512,
        layers: int = 1,
    ) -> None:
        super().__init__()
        assert len(shape) == 1, shape
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, units, layers, batch_first=True)
        self.features = units

    def forward(self, tokens_BL: Tensor) -> Tensor:
        lengths_B = (tokens_BL != 0).sum(1)
        embedded_BLD = self.embedding(tokens_BL)
        states_BLH = self._loop(embedded_BLD) if self.stacked else self._kernel(embedded_BLD)
        last_B11 = (lengths_B - 1).clamp(min=0).view(-1, 1, 1)
        last_BH = states_BLH.gather(1, last_B11.expand(-1, 1, self.features)).squeeze(1)
        return last_BH.masked_fill((lengths_B == 0).unsqueeze(1), 0.0)

    def _weights(self) -> list[list[Tensor]]:
        """Per layer: input weights (4H, D), recurrent weights (4H, H) and two biases (4H,)."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        layers = range(self.lstm.num_layers)
        return [[getattr(self.lstm, f"{name}_l{layer}") for name in names] for layer in layers]

    def _kernel(self, embedded_BLD: Tensor) -> Tensor:
        """Hidden states (B, L, H) at all positions, by torch's LSTM kernel.

        It does not call ``self.lstm``, which caches references to its parameters and would ignore
        tensors substituted for them (`torch.func.functional_call`).
        """
        weights = [tensor for layer in self._weights() for tensor in layer]
        layers = self.lstm.num_layers
        zeros = embedded_BLD.new_zeros(layers, embedded_BLD.shape[0], self.features)
        with warnings.catch_warnings():
            # The weights are views into one matrix, so cuDNN copies them into a contiguous chunk;
            # the copy is small compared with the states of all positions.
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
            states_BLH, _, _ = torch.lstm(
                embedded_BLD, (zeros, zeros), weights, True, layers, 0.0, self.training, False, True
            )
        return states_BLH

    def _loop(self, embedded_BLD: Tensor) -> Tensor:
        """Hidden states (B, L, H) at all positions, by a Python loop that vmap can handle."""
        x_BLD = embedded_BLD
        for weight_ih, weight_hh, bias_ih, bias_hh in self._weights():
            h_BH = c_BH = x_BLD.new_zeros(x_BLD.shape[0], self.features)
            states = []
            for from_input in F.linear(x_BLD, weight_ih, bias_ih).unbind(1):
                gates = from_input + F.linear(h_BH, weight_hh, bias_hh)
                i, f, g, o = gates.chunk(4, dim=1)
                c_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
                h_BH = o.sigmoid() * c_BH.tanh()
                states.append(h_BH)
            x_BLD = torch.stack(states, 1)
        return x_BLD
