"""What the ledger says of a study by now, without reading all of it again and again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from modmix.ledger import ENDED, Ledger, PointRecord, ReplicateRecord, StudyRecord
from modmix.tracking.content import objectives_of, parts_of

# A result may come to be seen this much later than its time says (a slow disk, another's clock).
_SLACK_SECONDS = 10.0


class Reader:
    """Points and replicates of one study. Of results it keeps what the study's own run shows."""

    def __init__(self, ledger: Ledger, study: str) -> None:
        self._ledger, self._study = ledger, study
        self.points: dict[str, PointRecord] = {}
        self.parts: Mapping[str, Sequence[str]] = {}  # by point
        self._replicates: dict[str, dict[str, ReplicateRecord]] = {}  # by point and key
        self._ended: set[str] = set()
        self._latest = 0.0  # when the latest result that was read had ended

    def of(self, point: str) -> list[ReplicateRecord]:
        """The replicates of a point."""
        return list(self._replicates.get(point, {}).values())

    def has_ended(self, replicate: str) -> bool:
        return replicate in self._ended

    def read_all(self, record: StudyRecord) -> dict[str, None]:
        """Read everything; return all points."""
        self.points = {p.key: p for p in self._ledger.points(self._study)}
        self.parts = parts_of(self._ledger.entries(self._study))
        self._replicates, self._ended = {}, set()
        self.take_in(record, self._ledger.replicates(self._study))
        return dict.fromkeys(self.points)

    def read_new(self, record: StudyRecord) -> dict[str, None]:
        """Read points and results that have come since the last look; return their points."""
        ledger, changed = self._ledger, dict[str, None]()
        last = max((p.number for p in self.points.values()), default=-1)
        if new := ledger.points(self._study, after=last):
            self.points |= {p.key: p for p in new}
            self.parts = parts_of(ledger.entries(self._study))
            theirs = ledger.replicates(self._study, points=[p.key for p in new])
            changed |= self.take_in(record, theirs)
        found = ledger.replicates(self._study, since=self._latest - _SLACK_SECONDS)
        return changed | self.take_in(record, [r for r in found if r.key not in self._ended])

    def take_in(self, record: StudyRecord, found: Iterable[ReplicateRecord]) -> dict[str, None]:
        """Keep records; return their points."""
        names = objectives_of(record.spec)
        points: dict[str, None] = {}
        for r in found:
            metrics = {name: r.metrics[name] for name in names if name in r.metrics}
            self._replicates.setdefault(r.point, {})[r.key] = replace(r, metrics=metrics)
            points[r.point] = None
            if r.state in ENDED:
                self._ended.add(r.key)
                self._latest = max(self._latest, r.finished or 0.0)
        return points
