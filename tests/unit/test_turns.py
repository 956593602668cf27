"""Stages whose parameters are trained in turns, against loops with an optimizer per turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from modmix.base.errors import InputError
from modmix.base.messages import Progress, Replicate
from modmix.methods.base import Method, Stage, cross_entropy
from modmix.methods.draws import Draws, uniform
from modmix.methods.model import (
    InputSpec,
    Model,
    ModelSpec,
    build_model,
    derive_seed,
    model_spec,
    unpack_weights,
)
from modmix.study.dry_run import check_model
from modmix.training.batches import Examples, Order
from modmix.training.builder import Builder
from modmix.training.counting import count_stages
from modmix.training.probe import Probe
from modmix.training.stack import Stack
from modmix.training.timeline import StageEntry
from modmix.training.trainer import train_pack
from plainloop import make_optimizer, tensors
from toypack import (
    add_method,
    finished,
    is_stacked,
    make_data,
    make_pack,
    make_replicates,
    same,
    train,
)

ROWS, BATCH = 96, 16
DATA = make_data(widths=(6, 4), rows=(ROWS, 40, 30))
ENCODER = {"name": "mlp", "hidden": [5], "batch_norm": True}
TURNS = (("encoders.0.", "method.head."), ("encoders.1.", "method.head."))


class Outputs(NamedTuple):
    logits_BC: Tensor
    own: tuple[Tensor, ...]


class Alternating(Method):
    """One head for both modalities, trained with one encoder at a time."""

    plan: tuple[Stage, ...] = (Stage(name="turns", turns=TURNS),)

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.head = nn.Linear(5, classes)
        self.bias = nn.Parameter(torch.ones(classes))  # in no turn

    def forward(self, features: Mapping[str, Tensor]) -> Outputs:
        own = tuple(self.head(features[m]) for m in self.modalities)
        return Outputs(own[0] + own[1] + self.bias, own)

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        joint = cross_entropy(outputs.logits_BC, target_B)
        return cross_entropy(outputs.own[self.turn], target_B) + 0.1 * joint

    def stages(self) -> tuple[Stage, ...]:
        return self.plan


class Slowed(Alternating):
    """Gradients are changed in the second turn only."""

    def modulate(
        self,
        outputs: Outputs,
        target_B: Tensor,
        gradients: Mapping[str, Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        if self.turn == 0:
            return {}
        assert not any(name.startswith("encoders.0.") for name in gradients["loss"])
        return {name: 0.5 * gradient for name, gradient in gradients["loss"].items()}


class Drawing(Alternating):
    """Keeps the random number that each turn has drawn in the last step."""

    drawn: Tensor

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.draws = Draws()
        self.register_buffer("drawn", torch.zeros(2))

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        self.drawn[self.turn] = self.draws.uniform(1)[0]
        return super().loss(outputs, target_B)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Alternating, Slowed, Drawing):
        add_method(monkeypatch, kind.__name__.lower(), kind)


def plan(monkeypatch: pytest.MonkeyPatch, *stages: Stage) -> None:
    monkeypatch.setattr(Alternating, "plan", stages)


def made(method: str = "alternating", **fields: Any) -> tuple[Replicate, ...]:
    configurations = [{"training": {"learning_rate": rate}} for rate in (0.03, 0.01)]
    settings: dict[str, Any] = {"epochs": 3, "batch_size": BATCH, "select": "last"}
    return make_replicates(
        method, configurations, data=DATA, encoder=ENCODER, **{**settings, **fields}
    )


def parameters_of(model: Model, prefixes: tuple[str, ...]) -> nn.Module:
    """A module with these parameters alone, for `make_optimizer`."""
    found = nn.Module()
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            found.register_parameter(name.replace(".", "_"), parameter)
    return found


def by_hand(replicate: Replicate, factor: float = 1.0) -> tuple[Model, list[float], list[float]]:
    """All stages with torch.optim; losses and training errors by epoch.

    ``factor`` multiplies the gradients of the second turn.
    """
    t, seed = replicate.training, replicate.seed
    model = build_model(model_spec(replicate, DATA), seed)
    inputs, labels = tensors(DATA.train)
    losses, errors, done = [], [], 0
    optimizers: list[torch.optim.Optimizer] = []
    parts: list[nn.Module] = []
    for stage in model.method.stages():
        if stage.optimizer == "fresh":
            parts = [parameters_of(model, prefixes) for prefixes in stage.turns]
            optimizers = [make_optimizer(part, t) for part in parts]  # type: ignore[arg-type]
        for epoch in range(stage.epochs or t["epochs"]):
            generator = torch.Generator().manual_seed(derive_seed(seed, "batches", done))
            rate = t["learning_rate"] * t["decay_rate"] ** epoch
            rate = rate if t["schedule"] == "exponential" else t["learning_rate"]
            loss_sum = wrong = 0.0
            for rows in torch.randperm(ROWS, generator=generator).split(BATCH):
                each = range(2) if stage.turn_every == "batch" else [epoch % 2]
                for turn in each:
                    model.train()
                    model.encoders[1 - turn].eval()
                    model.method.turn = turn
                    outputs = model({name: x[rows] for name, x in inputs.items()})
                    loss = model.loss(outputs, labels[rows]).mean()
                    loss_sum += loss.item()
                    for parameter in model.parameters():
                        parameter.grad = None
                    loss.backward()
                    if turn == 1:
                        for parameter in parts[1].parameters():
                            parameter.grad = factor * parameter.grad  # type: ignore[operator]
                    if t["clip_norm"] is not None:
                        nn.utils.clip_grad_norm_(list(parts[turn].parameters()), t["clip_norm"])
                    for group in optimizers[turn].param_groups:
                        group["lr"] = rate
                    optimizers[turn].step()
                wrong += (outputs.logits_BC.argmax(-1) != labels[rows]).sum().item()
            losses.append(loss_sum / (ROWS // BATCH))
            errors.append(100 * wrong / ROWS)
            done += 1
    return model, losses, errors


def assert_by_hand(
    replicates: tuple[Replicate, ...], factor: float = 1.0, rel: float = 1e-4
) -> None:
    ends = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        end = ends[replicate.key]
        model, losses, errors = by_hand(replicate, factor)
        assert list(end.history["train/loss"]) == pytest.approx(losses, rel=rel)
        assert list(end.history["train/error"]) == pytest.approx(errors)
        found = unpack_weights(end.weights or b"")[0].state_dict()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 0.5},
    "adam": {"optimizer": "adam", "schedule": "exponential", "decay_rate": 0.7},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
}


@pytest.mark.parametrize("every", ["batch", "epoch"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stack", ["always", "never"])
def test_turns_are_those_of_a_loop_with_an_optimizer_each(
    stack: str, recipe: str, every: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(monkeypatch, Stage(name="turns", turns=TURNS, turn_every=every))
    replicates = made(stack=stack, **RECIPES[recipe])
    assert is_stacked(replicates, DATA) == (stack == "always")
    assert_by_hand(replicates)


@pytest.mark.parametrize("recipe", RECIPES)
def test_turns_on_the_paths_of_a_gpu(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", "1")
    monkeypatch.setattr("modmix.training.batches.forced", lambda: False)
    assert_by_hand(made(cuda_graphs="always", **RECIPES[recipe]))


@pytest.mark.parametrize("stack", ["always", "never"])
def test_gradients_are_modulated_by_turn(stack: str) -> None:
    assert_by_hand(made("slowed", stack=stack, optimizer="sgd"), factor=0.5)


@pytest.mark.parametrize("every", ["batch", "epoch"])
def test_kept_optimizers_go_on_turn_by_turn(every: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Stage(name="first", turns=TURNS, turn_every=every, epochs=3)
    plan(monkeypatch, first, replace(first, name="second", epochs=2, optimizer="kept"))
    assert_by_hand(made(optimizer="adam"))
    plan(monkeypatch, first, replace(first, name="second", epochs=2))
    assert_by_hand(made(optimizer="adam"))


def test_what_rested_in_a_stage_is_awake_in_the_next() -> None:
    """Also without an evaluation in between, as where the costs of stages are counted."""
    stack = Stack([build_model(SPEC, 0)], torch.device("cpu"))
    inputs = {"m0": torch.ones(1, 4, 6), "m1": torch.ones(1, 4, 4)}
    target = torch.zeros(1, 4, dtype=torch.int64)
    name = "encoders.{}.layers.1.num_batches_tracked"
    counts = []
    for frozen in ("encoders.0.", "encoders.1."):
        stack.enter_stage(Stage(name="s", frozen=(frozen,)))
        stack.loss_and_gradient(inputs, target)
        counts.append([int(stack.buffers[name.format(i)]) for i in (0, 1)])
    assert counts == [[0, 1], [1, 1]]


def test_what_is_in_no_turn_stays() -> None:
    ends = train(made(optimizer="adamw", weight_decay=0.5, decay="all"), DATA, keep_weights=True)
    for end in ends.values():
        model, _ = unpack_weights(end.weights or b"")
        assert isinstance(model.method, Alternating)
        assert torch.equal(model.method.bias, torch.ones(3))


def test_resting_modules_keep_their_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch by turn 0: the second encoder has not seen a batch."""
    plan(monkeypatch, Stage(name="turns", turns=TURNS, turn_every="epoch"))
    for replicate, end in zip(
        made(epochs=1), train(made(epochs=1), DATA, keep_weights=True).values(), strict=True
    ):
        found = unpack_weights(end.weights or b"")[0].state_dict()
        fresh = build_model(model_spec(replicate, DATA), replicate.seed).state_dict()
        for name, value in fresh.items():
            moves = name.startswith(TURNS[0])
            assert torch.equal(found[name], value) != moves, name
        counts = [v for n, v in found.items() if n.endswith("num_batches_tracked")]
        assert [int(count) for count in counts] == [ROWS // BATCH, 0]


def test_a_single_turn_of_everything_is_a_stage_without_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan(monkeypatch, Stage(name="whole"))
    expected = train(made(), DATA, keep_weights=True)
    plan(monkeypatch, Stage(name="whole", turns=(("encoders.", "method."),)))
    same(train(made(), DATA, keep_weights=True), expected)


# ---------------------------------------------------------------- interruptions, smaller groups


@pytest.mark.parametrize("every", ["batch", "epoch"])
@pytest.mark.parametrize("method", ["alternating", "drawing"])
def test_turns_are_resumed(
    method: str, every: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_CHECKPOINT_SECONDS", "0")
    plan(monkeypatch, Stage(name="turns", turns=TURNS, turn_every=every))
    replicates = made(method, optimizer="adam", evaluations_per_epoch=2)
    expected = train(replicates, DATA, keep_weights=True)
    for count in range(1, 6):
        pack = make_pack(replicates, keep_weights=True, checkpoint=f"{tmp_path}/{count}")
        events = train_pack(pack, DATA)
        left = count
        while left:
            left -= isinstance(next(events), Progress)
        events.close()
        same(finished(train_pack(pack, DATA)), expected)


@pytest.mark.parametrize("every", ["batch", "epoch"])
@pytest.mark.parametrize("forced", ["0", "1"])
def test_both_halves_go_on_with_every_optimizer(
    forced: str, every: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in the third epoch, in the second turn of a batch."""
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", forced)
    plan(monkeypatch, Stage(name="turns", turns=TURNS, turn_every=every))
    replicates = made(optimizer="adam", epochs=5)
    expected = train(replicates, DATA)
    original, calls = Stack.loss_and_gradient, []

    def tight(self: Stack, *arguments: Any) -> Any:
        calls.append(self.models)
        if self.models > 2 and len(calls) > 28:
            raise torch.OutOfMemoryError("simulated")
        return original(self, *arguments)

    monkeypatch.setattr(Stack, "loss_and_gradient", tight)
    same(train(replicates, DATA), expected, rel=1e-3)
    assert set(calls[-10:]) == {2}


def test_halving_ends_some_and_changes_no_others() -> None:
    halving = {"eta": 2, "min_epochs": 1}
    fields: dict[str, Any] = {"optimizer": "adam", "epochs": 4}
    whole = train(made(**fields), DATA)
    ends = train(made(halving=halving, **fields), DATA)
    assert sorted(end.state for end in ends.values()) == ["done", "done", "pruned", "pruned"]
    for key, end in ends.items():
        expected = list(whole[key].history["train/loss"])[: end.epochs]
        assert list(end.history["train/loss"]) == pytest.approx(expected, rel=1e-4)


def test_memory_is_that_of_the_largest_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With turns of epochs, the first one may hold less than those that follow."""
    cpu, found = torch.device("cpu"), []
    small, large = ("method.head.",), ("encoders.", "method.")
    for turns in ((small,), (large,), (small, large), (large, small)):
        stage = Stage(name="s", turns=turns, turn_every="epoch")
        plan(monkeypatch, stage)
        builder = Builder(make_pack(made()), DATA, cpu, lambda _: None)
        entry = StageEntry(stage=stage, epochs=4, from_best=False, keeps_best=False)
        (single,) = builder.started([0], entry)
        examples = Examples(DATA, "train", list(DATA.inputs), cpu)
        measured = Probe(builder, examples, Order(ROWS, BATCH, cpu))._bytes(single)
        assert measured is not None
        found.append(measured)
    assert found[0][1] < found[1][1]  # of activations alone
    assert found[2] == found[3]
    assert found[3][1] == found[1][1]


class Stubborn(Alternating):
    """Cannot be stacked in the second turn."""

    def loss(self, outputs: Outputs, target_B: Tensor) -> Tensor:
        found = super().loss(outputs, target_B)
        return found * 1.0 if self.turn == 0 or found.sum().item() > 0 else found


def test_a_later_turn_that_cannot_be_stacked_is_noticed_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_method(monkeypatch, "stubborn", Stubborn)
    plan(monkeypatch, Stage(name="turns", turns=TURNS, turn_every="epoch"))
    replicates = made("stubborn", stack="always")
    assert not is_stacked(replicates, DATA)
    assert {end.state for end in train(replicates, DATA).values()} == {"done"}


def test_every_turn_draws_its_own_numbers() -> None:
    steps = ROWS // BATCH
    replicates = made("drawing", epochs=1)
    ends = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        method = unpack_weights(ends[replicate.key].weights or b"")[0].method
        assert isinstance(method, Drawing)
        first = derive_seed(replicate.seed, "draws", 0) + steps - 1
        seeds = torch.tensor([first, first + steps])
        salt = method.draws.salt + (1 << 16)  # of the first call
        expected = uniform(seeds, torch.zeros(2, dtype=torch.int64), salt)
        assert torch.equal(method.drawn, expected)
        assert method.drawn[0] != method.drawn[1]


# ---------------------------------------------------------------- checks and costs

SPEC = ModelSpec(
    method="alternating", params={}, encoders={"m0": ENCODER, "m1": ENCODER}, classes=3,
    inputs={"m0": InputSpec(shape=(6,)), "m1": InputSpec(shape=(4,))},
)  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            (Stage(name="s", turns=(("encoders.0.",), ("encoder.1.", "head."))),),
            (
                "every turn must train a parameter, turn 1 of stage 's' trains none with the "
                "prefixes 'encoder.1.', 'head.'; names of parameters begin with 'encoders.0.', "
                "'encoders.1.', 'method.bias', 'method.head.'"
            ),
        ),
        (
            (Stage(name="s", frozen=("encoders.",), turns=(("encoders.0.",),)),),
            (
                "every turn must train a parameter, turn 0 of stage 's' trains none with the "
                "prefixes 'encoders.0.'"
            ),
        ),
        ((Stage(name="s", turns=((),)),), "turn 0 of stage 's' trains none with the prefixes (); "),
        (
            (Stage(name="a", turns=TURNS), Stage(name="b", optimizer="kept")),
            "stage 'b' must have the turns of the stage before it, whose optimizer it keeps",
        ),
        (
            (Stage(name="a", turns=TURNS, turn_every="step"),),  # type: ignore[arg-type]
            "turn_every of stage 'a' must be 'batch' or 'epoch', got 'step'",
        ),
        (
            (Stage(name="a", turns=TURNS, turn_every="epoch", turn_epochs=0),),
            "turn_epochs of stage 'a' must be at least 1, got 0",
        ),
    ],
)
def test_turns_that_cannot_be_are_refused(
    stages: tuple[Stage, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(monkeypatch, *stages)
    for action in (lambda: train(made(), DATA), lambda: check_model(SPEC)):
        with pytest.raises(InputError) as caught:
            action()
        assert message in str(caught.value)


def test_the_dry_run_tries_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    check_model(SPEC)

    def first_only(self: Alternating, outputs: Outputs, target_B: Tensor) -> Tensor:
        return cross_entropy(outputs.own[0], target_B)

    monkeypatch.setattr(Alternating, "loss", first_only)
    plan(monkeypatch, Stage(name="s", turns=(("encoders.0.",), ("encoders.1.",))))
    message = "in turn 1 of stage 's', loss must depend on a parameter that begins with encoders.1."
    with pytest.raises(InputError, match=message):
        check_model(SPEC)


def test_costs_are_those_of_all_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward of everything, backward of the head (twice used) and of the turn's encoder."""
    each = 2 * 7 * ((6 * 5 + 4 * 5 + 2 * 5 * 3) + 2 * 2 * 5 * 3)  # but for encoder weights
    own = [2 * 7 * 6 * 5, 2 * 7 * 4 * 5]
    # The logits of the resting encoder's features need no gradient with respect to these.
    each -= 2 * 7 * 5 * 3
    for every, flops in (("batch", 2 * each + sum(own)), ("epoch", (2 * each + sum(own)) // 2)):
        plan(monkeypatch, Stage(name="s", turns=TURNS, turn_every=every))  # type: ignore[arg-type]
        ((_, count),) = count_stages(lambda: build_model(SPEC, 0), DATA.inputs, 7)
        assert count.flops == flops
