"""Random numbers computed from seed and position: moments, independence, and who draws what."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from modmix.base.messages import Progress
from modmix.methods.base import Method, cross_entropy
from modmix.methods.draws import Draws, Dropout, normal, own_dropout, uniform
from modmix.methods.model import derive_seed, model_spec
from modmix.training.trainer import train_pack
from toypack import (
    Dropping,
    add_method,
    finished,
    is_stacked,
    make_data,
    make_pack,
    make_replicates,
    train,
)

N = 1 << 16
POSITIONS = torch.arange(N)
DATA = make_data(rows=(96, 40, 30))


def seed(value: int) -> Tensor:
    return torch.tensor(value)


def chi_square(values: Tensor, bins: int) -> float:
    """p-value of uniform counts."""
    counts = torch.histc(values.double(), bins, 0.0, 1.0).numpy()
    return float(stats.chisquare(counts).pvalue)


# Neighbouring seeds of one step and the next, and seeds of 56 bits that differ in high bits only.
SEEDS = (0, 1, 2, 3, derive_seed(0, "draws", 0), derive_seed(0, "draws", 0) + 1, 1 << 40, 1 << 55)


@pytest.mark.parametrize("value", SEEDS)
def test_uniform_numbers_are_uniform(value: int) -> None:
    x = uniform(seed(value), POSITIONS)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() < 1
    assert chi_square(x, 256) > 1e-3
    # Of neighbouring positions, too: pairs in 16 × 16 fields.
    fields = (x[:-1:2] * 16).floor() * 16 + (x[1::2] * 16).floor()
    assert chi_square((fields + 0.5) / 256, 256) > 1e-3
    moments = [x.double().pow(k).mean().item() for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([1 / 2, 1 / 3, 1 / 4, 1 / 5], abs=4 * 0.3 / N**0.5)


@pytest.mark.parametrize("value", SEEDS)
def test_normal_numbers_are_normal(value: int) -> None:
    x = normal(seed(value), POSITIONS).double()
    assert x.isfinite().all()
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3
    moments = [x.pow(k).mean().item() for k in (1, 2, 3, 4)]
    deviations = [1, 2**0.5, 15**0.5, 96**0.5]
    for found, expected, deviation in zip(moments, (0, 1, 0, 3), deviations, strict=True):
        assert abs(found - expected) < 4 * deviation / N**0.5


def test_seeds_salts_and_lags_are_independent() -> None:
    rows = [uniform(seed(value), POSITIONS, salt) for value in SEEDS for salt in (0, 1, 2)]
    rows += [stats_uniform(normal(seed(v), POSITIONS, s)) for v in SEEDS[:2] for s in (0, 1, 2)]
    x = torch.stack([row.double() for row in rows])
    correlation = torch.corrcoef(x).fill_diagonal_(0.0)
    assert correlation.abs().max() < 5 / N**0.5
    for lag in (1, 2, 7, 64, 1024):
        shifted = torch.stack([torch.corrcoef(torch.stack([r[lag:], r[:-lag]]))[0, 1] for r in x])
        assert shifted.abs().max() < 5 / N**0.5


def stats_uniform(values: Tensor) -> Tensor:
    """Normal numbers as uniform ones."""
    return torch.special.ndtr(values)


def test_positions_beyond_32_bits_draw_anew() -> None:
    far = uniform(seed(3), POSITIONS + (1 << 32))
    near = uniform(seed(3), POSITIONS)
    assert abs(torch.corrcoef(torch.stack([far, near]))[0, 1]) < 5 / N**0.5


# ---------------------------------------------------------------- dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_masks_at_its_rate_and_scales(p: float) -> None:
    layer = Dropout(p)
    layer.draw.fill_(77)
    y = layer(torch.full((256, 256), 2.0))
    kept = y != 0
    assert torch.equal(y[kept], torch.full((256, 256), 2.0)[kept] / (1 - p))
    deviation = (p * (1 - p) / y.numel()) ** 0.5
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=4 * deviation)
    # Rows and columns are masked independently.
    for axis in (0, 1):
        spread = kept.double().mean(axis).var().item()
        assert spread == pytest.approx(p * (1 - p) / 256, rel=0.4)


def test_dropout_at_its_ends_and_in_evaluation() -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(5, 6))
    assert torch.equal(Dropout(0.5).eval()(x), x)
    half = Dropout(0.5)(x.bfloat16())
    assert half.dtype == torch.bfloat16


def test_steps_calls_and_modules_draw_their_own() -> None:
    model = nn.Sequential(Dropout(), Dropout())
    own_dropout(model)
    first, second = model
    assert isinstance(first, Dropout)
    assert isinstance(second, Dropout)
    drawn = [first.uniform(N), first.uniform(N), first.normal(N)]
    drawn += [second.uniform(N), second.normal(N)]
    first.draw += 1
    first.calls = 0
    drawn.append(first.uniform(N))
    correlation = torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0.0)
    assert correlation.abs().max() < 5 / N**0.5


def test_plain_dropout_is_replaced_and_nothing_else() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3), nn.Dropout1d(0.2))
            self.outer = nn.Dropout(0.7)

    model = Nested()
    own_dropout(model)
    assert isinstance(model.inner[1], Dropout)
    assert isinstance(model.outer, Dropout)
    assert isinstance(model.inner[2], nn.Dropout1d)
    assert (model.inner[1].p, model.outer.p) == (0.3, 0.7)
    assert {model.inner[1].salt, model.outer.salt} == {0, 1}


def test_stacked_models_draw_what_each_draws_alone() -> None:
    layer = Dropout(0.3)
    layer.salt = 4
    seeds = torch.tensor(SEEDS)
    x = torch.randn(len(SEEDS), 9, 7, generator=torch.Generator().manual_seed(1))

    def run(draw: Tensor, x: Tensor) -> Tensor:
        layer.calls = 0
        out: Tensor = functional_call(layer, {"draw": draw}, (x,))
        return out

    together = vmap(run)(seeds, x)
    alone = [run(draw, row) for draw, row in zip(seeds, x, strict=True)]
    assert torch.equal(together, torch.stack(alone))


# ---------------------------------------------------------------- in training


class TorchDropping(Dropping):
    """Dropout that draws from torch's generator, whose state `vmap` cannot share out."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        merged = torch.cat([features[m] for m in self.modalities], dim=-1)
        logits_BC: Tensor = self.head(F.dropout(merged, 0.4, training=self.training))
        return logits_BC


class Noisy(Method):
    """Normal noise and two masks of one module on all features."""

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.source = Draws()
        self.head = nn.Linear(sum(features.values()), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        x = torch.cat([features[m] for m in self.modalities], dim=-1)
        if self.training:
            x = x + self.source.normal(*x.shape)
            x = x * (self.source.uniform(*x.shape) > 0.2) * (self.source.uniform(*x.shape) > 0.2)
        logits_BC: Tensor = self.head(x)
        return logits_BC

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs, target_B)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, "dropping", Dropping)
    add_method(monkeypatch, "torchdropping", TorchDropping)
    add_method(monkeypatch, "noisy", Noisy)


def curves(method: str, **fields: object) -> dict[str, list[float]]:
    settings: dict[str, object] = {"epochs": 2, "batch_size": 16, "seeds": (0, 1, 2), **fields}
    made = make_replicates(method, data=DATA, **settings)  # type: ignore[arg-type]
    stackable = len(made) > 1 and "stack" not in fields and method != "torchdropping"
    assert is_stacked(made, DATA) == stackable
    ends = train(made, DATA)
    return {key: list(end.history["train/loss"]) for key, end in ends.items()}


@pytest.mark.parametrize("method", ["dropping", "noisy"])
def test_company_does_not_change_what_a_model_draws(method: str) -> None:
    together = curves(method)
    apart = curves(method, stack="never")
    alone = curves(method, seeds=[1])
    assert set(alone) < set(together)
    for key, curve in together.items():
        assert curve == pytest.approx(apart[key], rel=1e-5)
    (key,) = alone
    assert alone[key] == pytest.approx(together[key], rel=1e-5)


def test_dropout_is_that_of_a_hand_written_loop() -> None:
    """Masks of the seed of every step; weights by torch.optim."""
    (replicate,) = make_replicates("dropping", seeds=[3], data=DATA, epochs=2, batch_size=16)
    (end,) = train([replicate], DATA).values()
    generator = torch.Generator().manual_seed(derive_seed(3, "weights"))
    from modmix.methods.model import build_model

    model = build_model(model_spec(replicate, DATA), 3)
    method = model.method
    assert isinstance(method, Dropping)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs = {name: torch.tensor(x) for name, x in DATA.train.inputs.items()}
    labels = torch.tensor(DATA.train.labels)
    for epoch in range(2):
        order = torch.randperm(
            96, generator=generator.manual_seed(derive_seed(3, "batches", epoch))
        )
        losses = []
        for step, rows in enumerate(order.split(16)):
            features = model.features({name: x[rows] for name, x in inputs.items()})
            merged = torch.cat(list(features.values()), 1)
            draw = torch.tensor(derive_seed(3, "draws", epoch) + step)
            positions = torch.arange(merged.numel()).view(merged.shape)
            keep = uniform(draw, positions, 1 << 16) >= 0.4  # the first call of source 0
            loss = F.cross_entropy(method.head(merged * keep / 0.6), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert end.history["train/loss"][epoch] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "stack"),
    [
        ("dropping", "always"),
        ("dropping", "never"),
        ("torchdropping", "always"),
        ("noisy", "always"),
    ],
)
def test_a_resumed_model_draws_as_an_undisturbed_one(
    method: str, stack: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    replicates = make_replicates(
        method, data=DATA, epochs=3, batch_size=16, evaluations_per_epoch=2, stack=stack
    )
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    expected = train(replicates, DATA, keep_weights=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    for count in range(1, 6):
        pack = make_pack(replicates, keep_weights=True, checkpoint=f"{tmp_path}/{count}")
        events = train_pack(pack, DATA)
        left = count
        while left:
            left -= isinstance(next(events), Progress)
        events.close()
        torch.manual_seed(count)
        ends = finished(train_pack(pack, DATA))
        for key, end in ends.items():
            assert end.history == expected[key].history
            assert end.weights == expected[key].weights
        assert ends.keys() == expected.keys()


def test_torchs_own_randomness_differs_by_step_and_seed() -> None:
    found = curves("torchdropping")
    first, second, _ = found.values()
    assert first != pytest.approx(second, rel=1e-3)
    # The same in company, although each model has torch's generator to itself.
    (alone,) = curves("torchdropping", seeds=[1]).values()
    assert alone == second


@pytest.mark.parametrize("method", ["dropping", "noisy"])
def test_recorded_steps_draw_anew(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = curves(method)
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", "1")
    recorded = curves(method, cuda_graphs="always")
    for key, curve in plain.items():
        assert recorded[key] == pytest.approx(curve, rel=1e-4)
