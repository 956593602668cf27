"""The content of a study's own run in MLflow: progress, charts, the best configurations (pure)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from modmix.base import ties
from modmix.base.messages import digest
from modmix.ledger.records import ENDED, ConfigurationRecord, ReplicateRecord, StudyRecord, of_task
from modmix.tracking.content import (
    TAG_LENGTH,
    Content,
    configuration_name,
    finite,
    higher,
    key_of,
    milliseconds,
    objectives_of,
    shared_tags,
    truncated,
)
from modmix.tracking.store import Value

_NOTE = "mlflow.note.content"
_STATUS = {"running": "RUNNING", "finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def study_content(
    study: StudyRecord,
    configurations: Sequence[ConfigurationRecord],
    replicates: Mapping[str, Sequence[ReplicateRecord]],
    parts: Mapping[str, Sequence[str]],
    state: str,
) -> Content:
    """The content of the study's run. ``replicates`` and ``parts``: by configuration key."""
    everything = [r for rs in replicates.values() for r in rs]
    ended = [r for r in everything if r.state in ENDED]
    now = max((milliseconds(r.finished) for r in ended if r.finished), default=None)
    now = now or milliseconds(study.updated)
    rows = {
        "study/configurations": float(len(configurations)),
        "study/replicates": float(len(everything)),
        "study/replicates_ended": float(len(ended)),
        "study/replicates_failed": float(sum(r.state == "failed" for r in ended)),
        "study/replicates_reused": float(sum(r.origin == "reused" for r in ended)),
    }
    lines = []
    for task, method, configuration, means in _best_by_task(study, configurations, replicates):
        key = f"{task}_{method}" if task else method
        rows |= {f"study/{key}_{name.replace('/', '_')}": v for name, v in means.items()}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        name = configuration_name(study.spec, configuration, parts.get(configuration.key, ()))
        lines.append(f"- **{name}**: {shown}")
    status = _STATUS[state]
    return Content(
        name=study.name,
        status=status,
        started=milliseconds(study.created),
        ended=None if status == "RUNNING" else max(now, milliseconds(study.updated)),
        tags={
            **shared_tags(study),
            "modmix.kind": "study",
            _NOTE: truncated(_note(study, lines), TAG_LENGTH),
        },
        metrics=[
            Value(key=key, value=value, time=now, step=len(ended)) for key, value in rows.items()
        ],
        curves=[
            value
            for configuration in configurations
            if (value := _result(study.spec, configuration, replicates.get(configuration.key, ())))
        ],
    )


def study_tags(content: Content, before: Mapping[str, str]) -> dict[str, str]:
    """The tags to write. A note that a person wrote stays.

    Args:
        before: the run's tags now. ``modmix.note`` is a digest of the note that modmix wrote.
    """
    tags, note = dict(content.tags), before.get(_NOTE, "")
    if note and before.get("modmix.note") != digest([note]):
        del tags[_NOTE]
    else:
        tags["modmix.note"] = digest([tags[_NOTE]])
    return tags


def _result(
    spec: Mapping[str, Any], configuration: ConfigurationRecord, mine: Sequence[ReplicateRecord]
) -> Value | None:
    """A complete configuration in the study's chart of its method; the step is its number.

    Over more replicates it is another chart: what was logged cannot be changed.
    """
    objective, *_ = objectives_of(spec)
    good = [r for r in mine if r.state == "done"]
    values = finite(r.metrics.get(objective, math.nan) for r in good)
    if not values or any(r.state not in ENDED for r in mine):
        return None
    task = f"{configuration.task}/" if configuration.task else ""
    name = key_of(f"{task}{configuration.method}/{objective}")
    return Value(
        key=f"configurations/{name} over {len(values)} seed{'s' * (len(values) > 1)}",
        value=statistics.fmean(values),
        time=milliseconds(max(r.finished or 0.0 for r in good)),
        step=configuration.number,
    )


def _best_by_task(
    study: StudyRecord,
    configurations: Sequence[ConfigurationRecord],
    replicates: Mapping[str, Sequence[ReplicateRecord]],
) -> list[tuple[str, str, ConfigurationRecord, dict[str, float]]]:
    """Task ("" where the study has one), method, its best configuration there, and its means."""
    found = []
    for task in study.spec.get("tasks") or [""]:
        own = of_task(study, task) if task else study
        mine = [c for c in configurations if c.task == task and own.is_as_given(c.params)]
        best = best_configurations(study.spec, mine, replicates)
        found += [(task, method, configuration, m) for method, (configuration, m) in best.items()]
    return found


def best_configurations(
    spec: Mapping[str, Any],
    configurations: Sequence[ConfigurationRecord],
    replicates: Mapping[str, Sequence[ReplicateRecord]],
) -> dict[str, tuple[ConfigurationRecord, dict[str, float]]]:
    """By method, the configuration with the best mean of the first objective, and its means.

    Compares ended configurations with the most replicates; the first one wins ties.
    """
    objective, *_ = names = objectives_of(spec)
    best: dict[str, tuple[int, ConfigurationRecord, dict[str, float]]] = {}
    for configuration in configurations:
        mine = replicates.get(configuration.key, ())
        good = [r for r in mine if r.state == "done"]
        values = {name: finite(r.metrics.get(name, math.nan) for r in good) for name in names}
        if not values[objective] or any(r.state not in ENDED for r in mine):
            continue
        means = {name: statistics.fmean(v) for name, v in values.items() if v}
        n = len(values[objective])
        most, _, rival = best.get(configuration.method, (0, None, {}))
        if n > most or (
            n == most
            and ties.is_better(
                means[objective], rival[objective], higher_is_better=higher(objective)
            )
        ):
            best[configuration.method] = (n, configuration, means)
    return {method: (configuration, means) for method, (_, configuration, means) in best.items()}


def _note(study: StudyRecord, best: Sequence[str]) -> str:
    task = study.details.get("task", "")
    lines = [str(study.spec.get("description") or study.name), "", f"Task: {task}", ""]
    if best:
        lines += ["Best configuration of each method on validation:", *best, ""]
    return "\n".join([*lines, f"`modmix run {study.source}` starts or resumes this study."])
