"""The best configuration of each method, selected on validation, never on test.

Configurations are compared within one condition (see `conditions`). If a study varies its task, the
best configuration is that for the task as given; if every configuration changes the task, there is
none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from modmix.analysis.conditions import Condition
from modmix.analysis.frames import Snapshot, read
from modmix.analysis.labels import (
    higher_is_better,
    is_reported,
    on_test,
    parameter_name,
    split_of,
    value_text,
)
from modmix.analysis.statistics import Estimate
from modmix.base import ties
from modmix.base.errors import InputError
from modmix.base.metrics import METRICS
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ConfigurationRecord, superseded


@dataclass(frozen=True, kw_only=True)
class BestConfiguration:
    """A method's best configuration. ``mean`` to ``ci_high`` are of ``metric``, on validation."""

    method: str
    configuration: str  # full key
    number: int
    params: Mapping[str, Any]
    n: int
    mean: float
    std: float
    ci_low: float
    ci_high: float
    metric: str
    estimates: Mapping[str, Estimate]  # test metrics, over the same replicates
    task: str = ""  # in a study of several tasks
    by_pbt: bool = False  # `pbt` changed its hyperparameters: ``params`` are those at the start

    @property
    def test(self) -> dict[str, dict[str, float]]:
        """``estimates`` as plain dicts: "test/error" -> {"n": 5, "mean": 3.1, …}."""
        return {name: asdict(found) for name, found in self.estimates.items()}


def best_configurations(
    ledger: Ledger, study: str, by: str | None = None
) -> list[BestConfiguration]:
    """The best configuration of every method that has a complete one, best method first.

    A configuration is complete when all its replicates are done. Only those of a method with the
    most replicates are compared (means over fewer seeds vary more), and of those for which a part
    with ``best_of`` has trained the best one, only that. The best mean wins, the lower number
    breaks ties, NaN never wins. Configurations that change the task's options are excluded;
    if all do, the list is empty (see `explain_no_best`).

    Of a study of several tasks: those of each task, in the order of its file.

    Args:
        by: a validation metric; by default the study's first objective.

    Raises:
        InputError: ``by`` is not a validation metric, or there is no such study.
    """
    snapshot = read(ledger, study)
    if not snapshot.tasks:
        return best_of(snapshot, by)
    return [
        replace(best, task=task)
        for task in snapshot.tasks
        for best in best_of(snapshot.of_task(task), by)
    ]


def explain_no_best(ledger: Ledger, study: str) -> str:
    """Why `best_configurations` is empty, as a message."""
    snapshot = read(ledger, study)
    if snapshot.tasks:
        return "; ".join(_no_best(snapshot.of_task(task)) for task in snapshot.tasks)
    return _no_best(snapshot)


def _no_best(snapshot: Snapshot) -> str:
    study, conditions = snapshot.name, snapshot.conditions
    if not conditions.is_split and snapshot.complete:
        return f"study {study!r}: {undefined(snapshot)}"
    if not conditions.is_split:
        return f"study {study!r} has no complete configuration: {_incomplete(snapshot)}"
    names = ", ".join(parameter_name(name) for name in conditions.varied)
    one = max((condition.options for condition in conditions.all), key=len)
    block = ", ".join(f"{n}: {value_text(one[n])}" for n in conditions.varied if n in one)
    return (
        f"study {study!r} has no best configuration, because all of them change the task's "
        f"options ({names}) and results on different data cannot be compared: fix them in the "
        f"study file, as in task: {{{block}}}"
    )


def _incomplete(snapshot: Snapshot) -> str:
    """Why none of the configurations is complete, and what to do."""
    states = Counter(replicate.state for replicate in snapshot.replicates)
    if states["done"] and states.total() > states["done"] + states["failed"] + states["pruned"]:
        return (
            f"{states['done']} of {states.total()} models are done, and every configuration needs "
            "all of its seeds: continue with 'modmix run'"
        )
    if states["failed"] and states.total() == sum(states[s] for s in ("done", "failed", "pruned")):
        return (
            f"each has failed or pruned models: 'modmix status {snapshot.name}' shows why they "
            "failed, and 'modmix run FILE --retry-failed' trains them again"
        )
    return "continue with 'modmix run'"


def undefined(snapshot: Snapshot, by: str | None = None) -> str:
    """The message for complete configurations that all lack a value to select by."""
    metric = by or snapshot.objectives[0]
    return (
        f"{metric} is undefined (NaN) in every complete configuration, so that none is best: "
        "choose another objective"
    )


def best_of(
    snapshot: Snapshot,
    by: str | None = None,
    part: str | None = None,
    condition: Condition | None = None,
) -> list[BestConfiguration]:
    """`best_configurations` of a snapshot, optionally within one part.

    Args:
        condition: compare within this condition; by default `Conditions.main`.
    """
    metric = by or snapshot.objectives[0]
    check_selection(snapshot, metric)
    where = condition or snapshot.conditions.main
    if where is None:
        return []
    competitors = _competitors(snapshot, where, part)
    found = [
        _best_configuration(snapshot, configuration, metric)
        for configuration in _winners(snapshot, _standing(snapshot, competitors, part), metric)
    ]
    found.sort(key=lambda best: best.number)
    places = ties.places([best.mean for best in found], higher_is_better=higher_is_better(metric))
    return [found[i] for i in sorted(range(len(found)), key=lambda i: places[i] or 0)]


def best_keys(snapshot: Snapshot, by: str | None = None) -> dict[Condition, dict[str, str]]:
    """By condition, the key of each method's best configuration."""
    metric = by or snapshot.objectives[0]
    check_selection(snapshot, metric)
    return {
        condition: {
            configuration.method: configuration.key
            for configuration in _winners(
                snapshot, _standing(snapshot, _competitors(snapshot, condition)), metric
            )
        }
        for condition in snapshot.conditions.all
    }


def best_values(snapshot: Snapshot, method: str, parameter: str, by: str) -> dict[str, str]:
    """By value of a method's parameter, the key of the best configuration with that value.

    Selected as in `best_configurations`; values without a complete configuration are left out.
    """
    main = snapshot.conditions.main
    groups: dict[str, list[ConfigurationRecord]] = {}
    for one in _competitors(snapshot, main).get(method, []) if main else ():
        groups.setdefault(str(one.params.get(parameter)), []).append(one)
    winners = {value: _winner(snapshot, found, by) for value, found in groups.items()}
    return {value: winner.key for value, winner in winners.items() if winner is not None}


def candidates(snapshot: Snapshot, condition: Condition, part: str | None = None) -> dict[str, int]:
    """By method, the number of configurations its best one was selected from.

    Over all parts, what a part with ``best_of`` has trained again counts once.
    """
    again = {name for name, spec in snapshot.parts.items() if spec.get("best_of")}
    found = {}
    for method, these in _competitors(snapshot, condition, part).items():
        first = [one for one in these if not again.issuperset(snapshot.parts_of.get(one.key, [""]))]
        found[method] = len(first or these) if part is None else len(these)
    return found


def unranked(ledger: Ledger, study: str) -> list[str]:
    """Notes on configurations that were not ranked."""
    return unranked_notes(read(ledger, study))


def unranked_notes(snapshot: Snapshot) -> list[str]:
    """Notes on configurations that have ended and are not ranked: pruned, failed, fewer seeds.

    Those of parts with seeds of their own are ranked within their parts.
    """
    apart = {part for part, spec in snapshot.parts.items() if spec.get("seeds")}

    def is_apart(one: ConfigurationRecord) -> bool:
        parts = snapshot.parts_of.get(one.key, [""])
        return apart.issuperset(part.partition("@")[0] for part in parts)

    most = _most_seeds(snapshot, [one for one in snapshot.configurations if not is_apart(one)])
    pruned, fewer, failed = Counter[str](), Counter[str](), Counter[str]()
    for configuration in snapshot.configurations:
        states = [replicate.state for replicate in snapshot.replicates_of[configuration.key]]
        if "pruned" in states and set(states) <= {"done", "pruned"}:
            pruned[configuration.method] += 1
        elif "failed" in states and set(states) <= {"done", "pruned", "failed"}:
            failed[configuration.method] += 1
        elif is_apart(configuration):
            continue
        elif configuration.key in snapshot.complete and len(states) < most[configuration.method]:
            fewer[configuration.method] += 1
    found = []
    if pruned:
        found.append(f"{_configurations(pruned)} pruned by halving and not ranked.")
    if failed:
        found.append(f"{_configurations(failed)} not ranked because models have failed.")
    if fewer:
        found.append(f"{_configurations(fewer)} trained with fewer seeds and not ranked.")
    return found


def _configurations(counts: Mapping[str, int]) -> str:
    """ "12 configurations (mul 8, mulmix 4) were"."""
    total = sum(counts.values())
    each = ", ".join(f"{method} {count}" for method, count in counts.items())
    return (
        f"{total} configuration{'s' if total > 1 else ''} ({each}) {'were' if total > 1 else 'was'}"
    )


def _most_seeds(
    snapshot: Snapshot, configurations: Iterable[ConfigurationRecord]
) -> dict[str, int]:
    """By method, the largest number of replicates of a complete configuration."""
    most: dict[str, int] = {}
    for configuration in configurations:
        if configuration.key in snapshot.complete:
            count = len(snapshot.replicates_of[configuration.key])
            most[configuration.method] = max(count, most.get(configuration.method, 0))
    return most


def default_metrics(snapshot: Snapshot) -> tuple[str, ...]:
    """Test metrics shown by default, the first objective's first."""
    wanted = [on_test(objective) for objective in snapshot.objectives] + ["test/error"]
    if snapshot.record.details.get("classes") == 2:
        wanted.append("test/auc")
    return tuple(dict.fromkeys(m for m in wanted if m in snapshot.metrics)) or ("test/error",)


def check_selection(snapshot: Snapshot, metric: str) -> None:
    """Check that a metric is on validation, and recorded if it is one of a reported predictor.

    Raises:
        InputError: the metric is unknown or on another split.
    """
    known = [f"val/{name}" for name in METRICS]
    known += [m for m in snapshot.metrics if split_of(m) == "val" and is_reported(m)]
    if metric not in known:
        raise InputError(
            "configurations must be selected by a validation metric, so that test results stay "
            f"unbiased ({', '.join(known)}), got {metric!r}"
        )


def best_index(means: Sequence[float], metric: str) -> int | None:
    """The index of the best mean, the first of ties; None if all are NaN."""
    return ties.best(means, higher_is_better=higher_is_better(metric))


def _competitors(
    snapshot: Snapshot, condition: Condition, part: str | None = None
) -> dict[str, list[ConfigurationRecord]]:
    """By method, the complete configurations of a condition, optionally of one part."""
    complete: dict[str, list[ConfigurationRecord]] = {}
    for configuration in snapshot.conditions.members[condition]:
        if configuration.key in snapshot.complete and (
            part is None or part in snapshot.parts_of.get(configuration.key, ())
        ):
            complete.setdefault(configuration.method, []).append(configuration)
    return complete


def _standing(
    snapshot: Snapshot,
    competitors: Mapping[str, Sequence[ConfigurationRecord]],
    part: str | None = None,
) -> dict[str, list[ConfigurationRecord]]:
    """Without those whose best one was trained again by a part with ``best_of``.

    Within a part, all of its own are compared.
    """
    everything = [one for these in competitors.values() for one in these]
    out: set[str] = set()
    if part is None:
        seeds = {one.key: len(snapshot.replicates_of[one.key]) for one in everything}
        out = superseded(snapshot.record.spec, everything, snapshot.parts_of, seeds)
    return {
        method: [one for one in these if one.key not in out]
        for method, these in competitors.items()
    }


def _winners(
    snapshot: Snapshot, competitors: Mapping[str, Sequence[ConfigurationRecord]], metric: str
) -> list[ConfigurationRecord]:
    found = [_winner(snapshot, configurations, metric) for configurations in competitors.values()]
    return [configuration for configuration in found if configuration is not None]


def _winner(
    snapshot: Snapshot, competitors: Sequence[ConfigurationRecord], metric: str
) -> ConfigurationRecord | None:
    means = snapshot.means(metric)
    most = max(_most_seeds(snapshot, competitors).values())
    full = [p for p in competitors if len(snapshot.replicates_of[p.key]) == most]
    full.sort(key=lambda p: p.number)
    winner = best_index([means[p.key] for p in full], metric)
    return None if winner is None else full[winner]


def _best_configuration(
    snapshot: Snapshot, configuration: ConfigurationRecord, metric: str
) -> BestConfiguration:
    own = snapshot.estimate(configuration.key, metric)
    tests = [name for name in snapshot.metrics if split_of(name) == "test"]
    training = snapshot.record.spec.get("training") or {}
    return BestConfiguration(
        method=configuration.method,
        configuration=configuration.key,
        number=configuration.number,
        params=configuration.params,
        n=own.n,
        mean=own.mean,
        std=own.std,
        ci_low=own.ci_low,
        ci_high=own.ci_high,
        metric=metric,
        estimates={name: snapshot.estimate(configuration.key, name) for name in tests},
        by_pbt=bool({**training, **configuration.params}.get("pbt")),
    )
