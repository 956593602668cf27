"""Jointly trained architectures: hand-worked cases, randomness, and equalities between them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from modmix.methods.add import Add
from modmix.methods.centralnet import CentralNet
from modmix.methods.concat import Concat
from modmix.methods.film import Film
from modmix.methods.gated import Gated
from modmix.methods.gmu import GMU
from modmix.methods.late_transformer import LateTransformer, TransformerLayer
from modmix.methods.lmf import LMF
from modmix.methods.mmcosine import MMCosine
from modmix.methods.moddrop import ModDrop
from modmix.methods.sum import Sum
from modmix.methods.tfn import TFN


def features(*widths: int, rows: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        f"m{i}": torch.randn(rows, d, generator=generator, dtype=torch.float64)
        for i, d in enumerate(widths)
    }


def widths_of(given: dict[str, Tensor]) -> dict[str, int]:
    return {name: x.shape[1] for name, x in given.items()}


def ones(layer: nn.Module, weight: float = 1.0, bias: float = 0.0) -> None:
    """Constant weights and biases."""
    for name, parameter in layer.named_parameters():
        parameter.data.fill_(bias if name.endswith("bias") else weight)


# ---------------------------------------------------------------- linear ones


def test_concat_is_add_without_a_hidden_layer() -> None:
    given = features(3, 2)
    torch.manual_seed(0)
    concat = Concat(widths_of(given), 4).double()
    add = Add(widths_of(given), 4, merge="concat", depth=0).double()
    add.head[0].load_state_dict(concat.classifier.state_dict())
    torch.testing.assert_close(concat(given).logits_BC, add(given).logits_BC)


def test_sum_and_concat_represent_the_same_functions() -> None:
    given = features(3, 2, 4)
    summed = Sum(widths_of(given), 4).double()
    concat = Concat(widths_of(given), 4).double()
    layers = list(summed.classifiers)
    with torch.no_grad():
        weights = [layer.get_parameter("weight") for layer in layers]
        concat.classifier.weight.copy_(torch.cat(weights, dim=1))
        biases = [layer.get_parameter("bias") for layer in layers]
        concat.classifier.bias.copy_(torch.stack(biases).sum(0))
    torch.testing.assert_close(summed(given).logits_BC, concat(given).logits_BC)


# ---------------------------------------------------------------- conditioned by one modality


def test_film_by_hand() -> None:
    """γ = 2 · 3 + 1 = 7 and β = 7, so h = 7 · (1, −1) + 7 = (14, 0), and z = 14."""
    film = Film({"a": 1, "b": 2}, 1)
    ones(film.modulations, weight=2.0, bias=1.0)
    ones(film.classifier)
    outputs = film({"a": torch.tensor([[3.0]]), "b": torch.tensor([[1.0, -1.0]])})
    assert outputs.logits_BC.tolist() == [[14.0]]


def test_gated_by_hand() -> None:
    """σ(log 3) = 3/4 and the value is 2 · 4, so h = 6."""
    gated = Gated({"a": 1, "b": 1}, 1, width=1, condition="b")
    ones(gated.gates)
    ones(gated.values, weight=2.0)
    ones(gated.classifier)
    outputs = gated({"a": torch.tensor([[4.0]]), "b": torch.tensor([[math.log(3.0)]])})
    assert outputs.logits_BC.item() == pytest.approx(6.0)


@pytest.mark.parametrize("kind", [Film, Gated])
def test_the_conditioning_modality_may_be_any(kind: type[Film] | type[Gated]) -> None:
    given = features(3, 2, 4)
    for condition in (None, *given):
        method = kind(widths_of(given), 3, condition=condition)
        assert method.condition == (condition or "m0")
        assert method.others == tuple(name for name in given if name != method.condition)


def test_gmu_by_hand() -> None:
    """Two modalities share a gate of 3/4: u = 3/4 tanh(log 3 − 0) + 1/4 tanh 0 = 3/4 · 4/5."""
    gmu = GMU({"a": 1, "b": 1}, 1, width=1)
    assert len(gmu.gates) == 1
    for layers in (gmu.hidden, gmu.gates, gmu.classifier):
        ones(layers)
    outputs = gmu({"a": torch.tensor([[math.log(3.0)]]), "b": torch.tensor([[0.0]])})
    assert outputs.logits_BC.item() == pytest.approx(0.6)
    assert len(GMU({"a": 1, "b": 1, "c": 1}, 2).gates) == 3


# ---------------------------------------------------------------- cosines


def test_mmcosine_does_not_depend_on_lengths() -> None:
    given = features(3, 2)
    method = MMCosine(widths_of(given), 4, scale=7.0).double()
    expected = method(given).logits_BC
    assert expected.abs().max() <= 14.0
    with torch.no_grad():
        method.classifiers[0].get_parameter("weight").mul_(1000.0)
    scaled = {"m0": given["m0"] * 1e-3, "m1": given["m1"] * 1e6}
    torch.testing.assert_close(method(scaled).logits_BC, expected)


def test_features_of_zeros_have_no_direction() -> None:
    method = MMCosine({"a": 2, "b": 2}, 3)
    zeros = torch.zeros(4, 2, requires_grad=True)
    other = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    outputs = method({"a": zeros, "b": other})
    weight = method.classifiers[1].get_parameter("weight")
    expected = 10.0 * torch.cosine_similarity(other.unsqueeze(1), weight, dim=-1)
    torch.testing.assert_close(outputs.logits_BC, expected)
    method.loss(outputs, torch.tensor([0, 1, 2, 0])).sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.tolist() == [[0.0, 0.0]] * 4


# ---------------------------------------------------------------- dropped modalities


def test_modalities_are_dropped_with_their_probability() -> None:
    method = ModDrop({"a": 1, "b": 1, "c": 1}, 2, drop=0.4)
    kept = method.kept(40_000)
    assert kept.shape == (40_000, 3)
    assert kept.any(1).all()
    # 0.6, and a third of the cases where all would have been dropped.
    expected = 0.6 + 0.4**3 / 3
    torch.testing.assert_close(
        kept.double().mean(0), torch.full((3,), expected).double(), rtol=0, atol=0.01
    )
    both = (kept[:, 0] & kept[:, 1]).double().mean().item()
    assert both == pytest.approx(0.36, abs=0.01)


@pytest.mark.parametrize(("drop", "count"), [(0.0, 2.0), (1.0, 1.0)])
def test_bounds_of_dropping(drop: float, count: float) -> None:
    kept = ModDrop({"a": 1, "b": 1}, 2, drop=drop).kept(1000)
    assert (kept.sum(1) == count).all()
    assert 400 < kept[:, 0].sum() <= 1000


def test_dropped_features_are_zeros_in_training_only() -> None:
    given = features(3, 2, rows=64)
    method = ModDrop(widths_of(given), 4, drop=0.5).double()
    kept = method.kept(64)
    method.draws.calls = 0
    zeroed = {name: x * kept[:, [i]] for i, (name, x) in enumerate(given.items())}
    found = method(given).logits_BC
    method.eval()
    torch.testing.assert_close(found, method(zeroed).logits_BC)
    plain = Add(widths_of(given), 4).double()
    plain.head.load_state_dict(method.head.state_dict())
    torch.testing.assert_close(method(given).logits_BC, plain(given).logits_BC)


def test_every_step_drops_others() -> None:
    method = ModDrop({"a": 1, "b": 1}, 2, drop=0.5)
    first = method.kept(100)
    method.draws.draw.fill_(1)
    method.draws.calls = 0
    assert not torch.equal(method.kept(100), first)
    method.draws.draw.fill_(0)
    method.draws.calls = 0
    assert torch.equal(method.kept(100), first)


# ---------------------------------------------------------------- tensor fusion


def test_tfn_by_hand() -> None:
    """(2, 1) ⊗ (3, 1) = (6, 2, 3, 1)."""
    tfn = TFN({"a": 1, "b": 1}, 1, project=1, depth=0)
    ones(tfn.project)
    (last,) = tfn.head
    last.get_parameter("weight").data = torch.tensor([[1000.0, 100.0, 10.0, 1.0]])
    last.get_parameter("bias").data.zero_()
    outputs = tfn({"a": torch.tensor([[2.0]]), "b": torch.tensor([[3.0]])})
    assert outputs.logits_BC.item() == 6000 + 200 + 30 + 1


def test_lmf_of_rank_one_by_hand() -> None:
    """(2 · 2 + 1)(2 · 3 + 1) = 35."""
    lmf = LMF({"a": 1, "b": 1}, 1, rank=1, width=1)
    ones(lmf.factors, weight=2.0, bias=1.0)
    ones(lmf.classifier)
    outputs = lmf({"a": torch.tensor([[2.0]]), "b": torch.tensor([[3.0]])})
    assert outputs.logits_BC.item() == 35.0


# ---------------------------------------------------------------- Transformer


def torch_layer(ours: TransformerLayer, width: int, feedforward: int) -> nn.Module:
    """`torch.nn.TransformerEncoderLayer` with the same weights."""
    theirs = nn.TransformerEncoderLayer(width, ours.heads, feedforward, batch_first=True).double()
    pairs = {
        "self_attn.out_proj.": ours.out,
        "linear1.": ours.up,
        "linear2.": ours.down,
        "norm1.": ours.norms[0],
        "norm2.": ours.norms[1],
    }
    state = {
        prefix + name: layer.get_parameter(name)
        for prefix, layer in pairs.items()
        for name in ("weight", "bias")
    }
    key_bias = torch.ones(width, dtype=torch.float64)  # makes no difference
    projections = ours.query, ours.key, ours.value
    state["self_attn.in_proj_weight"] = torch.cat([layer.weight for layer in projections])
    state["self_attn.in_proj_bias"] = torch.cat([ours.query.bias, key_bias, ours.value.bias])
    theirs.load_state_dict(state)
    return theirs


def test_the_layer_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = TransformerLayer(12, 3, 7, 0.5).double()
    for norm in ours.norms:
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    theirs = torch_layer(ours, 12, 7)
    x = torch.randn(5, 4, 12, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert not torch.allclose(ours.train()(x), theirs(x))


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_permuted_examples_give_permuted_logits(pool: str) -> None:
    """Tokens attend to those of their own example only."""
    given = features(3, 2, 4)
    torch.manual_seed(0)
    method = LateTransformer(widths_of(given), 3, pool=pool).double().eval()
    order = torch.tensor([3, 0, 4, 1, 2])
    expected = method(given).logits_BC[order]
    found = method({name: x[order] for name, x in given.items()}).logits_BC
    torch.testing.assert_close(found, expected)
    alone = method({name: x[:1] for name, x in given.items()}).logits_BC
    torch.testing.assert_close(alone, method(given).logits_BC[:1])


def test_dropout_is_active_in_training_only() -> None:
    given = features(3, 2)
    method = LateTransformer(widths_of(given), 3, dropout=0.5).double()
    first, second = method(given).logits_BC, method(given).logits_BC
    assert not torch.equal(first, second)
    method.eval()
    assert torch.equal(method(given).logits_BC, method(given).logits_BC)


# ---------------------------------------------------------------- a central network


def test_centralnet_by_hand() -> None:
    """Level 1: h = (2, 4), u = 2 · 2 + 3 · 4 = 16; level 2: h = (3, 5), c = 16, u = 3 + 10 − 8."""
    method = CentralNet({"a": 1, "b": 1}, 1, depth=2, width=1)
    ones(method)
    for name, parameter in method.named_parameters():
        if name.startswith("levels.1.own") and name.endswith("bias"):
            parameter.data.fill_(1.0)
    method.get_parameter("levels.0.alpha").data = torch.tensor([2.0, 3.0])
    method.get_parameter("levels.1.alpha").data = torch.tensor([1.0, 2.0, -0.5])
    outputs = method({"a": torch.tensor([[2.0]]), "b": torch.tensor([[4.0]])})
    assert outputs.own_MBC.flatten().tolist() == [3.0, 5.0]
    assert outputs.logits_BC.item() == 5.0


def test_centralnet_starts_as_an_average() -> None:
    method = CentralNet({"a": 3, "b": 2, "c": 4}, 2, depth=3)
    for level, terms in enumerate((3, 4, 4)):
        alpha = method.get_parameter(f"levels.{level}.alpha")
        assert alpha.tolist() == pytest.approx([1 / terms] * terms)


def test_losses_of_the_modalities_reach_their_own_networks_only() -> None:
    given = features(3, 2)
    method = CentralNet(widths_of(given), 4).double()
    outputs = method(given)
    outputs.own_MBC.sum().backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {
        name
        for name, _ in method.named_parameters()
        if ".own." in name or name.startswith("classifiers.")
    }
