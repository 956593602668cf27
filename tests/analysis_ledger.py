"""Studies for the tests of the analysis: a real ledger, filled with numbers made by formula."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from modmix.base.messages import PackedPredictions, digest
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Entry, NewConfiguration, Result

DETAILS = {
    "task": "digits",
    "task_options": {"noise": 0.1},
    "fingerprint": "f" * 32,
    "classes": 10,
    "class_names": [str(i) for i in range(10)],
    "inputs": {"left": [8, 4], "right": [8, 4]},
    "rows": {"train": 1000, "val": 300, "test": 400},
    "modmix": "0.1.0",
    "torch": "2.14.1",
    "git": "0123456789abcdef",
    "hyperparameters": {},
}


class Written:
    """A study being written into a ledger, replicate by replicate."""

    def __init__(self, ledger: Ledger, name: str = "demo", **spec: Any) -> None:
        self.ledger = ledger
        self.name = name
        full = {
            "study": name,
            "description": "a study for tests",
            "task": {"name": "digits"},
            "seeds": [0, 1, 2, 3, 4],
            "objective": ["val/error"],
            "parts": {},
            "paper": {},
            "final": None,
        } | spec
        text = f"# modmix run {name}.yaml\nstudy: {name}\n"
        ledger.start_study(name, spec=full, text=text, source=f"{name}.yaml", details=DETAILS)
        self.lease = ledger.acquire(name)
        self.numbers: dict[tuple[str, str], int] = {}

    def configuration(
        self,
        part: str,
        method: str,
        params: Mapping[str, Any],
        seeds: Sequence[int] = range(5),
        *,
        task: str = "",
        fingerprint: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Ask for a configuration; return its key.

        ``options`` of the task: by default the study's with what ``params`` sets; ``fingerprint``:
        by default the study's if these are its options.
        """
        details = self.ledger.study(self.name).details
        given = dict(details.get("task_options") or {})
        own = {k.removeprefix("task."): v for k, v in params.items() if k.startswith("task.")}
        options = {**given, **own} if options is None else options
        if fingerprint is None:
            same = options == given
            fingerprint = str(details["fingerprint"]) if same else digest(dict(options))
        key = digest([method, dict(params)])
        number = self.numbers.get((part, method), 0)
        self.numbers[part, method] = number + 1
        replicates = [(digest([key, seed]), seed) for seed in seeds]
        self.ledger.add(
            self.name,
            [
                NewConfiguration(
                    key=key,
                    method=method,
                    params=params,
                    replicates=replicates,
                    task=task,
                    fingerprint=fingerprint,
                    options=options,
                )
            ],
            [Entry(part=part, method=method, number=number, configuration=key)],
        )
        return key

    def end(
        self,
        configuration: str,
        seed: int,
        metrics: Mapping[str, float],
        *,
        state: str = "done",
        reason: str = "",
        history: Mapping[str, Sequence[float]] | None = None,
        predictions: PackedPredictions | None = None,
    ) -> None:
        """Record one replicate's end."""
        result = self.result(configuration, seed, metrics, state, reason, history)
        self.record([replace(result, predictions=predictions)])

    def result(
        self,
        configuration: str,
        seed: int,
        metrics: Mapping[str, float],
        state: str = "done",
        reason: str = "",
        history: Mapping[str, Sequence[float]] | None = None,
    ) -> Result:
        return Result(
            replicate=digest([configuration, seed]),
            state=state,
            reason=reason,
            metrics=metrics,
            history=history or {},
            epochs=10,
            best_epoch=8.0,
            seconds=2.0,
        )

    def record(self, results: Sequence[Result]) -> None:
        """Claim replicates as one pack and record their ends."""
        keys = [result.replicate for result in results]
        self.ledger.claim(self.lease, digest(["pack", keys]), keys)
        self.ledger.finish(self.lease, results)

    def fill(
        self,
        configuration: str,
        error: float,
        seeds: Sequence[int] = range(5),
        *,
        spread: float = 0.3,
    ) -> None:
        """End replicates with plausible metrics around a test error (percent) and a history."""
        self.record([self._plausible(configuration, error, seed, spread) for seed in seeds])

    def _plausible(self, configuration: str, error: float, seed: int, spread: float) -> Result:
        noise = np.random.default_rng([seed, int(configuration[:6], 16)]).normal(0, spread, 2)
        shared = 0.8 * spread * math.sin(1.7 * seed)  # what a seed does to every configuration
        test, val = error + shared + noise[0], error - 0.2 + shared + noise[1]
        epochs = np.arange(1, 11, dtype=float)
        history = {
            "epoch": epochs.tolist(),
            "train/loss": (2 * np.exp(-epochs / 3)).tolist(),
            "train/error": (val + 20 * np.exp(-epochs / 2)).tolist(),
            "val/error": (val + 30 * np.exp(-epochs / 2) + 0.02 * epochs).tolist(),
        }
        stop = 10 if seed else 7  # the first seed stops early
        metrics = {
            "val/error": val,
            "test/error": test,
            "val/auc": 1 - val / 50,
            "test/auc": 1 - test / 50,
            "val/nll": val / 10,
            "test/nll": test / 10,
            "train/loss": 0.1,
            "train/error": val / 2,
        }
        shortened = {name: column[:stop] for name, column in history.items()}
        return self.result(configuration, seed, metrics, history=shortened)


def beta_study(ledger: Ledger, name: str = "demo", **spec: Any) -> Written:
    """A study in the shape of the paper's: a table, a β-curve, a depth comparison and a search."""
    study = Written(ledger, name, parts=PARTS, paper=PAPER, **spec)
    base = {"depth": 0, "width": 64}
    for method, error in (("base", 14.0), ("late", 9.5)):
        study.fill(study.configuration("table", method, base), error)
    for depth in range(5):
        params = {"depth": depth, "merge": "concat", "width": 64}
        study.fill(study.configuration("depth", "add", params), 8.0 + 0.5 * (depth - 1) ** 2)
    study.fill(study.configuration("table", "mulmix", mul_params(0.5)), 6.9)
    betas = [i / 10 for i in range(11)]
    for method, low, at in (("mul", 7.4, 0.6), ("mulmix", 6.4, 0.3)):
        for beta in betas:
            configuration = study.configuration("beta_curve", method, mul_params(beta))
            if not (method == "mulmix" and beta == 0.5):  # found in the table already
                study.fill(configuration, error_of_beta(beta, low, at))
    rng = np.random.default_rng(0)
    for number in range(12):
        beta, rate = float(rng.uniform()), float(10 ** rng.uniform(-3, -1))
        params = mul_params(beta) | {"learning_rate": rate}
        configuration = study.configuration("search", "mul", params)
        error = error_of_beta(beta, 7.3, 0.6) + 3 * abs(math.log10(rate) + 2)
        if number == 4:
            for seed in range(5):
                study.end(configuration, seed, {"val/error": 30.0}, state="pruned", reason="rung 1")
            tell(study, "search", "mul", number, "pruned", 30.0)
        else:
            study.fill(configuration, error)
            tell(study, "search", "mul", number, "done", error)
    return study


def tell(study: Written, part: str, method: str, number: int, state: str, value: float) -> None:
    """Record what a sampler was told."""
    entry = Entry(part=part, method=method, number=number, configuration="")
    study.ledger.tell(study.name, entry, state=state, values=[value], told=number)


def error_of_beta(beta: float, low: float, at: float) -> float:
    return low + 6.0 * (beta - at) ** 2


def mul_params(beta: float) -> dict[str, Any]:
    return {"beta": beta, "depth": 0, "margin": None, "width": 64}


PARTS: dict[str, Any] = {
    "table": {"x": None, "title": None, "search": None, "references": [], "methods": {}},
    "beta_curve": {"x": "beta", "title": "Test error over β", "references": ["add"]},
    "depth": {"x": "depth", "title": None, "references": ["mul", "mulmix"]},
    "search": {"x": None, "search": {"configurations": 12, "sampler": "tpe"}, "references": []},
}
PAPER: dict[str, Any] = {
    "add": {"test/error": [8.3, 0.1]},
    "mul": {"test/error": 7.8},
    "mulmix": {"test/error": [6.2, 0.1]},
    "mulmix (table)": {"test/error": [6.4, 0.1]},
}


def open_ledger(folder: Path) -> Ledger:
    """A ledger that does not wait for the disk: these tests write thousands of results."""
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    ledger._engine.dispose()
    sa.event.listen(ledger._engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))
    return ledger
