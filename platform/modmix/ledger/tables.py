"""The tables. Studies are keyed by ``owner/name`` (without owner: from before there were any)."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, Float, Integer, LargeBinary, String, Table, Text

from modmix.base.home import METHOD_LENGTH, NAME_LENGTH

# Of the tables below. Version 4 is migrated; others are refused, and nothing in them is changed.
SCHEMA_VERSION = 5

STUDY_LENGTH = 2 * NAME_LENGTH + 1  # owner/name

METADATA = sa.MetaData()
VERSION = Table(
    "ledger_version",
    METADATA,
    Column("version", Integer, primary_key=True, autoincrement=False),
)
STUDIES = Table(
    "studies",
    METADATA,
    Column("name", String(STUDY_LENGTH), primary_key=True),
    Column("spec", Text, nullable=False),  # the checked study file as JSON
    Column("text", Text, nullable=False),  # the file as the user wrote it
    Column("source", Text, nullable=False),  # path of the file
    Column("state", String(20), nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("wall_seconds", Float, nullable=False, default=0.0),
    Column("device_seconds", Float, nullable=False, default=0.0),
    Column("details", Text, nullable=False, default="{}"),  # task, fingerprint, versions, classes
    Column("signatures", Text, nullable=False, default="{}"),  # of the parts, by "part/method"
    Column("lease_token", String(32)),
    Column("lease_host", Text),
    Column("lease_space", Text),  # the process ids among which lease_pid is unique
    Column("lease_pid", Integer),
    Column("lease_process_start", Float),
    Column("lease_heartbeat", Float),  # in the database's time
    Column("mlflow_run", String(64)),
)
CONFIGURATIONS = Table(
    "configurations",
    METADATA,
    Column("key", String(32), primary_key=True),
    Column("method", String(METHOD_LENGTH), nullable=False),
    Column("params", Text, nullable=False),
)
# Shared by all studies: a replicate is pending, running, interrupted or done.
REPLICATES = Table(
    "replicates",
    METADATA,
    Column("key", String(32), primary_key=True),
    Column("configuration", String(32), nullable=False, index=True),
    Column("seed", Integer, nullable=False),
    Column("state", String(12), nullable=False),
    Column("owner", String(32)),  # lease token of the driver training it
    Column("pack", String(32)),
    Column("attempts", Integer, nullable=False, default=0),
    Column("epochs", Integer, nullable=False, default=0),
    Column("best_epoch", Float, nullable=False, default=0.0),
    Column("metrics", Text, nullable=False, default="{}"),
    Column("reason", Text, nullable=False, default=""),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("finished", Float),
    Column("environment", Text),  # device, host and versions it was trained with
)
# A study's own: replicates that its race has pruned, or that have failed in it. Other studies do
# not see them and train these replicates themselves.
OUTCOMES = Table(
    "outcomes",
    METADATA,
    Column("study", String(STUDY_LENGTH), primary_key=True),
    Column("replicate", String(32), primary_key=True),
    Column("state", String(12), nullable=False),  # pruned or failed
    Column("pack", String(32)),
    Column("epochs", Integer, nullable=False, default=0),
    Column("best_epoch", Float, nullable=False, default=0.0),
    Column("metrics", Text, nullable=False, default="{}"),
    Column("reason", Text, nullable=False, default=""),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("finished", Float),
    Column("environment", Text),
    Column("columns", LargeBinary),  # its history
)
HISTORIES = Table(
    "histories",
    METADATA,
    Column("replicate", String(32), primary_key=True),
    Column("columns", LargeBinary, nullable=False),
)
PREDICTIONS = Table(
    "predictions",
    METADATA,
    Column("replicate", String(32), primary_key=True),
    Column("rows", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),  # of the test split; see `base.predictions`
)
TEST_SPLITS = Table(
    "test_splits",
    METADATA,
    Column("fingerprint", String(64), primary_key=True),  # of the data
    Column("rows", Integer, nullable=False),
    Column("targets", LargeBinary, nullable=False),  # true classes
    Column("numbers", LargeBinary),  # row numbers in the source; null: unknown
)
STUDY_CONFIGURATIONS = Table(
    "study_configurations",
    METADATA,
    Column("study", String(STUDY_LENGTH), primary_key=True),
    Column("configuration", String(32), primary_key=True),
    Column("number", Integer, nullable=False),  # order of first appearance in the study
    Column("task", String(NAME_LENGTH), nullable=False, default=""),  # in a study of several
    Column("fingerprint", String(64), nullable=False, default=""),  # of the data
    Column("options", Text, nullable=False, default="{}"),  # of the task, those that vary
    Column("params", Text),  # as this study shows them; null: as in `CONFIGURATIONS`
    Column("mlflow_run", String(64)),
    Column("mirrored", String(32)),  # digest of what the mirror last wrote
    sa.Index("ix_study_configurations_number", "study", "number"),
)
STUDY_REPLICATES = Table(
    "study_replicates",
    METADATA,
    Column("study", String(STUDY_LENGTH), primary_key=True),
    Column("replicate", String(32), primary_key=True),
    Column("configuration", String(32), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("origin", String(8), nullable=False, default=""),  # "", "trained" or "reused"
)
ENTRIES = Table(
    "entries",
    METADATA,
    Column("study", String(STUDY_LENGTH), primary_key=True),
    Column("part", String(NAME_LENGTH), primary_key=True),
    Column("method", String(METHOD_LENGTH), primary_key=True),
    Column("number", Integer, primary_key=True),  # within part and method, in order of proposal
    Column("configuration", String(32), nullable=False),
    Column("batch", Integer, nullable=False, default=0),
    Column("proposal", Text, nullable=False, default="{}"),  # what the sampler proposed
    Column("state", String(12), nullable=False, default="pending"),  # then done, pruned, failed
    Column("values", Text),  # means of the objectives, as told to the sampler
    Column("step", Integer),  # epoch of the values, if pruned
    Column("told", Integer),  # when it was told; same counter as "batch"
)
PACKS = Table(
    "packs",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("study", String(STUDY_LENGTH), primary_key=True),
    Column("replicates", Text, nullable=False),  # keys, in order
    Column("state", String(12), nullable=False),  # running, done, interrupted
    # How the pack was trained and why; after a failure, its reason and epoch.
    Column("note", Text, nullable=False, default="{}"),
    # Of machines since the pack last advanced; see `execution.failures`.
    Column("failures", Integer, nullable=False, default=0),
    Column("started", Float),
    Column("finished", Float),
)

# The columns that name a study.
STUDY_COLUMNS: tuple[Column[str], ...] = (
    STUDIES.c.name,
    OUTCOMES.c.study,
    STUDY_CONFIGURATIONS.c.study,
    STUDY_REPLICATES.c.study,
    ENTRIES.c.study,
    PACKS.c.study,
)
