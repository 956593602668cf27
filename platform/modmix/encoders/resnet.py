"""The CIFAR ResNet of "Learn to Combine Modalities" (2018), with unit outputs as modalities.

Depth 6n + 2: a convolution, three units of n blocks with two 3×3 convolutions each, a classifier.
Blocks are pre-activation blocks with parameter-free shortcuts (He et al. 2016, arXiv 1603.05027).

Shapes: B batch, H × W pixels, C channels, D features.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from modmix.base.errors import InputError
from modmix.encoders.base import Encoder

UNITS = ("unit1", "unit2", "unit3")


class ResNet(Encoder):
    """Pre-activation ResNet of depth 6n + 2 without its classifier.

    The three units have ``width``, 2 · ``width`` and 4 · ``width`` channels. With ``taps``, the
    output of each unit is a modality. ``unit1`` and ``unit2`` pass through a 3×3 convolution of
    stride 2 to 2 · ``width`` channels, batch norm, ReLU and global average pooling. ``unit3``, with
    4 · ``width`` features, is the network's final output: batch norm, ReLU and global average
    pooling. Without ``taps``, the final output is the only modality.

    Convolutions are initialised from a normal distribution with standard deviation
    σ = √(2 / (9 · channels out)), truncated at ±2σ. Convolutions of stride 2 pad one pixel on every
    side; the paper's code pads only at the bottom and right.

    Raises:
        InputError: ``depth`` is not 6n + 2.

    Example:
        >>> import torch
        >>> encoder = ResNet((32, 32, 3), depth=8)
        >>> {name: tuple(x.shape) for name, x in encoder(torch.zeros(5, 32, 32, 3)).items()}
        {'unit1': (5, 32), 'unit2': (5, 32), 'unit3': (5, 64)}
    """

    def __init__(
        self, shape: tuple[int, ...], *, depth: int = 32, width: int = 16, taps: bool = True
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise InputError(
                f"depth of resnet must be 6n + 2 (8, 14, 20, 26, 32, …), got {depth}; "
                f"use {6 * max(1, blocks) + 2}"
            )
        channels = (width, 2 * width, 4 * width)
        self.stem = nn.Sequential(_conv(shape[-1], width), *_norm_relu(width))
        self.unit1 = _unit(width, channels[0], blocks, stride=1, activated=True)
        self.unit2 = _unit(channels[0], channels[1], blocks, stride=2)
        self.unit3 = _unit(channels[1], channels[2], blocks, stride=2)
        self.end = _norm_relu(channels[2])
        self.taps = nn.ModuleList()
        if taps:
            self.taps.extend(_tap(c, channels[1]) for c in channels[:2])
            self.features = dict(zip(UNITS, (channels[1], *channels[1:]), strict=True))
        else:
            self.features = channels[2]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                std = math.sqrt(2.0 / (9 * module.out_channels))
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)

    def keep_only(self, modalities: Collection[str]) -> None:
        """Drop unused taps, and the units after the last one that is used."""
        if not isinstance(self.features, Mapping):
            return
        self.features = {name: self.features[name] for name in UNITS if name in modalities}
        for i in range(len(self.taps)):
            if UNITS[i] not in self.features:
                self.taps[i] = nn.Identity()
        if "unit3" not in self.features:
            self.unit3, self.end = nn.Sequential(), nn.Sequential()
            if "unit2" not in self.features:
                self.unit2 = nn.Sequential()

    def forward(self, images_BHWC: Tensor) -> Tensor | dict[str, Tensor]:
        end1 = self.unit1(self.stem(images_BHWC.permute(0, 3, 1, 2)))
        end2 = self.unit2(end1)
        end3 = self.end(self.unit3(end2))
        if not isinstance(self.features, Mapping):
            return _average(end3)
        found = {}
        for name, tap, end in zip(UNITS, (*self.taps, nn.Identity()), (end1, end2, end3)):
            if name in self.features:
                found[name] = _average(tap(end))
        return found


class Block(nn.Module):
    """Pre-activation residual block: two 3×3 convolutions, each after batch norm and ReLU.

    The shortcut has no parameters: 2×2 average pooling where the stride is 2, and zero channels,
    half of them before and half after the existing ones, where the number of channels grows.
    ``activated`` omits the first batch norm and ReLU, for inputs that already passed through them.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, *, activated: bool) -> None:
        super().__init__()
        self.before = nn.Identity() if activated else _norm_relu(channels_in)
        self.conv1 = _conv(channels_in, channels, stride)
        self.between = _norm_relu(channels)
        self.conv2 = _conv(channels, channels)
        self.stride = stride
        self.padding = (channels - channels_in) // 2

    def forward(self, inputs: Tensor) -> Tensor:
        residual: Tensor = self.conv2(self.between(self.conv1(self.before(inputs))))
        shortcut = inputs
        if self.stride > 1:  # ceil_mode: an odd last row or column is pooled by itself
            shortcut = F.avg_pool2d(shortcut, self.stride, ceil_mode=True)
        if self.padding:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return residual + shortcut


def _unit(
    channels_in: int, channels: int, blocks: int, *, stride: int, activated: bool = False
) -> nn.Sequential:
    first = Block(channels_in, channels, stride, activated=activated)
    rest = (Block(channels, channels, 1, activated=False) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _tap(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(_conv(channels_in, channels, 2), *_norm_relu(channels))


def _conv(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)


def _norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01), nn.ReLU())


def _average(images_BDHW: Tensor) -> Tensor:
    """Global average pooling to (B, D)."""
    return images_BDHW.mean((2, 3))
