"""What MLflow is to show of a study, without MLflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from modmix.ledger.records import ConfigurationRecord, ReplicateRecord, StudyRecord
from modmix.tracking.content import (
    MAX_STEPS,
    configuration_content,
    configuration_name,
    configuration_state,
    datasets,
    half_interval,
    thinned,
)
from modmix.tracking.overview import best_configurations, study_content
from modmix.tracking.store import redacted

SPEC = {
    "objective": ["val/error"],
    "parts": {
        "curve": {"methods": {"mul": {"beta": {"grid": [0, 0.5]}}, "base": None}},
        "tuned": {
            "shared": {"learning_rate": {"low": 0.001, "high": 0.1}},
            "methods": {"mul": {"beta": {"low": 0, "high": 1}}, "add": {"merge": "sum"}},
        },
        "wide": {"methods": {"add": {"merge": "concat", "depth": 2}}},
    },
}


def configuration(method: str, **params: Any) -> ConfigurationRecord:
    return ConfigurationRecord(
        key=f"{method}-{params}", number=0, method=method, params=params, mlflow_run=None,
        mirrored=None,
    )  # fmt: skip


def replicate(
    of: ConfigurationRecord, seed: int, error: float, state: str = "done"
) -> ReplicateRecord:
    return ReplicateRecord(
        key=f"{of.key}-{seed}", configuration=of.key, seed=seed, state=state, owner=None, pack=None,
        attempts=1, epochs=1, best_epoch=1.0, metrics={"val/error": error, "test/error": 50.0},
        reason="", seconds=1.0, finished=1.0, origin="trained",
    )  # fmt: skip


def study_of(spec: dict[str, Any], **details: Any) -> StudyRecord:
    return StudyRecord(
        name="s", spec=spec, text="", source="s.yaml", state="finished", created=0.0, updated=9.0,
        wall_seconds=1.0, device_seconds=1.0, details=details, mlflow_run=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "parts", "name"),
    [
        (configuration("mul", beta=0.5, learning_rate=0.001), ["curve"], "mul β=0.5"),
        (
            configuration("mul", beta=1 / 3, learning_rate=0.00123456),
            ["tuned"],
            "mul β=0.333 learning_rate=0.00123",
        ),
        (configuration("base", modality="left"), ["curve"], "base left"),
        # Nothing varies in that part, but the two parts disagree.
        (
            configuration("add", merge="concat", depth=2, width=64),
            ["wide"],
            "add merge=concat depth=2",
        ),
        (configuration("late", merge="mean"), [], "late"),
    ],
)
def test_a_run_is_named_by_what_its_part_varies(
    made: ConfigurationRecord, parts: list[str], name: str
) -> None:
    assert configuration_name(SPEC, made, parts) == name


def test_half_an_interval_is_that_of_students_t() -> None:
    values = [3.0, 4.5, 7.25, 1.0]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert half_interval(values) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("length", [0, 1, MAX_STEPS, MAX_STEPS + 1, 12345])
def test_long_curves_keep_both_ends_and_even_gaps(length: int) -> None:
    kept = thinned(length)
    assert len(kept) == min(length, MAX_STEPS)
    if kept:
        assert (kept[0], kept[-1]) == (0, length - 1)
        gaps = np.diff(kept)
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_the_best_configuration_is_complete_and_has_the_most_replicates() -> None:
    few, bad, good, running = (configuration("mul", beta=b) for b in (0.0, 0.1, 0.2, 0.3))
    replicates = {
        few.key: [replicate(few, 0, 1.0)],
        bad.key: [replicate(bad, s, 9.0) for s in range(2)],
        good.key: [replicate(good, s, 4.0 + s) for s in range(2)],
        running.key: [replicate(running, 0, 0.0), replicate(running, 1, 0.0, "running")],
    }
    diverged = configuration("mul", beta=0.4)
    replicates[diverged.key] = [
        replicate(diverged, 0, 1.0),
        replicate(diverged, 1, 1.0),
        replicate(diverged, 2, 0.0, "failed"),
    ]
    known = [few, bad, good, running, diverged]
    found = best_configurations(study_of(SPEC), known, replicates, {})
    assert found == {("", "mul"): (good, {"val/error": 4.5, "test/error": 50.0})}


def test_what_was_found_best_is_shown_with_the_seeds_that_confirm_it() -> None:
    found, other, confirmed = (configuration("mul", beta=b) for b in (0.0, 0.1, 0.2))
    late = configuration("late", beta=0.3)  # of which nothing is confirmed yet
    replicates = {
        found.key: [replicate(found, s, 1.0) for s in range(3)],
        other.key: [replicate(other, s, 2.0) for s in range(3)],
        confirmed.key: [replicate(confirmed, s, 5.0) for s in range(2)],
        late.key: [replicate(late, s, 3.0) for s in range(3)],
    }
    parts = {key: ["search"] for key in replicates} | {confirmed.key: ["tuned"]}
    spec = {**SPEC, "parts": {"search": {}, "tuned": {"best_of": "search"}}}
    known = [found, other, confirmed, late]
    best = best_configurations(study_of(spec), known, replicates, parts)
    assert {method: one.key for (_, method), (one, _) in best.items()} == {
        "mul": confirmed.key,
        "late": late.key,
    }
    parts[found.key] = ["search", "tuned"]  # the same seeds: the same configuration
    del replicates[confirmed.key], parts[confirmed.key]
    best = best_configurations(study_of(spec), known, replicates, parts)
    assert best["", "mul"][0].key == found.key


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["done", "done"], "done"),
        (["done", "failed"], "failed"),
        (["pruned", "failed", "done"], "failed"),
        (["done", "pruned"], "pruned"),
        (["done", "running"], "stopped"),
        (["failed", "pending"], "stopped"),
    ],
)
def test_the_state_of_a_configuration_is_that_of_its_worst_replicate(
    states: list[str], expected: str
) -> None:
    one = configuration("mul", beta=0.0)
    mine = [replicate(one, seed, 1.0, state) for seed, state in enumerate(states)]
    assert configuration_state(mine) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no http://ann:a:b@host/x, really", "no http://***@host/x, really"),
        (
            "postgresql+psycopg://bob:p%40ss@db:5432/mlflow",
            "postgresql+psycopg://***@db:5432/mlflow",
        ),
        ("postgresql://bob:a/b@db/mlflow", "postgresql://***@db/mlflow"),
        ("http://bob:p@ss@host:5000 is away", "http://***@host:5000 is away"),
        ("http://bob@host:5000", "http://***@host:5000"),
        ("mysql://db/m?user=u&password=secret&ssl=1", "mysql://db/m?user=u&password=***&ssl=1"),
        ("mysql://h:5432/m?user=u&password=p@ss", "mysql://***@"),  # too much, but nothing of it
        ("postgresql://ann:abctoken=xyz@db/m", "postgresql://***@"),
        ("mysql://h/m?sslpassword=a&PASSWORD=b", "mysql://h/m?sslpassword=***&PASSWORD=***"),
        ("http://host:5000/a", "http://host:5000/a"),
        ("sqlite:////home/ann/@bob/mlflow.db", "sqlite:////home/ann/@bob/mlflow.db"),
    ],
)
def test_passwords_are_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_study_of_several_tasks_names_the_task_everywhere() -> None:
    """The best of a task is not sought among the results of another, easier one."""
    tasks = {task: {"task": {"name": "arrays"}, "encoders": {}, "training": {}} for task in "ab"}
    details = {
        "task": "arrays",
        "tasks": {t: {"task": "arrays", "fingerprint": t * 20, "task_options": {}} for t in "ab"},
    }
    study = study_of({**SPEC, "tasks": tasks}, **details)
    made, replicates = [], {}
    for task, error in (("a", 30.0), ("b", 2.0)):
        one = ConfigurationRecord(
            key=task, number=0, method="mul", params={"beta": 0.5}, mlflow_run=None,
            mirrored=None, task=task,
        )  # fmt: skip
        made.append(one)
        replicates[task] = [replicate(one, 0, error)]
    parts = {"a": ["curve@a"], "b": ["curve@b"]}
    whole = study_content(study, made, replicates, parts, "finished")
    values = {one.key: one.value for one in whole.metrics}
    assert values["study/a_mul_val_error"] == 30.0
    assert values["study/b_mul_val_error"] == 2.0
    assert "**a: mul β=0.5**: val/error 30" in whole.tags["mlflow.note.content"]
    run = configuration_content(study, made[1], replicates["b"], parts["b"], {}, {})
    assert run.name == "b: mul β=0.5"
    assert (run.tags["modmix.task_in_study"], run.tags["modmix.fingerprint"]) == ("b", "b" * 20)
    assert {task: one["digest"] for task, one in datasets(study).items()} == {
        "a": "a" * 12, "b": "b" * 12,
    }  # fmt: skip
