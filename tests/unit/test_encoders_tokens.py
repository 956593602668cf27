"""Encoders of tokens against torch's packed LSTM and against loops over examples, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

from modmix.base.errors import InputError
from modmix.encoders.char_cnn import CharCNN
from modmix.encoders.char_lstm import CharLSTM

LENGTH = 6
LENGTHS = (6, 3, 0, 1, 6, 5, 0)


def tokens(seed: int = 0) -> Tensor:
    """Rows of `LENGTHS` tokens of 1 to 8, then zeros."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(1, 9, (len(LENGTHS), LENGTH), generator=generator)
    return whole * (torch.arange(LENGTH) < torch.tensor(LENGTHS).unsqueeze(1))


# ---------------------------------------------------------------- LSTM


def lstm(layers: int, *, stacked: bool = False) -> CharLSTM:
    torch.manual_seed(5)
    encoder = CharLSTM((LENGTH,), vocabulary=9, embedding=4, units=5, layers=layers).double()
    encoder.stacked = stacked
    return encoder


def packed(encoder: CharLSTM, rows: Tensor) -> Tensor:
    """The state after the last token as torch gives it for packed rows; rows without any: 0."""
    lengths = (rows != 0).sum(1)
    some = lengths > 0
    sequence = pack_padded_sequence(
        encoder.embedding(rows[some]), lengths[some], batch_first=True, enforce_sorted=False
    )
    _, (states, _) = encoder.lstm(sequence)
    result = torch.zeros(len(rows), states.shape[2], dtype=torch.float64)
    result[some] = states[-1]
    return result


def gradients(encoder: nn.Module, features: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    names = [name for name, _ in encoder.named_parameters()]
    found = torch.autograd.grad((features * weights).sum(), list(encoder.parameters()))
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("stacked", [False, True], ids=["kernel", "loop"])
def test_state_and_gradients_are_those_of_a_packed_lstm(stacked: bool, layers: int) -> None:
    encoder = lstm(layers, stacked=stacked)
    rows = tokens()
    found, expected = encoder(rows), packed(encoder, rows)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert (found[2] == 0).all()
    assert (found[6] == 0).all()
    ours, theirs = gradients(encoder, found), gradients(encoder, expected)
    assert set(ours) == set(theirs)
    assert {"embedding.weight", "lstm.weight_hh_l0", "lstm.bias_ih_l0"} <= set(ours)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-11, atol=1e-13, msg=name)
    assert (ours["embedding.weight"][0] == 0).all()  # of padding


@pytest.mark.parametrize("stacked", [False, True], ids=["kernel", "loop"])
def test_kernel_and_loop_use_the_tensors_in_the_parameters_places(stacked: bool) -> None:
    encoder, other = lstm(1, stacked=stacked), lstm(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-0.5)
    found = functional_call(encoder, dict(other.named_parameters()), (tokens(),))
    torch.testing.assert_close(found, packed(other, tokens()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("stacked", [False, True], ids=["kernel", "loop"])
def test_lstm_does_not_see_how_much_padding_there_is(stacked: bool) -> None:
    encoder = lstm(1, stacked=stacked)
    rows = tokens()
    longer = torch.cat([rows, torch.zeros(len(rows), 3, dtype=torch.int64)], 1)
    torch.testing.assert_close(encoder(longer), encoder(rows), rtol=1e-12, atol=1e-14)


def test_initial_weights_of_the_lstm_are_torchs() -> None:
    torch.manual_seed(6)
    encoder = CharLSTM((4,), vocabulary=50)
    assert encoder.features == 512
    assert encoder.embedding.weight.shape == (50, 128)
    assert encoder.embedding.weight.std().item() == pytest.approx(1.0, rel=0.05)
    bound = 1 / math.sqrt(512)
    for name, parameter in encoder.lstm.named_parameters():
        assert parameter.abs().max() <= bound, name
        spread = parameter.std().item()  # of a uniform distribution
        assert spread == pytest.approx(bound / math.sqrt(3), rel=0.05), name


# ---------------------------------------------------------------- convolutions


def cnn(widths: tuple[int, ...] = (1, 2, 3, 4, 9)) -> CharCNN:
    torch.manual_seed(7)
    return CharCNN((LENGTH,), vocabulary=9, embedding=4, widths=widths, filters=3).double()


def one_by_one(encoder: CharCNN, rows: Tensor) -> Tensor:
    """Every example, width, filter and position on its own, with its real tokens only."""
    features = []
    for row in rows:
        real = [int(token) for token in row if token != 0]
        values = []
        for width, convolution in zip(encoder.widths, encoder.convolutions, strict=True):
            assert isinstance(convolution, nn.Conv1d)
            assert convolution.bias is not None
            for kernel, bias in zip(convolution.weight, convolution.bias, strict=True):
                best: Tensor = torch.zeros((), dtype=torch.float64)
                for position in range(len(real)):
                    total = bias
                    for k in range(width):
                        at = position - (width - 1) // 2 + k
                        if 0 <= at < len(real):
                            total = total + kernel[:, k] @ encoder.embedding.weight[real[at]]
                    best = torch.maximum(best, total)
                values.append(best)
        features.append(torch.stack(values))
    return torch.stack(features)


def test_features_and_gradients_are_those_of_a_loop() -> None:
    encoder = cnn()
    rows = tokens()
    found, expected = encoder(rows), one_by_one(encoder, rows)
    assert found.shape == (len(rows), 15)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert (found[2] == 0).all()
    assert (found[0] > 0).any()
    ours, theirs = gradients(encoder, found), gradients(encoder, expected)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-12, atol=1e-13, msg=name)
    assert (ours["embedding.weight"][0] == 0).all()  # of padding


def test_cnn_does_not_see_how_much_padding_there_is() -> None:
    encoder = cnn()
    rows = tokens()
    longer = torch.cat([rows, torch.zeros(len(rows), 3, dtype=torch.int64)], 1)
    torch.testing.assert_close(encoder(longer), encoder(rows), rtol=1e-12, atol=1e-14)


def test_texts_shorter_than_every_window_work() -> None:
    encoder = CharCNN((1,), vocabulary=3, widths=[5], filters=2)
    assert encoder(torch.tensor([[1], [0]])).shape == (2, 2)


def test_initial_weights_of_the_cnn_are_torchs() -> None:
    torch.manual_seed(8)
    encoder = CharCNN((15,), vocabulary=50)
    assert encoder.features == 3 * 64
    for width, convolution in zip((3, 4, 5), encoder.convolutions, strict=True):
        assert isinstance(convolution, nn.Conv1d)
        assert convolution.weight.shape == (64, 128, width)
        bound = 1 / math.sqrt(128 * width)
        assert convolution.weight.abs().max() <= bound
        assert convolution.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_no_widths_are_refused() -> None:
    with pytest.raises(InputError, match=r"widths of char_cnn must hold at least one width, got"):
        CharCNN((4,), vocabulary=3, widths=[])
