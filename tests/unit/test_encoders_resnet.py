"""The ResNet for small images: counts by hand, an own computation in float64, initial weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modmix.base.errors import InputError
from modmix.encoders.resnet import ResNet

# Weights without a classifier's 64 · classes + classes. Depth 20, n = 3 blocks a unit:
#   convolutions  9 · (3·16 + 6·16·16 + 16·32 + 5·32·32 + 32·64 + 5·64·64)         = 267,696
#   batch norms   2 · (16 + 5·16 + (16 + 5·32) + (32 + 5·64) + 64)                 =   1,376
# The widely published counts of post-activation ResNets of these depths for ten classes are
# 269,722, 464,154 and 1,727,962, of which 650 are the classifier's.
COUNTS = {20: 269_072, 32: 463_504, 110: 1_727_312}
# 9 · (16·32 + 32·32) of two convolutions, 2 · 2 · 32 of two batch norms.
TAPS = 13_952


def count(encoder: ResNet) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters())


def by_hand(blocks: int) -> int:
    """Weights of units of ``blocks`` blocks of 16, 32 and 64 channels on images of 3."""
    convolutions, norms = 3 * 16, 16
    for channels_in, channels in ((16, 16), (16, 32), (32, 64)):
        convolutions += channels_in * channels + (2 * blocks - 1) * channels * channels
        norms += channels_in + (2 * blocks - 1) * channels
    norms += 64 - 16  # the end's; the very first block has none of its own before it
    return 9 * convolutions + 2 * norms


@pytest.mark.parametrize("depth", COUNTS)
def test_number_of_parameters(depth: int) -> None:
    assert by_hand((depth - 2) // 6) == COUNTS[depth]
    assert count(ResNet((32, 32, 3), depth=depth, taps=False)) == COUNTS[depth]
    assert count(ResNet((32, 32, 3), depth=depth)) == COUNTS[depth] + TAPS


@pytest.mark.parametrize("depth", [8, 20])
def test_modalities_and_their_widths(depth: int) -> None:
    encoder = ResNet((32, 32, 3), depth=depth)
    assert encoder.features == {"unit1": 32, "unit2": 32, "unit3": 64}
    outputs = encoder(torch.randn(2, 32, 32, 3))
    assert isinstance(outputs, dict)
    shapes = {name: tuple(features.shape) for name, features in outputs.items()}
    assert shapes == {"unit1": (2, 32), "unit2": (2, 32), "unit3": (2, 64)}
    alone = ResNet((32, 32, 3), depth=depth, taps=False)
    assert alone.features == 64
    assert alone(torch.randn(2, 32, 32, 3)).shape == (2, 64)


def test_units_keep_and_halve_the_image() -> None:
    encoder = ResNet((32, 32, 3), depth=8, width=16)
    x = encoder.stem(torch.randn(2, 3, 32, 32))
    shapes = []
    for unit in (encoder.unit1, encoder.unit2, encoder.unit3):
        x = unit(x)
        shapes.append(tuple(x.shape))
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


# ---------------------------------------------------------------- an own computation


def norm_relu(x: Tensor, state: Mapping[str, Tensor], name: str, training: bool) -> Tensor:
    """Batch norm written out, with the batch's own or the kept statistics, and ReLU."""
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    else:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    mean, variance, factor, shift = (
        v.view(1, -1, 1, 1)
        for v in (mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])
    )
    return ((x - mean) / (variance + 1e-3).sqrt() * factor + shift).clamp(min=0)


def convolved(x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """A 3×3 convolution with zeros around, as a product over unfolded patches."""
    height, width = (-(-size // stride) for size in x.shape[2:])
    patches = F.unfold(x, 3, padding=1, stride=stride)
    return (kernel.flatten(1) @ patches).view(len(x), -1, height, width)


def shortcut(x: Tensor, channels: int) -> Tensor:
    """Means over 2×2 pixels (fewer at an odd edge), and zeros on both sides of the channels."""
    batch, before, rows, columns = x.shape
    result = x.new_zeros(batch, channels, -(-rows // 2), -(-columns // 2))
    first = (channels - before) // 2
    for i in range(result.shape[2]):
        for j in range(result.shape[3]):
            part = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            result[:, first : first + before, i, j] = part.mean((2, 3))
    return result


def expected(
    state: Mapping[str, Tensor], images: Tensor, blocks: int, training: bool
) -> dict[str, Tensor]:
    x = convolved(images.movedim(-1, 1), state["stem.0.weight"])
    x = norm_relu(x, state, "stem.1", training)
    ends = []
    for unit in (1, 2, 3):
        for block in range(blocks):
            name = f"unit{unit}.{block}"
            shrinks = unit > 1 and block == 0
            y = x
            if (unit, block) != (1, 0):
                y = norm_relu(y, state, f"{name}.before.0", training)
            y = convolved(y, state[f"{name}.conv1.weight"], 2 if shrinks else 1)
            y = norm_relu(y, state, f"{name}.between.0", training)
            y = convolved(y, state[f"{name}.conv2.weight"])
            x = y + (shortcut(x, y.shape[1]) if shrinks else x)
        ends.append(x)
    features = {}
    for unit in (1, 2):
        tap = convolved(ends[unit - 1], state[f"taps.{unit - 1}.0.weight"], 2)
        tap = norm_relu(tap, state, f"taps.{unit - 1}.1", training)
        features[f"unit{unit}"] = tap.mean((2, 3))
    features["unit3"] = norm_relu(ends[2], state, "end.0", training).mean((2, 3))
    return features


@pytest.mark.parametrize("shape", [(8, 8, 3), (7, 9, 1)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_features_are_those_of_an_own_computation(
    shape: tuple[int, int, int], training: bool
) -> None:
    torch.manual_seed(1)
    encoder = ResNet(shape, depth=14, width=4).double().train(training)
    for tensor in encoder.state_dict().values():
        if tensor.dim() == 1:  # of batch norm; as they begin they would hide mistakes
            tensor.uniform_(0.5, 1.5)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    images = torch.randn(3, *shape, dtype=torch.float64)
    found, wanted = encoder(images), expected(state, images, 2, training)
    assert set(found) == set(wanted)
    for name, features in wanted.items():
        torch.testing.assert_close(found[name], features, rtol=1e-12, atol=1e-12)


def test_one_modality_is_the_last_of_three() -> None:
    torch.manual_seed(2)
    three = ResNet((8, 8, 3), depth=8, width=4).eval()
    one = ResNet((8, 8, 3), depth=8, width=4, taps=False).eval()
    state = {k: v for k, v in three.state_dict().items() if not k.startswith("taps.")}
    one.load_state_dict(state)
    images = torch.randn(2, 8, 8, 3)
    torch.testing.assert_close(one(images), three(images)["unit3"])


def test_running_statistics_keep_99_hundredths() -> None:
    torch.manual_seed(3)
    encoder = ResNet((8, 8, 3), depth=8, width=4).double()
    images = torch.randn(5, 8, 8, 3, dtype=torch.float64)
    encoder(images)
    state = encoder.state_dict()
    x = convolved(images.movedim(-1, 1), state["stem.0.weight"])
    mean, variance = state["stem.1.running_mean"], state["stem.1.running_var"]
    torch.testing.assert_close(mean, 0.01 * x.mean((0, 2, 3)))
    torch.testing.assert_close(variance, 0.99 + 0.01 * x.var((0, 2, 3)))


def test_initial_weights() -> None:
    """A normal distribution cut at two standard deviations has 0.8796 of its spread left."""
    torch.manual_seed(4)
    encoder = ResNet((32, 32, 3), depth=20)
    kernel = encoder.state_dict()["unit3.2.conv2.weight"]  # 36,864 of them
    std = math.sqrt(2 / (9 * 64))
    assert kernel.abs().max() <= 2 * std
    assert kernel.abs().max() > 1.98 * std
    assert abs(kernel.mean()) < 5 * std / math.sqrt(kernel.numel())
    assert kernel.std() == pytest.approx(0.8796 * std, rel=0.02)
    for name, parameter in encoder.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name


@pytest.mark.parametrize("depth", [2, 7, 9, 18, 34])
def test_other_depths_are_refused(depth: int) -> None:
    message = rf"depth of resnet must be 6n \+ 2 \(8, 14, 20, 26, 32, …\), got {depth}; use \d+"
    with pytest.raises(InputError, match=message):
        ResNet((32, 32, 3), depth=depth)


@pytest.mark.parametrize(
    "kept", [("unit1",), ("unit2",), ("unit3",), ("unit1", "unit3"), ("unit2", "unit3")]
)
def test_only_what_is_read_is_built(kept: tuple[str, ...]) -> None:
    """The same features as of the whole network, and every parameter left gets a gradient."""
    torch.manual_seed(0)
    whole = ResNet((9, 8, 3), depth=8, width=4).double().eval()
    part = copy.deepcopy(whole)
    part.keep_only(kept)
    images = torch.randn(3, 9, 8, 3, dtype=torch.float64)
    expected, found = whole(images), part(images)
    assert isinstance(expected, dict)
    assert isinstance(found, dict)
    assert part.features == {name: whole.features[name] for name in kept}  # type: ignore[index]
    assert tuple(found) == kept
    for name in kept:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
    torch.stack([x.square().sum() for x in found.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
