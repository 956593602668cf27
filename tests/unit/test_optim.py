"""Every row is what torch.optim and clip_grad_norm_ make of that model alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modmix.base.settings import TRAINING, training_problem
from modmix.training.optimizers import Optimizer, schedule

SHAPES = [(4, 3), (4,), (2, 4), (2,)]
SIZES = [math.prod(shape) for shape in SHAPES]
EPOCHS, STEPS = 4, 5


def settings(**values: Any) -> dict[str, Any]:
    return {**{name: h.default for name, h in TRAINING.items()}, "epochs": EPOCHS, **values}


def gradients(model: int) -> Tensor:
    """One per step, of very different sizes, so that clipping acts on some."""
    generator = torch.Generator().manual_seed(model)
    sizes = torch.tensor([0.01, 1.0, 30.0, 0.3, 3.0]).repeat(EPOCHS).unsqueeze(1)
    return sizes * torch.randn(EPOCHS * STEPS, sum(SIZES), generator=generator)


def start(model: int) -> Tensor:
    return torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(100 + model))


def alone(training: dict[str, Any], model: int) -> Tensor:
    """The same steps by torch.optim, and by its schedulers, on ordinary parameters."""
    parts = start(model).split(SIZES)
    parameters = [nn.Parameter(p.view(s).clone()) for p, s in zip(parts, SHAPES, strict=True)]
    decays_all = training["decay"] == "all"
    decayed = [p for p in parameters if decays_all or p.dim() >= 2]
    others = [p for p in parameters if not (decays_all or p.dim() >= 2)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": training["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    rate = training["learning_rate"]
    optimizer: torch.optim.Optimizer
    if training["optimizer"] == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=rate, momentum=training["momentum"], nesterov=training["nesterov"]
        )
    else:
        kind = torch.optim.Adam if training["optimizer"] == "adam" else torch.optim.AdamW
        optimizer = kind(groups, lr=rate, betas=tuple(training["betas"]), eps=training["eps"])
    scheduler: Any = None
    match training["schedule"]:
        case "exponential":
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, training["decay_rate"])
        case "step":
            scheduler = torch.optim.lr_scheduler.MultiStepLR(
                optimizer, training["milestones"], training["decay_rate"]
            )
        case "cosine":
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for i, gradient in enumerate(gradients(model)):
        for p, g in zip(parameters, gradient.split(SIZES), strict=True):
            p.grad = g.view(p.shape).clone()
        if training["clip_norm"] is not None:
            nn.utils.clip_grad_norm_(parameters, training["clip_norm"])
        optimizer.step()
        if scheduler is not None and (i + 1) % STEPS == 0:
            scheduler.step()
    return nn.utils.parameters_to_vector(parameters).detach()


def together(training: list[dict[str, Any]]) -> Tensor:
    parameters = torch.stack([start(k) for k in range(len(training))])
    decays = torch.cat([torch.full((n,), float(len(s) > 1)) for s, n in zip(SHAPES, SIZES)])
    if training[0]["decay"] == "all":
        decays = torch.ones_like(decays)
    optimizer = Optimizer(training, parameters, decays)
    every = torch.stack([gradients(k) for k in range(len(training))], dim=1)
    for i, gradient in enumerate(every):
        if i % STEPS == 0:
            optimizer.start_epoch(i // STEPS)
        optimizer.step(parameters, gradient.clone())
    return parameters


CASES: list[dict[str, Any]] = [
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "nesterov": True, "weight_decay": 0.1},
    {"optimizer": "sgd", "clip_norm": 1.0, "weight_decay": 0.1, "decay": "all"},
    {"optimizer": "adam"},
    {"optimizer": "adam", "weight_decay": 0.1, "clip_norm": 0.5},
    {"optimizer": "adam", "betas": [0.5, 0.9], "eps": 0.1, "decay": "all", "weight_decay": 0.3},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.5, "clip_norm": 2.0, "decay": "all"},
]
SCHEDULES: list[dict[str, Any]] = [
    {},
    {"schedule": "exponential", "decay_rate": 0.5},
    {"schedule": "step", "decay_rate": 0.1, "milestones": [1, 3]},
    {"schedule": "cosine"},
]


@pytest.mark.parametrize("plan", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_rows_are_what_torch_computes(case: dict[str, Any], plan: dict[str, Any]) -> None:
    rates = [1e-3, 0.05, 0.01]
    training = [settings(**case, **plan, learning_rate=rate) for rate in rates]
    found = together(training)
    for k, own in enumerate(training):
        torch.testing.assert_close(found[k], alone(own, k), rtol=1e-5, atol=1e-6)


def test_stackable_settings_differ_between_rows() -> None:
    training = [
        settings(optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=None),
        settings(optimizer="sgd", momentum=0.9, weight_decay=0.2, clip_norm=0.5),
        settings(optimizer="sgd", momentum=0.5, weight_decay=0.0, clip_norm=5.0),
    ]
    found = together(training)
    for k, own in enumerate(training):
        torch.testing.assert_close(found[k], alone(own, k), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_spoils_its_own_row_only(kind: str, bad: float) -> None:
    training = [settings(optimizer=kind, clip_norm=1.0, weight_decay=0.1)] * 3
    good, mixed = (torch.stack([start(k) for k in range(3)]) for _ in range(2))
    one, other = (Optimizer(training, p, torch.ones(sum(SIZES))) for p in (good, mixed))
    for i in range(3):
        gradient = torch.stack([gradients(k)[i] for k in range(3)])
        one.step(good, gradient.clone())
        gradient[1, 2] = bad
        other.step(mixed, gradient)
    assert torch.equal(good[[0, 2]], mixed[[0, 2]])
    assert mixed[1].isnan().any()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_untrained_columns_stay(kind: str) -> None:
    parameters = torch.stack([start(0), start(1)])
    before = parameters.clone()
    trained = torch.ones(sum(SIZES))
    trained[:12] = 0
    training = [settings(optimizer=kind, weight_decay=0.1)] * 2
    optimizer = Optimizer(training, parameters, torch.ones(sum(SIZES)), trained)
    for i in range(3):
        optimizer.step(parameters, torch.stack([gradients(k)[i] for k in range(2)]))
    assert torch.equal(parameters[:, :12], before[:, :12])
    assert (parameters[:, 12:] != before[:, 12:]).all()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_selected_rows_go_on_as_before(kind: str) -> None:
    rates = [1e-3, 0.05, 0.01]
    training = [
        settings(optimizer=kind, learning_rate=r, weight_decay=r, clip_norm=10 * r) for r in rates
    ]
    whole = torch.stack([start(k) for k in range(3)])
    optimizer = Optimizer(training, whole, torch.ones(sum(SIZES)))
    few, smaller = whole, optimizer
    for i in range(6):
        gradient = torch.stack([gradients(k)[i] for k in range(3)])
        if i == 3:
            smaller = Optimizer(training, whole, torch.ones(sum(SIZES)))
            smaller.state = {n: v.clone() for n, v in optimizer.state.items()}
            smaller.steps = optimizer.steps
            smaller.select([2, 0])
            few = whole[[2, 0]]
        if i >= 3:
            smaller.step(few, gradient[[2, 0]].clone())
        optimizer.step(whole, gradient)
    torch.testing.assert_close(few, whole[[2, 0]], rtol=0, atol=0)
    assert smaller.rates == [0.01, 1e-3]


def test_schedules_by_hand() -> None:
    step = settings(schedule="step", decay_rate=0.1, milestones=[2, 4])
    assert [schedule(step, e, 6) for e in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = settings(schedule="cosine")
    assert [schedule(cosine, e, 4) for e in range(4)] == pytest.approx(
        [1, 0.853553, 0.5, 0.146447], rel=1e-5
    )
    assert schedule(settings(schedule="exponential", decay_rate=0.5), 3, 9) == 0.125
    assert schedule(settings(), 7, 9) == 1.0


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_milestones_within_an_epoch_are_at_the_nearest_step(kind: str) -> None:
    """Rates of every step as of torch's scheduler, which counts steps: 2, 8, 10, 13 and 13."""
    training = settings(
        optimizer=kind, schedule="step", decay_rate=0.5, milestones=[0.4, 1.55, 2, 2.55, 2.65]
    )
    parameter = nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=training["learning_rate"])
    scheduler = torch.optim.lr_scheduler.MultiStepLR(sgd, [2, 8, 10, 13, 13], 0.5)
    whole = torch.stack([start(0)])
    optimizer = Optimizer([training], whole, torch.ones(sum(SIZES)))
    for epoch in range(EPOCHS):
        optimizer.start_epoch(epoch, STEPS)
        for step in range(STEPS):
            optimizer.start_step(step)
            (wanted,) = scheduler.get_last_lr()
            assert optimizer.rates == pytest.approx([wanted])
            torch.testing.assert_close(optimizer.rate_K1, torch.tensor([[wanted]]))
            # As after a checkpoint in the middle of an epoch.
            resumed = Optimizer([training], whole, torch.ones(sum(SIZES)))
            resumed.start_epoch(epoch, STEPS)
            resumed.start_step(step)
            assert resumed.rates == optimizer.rates
            sgd.step()
            scheduler.step()


def test_a_step_may_be_set_again() -> None:
    """A group that did not fit into memory goes back to the last evaluation."""
    training = settings(schedule="step", decay_rate=0.5, milestones=[0.4])
    optimizer = Optimizer([training], torch.stack([start(0)]), torch.ones(sum(SIZES)))
    optimizer.start_epoch(0, STEPS)
    rates = []
    for step in (0, 1, 2, 3, 1, 2):
        optimizer.start_step(step)
        rates.append(optimizer.rates[0] / training["learning_rate"])
    assert rates == pytest.approx([1, 1, 0.5, 0.5, 1, 0.5])


@pytest.mark.parametrize(
    ("milestones", "problem"),
    [
        ([2, 1.5], "must be epochs above 0 in rising order, got [2, 1.5]"),
        ([1, 1], "must be epochs above 0 in rising order, got [1, 1]"),
        ([0, 1], "must be epochs above 0 in rising order, got [0, 1]"),
        ([-1], "must be at least 0, got -1"),
        (["a"], "must be a list of finite numbers, got ['a']"),
        ([0.5, 2], None),
    ],
)
def test_milestones_are_epochs_in_rising_order(milestones: list[Any], problem: str | None) -> None:
    assert training_problem("milestones", milestones) == problem


@pytest.mark.parametrize("forced", ["0", "1"])
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_parts_are_clipped_by_their_own_norms(
    kind: str, forced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts of every model are those of two models with a part each."""
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", forced)
    training = [settings(optimizer=kind, clip_norm=c, weight_decay=0.1) for c in (0.5, 5.0)]
    parameters = torch.stack([start(k) for k in range(2)])
    parts = torch.zeros(2, sum(SIZES))
    parts[0, :16], parts[1, 16:] = 1, 1
    both = Optimizer(training, parameters, torch.ones(sum(SIZES)), parts_QP=parts)
    halves = [parameters[:, :16].clone(), parameters[:, 16:].clone()]
    each = [Optimizer(training, half, torch.ones(half.shape[1])) for half in halves]
    for i in range(8):
        gradient = torch.stack([gradients(k)[i] for k in range(2)])
        for half, optimizer, part in zip(halves, each, gradient.split([16, 10], 1), strict=True):
            optimizer.step(half, part.clone())
        both.step(parameters, gradient)
    torch.testing.assert_close(parameters, torch.cat(halves, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("plan", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_the_update_of_a_gpu_is_what_torch_computes(
    case: dict[str, Any], plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODMIX_FORCE_GPU_PATHS", "1")
    test_rows_are_what_torch_computes(case, plan)
