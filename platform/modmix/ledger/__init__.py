"""The ledger: studies, configurations, replicates and their results. The one truth; the rest
mirrors it.

    studies            one row a study: its file, its state, its lease, its seconds
    configurations             a method with resolved hyperparameters, named by a digest
    replicates         a configuration trained with one seed in one setting, named by a digest: the
    result histories          a replicate's metrics at each evaluation (compressed JSON)
    study_configurations       which configurations a study has, and their mirrored MLflow runs
    study_replicates   which replicates a study needs, and whether it trained or found them entries
    what each part of a study asked for: a grid's or a sampler's numbered configurations packs
    which replicates are (or were) trained together, so that they resume together

One writer: the driver that holds the study's lease. Every method is one transaction, so a kill at
any moment leaves what was before it or what was after it. SQLite runs in WAL mode with full
synchronisation, so a finished replicate survives the machine's death, too.

    records    what is kept, as values
    database   the tables and transactions        studies     studies and leases
    asked      configurations and entries                 heartbeat   keeps a lease alive
    results    replicates, histories, packs

These are the only files with sqlalchemy.
"""

from __future__ import annotations

from modmix.ledger.heartbeat import Heartbeat
from modmix.ledger.proposals import Proposals
from modmix.ledger.records import (
    ENDED,
    REPLICATE_STATES,
    ConfigurationRecord,
    Entry,
    Lease,
    NewConfiguration,
    PackRecord,
    ReplicateRecord,
    Result,
    StudyRecord,
)
from modmix.ledger.results import Results
from modmix.ledger.studies import HEARTBEAT_SECONDS, LEASE_SECONDS, Studies

__all__ = [
    "ENDED",
    "HEARTBEAT_SECONDS",
    "LEASE_SECONDS",
    "REPLICATE_STATES",
    "ConfigurationRecord",
    "Entry",
    "Heartbeat",
    "Lease",
    "Ledger",
    "NewConfiguration",
    "PackRecord",
    "ReplicateRecord",
    "Result",
    "StudyRecord",
]


class Ledger(Studies, Proposals, Results):
    """A database of studies: all of the above. Safe to share between threads of one process."""
