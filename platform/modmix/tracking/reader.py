"""Reads a study from the ledger incrementally."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ENDED, ConfigurationRecord, ReplicateRecord, StudyRecord
from modmix.tracking.content import objectives_of, parts_of

# Results may become visible this much later than their time stamps (slow disks, other clocks).
_SLACK_SECONDS = 10.0


class Reader:
    """Configurations and replicates of one study. Keeps only metrics shown on the study's run."""

    def __init__(self, ledger: Ledger, study: str) -> None:
        self._ledger, self._study = ledger, study
        self.configurations: dict[str, ConfigurationRecord] = {}
        self.parts: Mapping[str, Sequence[str]] = {}  # by configuration
        self._replicates: dict[str, dict[str, ReplicateRecord]] = {}  # by configuration and key
        self._ended: set[str] = set()
        self._latest = 0.0  # time of the latest result read

    def of(self, configuration: str) -> list[ReplicateRecord]:
        """The replicates of a configuration."""
        return list(self._replicates.get(configuration, {}).values())

    def has_ended(self, replicate: str) -> bool:
        return replicate in self._ended

    def read_all(self, record: StudyRecord) -> dict[str, None]:
        """Read everything; return all configurations."""
        self.configurations = {p.key: p for p in self._ledger.configurations(self._study)}
        self.parts = parts_of(self._ledger.entries(self._study))
        self._replicates, self._ended = {}, set()
        self.take_in(record, self._ledger.replicates(self._study))
        return dict.fromkeys(self.configurations)

    def read_new(self, record: StudyRecord) -> dict[str, None]:
        """Read new configurations and results; return the changed configurations."""
        ledger, changed = self._ledger, dict[str, None]()
        last = max((p.number for p in self.configurations.values()), default=-1)
        if new := ledger.configurations(self._study, after=last):
            self.configurations |= {p.key: p for p in new}
            self.parts = parts_of(ledger.entries(self._study))
            theirs = ledger.replicates(self._study, configurations=[p.key for p in new])
            changed |= self.take_in(record, theirs)
        found = ledger.replicates(self._study, since=self._latest - _SLACK_SECONDS)
        return changed | self.take_in(record, [r for r in found if r.key not in self._ended])

    def take_in(self, record: StudyRecord, found: Iterable[ReplicateRecord]) -> dict[str, None]:
        """Take in records; return their configurations."""
        names = objectives_of(record.spec)
        configurations: dict[str, None] = {}
        for r in found:
            metrics = {name: r.metrics[name] for name in names if name in r.metrics}
            self._replicates.setdefault(r.configuration, {})[r.key] = replace(r, metrics=metrics)
            configurations[r.configuration] = None
            if r.state in ENDED:
                self._ended.add(r.key)
                self._latest = max(self._latest, r.finished or 0.0)
        return configurations
