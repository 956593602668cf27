"""A method of two stages with a pass over the training data between epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from modmix.base.messages import Finished, Progress
from modmix.methods.base import Method, Pass, Stage, State, cross_entropy
from modmix.methods.model import (
    InputSpec,
    ModelSpec,
    build_model,
    derive_seed,
    model_spec,
    unpack_weights,
)
from modmix.training.trainer import train_pack
from plainloop import error_of, tensors
from toypack import (
    add_method,
    finished,
    is_stacked,
    make_data,
    make_pack,
    make_replicates,
    progress,
    train,
)

DATA = make_data(rows=(96, 40, 30))
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}


class Outputs(NamedTuple):
    logits_BC: Tensor
    own_BC: Tensor


class TwoStages(Method):
    """Encoders with a classifier of their own first; then a head on the frozen features."""

    centre: Tensor

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        width = sum(features.values())
        self.own = nn.Linear(width, classes)
        self.joint = nn.Linear(width, classes)
        self.register_buffer("centre", torch.zeros(width))
        self.stage = ""

    def forward(self, features: Mapping[str, Tensor]) -> Outputs:
        merged = torch.cat([features[m] for m in self.modalities], dim=-1) - self.centre
        return Outputs(self.joint(merged), self.own(merged))

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs[0 if self.stage == "joint" else 1], target_B)

    def stages(self) -> tuple[Stage, ...]:
        frozen = ("encoders.", "method.own.")
        return (Stage(name="own", epochs=2), Stage(name="joint", frozen=frozen))

    def enter(self, stage: Stage) -> None:
        self.stage = stage.name

    def passes(self, epoch: int) -> Sequence[Pass]:
        def start() -> State:
            return {"sum": torch.zeros_like(self.centre), "count": self.centre.new_zeros(())}

        def step(state: State, features: Mapping[str, Tensor], target_B: Tensor) -> State:
            merged = torch.cat([features[m] for m in self.modalities], dim=-1)
            return {"sum": state["sum"] + merged.sum(0), "count": state["count"] + len(target_B)}

        def finish(state: State) -> Mapping[str, Tensor]:
            return {"centre": state["sum"] / state["count"]}

        asked = self.stage == "own" and epoch == 1
        return (Pass(start=start, step=step, finish=finish),) if asked else ()


class Warmed(Method):
    """The same network in two stages, whose links are class attributes for tests to set."""

    first: Stage = Stage(name="first")
    second: Stage = Stage(name="second")

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.head = nn.Linear(sum(features.values()), classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        logits_BC: Tensor = self.head(torch.cat([features[m] for m in self.modalities], dim=-1))
        return logits_BC

    def loss(self, outputs: Tensor, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs, target_B)

    def stages(self) -> tuple[Stage, ...]:
        return self.first, self.second


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    add_method(monkeypatch, "twostages", TwoStages)
    add_method(monkeypatch, "warmed", Warmed)


def by_hand(seed: int, epochs: int) -> dict[str, Tensor]:
    """Both stages with torch.optim; the last weights."""
    spec = ModelSpec(
        method="twostages",
        params={},
        encoders=dict.fromkeys(DATA.shapes, ENCODER),
        inputs={name: InputSpec(shape=shape) for name, shape in DATA.shapes.items()},
        classes=3,
    )
    model = build_model(spec, seed)
    method = model.method
    assert isinstance(method, TwoStages)
    inputs, labels = tensors(DATA.train)
    for stage, first, last in ((0, 0, 2), (1, 2, 2 + epochs)):
        method.enter(method.stages()[stage])
        trained = list(model.parameters()) if stage == 0 else list(method.joint.parameters())
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.0)
        for epoch in range(first, last):
            if epoch == 1:
                model.eval()
                with torch.no_grad():
                    method.centre.copy_(torch.cat(list(model.features(inputs).values()), 1).mean(0))
            model.train()
            if stage == 1:
                model.encoders.eval()
            generator = torch.Generator().manual_seed(derive_seed(seed, "batches", epoch))
            order = torch.randperm(96, generator=generator)
            for rows in order.split(16):
                optimizer.zero_grad()
                outputs = model({name: x[rows] for name, x in inputs.items()})
                model.loss(outputs, labels[rows]).mean().backward()
                optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("stack", ["always", "never"])
def test_stages_are_trained_one_after_the_other(stack: str) -> None:
    replicates = make_replicates(
        "twostages",
        data=DATA,
        encoder=ENCODER,
        epochs=1,
        batch_size=16,
        optimizer="sgd",
        learning_rate=0.1,
        stack=stack,
    )
    ends = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        end = ends[replicate.key]
        assert end.history["epoch"] == [1, 2, 3]
        assert end.best_epoch == 3  # the first stage's evaluations do not count
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        for name, value in by_hand(replicate.seed, 1).items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_stay_under_weight_decay() -> None:
    def weights(epochs: int) -> dict[str, Finished]:
        replicates = make_replicates(
            "twostages",
            data=DATA,
            encoder=ENCODER,
            epochs=epochs,
            batch_size=16,
            optimizer="adamw",
            weight_decay=0.1,
            monitor="val/nll",
        )
        return train(replicates, DATA, keep_weights=True)

    short, long = weights(1), weights(6)
    for key in short:
        one, other = short[key].weights, long[key].weights
        assert one is not None
        assert other is not None
        before, after = (unpack_weights(blob)[0].state_dict() for blob in (one, other))
        for name, value in before.items():
            assert torch.equal(after[name], value) == (not name.startswith("method.joint")), name


def test_a_stage_is_resumed(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    replicates = make_replicates("twostages", data=DATA, encoder=ENCODER, epochs=3, batch_size=16)
    expected = train(replicates, DATA, keep_weights=True)
    for count in range(1, 5):
        pack = make_pack(replicates, keep_weights=True, checkpoint=f"{tmp_path}/{count}")
        events = train_pack(pack, DATA)
        while count > 0:
            count -= bool(progress([next(events)]))
        events.close()
        for event in train_pack(pack, DATA):
            if isinstance(event, Finished):
                other = expected[event.replicate]
                assert event.weights == other.weights
                assert event.history == other.history


# ---------------------------------------------------------------- from one stage to the next

RATES = (0.06, 0.03, 0.005)


def set_stages(monkeypatch: pytest.MonkeyPatch, first: Stage, second: Stage) -> None:
    monkeypatch.setattr(Warmed, "first", first)
    monkeypatch.setattr(Warmed, "second", second)


def warmed(rates: Sequence[float] = RATES, seeds: Sequence[int] = (0,), **fields: Any) -> Any:
    configurations = [{"training": {"learning_rate": rate}} for rate in rates]
    settings = {"epochs": 6, "batch_size": 16, "optimizer": "adam", **fields}
    return make_replicates("warmed", configurations, seeds, data=DATA, **settings)


def warmed_by_hand(replicate: Any, epochs: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Losses and validation errors of every epoch, of both stages, with torch.optim.

    Rules of the stages and of patience as a study file gives them.
    """
    t, seed = replicate.training, replicate.seed
    model = build_model(model_spec(replicate, DATA), seed)
    inputs, labels = tensors(DATA.train)
    optimizer = torch.optim.Adam(model.parameters(), lr=t["learning_rate"])
    losses, errors = [], []
    for number, stage in enumerate(model.method.stages()):
        if number == 1 and stage.optimizer == "fresh":
            optimizer = torch.optim.Adam(model.parameters(), lr=t["learning_rate"])
        best, waited = float("inf"), 0
        best_state = model.state_dict()
        for epoch in range(epochs[number]):
            seed_of_epoch = derive_seed(seed, "batches", number * epochs[0] + epoch)
            generator = torch.Generator().manual_seed(seed_of_epoch)
            batch = []
            for rows in torch.randperm(96, generator=generator).split(16):
                loss = model.loss(model({n: x[rows] for n, x in inputs.items()}), labels[rows])
                optimizer.zero_grad()
                loss.mean().backward()
                optimizer.step()
                batch.append(loss.mean().item())
            losses.append(sum(batch) / len(batch))
            errors.append(error_of(model, DATA.val))
            waited += 1
            if errors[-1] < best:
                best, waited = errors[-1], 0
                best_state = {n: x.clone() for n, x in model.state_dict().items()}
            stops = number == 1 or model.method.stages()[1].optimizer == "fresh"
            if stops and t["patience"] is not None and waited >= t["patience"]:
                break
        begin = model.method.stages()[1].begin
        if number == 0 and (begin == "best" or (begin == "selected" and t["select"] == "best")):
            model.load_state_dict(best_state)
    return losses, errors


@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("patience", [None, 1])
@pytest.mark.parametrize("optimizer", ["fresh", "kept"])
@pytest.mark.parametrize(
    ("begin", "select"),
    [("last", "best"), ("best", "last"), ("selected", "best"), ("selected", "last")],
)
def test_the_second_stage_begins_as_it_says(
    begin: Any, select: str, optimizer: Any, patience: int | None, stack: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The models stop at different epochs of the first stage, and none hears of the others."""
    second = Stage(name="second", epochs=3, begin=begin, optimizer=optimizer)
    set_stages(monkeypatch, Stage(name="first", epochs=5), second)
    made = warmed(select=select, patience=patience, stack=stack)
    assert is_stacked(made, DATA) == (stack == "always")
    ends = train(made, DATA)
    lengths = set()
    for replicate in made:
        losses, errors = warmed_by_hand(replicate, (5, 3))
        history = ends[replicate.key].history
        assert list(history["train/loss"]) == pytest.approx(losses, rel=1e-3)
        assert list(history["val/error"]) == pytest.approx(errors)
        first = [epoch for epoch in history["epoch"] if epoch <= 5]
        assert first == [*range(1, len(first) + 1)]
        later = list(history["epoch"][len(first) :])
        assert later == [*range(6, 6 + len(later))]  # the second stage's epochs have their numbers
        lengths.add(len(first))
    # One whose optimizer goes on runs to its end.
    assert (len(lengths) > 1) == (patience is not None and optimizer == "fresh")


def test_company_does_not_change_a_model_that_stops_in_the_first_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_stages(monkeypatch, Stage(name="first", epochs=5), Stage(name="second", epochs=3))
    together = train(warmed(patience=1), DATA, keep_weights=True)
    for replicate in warmed(patience=1):
        (alone,) = train([replicate], DATA, keep_weights=True).values()
        beside = together[replicate.key]
        assert list(alone.history["epoch"]) == list(beside.history["epoch"])
        for name, column in alone.history.items():
            assert list(beside.history[name]) == pytest.approx(list(column), rel=1e-4)
        assert beside.metrics == pytest.approx(alone.metrics, rel=1e-4)


def test_models_that_stopped_are_resumed(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    set_stages(monkeypatch, Stage(name="first", epochs=5), Stage(name="second", epochs=3))
    made = warmed(patience=1)
    undisturbed = list(train_pack(make_pack(made), DATA))
    expected = finished(undisturbed)
    for count in range(1, len(progress(undisturbed))):
        pack = make_pack(made, checkpoint=f"{tmp_path}/{count}")
        events = train_pack(pack, DATA)
        left = count
        while left:
            left -= isinstance(next(events), Progress)
        events.close()
        for key, end in finished(train_pack(pack, DATA)).items():
            assert end.history == expected[key].history
            assert end.metrics == expected[key].metrics


def rungs(made: Any) -> tuple[list[int], dict[str, Finished]]:
    events = list(train_pack(make_pack(made), DATA))
    told = [e.rung for e in events if isinstance(e, Progress) and e.rung]
    return told, finished(events)


def test_halving_counts_the_epochs_of_all_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    set_stages(monkeypatch, Stage(name="first", epochs=3), Stage(name="second", epochs=6))
    made = warmed(rates=(1e-5, 0.01, 1e-6, 0.02), halving={"eta": 2, "min_epochs": 2})
    told, ends = rungs(made)
    assert told == [2, 4, 8]
    by_epochs = sorted((end.epochs, end.state) for end in ends.values())
    assert by_epochs == [(2, "pruned"), (2, "pruned"), (4, "pruned"), (9, "done")]
    whole = train(warmed(rates=(1e-5, 0.01, 1e-6, 0.02)), DATA)
    for key, end in ends.items():
        expected = list(whole[key].history["val/nll"])[: end.epochs]
        assert list(end.history["val/nll"]) == pytest.approx(expected, rel=1e-4)


def test_a_stage_that_is_not_judged_has_no_rungs_and_no_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = Stage(name="first", epochs=5, judged=False)
    set_stages(monkeypatch, first, Stage(name="second", epochs=6))
    made = warmed(halving={"eta": 2, "min_epochs": 1}, patience=1)
    told, ends = rungs(made)
    assert set(told) <= {8}
    assert all(len([e for e in end.history["epoch"] if e <= 5]) == 5 for end in ends.values())
    assert all(end.best_epoch > 5 for end in ends.values())
