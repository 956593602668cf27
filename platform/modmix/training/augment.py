"""Random crops and mirror images of a batch, on the device.

What happens to an example in an epoch is a function of seed, epoch and row number: nothing has to
be stored to resume, and a model sees the same pictures alone and beside others.

Shapes: S distinct seeds, B batch, images (H, W, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from modmix.methods.draws import bits
from modmix.tasks.data import Augmentation


def augment(
    images: Tensor, settings: Augmentation, index_SB: Tensor, draw_S: Tensor, salt: int
) -> Tensor:
    """Crop and mirror raw images (S, B, H, W, C); the result has the same shape and type.

    An image is padded by ``settings.pad`` zeros on each side, and a window of its old size is cut
    at one of (2·pad + 1)² places, all equally likely; then it is mirrored with probability 1/2 if
    ``settings.flip``. ``salt`` separates the inputs of a task.
    """
    height, width = images.shape[-3:-1]
    random_SB = bits(draw_S.unsqueeze(1), index_SB.long(), salt)
    places = 2 * settings.pad + 1
    down_SB = random_SB % places - settings.pad
    right_SB = random_SB // places % places - settings.pad
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    column = x.expand(*index_SB.shape, width)
    if settings.flip:
        mirrored_SB1 = (random_SB >> 20 & 1).bool().unsqueeze(-1)
        column = torch.where(mirrored_SB1, width - 1 - column, column)
    row_SBH = y + down_SB.unsqueeze(-1)
    column_SBW = column + right_SB.unsqueeze(-1)
    inside = _within(row_SBH, height).unsqueeze(-1) & _within(column_SBW, width).unsqueeze(-2)
    pixel = row_SBH.clamp(0, height - 1).unsqueeze(-1) * width
    pixel = pixel + column_SBW.clamp(0, width - 1).unsqueeze(-2)  # (S, B, H, W)
    channels = images.shape[-1]
    flat = images.flatten(2, 3)  # (S, B, H·W, C)
    index = pixel.flatten(2).unsqueeze(-1).expand(*flat.shape[:2], height * width, channels)
    taken = flat.gather(2, index).view(images.shape)
    return torch.where(inside.unsqueeze(-1), taken, torch.zeros_like(taken))


def _within(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)
