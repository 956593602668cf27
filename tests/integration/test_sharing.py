"""Studies that share a ledger: what one sees of the other, and what an edited file keeps."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests import postgres
from typer.testing import CliRunner

import modmix
from modmix.base.errors import LeaseLostError
from modmix.cli.main import app
from modmix.execution.run import StudyRun
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Lease
from modmix.ledger.studies import LEASE_SECONDS
from modmix.ledger.tables import STUDIES

pytestmark = pytest.mark.slow

RACE = """\
study: NAME
task: {name: weak, inputs: 2, train_rows: 120, val_rows: 60, test_rows: 40, dim: 4}
seeds: 2
training: {epochs: 6, batch_size: 32}
parts:
  search:
    search: {configurations: 8, batch: 4, parallel: 1, seed: 3}
    shared: {halving: {eta: 2, min_epochs: 2}}
    methods:
      mul: {learning_rate: {low: 0.0001, high: 0.1, log: true}}
"""


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODMIX_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("MODMIX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MODMIX_OWNER", "alice")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MODMIX_LEDGER", raising=False)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "runs").mkdir()
    opened = Ledger(f"sqlite:///{tmp_path / 'runs' / 'ledger.db'}", owner="alice")
    yield opened
    opened.close()


def run(folder: Path, text: str, name: str) -> modmix.Study:
    path = folder / f"{name}.yaml"
    path.write_text(text.replace("NAME", name))
    return modmix.run(path, runner="local", mlflow=False)


def seen(ledger: Ledger, study: str) -> list[tuple[Any, ...]]:
    """All that a study knows of its results."""
    records = ledger.replicates(study)
    histories = ledger.histories(study, [r.key for r in records])
    return [
        (r.key, r.state, r.epochs, r.reason, r.origin, r.finished, repr(histories.get(r.key)))
        for r in records
    ]


@pytest.mark.usefixtures("without_figures")
def test_each_study_has_its_own_race(tmp_path: Path, ledger: Ledger) -> None:
    """What the first has pruned, the second trains for itself, to the end where its race says so.
    The first one's race stays as it was.
    """
    first = run(tmp_path, RACE, "one")
    before, entries = seen(ledger, "one"), ledger.entries("one")
    pruned = {r.key for r in ledger.replicates("one") if r.state == "pruned"}
    done = {r.key for r in ledger.replicates("one") if r.state == "done"}
    assert len(pruned) == 12
    assert len(done) == 4
    # The same configurations of a grid, which is a race of other candidates.
    rates = sorted(e.proposal["learning_rate"] for e in entries if e.state == "pruned")[:1]
    grid = RACE.replace("    search: {configurations: 8, batch: 4, parallel: 1, seed: 3}\n", "")
    grid = grid.replace("{low: 0.0001, high: 0.1, log: true}", repr(rates[0]))
    second = run(tmp_path, grid, "two")
    found = ledger.replicates("two")
    assert {r.key for r in found} < pruned
    assert [(r.state, r.epochs, r.origin) for r in found] == [("done", 6, "trained")] * 2
    assert (second.status()["trained"], second.status()["reused"]) == (2, 0)
    # And the first one, run again, has nothing to do.
    assert run(tmp_path, RACE, "one").status() == first.status()
    assert seen(ledger, "one") == before
    assert ledger.entries("one") == entries


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    "part",
    [
        "  grid: {methods: {mul: {momentum: {grid: [0, 0.9]}, optimizer: sgd}}}\n",
        "  grid: {methods: {mul: {encoder.hidden: {grid: [[8], [9]]}}}}\n",
    ],
)
def test_another_part_leaves_a_search_its_history(
    tmp_path: Path, ledger: Ledger, part: str
) -> None:
    run(tmp_path, RACE, "one")
    before, models = ledger.entries("one"), {r.key for r in ledger.replicates("one")}
    numbers = {c.key: c.number for c in ledger.configurations("one")}
    ledger.set_configuration_runs("one", [(key, f"run-{key}", None) for key in numbers])
    study = run(tmp_path, RACE + part, "one")
    after = [e for e in ledger.entries("one") if e.part == "search"]
    assert after == before
    # They are the same configurations, in the same runs of MLflow, and show what is varied now.
    varied = "momentum" if "momentum" in part else "encoder.hidden"
    for one in ledger.configurations("one"):
        assert varied in one.params
        if one.key in numbers:
            assert (one.number, one.mlflow_run) == (numbers[one.key], f"run-{one.key}")
    assert study.status()["trained"] == len(models) + 4
    records = ledger.replicates("one")
    assert {r.attempts for r in records} == {1}
    assert models < {r.key for r in records}
    assert {e.configuration for e in ledger.entries("one")} == {r.configuration for r in records}
    # The search goes on where it was, as one that was never interrupted.
    more = RACE.replace("configurations: 8", "configurations: 12")
    run(tmp_path, more + part, "one")
    run(tmp_path, more, "undisturbed")
    proposals = [
        [e.proposal for e in ledger.entries(study) if e.part == "search"]
        for study in ("one", "undisturbed")
    ]
    assert len(proposals[0]) == 12
    assert proposals[0] == proposals[1]


@pytest.mark.usefixtures("without_figures")
def test_what_trained_it_is_recorded(tmp_path: Path, ledger: Ledger) -> None:
    import torch

    study = run(tmp_path, RACE, "one")
    expected = {
        "device": "cpu",
        "host": socket.gethostname(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "modmix": modmix.__version__,
    }
    assert all(r.environment == expected for r in ledger.replicates("one"))
    frame = study.replicates()
    assert {name: frame[f"environment/{name}"].unique().tolist() for name in expected} == {
        name: [value] for name, value in expected.items()
    }


def test_two_owners_on_the_command_line(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, RACE, "one")
    before = seen(ledger, "one")
    monkeypatch.setenv("MODMIX_OWNER", "bob")
    command = CliRunner()

    def output(*arguments: str) -> str:
        done = command.invoke(app, arguments)
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    assert "alice/one" in output("list")
    assert "mul" in output("table", "alice/one")
    assert "finished" in output("status", "alice/one")
    assert isinstance(
        command.invoke(app, ["table", "one"]).exception, modmix.base.errors.InputError
    )
    figures = output("figure", "alice/one").split()
    assert all(str(tmp_path / "runs" / "@alice" / "one") in path for path in figures)
    # A study of one's own of the same name: it has the trained models, and none of the verdicts.
    mine = run(tmp_path, RACE, "one")
    assert mine.status()["reused"] == 4
    assert mine.record.key == "bob/one"
    assert seen(ledger, "one") == before
    rows = [line.split()[:3] for line in output("list").splitlines()]
    assert rows[0] == ["study", "owner", "state"]
    assert rows[1:] == [["alice/one", "alice", "finished"], ["one", "bob", "finished"]]


@pytest.mark.usefixtures("without_figures")
def test_a_driver_that_lost_its_lease_ends_without_writing(tmp_path: Path, ledger: Ledger) -> None:
    """Its process slept for longer than the lease, and another driver has begun."""
    taken: list[tuple[Lease, Any]] = []

    def changed(work: StudyRun) -> None:
        if work.trained and not taken:
            with ledger._engine.begin() as db:
                ago = STUDIES.c.lease_heartbeat - LEASE_SECONDS - 1
                db.execute(sa.update(STUDIES).values(lease_heartbeat=ago))
            lease = ledger.acquire("one")
            ledger.recover("one")
            taken.append((lease, (ledger.study("one"), seen(ledger, "one"), ledger.packs("one"))))

    path = tmp_path / "one.yaml"
    path.write_text(RACE.replace("NAME", "one"))
    with pytest.raises(LeaseLostError, match=r"^study 'one' was taken over by another driver"):
        modmix.run(path, runner="local", mlflow=False, changed=changed)
    ((lease, before),) = taken
    assert (ledger.study("one"), seen(ledger, "one"), ledger.packs("one")) == before
    assert ledger.heartbeat(lease)
    ledger.release(lease)
    assert run(tmp_path, RACE, "one").status()["state"] == "finished"
    assert {r.attempts for r in ledger.replicates("one")} <= {1, 2}


@pytest.mark.timeout(400)
def test_two_owners_four_drivers_and_a_restarted_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once on one PostgreSQL that restarts in the middle: nothing is trained twice."""
    text = re.sub(r"  search:\n(.|\n)*", "", RACE).replace("epochs: 6", "epochs: 400")
    text += "  curve: {methods: {mul: {beta: {grid: [0, 0.2, 0.4, 0.6, 0.8, 1]}}}}\n"
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("NAME", name))
    with postgres.controlled() as server:
        monkeypatch.setenv("MODMIX_LEDGER", server.url)
        opened = Ledger(server.url)
        drivers = [
            subprocess.Popen(
                [sys.executable, "-m", "modmix", "run", f"{name}.yaml", "--local", "--no-mlflow"],
                cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "MODMIX_OWNER": owner, "MODMIX_HOME": str(tmp_path / owner)},
            )
            for owner in ("alice", "bob") for name in ("one", "two")
        ]  # fmt: skip
        names = [f"{owner}/{name}" for owner in ("alice", "bob") for name in ("one", "two")]
        # A driver that has not opened its study yet is right to refuse a database that is away.
        while not (
            all(opened.has_study(name) for name in names)
            and any(r.state == "running" for name in names for r in opened.replicates(name))
        ):
            assert not any(driver.poll() for driver in drivers)  # running, or ended well
            assert any(driver.poll() is None for driver in drivers), "restart it earlier"
            time.sleep(0.05)
        server.stop()
        time.sleep(0.5)
        server.start()
        outputs = [driver.communicate(timeout=300)[0] for driver in drivers]
        assert [driver.returncode for driver in drivers] == [0] * 4, outputs
        found = {name: opened.replicates(name) for name in names}
        opened.close()
    assert {r.state for records in found.values() for r in records} == {"done"}
    assert len({frozenset(r.key for r in records) for records in found.values()}) == 1
    assert {r.attempts for records in found.values() for r in records} == {1}
    trained = [r.key for records in found.values() for r in records if r.origin == "trained"]
    assert sorted(trained) == sorted({r.key for r in found["bob/one"]})
