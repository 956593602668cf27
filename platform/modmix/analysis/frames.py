"""A study as pandas frames. `COLUMNS` documents their columns.

A hyperparameter's cell is empty if the method does not have it or its value is null; lists and
mappings are JSON text. Units: errors in percent; AUC, ECE and F1 between 0 and 1; NLL in nats.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from modmix.analysis.conditions import PREFIX, Conditions, conditions_of, task_params
from modmix.analysis.statistics import Estimate, estimate, t_quantile
from modmix.base import ties
from modmix.base.errors import InputError
from modmix.base.metrics import STAGE, value_range
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import (
    ENVIRONMENT,
    ConfigurationRecord,
    Entry,
    ReplicateRecord,
    StudyRecord,
    of_task,
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """The meaning of a column, and its unit ("" for none)."""

    meaning: str
    unit: str = ""


COLUMNS: Mapping[str, Column] = {
    "method": Column(meaning="the method that combines the modalities"),
    "configuration": Column(
        meaning="the configuration's short key: the first digits of its digest"
    ),
    "number": Column(meaning="the configuration's number in the study, from 0, as proposed"),
    "n": Column(meaning="finished replicates in the statistics", unit="replicates"),
    "state": Column(meaning="done, pending, running, …; with counts if replicates differ"),
    "parts": Column(meaning="the parts with this configuration, separated by commas"),
    "seed": Column(meaning="the replicate's seed"),
    "epochs": Column(meaning="epochs trained", unit="epochs"),
    "best_epoch": Column(meaning="the epoch whose weights were evaluated", unit="epochs"),
    "seconds": Column(meaning="the replicate's share of device time", unit="s"),
    "origin": Column(meaning="trained by this study, or reused from another"),
    "reason": Column(meaning="why the replicate failed or was pruned"),
    "environment/device": Column(meaning="the device it was trained on"),
    "environment/host": Column(meaning="name of the machine it was trained on"),
    "environment/torch": Column(meaning="version of torch"),
    "environment/cuda": Column(meaning="version of CUDA that torch was built with"),
    "environment/modmix": Column(meaning="version of modmix"),
    "replicate": Column(meaning="the replicate's key in the ledger"),
    "epoch": Column(meaning="epochs since the start; fractional between them", unit="epochs"),
    "<metric>/mean": Column(meaning="mean over replicates", unit="the metric's"),
    "<metric>/std": Column(meaning="standard deviation, n - 1", unit="the metric's"),
    "<metric>/ci_low": Column(
        meaning="95 % t interval, clipped to the metric's range", unit="the metric's"
    ),
    "<metric>/ci_high": Column(
        meaning="95 % t interval, clipped to the metric's range", unit="the metric's"
    ),
}
STATISTICS = ("mean", "std", "ci_low", "ci_high")
FIRST_METRICS = ("val/error", "test/error")  # always present, before the others
SHORT = 10  # digits of a short key


def short(key: str) -> str:
    """The short key of a configuration; unique among 10,000 configurations."""
    return key[:SHORT]


# ---------------------------------------------------------------- snapshots


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One study as read from the ledger; the input of every analysis."""

    record: StudyRecord
    configurations: Sequence[ConfigurationRecord]
    replicates: Sequence[ReplicateRecord]
    entries: Sequence[Entry]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(self.record.spec.get("objective") or ("val/error",))

    @property
    def parts(self) -> Mapping[str, Mapping[str, Any]]:
        """The parts of the study file, in its order."""
        return self.record.spec.get("parts") or {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks of a study of several, in the order of its file."""
        return tuple(self.record.spec.get("tasks") or ())

    def of_task(self, task: str) -> Snapshot:
        """What the study would be if it had this task alone; see `study.tasks_plan`.

        Raises:
            InputError: the study has no such task.
        """
        if task not in self.tasks:
            known = ", ".join(self.tasks) or "one task without a name"
            raise InputError(f"study {self.name!r} has {known}; got {task!r}")
        record = of_task(self.record, task)
        mine = {c.key for c in self.configurations if c.task == task}
        return Snapshot(
            record=record,
            configurations=[c for c in self.configurations if c.key in mine],
            replicates=[r for r in self.replicates if r.configuration in mine],
            entries=[
                replace(entry, part=entry.part.partition("@")[0])
                for entry in self.entries
                if entry.configuration in mine
            ],
        )

    @cached_property
    def by_key(self) -> dict[str, ConfigurationRecord]:
        return {configuration.key: configuration for configuration in self.configurations}

    @cached_property
    def replicates_of(self) -> dict[str, list[ReplicateRecord]]:
        """Replicates by configuration key; an empty list if there are none."""
        found: dict[str, list[ReplicateRecord]] = {
            configuration.key: [] for configuration in self.configurations
        }
        for replicate in self.replicates:
            if replicate.configuration in found:
                found[replicate.configuration].append(replicate)
        return found

    @cached_property
    def parts_of(self) -> dict[str, list[str]]:
        """The parts with each configuration, in the order of `parts`."""
        order = {part: i for i, part in enumerate(self.parts)}
        found: dict[str, set[str]] = {}
        for entry in self.entries:
            found.setdefault(entry.configuration, set()).add(entry.part)
        return {
            configuration: sorted(parts, key=lambda part: (order.get(part, len(order)), part))
            for configuration, parts in found.items()
        }

    @cached_property
    def conditions(self) -> Conditions:
        """Configurations by their data; see `conditions`."""
        details = self.record.details
        given, data = details.get("task_options") or {}, str(details.get("fingerprint") or "")
        return conditions_of(self.configurations, data, given, self._leaves_task)

    def _leaves_task(self, configuration: ConfigurationRecord) -> bool:
        """Whether a part has this configuration without setting task options."""
        return not task_params(configuration) or any(
            not any(name.startswith(PREFIX) for name in block)
            for block in self._blocks(configuration)
        )

    def _blocks(self, configuration: ConfigurationRecord) -> list[dict[str, Any]]:
        """The blocks of a configuration's method in each part with the configuration."""
        parts = [self.parts.get(part) or {} for part in self.parts_of.get(configuration.key, ())]
        return [
            {**(part.get("shared") or {}), **(part["methods"][configuration.method] or {})}
            for part in parts
            if configuration.method in (part.get("methods") or {})
        ]

    @cached_property
    def methods(self) -> list[str]:
        """Methods in order of first appearance."""
        return list(dict.fromkeys(configuration.method for configuration in self.configurations))

    @cached_property
    def metrics(self) -> list[str]:
        """All metrics of finished replicates: the two errors, then validation, test, training."""
        seen = {name for r in self.replicates if r.state == "done" for name in r.metrics}
        order = {"val": 0, "test": 1, "train": 2}
        rest = sorted(seen - set(FIRST_METRICS), key=lambda m: (order.get(m.split("/")[0], 3), m))
        return [*FIRST_METRICS, *rest]

    @cached_property
    def configurations_table(self) -> pd.DataFrame:
        """`configurations_frame`, indexed by full keys."""
        return _configurations_table(self)

    def means(self, metric: str) -> Mapping[str, float]:
        """Means of a metric by configuration key; NaN if missing."""
        if metric not in self._means:
            self._means[metric] = self._column_of_means(metric)
        return self._means[metric]

    @cached_property
    def _means(self) -> dict[str, dict[str, float]]:
        return {}

    def _column_of_means(self, metric: str) -> dict[str, float]:
        column = self.configurations_table.get(f"{metric}/mean")
        if column is None:
            return dict.fromkeys(self.by_key, math.nan)
        return {str(key): float(mean) for key, mean in column.items()}

    @cached_property
    def complete(self) -> frozenset[str]:
        """The configurations whose replicates are all done."""
        return frozenset(
            key
            for key, mine in self.replicates_of.items()
            if mine and all(replicate.state == "done" for replicate in mine)
        )

    def by_seed(self, configuration: str, metric: str) -> dict[int, float]:
        """A metric of a configuration's finished replicates, by seed."""
        return {
            replicate.seed: replicate.metrics.get(metric, math.nan)
            for replicate in self.replicates_of[configuration]
            if replicate.state == "done"
        }

    def estimate(self, configuration: str, metric: str) -> Estimate:
        """A metric over a configuration's finished replicates."""
        values = list(self.by_seed(configuration, metric).values())
        return estimate(values, bounds=value_range(metric))


def read(ledger: Ledger, study: str) -> Snapshot:
    """Read a study.

    A driver may be writing: configurations are read last, so that none is missing for a replicate.

    Raises:
        InputError: there is no such study.
    """
    record = ledger.study(study)
    entries = ledger.entries(study)
    replicates = ledger.replicates(study)
    return Snapshot(
        record=record,
        configurations=ledger.configurations(study),
        replicates=replicates,
        entries=entries,
    )


# ---------------------------------------------------------------- frames


def configurations_frame(ledger: Ledger, study: str) -> pd.DataFrame:
    """One row per configuration, in order of proposal.

    Columns: ``method``; the hyperparameters (union over methods); ``n``, the finished replicates;
    ``<metric>/mean``, ``/std``, ``/ci_low``, ``/ci_high`` over them (NaN for what n cannot give:
    all four at n = 0, all but the mean at n = 1); ``state``; ``parts``; ``configuration``.

    With failed or pruned replicates, the statistics are over the finished ones, and ``state`` is
    for example "done 4 of 5, failed 1".
    """
    return read(ledger, study).configurations_table.reset_index(drop=True)


def replicates_frame(ledger: Ledger, study: str) -> pd.DataFrame:
    """One row per replicate, by configuration number and seed, whatever its state.

    Columns: ``configuration``, ``number``, ``method``, ``seed``, ``state``; the hyperparameters;
    the metrics (of pruned or failed replicates as far as recorded); ``epochs``, ``best_epoch``,
    ``seconds``, ``origin``, ``reason``; ``environment/device``, ``/host`` and versions ``/torch``,
    ``/cuda``, ``/modmix`` ("" where not recorded); ``replicate``.
    """
    return replicates_of(read(ledger, study))


def histories_frame(
    ledger: Ledger, study: str, configurations: Iterable[str] | None = None
) -> pd.DataFrame:
    """Learning curves: mean and standard deviation per configuration and epoch.

    Columns: ``configuration``, ``number``, ``method``, ``epoch``, ``n`` (replicates still training
    at that epoch), ``stage`` (of methods with several), and ``<metric>/mean``, ``<metric>/std`` of
    every other recorded column.

    Args:
        configurations: full or short keys; all if None, which is slow for large studies.
    """
    return histories_of(ledger, read(ledger, study), configurations)


def replicates_of(snapshot: Snapshot) -> pd.DataFrame:
    """`replicates_frame` of a snapshot."""
    rows = [r for r in snapshot.replicates if r.configuration in snapshot.by_key]
    owners = [snapshot.by_key[r.configuration] for r in rows]
    names = sorted({name for r in rows for name in r.metrics})
    metrics = [*snapshot.metrics, *(name for name in names if name not in snapshot.metrics)]
    columns: dict[str, Any] = {
        "configuration": [short(p.key) for p in owners],
        **({"task": [p.task for p in owners]} if snapshot.tasks else {}),
        "number": np.array([p.number for p in owners], dtype=np.int64),
        "method": [p.method for p in owners],
        "seed": np.array([r.seed for r in rows], dtype=np.int64),
        "state": [r.state for r in rows],
    }
    columns |= hyperparameter_columns(owners)
    for metric in metrics:
        columns[metric] = np.array([r.metrics.get(metric, math.nan) for r in rows], dtype=float)
    for name in ("epochs", "best_epoch", "seconds", "origin", "reason"):
        columns[name] = [getattr(r, name) for r in rows]
    for name in ENVIRONMENT:
        columns[f"environment/{name}"] = [r.environment.get(name, "") for r in rows]
    columns["replicate"] = [r.key for r in rows]
    return pd.DataFrame(columns)


def histories_of(
    ledger: Ledger, snapshot: Snapshot, configurations: Iterable[str] | None = None
) -> pd.DataFrame:
    """`histories_frame` of a snapshot."""
    wanted = (
        None
        if configurations is None
        else {short(configuration) for configuration in configurations}
    )
    owners = {
        r.key: snapshot.by_key[r.configuration]
        for r in snapshot.replicates
        if r.configuration in snapshot.by_key
        and (wanted is None or short(r.configuration) in wanted)
    }
    by_replicate = {key: owner.number for key, owner in owners.items()}
    frame = _long_histories(ledger, snapshot.record.key or snapshot.name, by_replicate)
    if frame.empty:
        return pd.DataFrame(
            {name: [] for name in ("configuration", "number", "method", "epoch", "n")}
        )
    grouped = frame.groupby(["number", "epoch"], sort=True)
    means, spreads, counts = grouped.mean(), grouped.std(ddof=1), grouped.size()
    by_number = {p.number: p for p in snapshot.configurations}
    numbers = [int(number) for number, _ in means.index]
    columns_out: dict[str, Any] = {
        "configuration": [short(by_number[number].key) for number in numbers],
        "number": numbers,
        "method": [by_number[number].method for number in numbers],
        "epoch": [float(epoch) for _, epoch in means.index],
        "n": counts.to_numpy(),
    }
    for metric in means.columns:
        if metric == STAGE:
            columns_out[STAGE] = means[metric].to_numpy()
            continue
        columns_out[f"{metric}/mean"] = means[metric].to_numpy()
        columns_out[f"{metric}/std"] = spreads[metric].to_numpy()
    return pd.DataFrame(columns_out)


def _long_histories(ledger: Ledger, study: str, numbers: Mapping[str, int]) -> pd.DataFrame:
    """Histories under each other: ``number`` of the configuration, then every recorded column."""
    rows: list[int] = []
    found: list[dict[str, list[float]]] = []
    for key, columns in ledger.histories(study, list(numbers)).items():
        if columns.get("epoch"):
            found.append(columns)
            rows += [numbers[key]] * len(columns["epoch"])
    data: dict[str, Any] = {"number": np.array(rows, dtype=np.int64)}
    for name in dict.fromkeys(name for columns in found for name in columns):
        pieces = (columns.get(name) or [math.nan] * len(columns["epoch"]) for columns in found)
        data[name] = np.array([*itertools.chain.from_iterable(pieces)], dtype=np.float64)
    return pd.DataFrame(data)


# ---------------------------------------------------------------- columns


def configuration_state(states: Sequence[str]) -> str:
    """The state of a configuration from those of its replicates.

    Their common state if they agree. Otherwise "done 4 of 5, failed 1" if all have ended, and
    "running, done 2 of 5" (or "interrupted", "pending") if some have not.
    """
    counts = Counter(states)
    if not states:
        return "pending"
    if len(counts) == 1:
        return states[0]
    waiting = [state for state in ("running", "interrupted", "pending") if counts[state]]
    ended = [f"done {counts['done']} of {len(states)}"] if counts["done"] else []
    ended += [f"{state} {counts[state]}" for state in ("failed", "pruned") if counts[state]]
    return ", ".join([*waiting[:1], *ended])


def hyperparameter_columns(configurations: Sequence[ConfigurationRecord]) -> dict[str, Any]:
    """One column per hyperparameter over all methods, in order of first appearance."""
    names = dict.fromkeys(name for configuration in configurations for name in configuration.params)
    return {
        # Avoid a clash with a column of the frame.
        (f"{name}_" if name in COLUMNS else name): _column(
            [p.params.get(name) for p in configurations]
        )
        for name in names
    }


def _column(values: Sequence[Any]) -> Any:
    """Values as a column of the narrowest type that keeps integers as integers."""
    flat = [json.dumps(v) if isinstance(v, (list, Mapping)) else v for v in values]
    kinds = {type(v) for v in flat if v is not None}
    if kinds == {int}:
        return pd.Series(flat, dtype="Int64").array if None in flat else flat
    if kinds and kinds <= {int, float}:
        return np.array([math.nan if v is None else v for v in flat], dtype=float)
    return pd.Series(flat, dtype=object) if len(kinds) != 1 or bool in kinds else flat


def _configurations_table(snapshot: Snapshot) -> pd.DataFrame:
    states = [[r.state for r in snapshot.replicates_of[p.key]] for p in snapshot.configurations]
    counts = np.array([mine.count("done") for mine in states], dtype=np.int64)
    columns: dict[str, Any] = {}
    if snapshot.tasks:
        columns["task"] = [p.task for p in snapshot.configurations]
    columns["method"] = [p.method for p in snapshot.configurations]
    columns |= hyperparameter_columns(snapshot.configurations)
    columns["n"] = counts
    columns |= _statistics(snapshot, counts)
    columns["state"] = [configuration_state(mine) for mine in states]
    columns["parts"] = [",".join(snapshot.parts_of.get(p.key, [])) for p in snapshot.configurations]
    columns["configuration"] = [short(p.key) for p in snapshot.configurations]
    frame = pd.DataFrame(columns)
    frame.index = pd.Index([p.key for p in snapshot.configurations], name="key", dtype=object)
    return frame


def _statistics(snapshot: Snapshot, counts: np.ndarray[Any, Any]) -> dict[str, Any]:
    """`statistics.estimate` for all metrics and configurations, vectorised."""
    metrics = snapshot.metrics
    place = {p.key: i for i, p in enumerate(snapshot.configurations)}
    done = [r for r in snapshot.replicates if r.state == "done" and r.configuration in place]
    done.sort(key=lambda r: place[r.configuration])
    at = np.array([place[r.configuration] for r in done], dtype=np.int64)
    bounds = np.searchsorted(at, np.arange(len(place) + 1)).tolist()
    values = np.array([[r.metrics.get(m, math.nan) for m in metrics] for r in done], dtype=float)
    n = counts.astype(np.float64)
    columns: dict[str, Any] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for i, metric in enumerate(metrics):
            x = values[:, i] if len(done) else np.zeros(0)
            own = x.tolist()
            mine = [own[first:end] for first, end in itertools.pairwise(bounds)]
            mean = np.array([ties.mean(each) for each in mine])
            squares = np.bincount(at, weights=(x - mean[at]) ** 2, minlength=len(place))
            std = np.where(n > 1, np.sqrt(squares / (n - 1)), np.nan)
            flat = [bool(each) and ties.is_tie(min(each), max(each)) for each in mine]
            std = np.where((n > 1) & np.array(flat, dtype=bool), 0.0, std)
            half = t_quantile(n) * std / np.sqrt(n)
            lowest, highest = value_range(metric)
            low, high = np.maximum(mean - half, lowest), np.minimum(mean + half, highest)
            pieces = (mean, std, low, high)
            for name, piece in zip(STATISTICS, pieces, strict=True):
                columns[f"{metric}/{name}"] = piece
    return columns


def estimate_columns(value: Estimate, metric: str) -> dict[str, Any]:
    """An estimate as columns of `configurations_frame`."""
    pieces = {f"{metric}/{name}": getattr(value, name) for name in STATISTICS}
    return {"n": value.n, **pieces}
