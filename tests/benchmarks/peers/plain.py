"""One model trained by ordinary PyTorch, as fast as that goes.

Batches are gathered once an epoch, nothing is read back inside one, evaluation runs in inference
mode, the optimizer is fused. Of modmix only what makes the models the same is used: how a model is
built and initialised, the order of the batches, and the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from modmix.methods.model import InputSpec, Model, ModelSpec, build_model
from modmix.tasks.base import load_task
from modmix.tasks.data import Data
from modmix.training.batches import Order

IMPLEMENTATIONS: Mapping[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "one by one": {"foreach": False},
}


@dataclass
class Part:
    """One split as tensors."""

    inputs: dict[str, Tensor]
    labels: Tensor


class Examples:
    """A task's splits as tensors."""

    def __init__(self, data: Data) -> None:
        self.shapes, self.classes = data.shapes, data.classes
        self.train, self.val, self.test = (
            Part({n: torch.tensor(x) for n, x in s.inputs.items()}, torch.tensor(s.labels))
            for s in (data.train, data.val, data.test)
        )


Space = dict[str, tuple[float, float, bool]]  # hyperparameter -> low, high, logarithmic


def read(path: Path) -> tuple[list[dict[str, Any]], Examples, Space | None]:
    """The models to train, their data, and what a search varies (None: a fixed grid).

    The models of a search are one configuration, a model per seed.
    """
    given = json.loads(path.read_text())
    models: list[dict[str, Any]] = given["models"]
    examples = Examples(load_task(given["task"]["name"], given["task"]["options"]))
    space = given.get("space")
    return models, examples, None if space is None else {n: tuple(v) for n, v in space.items()}


def configuration_of(
    models: list[dict[str, Any]], values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The models of a proposed configuration, one per seed."""
    configuration = []
    for model in models:
        training = {n: v for n, v in values.items() if n in model["training"]}
        params = {n: v for n, v in values.items() if n in model["params"]}
        assert len(training) + len(params) == len(values), values
        configuration.append(
            {
                **model,
                "training": {**model["training"], **training},
                "params": {**model["params"], **params},
            }
        )
    return configuration


def mean_of(results: list[dict[str, Any]]) -> dict[str, float]:
    """The mean over a configuration's seeds so far."""
    return {name: fmean(float(one[name]) for one in results) for name in results[0]}


def train(
    spec: Mapping[str, Any],
    examples: Examples,
    *,
    implementation: str = "fused",
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train one model; validation error after every epoch, test error once after the last.

    ``report`` is called with the epoch (from 1) and its numbers. Returns the last training loss
    and the errors (%) of the last epoch's weights, which count in the studies compared
    (`select: last`).
    """
    t = spec["training"]
    model = build_model(
        ModelSpec(
            method=spec["method"],
            params=spec["params"],
            encoders=spec["encoders"],
            inputs={name: InputSpec(shape=shape) for name, shape in examples.shapes.items()},
            classes=examples.classes,
        ),
        spec["seed"],
    )
    parameters = list(model.parameters())
    optimizer = make_optimizer(model, t, implementation)
    data = examples.train
    order = Order(len(data.labels), t["batch_size"], torch.device("cpu"))
    numbers: dict[str, float] = {}
    for epoch in range(t["epochs"]):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(t, epoch)
        rows = order.epoch([spec["seed"]], epoch)[0][: order.steps * order.batch]
        batches = [
            torch.split(data.inputs[name].index_select(0, rows), order.batch)
            for name in model.inputs
        ]
        targets = torch.split(data.labels.index_select(0, rows), order.batch)
        total = torch.zeros(())
        for step, target in enumerate(targets):
            inputs = dict(zip(model.inputs, (batch[step] for batch in batches)))
            optimizer.zero_grad(set_to_none=True)
            loss = model.loss(model(inputs), target).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            if t["clip_norm"] is not None:
                nn.utils.clip_grad_norm_(parameters, t["clip_norm"], foreach=True)
            optimizer.step()
            total += loss.detach()
        error = error_of(model, examples.val)
        numbers = {"train/loss": total.item() / order.steps, "val/error": error}
        if report is not None:
            report(epoch + 1, numbers)
    return {**numbers, "test/error": error_of(model, examples.test)}


def error_of(model: Model, part: Part) -> float:
    """Percentage of wrong predictions."""
    model.eval()
    with torch.inference_mode():
        predicted = model.scores(model(part.inputs)).argmax(-1)
        wrong = (predicted != part.labels).sum().item()
    model.train()
    return 100 * wrong / len(part.labels)


def make_optimizer(model: Model, t: Mapping[str, Any], implementation: str) -> Any:
    """The optimizer of torch.optim that the settings name."""
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "weight_decay": 0.0}]
    if t["weight_decay"]:
        everything = t["decay"] == "all"
        decayed = [p for p in model.parameters() if everything or p.dim() >= 2]
        others = [p for p in model.parameters() if not (everything or p.dim() >= 2)]
        groups = [
            {"params": decayed, "weight_decay": t["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
    how: dict[str, Any] = {"lr": t["learning_rate"], **IMPLEMENTATIONS[implementation]}
    if t["optimizer"] == "sgd":
        return torch.optim.SGD(groups, momentum=t["momentum"], nesterov=t["nesterov"], **how)
    kind = torch.optim.Adam if t["optimizer"] == "adam" else torch.optim.AdamW
    return kind(groups, betas=tuple(t["betas"]), eps=t["eps"], **how)


def rate_at(t: Mapping[str, Any], epoch: int) -> float:
    """The learning rate of an epoch (from 0)."""
    if t["schedule"] == "exponential":
        return float(t["learning_rate"] * t["decay_rate"] ** epoch)
    assert t["schedule"] == "constant", t["schedule"]
    return float(t["learning_rate"])
