"""`Ledger`: studies, proposals, results and predictions on one database."""

from __future__ import annotations

from modmix.ledger.predictions import StoredPredictions
from modmix.ledger.proposals import Proposals
from modmix.ledger.results import Results
from modmix.ledger.studies import Studies


class Ledger(Studies, Proposals, Results, StoredPredictions):
    """A database of studies. Safe to share between the threads of one process.

    Args:
        url: see `database.Database`.
    """
