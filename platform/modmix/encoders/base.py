"""What an encoder is: one input, one model, one batch; the model axis is added outside.

Encoders are stacked by `torch.func`, so they may not look into tensors: no ``.item()``, no boolean
indexing, no Python ``if`` on a tensor, no random numbers in ``forward``. Buffers are updated in
place only, as `torch.nn.BatchNorm2d` does.

Shapes: B batch, L positions, T frames, H × W pixels, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn


class Encoder(nn.Module):
    """A network from one input to one modality, or to several.

    Built as ``Encoder(shape, **hyperparameters)`` with the shape of one example of its input:
    dense (D,), image (H, W, C), sequence (T, D), tokens (L,). An encoder of tokens may take
    ``vocabulary`` as a further keyword: ids are 0 … vocabulary − 1, and 0 is padding at the end.
    Initial weights come from torch's global generator, which the caller seeds.
    """

    features: int | Mapping[str, int]
    """Width of the features; of an encoder that gives several modalities, their widths by name."""

    stacked: bool = False
    """Whether several models run at once under `torch.func.vmap`; the trainer sets it."""

    def keep_only(self, modalities: Collection[str]) -> None:
        """Called once after building: no others of its modalities will be read.

        An encoder that gives several may leave out what only the others need.
        """

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Features (B, D) of inputs (B, *shape), or features by modality.

        Inputs are floats, already normalised; tokens are int64.
        """
        raise NotImplementedError
