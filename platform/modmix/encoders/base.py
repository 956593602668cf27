"""The `Encoder` contract. Encoders are written for one input, one model and one batch.

The trainer adds the model axis with `torch.func.vmap`, so an encoder must not have data-dependent
control flow (``.item()``, boolean indexing, Python ``if`` on a tensor), and its ``forward`` must
not use torch's random generators (for dropout see `modmix.methods.draws`). Buffers may only be
updated in place, as `torch.nn.BatchNorm2d` does.

Shapes: B batch, L positions, T frames, H × W pixels, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn


class Encoder(nn.Module):
    """Base class of networks that map one input to the features of one or more modalities.

    Built as ``Encoder(shape, **hyperparameters)`` with the shape of one example of its input:
    dense (D,), image (H, W, C), sequence (T, D), tokens (L,). An encoder for tokens may take
    ``vocabulary`` as a further keyword: ids are 0 … vocabulary − 1, and 0 is padding at the end.
    Initial weights are drawn from torch's global generator, which the caller seeds.
    """

    features: int | Mapping[str, int]
    """Feature width D, or widths by modality name for an encoder with several modalities."""

    stacked: bool = False
    """Whether several models run at once under `torch.func.vmap`; set by the trainer."""

    def keep_only(self, modalities: Collection[str]) -> None:
        """Called once after construction with the modalities that will be used.

        An encoder with several modalities may drop layers that only the others need.
        """

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Map inputs (B, *shape) to features (B, D), or to such features by modality.

        Inputs are floats, already normalised, or int64 token ids.
        """
        raise NotImplementedError
