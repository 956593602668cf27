"""Migrates ledgers of version 4, in one transaction.

Studies keep their names, without an owner: everybody can read them by their plain name, and each
becomes the study of the first person who runs it again (`Studies.acquire`). What version 4 shared
between studies, that a replicate was pruned or failed, becomes the own outcome of every study that
had taken note of it.
"""

from __future__ import annotations

import time

import sqlalchemy as sa

from modmix.base.errors import InputError
from modmix.ledger.tables import (
    HISTORIES,
    OUTCOMES,
    REPLICATES,
    SCHEMA_VERSION,
    STUDIES,
    STUDY_COLUMNS,
    STUDY_CONFIGURATIONS,
    STUDY_LENGTH,
    STUDY_REPLICATES,
    VERSION,
)

MIGRATED = (4,)  # versions that `migrate` understands

_QUIET_SECONDS = 120.0  # of a driver of the old version, which wrote its own clock's time


def migrate(engine: sa.Engine) -> None:
    """Bring a ledger of version 4 to the present one; of two processes, one does it.

    Raises:
        InputError: a driver is running one of its studies.
    """
    with engine.begin() as db:
        if db.dialect.name == "postgresql":
            db.execute(sa.text(f"LOCK TABLE {VERSION.name} IN ACCESS EXCLUSIVE MODE"))
        if db.execute(sa.select(VERSION.c.version)).scalar() not in MIGRATED:
            return  # another process was faster
        _check_quiet(db)
        for table, column in (
            (STUDIES, STUDIES.c.lease_space),
            (REPLICATES, REPLICATES.c.environment),
            (STUDY_CONFIGURATIONS, STUDY_CONFIGURATIONS.c.params),
        ):
            kind = column.type.compile(db.dialect)
            db.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))
        if db.dialect.name == "postgresql":  # SQLite does not look at lengths
            _widen_names(db)
        OUTCOMES.create(db)
        for index in STUDY_CONFIGURATIONS.indexes:
            index.create(db)
        _move_outcomes(db)
        db.execute(sa.update(VERSION).values(version=SCHEMA_VERSION))


def _check_quiet(db: sa.Connection) -> None:
    late = time.time() - _QUIET_SECONDS
    busy = sa.select(STUDIES.c.name).where(
        STUDIES.c.lease_token.is_not(None), STUDIES.c.lease_heartbeat > late
    )
    if (name := db.execute(busy).scalars().first()) is not None:
        raise InputError(
            f"an older modmix is running study {name!r} in this ledger: wait until it ends (or two "
            "minutes if it was killed); the ledger is migrated to this version after that"
        )


def _widen_names(db: sa.Connection) -> None:
    for column in STUDY_COLUMNS:
        if column.table is not OUTCOMES:
            statement = (
                f"ALTER TABLE {column.table} ALTER {column.name} TYPE VARCHAR({STUDY_LENGTH})"
            )
            db.execute(sa.text(statement))


def _move_outcomes(db: sa.Connection) -> None:
    ended = REPLICATES.c.state.in_(("pruned", "failed"))
    copied = ("state", "pack", "epochs", "best_epoch", "metrics", "reason", "seconds", "finished")
    found = (
        sa.select(
            STUDY_REPLICATES.c.study,
            STUDY_REPLICATES.c.replicate,
            *(REPLICATES.c[name] for name in copied),
            HISTORIES.c["columns"],
        )
        .join(REPLICATES, REPLICATES.c.key == STUDY_REPLICATES.c.replicate)
        .outerjoin(HISTORIES, HISTORIES.c.replicate == REPLICATES.c.key)
        .where(ended, STUDY_REPLICATES.c.origin != "")
    )
    columns = ["study", "replicate", *copied, "columns"]
    db.execute(sa.insert(OUTCOMES).from_select(columns, found, include_defaults=False))
    theirs = sa.select(REPLICATES.c.key).where(ended)
    db.execute(sa.delete(HISTORIES).where(HISTORIES.c.replicate.in_(theirs)))
    db.execute(
        sa.update(REPLICATES)
        .where(ended)
        .values(
            state="pending",
            owner=None,
            epochs=0,
            best_epoch=0.0,
            metrics="{}",
            reason="",
            seconds=0.0,
            finished=None,
        )
    )
