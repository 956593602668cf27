"""The trainer's reference: one model, ordinary modules, torch.optim, and no cleverness."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modmix.base.messages import Replicate
from modmix.methods.base import modulates
from modmix.methods.draws import Draws
from modmix.methods.model import Model, build_model, derive_seed, model_spec
from modmix.tasks.data import Data, Split


@dataclass
class Plain:
    """What a run gives: a line per evaluation, and the weights of the best one."""

    history: dict[str, list[float]] = field(default_factory=dict)
    best_epoch: float = 0.0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    # Of parts that train as if alone: best validation error, and its epoch.
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)
    model: Model | None = None


def tensors(split: Split) -> tuple[dict[str, Tensor], Tensor]:
    return {n: torch.tensor(x) for n, x in split.inputs.items()}, torch.tensor(split.labels)


def error_of(model: Model, split: Split) -> float:
    inputs, labels = tensors(split)
    model.eval()
    with torch.no_grad():
        predicted = model.scores(model(inputs)).argmax(-1)
    model.train()
    return 100 * (predicted != labels).double().mean().item()


def make_optimizer(model: Model, t: Any) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() >= 2 or t["decay"] == "all"]
    others = [p for p in model.parameters() if not (p.dim() >= 2 or t["decay"] == "all")]
    groups = [
        {"params": decayed, "weight_decay": t["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    if t["optimizer"] == "sgd":
        return torch.optim.SGD(
            groups, lr=t["learning_rate"], momentum=t["momentum"], nesterov=t["nesterov"]
        )
    kind = torch.optim.Adam if t["optimizer"] == "adam" else torch.optim.AdamW
    return kind(groups, lr=t["learning_rate"], betas=tuple(t["betas"]), eps=t["eps"])


def rate_at(t: Any, epoch: int, step: int = 0, steps: int = 1) -> float:
    done = epoch * steps + step
    factors = {
        "constant": 1.0,
        "exponential": t["decay_rate"] ** epoch,
        "step": t["decay_rate"] ** sum(round(m * steps) <= done for m in t["milestones"]),
        "cosine": (1 + math.cos(math.pi * epoch / t["epochs"])) / 2,
    }
    return float(t["learning_rate"] * factors[t["schedule"]])


def set_gradients(model: Model, outputs: Any, target: Tensor) -> Tensor:
    """Set every parameter's gradient, modulated by the method if it does; returns the loss."""
    method = model.method
    losses = {name: x.mean() for name, x in method.losses(outputs, target).items()}
    total = torch.stack(list(losses.values())).sum()
    if not modulates(method):
        total.backward()
        return total
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {}
    for name, loss in losses.items():
        found = torch.autograd.grad(
            loss, list(trained.values()), retain_graph=True, allow_unused=True
        )
        pairs = zip(trained.items(), found, strict=True)
        gradients[name] = {n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs}
    with torch.no_grad():
        changed = method.modulate(outputs, target, gradients)
    for name, parameter in trained.items():
        summed = torch.stack([g[name] for g in gradients.values()]).sum(0)
        parameter.grad = changed.get(name, summed)
    return total


def independent_parts(model: Model) -> list[list[nn.Parameter]]:
    """Parameters of each part that trains as if alone; all of them, for most methods."""
    parts = [
        [p for name, p in model.named_parameters() if name.startswith(prefixes)]
        for prefixes in model.parts().values()
    ]
    return parts or [list(model.parameters())]


def part_errors(model: Model, split: Split) -> dict[str, float]:
    """Validation error of every part's own classifier."""
    inputs, labels = tensors(split)
    model.eval()
    with torch.no_grad():
        found = model.method.part_log_probabilities(model(inputs)) if model.parts() else {}
    model.train()
    return {n: 100 * (x.argmax(-1) != labels).double().mean().item() for n, x in found.items()}


@torch.no_grad()
def make_passes(model: Model, data: Data, epoch: int) -> None:
    """The method's passes before an epoch, each split in one chunk."""
    model.eval()
    for one in model.method.passes(epoch):
        inputs, labels = tensors(data.splits[one.split])
        state = one.step(one.start(), model.features(inputs), labels)
        for name, value in one.finish(state).items():
            model.method.get_buffer(name).copy_(value)
    model.train()


def set_draws(model: Model, seed: int) -> None:
    """The seed of a step's random numbers inside the model."""
    for module in model.modules():
        if isinstance(module, Draws):
            module.draw.fill_(seed)
            module.calls = 0


def train_plainly(replicate: Replicate, data: Data, model: Model | None = None) -> Plain:
    """Train one replicate; early stopping and best-epoch weights by validation error.

    ``model``: to begin with, instead of the one that the replicate's seed gives.
    """
    t, r = replicate.training, replicate
    if model is None:
        model = build_model(model_spec(r, data), r.seed)
    model.method.remember(len(data.train.labels))
    optimizer = make_optimizer(model, t)
    inputs, labels = tensors(data.train)
    batch = min(t["batch_size"], len(labels))
    steps = len(labels) // batch
    ends = [round((i + 1) * steps / t["evaluations_per_epoch"]) for i in range(steps)]
    run = Plain(model=model)
    best, waited = math.inf, 0
    for epoch in range(t["epochs"]):
        generator = torch.Generator().manual_seed(derive_seed(r.seed, "batches", epoch))
        order = torch.randperm(len(labels), generator=generator)
        make_passes(model, data, epoch)
        losses: list[float] = []
        model.method.epoch.fill_(epoch)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(t, epoch, step, steps)
            rows = order[step * batch : (step + 1) * batch]
            if model.method.uses_index:
                model.method.index = rows
            optimizer.zero_grad()
            set_draws(model, derive_seed(r.seed, "draws", epoch) + step)
            outputs = model({name: x[rows] for name, x in inputs.items()})
            loss = set_gradients(model, outputs, labels[rows]).item()
            if t["clip_norm"] is not None:
                for part in independent_parts(model):
                    nn.utils.clip_grad_norm_(part, t["clip_norm"])
            optimizer.step()
            losses.append(loss)
            if step + 1 not in ends:
                continue
            value = error_of(model, data.val)
            line = {
                "epoch": epoch + (step + 1) / steps,
                "train/loss": sum(losses) / len(losses),
                "val/error": value,
                "lr": rate_at(t, epoch, step, steps),
            }
            for name, number in line.items():
                run.history.setdefault(name, []).append(number)
            waited += 1
            if value < best:
                best, waited = value, 0
                run.best_epoch = line["epoch"]
                if not model.parts():
                    run.best_state = {n: x.clone() for n, x in model.state_dict().items()}
            for part, error in part_errors(model, data.val).items():
                if error < run.parts.get(part, (math.inf, 0.0))[0]:
                    run.parts[part] = (error, line["epoch"])
                    for n, x in model.state_dict().items():
                        if n.startswith(model.parts()[part]):
                            run.best_state[n] = x.clone()
            if t["patience"] is not None and waited >= t["patience"]:
                return run
    return run
