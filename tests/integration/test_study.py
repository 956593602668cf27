"""A study from file to figures, in this process: again, extended, shared, stopped, mended."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

import modmix
from modmix import api
from modmix.base.messages import Finished, PackStarted, Progress
from modmix.ledger.ledger import Ledger
from modmix.tasks.base import load_task

if TYPE_CHECKING:
    from modmix.execution.run import StudyRun

pytestmark = pytest.mark.slow

FILE = """
study: {name}
task: {{name: digits, train_rows: 120}}
seeds: {seeds}
training: {{epochs: 3, batch_size: 32, learning_rate: 0.003}}
parts:
  curve:
    x: beta
    methods:
      mul: {{beta: {{grid: {grid}}}}}
  search:
    search: {{configurations: {configurations}, batch: 2, parallel: 1}}
    methods:
      late: {{learning_rate: {{low: 0.001, high: 0.1, log: true}}}}
"""


def write(folder: Path, name: str = "small", **values: object) -> Path:
    path = folder / f"{name}.yaml"
    filled = {"seeds": 2, "grid": [0, 0.5], "configurations": 4, **values}
    path.write_text(FILE.format(name=name, **filled))
    return path


def local(path: Path, home: Path, **how: object) -> modmix.Study:
    return modmix.run(path, runner="local", home=home, mlflow=False, **how)  # type: ignore[arg-type]


def cli(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modmix", *arguments],
        env={**os.environ, "MODMIX_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_file_in_numbers_out(tmp_path: Path) -> None:
    study = local(write(tmp_path), tmp_path / "runs")
    frame = study.frame()
    assert list(frame["method"].value_counts().items()) == [("late", 4), ("mul", 2)]
    assert set(frame["n"]) == {2}
    # Mean, deviation and interval against the replicates, by hand: t(0.975, 1) = tan(0.475 π).
    for _, row in frame.iterrows():
        mine = study.replicates().query(
            "configuration == @row.configuration or "
            "configuration.str.startswith(@row.configuration)"
        )
        values = mine["test/error"].to_numpy()
        mean = values.sum() / 2
        std = abs(values[0] - values[1]) / np.sqrt(2)
        assert row["test/error/mean"] == pytest.approx(mean)
        assert row["test/error/std"] == pytest.approx(std)
        assert row["test/error/ci_high"] == pytest.approx(
            mean + 12.706204736174694 * std / np.sqrt(2)
        )
        assert row["test/error/ci_low"] == pytest.approx(
            max(0.0, mean - 12.706204736174694 * std / np.sqrt(2))
        )
    names = {path.name for path in (study.folder / "figures").iterdir()}
    assert {"curve.png", "curve.svg"} <= names
    names = {path.name for path in (study.folder / "tables").iterdir()}
    assert {"configurations.csv", "results.csv", "results.md", "results.tex"} <= names
    assert "<html" in (study.folder / "report.html").read_text()[:500]


@pytest.mark.usefixtures("without_figures")
def test_again_extended_and_shared(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    first = local(write(tmp_path), home)
    done = first.replicates().set_index("replicate")["test/error"]
    assert len(done) == 12

    said: list[str] = []
    again = local(write(tmp_path), home, log=said.append)
    assert again.status()["trained"] == 12
    attempts = {r.attempts for r in Ledger(first.home.ledger_url).replicates("small")}
    assert attempts == {1}

    # Two configurations more for the search, one value more for the grid, one seed more for all.
    wider = local(write(tmp_path, configurations=6, grid=[0, 0.5, 1], seeds=3), home)
    status = wider.status()
    assert status["configurations"] == {
        "total": 9, "done": 9, "pruned": 0, "failed": 0, "running": 0, "pending": 0,
    }  # fmt: skip
    assert status["replicates"]["done"] == 27
    assert {r.attempts for r in Ledger(first.home.ledger_url).replicates("small")} == {1}
    kept = wider.replicates().set_index("replicate")["test/error"]
    assert kept[done.index].equals(done)

    said.clear()
    other = local(
        write(tmp_path, "other", configurations=4, grid=[0, 1], seeds=2), home, log=said.append
    )
    assert (
        other.status()["reused"] == 4 + 8
    )  # both β, and the four configurations of the same search
    assert other.status()["trained"] == 0
    assert any("12 models reused from the ledger in total" in text for text in said)


@pytest.mark.usefixtures("without_figures")
def test_reuse_can_be_turned_off(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    local(write(tmp_path, configurations=2), home)
    path = write(tmp_path, "alone", configurations=2)
    path.write_text(path.read_text() + "reuse: false\n")
    status = local(path, home).status()
    assert (status["trained"], status["reused"]) == (8, 0)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("setting", "kept"),
    [("auto", {"mul"}), ("true", {"mul", "late"}), ("false", set())],
)
def test_whose_predictions_are_kept(setting: str, kept: set[str], tmp_path: Path) -> None:
    path = write(tmp_path, configurations=2)
    path.write_text(path.read_text() + f"predictions: {setting}\n")
    study = local(path, tmp_path / "runs")
    ledger, frame = study._ledger, study.replicates()
    stored = ledger.with_predictions(frame["replicate"].tolist())
    assert set(frame[frame["replicate"].isin(stored)]["method"]) == kept
    assert len(stored) == 4 * len(kept)
    data = load_task("digits", {"train_rows": 120})
    split = ledger.test_split(data.fingerprint)
    assert (split is None) == (not kept)
    if split is None:
        return
    assert split.target_N.tolist() == data.test.labels.tolist()
    digits = load_digits()
    assert split.target_N.tolist() == digits.target[split.numbers_N].tolist()
    errors = frame.set_index("replicate")["test/error"]
    for key, found in ledger.predictions(sorted(stored)):
        wrong = 100 * (found.classes_N != split.target_N).mean()
        assert wrong == pytest.approx(errors[key])


@pytest.mark.usefixtures("without_figures")
def test_reused_results_have_the_predictions_that_they_were_trained_with(tmp_path: Path) -> None:
    home, said = tmp_path / "runs", list[str]()
    local(write(tmp_path, configurations=1), home)
    path = write(tmp_path, "other", configurations=1)
    path.write_text(path.read_text() + "predictions: true\n")
    study = local(path, home, log=said.append)
    assert study.status()["reused"] == 6  # of `late` without predictions
    lacking = "2 models have no stored test predictions, because they were trained without"
    assert any(text.startswith(lacking) for text in said), said


@pytest.mark.usefixtures("without_figures")
def test_large_test_splits_are_kept_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modmix.execution.keeping.AUTO_ROWS", 100)
    study = local(write(tmp_path, configurations=1), tmp_path / "runs")
    assert study._ledger.with_predictions(study.replicates()["replicate"].tolist()) == set()


@pytest.mark.usefixtures("without_figures")
def test_an_edited_grid_forgets_what_it_no_longer_asks_for(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    local(write(tmp_path, grid=[0, 0.5]), home)
    study = local(write(tmp_path, grid=[0.5, 1]), home)
    assert sorted(study.frame().query("method == 'mul'")["beta"]) == [0.5, 1.0]


def test_interfaces_of_the_command_line(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    path = write(tmp_path)
    ran = cli(home, "run", str(path), "--local", "--no-mlflow")
    assert ran.returncode == 0, ran.stderr

    status = json.loads(cli(home, "status", "small", "--json").stdout)
    assert status["study"] == "small"
    assert status["state"] == "finished"
    assert status["configurations"]["total"] == status["configurations"]["done"] == 6
    assert status["replicates"]["total"] == status["replicates"]["done"] == 12
    assert {"running", "interrupted", "failed"} <= status["replicates"].keys()
    assert (status["trained"], status["reused"]) == (12, 0)
    assert status["device_seconds"] > 0
    assert status["wall_seconds"] > 0

    rows = list(csv.DictReader(io.StringIO(cli(home, "table", "small", "--format", "csv").stdout)))
    assert len(rows) == 6
    wanted = {"method", "beta", "learning_rate", "n"}
    wanted |= {
        f"{split}/error/{what}"
        for split in ("val", "test")
        for what in ("mean", "std", "ci_low", "ci_high")
    }
    assert wanted <= rows[0].keys()
    assert {float(row["beta"]) for row in rows if row["method"] == "mul"} == {0.0, 0.5}

    best = json.loads(cli(home, "best", "small", "--json").stdout)
    assert {configuration["method"] for configuration in best} == {"mul", "late"}
    for configuration in best:
        of_method = [row for row in rows if row["method"] == configuration["method"]]
        lowest = min(float(row["val/error/mean"]) for row in of_method)
        assert configuration["mean"] == pytest.approx(lowest)
        assert configuration["n"] == 2
        assert configuration["std"] is not None
        assert Path(configuration["file"]).exists()

    begun = time.monotonic()
    again = cli(home, "run", str(path), "--no-mlflow")
    assert again.returncode == 0, again.stderr
    assert json.loads(cli(home, "status", "small", "--json").stdout)["trained"] == 12
    assert time.monotonic() - begun < 60


@pytest.mark.usefixtures("without_figures")
def test_stop_and_continue(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    path = write(tmp_path, configurations=40, seeds=4)
    command = [sys.executable, "-m", "modmix", "run", str(path), "--local", "--no-mlflow"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "MODMIX_HOME": str(home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    database = home / "ledger.db"
    while process.poll() is None:
        if database.exists() and any(
            state == "done"
            for state in Ledger(f"sqlite:///{database}").replicate_states("small").values()
        ):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "resumes" in errors
    status = json.loads(cli(home, "status", "small", "--json").stdout)
    assert status["state"] == "stopped"
    assert 0 < status["replicates"]["done"] < 168
    study = local(path, home)
    assert study.status()["replicates"]["done"] == 168


@pytest.mark.usefixtures("without_figures")
def test_diverged_models_end_alone(tmp_path: Path) -> None:
    path = tmp_path / "wild.yaml"
    path.write_text(
        """
study: wild
task: {name: digits, train_rows: 120}
seeds: 2
training: {epochs: 3, optimizer: sgd}
parts:
  rates:
    methods:
      add: {learning_rate: {grid: [0.01, 1.0e+30]}}
"""
    )
    study = local(path, tmp_path / "runs")
    frame = study.frame().sort_values("learning_rate").reset_index()
    assert list(frame["n"]) == [2, 0]
    assert study.status()["configurations"]["failed"] == 1
    reasons = set(study.replicates().query("state == 'failed'")["reason"])
    assert len(reasons) == 1
    assert "diverged" in reasons.pop()


@pytest.mark.parametrize("epochs", [[0] * 9, [2] * 9, [1, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_machines_that_fail_again_and_again(tmp_path: Path, epochs: list[int]) -> None:
    """A pack that never gets further is abandoned; one that does is handed out every time."""
    from modmix.base.errors import GivenUp
    from modmix.base.home import Home
    from modmix.execution.failures import MAX_FAILURES
    from modmix.execution.run import StudyRun

    plan = api.make_plan(write(tmp_path, configurations=1, grid=[0.5], seeds=1))
    home = Home(tmp_path / "runs")
    home.make()
    ledger = Ledger(home.ledger_url)
    spec = plan.spec.model_dump(mode="json")
    ledger.start_study("small", spec=spec, text="", source="", details={})
    run = StudyRun(plan, ledger, ledger.acquire("small"), home, slots=1)
    run.prepare()
    first = run.next_pack()
    assert first is not None
    times = 0
    for epoch in epochs:
        times += 1
        if epoch:
            run.record([Progress(pack=first.id, epoch=epoch, epochs=9, active=1, metrics={})])
        run.ended(first.id, "the worker process or its node died")
        while (pack := run.next_pack()) is not None and pack.id != first.id:
            pass  # the other packs are somewhere else
        if pack is None:
            break
    given_up = times < len(epochs)
    assert given_up == (epochs[0] == epochs[-1])
    if given_up:
        assert times == MAX_FAILURES + 1
        with pytest.raises(GivenUp, match=r"failed 6 times without progress \(the worker"):
            run.check_complete()
        run.stop()
    run.check_complete()


class Restarted:
    """A study of one model whose driver is started again and again; nothing is trained.

    Each driver is a process of its own to the ledger: a new connection and a new lease.
    """

    def __init__(self, folder: Path) -> None:
        from modmix import api
        from modmix.base.home import Home

        path = folder / "one.yaml"
        path.write_text(
            "study: one\ntask: {name: digits, train_rows: 120}\nseeds: 1\n"
            "training: {epochs: 9}\nparts: {one: {methods: {mul: {beta: 0.5}}}}\n"
        )
        self.plan = api.make_plan(path)
        self.home = Home(folder / "runs")
        self.home.make()

    @contextmanager
    def driver(self, *, retry_failed: bool = False) -> Iterator[StudyRun]:
        from modmix.execution.run import StudyRun

        ledger = Ledger(self.home.ledger_url)
        spec = self.plan.spec.model_dump(mode="json")
        ledger.start_study("one", spec=spec, text="", source="", details={})
        lease = ledger.acquire("one")
        if retry_failed:
            ledger.reset_failures("one")
        work = StudyRun(self.plan, ledger, lease, self.home, slots=1)
        work.prepare()
        yield work
        ledger.release(lease)  # as if it was dead: the next driver finds its packs running
        ledger.close()

    def fail(self, *, epoch: int = 0, resumed: int = 0, **how: Any) -> str:
        """Let a new driver's pack fail once; its id."""
        with self.driver() as work:
            pack = work.next_pack()
            assert pack is not None
            started = PackStarted(
                pack=pack.id, models=1, device="cpu", stacked=False, why="", resumed_epoch=resumed
            )
            work.record([started])
            if epoch:
                at = Progress(pack=pack.id, epoch=epoch, epochs=9, active=1, metrics={})
                work.record([at])
            work.ended(pack.id, "the worker died", **how)
            return pack.id

    def count(self) -> int:
        ledger = Ledger(self.home.ledger_url)
        (pack,) = ledger.packs("one")
        ledger.close()
        return pack.failures


def test_the_checkpoint_of_a_pack_that_is_needed_no_more_is_removed(tmp_path: Path) -> None:
    """The study file was edited while its pack was interrupted: nobody will ever resume it."""
    study = Restarted(tmp_path)
    pack = study.fail()
    checkpoint = study.home.checkpoints / pack
    checkpoint.mkdir(parents=True)
    path = tmp_path / "one.yaml"
    path.write_text(path.read_text().replace("0.5", "0.7"))
    study.plan = api.make_plan(path)
    with study.driver() as work:
        other = work.next_pack()
        assert other is not None
        assert other.id != pack
        key = other.replicates[0].key
        work.check_complete()  # not yet
        assert checkpoint.exists()
        metrics = {"val/error": 1.0, "test/error": 1.0}
        work.record([Finished(pack=other.id, replicate=key, state="done", metrics=metrics)])
        work.ended(other.id)
        work.check_complete()
    assert not checkpoint.exists()
    ledger = Ledger(study.home.ledger_url)
    assert {one.state for one in ledger.packs("one")} == {"done"}
    ledger.close()


def test_failures_of_a_pack_are_counted_over_restarts(tmp_path: Path) -> None:
    from modmix.base.errors import GivenUp

    study = Restarted(tmp_path)
    assert len({study.fail(epoch=2) for _ in range(6)}) == 1
    for _ in range(2):
        with study.driver() as work:
            assert work.next_pack() is None
            assert work.finished
            with pytest.raises(
                GivenUp, match=r"^1 model .* 6 times without progress \(the worker .*retry-failed$"
            ):
                work.check_complete()
    with study.driver(retry_failed=True) as work:
        assert work.next_pack() is not None
    assert study.count() == 0
    study.fail(epoch=2)
    assert study.count() == 1


def test_progress_between_restarts_is_seen(tmp_path: Path) -> None:
    """Also where a driver was killed after it, and only the checkpoint shows how far it was."""
    study = Restarted(tmp_path)
    counts = []
    for epoch, resumed in [(2, 0), (2, 2), (0, 2), (3, 2), (0, 3), (0, 5)]:
        study.fail(epoch=epoch, resumed=resumed)
        counts.append(study.count())
    assert counts == [1, 2, 3, 1, 2, 1]


def test_a_driver_that_dies_is_no_failure_of_its_packs(tmp_path: Path) -> None:
    study = Restarted(tmp_path)
    name = study.fail()
    for _ in range(7):
        with study.driver() as work:  # which is gone without a word, while the pack runs
            pack = work.next_pack()
            assert pack is not None
            assert pack.id == name
    study.fail(counted=False)  # its node was lost
    with study.driver() as work:
        pack = work.next_pack()
        assert pack is not None
        work.release_packs()  # an error of the runner
    with study.driver() as work:
        pack = work.next_pack()
        assert pack is not None
        work.stop()
        work.ended(pack.id, "its worker was ended")
    assert study.count() == 1


def test_a_study_of_failures_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "wild.yaml"
    path.write_text(
        """
study: wild
task: {name: digits, train_rows: 120}
seeds: 1
training: {epochs: 2, optimizer: sgd, learning_rate: 1.0e+30}
parts: {all: {methods: {add: }}}
"""
    )
    ran = cli(tmp_path / "runs", "run", str(path), "--local", "--no-mlflow")
    assert ran.returncode == 1
    assert "every configuration of study wild failed (diverged" in ran.stderr
    assert "Traceback" not in ran.stderr
    told = cli(tmp_path / "runs", "status", "wild").stdout
    assert "  failed         1x add: diverged: loss" in told


# Environment variables that study files name their data by -> the file in MODMIX_TEST_DATA.
DATA_OF_STUDIES = {
    "MODMIX_HIGGS": "HIGGS.csv.gz",
    "MODMIX_CIFAR": "cifar100_subset.npz",
    "MODMIX_DIGITS": "spoken_written_digits.npz",
    "MODMIX_HANDWRITTEN": "handwritten.npz",
}


def test_every_study_file_has_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from modmix.study import files, make_plan

    data = os.environ.get("MODMIX_TEST_DATA")
    paths = sorted(Path("studies").glob("*.yaml"))
    assert len(paths) >= 5
    for path in paths:
        text = path.read_text()
        assert text.startswith("# ")
        for word in ("Cost:", "Expected:"):
            assert word in text, f"{path} does not say its {word}"
        needed = [(name, file) for name, file in DATA_OF_STUDIES.items() if name in text]
        if needed and (data is None or not (Path(data) / needed[0][1]).exists()):
            continue
        for name, file in needed:
            monkeypatch.setenv(name, str(Path(str(data)) / file))
        assert make_plan.make(files.read(path)).parts
