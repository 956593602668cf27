"""How often machines failed while they trained a pack, and when it is given up. Pure.

The count belongs to a pack, that is to its members in their order (`messages.pack_id`), and is kept
with it in the ledger, so that it goes on in the next run of the driver. Replicates that are divided
into packs anew, such as after a change of the study file, start at 0.

A failure counts if the driver has seen it: a worker or its device failed, and the pack had trained
no further than at its failure before. Lost nodes and stopped packs do not count, nor do packs whose
driver was killed: nobody has seen them fail, and the next driver resumes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modmix.ledger.records import PackRecord

MAX_FAILURES = 5  # of machines without progress between them, before a pack is given up

UNKNOWN = "it ended without results, for an unknown reason"


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Failures of one pack.

    ``count``: since it last advanced. ``reached``: the last epoch it had trained at a failure.
    ``why``: it failed last.
    """

    count: int = 0
    reached: float = 0.0
    why: str = ""

    @classmethod
    def of(cls, record: PackRecord) -> Failures:
        """As the ledger has them."""
        note = record.note
        # Without a reason, it was counted before this module did: with lost nodes and stops.
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
