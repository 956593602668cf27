"""The cluster that a study starts on this machine."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from tests.patience import RAY_PATIENCE

from modmix.base.errors import InputError
from modmix.execution import tune_cluster

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

STUDY = """
study: packs
task: {name: digits, train_rows: 100}
seeds: 2
training: {epochs: 2}
resources: {max_models: 2}
parts: {curve: {x: beta, methods: {mul: {beta: {grid: [0, 0.2, 0.4, 0.6, 0.8, 1]}}}}}
"""


def run(folder: Path, study: str, **environment: str) -> tuple[int, str]:
    """`modmix run` in a folder of its own; its exit code, and everything it said."""
    file = folder / "study.yaml"
    file.write_text(study)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    command = [sys.executable, "-m", "modmix", "run", str(file), "--no-mlflow", "--workers", "2"]
    ours = {"MODMIX_HOME": str(folder / "runs"), "MODMIX_TRACE": str(folder / "trace")}
    ours |= RAY_PATIENCE
    told = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False,
        env={**inherited, **ours, **environment},
    )  # fmt: skip
    return told.returncode, told.stdout + told.stderr


@pytest.fixture(scope="module", autouse=True)
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was refused before all other tests: its end takes a while."""
    folder = tmp_path_factory.mktemp("refused")
    wrong = STUDY.replace("seeds: 2", "seeds: 2\nencoders: {nowhere: {name: mlp}}")
    code, output = run(folder, wrong)
    assert code == 2
    assert output.startswith("modmix: ")
    assert "unknown input 'nowhere'" in output
    assert len(output.splitlines()) == 1
    return folder


SCRIPT = """
import json, psutil
from modmix.base.errors import InputError
from modmix.execution.tune_cluster import Needs
from modmix.execution.tune_runner import TuneRunner
runner = TuneRunner(workers=2)
runner.start()
me = psutil.Process()
family = [me, *me.children(recursive=True)]
listening = sorted({
    connection.laddr.ip
    for process in family
    for connection in process.net_connections(kind="inet")
    if connection.status == psutil.CONN_LISTEN
})
found = {"listening": listening, "slots": runner.slots, "processes": len(family)}
runner.close()

import ray  # not before the runner has made its settings

refused = []
for needs in ({"": Needs(gpus=99)}, {"mul": Needs(cpus=3)}):
    try:
        TuneRunner(needs, workers=2).start()
    except InputError as error:
        refused.append([str(error), ray.is_initialized()])
print(json.dumps({**found, "refused": refused}))
"""


def test_nothing_listens_beyond_this_machine_and_no_more_is_given_than_it_has() -> None:
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240, check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | RAY_PATIENCE,
    )  # fmt: skip
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["processes"] > 3
    assert found["slots"] == 2
    assert found["listening"], "a cluster without any socket is no cluster"
    assert set(found["listening"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    more = "more than this machine has or --workers allows: reduce the resources"
    asked = ("a pack asks for 1 CPU and 99 GPUs", "a pack of mul asks for 3 CPUs")
    assert [is_up for _, is_up in found["refused"]] == [False] * 2
    for what, (said, _) in zip(asked, found["refused"], strict=True):
        assert f"resources: {what}" in said
        assert more in said


def test_two_processes_train_all_packs(tmp_path: Path) -> None:
    code, output = run(tmp_path, STUDY, MODMIX_TUNE_VERBOSE="1")
    assert code == 0, output
    tables_of_trials(output)
    lines = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    trained = list(dict.fromkeys(frozenset(line["replicates"]) for line in lines))  # packs
    assert len(trained) == 6
    assert len({line["process"] for line in lines}) <= 2
    # The first that has to wait for a worker is not overtaken by all that come later.
    with closing(sqlite3.connect(tmp_path / "runs" / "ledger.db")) as ledger:
        rows = ledger.execute("SELECT replicates FROM packs ORDER BY started").fetchall()
    given = [frozenset(json.loads(replicates)) for (replicates,) in rows]
    assert trained.index(given[2]) <= 3, [given.index(pack) for pack in trained]


def tables_of_trials(output: str) -> None:
    """Ray Tune's own table names the method, what varies, how far a pack is, and its errors."""
    lines = [re.split(r" *\| *", line.strip("| ")) for line in output.splitlines() if "|" in line]
    head = next(line for line in reversed(lines) if line[0] == "Trial name")
    assert head[3:] == [
        "method", "configurations", "models", "beta",
        "epoch", "epochs", "active", "finished", "val/error", "val/error/best",
    ]  # fmt: skip
    rows = [dict(zip(head, line, strict=True)) for line in lines[-6:]]
    assert {row["beta"] for row in rows} == {"0", "0.2", "0.4", "0.6", "0.8", "1"}
    for row in rows:
        assert row["Trial name"].startswith("mul-")
        assert (row["method"], row["status"], row["models"]) == ("mul", "TERMINATED", "2")
        assert (row["epoch"], row["epochs"], row["finished"]) == ("2", "2", "2")
        assert 0 < float(row["val/error/best"]) <= float(row["val/error"]) < 100


@pytest.fixture
def silent() -> Iterator[str]:
    """An address at which somebody takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen(50)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_cluster_that_does_not_answer_is_said_in_bounded_time(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_cluster, "_ANSWER_SECONDS", 3.0)
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:\d+"):
        tune_cluster._await_answer(silent)


def test_auto_is_the_cluster_of_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one which is not there is said at once."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127\.0\.0\.1:9 \("):
        tune_cluster.Cluster({"": tune_cluster.Needs()}, address="auto").check()


def test_a_study_that_is_refused_leaves_no_cluster_behind(refused: Path) -> None:
    # Ray's agents end by themselves when they miss their raylet, which takes up to a minute.
    end = time.monotonic() + 180
    while (ours := processes_of(refused)) and time.monotonic() < end:
        time.sleep(1)
    assert ours == []


def processes_of(folder: Path) -> list[int]:
    """Processes that a run in this folder has started, and that are still there."""
    return [
        process.pid
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("MODMIX_HOME") == str(folder / "runs")
    ]
