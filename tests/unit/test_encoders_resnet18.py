"""ResNet-18 against torchvision's, with the same weights, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn

from modmix.encoders.resnet18 import ResNet18


def pair(channels: int) -> tuple[ResNet18, nn.Module]:
    """Ours and torchvision's without its classifier, of the same weights and statistics."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    if channels != 3:
        theirs.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    theirs = theirs.double()
    for name, tensor in theirs.state_dict().items():
        if tensor.dim() == 1:  # of batch norm; as they begin they would hide mistakes
            tensor.uniform_(0.5, 1.5 if "running_var" in name else 1.0)
    ours = ResNet18((40, 33, channels)).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def images(channels: int) -> Tensor:
    return torch.randn(4, 40, 33, channels, dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_features_gradients_and_statistics_are_torchvisions(channels: int) -> None:
    ours, theirs = pair(channels)
    x = images(channels)
    found, expected = ours(x), theirs(x.permute(0, 3, 1, 2))
    assert found.shape == (4, 512)
    assert_close(found, expected)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        expected_gradient = gradients.pop(name)
        assert expected_gradient is not None
        # Gradients reach 1e3 here: relative to the largest of the tensor.
        scale = expected_gradient.abs().max()
        assert_close(parameter.grad / scale, expected_gradient / scale)
    assert not gradients
    statistics = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, statistics.pop(name), rtol=1e-10, atol=1e-10)
    assert not statistics
    assert_close(ours.eval()(x), theirs.eval()(x.permute(0, 3, 1, 2)))


def test_number_of_parameters() -> None:
    """torchvision says 11,689,512, of which 513,000 are the classifier's."""
    assert sum(p.numel() for p in ResNet18((224, 224, 3)).parameters()) == 11_176_512


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_features_of_frames_are_averaged(training: bool) -> None:
    torch.manual_seed(1)
    frames = torch.randn(2, 3, 20, 20, 2, dtype=torch.float64)
    of_frames = ResNet18((3, 20, 20, 2), width=4).double().train(training)
    of_images = ResNet18((20, 20, 2), width=4).double().train(training)
    of_images.load_state_dict(of_frames.state_dict())
    features = of_images(torch.cat([frames[0], frames[1]]))
    expected = torch.stack([features[:3].mean(0), features[3:].mean(0)])
    found = of_frames(frames)
    assert found.shape == (2, 32)
    assert_close(found, expected)


@pytest.mark.parametrize("size", [1, 8, 33])
def test_small_images_work(size: int) -> None:
    features = ResNet18((size, size, 1), width=2)(torch.randn(3, size, size, 1))
    assert features.shape == (3, 16)
    assert features.isfinite().all()


def test_initial_weights() -> None:
    torch.manual_seed(2)
    encoder = ResNet18((32, 32, 3))
    kernel = encoder.state_dict()["layer4.1.conv2.weight"]
    std = math.sqrt(2 / (512 * 9))  # Kaiming, of outputs
    assert kernel.std() == pytest.approx(std, rel=0.01)
    assert kernel.abs().max() > 4 * std  # not cut
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    factors = torch.cat([m.weight.detach() for m in norms])
    assert len(factors) == 4_800
    assert factors.mean() == pytest.approx(1.0, abs=5 * 0.02 / math.sqrt(4_800))
    assert factors.std() == pytest.approx(0.02, rel=0.05)
    assert all((m.bias == 0).all() for m in norms)
