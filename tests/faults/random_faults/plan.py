"""The faults: victim, signal and moment, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Moment = Literal["start", "result", "end"]
Runner = Literal["ray", "local", "cluster"]

# SIGSTOP lasts for longer than a lease; then comes SIGCONT. What the signals do to servers:
# `victims`.
SIGNALS = {
    "driver": ("SIGKILL", "SIGTERM", "SIGSTOP"),
    "worker": ("SIGKILL", "SIGTERM", "SIGSTOP"),
    "node": ("SIGKILL", "SIGTERM", "SIGSTOP"),
    "mlflow": ("SIGKILL", "SIGTERM", "SIGSTOP"),
    "database": ("SIGKILL", "SIGQUIT", "SIGTERM", "SIGSTOP"),
    "mirror": ("SIGKILL", "SIGTERM", "SIGSTOP"),
}
# Percent of all faults.
SHARES = {"driver": 30, "worker": 18, "node": 12, "mlflow": 12, "database": 14, "mirror": 14}
FAULTS_A_STUDY = 5
RUNNERS: dict[str, tuple[Runner, ...]] = {
    "driver": ("ray", "local"),
    "worker": ("ray",),
    "node": ("cluster",),
    "mlflow": ("ray", "local"),
    "database": ("local", "ray"),
    "mirror": ("local", "ray"),
}
# How often a fault comes while the command starts, with a new result, and after the last one.
MOMENTS: dict[str, tuple[int, int, int]] = {
    "driver": (3, 5, 2),
    "worker": (0, 1, 0),
    "node": (1, 5, 0),
    "mlflow": (1, 4, 1),
    "database": (1, 4, 1),
    "mirror": (0, 4, 1),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    ``moment``: ``delay`` seconds after the command has started, after ``results`` further results,
    or after the last result. ``seed``: of all chance while it lasts.
    """

    victim: str
    signal: str
    moment: Moment
    results: int
    delay: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The faults of one study, and what trains it."""

    runner: Runner
    faults: tuple[Fault, ...]

    @property
    def victim(self) -> str:
        return self.faults[0].victim


def draw(count: int, seed: int, only: str | None = None) -> list[Plan]:
    """Draw so many faults, about five a study, those of one study with the same victim."""
    plans: list[Plan] = []
    for victim, number in _numbers(count, only).items():
        faults = _faults(victim, number, random.Random(f"{seed} {victim}"))
        studies = max(1, round(number / FAULTS_A_STUDY))
        for study in range(studies):
            # What follows the last result can only come last.
            mine = sorted(faults[study::studies], key=lambda fault: fault.moment == "end")
            runner = RUNNERS[victim][(study + seed) % len(RUNNERS[victim])]
            plans.append(Plan(runner=runner, faults=tuple(mine)))
    random.Random(seed).shuffle(plans)
    return plans


def _numbers(count: int, only: str | None) -> dict[str, int]:
    """How many faults each victim gets; the largest remainders are rounded up."""
    if only is not None:
        return {only: count}
    exact = {victim: count * share / 100 for victim, share in SHARES.items()}
    numbers = {victim: int(value) for victim, value in exact.items()}
    rest = sorted(exact, key=lambda victim: numbers[victim] - exact[victim])
    for victim in rest[: count - sum(numbers.values())]:
        numbers[victim] += 1
    return {victim: number for victim, number in numbers.items() if number}


def _faults(victim: str, count: int, chance: random.Random) -> list[Fault]:
    signals = [SIGNALS[victim][i % len(SIGNALS[victim])] for i in range(count)]
    chance.shuffle(signals)
    return [_fault(victim, name, chance) for name in signals]


def _fault(victim: str, name: str, chance: random.Random) -> Fault:
    moments: tuple[Moment, ...] = ("start", "result", "end")
    (moment,) = chance.choices(moments, MOMENTS[victim])
    longest = {"start": 7.0, "result": 0.6, "end": 2.0}[moment]
    # Often at once: results are recorded, and configurations proposed, within milliseconds.
    at_once = moment != "start" and chance.random() < 0.35
    return Fault(
        victim=victim,
        signal=name,
        moment=moment,
        results=chance.randint(1, 6),
        delay=0.0 if at_once else chance.uniform(0.0, longest),
        seed=chance.getrandbits(32),
    )
