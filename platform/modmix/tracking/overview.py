"""The content of a study's own run in MLflow: progress, charts, the best configurations (pure)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from modmix.base import ties
from modmix.base.messages import digest
from modmix.ledger.records import (
    ENDED,
    ConfigurationRecord,
    ReplicateRecord,
    StudyRecord,
    of_task,
    superseded,
)
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
    best = best_configurations(study, configurations, replicates, parts)
    for (task, method), (configuration, means) in best.items():
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
    n, means = _means(mine, [objective])
    if not n:
        return None
    task = f"{configuration.task}/" if configuration.task else ""
    name = key_of(f"{task}{configuration.method}/{objective}")
    return Value(
        key=f"configurations/{name} over {n} seed{'s' * (n > 1)}",
        value=means[objective],
        time=milliseconds(max(r.finished or 0.0 for r in mine if r.state == "done")),
        step=configuration.number,
    )


def _means(mine: Sequence[ReplicateRecord], names: Sequence[str]) -> tuple[int, dict[str, float]]:
    """The number of values of the first metric, and the means of all metrics.

    The number is 0 if there are no values or not all of the replicates are done.
    """
    good = [r for r in mine if r.state == "done"]
    values = {name: finite(r.metrics.get(name, math.nan) for r in good) for name in names}
    n = len(values[names[0]]) if len(good) == len(mine) else 0
    return n, {name: statistics.fmean(v) for name, v in values.items() if v}


def best_configurations(
    study: StudyRecord,
    configurations: Sequence[ConfigurationRecord],
    replicates: Mapping[str, Sequence[ReplicateRecord]],
    parts: Mapping[str, Sequence[str]],
) -> dict[tuple[str, str], tuple[ConfigurationRecord, dict[str, float]]]:
    """By task and method, the configuration with the best mean of the first objective; its means.

    The task is "" if the study has only one. Compares complete configurations with the most
    replicates, without those that are `superseded`; the first one wins ties.
    """
    objective, *_ = names = objectives_of(study.spec)
    best: dict[tuple[str, str], tuple[int, ConfigurationRecord, dict[str, float]]] = {}
    for task in study.spec.get("tasks") or [""]:
        own = of_task(study, task) if task else study
        mine = [
            (one, *_means(replicates.get(one.key, ()), names))
            for one in configurations
            if one.task == task and own.is_as_given(one.params)
        ]
        complete = [one for one, n, _ in mine if n]
        out = superseded(study.spec, complete, parts, {one.key: n for one, n, _ in mine})
        for one, n, means in mine:
            if one.key in out:
                continue
            most, _, rival = best.get((task, one.method), (0, None, {}))
            if n > most or (
                0 < n == most
                and ties.is_better(
                    means[objective], rival[objective], higher_is_better=higher(objective)
                )
            ):
                best[task, one.method] = (n, one, means)
    return {key: (configuration, means) for key, (_, configuration, means) in best.items()}


def _note(study: StudyRecord, best: Sequence[str]) -> str:
    task = study.details.get("task", "")
    lines = [str(study.spec.get("description") or study.name), "", f"Task: {task}", ""]
    if best:
        lines += ["Best configuration of each method on validation:", *best, ""]
    return "\n".join([*lines, f"`modmix run {study.source}` starts or resumes this study."])
