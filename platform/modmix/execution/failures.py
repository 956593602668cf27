"""How often machines failed while they trained a pack, and when it is abandoned. Pure.

The count belongs to a pack, identified by its members in order (`messages.pack_id`). It is stored
with the pack in the ledger, so it carries over to the next run of the driver. Replicates that are
regrouped into new packs, for example after the study file has changed, start at 0.

A failure counts only if the driver observed it: a worker or its device failed before the pack had
advanced beyond its previous failure. Lost nodes and stopped packs do not count, nor do packs whose
driver was killed: no driver observed a failure, and the next one resumes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modmix.base.messages import Replicate
from modmix.ledger.records import PackRecord

MAX_FAILURES = 5  # machine failures tolerated without progress; the next one abandons the pack

UNKNOWN = "the worker ended without results for an unknown reason"


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Failures of one pack.

    ``count``: since it last advanced. ``reached``: the last epoch it had trained at a failure.
    ``why``: reason for the last failure.
    """

    count: int = 0
    reached: float = 0.0
    why: str = ""

    @classmethod
    def of(cls, record: PackRecord) -> Failures:
        """As the ledger has them."""
        note = record.note
        # Without a reason, the count is from an older version, which also counted lost nodes.
        count = record.failures if "failure" in note else 0
        return cls(count=count, reached=note.get("reached", 0.0), why=note.get("failure", ""))

    @property
    def note(self) -> Mapping[str, Any]:
        """For the ledger, beside the count."""
        return {"reached": self.reached, "failure": self.why}

    @property
    def too_many(self) -> bool:
        return self.count > MAX_FAILURES

    def after(self, epoch: float, why: str) -> Failures:
        """With one more failure.

        Flaky machines must not end a pack that advances, and a pack that kills its worker at the
        same point must not run forever.

        Args:
            epoch: that the pack had reached.
            why: it failed; "" if unknown.
        """
        count = 1 if epoch > self.reached else self.count + 1
        return Failures(count=count, reached=max(epoch, self.reached), why=why or UNKNOWN)


class FailureLog:
    """The failures of a study's packs, in this and earlier runs, and which were given up."""

    def __init__(self) -> None:
        self._of: dict[str, Failures] = {}  # by pack
        self.given_up: Failures | None = None  # of the first pack that was given up
        self.untrainable: set[str] = set()  # replicates of packs that were given up

    def read(self, record: PackRecord) -> None:
        """Take up what the ledger has of an interrupted pack."""
        self._of[record.id] = Failures.of(record)

    def count(self, pack: str, epoch: float, why: str) -> Failures:
        """Add a failure, see `Failures.after`; return all of this pack."""
        self._of[pack] = self._of.get(pack, Failures()).after(epoch, why)
        return self._of[pack]

    def gives_up(self, pack: str, replicates: Sequence[Replicate]) -> bool:
        """Whether a pack has failed too often; its replicates are untrainable from then on."""
        failures = self._of.get(pack)
        if failures is None or not failures.too_many:
            return False
        self.given_up = self.given_up or failures
        self.untrainable |= {replicate.key for replicate in replicates}
        return True
