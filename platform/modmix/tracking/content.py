"""The content of a study's runs in MLflow, computed from the ledger's records (pure).

One run for the study (`overview`), with one nested run per configuration:

    configuration  params     method and hyperparameters
                   metrics    val/*, test/*: means over replicates; *_std; *_ci (objective);
                              epoch/*: learning curves, means over replicates
                   artifact   replicates.json: results and histories of all replicates
    study          metrics    configurations/*: the objective by number of the configuration;
                              study/*: progress, and each method's best configuration so far
                   artifacts  study.yaml, and the outputs of the analysis

Times are in milliseconds since 1970, from the ledger, so that writing the same content again gives
identical rows, which MLflow ignores.
"""

from __future__ import annotations

import getpass
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from modmix.base.messages import digest
from modmix.base.metrics import higher_is_better
from modmix.ledger.records import (
    ENDED,
    ConfigurationRecord,
    Entry,
    ReplicateRecord,
    StudyRecord,
    of_task,
)
from modmix.tracking.store import Value

LAYOUT = 2  # version of this layout; after a change all runs are updated
MAX_STEPS = 50  # of a curve; longer ones are thinned (the artifact is complete)

_FINAL = tuple(
    f"{split}/{name}" for split in ("val", "test") for name in ("error", "auc", "nll", "ece", "f1")
)
_NOT_OF_KEYS = re.compile(r"[^\w\-. /:]")  # characters that MLflow refuses in keys
_ON_EVERY_RUN = ("modmix.task", "modmix.fingerprint", "mlflow.source.git.commit", "mlflow.user")
# Tags that a configuration has in some states only.
STATE_TAGS = ("modmix.reason", "modmix.failed", "modmix.pruned")
# MLflow has no status for pruned runs.
_STATUS = {"done": "FINISHED", "pruned": "KILLED", "stopped": "KILLED", "failed": "FAILED"}
_SYMBOLS = {"alpha": "α", "beta": "β", "margin": "δ", "lambda": "λ", "tau": "τ"}
_PARAM_LENGTH, TAG_LENGTH = 6000, 5000  # MLflow's limits

History = Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Content:
    """The content of one run.

    ``curves`` are the learning curves of ``n_curves`` replicates, with ``curves_digest``.
    ``digest`` stands for the whole content.
    """

    name: str
    status: str  # RUNNING, FINISHED, KILLED or FAILED
    started: int
    ended: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Value] = ()
    curves: Sequence[Value] = ()
    curves_digest: str = ""
    n_curves: int = 0
    artifact: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""


# ---------------------------------------------------------------- a configuration


def configuration_state(replicates: Sequence[ReplicateRecord]) -> str:
    """failed or pruned if any replicate is, else done; stopped where one has not ended."""
    states = {r.state for r in replicates}
    if not states <= set(ENDED):
        return "stopped"
    return next((one for one in ("failed", "pruned") if one in states), "done")


def configuration_digest(
    configuration: ConfigurationRecord,
    replicates: Sequence[ReplicateRecord],
    parts: Sequence[str],
) -> str:
    """A digest of the content of a configuration's run, which is written again when it changes.

    Keys and end times stand for results, which are never overwritten.
    """
    ended = [[r.key, r.state, r.finished] for r in replicates if r.state in ENDED]
    return digest([LAYOUT, configuration.key, ended, len(replicates), list(parts)])


def configuration_content(
    study: StudyRecord,
    configuration: ConfigurationRecord,
    replicates: Sequence[ReplicateRecord],
    parts: Sequence[str],
    histories: Mapping[str, History],
    starts: Mapping[str, float],
) -> Content:
    """The content of a configuration's run.

    Args:
        replicates: all of the configuration in this study; at least one has ended.
        starts: when packs started, in seconds.
    """
    if configuration.task:  # the study as if it had this task alone
        study = replace(of_task(study, configuration.task), name=study.name)
    ended = [r for r in replicates if r.state in ENDED]
    good = [r for r in ended if r.state == "done"] or [r for r in ended if r.state == "pruned"]
    last = max(r.finished or study.updated for r in ended)
    started = min(_began(r, starts, study.updated) for r in ended)
    state = configuration_state(replicates)
    shown = [r.key for r in good if r.key in histories] if state != "stopped" else []
    return Content(
        name=configuration_name(study.spec, configuration, parts),
        status=_STATUS[state],
        started=milliseconds(started),
        ended=milliseconds(last),
        tags=_configuration_tags(study, configuration, replicates, parts, state),
        params=_params(configuration),
        metrics=_summary(study, good, ended, milliseconds(last)),
        curves=_curves(
            study, [histories[key] for key in shown], milliseconds(started), milliseconds(last)
        ),
        curves_digest=digest(sorted(shown)) if shown else "",
        n_curves=len(shown),
        artifact=_artifact(study, configuration, ended, histories),
        digest=configuration_digest(configuration, replicates, parts),
    )


def _began(r: ReplicateRecord, starts: Mapping[str, float], updated: float) -> float:
    """When the training of a replicate began. A pack may have ended before a late result."""
    ended = r.finished or updated
    return min(starts.get(r.pack or "", ended), ended - r.seconds)


def configuration_name(
    spec: Mapping[str, Any], configuration: ConfigurationRecord, parts: Sequence[str] = ()
) -> str:
    """A readable name of the method and its varied hyperparameters: "mul β=0.5".

    In a study of several tasks with the task before it: "digits: mul β=0.5".
    """
    parts = [part.partition("@")[0] for part in parts]
    task = f"{configuration.task}: " if configuration.task else ""
    parts_of_name = [f"{task}{configuration.method}"]
    if configuration.params.get("modality") is not None:
        parts_of_name.append(str(configuration.params["modality"]))
    parts_of_name += [
        f"{_SYMBOLS.get(name, name)}={_short(configuration.params[name])}"
        for name in _varied(spec, configuration.method, parts)
        if name in configuration.params and name != "modality"
    ]
    return " ".join(parts_of_name)[:250]


def _varied(spec: Mapping[str, Any], method: str, parts: Sequence[str]) -> list[str]:
    """Names these parts vary for a method, and constants that differ between parts."""
    blocks = {
        name: {**(part.get("shared") or {}), **(part["methods"][method] or {})}
        for name, part in spec.get("parts", {}).items()
        if method in part.get("methods", {})
    }
    own = [block for name, block in blocks.items() if name in parts] or list(blocks.values())
    names = dict.fromkeys(name for block in blocks.values() for name in block)
    return [
        name
        for name in names
        if any(_is_domain(block.get(name)) for block in own)
        or len({digest(b.get(name)) for b in blocks.values() if not _is_domain(b.get(name))}) > 1
    ]


def _is_domain(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"grid", "choices", "low"} & set(value))


def _summary(
    study: StudyRecord,
    good: Sequence[ReplicateRecord],
    ended: Sequence[ReplicateRecord],
    time: int,
) -> list[Value]:
    """Means over replicates; their step is the number of replicates, so the latest wins."""
    step = len(ended)
    rows = [("replicates", float(len(good))), ("seconds", sum(r.seconds for r in ended))]
    objectives = set(study.spec.get("objective", ()))
    with_interval = objectives | {f"test/{name.partition('/')[2]}" for name in objectives}
    final = (*_FINAL, *_reported(good))
    for name in (*final, "train/loss"):
        values = finite(r.metrics.get(name, math.nan) for r in good)
        if not values:
            continue
        mean, std = _mean_and_std(values)
        key = key_of(name)
        rows.append((key, mean))
        if len(values) > 1 and name in final:
            rows.append((f"{key}_std", std))
            if name in with_interval:
                rows.append((f"{key}_ci", half_interval(values)))
    return [Value(key=key, value=value, time=time, step=step) for key, value in rows]


def key_of(metric: str) -> str:
    """The key of a metric or of a tag about it: methods may report any name, MLflow accepts few."""
    return _NOT_OF_KEYS.sub("_", metric)


def _reported(replicates: Sequence[ReplicateRecord]) -> list[str]:
    """Metrics of the predictors that a method reports, such as "test/audio/error"."""
    names = dict.fromkeys(name for r in replicates for name in r.metrics)
    return [name for name in names if name.startswith(("val/", "test/")) and name.count("/") > 1]


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % t interval of a mean of n > 1 values."""
    n = len(values)
    return _student(n - 1) * _mean_and_std(values)[1] / math.sqrt(n)


@cache
def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # imports faster than scipy.stats

    return float(stdtrit(freedom, 0.975))


def _curves(
    study: StudyRecord, histories: Sequence[History], started: int, ended: int
) -> list[Value]:
    """Means of learning curves over the replicates still training; the step is the evaluation."""
    length = max((len(c) for h in histories for c in h.values()), default=0)
    # What population-based training changes.
    changing = sorted({name for h in histories for name in h if name.startswith("pbt/")})
    found = []
    for index in thinned(length):
        time = started + (ended - started) * (index + 1) // length
        for name in (*_columns(study), *changing):
            columns = [h[name] for h in histories if name in h]
            values = finite(c[index] for c in columns if index < len(c))
            if values:
                mean = math.fsum(values) / len(values)
                found.append(Value(key=f"epoch/{name}", value=mean, time=time, step=index + 1))
    return found


def _columns(study: StudyRecord) -> list[str]:
    """The columns of a history shown as curves; the artifact has all."""
    objectives = [name for name in study.spec.get("objective", ()) if name.startswith("val/")]
    return list(dict.fromkeys([*objectives, "train/loss", "train/error"]))


def thinned(length: int) -> list[int]:
    """At most `MAX_STEPS` evenly spaced indices of range(length), with the last."""
    if length <= MAX_STEPS:
        return list(range(length))
    return sorted({round(i * (length - 1) / (MAX_STEPS - 1)) for i in range(MAX_STEPS)})


def _configuration_tags(
    study: StudyRecord,
    configuration: ConfigurationRecord,
    replicates: Sequence[ReplicateRecord],
    parts: Sequence[str],
    state: str,
) -> dict[str, str]:
    """Tags for filtering runs; most common tags are only on the study's run."""
    failed = [r for r in replicates if r.state == "failed"]
    shared = shared_tags(study)
    tags = {
        **{key: shared[key] for key in _ON_EVERY_RUN if key in shared},
        "modmix.configuration": configuration.key,
        "modmix.method": configuration.method,
        "modmix.parts": ", ".join(parts),
        "modmix.number": str(configuration.number),
        "modmix.state": state,
        **({"modmix.task_in_study": configuration.task} if configuration.task else {}),
    }
    if failed:
        tags["modmix.failed"] = str(len(failed))
        tags["modmix.reason"] = failed[0].reason
    if pruned := [r for r in replicates if r.state == "pruned"]:
        tags["modmix.pruned"] = str(len(pruned))
        tags.setdefault("modmix.reason", pruned[0].reason)
    return {key: truncated(value, TAG_LENGTH) for key, value in tags.items()}


def shared_tags(study: StudyRecord) -> dict[str, str]:
    details = study.details
    tags = {
        "modmix.study": study.name,
        "modmix.task": str(details.get("task", "")),
        "modmix.fingerprint": str(details.get("fingerprint", "")),
        "modmix.version": str(details.get("modmix", "")),
        "modmix.torch": str(details.get("torch") or ""),
        "mlflow.source.git.commit": str(details.get("git") or ""),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": truncated(study.source, TAG_LENGTH),
        "mlflow.user": _user(),
    }
    return {key: value for key, value in tags.items() if value}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, in containers
        return ""


def datasets(study: StudyRecord) -> dict[str, dict[str, str]]:
    """The data sets of a study by task; by "" where it has one."""
    found = {}
    for task in study.spec.get("tasks") or [""]:
        details = of_task(study, task).details if task else study.details
        found[task] = {
            "name": str(details.get("task", "data")),
            "digest": str(details.get("fingerprint", ""))[:12],
            "source": json.dumps(details.get("task_options", {})),
            "profile": json.dumps({"rows": details.get("rows"), "inputs": details.get("inputs")}),
        }
    return found


def _params(configuration: ConfigurationRecord) -> dict[str, str]:
    params = {"method": configuration.method, **configuration.params}
    return {key: truncated(_text(value), _PARAM_LENGTH) for key, value in params.items()}


def _artifact(
    study: StudyRecord,
    configuration: ConfigurationRecord,
    ended: Sequence[ReplicateRecord],
    histories: Mapping[str, History],
) -> dict[str, Any]:
    plain = ("key", "seed", "state", "reason", "epochs", "best_epoch", "seconds")
    replicates = []
    for r in ended:
        history = histories.get(r.key, {})
        replicates.append(
            {
                **{name: getattr(r, name) for name in plain},
                "metrics": {k: _json_number(v) for k, v in r.metrics.items()},
                "history": {k: [*map(_json_number, column)] for k, column in history.items()},
            }
        )
    return {
        "study": study.name,
        "configuration": configuration.key,
        "method": configuration.method,
        "params": dict(configuration.params),
        "replicates": replicates,
    }


def objectives_of(spec: Mapping[str, Any]) -> list[str]:
    """The first objective, and the same metric on test."""
    objective = (spec.get("objective") or ["val/error"])[0]
    return list(dict.fromkeys([objective, f"test/{objective.partition('/')[2]}"]))


def higher(objective: str) -> bool:
    """Whether larger values of an objective are better."""
    try:
        return higher_is_better(objective)
    except KeyError:  # unknown metric of another version
        return False


# ---------------------------------------------------------------- helpers


def parts_of(entries: Iterable[Entry]) -> dict[str, list[str]]:
    """Configuration key -> names of its parts, in order."""
    found: dict[str, dict[str, None]] = {}
    for entry in entries:
        found.setdefault(entry.configuration, {})[entry.part] = None
    return {configuration: list(parts) for configuration, parts in found.items()}


def to_json(artifact: Mapping[str, Any]) -> str:
    return json.dumps(artifact, separators=(",", ":"), allow_nan=False)


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (NaN for one value); far faster than `statistics`."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def milliseconds(seconds: float | None) -> int:
    return int((seconds or 0.0) * 1000)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _text(value)


def truncated(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
