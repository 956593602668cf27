"""Random crops and horizontal flips of a batch, computed on the device.

The augmentation of an example is a pure function of seed, epoch and row number: resuming needs no
stored state, and a model sees the same images whether it trains alone or stacked.

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
    """Crop and flip raw images (S, B, H, W, C); shape and dtype stay the same.

    An image is zero-padded by ``settings.pad`` pixels on each side and cropped to its old size at
    one of the (2·pad + 1)² offsets, uniformly; then it is flipped left-right with probability 1/2
    if ``settings.flip``. ``index_SB`` are row numbers and ``draw_S`` the seeds of this epoch;
    ``salt`` gives each input of a task its own random numbers.
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
