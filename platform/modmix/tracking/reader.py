"""Reads a study from the ledger incrementally."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ENDED, ConfigurationRecord, ReplicateRecord
from modmix.tracking.content import objectives_of, parts_of

# Results may become visible this much later than their time stamps (slow disks, other clocks).
_SLACK_SECONDS = 10.0


class Reader:
    """Configurations and replicates of one study. Keeps only metrics shown on the study's run."""

    def __init__(self, ledger: Ledger, study: str) -> None:
        self._ledger, self._study = ledger, study
        self._objectives = objectives_of(ledger.study(study).spec)
        self.forget()

    def forget(self) -> None:
        """Read everything again next time."""
        self.configurations: dict[str, ConfigurationRecord] = {}
        self.parts: Mapping[str, Sequence[str]] = {}  # by configuration
        self._replicates: dict[str, dict[str, ReplicateRecord]] = {}  # by configuration and key
        self._ended: set[str] = set()
        self._latest = 0.0  # time of the latest result read

    def of(self, configuration: str) -> list[ReplicateRecord]:
        """The replicates of a configuration."""
        return list(self._replicates.get(configuration, {}).values())

    def read(self) -> dict[str, None]:
        """Read new configurations and results; return the changed configurations."""
        ledger, changed = self._ledger, list[ReplicateRecord]()
        last = max((c.number for c in self.configurations.values()), default=-1)
        if new := ledger.configurations(self._study, after=last):
            self.configurations |= {c.key: c for c in new}
            self.parts = parts_of(ledger.entries(self._study))
            changed = ledger.replicates(self._study, configurations=[c.key for c in new])
            self.take_in(changed)
        found = ledger.replicates(self._study, since=self._latest - _SLACK_SECONDS)
        ended = [r for r in found if r.key not in self._ended]
        self.take_in(ended)
        # Those proposed since the query above come next time.
        changed += [r for r in ended if r.configuration in self.configurations]
        return dict.fromkeys(r.configuration for r in changed)

    def take_in(self, found: Iterable[ReplicateRecord]) -> None:
        for r in found:
            metrics = {name: r.metrics[name] for name in self._objectives if name in r.metrics}
            self._replicates.setdefault(r.configuration, {})[r.key] = replace(r, metrics=metrics)
            if r.state in ENDED:
                self._ended.add(r.key)
                self._latest = max(self._latest, r.finished or 0.0)
