"""DI-MML: its parts against slow loops in float64, and its two stages against a loop by hand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from modmix.base.errors import InputError
from modmix.base.messages import Finished, Replicate
from modmix.methods.dimml import Dimml
from modmix.methods.dimml_parts import above_mean, contrast, count_correct, pairs, weighted
from modmix.methods.model import Model, build_model, derive_seed, model_spec, unpack_weights
from plainloop import error_of, tensors
from toypack import defaults, is_stacked, make_data, make_replicates, train

Matrix = NDArray[np.float64]

DATA = make_data(rows=(96, 60, 50), noise=2.0)
NORMED = {"name": "mlp", "hidden": [7], "batch_norm": True}


def make(count: int = 2, classes: int = 3, width: int = 6, **params: Any) -> Dimml:
    torch.manual_seed(count)
    features = {f"m{i}": width for i in range(count)}
    return Dimml(features, classes, **params).double()


def draw(count: int, rows: int, width: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"m{i}": torch.randn(rows, width, dtype=torch.float64, generator=generator)
        for i in range(count)
    }


# ---------------------------------------------------------------- slow definitions


def slow_contrast(
    student: Matrix, teacher: Matrix, chosen: NDArray[np.bool_], tau: float
) -> Matrix:
    """−log of the own partner's share of Σ_j exp(f_u[D]·f_t,j[D] / τ)."""
    found = np.zeros(len(student))
    if not chosen.any():
        return found
    for b, row in enumerate(student):
        powers = [np.exp(row[chosen] @ other[chosen] / tau) for other in teacher]
        found[b] = -np.log(powers[b] / sum(powers))
    return found


def slow_effective(features: Matrix, target: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    """Dimensions with more correct nearest-mean decisions than the average dimension."""
    width = features.shape[1]
    correct = []
    for d in range(width):
        means = {c: features[target == c, d].mean() for c in range(classes) if (target == c).any()}
        nearest = [min(means, key=lambda c: (abs(x - means[c]), c)) for x in features[:, d]]
        correct.append(sum(int(c == y) for c, y in zip(nearest, target, strict=True)))
    return np.array([count * width > sum(correct) for count in correct])


def slow_weighted(logits: Sequence[Matrix], temperature: float) -> Matrix:
    found = np.zeros_like(logits[0])
    for b in range(len(found)):
        shares = [np.exp(z[b] - z[b].max()) / np.exp(z[b] - z[b].max()).sum() for z in logits]
        powers = [np.exp(p.max() / temperature) for p in shares]
        for power, z in zip(powers, logits, strict=True):
            found[b] += power / sum(powers) * z[b]
    return found


# ---------------------------------------------------------------- DUC


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("directions", ["both", "forward", "backward"])
def test_duc_is_the_slow_loop(directions: str, count: int, rows: int) -> None:
    method = make(count, directions=directions, tau=1.7, duc_weight=0.6)
    generator = np.random.default_rng(rows)
    method.effective_MD.copy_(torch.tensor(generator.random((count, 6)) < 0.5))
    features = draw(count, rows)
    target = torch.tensor(generator.integers(0, 3, rows))
    outputs = method(features)
    found_B = method.loss(outputs, target).detach()
    method.effective_MD.fill_(False)
    without_B = method.loss(outputs, target).detach()
    method.effective_MD.copy_(torch.tensor(np.random.default_rng(rows).random((count, 6)) < 0.5))
    effective = method.effective_MD.numpy()
    expected = np.zeros(rows)
    for t, u in itertools.permutations(range(count), 2):
        if directions == "both" or (t < u) == (directions == "forward"):
            chosen = effective[t] & ~effective[u]
            expected += slow_contrast(
                features[f"m{u}"].numpy(), features[f"m{t}"].numpy(), chosen, 1.7
            )
    np.testing.assert_allclose((found_B - without_B).numpy(), 0.6 * expected, rtol=1e-6, atol=1e-7)
    assert (rows == 1) == (not expected.any())


def test_pairs_are_teacher_and_student() -> None:
    assert pairs(2, "both") == [(0, 1), (1, 0)]
    assert pairs(3, "forward") == [(0, 1), (0, 2), (1, 2)]
    assert pairs(3, "backward") == [(1, 0), (2, 0), (2, 1)]


def test_no_dimension_gives_zero_loss_and_gradient() -> None:
    features = draw(2, 5)
    student = features["m0"].requires_grad_()
    loss_B = contrast(student, features["m1"], torch.zeros(6, dtype=torch.bool), torch.tensor(10.0))
    assert torch.equal(loss_B, torch.zeros(5, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss_B.sum(), student)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_gradients_of_the_student() -> None:
    features = draw(2, 5)
    chosen = torch.tensor([True, False, True, True, False, False])
    tau = torch.tensor(2.0, dtype=torch.float64)
    student, teacher = features["m0"].requires_grad_(), features["m1"]
    assert torch.autograd.gradcheck(lambda x: contrast(x, teacher, chosen, tau), student)
    loss = contrast(student, teacher.requires_grad_(), chosen, tau).sum()
    moved, unmoved = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    assert unmoved is None
    assert moved is not None
    assert torch.equal((moved != 0).any(0), chosen)


def test_the_teacher_learns_nothing_from_its_student() -> None:
    """In the whole loss, λ moves the gradient of the student and not that of the teacher."""
    target = torch.tensor([0, 1, 2, 1])
    found = []
    for weight in (0.0, 3.0):
        method = make(directions="forward", separate=False, warmup=0, duc_weight=weight)
        features = {name: x.requires_grad_() for name, x in draw(2, 4).items()}
        loss = method.loss(method(features), target).sum()
        found.append(torch.autograd.grad(loss, list(features.values())))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])


def test_duc_on_all_dimensions_waits_for_the_warmup() -> None:
    method = make(separate=False, warmup=2)
    assert not method.dimensions(0, 1).any()
    method.epoch.fill_(2)
    assert method.dimensions(0, 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_features_and_odd_batches_are_finite(dtype: torch.dtype) -> None:
    method = make(3, tau=0.1).to(dtype)
    method.effective_MD[0, :3] = True
    method.effective_MD[1, 2:] = True
    for rows in (1, 4):
        features = {name: (1e4 * x).to(dtype).requires_grad_() for name, x in draw(3, rows).items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs = method(features)
            loss_B = method.loss(outputs, torch.zeros(rows, dtype=torch.int64))
        assert loss_B.dtype == torch.float32
        assert loss_B.isfinite().all()
        gradients = torch.autograd.grad(loss_B.sum(), list(features.values()))
        assert all(g.isfinite().all() for g in gradients)
        assert method.scores(outputs).isfinite().all()


# ---------------------------------------------------------------- dimension selection


def select(
    method: Dimml, features: Mapping[str, Tensor], target: Tensor, size: int
) -> NDArray[np.bool_]:
    """Run the passes before the epoch of the warm-up, in chunks of this size."""
    method.enter(method.stages()[0])
    for one in method.passes(method.warmup):
        state = one.start()
        for rows in torch.arange(len(target)).split(size):
            state = one.step(state, {m: x[rows] for m, x in features.items()}, target[rows])
        for name, value in one.finish(state).items():
            getattr(method, name).copy_(value)
    return method.effective_MD.numpy()


@pytest.mark.parametrize("size", [1, 7, 40])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("step", [None, 1.0], ids=["real", "ties"])
def test_selection_is_the_slow_loop(step: float | None, count: int, size: int) -> None:
    target = torch.tensor(np.random.default_rng(3).integers(0, 4, 40))
    features = draw(count, 40, width=9)
    for i, x in enumerate(features.values()):
        x[:, i : i + 4] += target[:, None]
        x[:, 8] = 2.5  # a dead dimension decides for class 0
    if step is not None:
        features = {m: (x / step).round() for m, x in features.items()}
    method = make(count, classes=5, width=9)  # class 4 has no examples
    found = select(method, features, target, size)
    for row, x in zip(found, features.values(), strict=True):
        expected = slow_effective(x.numpy(), target.numpy(), 5)
        assert 0 < expected.sum() < 9
        assert np.array_equal(row, expected)


def test_equally_near_means_decide_for_the_first() -> None:
    means_CD = torch.tensor([[1.0], [-1.0], [1.0]])
    features_BD = torch.tensor([[0.0], [0.0], [2.0], [2.0]])
    target_B = torch.tensor([0, 1, 2, 0])
    each = [int(count_correct(features_BD[[i]], means_CD, target_B[[i]]).item()) for i in range(4)]
    assert each == [1, 0, 0, 1]
    assert count_correct(features_BD, means_CD, target_B).tolist() == [2]


def test_effective_is_strictly_above_the_mean() -> None:
    correct_MD = torch.tensor([[3, 3, 3], [1, 2, 3], [0, 0, 1]])
    expected = [[False] * 3, [False, False, True], [False, False, True]]
    assert above_mean(correct_MD).tolist() == expected
    third = 2**40 + 1  # floats of 32 bits would call it equal to the mean
    assert above_mean(torch.tensor([[third, third - 1, third - 1]])).tolist() == [
        [True, False, False]
    ]


def test_examples_of_one_class_choose_nothing() -> None:
    """Every dimension is right about every example, so none is above the mean."""
    method = make()
    assert not select(method, draw(2, 10), torch.ones(10, dtype=torch.int64), 4).any()


@pytest.mark.parametrize("stack", ["always", "never"])
def test_dimensions_of_projections_are_selected_in_bfloat16(stack: str) -> None:
    replicates = replicates_of(
        [{"warmup": 1, "head_epochs": 1, "project": 5}], epochs=2, precision="bf16", stack=stack
    )
    for end in train(replicates, DATA, keep_weights=True).values():
        assert state_of(end)["method.effective_MD"].any()


def test_passes_come_once_and_only_if_asked_for() -> None:
    method = make(warmup=3)
    assert method.passes(3) == ()  # not in a stage
    method.enter(method.stages()[0])
    assert [len(method.passes(epoch)) for epoch in range(5)] == [0, 0, 0, 2, 0]
    method.enter(method.stages()[1])
    assert method.passes(3) == ()
    other = make(warmup=3, separate=False)
    other.enter(other.stages()[0])
    assert other.passes(3) == ()


# ---------------------------------------------------------------- predictions


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_weighting_is_the_slow_loop(count: int, temperature: float) -> None:
    logits = np.random.default_rng(5).normal(scale=3, size=(count, 6, 4))
    found = weighted(torch.tensor(logits), torch.tensor(temperature, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), slow_weighted(list(logits), temperature), rtol=1e-12)


def test_predictions_of_each_stage_and_of_the_finished_model() -> None:
    method = make(3, temperature=0.5)
    outputs = method(draw(3, 5))
    own = [z.detach().numpy() for z in outputs.own_MBC]
    assert outputs.head_BC is not None
    every = [*own, outputs.head_BC.detach().numpy()]
    found = {"": method.scores(outputs).detach()}
    for stage in method.stages():
        method.enter(stage)
        found[stage.name] = method.scores(outputs).detach()
    for name, logits in {"": every, "detached": own, "head": every}.items():
        np.testing.assert_allclose(found[name].numpy(), slow_weighted(logits, 0.5), rtol=1e-12)


def test_reports_are_the_classifiers_alone() -> None:
    method = make(2)
    outputs = method(draw(2, 5))
    reports = method.reports(outputs)
    assert list(reports) == ["m0", "m1", "head"]
    assert outputs.head_BC is not None
    expected = [*outputs.own_MBC, outputs.head_BC]
    for report, logits in zip(reports.values(), expected, strict=True):
        torch.testing.assert_close(report.exp(), logits.softmax(-1))
    alone = make(2, head="none")
    assert list(alone.reports(alone(draw(2, 5)))) == ["m0", "m1"]
    assert len(alone.stages()) == 1


def test_a_modality_called_head_is_reported_as_well() -> None:
    method = Dimml({"head": 2, "face": 2}, 3)
    outputs = method({"head": torch.randn(4, 2), "face": torch.randn(4, 2)})
    reports = method.reports(outputs)
    assert list(reports) == ["head", "face", "fusion head"]
    torch.testing.assert_close(reports["head"], outputs.own_MBC[0].log_softmax(-1))


def test_unequal_widths_need_a_projection() -> None:
    with pytest.raises(
        InputError, match=r"equal width, because DUC pairs.* got a: 3, b: 5; set pro"
    ):
        Dimml({"a": 3, "b": 5}, 2)
    method = Dimml({"a": 3, "b": 5}, 2, project=4)
    outputs = method({"a": torch.randn(6, 3), "b": torch.randn(6, 5)})
    assert outputs.features_MBD.shape == (2, 6, 4)


@pytest.mark.parametrize("head", ["concat", "sum", "film", "gated"])
def test_a_head_begins_with_zero_biases_and_leaves_the_features_alone(head: str) -> None:
    method = make(3, head=head)
    biases = [x for name, x in method.head.named_parameters() if name.endswith("bias")]  # type: ignore[union-attr]
    assert biases
    assert not any(x.any() for x in biases)
    method.enter(method.stages()[1])
    features = {name: x.requires_grad_() for name, x in draw(3, 4).items()}
    method.loss(method(features), torch.tensor([0, 1, 2, 0])).sum().backward()
    assert all(x.grad is None for x in features.values())
    moved = {name for name, x in method.named_parameters() if x.grad is not None}
    assert moved == {name for name, _ in method.named_parameters() if name.startswith("head.")}


# ---------------------------------------------------------------- training


def trained(replicates: Sequence[Replicate]) -> dict[str, dict[str, Tensor]]:
    """Weights by replicate."""
    return {key: state_of(end) for key, end in train(replicates, DATA, keep_weights=True).items()}


def state_of(end: Finished) -> dict[str, Tensor]:
    assert end.weights is not None
    return unpack_weights(end.weights)[0].state_dict()


def replicates_of(
    configurations: Sequence[Mapping[str, Any]], seeds: Sequence[int] = (0, 1), **training: Any
) -> tuple[Replicate, ...]:
    settings = {"epochs": 4, "batch_size": 16, "select": "last", "encoder": NORMED, **training}
    return make_replicates("dimml", configurations, seeds, data=DATA, **settings)


OFF = {"shared_weight": 0.0, "duc_weight": 0.0}


def lone(replicate: Replicate, modality: str, classifier: torch.nn.Module) -> Model:
    """A `base` model of the same seed, whose classifier begins as this one."""
    params = {**defaults("base"), "modality": modality}
    alone = replace(replicate, method="base", params=params)
    model = build_model(model_spec(alone, DATA), alone.seed)
    model.method.head[0].load_state_dict(classifier.state_dict())  # type: ignore[index, union-attr]
    return model


def train_by_hand(model: Model) -> Model:
    inputs, labels = tensors(DATA.train)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for rows in torch.arange(96).repeat(3).split(16):
        optimizer.zero_grad()
        model.loss(model({m: x[rows] for m, x in inputs.items()}), labels[rows]).mean().backward()
        optimizer.step()
    return model


def test_without_interaction_each_encoder_is_trained_as_if_alone() -> None:
    """Bit by bit the weights of `base` for every modality, though DUC and w are computed."""
    (replicate,) = replicates_of([{**OFF, "separate": False, "warmup": 0}], [3])
    model = build_model(model_spec(replicate, DATA), replicate.seed)
    method: Any = model.method
    pairs_of = zip(DATA.inputs, method.classifiers, strict=True)
    alone = [lone(replicate, modality, classifier) for modality, classifier in pairs_of]
    train_by_hand(model)
    for i, one in enumerate(alone):
        expected = train_by_hand(one).state_dict()
        found = model.encoders[i].state_dict()
        for name, value in found.items():
            assert torch.equal(value, expected[f"encoders.0.{name}"]), name
        head = one.method.head[0]  # type: ignore[index, union-attr]
        assert torch.equal(method.classifiers[i].weight, head.weight)


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["always", "never"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_trainer_trains_the_first_encoder_as_it_trains_base(optimizer: str, stack: str) -> None:
    """Not the others: their classifiers begin elsewhere. Vectorised updates differ by rounding."""
    settings: dict[str, Any] = {
        "data": DATA, "encoder": NORMED, "epochs": 3, "batch_size": 16, "optimizer": optimizer,
        "weight_decay": 1e-3, "learning_rate": 0.03, "select": "last", "stack": stack,
    }  # fmt: skip
    off = {**OFF, "warmup": 1, "head_epochs": 2}
    both = trained(make_replicates("dimml", [off], **settings))
    alone = trained(make_replicates("base", [{"modality": "m0"}], **settings))
    for seed in (0, 1):
        found, expected = both[f"dimml-0-{seed}"], alone[f"base-0-{seed}"]
        names = [name for name in expected if name.startswith("encoders.0.")]
        assert names
        for name in names:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_head_changes_nothing_else() -> None:
    """Neither weights nor statistics of batch norm, with weight decay."""
    lengths = [{"warmup": 2, "head_epochs": n} for n in (1, 3)]
    recipe: dict[str, Any] = {"weight_decay": 0.1, "decay": "all", "learning_rate": 0.03}
    short, long = (trained(replicates_of([one], **recipe)) for one in lengths)
    without = trained(replicates_of([{"warmup": 2, "head": "none"}], **recipe))
    for key, state in long.items():
        for name, value in state.items():
            same = torch.equal(value, short[key][name])
            assert same != name.startswith("method.head."), name
            if same:
                torch.testing.assert_close(value, without[key][name], rtol=1e-5, atol=1e-6)


UNEQUAL = [
    {"warmup": 1, "head_epochs": 2, "shared_weight": w, "duc_weight": duc, "tau": tau,
     "temperature": t}
    for w, duc, tau, t in ((1.0, 1.0, 10.0, 1.0), (0.0, 2.0, 3.0, 0.2), (0.5, 0.0, 1.0, 4.0))
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("head", ["concat", "gated"])
def test_stacked_is_one_by_one(head: str) -> None:
    configurations = [{**one, "head": head} for one in UNEQUAL]
    assert is_stacked(replicates_of(configurations), DATA)
    stacked = train(replicates_of(configurations), DATA, keep_weights=True)
    apart = train(replicates_of(configurations, stack="never"), DATA, keep_weights=True)
    for key, end in stacked.items():
        assert list(apart[key].history["train/loss"]) == pytest.approx(
            list(end.history["train/loss"]), rel=1e-5
        )
        other = state_of(apart[key])
        for name, value in state_of(end).items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


def by_hand(replicate: Replicate) -> tuple[Model, list[float], list[float]]:
    """Both stages with torch.optim and the slow definitions: model, losses, validation errors."""
    params, count = replicate.params, len(DATA.inputs)
    model = build_model(model_spec(replicate, DATA), replicate.seed)
    method: Any = model.method
    inputs, labels = tensors(DATA.train)
    val_inputs, val_labels = tensors(DATA.val)
    effective = np.zeros((count, 7), dtype=bool)

    def detached(features: Mapping[str, Tensor], target: Tensor) -> Tensor:
        f = list(features.values())
        loss = torch.zeros(())
        for own, x in zip(method.classifiers, f, strict=True):
            loss = loss + F.cross_entropy(own(x), target)
            loss = loss + params["shared_weight"] * F.cross_entropy(method.shared(x), target)
        for t, u in itertools.permutations(range(count), 2):
            chosen = torch.tensor(effective[t] & ~effective[u])
            if chosen.any():
                logits = f[u][:, chosen] @ f[t][:, chosen].detach().T / params["tau"]
                partner = torch.arange(len(target))
                loss = loss + params["duc_weight"] * F.cross_entropy(logits, partner)
        return loss

    def head(features: Mapping[str, Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(method.head.out(torch.cat(list(features.values()), 1)), target)

    losses, errors = [], []
    for stage, first, last in ((0, 0, 4), (1, 4, 6)):
        used = model.parameters() if stage == 0 else method.head.parameters()
        decay = replicate.training["weight_decay"]
        optimizer = torch.optim.SGD(list(used), lr=0.05, momentum=0.9, weight_decay=decay)
        for epoch in range(first, last):
            if epoch == params["warmup"]:
                model.eval()
                with torch.no_grad():
                    found = [x.double().numpy() for x in model.features(inputs).values()]
                effective = np.array([slow_effective(x, labels.numpy(), 3) for x in found])
            model.train()
            if stage == 1:
                model.encoders.eval()
            seed = derive_seed(replicate.seed, "batches", epoch)
            order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
            batches = []
            for rows in order.split(16):
                features = model.features({m: x[rows] for m, x in inputs.items()})
                loss = (detached, head)[stage](features, labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                batches.append(loss.item())
            losses.append(float(np.mean(batches)))
            model.eval()
            with torch.no_grad():
                features = model.features(val_inputs)
                parts = list(features.values())
                logits = [own(x) for own, x in zip(method.classifiers, parts, strict=True)]
                if stage == 1:
                    logits.append(method.head.out(torch.cat(parts, 1)))
            scores = slow_weighted([z.double().numpy() for z in logits], params["temperature"])
            errors.append(100 * float((scores.argmax(1) != val_labels.numpy()).mean()))
    method.effective_MD.copy_(torch.tensor(effective))
    return model, losses, errors


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["always", "never"])
def test_both_stages_are_those_of_a_loop_by_hand(stack: str) -> None:
    configurations = [
        {"warmup": 2, "head_epochs": 2, "tau": 2.0, "temperature": 0.3, "shared_weight": 0.7},
        {"warmup": 2, "head_epochs": 2, "tau": 5.0, "duc_weight": 0.4},
    ]
    replicates = replicates_of(
        configurations, stack=stack, optimizer="sgd", learning_rate=0.05, weight_decay=0.03,
        decay="all",
    )  # fmt: skip
    ends = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        end = ends[replicate.key]
        model, losses, errors = by_hand(replicate)
        assert end.history["epoch"] == [1, 2, 3, 4, 5, 6]
        assert list(end.history["train/loss"]) == pytest.approx(losses, rel=1e-4)
        assert list(end.history["val/error"]) == pytest.approx(errors)
        found = state_of(end)
        assert 0 < found["method.effective_MD"].sum() < found["method.effective_MD"].numel()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=name)
        assert end.weights is not None
        assert end.metrics["test/error"] == pytest.approx(
            error_of(unpack_weights(end.weights)[0], DATA.test)
        )
