"""The best configuration of each method, chosen on validation and never on test.

Configurations compete within one condition (see `conditions`): where a study varies its task, the
winner is about the task as the study file gives it, and where every configuration changes it there
is none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modmix.analysis.conditions import Condition
from modmix.analysis.frames import Snapshot, read
from modmix.analysis.labels import (
    higher_is_better,
    is_metric,
    on_test,
    parameter_words,
    split_of,
    value_text,
)
from modmix.analysis.statistics import Estimate
from modmix.base.errors import InputError
from modmix.base.metrics import METRICS
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ConfigurationRecord


@dataclass(frozen=True, kw_only=True)
class BestConfiguration:
    """A method's best configuration. ``mean`` … ``ci_high`` are of ``metric``, on validation."""

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
    estimates: Mapping[str, Estimate]  # "test/error" -> over the same replicates

    @property
    def test(self) -> dict[str, dict[str, float]]:
        """As ``estimates``, in plain values: "test/error" -> {"n": 5, "mean": 3.1, …}."""
        return {name: asdict(found) for name, found in self.estimates.items()}


def best_configurations(
    ledger: Ledger, study: str, by: str | None = None
) -> list[BestConfiguration]:
    """The best configuration of every method that has a finished one, best method first.

    A configuration counts when all its replicates are done; among those of a method only the ones
    with the most replicates are compared (a mean over two seeds is lucky more often than one over
    five). The mean over replicates decides, the lower number breaks ties, NaN never wins.
    Configurations on other data than the task as given do not compete; where every configuration
    changes the task's options the list is empty, and `why_none` says so.

    Args:
        by: a metric on validation; the study's first objective when None.

    Raises:
        InputError: ``by`` is not on validation, or there is no such study.
    """
    return best_of(read(ledger, study), by)


def why_none(ledger: Ledger, study: str) -> str:
    """One sentence for people on why `best_configurations` is empty."""
    conditions = read(ledger, study).conditions
    if not conditions.is_split:
        return f"study {study!r} has no complete configuration yet: let it run on"
    names = ", ".join(parameter_words(name) for name in conditions.varied)
    one = max((condition.options for condition in conditions.all), key=len)
    block = ", ".join(f"{n}: {value_text(one[n])}" for n in conditions.varied if n in one)
    return (
        f"no configuration of study {study!r} is best over all, because every configuration "
        "changes the task's "
        f"options ({names}) and configurations on different data cannot be compared: fix them "
        "in the study "
        f"file, as in task: {{{block}}}"
    )


def best_of(
    snapshot: Snapshot,
    by: str | None = None,
    part: str | None = None,
    condition: Condition | None = None,
) -> list[BestConfiguration]:
    """`best_configurations` of what was read, within one part when it is given.

    Args:
        condition: where the configurations compete; the study's whole when None.
    """
    metric = by or snapshot.objectives[0]
    check_selection(metric)
    where = condition or snapshot.conditions.whole
    if where is None:
        return []
    rivals = _rivals(snapshot, where, part)
    found = [
        _best_configuration(snapshot, configuration, metric)
        for configuration in _winners(snapshot, rivals, metric)
    ]
    sign = _sign(metric)
    return sorted(found, key=lambda best: (sign * best.mean, best.number))


def best_keys(snapshot: Snapshot, by: str | None = None) -> dict[Condition, dict[str, str]]:
    """Per condition, the key of each method's best configuration there."""
    metric = by or snapshot.objectives[0]
    check_selection(metric)
    return {
        condition: {
            configuration.method: configuration.key
            for configuration in _winners(snapshot, _rivals(snapshot, condition), metric)
        }
        for condition in snapshot.conditions.all
    }


def candidates(snapshot: Snapshot, condition: Condition, part: str | None = None) -> dict[str, int]:
    """How many configurations each method's best one was chosen from."""
    return {
        m: len(configurations) for m, configurations in _rivals(snapshot, condition, part).items()
    }


def left_out(ledger: Ledger, study: str) -> list[str]:
    """`not_ranked` of a study."""
    return not_ranked(read(ledger, study))


def not_ranked(snapshot: Snapshot) -> list[str]:
    """Sentences on configurations that have ended and do not compete: pruned ones, and those of few
    seeds.

    A pruned configuration's values are of an early epoch; a mean over two seeds is lucky more often
    than one over five.
    """
    most = _most_seeds(snapshot, snapshot.configurations)
    pruned, fewer = Counter[str](), Counter[str]()
    for configuration in snapshot.configurations:
        states = [replicate.state for replicate in snapshot.replicates_of[configuration.key]]
        if "pruned" in states and set(states) <= {"done", "pruned"}:
            pruned[configuration.method] += 1
        elif configuration.key in snapshot.complete and len(states) < most[configuration.method]:
            fewer[configuration.method] += 1
    found = []
    if pruned:
        found.append(f"{_configurations(pruned)} pruned by halving, without a result: not ranked.")
    if fewer:
        found.append(
            f"{_configurations(fewer)} trained with fewer seeds than the best ones: not ranked."
        )
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
    """Per method, how many replicates its complete configurations have at most."""
    most: dict[str, int] = {}
    for configuration in configurations:
        if configuration.key in snapshot.complete:
            count = len(snapshot.replicates_of[configuration.key])
            most[configuration.method] = max(count, most.get(configuration.method, 0))
    return most


def default_metrics(snapshot: Snapshot) -> tuple[str, ...]:
    """The test metrics that a reader expects, the first objective's first."""
    wanted = [on_test(objective) for objective in snapshot.objectives] + ["test/error"]
    if snapshot.record.details.get("classes") == 2:
        wanted.append("test/auc")
    return tuple(dict.fromkeys(m for m in wanted if m in snapshot.metrics)) or ("test/error",)


def check_selection(metric: str) -> None:
    """Refuse to choose by anything but validation.

    Raises:
        InputError: the metric is unknown or of another split.
    """
    if split_of(metric) != "val" or not is_metric(metric):
        raise InputError(
            "configurations are chosen by a metric on validation, so that test results stay honest "
            f"({', '.join(f'val/{name}' for name in METRICS)}), got {metric!r}"
        )


def _sign(metric: str) -> float:
    return -1.0 if higher_is_better(metric) else 1.0


def _rivals(
    snapshot: Snapshot, condition: Condition, part: str | None = None
) -> dict[str, list[ConfigurationRecord]]:
    """Per method the complete configurations of one condition, of one part when it is given."""
    complete: dict[str, list[ConfigurationRecord]] = {}
    for configuration in snapshot.conditions.members[condition]:
        if configuration.key in snapshot.complete and (
            part is None or part in snapshot.parts_of.get(configuration.key, ())
        ):
            complete.setdefault(configuration.method, []).append(configuration)
    return complete


def _winners(
    snapshot: Snapshot, rivals: Mapping[str, Sequence[ConfigurationRecord]], metric: str
) -> list[ConfigurationRecord]:
    found = [_winner(snapshot, configurations, metric) for configurations in rivals.values()]
    return [configuration for configuration in found if configuration is not None]


def _winner(
    snapshot: Snapshot, rivals: Sequence[ConfigurationRecord], metric: str
) -> ConfigurationRecord | None:
    sign, means = _sign(metric), snapshot.means(metric)
    most = max(_most_seeds(snapshot, rivals).values())
    full = [p for p in rivals if len(snapshot.replicates_of[p.key]) == most]
    ranked = [p for p in full if not math.isnan(means[p.key])]
    return min(ranked, key=lambda p: (sign * means[p.key], p.number), default=None)


def _best_configuration(
    snapshot: Snapshot, configuration: ConfigurationRecord, metric: str
) -> BestConfiguration:
    own = snapshot.estimate(configuration.key, metric)
    tests = [name for name in snapshot.metrics if split_of(name) == "test"]
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
    )
