"""Late fusion: each modality's classifier is the one that would have been trained alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modmix.base.errors import InputError
from modmix.base.messages import Replicate
from modmix.methods.model import Model, build_model, derive_seed, model_spec, unpack_weights
from plainloop import error_of, rate_at, tensors, train_plainly
from toypack import defaults, is_stacked, make_data, make_replicates, train

DATA = make_data(rows=(128, 150, 90), noise=2.5)
CLIPPED: dict[str, Any] = {
    "data": DATA, "batch_size": 16, "learning_rate": 0.03, "clip_norm": 0.2,
    "encoder": {"name": "mlp", "hidden": [6], "batch_norm": True},
}  # fmt: skip


def initial(replicate: Replicate) -> Model:
    return build_model(model_spec(replicate, DATA), replicate.seed)


def lone(replicate: Replicate, modality: str) -> tuple[Replicate, Model]:
    """A unimodal model with the weights that the late model's classifier begins with."""
    late = initial(replicate)
    i = late.modalities.index(modality)
    alone = replace(replicate, method="base", params={**defaults("base"), "modality": modality})
    model = initial(alone)
    model.encoders[0].load_state_dict(late.encoders[i].state_dict())
    head = late.method.heads[i]  # type: ignore[index, union-attr]
    model.method.head.load_state_dict(head.state_dict())  # type: ignore[union-attr, operator]
    return alone, model


def part_of(state: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """A classifier's weights under the names of the lone model."""
    names = {f"encoders.{i}.": "encoders.0.", f"method.heads.{i}.": "method.head."}
    return {
        new + name.removeprefix(old): value
        for name, value in state.items()
        for old, new in names.items()
        if name.startswith(old)
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("combine", ["mean", "learned"])
@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("stack", ["always", "never"])
def test_every_classifier_is_that_of_a_lone_model(
    stack: str, patience: int | None, combine: str
) -> None:
    configurations = [{"combine": combine}]
    replicates = make_replicates(
        "late", configurations, epochs=8, patience=patience, stack=stack, **CLIPPED
    )
    assert is_stacked(replicates, DATA) == (stack == "always")
    ends = train(replicates, DATA, keep_weights=True)
    epochs = set()
    for replicate in replicates:
        weights = ends[replicate.key].weights
        assert weights is not None
        state = unpack_weights(weights)[0].state_dict()
        for i, modality in enumerate(DATA.inputs):
            plain = train_plainly(*_first(lone(replicate, modality)))
            epochs.add(plain.best_epoch)
            expected = {n: x for n, x in plain.best_state.items() if not n.endswith("epoch")}
            assert_close(part_of(state, i), expected)
    assert len(epochs) > 2  # they have best epochs of their own


def _first(pair: tuple[Replicate, Model]) -> tuple[Replicate, Any, Model]:
    return pair[0], DATA, pair[1]


def test_the_last_weights_count_where_the_last_epoch_does() -> None:
    replicates = make_replicates("late", epochs=3, select="last", **CLIPPED)
    ends = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        end = ends[replicate.key]
        assert end.weights is not None
        assert end.best_epoch == 3
        model, _ = unpack_weights(end.weights)
        for i, modality in enumerate(DATA.inputs):
            plain = train_plainly(*_first(lone(replicate, modality)))
            assert plain.model is not None
            last = plain.model.state_dict()
            assert_close(part_of(model.state_dict(), i), last)
        assert end.metrics["val/error"] == end.history["val/error"][-1]
        assert end.metrics["test/error"] == pytest.approx(error_of(model, DATA.test))


@pytest.mark.parametrize("combine", ["mean", "learned"])
def test_metrics_are_those_of_the_combined_best_weights(combine: str) -> None:
    replicates = make_replicates("late", [{"combine": combine}], epochs=8, **CLIPPED)
    for end in train(replicates, DATA, keep_weights=True).values():
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        for name, split in (("val", DATA.val), ("test", DATA.test)):
            inputs, labels = tensors(split)
            with torch.no_grad():
                outputs = model(inputs)
            p = outputs.log_p_MBC.double().exp().mean(0)
            if combine == "learned":
                p = outputs.logits_BC.double().softmax(-1)
            wrong = (p.argmax(-1) != labels).double().mean().item()
            assert end.metrics[f"{name}/error"] == pytest.approx(100 * wrong)
            nll = -p[torch.arange(len(labels)), labels].log().mean().item()
            assert end.metrics[f"{name}/nll"] == pytest.approx(nll, rel=1e-4)


def test_the_combination_is_trained_on_the_finished_classifiers() -> None:
    """Its second stage by hand: cross-entropy of a linear layer on fixed log-probabilities."""
    replicates = make_replicates(
        "late", [{"combine": "learned"}], seeds=[1, 2], epochs=4, **CLIPPED
    )
    ends = train(replicates, DATA, keep_weights=True)
    for replicate in replicates:
        end = ends[replicate.key]
        assert end.weights is not None
        model, _ = unpack_weights(end.weights)
        inputs, labels = tensors(DATA.train)
        val_inputs, val_labels = tensors(DATA.val)
        with torch.no_grad():
            log_p = model(inputs).log_p_MBC.movedim(0, 1).flatten(1)
            val_log_p = model(val_inputs).log_p_MBC.movedim(0, 1).flatten(1)
        layer = torch.nn.Linear(9, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(3).repeat(1, 3) / 3)
            layer.bias.zero_()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
        losses, errors, states = [], [], []
        for epoch in range(4):
            assert rate_at(replicate.training, epoch) == 0.03
            seed = derive_seed(replicate.seed, "batches", 4 + epoch)
            order = torch.randperm(128, generator=torch.Generator().manual_seed(seed))
            batch = []
            for rows in order.split(16):
                loss = F.cross_entropy(layer(log_p[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.2)
                optimizer.step()
                batch.append(loss.item())
            losses.append(np.mean(batch))
            wrong = (layer(val_log_p).argmax(-1) != val_labels).double().mean().item()
            errors.append(100 * wrong)
            states.append({n: x.clone() for n, x in layer.state_dict().items()})
        assert list(end.history["train/loss"][4:]) == pytest.approx(losses, rel=1e-4)
        assert list(end.history["val/error"][4:]) == pytest.approx(errors)
        best = int(np.argmin(errors))
        assert end.best_epoch == 4 + best + 1
        found = model.method.combine.state_dict()  # type: ignore[union-attr, operator]
        assert_close(found, states[best])


def test_patience_needs_best_epochs() -> None:
    replicates = make_replicates("late", data=DATA, patience=2, select="last")
    with pytest.raises(InputError, match="needs select: best, got select: last"):
        train(replicates, DATA)


def test_the_combination_waits_untouched_for_its_stage() -> None:
    """Without gradients, weight decay alone would shrink it before it is trained."""
    (replicate, *_) = make_replicates("late", [{"combine": "learned"}], data=DATA)
    model = initial(replicate)
    first, second = model.method.stages()
    names = [name for name, _ in model.named_parameters()]
    waiting = {name for name in names if name.startswith(first.frozen)}
    assert waiting == {"method.combine.weight", "method.combine.bias"}
    assert {name for name in names if not name.startswith(second.frozen)} == waiting
