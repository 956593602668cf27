"""ResNet-18 (He et al. 2015, arXiv 1512.03385) without its classifier, for images and video.

Shapes: B batch, T frames, H × W pixels, C channels, D features.
"""

from __future__ import annotations

from torch import Tensor, nn

from modmix.encoders.base import Encoder


class ResNet18(Encoder):
    """`torchvision.models.resnet18` without its classifier: 8 · ``width`` features, 512 by default.

    Parameters and buffers have torchvision's names, so its weights can be loaded for ``width`` 64
    and three channels. Inputs may have any number of channels (spectrograms: 1, optical flow: 2).
    For inputs of shape (T, H, W, C), video frames, features are averaged over frames; batch norm
    treats all frames of a batch as one batch.

    Convolutions use Kaiming normal initialisation (fan-out); batch norm scales are drawn from
    N(1, 0.02²), as in the code of DI-MML (2024).

    Example:
        >>> import torch
        >>> ResNet18((24, 24, 1), width=8)(torch.zeros(2, 24, 24, 1)).shape
        torch.Size([2, 64])
    """

    def __init__(self, shape: tuple[int, ...], *, width: int = 64) -> None:
        super().__init__()
        assert len(shape) in (3, 4), shape
        self.conv1 = nn.Conv2d(shape[-1], width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(width, width, stride=1)
        self.layer2 = _layer(width, 2 * width, stride=2)
        self.layer3 = _layer(2 * width, 4 * width, stride=2)
        self.layer4 = _layer(4 * width, 8 * width, stride=2)
        self.features = 8 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (B, H, W, C) or frames (B, T, H, W, C) to features (B, D)."""
        if inputs.dim() == 4:
            return self._features(inputs)
        batch, frames = inputs.shape[:2]
        return self._features(inputs.flatten(0, 1)).view(batch, frames, -1).mean(1)

    def _features(self, images_BHWC: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images_BHWC.permute(0, 3, 1, 2)))))
        x_BDHW: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x_BDHW.mean((2, 3))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm; the shortcut is a 1×1 one where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(inputs)))))
        outputs: Tensor = self.relu(x + self.downsample(inputs))
        return outputs


def _layer(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(channels_in, channels, stride), BasicBlock(channels, channels, 1)
    )
