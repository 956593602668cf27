"""`Ledger`: studies, proposals and results on one database."""

from __future__ import annotations

from modmix.ledger.proposals import Proposals
from modmix.ledger.results import Results
from modmix.ledger.studies import Studies


class Ledger(Studies, Proposals, Results):
    """A database of studies. Safe to share between the threads of one process.

    Args:
        url: see `database.Database`.
    """
