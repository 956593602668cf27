"""Random crops, horizontal flips and noise of a batch, computed on the device.

The augmentation of an example is a pure function of seed, epoch and row number: resuming needs no
stored state, and a model sees the same images whether it trains alone or stacked. Every operation
is a gather or acts on single elements, so results do not depend on the shape of the batch.

Shapes: S distinct seeds, B batch, images (H, W, C), video (T, H, W, C), A attempts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modmix.methods.draws import bits, uniform
from modmix.tasks.data import Augmentation

# Aspect ratios (width / height) of resized crops, as in torchvision, and how often a box that does
# not fit is redrawn.
ASPECTS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
# Salts of the streams of random numbers; shifts and flips use the input's own.
_BOXES, _NOISE = 1 << 16, 2 << 16
# Random numbers computed at a time: 32 MB for each intermediate tensor.
_NUMBERS_AT_ONCE = 1 << 22


def augment(
    images: Tensor,
    settings: Augmentation,
    index_SB: Tensor,
    draw_S: Tensor,
    salt: int,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Crop and flip raw images (S, B, H, W, C) or videos (S, B, T, H, W, C).

    All frames of a video are changed in the same way. The result has height and width ``size``
    (default: the same) and the same dtype, or float32 with ``settings.crop``.

    1. With ``settings.crop``, a random box is resized to ``size``, see `random_boxes`.
    2. The image is zero-padded by ``settings.pad`` pixels on each side, and a window of ``size`` is
       cut out at one of the possible offsets, uniformly.
    3. With ``settings.flip``, it is flipped left-right with probability 1/2. This changes the sign
       of the channels ``settings.negate``: x becomes 255 − x in uint8 and −x otherwise.

    ``index_SB`` are row numbers and ``draw_S`` the seeds of this epoch; ``salt`` gives each input
    of a task its own random numbers.
    """
    height, width = size or (images.shape[-3], images.shape[-2])
    if settings.crop is not None:
        box_SB4 = random_boxes(
            settings.crop, images.shape[-3], images.shape[-2], index_SB, draw_S, salt
        )
        images = resized(images, box_SB4, height, width)
    if not (settings.pad or settings.flip) and (height, width) == images.shape[-3:-1]:
        return images
    return _shifted_and_flipped(images, settings, index_SB, draw_S, salt, height, width)


def _shifted_and_flipped(
    images: Tensor,
    settings: Augmentation,
    index_SB: Tensor,
    draw_S: Tensor,
    salt: int,
    height: int,
    width: int,
) -> Tensor:
    high, wide = images.shape[-3:-1]
    random_SB = bits(draw_S.unsqueeze(1), index_SB.long(), salt)
    places_y = 2 * settings.pad + 1 + high - height
    places_x = 2 * settings.pad + 1 + wide - width
    down_SB = random_SB % places_y - settings.pad
    right_SB = random_SB // places_y % places_x - settings.pad
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    column = x.expand(*index_SB.shape, width)
    mirrored_SB = (random_SB >> 20 & 1).bool()
    if settings.flip:
        column = torch.where(mirrored_SB.unsqueeze(-1), width - 1 - column, column)
    row_SBH = y + down_SB.unsqueeze(-1)
    column_SBW = column + right_SB.unsqueeze(-1)
    pixel = row_SBH.clamp(0, high - 1).unsqueeze(-1) * wide
    pixel = pixel + column_SBW.clamp(0, wide - 1).unsqueeze(-2)  # (S, B, H, W)
    flat = images.flatten(-3, -2)  # (S, B, [T,] H·W, C)
    index = _over(pixel.flatten(2).unsqueeze(-1), flat)
    taken = flat.gather(-2, index.expand(*flat.shape[:-2], height * width, flat.shape[-1]))
    taken = taken.view(*images.shape[:-3], height, width, images.shape[-1])
    if settings.pad:
        inside = _within(row_SBH, high).unsqueeze(-1) & _within(column_SBW, wide).unsqueeze(-2)
        taken = torch.where(_over(inside.unsqueeze(-1), taken), taken, torch.zeros_like(taken))
    if settings.flip and settings.negate:
        taken = _negated(taken, settings.negate, _over(mirrored_SB, taken, after=True))
    return taken


def _negated(images: Tensor, channels: tuple[int, ...], where: Tensor) -> Tensor:
    number = torch.arange(images.shape[-1], device=images.device)
    chosen = torch.zeros_like(number, dtype=torch.bool)
    for channel in channels:
        chosen = chosen | (number == channel)
    opposite = 255 - images if images.dtype == torch.uint8 else -images
    return torch.where(where & chosen, opposite, images)


def _over(value: Tensor, images: Tensor, *, after: bool = False) -> Tensor:
    """Insert axes of size 1 into (S, B, …) behind B, or at the end, up to the images' number."""
    missing = images.dim() - value.dim()
    shape = (*value.shape, *[1] * missing) if after else None
    return value.view(shape or (*value.shape[:2], *[1] * missing, *value.shape[2:]))


def _within(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)


# ---------------------------------------------------------------- resized crops


def random_boxes(
    share: tuple[float, float],
    high: int,
    wide: int,
    index_SB: Tensor,
    draw_S: Tensor,
    salt: int,
) -> Tensor:
    """Boxes (S, B, 4), int64: top, left, height, width in pixels.

    As torchvision's ``RandomResizedCrop``: the area fraction is uniform in ``share``, the logarithm
    of the aspect ratio is uniform between 3/4 and 4/3, the position is uniform. A box that does not
    fit is drawn again, up to ten times in all; then the largest central box of an allowed aspect
    ratio is taken.
    """
    attempt_A = torch.arange(_ATTEMPTS, device=index_SB.device)
    position_SBA = index_SB.long().unsqueeze(-1) * (4 * _ATTEMPTS) + 4 * attempt_A
    seed_S11 = draw_S.view(-1, 1, 1)

    def draw(number: int) -> Tensor:
        return uniform(seed_S11, position_SBA + number, salt + _BOXES).double()

    low, most = math.log(ASPECTS[0]), math.log(ASPECTS[1])
    area_SBA = (share[0] + (share[1] - share[0]) * draw(0)) * (high * wide)
    aspect_SBA = (low + (most - low) * draw(1)).exp()
    width_SBA = (area_SBA * aspect_SBA).sqrt().round()
    height_SBA = (area_SBA / aspect_SBA).sqrt().round()
    fits_SBA = (width_SBA > 0) & (width_SBA <= wide) & (height_SBA > 0) & (height_SBA <= high)
    top_SBA = (draw(2) * (high - height_SBA + 1)).floor()
    left_SBA = (draw(3) * (wide - width_SBA + 1)).floor()
    boxes_SBA4 = torch.stack([top_SBA, left_SBA, height_SBA, width_SBA], -1).long()
    first_SB = fits_SBA.byte().argmax(-1)
    index = first_SB[..., None, None].expand(*first_SB.shape, 1, 4)
    box_SB4 = boxes_SBA4.gather(2, index).squeeze(2)
    fallback = torch.stack([torch.full_like(first_SB, n) for n in _central(high, wide)], -1)
    return torch.where(fits_SBA.any(-1, keepdim=True), box_SB4, fallback)


def _central(high: int, wide: int) -> tuple[int, int, int, int]:
    """The largest central box whose aspect ratio is allowed."""
    height = min(high, round(wide / ASPECTS[0]))
    width = min(wide, round(high * ASPECTS[1]))
    return (high - height) // 2, (wide - width) // 2, height, width


def resized(images: Tensor, box_SB4: Tensor, height: int, width: int) -> Tensor:
    """Cut boxes out of (S, B, …, H, W, C) and resize them bilinearly, as float32.

    Pixel centres are aligned as by ``align_corners=False`` of torch, and pixels outside the box do
    not contribute. There is no antialiasing, which matters only where a box is larger than the
    result.
    """
    top_SB, left_SB, high_SB, wide_SB = box_SB4.unbind(-1)
    rows = _interpolated(images.flatten(-2), top_SB, high_SB, height)  # (S, B, …, height, W·C)
    return _interpolated(rows.view(*rows.shape[:-1], *images.shape[-2:]), left_SB, wide_SB, width)


def _interpolated(lines: Tensor, start_SB: Tensor, size_SB: Tensor, out: int) -> Tensor:
    """Interpolate (S, B, …, L, C) along L, at ``out`` places from ``start`` to ``start + size``."""
    place_O = torch.arange(out, device=lines.device) + 0.5
    last_SB1 = (size_SB - 1).unsqueeze(-1)
    place_SBO = (place_O * (size_SB.unsqueeze(-1) / out) - 0.5).clamp(min=0.0)
    lower_SBO = torch.minimum(place_SBO.floor().long(), last_SB1)
    upper_SBO = torch.minimum(lower_SBO + 1, last_SB1)
    fraction = _over((place_SBO - lower_SBO).unsqueeze(-1), lines)

    def take(position_SBO: Tensor) -> Tensor:
        index = _over((position_SBO + start_SB.unsqueeze(-1)).unsqueeze(-1), lines)
        shape = *lines.shape[:-2], out, lines.shape[-1]
        return lines.gather(-2, index.expand(shape)).float()

    lower = take(lower_SBO)
    # Not `lerp`, which may round differently for other shapes.
    return (take(upper_SBO) - lower).mul_(fraction).add_(lower)


# ---------------------------------------------------------------- noise


def add_noise(values: Tensor, deviation: float, index: Tensor, draw: Tensor, salt: int) -> Tensor:
    """Add Gaussian noise of standard deviation ``deviation`` to values (S, B, …) or (B, …).

    It depends on seed ``draw`` (S,) or (), row number ``index`` (S, B) or (B,) and the element.
    """
    rows, shape = index.shape[-1], values.shape[index.dim() :]
    size, axis = math.prod(shape), index.dim() - 1
    step = max(1, _NUMBERS_AT_ONCE // max(1, size * draw.numel()))
    noisy = torch.empty_like(values)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        noise = _normal(size, index.narrow(-1, first, count), draw, salt).mul_(deviation)
        part = values.narrow(axis, first, count)
        noisy.narrow(axis, first, count).copy_(part + noise.view(part.shape))
    return noisy


def _normal(size: int, index: Tensor, draw: Tensor, salt: int) -> Tensor:
    """Standard normal numbers (S, B, size) or (B, size) by the Box-Muller transform, in pairs."""
    pairs = (size + 1) // 2
    position = index.long().unsqueeze(-1) * pairs + torch.arange(pairs, device=index.device)
    seed, salt = draw[..., None, None], 2 * (salt + _NOISE)
    radius = (1.0 - uniform(seed, position, salt)).log_().mul_(-2.0).sqrt_()
    angle = uniform(seed, position, salt + 1).mul_(2.0 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)[..., :size]
