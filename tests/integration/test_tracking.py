"""The mirror in MLflow, on real stores (SQLite, a server), read back through MLflow's client."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from scipy import stats

from mlflow_bench import STUDY, Bench, Server, copy_database, free_port, result
from modmix.base.errors import InputError, TrackingError
from modmix.base.messages import digest
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import Lease
from modmix.tracking import store
from modmix.tracking.content import configuration_digest
from modmix.tracking.follow import Task
from modmix.tracking.mirror import sync
from modmix.tracking.serve import pages
from modmix.tracking.store import RefusedError, Store
from modmix.tracking.writer import WRITER, OvertakenError, Writer

# ---------------------------------------------------------------- what is shown


def test_importing_it_does_not_import_mlflow() -> None:
    modules = "modmix.tracking.mirror, modmix.tracking.store"
    code = f"import sys, {modules}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_run_holds_means_deviations_and_curves_over_replicates(bench: Bench) -> None:
    bench.start(configurations=2, seeds=3)
    results = {r.replicate: r for r in bench.finish()}
    bench.writer().update("finished")
    bench.check_whole()
    run = bench.children()["configuration-000"]
    mine = [results[f"configuration-000-{seed}"] for seed in range(3)]
    for name in ("val/error", "test/error", "test/auc"):
        values = np.array([r.metrics[name] for r in mine])
        assert run.data.metrics[name] == pytest.approx(values.mean())
        assert run.data.metrics[f"{name}_std"] == pytest.approx(values.std(ddof=1))
    values = np.array([r.metrics["test/error"] for r in mine])
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert run.data.metrics["test/error_ci"] == pytest.approx((high - low) / 2)
    assert run.data.metrics["replicates"] == 3
    curves = np.array([r.history["val/error"] for r in mine])
    assert bench.rows(run, "epoch/val/error") == [
        (i + 1, pytest.approx(v)) for i, v in enumerate(curves.mean(0))
    ]
    assert [v for _, v in bench.rows(run, "epoch/train/loss")] == pytest.approx(
        np.array([r.history["train/loss"] for r in mine]).mean(0)
    )
    assert len(run.data.metrics) <= 32


@pytest.mark.slow
def test_a_run_says_what_it_is(bench: Bench) -> None:
    bench.start(configurations=2, seeds=2)
    results = bench.finish()
    writer = bench.writer()
    writer.update("finished")
    run = bench.children()["configuration-001"]
    assert run.info.run_name == "add depth=1"
    assert run.data.params == {
        "method": "add",
        "depth": "1",
        "hidden": "[64, 32]",
        "margin": "null",
    }
    tags = run.data.tags
    assert tags["modmix.parts"] == "depth"
    assert tags["modmix.fingerprint"] == "f" * 32
    assert tags["mlflow.source.git.commit"] == "abc"
    assert tags["modmix.task"] == "digits"
    held = json.loads(bench.artifact(run, "replicates.json"))
    assert [r["seed"] for r in held["replicates"]] == [0, 1]
    assert held["replicates"][1]["history"]["lr"] == list(results[3].history["lr"])
    parent = bench.study_run()
    assert bench.artifact(parent, "study.yaml") == "study: curves\n"
    best = min(
        np.mean([r.metrics["val/error"] for r in results if r.replicate.startswith(p)])
        for p in ("configuration-000",)
    )
    assert parent.data.metrics["study/mul_val_error"] == pytest.approx(best)
    assert "mul β=0" in parent.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_values_that_are_no_numbers_and_diverged_replicates(bench: Bench) -> None:
    bench.start(configurations=2, seeds=2)
    bench.finish(["configuration-000-0"], **{"val/auc": math.nan, "test/nll": math.inf})
    bench.finish(["configuration-000-1"], state="failed", reason="diverged: epoch 3")
    bench.finish(
        ["configuration-001-0", "configuration-001-1"], state="failed", reason="diverged: epoch 1"
    )
    bench.writer().update("finished")
    half, lost = bench.children()["configuration-000"], bench.children()["configuration-001"]
    assert half.info.status == "FAILED"  # it has a mean, which no comparison uses
    assert lost.info.status == "FAILED"
    assert "val/auc" not in half.data.metrics
    assert "test/nll" not in half.data.metrics
    assert half.data.metrics["replicates"] == 1
    assert half.data.tags["modmix.failed"] == "1"
    assert lost.data.tags["modmix.reason"] == "diverged: epoch 1"


@pytest.mark.slow
def test_a_run_takes_as_long_as_its_training(bench: Bench) -> None:
    """From the start of its first pack to the end of its last one, and not when it was written."""
    bench.start(configurations=1, seeds=2)
    bench.ledger.claim(bench.lease, "first", ["configuration-000-0"])
    bench.ledger.claim(bench.lease, "second", ["configuration-000-1"])
    begun = time.time()
    bench.finish()  # half a second each, says the result
    with sqlite3.connect(bench.home.path / "ledger.db") as database:
        database.execute("UPDATE packs SET started = ? WHERE id = 'first'", (begun - 100.0,))
        database.execute("UPDATE replicates SET finished = ?", (begun - 40.0,))
    database.close()
    bench.writer().update("finished")
    info = bench.children()["configuration-000"].info
    assert info.start_time == int((begun - 100.0) * 1000)
    assert info.end_time == int((begun - 40.0) * 1000)


@pytest.mark.slow
def test_pruned_runs_are_marked(bench: Bench) -> None:
    bench.start(configurations=2, seeds=2)
    bench.finish(["configuration-000-0", "configuration-000-1"])
    pruned = ["configuration-001-0", "configuration-001-1"]
    bench.finish(pruned, state="pruned", reason="rung 3: 7th of 9")
    bench.writer().update("finished")
    kept, run = bench.children()["configuration-000"], bench.children()["configuration-001"]
    assert (kept.info.status, kept.data.tags["modmix.state"]) == ("FINISHED", "done")
    assert (run.info.status, run.data.tags["modmix.state"]) == ("KILLED", "pruned")
    assert run.data.tags["modmix.pruned"] == "2"
    assert run.data.tags["modmix.reason"] == "rung 3: 7th of 9"
    assert "val/error" in run.data.metrics


@pytest.mark.slow
def test_the_study_s_run_charts_its_configurations(bench: Bench) -> None:
    bench.start(configurations=5, seeds=2)
    results = bench.finish()
    writer = bench.writer()
    writer.update("running")
    writer.update("finished")
    rows = bench.rows(bench.study_run(), "configurations/mul/val/error over 2 seeds")
    errors = np.array([r.metrics["val/error"] for r in results]).reshape(5, 2).mean(1)
    assert rows == [(i, pytest.approx(errors[i])) for i in (0, 2, 4)]


@pytest.mark.slow
def test_metrics_with_slashes_in_their_names(bench: Bench) -> None:
    bench.start(configurations=1, seeds=2)
    results = bench.finish(**{"val/audio/error": 12.5, "test/audio+video/error": 7.0})
    bench.writer().update("finished")
    metrics = bench.children()["configuration-000"].data.metrics
    assert metrics["val/audio/error"] == 12.5
    assert metrics["test/audio_video/error"] == 7.0  # MLflow refuses "+"
    assert results[0].metrics["test/audio+video/error"] == 7.0


@pytest.mark.slow
def test_the_experiment_is_one_of_model_training(bench: Bench) -> None:
    bench.start(configurations=1, seeds=1)
    bench.finish()
    writer = bench.writer()
    writer.update("finished")
    client = MlflowClient(bench.uri)
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert pages(bench.uri, "http://here:5000/") == {
        STUDY: f"http://here:5000/#/experiments/{experiment.experiment_id}/runs"
        "?workflowType=machine_learning"
    }


@pytest.mark.slow
def test_long_curves_are_thinned_out_and_many_rows_arrive(bench: Bench) -> None:
    bench.start(configurations=1, seeds=2)
    results = bench.finish(epochs=1003)
    bench.writer().update("finished")
    run = bench.children()["configuration-000"]
    rows = bench.rows(run, "epoch/val/error")
    assert len(rows) == 50
    assert rows[0][0] == 1
    assert rows[-1][0] == 1003
    for step, value in rows:
        assert value == pytest.approx(np.mean([r.history["val/error"][step - 1] for r in results]))
    held = json.loads(bench.artifact(run, "replicates.json"))
    assert len(held["replicates"][0]["history"]["val/error"]) == 1003


# ---------------------------------------------------------------- again and again


@pytest.mark.slow
def test_writing_again_changes_nothing(bench: Bench) -> None:
    bench.start()
    bench.finish()
    bench.writer().update("finished")
    before = {r.info.run_id: r.data.metrics for r in bench.runs()}
    bench.release()
    assert sync(bench.ledger, STUDY, bench.uri, bench.home).written == 0
    # Even where it is not known what was written, the rows are the same ones.
    client = MlflowClient(bench.uri)
    for run in bench.children().values():
        client.delete_tag(run.info.run_id, "modmix.digest")
    bench.writer().update("finished")
    bench.check_whole()
    assert {r.info.run_id: r.data.metrics for r in bench.runs()} == before
    assert len(bench.rows(bench.children()["configuration-000"], "epoch/val/error")) == 4


# ---------------------------------------------------------------- extended, and what people add


def extend_with_notes(bench: Bench) -> None:
    """A study of two seeds, to which a person and then three more seeds add."""
    client = MlflowClient(bench.uri)
    bench.start(configurations=1, seeds=2, study="annotated")
    bench.finish(["configuration-000-0"], state="failed", reason="diverged: epoch 1")
    bench.finish(["configuration-000-1"])
    bench.writer().update("finished")
    run = bench.children()["configuration-000"].info.run_id
    parent = bench.study_run().info.run_id
    for one in (run, parent):
        client.log_metric(one, "human/rating", 3.5, step=2)
        client.set_tag(one, "reviewed", "by Ann")
        client.set_tag(one, "mlflow.note.content", "look at this one")
    client.log_text(run, "strange at epoch 3", "remarks.txt")
    client.update_run(run, name="Ann's favourite")
    bench.extend(configurations=1, seeds=5)
    bench.ledger.reset_failures(bench.study)
    bench.finish()
    bench.writer().update("finished")
    bench.check_whole()
    child = bench.children()["configuration-000"]
    assert (child.info.run_id, bench.study_run().info.run_id) == (run, parent)
    for one in (child, bench.study_run()):
        assert one.data.metrics["human/rating"] == 3.5
        assert one.data.tags["reviewed"] == "by Ann"
        assert one.data.tags["mlflow.note.content"] == "look at this one"
    assert child.info.run_name == "Ann's favourite"
    assert bench.artifact(child, "remarks.txt") == "strange at epoch 3"
    assert not {"modmix.reason", "modmix.failed"} & set(child.data.tags)
    assert child.data.metrics["replicates"] == 5


@pytest.mark.slow
def test_what_a_person_adds_to_a_run_stays(bench: Bench) -> None:
    extend_with_notes(bench)


@pytest.mark.slow
@pytest.mark.cluster
def test_what_a_person_adds_to_a_run_stays_on_a_server(tmp_path: Path, server: Server) -> None:
    extend_with_notes(Bench(tmp_path / "home", server.uri))


@pytest.mark.slow
def test_a_second_writer_takes_over_from_the_first(bench: Bench) -> None:
    """As when the driver of the first one was paused until its lease had run out."""
    bench.start(configurations=4, seeds=1)
    first, second = bench.writer(), bench.writer()
    bench.finish(["configuration-000-0"])
    first.update("running")
    bench.finish(["configuration-001-0"])
    second.update("running")
    bench.finish(["configuration-002-0"])
    with pytest.raises(OvertakenError, match="another process is now logging study 'curves'"):
        first.update("stopped")
    first.reset()
    with pytest.raises(OvertakenError):  # it does not take the study back
        first.update("stopped")
    assert bench.study_run().info.status == "RUNNING"  # it is the second one's
    bench.finish(["configuration-003-0"])
    second.update("finished")
    bench.check_whole()


def take_over(bench: Bench) -> None:
    """Another driver takes the study, as it can once the first one's lease has run out."""
    bench.ledger.release(bench.lease)
    bench.lease = bench.ledger.acquire(STUDY)


def writer_of(bench: Bench, lease: Lease) -> Writer:
    return Writer(Ledger(bench.url), STUDY, bench.uri, bench.home, lease=lease)


@pytest.mark.slow
def test_a_writer_that_comes_late_does_not_take_over_from_the_current_driver_s(
    bench: Bench,
) -> None:
    bench.start(configurations=2, seeds=1)
    late = writer_of(bench, bench.lease)
    take_over(bench)
    current = writer_of(bench, bench.lease)
    bench.finish(["configuration-000-0"])
    current.update("running")
    bench.finish(["configuration-001-0"])
    for _ in range(2):
        with pytest.raises(OvertakenError, match="another driver is now running study 'curves'"):
            late.update("stopped")
        late.reset()
    current.update("finished")
    bench.check_whole()


@pytest.mark.slow
def test_the_current_driver_s_writer_goes_on_beside_late_writes(bench: Bench) -> None:
    """A request that a stopped process had sent before it could see that it had lost the study."""
    bench.start(configurations=2, seeds=1)
    bench.finish(["configuration-000-0"])
    current = writer_of(bench, bench.lease)
    current.update("running")
    client = MlflowClient(bench.uri)
    experiment = current.found.experiment
    client.set_experiment_tag(experiment, WRITER, "another")
    for configuration in bench.configurations:
        client.create_run(experiment, tags={"modmix.configuration": configuration.key})
    bench.finish(["configuration-001-0"])
    with pytest.raises(TrackingError, match="this one reads the runs again"):
        current.update("finished")
    current.reset()
    current.update("finished")
    bench.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_a_stopped_follower_ends_when_it_goes_on(bench: Bench, begun: bool) -> None:
    """Its driver was stopped with it, and another one has taken the study over meanwhile."""
    bench.start(configurations=3, seeds=1)
    bench.finish(["configuration-000-0"])
    task = Task(
        ledger_url=bench.url,
        study=STUDY,
        uri=bench.uri,
        home=str(bench.home.path),
        niceness=0,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "modmix.tracking.follow"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        begin = json.dumps({"token": bench.lease.token})
        process.stdin.write(f"{task.to_json()}\n{begin}\n")
        process.stdin.flush()
        while begun and json.loads(process.stdout.readline()) != {"left": 0}:
            pass  # until it has written the first configuration
        if begun:  # the tags of the study's run are written last
            eventually(lambda: "modmix.note" in bench.study_run().data.tags)
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        take_over(bench)
        bench.finish(["configuration-001-0", "configuration-002-0"])
        writer_of(bench, bench.lease).update("finished")
        bench.check_whole()
        before = {run.info.run_id: run.to_dictionary() for run in bench.runs()}
        process.send_signal(signal.SIGCONT)
        # It ends by itself, although the driver has not closed its input.
        assert process.wait(60) == 0
        answers = [json.loads(line) for line in process.stdout]
        assert "Fatal" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert answers[-1] == {"done": False}
    assert "another driver is now running study 'curves'" in answers[-2]["problem"]
    assert {run.info.run_id: run.to_dictionary() for run in bench.runs()} == before


@pytest.mark.slow
def test_a_run_that_was_created_at_the_moment_of_taking_over_is_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.start(configurations=1, seeds=1)
    bench.finish()
    first, second = bench.writer(), bench.writer()
    first.update("running")
    bench.extend(configurations=3, seeds=1)
    bench.finish()
    create = MlflowClient.create_run

    def overtaken(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(MlflowClient, "create_run", create)
        second.update("running")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", overtaken)
    with pytest.raises(OvertakenError):
        first.update("running")
    assert len(bench.runs()) == 6  # the study's, three, and two second ones
    second.update("finished")
    bench.check_whole()


def write_as_before(bench: Bench, seeds: int) -> str:
    """A configuration's run as former releases wrote it: other curves, other tags, no state."""
    client = MlflowClient(bench.uri)
    record = bench.ledger.study(bench.study)
    place = (bench.home.artifacts / bench.study).as_uri()
    owner = {"modmix.owner": digest([record.name, record.created])[:12]}
    experiment = client.create_experiment(bench.study, artifact_location=place, tags=owner)
    tags = {"modmix.kind": "study"}
    parent = client.create_run(experiment, tags=tags, run_name=bench.study).info.run_id
    client.set_terminated(parent, "FINISHED")
    (configuration,) = bench.ledger.configurations(bench.study)
    mine = bench.ledger.replicates(bench.study)
    held = configuration_digest(configuration, mine, ["curve"])
    keys = sorted(f"configuration-000-{seed}" for seed in range(seeds))
    tags = {
        "modmix.configuration": configuration.key,
        "modmix.curves": digest(keys),
        "modmix.digest": held,
        "mlflow.parentRunId": parent,
    }
    run = client.create_run(experiment, tags=tags, run_name="mul beta=0").info.run_id
    for step in (1, 2, 3, 4):
        client.log_metric(run, "epoch/val/error", 1.0 / step, timestamp=step, step=step)
        client.log_metric(run, "epoch/val/error_std", 0.1, timestamp=step, step=step)
    client.log_metric(run, "val/error", 0.25, timestamp=4, step=seeds)
    client.log_param(run, "method", "mul")
    client.set_terminated(run, "FINISHED")
    bench.ledger.set_study_run(bench.study, parent)
    bench.ledger.set_configuration_runs(bench.study, [(configuration.key, run, held)])
    return str(run)


@pytest.mark.slow
@pytest.mark.parametrize("noted", [True, False])
def test_an_experiment_of_a_former_release_goes_on(bench: Bench, noted: bool) -> None:
    bench.start(configurations=1, seeds=2)
    bench.finish()
    run = write_as_before(bench, seeds=2)
    if not noted:  # as in another ledger's copy
        bench.ledger.set_configuration_runs(STUDY, [("configuration-000", None, None)])
        bench.ledger.set_study_run(STUDY, None)
    writer = bench.writer()
    writer.update("finished")
    assert writer.written == 0
    bench.check_whole()
    bench.extend(configurations=1, seeds=4)
    results = bench.finish(["configuration-000-2", "configuration-000-3"])
    bench.writer().update("finished")
    bench.check_whole()
    child = bench.children()["configuration-000"]
    assert (child.info.run_id, child.info.run_name) == (run, "mul beta=0")
    first = bench.rows(child, "epoch/val/error")
    assert first == [(step, 1.0 / step) for step in (1, 2, 3, 4)]
    assert len(bench.rows(child, "epoch/val/error_std")) == 4
    both = [result(f"configuration-000-{seed}") for seed in (0, 1)] + results
    means = np.array([r.history["val/error"] for r in both]).mean(0)
    assert [v for _, v in bench.rows(child, "epoch_4/val/error")] == pytest.approx(means)
    assert child.data.metrics["replicates"] == 4
    assert child.data.params["beta"] == "0.0"


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Fuse:
    """Lets a number of calls through, then kills: before the next call, or right after it."""

    def __init__(self, calls: int, *, after: bool) -> None:
        self.calls, self.after, self.blown = calls, after, False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls -= 1
            if self.calls < 0 and not self.after:
                self.blown = True
                raise Killed
            done = function(*args, **kwargs)
            if self.calls < 0:
                self.blown = True
                raise Killed
            return done

        return call


WRITES = (
    "create_experiment", "set_experiment_tag", "create_run", "log_inputs", "log_batch",
    "log_artifact", "set_terminated", "update_run", "set_tag", "delete_run",
)  # fmt: skip
NOTES = ("set_configuration_runs", "set_study_run")


@pytest.mark.slow
@pytest.mark.parametrize(("after", "rebuild"), [(False, False), (True, False), (True, True)])
def test_a_kill_at_any_call_leaves_no_duplicate_and_nothing_running(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, after: bool, rebuild: bool
) -> None:
    for calls in range(100):
        bench.start(configurations=2, seeds=1, study=f"killed-{calls}")
        for configuration in bench.configurations:
            for key, _ in configuration.replicates:
                if bench.ledger.replicate_states(bench.study)[key] == "pending":
                    bench.finish([key])
        fuse = Fuse(calls, after=after)
        with monkeypatch.context() as patch:
            for name in WRITES:
                patch.setattr(MlflowClient, name, fuse.around(getattr(MlflowClient, name)))
            for name in NOTES:
                patch.setattr(Ledger, name, fuse.around(getattr(Ledger, name)))
            with suppress(Killed):
                bench.writer().update("finished")
        bench.writer().update("finished", rebuild=rebuild)
        bench.check_whole()
        if not fuse.blown:
            assert calls > 15
            return
    raise AssertionError("the fuse always blew")


@pytest.mark.slow
def test_more_seeds_make_new_curves_not_second_values(bench: Bench) -> None:
    bench.start(configurations=2, seeds=2)
    bench.finish()
    bench.writer().update("finished")
    bench.extend(configurations=2, seeds=4)
    bench.writer().update("running")  # nothing of it has ended: the old means stand
    bench.finish()
    bench.writer().update("finished")
    bench.check_whole()
    run = bench.children()["configuration-001"]
    assert run.data.metrics["replicates"] == 4
    assert [step for step, _ in bench.rows(run, "epoch/val/error")] == [1, 2, 3, 4]
    assert [step for step, _ in bench.rows(run, "epoch_4/val/error")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_stopped_study_has_no_running_runs_and_goes_on(bench: Bench) -> None:
    bench.start(configurations=2, seeds=2)
    bench.finish(["configuration-000-0", "configuration-000-1", "configuration-001-0"])
    mirror = bench.mirror()
    mirror.start()
    assert mirror.close("stopped"), mirror.problem
    children = bench.children()
    assert children["configuration-000"].info.status == "FINISHED"
    assert children["configuration-001"].info.status == "KILLED"
    assert "epoch/val/error" not in children["configuration-001"].data.metrics
    assert bench.study_run().info.status == "KILLED"
    mirror = bench.mirror()
    mirror.start()
    bench.finish()
    assert mirror.close("finished"), mirror.problem
    bench.check_whole()
    assert (
        bench.children()["configuration-001"].info.run_id
        == children["configuration-001"].info.run_id
    )


@pytest.mark.slow
def test_runs_of_a_driver_that_was_killed_are_ended_later(bench: Bench) -> None:
    bench.start(configurations=2, seeds=2)
    bench.finish(["configuration-000-0"])
    bench.writer().update("running")
    assert bench.children() == {}  # none is complete
    parent = bench.study_run()
    assert parent.info.status == "RUNNING"
    assert parent.data.metrics["study/replicates"] == 4
    assert parent.data.metrics["study/replicates_ended"] == 1
    bench.ledger.release(bench.lease)  # and the driver is gone without a word
    sync(bench.ledger, STUDY, bench.uri, bench.home)
    assert bench.children()["configuration-000"].info.status == "KILLED"
    assert bench.study_run().info.status == "KILLED"


def eventually(holds: Callable[..., bool]) -> None:
    for _ in range(300):
        with suppress(IndexError, KeyError, AssertionError):
            if holds():
                return
        time.sleep(0.1)
    raise AssertionError("it never did")


@pytest.mark.slow
def test_dropped_configurations_and_failures_that_were_mended(bench: Bench) -> None:
    bench.start(configurations=3, seeds=1)
    bench.finish(["configuration-000-0", "configuration-001-0"])
    bench.finish(["configuration-002-0"], state="failed", reason="diverged: epoch 1")
    bench.writer().update("finished")
    assert bench.children()["configuration-002"].info.status == "FAILED"
    # The study file was edited: it no longer asks for configuration 1, and failures are tried
    # again.
    bench.ledger.reset_failures(STUDY)
    with sqlite3.connect(bench.home.path / "ledger.db") as database:
        for table in ("study_configurations", "study_replicates", "entries"):
            database.execute(f"DELETE FROM {table} WHERE configuration = 'configuration-001'")
    database.close()
    record = bench.ledger.study(STUDY)
    bench.ledger.start_study(
        STUDY, spec=record.spec, text="study: curves # edited", source="x.yaml",
        details=record.details,
    )  # fmt: skip
    bench.finish(["configuration-002-0"])
    bench.writer().update("finished")
    children = bench.children()
    removed = children.pop("configuration-001")
    assert (removed.info.status, removed.data.tags["modmix.state"]) == ("FINISHED", "removed")
    assert {r.data.tags["modmix.state"] for r in children.values()} == {"done"}
    assert {r.info.status for r in children.values()} == {"FINISHED"}
    assert "modmix.reason" not in children["configuration-002"].data.tags


@pytest.mark.slow
def test_a_lost_database_is_rebuilt(bench: Bench, empty_database: Path) -> None:
    bench.start()
    bench.finish()
    bench.writer().update("finished")
    bench.release()
    new = f"sqlite:///{bench.home.path / 'other.db'}"
    copy_database(empty_database, bench.home.path / "other.db")
    bench.uri = new  # every id that the ledger holds is now unknown
    figure = bench.home.study(STUDY) / "figures" / "curve.svg"
    figure.parent.mkdir(parents=True)
    figure.write_text("<svg/>")
    done = sync(bench.ledger, STUDY, new, bench.home)
    assert (done.written, done.experiment) == (3, STUDY)
    bench.check_whole()
    assert bench.artifact(bench.study_run(), "figures/curve.svg") == "<svg/>"


@pytest.mark.slow
def test_a_deleted_experiment_is_restored_and_deleted_runs_come_back_on_sync(bench: Bench) -> None:
    bench.start()
    bench.finish()
    bench.writer().update("finished")
    client = MlflowClient(bench.uri)
    client.delete_run(bench.children()["configuration-001"].info.run_id)
    bench.release()
    assert sync(bench.ledger, STUDY, bench.uri, bench.home).written == 1
    bench.check_whole()
    client.delete_experiment(bench.study_run().info.experiment_id)
    bench.writer().update("finished")
    bench.check_whole()


@pytest.mark.slow
def test_an_experiment_of_somebody_else_is_left_alone(bench: Bench) -> None:
    client = MlflowClient(bench.uri)
    theirs = client.create_experiment(STUDY, artifact_location=str(bench.home.path / "theirs"))
    bench.start()
    bench.finish()
    writer = bench.writer()
    writer.update("finished")
    assert writer.found.experiment_name.startswith(f"{STUDY}-")
    bench.check_whole(writer.found.experiment_name)
    assert not client.search_runs([theirs])


@pytest.mark.slow
def test_one_refused_configuration_does_not_stop_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.start()
    bench.finish()
    log = Store.log

    def refuse_one(self: Store, run: str, **content: Any) -> None:
        if content.get("params", {}).get("depth") == "1":
            raise RefusedError("MLflow refuses this one")
        log(self, run, **content)

    monkeypatch.setattr(Store, "log", refuse_one)
    writer = bench.writer()
    with pytest.raises(RefusedError, match="refuses this one"):
        writer.update("finished")
    monkeypatch.undo()
    assert sum(r.info.status == "FINISHED" for r in bench.children().values()) == 2
    writer.reset()
    writer.update("finished")
    bench.check_whole()


def test_sync_leaves_a_running_study_to_its_driver(bench: Bench) -> None:
    bench.start()
    with pytest.raises(InputError, match=f"run by process {os.getpid()}"):
        sync(bench.ledger, STUDY, bench.uri, bench.home)


# ---------------------------------------------------------------- its own process


@pytest.mark.slow
def test_a_mirror_s_process_that_is_killed_is_started_again(bench: Bench) -> None:
    bench.start(configurations=4, seeds=1)
    table = bench.home.study(STUDY) / "tables" / "configurations.csv"
    table.parent.mkdir(parents=True)
    table.write_text("a,b\n")
    mirror = bench.mirror()
    mirror.start()
    bench.finish(["configuration-000-0"])
    eventually(lambda: "configuration-000" in bench.children())
    first = mirror._process
    assert first is not None
    first.kill()
    bench.finish()
    assert mirror.close("finished"), mirror.problem
    assert mirror._process is not first
    bench.check_whole()
    assert bench.artifact(bench.study_run(), "tables/configurations.csv") == "a,b\n"


NOISY = """
import runpy, sys
from modmix.tracking.writer import Writer
update = Writer.update

def noisy(self, state, **how):
    print("View run at http://somewhere", flush=True)
    update(self, state, **how)

Writer.update = noisy
runpy.run_module("modmix.tracking.follow", run_name="__main__")
"""


@pytest.mark.slow
def test_a_mirror_s_process_may_print(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As plugins of MLflow do, and MLflow itself at the end of a run on a server."""
    start = subprocess.Popen

    def popen(command: list[str], **how: Any) -> subprocess.Popen[str]:
        return start([sys.executable, "-c", NOISY], **how)

    monkeypatch.setattr(subprocess, "Popen", popen)
    bench.start(configurations=1, seeds=1)
    mirror = bench.mirror()
    mirror.start()
    bench.finish()
    assert mirror.close("finished"), mirror.problem
    bench.check_whole()


def test_ctrl_c_ends_the_wait_for_mlflow(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start(configurations=1, seeds=1)
    mirror = bench.mirror()
    monkeypatch.setattr(mirror._thread, "run", lambda: time.sleep(60))
    mirror.start()

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mirror._thread, "join", interrupted)
    assert not mirror.close("finished")
    assert f"run 'modmix sync {STUDY}' to bring it up to date" in mirror.problem


DRIVER = """
import sys, time
from pathlib import Path
from modmix.base.home import Home
from modmix.tracking.mirror import Mirror
url, study, uri, home = sys.argv[1:]
mirror = Mirror(url, study, uri, Home(Path(home)))
mirror.start()
while mirror._process is None:
    time.sleep(0.01)
print(mirror._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_driver_takes_its_mirror_along(bench: Bench) -> None:
    """Two of one study would write into each other's runs."""
    bench.start(configurations=1, seeds=1)
    words = [bench.url, bench.study, bench.uri, str(bench.home.path)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *words], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    mirror = psutil.Process(int(driver.stdout.readline()))
    assert mirror.is_running()
    driver.kill()
    driver.wait()
    driver.stdout.close()
    mirror.wait(20)  # raises when it still runs


@pytest.mark.slow
def test_a_mirror_that_was_prepared_writes_nothing_before_the_study_begins(bench: Bench) -> None:
    bench.start(configurations=1, seeds=1)
    bench.finish()
    database = bench.home.path / "mlflow.db"
    database.unlink()
    mirror = bench.mirror()
    mirror.prepare()
    eventually(database.exists)  # it has loaded MLflow, and waits
    time.sleep(1.0)
    assert [e.name for e in MlflowClient(bench.uri).search_experiments()] == ["Default"]
    mirror.start(bench.lease)
    assert mirror.close("finished"), mirror.problem
    bench.check_whole()


@pytest.mark.slow
def test_a_mirror_of_a_study_that_never_begins_is_discarded(bench: Bench) -> None:
    bench.start(configurations=1, seeds=1)
    bench.mirror().discard()  # not even prepared
    mirror = bench.mirror()
    mirror.prepare()
    eventually(lambda: mirror._process is not None)
    assert mirror._process is not None
    process = psutil.Process(mirror._process.pid)
    mirror.discard()
    assert not process.is_running()
    eventually(lambda: not mirror._thread.is_alive())
    assert mirror._process.pid == process.pid  # not started again
    at_once = bench.mirror()
    at_once.prepare()
    at_once.discard()
    eventually(lambda: not at_once._thread.is_alive())


@pytest.mark.slow
def test_the_end_says_how_much_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from modmix.tracking import writer

    monkeypatch.setattr(writer, "_CHUNK", 2)
    bench.start(configurations=5, seeds=1)
    bench.finish()
    bench.release()
    told: list[int] = []
    sync(bench.ledger, STUDY, bench.uri, bench.home, progress=told.append)
    assert told == [5, 3, 1, 0]


# ---------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize("uri", ["mlruns", "/tmp/mlruns", "file:///tmp/mlruns"])
def test_a_folder_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="is a folder, which MLflow 3 does not support"):
        store.check(uri)


def test_a_database_of_another_version_is_refused(tmp_path: Path, empty_database: Path) -> None:
    store.check(f"sqlite:///{empty_database}")
    store.check(f"sqlite:///{tmp_path / 'none.db'}")
    other = tmp_path / "other.db"
    copy_database(empty_database, other)
    with sqlite3.connect(other) as database:
        database.execute("UPDATE alembic_version SET version_num = 'abc123'")
    database.close()
    message = r"created by another version of MLflow: back it up and run 'mlflow db upgrade sqlite"
    with pytest.raises(RefusedError, match=message):
        Store(f"sqlite:///{other}").ping()
    other.write_bytes(b"no database " * 100)
    with pytest.raises(InputError, match="cannot be read as an SQLite database"):
        store.check(f"sqlite:///{other}")


def test_a_password_is_never_shown() -> None:
    port = free_port()
    with pytest.raises(TrackingError) as caught:
        store.check(f"http://ann:secret@127.0.0.1:{port}")
    assert "secret" not in str(caught.value)
    assert f"http://***@127.0.0.1:{port} is unreachable (connection refused)" in str(caught.value)


@pytest.mark.slow
def test_a_database_server_that_is_away_is_said_within_seconds() -> None:
    begun = time.monotonic()
    with pytest.raises(TrackingError, match="is unreachable") as caught:
        store.check(f"postgresql://ann:secret@127.0.0.1:{free_port()}/mlflow")
    assert time.monotonic() - begun < 15
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- a real server


@pytest.mark.slow
@pytest.mark.cluster
def test_a_server_holds_the_same_as_a_database(tmp_path: Path, server: Server) -> None:
    bench = Bench(tmp_path / "home", server.uri).start(configurations=2, seeds=2)
    mirror = bench.mirror()
    mirror.check()
    mirror.start()
    results = bench.finish(epochs=300)
    table = bench.home.study(STUDY) / "tables" / "configurations.csv"
    table.parent.mkdir(parents=True)
    table.write_text("a,b\n")
    assert mirror.close("finished"), mirror.problem
    bench.check_whole()
    run = bench.children()["configuration-000"]
    mean = np.mean([r.metrics["test/f1"] for r in results[:2]])
    assert run.data.metrics["test/f1"] == pytest.approx(mean)
    assert len(bench.rows(run, "epoch/val/error")) == 50
    assert bench.artifact(bench.study_run(), "tables/configurations.csv") == "a,b\n"
    assert len(json.loads(bench.artifact(run, "replicates.json"))["replicates"]) == 2


@pytest.mark.slow
@pytest.mark.cluster
def test_a_server_that_goes_away_and_comes_back(tmp_path: Path, server: Server) -> None:
    bench = Bench(tmp_path / "home", server.uri).start(
        configurations=8, seeds=1, study="interrupted"
    )
    mirror = bench.mirror(longest_pause=2.0)
    mirror.start()
    keys = [key for configuration in bench.configurations for key, _ in configuration.replicates]
    for i, key in enumerate(keys):
        begun = time.monotonic()
        bench.finish([key])
        assert time.monotonic() - begun < 1.0  # training does not wait
        if i == 1:
            eventually(lambda: "configuration-000" in bench.children())
        if i == 2:
            server.stop()
        if i == 5:
            eventually(lambda: "connection refused" in mirror.problem)
    assert not mirror.close("finished", timeout=2.0)
    assert "run 'modmix sync interrupted' to bring it up to date" in mirror.problem
    begun = time.monotonic()
    with pytest.raises(TrackingError, match=r"is unreachable \(connection refused\)"):
        bench.mirror().check()
    assert time.monotonic() - begun < 5
    server.start()
    bench.release()
    done = sync(bench.ledger, "interrupted", server.uri, bench.home)
    assert done.written >= 5
    experiment = bench.study_run().info.experiment_id
    assert done.page == (
        f"{server.uri}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    )
    bench.check_whole()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_mirror_catches_up_by_itself(tmp_path: Path, server: Server) -> None:
    bench = Bench(tmp_path / "home", server.uri).start(configurations=4, seeds=1, study="caught-up")
    server.stop()
    mirror = bench.mirror(longest_pause=1.0)
    mirror.start()
    bench.finish()
    eventually(lambda: "connection refused" in mirror.problem)
    server.start()
    assert mirror.close("finished", timeout=30.0), mirror.problem
    assert mirror.problem == ""
    bench.check_whole()


@pytest.mark.slow
def test_a_database_whose_creation_is_killed_is_made_anew(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = f"from modmix.tracking.store import Store; Store({uri!r}).ping()"
    process = subprocess.Popen([sys.executable, "-c", code])
    new = tmp_path / ".mlflow.db.new"
    while not (new.exists() and new.stat().st_size > 100_000):  # some of its tables are there
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    Store(uri).ping()
    assert not new.exists()
