"""The configurations of studies, and the entries of grids and searches that proposed them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa

from modmix.ledger.database import (
    CONFIGURATIONS,
    ENTRIES,
    REPLICATES,
    STUDIES,
    STUDY_CONFIGURATIONS,
    STUDY_REPLICATES,
    Database,
    insert_new,
)
from modmix.ledger.records import ConfigurationRecord, Entry, NewConfiguration, dump, number


class Proposals(Database):
    """The configurations and entries of studies."""

    def add(
        self, study: str, configurations: Sequence[NewConfiguration], entries: Sequence[Entry]
    ) -> None:
        """Add configurations with their replicates, and the entries that proposed them.

        Existing rows are kept, including results of other studies.
        """
        with self._transaction() as db:
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
            mine = STUDY_CONFIGURATIONS.c.study == study
            last = db.execute(
                sa.select(sa.func.max(STUDY_CONFIGURATIONS.c.number)).where(mine)
            ).scalar()
            first = 0 if last is None else last + 1  # not the count: some may have been removed
            columns = (STUDY_CONFIGURATIONS.c.configuration, STUDY_CONFIGURATIONS.c.options)
            known = {row[0]: row[1] for row in db.execute(sa.select(*columns).where(mine))}
            fresh = {p.key: p for p in configurations if p.key not in known}
            if fresh:
                db.execute(
                    sa.insert(STUDY_CONFIGURATIONS),
                    [
                        {
                            "study": study,
                            "configuration": key,
                            "number": first + i,
                            "task": p.task,
                            "fingerprint": p.fingerprint,
                            "options": dump(p.options),
                        }
                        for i, (key, p) in enumerate(fresh.items())
                    ],
                )
            changed = {
                p.key: dump(p.options)
                for p in configurations
                if p.key in known and known[p.key] != dump(p.options)
            }
            for key, options in changed.items():
                where = mine & (STUDY_CONFIGURATIONS.c.configuration == key)
                db.execute(sa.update(STUDY_CONFIGURATIONS).where(where).values(options=options))
            insert_new(
                db,
                STUDY_REPLICATES,
                [
                    {
                        "study": study,
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
            if entries:
                db.execute(
                    sa.insert(ENTRIES),
                    [
                        {
                            "study": study,
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

    def keep_only_entries(self, study: str, signatures: Mapping[tuple[str, str], str]) -> None:
        """Delete the entries of parts that were removed from the study file, or changed.

        Results are kept.

        Args:
            signatures: by (part, method), a digest of everything its entries depend on.
        """
        now = {"/".join(key): value for key, value in signatures.items()}
        with self._transaction() as db:
            text = db.execute(
                sa.select(STUDIES.c.signatures).where(STUDIES.c.name == study)
            ).scalar_one()
            before = json.loads(text)
            pairs = sa.select(ENTRIES.c.part, ENTRIES.c.method).where(ENTRIES.c.study == study)
            for part, method in db.execute(pairs.distinct()).all():
                key = f"{part}/{method}"
                if key not in now or before.get(key) != now[key]:
                    db.execute(
                        sa.delete(ENTRIES).where(
                            ENTRIES.c.study == study,
                            ENTRIES.c.part == part,
                            ENTRIES.c.method == method,
                        )
                    )
            db.execute(
                sa.update(STUDIES).where(STUDIES.c.name == study).values(signatures=dump(now))
            )

    def keep_only_configurations(
        self, study: str, configurations: Iterable[str], replicates: Iterable[str]
    ) -> int:
        """Remove all other configurations and replicates from a study; keep their results.

        Returns:
            The number of removed replicates.
        """
        dropped: set[str] = set()
        with self._transaction() as db:
            for table, column, kept in (
                (STUDY_CONFIGURATIONS, STUDY_CONFIGURATIONS.c.configuration, set(configurations)),
                (STUDY_REPLICATES, STUDY_REPLICATES.c.replicate, set(replicates)),
            ):
                mine = sa.select(column).where(table.c.study == study)
                dropped = set(db.execute(mine).scalars()) - kept
                for key in dropped:
                    db.execute(sa.delete(table).where(table.c.study == study, column == key))
        return len(dropped)

    def entries(self, study: str) -> list[Entry]:
        """All entries of a study, by part, method and number."""
        query = (
            sa.select(ENTRIES)
            .where(ENTRIES.c.study == study)
            .order_by(ENTRIES.c.part, ENTRIES.c.method, ENTRIES.c.number)
        )
        with self._transaction() as db:
            rows = db.execute(query).all()
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
        with self._transaction() as db:
            db.execute(
                sa.update(ENTRIES)
                .where(
                    ENTRIES.c.study == study,
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

    def configurations(self, study: str, *, after: int = -1) -> list[ConfigurationRecord]:
        """The configurations of a study numbered above ``after``, in order."""
        query = (
            sa.select(STUDY_CONFIGURATIONS, CONFIGURATIONS.c.method, CONFIGURATIONS.c.params)
            .join(CONFIGURATIONS, CONFIGURATIONS.c.key == STUDY_CONFIGURATIONS.c.configuration)
            .where(STUDY_CONFIGURATIONS.c.study == study, STUDY_CONFIGURATIONS.c.number > after)
            .order_by(STUDY_CONFIGURATIONS.c.number)
        )
        with self._transaction() as db:
            rows = db.execute(query).all()
        return [
            ConfigurationRecord(
                key=row.configuration,
                number=row.number,
                method=row.method,
                params=json.loads(row.params),
                task=row.task,
                fingerprint=row.fingerprint,
                options=json.loads(row.options),
                mlflow_run=row.mlflow_run,
                mirrored=row.mirrored,
            )
            for row in rows
        ]

    def set_configuration_run(
        self, study: str, configuration: str, *, run: str | None, mirrored: str | None
    ) -> None:
        """Record a configuration's MLflow run, and the digest of what was last written to it."""
        self.set_configuration_runs(study, [(configuration, run, mirrored)])

    def set_configuration_runs(
        self, study: str, runs: Sequence[tuple[str, str | None, str | None]]
    ) -> None:
        """`set_configuration_run` for many: (configuration, run, digest)."""
        if not runs:
            return
        rows = [
            {"of": configuration, "run": run, "written": written}
            for configuration, run, written in runs
        ]
        with self._transaction() as db:
            db.execute(
                sa.update(STUDY_CONFIGURATIONS)
                .where(
                    STUDY_CONFIGURATIONS.c.study == study,
                    STUDY_CONFIGURATIONS.c.configuration == sa.bindparam("of"),
                )
                .values(mlflow_run=sa.bindparam("run"), mirrored=sa.bindparam("written")),
                rows,
            )
