"""The Transformer encoder against torch's own layers, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modmix.base.errors import InputError
from modmix.encoders.transformer import Transformer
from modmix.methods.draws import Dropout
from modmix.methods.model import InputSpec, ModelSpec, build_model

LENGTH, WIDTH, HEADS, HIDDEN, LAYERS = 6, 8, 2, 12, 2
LENGTHS = (6, 3, 1, 6, 5)


def tokens() -> Tensor:
    """Rows of `LENGTHS` tokens of 1 to 8, then zeros."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(1, 9, (len(LENGTHS), LENGTH), generator=generator)
    return whole * (torch.arange(LENGTH) < torch.tensor(LENGTHS).unsqueeze(1))


def frames() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(len(LENGTHS), LENGTH, 3, generator=generator, dtype=torch.float64)
    return whole * (torch.arange(LENGTH) < torch.tensor(LENGTHS).unsqueeze(1)).unsqueeze(2)


def encoder(kind: str, dropout: float = 0.0) -> Transformer:
    torch.manual_seed(3)
    made = Transformer(
        (LENGTH,) if kind == "tokens" else (LENGTH, 3),
        vocabulary=9 if kind == "tokens" else None,
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        feedforward=HIDDEN,
        dropout=dropout,
    ).double()
    with torch.no_grad():  # biases and norms that are not 0 and 1
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made


def torchs(made: Transformer) -> nn.TransformerEncoder:
    """torch's layers with the same weights."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, HIDDEN, 0.0, "gelu", batch_first=True, norm_first=True
    )
    whole = nn.TransformerEncoder(
        layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False
    ).double()
    pairs = {
        "attention_out.": "self_attn.out_proj.",
        **{f"{name}.": f"{name}." for name in ("norm1", "norm2", "linear1", "linear2")},
    }
    state = {}
    for number, own in enumerate(made.layers):
        biases = [own.query.bias, torch.zeros(WIDTH), own.value.bias]
        attention = f"layers.{number}.self_attn.in_proj_"
        state[f"{attention}weight"] = torch.cat(
            [own.query.weight, own.key.weight, own.value.weight]
        )
        state[f"{attention}bias"] = torch.cat(biases)
    for name, value in made.state_dict().items():
        key = name
        for ours, theirs in pairs.items():
            key = key.replace(ours, theirs)
        of_attention = any(f".{part}." in key for part in ("query", "key", "value"))
        if key.startswith(("layers.", "norm.")) and not of_attention:
            state[key] = value
    whole.load_state_dict(state)
    return whole


@pytest.mark.parametrize("kind", ["tokens", "sequence"])
def test_features_and_gradients_are_torchs(kind: str) -> None:
    made, inputs = encoder(kind), tokens() if kind == "tokens" else frames()
    theirs = torchs(made)
    padding = torch.arange(LENGTH) >= torch.tensor(LENGTHS).unsqueeze(1)
    embedded = made.embedding(inputs) + made.positions_LD
    states = theirs(embedded, src_key_padding_mask=padding)
    expected = torch.stack([states[row, :length].mean(0) for row, length in enumerate(LENGTHS)])
    found = made(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn(found.shape, dtype=torch.float64)
    ours = torch.autograd.grad((found * weights).sum(), [made.embedding.weight, made.positions_LD])
    other = torch.autograd.grad(
        (expected * weights).sum(), [made.embedding.weight, made.positions_LD]
    )
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-11)
    if kind == "tokens":
        assert (ours[0][0] == 0).all()  # of padding


@pytest.mark.parametrize("kind", ["tokens", "sequence"])
def test_padding_does_not_matter_and_rows_of_it_give_zeros(kind: str) -> None:
    made, inputs = encoder(kind), tokens() if kind == "tokens" else frames()
    for row, length in enumerate(LENGTHS):
        alone = Transformer(
            (length, *inputs.shape[2:]),
            vocabulary=9 if kind == "tokens" else None,
            width=WIDTH,
            layers=LAYERS,
            heads=HEADS,
            feedforward=HIDDEN,
            dropout=0.0,
        ).double()
        state = made.state_dict()
        alone.load_state_dict({**state, "positions_LD": state["positions_LD"][:length]})
        expected = alone(inputs[row : row + 1, :length])
        torch.testing.assert_close(made(inputs)[row : row + 1], expected, rtol=1e-10, atol=1e-12)
    empty = torch.zeros_like(inputs)
    found = made(empty)
    assert (found == 0).all()
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_an_empty_frame_within_a_sequence_is_left_out() -> None:
    made, inputs = encoder("sequence"), frames()[:1]
    inputs[0, 2] = 0
    found = made(inputs)
    with torch.no_grad():
        made.positions_LD[2] += 5.0  # nothing depends on it
    torch.testing.assert_close(made(inputs), found, rtol=1e-12, atol=1e-14)


def test_large_numbers_stay_finite_in_short_precision() -> None:
    made = encoder("sequence").float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(frames().float() * 1e4)
    assert found.isfinite().all()


def test_dropout_is_the_models_own() -> None:
    spec = ModelSpec(
        method="base",
        params={"modality": "text"},
        encoders={
            "text": {
                "name": "transformer",
                "width": WIDTH,
                "layers": 1,
                "heads": HEADS,
                "feedforward": HIDDEN,
                "dropout": 0.5,
            }
        },
        inputs={"text": InputSpec(shape=(LENGTH,), kind="tokens", vocabulary=9)},
        classes=3,
    )
    model = build_model(spec, 1)
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout)]
    own = [m for m in model.modules() if isinstance(m, Dropout)]
    assert [m.p for m in own] == [0.5] * 5
    assert len({m.salt for m in own}) == 5
    encoder = model.encoders[0]
    trained = encoder(tokens())
    encoder.eval()
    assert not torch.equal(trained, encoder(tokens()))


def test_initial_weights_are_torchs() -> None:
    torch.manual_seed(0)
    layer = Transformer((6, 3), width=64, heads=4, layers=1).layers[0]
    attention = nn.MultiheadAttention(64, 4)
    bound = attention.in_proj_weight.abs().max().item()
    spread = attention.in_proj_weight.std().item()
    for linear in (layer.query, layer.key, layer.value):
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert linear.weight.std().item() == pytest.approx(spread, rel=0.05)
    assert layer.key.bias is None
    assert (layer.query.bias == 0).all()
    assert (layer.value.bias == 0).all()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError) as caught:
        Transformer((3,), vocabulary=5, width=10, heads=4)
    assert str(caught.value) == (
        "heads of transformer must divide its width, got 4 heads and width 10; change one of them"
    )
