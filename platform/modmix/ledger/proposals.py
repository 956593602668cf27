"""The configurations of studies, and the entries of grids and searches that proposed them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa

from modmix.ledger.database import Database, insert_new
from modmix.ledger.records import ConfigurationRecord, Entry, NewConfiguration, dump, number
from modmix.ledger.retrying import retried
from modmix.ledger.tables import (
    CONFIGURATIONS,
    ENTRIES,
    REPLICATES,
    STUDIES,
    STUDY_CONFIGURATIONS,
    STUDY_REPLICATES,
)


class Proposals(Database):
    """The configurations and entries of studies."""

    @retried
    def add(
        self, study: str, configurations: Sequence[NewConfiguration], entries: Sequence[Entry]
    ) -> None:
        """Add configurations with their replicates, and the entries that proposed them.

        Existing rows are kept, including results of other studies; what the study shows of its
        configurations (``params``, ``options``) is renewed.
        """
        with self._writing(study) as (db, study_key):
            insert_new(
                db,
                CONFIGURATIONS,
                [
                    {"key": p.key, "method": p.method, "params": dump(p.params)}
                    for p in configurations
                ],
            )
            insert_new(
                db,
                REPLICATES,
                [
                    {"key": key, "configuration": p.key, "seed": seed, "state": "pending"}
                    for p in configurations
                    for key, seed in p.replicates
                ],
            )
            mine = STUDY_CONFIGURATIONS.c.study == study_key
            last = db.execute(
                sa.select(sa.func.max(STUDY_CONFIGURATIONS.c.number)).where(mine)
            ).scalar()
            first = 0 if last is None else last + 1  # not the count: some may have been removed
            known = _known(db, study_key, [p.key for p in configurations])
            shown = {
                p.key: {"params": dump(p.params), "options": dump(p.options)}
                for p in configurations
            }
            fresh = {p.key: p for p in configurations if p.key not in known}
            if fresh:
                db.execute(
                    sa.insert(STUDY_CONFIGURATIONS),
                    [
                        {
                            "study": study_key,
                            "configuration": key,
                            "number": first + i,
                            "task": p.task,
                            "fingerprint": p.fingerprint,
                            **shown[key],
                        }
                        for i, (key, p) in enumerate(fresh.items())
                    ],
                )
            for key, values in shown.items():
                if key in known and known[key] != values:
                    where = mine & (STUDY_CONFIGURATIONS.c.configuration == key)
                    db.execute(sa.update(STUDY_CONFIGURATIONS).where(where).values(values))
            insert_new(
                db,
                STUDY_REPLICATES,
                [
                    {
                        "study": study_key,
                        "replicate": key,
                        "configuration": p.key,
                        "seed": seed,
                        "origin": "",
                    }
                    for p in configurations
                    for key, seed in p.replicates
                ],
                # After a change of the study file the same model may belong to a configuration
                # with more or fewer parameters shown.
                renew=["configuration"],
            )
            insert_new(
                db,
                ENTRIES,
                [
                    {
                        "study": study_key,
                        "part": e.part,
                        "method": e.method,
                        "number": e.number,
                        "configuration": e.configuration,
                        "batch": e.batch,
                        "proposal": dump(e.proposal),
                        "state": e.state,
                    }
                    for e in entries
                ],
            )

    @retried
    def keep_only_entries(self, study: str, signatures: Mapping[tuple[str, str], str]) -> None:
        """Delete the entries of parts that were removed from the study file, or changed.

        Results are kept.

        Args:
            signatures: by (part, method), a digest of everything its entries depend on.
        """
        now = {"/".join(key): value for key, value in signatures.items()}
        with self._writing(study) as (db, study_key):
            text = db.execute(
                sa.select(STUDIES.c.signatures).where(STUDIES.c.name == study_key)
            ).scalar_one()
            before = json.loads(text)
            pairs = sa.select(ENTRIES.c.part, ENTRIES.c.method).where(ENTRIES.c.study == study_key)
            for part, method in db.execute(pairs.distinct()).all():
                key = f"{part}/{method}"
                if key not in now or before.get(key) != now[key]:
                    db.execute(
                        sa.delete(ENTRIES).where(
                            ENTRIES.c.study == study_key,
                            ENTRIES.c.part == part,
                            ENTRIES.c.method == method,
                        )
                    )
            db.execute(
                sa.update(STUDIES).where(STUDIES.c.name == study_key).values(signatures=dump(now))
            )

    @retried
    def move_entries(self, study: str, entries: Sequence[Entry]) -> None:
        """Let known entries refer to these entries' configurations, which mean the same models.

        The key of a configuration depends on whether a part's seeds are those of the study.
        """
        if not entries:
            return
        with self._writing(study) as (db, study_key):
            db.execute(
                sa.update(ENTRIES)
                .where(
                    ENTRIES.c.study == study_key,
                    ENTRIES.c.part == sa.bindparam("of_part"),
                    ENTRIES.c.method == sa.bindparam("of_method"),
                    ENTRIES.c.number == sa.bindparam("of_number"),
                )
                .values(configuration=sa.bindparam("now")),
                [
                    {
                        "of_part": e.part,
                        "of_method": e.method,
                        "of_number": e.number,
                        "now": e.configuration,
                    }
                    for e in entries
                ],
            )

    @retried
    def keep_only_configurations(
        self, study: str, configurations: Iterable[str], replicates: Iterable[str]
    ) -> int:
        """Remove all other configurations and replicates from a study; keep their results.

        Returns:
            The number of removed replicates.
        """
        dropped: set[str] = set()
        with self._writing(study) as (db, study_key):
            for table, column, kept in (
                (STUDY_CONFIGURATIONS, STUDY_CONFIGURATIONS.c.configuration, set(configurations)),
                (STUDY_REPLICATES, STUDY_REPLICATES.c.replicate, set(replicates)),
            ):
                mine = sa.select(column).where(table.c.study == study_key)
                dropped = set(db.execute(mine).scalars()) - kept
                for key in dropped:
                    db.execute(sa.delete(table).where(table.c.study == study_key, column == key))
        return len(dropped)

    @retried
    def entries(self, study: str) -> list[Entry]:
        """All entries of a study, by part, method and number."""
        query = sa.select(ENTRIES).order_by(ENTRIES.c.part, ENTRIES.c.method, ENTRIES.c.number)
        with self._reading(study) as (db, study_key):
            rows = db.execute(query.where(ENTRIES.c.study == study_key)).all()
        return [
            Entry(
                part=row.part,
                method=row.method,
                number=row.number,
                configuration=row.configuration,
                batch=row.batch,
                proposal=json.loads(row.proposal),
                state=row.state,
                values=tuple(map(number, json.loads(row.values))) if row.values else None,
                step=row.step,
                told=row.told,
            )
            for row in rows
        ]

    @retried
    def tell(
        self,
        study: str,
        entry: Entry,
        *,
        state: str,
        values: Sequence[float] | None,
        told: int,
        step: int | None = None,
    ) -> None:
        """Record what is about to be told to the sampler about an entry."""
        with self._writing(study) as (db, study_key):
            db.execute(
                sa.update(ENTRIES)
                .where(
                    ENTRIES.c.study == study_key,
                    ENTRIES.c.part == entry.part,
                    ENTRIES.c.method == entry.method,
                    ENTRIES.c.number == entry.number,
                )
                .values(
                    state=state,
                    values=None if values is None else dump(list(values)),
                    step=step,
                    told=told,
                )
            )

    @retried
    def configurations(self, study: str, *, after: int = -1) -> list[ConfigurationRecord]:
        """The configurations of a study numbered above ``after``, in order."""
        query = (
            sa.select(
                STUDY_CONFIGURATIONS,
                CONFIGURATIONS.c.method,
                CONFIGURATIONS.c.params.label("first_params"),
            )
            .join(CONFIGURATIONS, CONFIGURATIONS.c.key == STUDY_CONFIGURATIONS.c.configuration)
            .where(STUDY_CONFIGURATIONS.c.number > after)
            .order_by(STUDY_CONFIGURATIONS.c.number)
        )
        with self._reading(study) as (db, study_key):
            mine = STUDY_CONFIGURATIONS.c.study == study_key
            rows = db.execute(query.where(mine)).all()
        return [
            ConfigurationRecord(
                key=row.configuration,
                number=row.number,
                method=row.method,
                params=json.loads(row.params or row.first_params),
                task=row.task,
                fingerprint=row.fingerprint,
                options=json.loads(row.options),
                mlflow_run=row.mlflow_run,
                mirrored=row.mirrored,
            )
            for row in rows
        ]

    @retried
    def set_configuration_runs(
        self, study: str, runs: Sequence[tuple[str, str | None, str | None]]
    ) -> None:
        """Record (configuration, its MLflow run, the digest of what was last written to it)."""
        if not runs:
            return
        rows = [
            {"of": configuration, "run": run, "written": written}
            for configuration, run, written in runs
        ]
        with self._writing(study) as (db, study_key):
            db.execute(
                sa.update(STUDY_CONFIGURATIONS)
                .where(
                    STUDY_CONFIGURATIONS.c.study == study_key,
                    STUDY_CONFIGURATIONS.c.configuration == sa.bindparam("of"),
                )
                .values(mlflow_run=sa.bindparam("run"), mirrored=sa.bindparam("written")),
                rows,
            )


def _known(db: sa.Connection, study: str, keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """What a study shows of those of these configurations that it has, by key, as JSON."""
    found: dict[str, dict[str, str]] = {}
    for begin in range(0, len(keys), 500):
        query = sa.select(
            STUDY_CONFIGURATIONS.c.configuration,
            STUDY_CONFIGURATIONS.c.params,
            STUDY_CONFIGURATIONS.c.options,
        ).where(
            STUDY_CONFIGURATIONS.c.study == study,
            STUDY_CONFIGURATIONS.c.configuration.in_(keys[begin : begin + 500]),
        )
        for row in db.execute(query):
            found[row.configuration] = {"params": row.params, "options": row.options}
    return found
