"""Searches in optuna-dashboard: what Optuna reads from the copies, and the real server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from fakecluster import Outcome, simulate
from modmix.base.home import Home
from modmix.base.messages import Finished, Replicate
from modmix.ledger.ledger import Ledger
from modmix.tracking.optuna_mirror import OptunaMirror

pytestmark = pytest.mark.slow

STUDY = """
study: small
task: {name: weak, inputs: 2, train_rows: 40, val_rows: 20, test_rows: 20, dim: 4}
seeds: 2
training: {epochs: 2, batch_size: 20}
objective: OBJECTIVE
parts:
  grid: {methods: {late: }}
  search:
    search: {configurations: COUNT, batch: 4, sampler: random, seed: SEED}
    shared: {learning_rate: {low: 0.001, high: 1, log: true}}
    methods:
      mul: {beta: {low: 0, high: 1}, alpha: 2}
      add:
        merge: {choices: [concat, sum]}
        project: {low: 4, high: 8, when: {merge: sum}}
        hidden: {choices: [[], [8]]}
"""


def study(folder: Path, count: int = 8, objective: str = "val/error", **how: Any) -> Outcome:
    text = STUDY.replace("COUNT", str(count)).replace("OBJECTIVE", objective)
    text = text.replace("SEED", str(how.pop("seed", 0)))
    return simulate(text, folder, value, slots=1, change=change, **how)


def value(replicate: Replicate) -> float:
    return float(replicate.training["learning_rate"] + replicate.seed)


def change(event: Finished, replicate: Replicate) -> Finished:
    """High learning rates diverge, and those above 0.03 are pruned after an epoch."""
    rate = replicate.training["learning_rate"]
    if rate > 0.3:
        return replace(event, state="failed", reason="diverged:\nloss is not finite", metrics={})
    if rate > 0.03:
        history = {name: column[:1] for name, column in event.history.items()}
        return replace(event, state="pruned", epochs=1, history=history)
    return event


def copy(folder: Path) -> int:
    home = Home(folder / "runs")
    with (
        closing(Ledger(home.ledger_url)) as ledger,
        closing(OptunaMirror(ledger, home.optuna_url)) as mirror,
    ):
        return mirror.update()


def trials(folder: Path, method: str) -> list[FrozenTrial]:
    url = Home(folder / "runs").optuna_url
    return optuna.load_study(study_name=f"small/search/{method}", storage=url).trials


def test_optuna_reads_what_was_searched(tmp_path: Path) -> None:
    outcome = study(tmp_path)
    assert copy(tmp_path) == 16
    assert copy(tmp_path) == 0
    url = Home(tmp_path / "runs").optuna_url
    assert sorted(optuna.get_all_study_names(url)) == ["small/search/add", "small/search/mul"]
    found = optuna.load_study(study_name="small/search/add", storage=url)
    assert found.direction.name == "MINIMIZE"
    assert found.metric_names == ["val/error"]
    states = set()
    for method in ("mul", "add"):
        entries = [e for e in outcome.entries if (e.part, e.method) == ("search", method)]
        for entry, trial in zip(entries, trials(tmp_path, method), strict=True):
            rate = entry.proposal["learning_rate"]
            assert trial.user_attrs["configuration"] == entry.configuration
            assert trial.params["learning_rate"] == rate
            expected = fmean([rate, rate + 1])
            if rate > 0.3:
                assert trial.state is TrialState.FAIL
                assert trial.user_attrs["reason"] == "loss is not finite"
            elif rate > 0.03:
                assert trial.state is TrialState.PRUNED
                assert trial.intermediate_values == {1: pytest.approx(expected)}
                assert trial.value == pytest.approx(expected)
            else:
                assert trial.state is TrialState.COMPLETE
                assert trial.value == pytest.approx(expected)
                assert trial.intermediate_values == dict.fromkeys((1, 2), pytest.approx(expected))
            assert trial.duration is not None
            assert trial.duration.total_seconds() == pytest.approx(120)
            states.add(trial.state)
    assert states == {TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE}


def test_distributions_are_those_of_the_study_file(tmp_path: Path) -> None:
    outcome = study(tmp_path)
    copy(tmp_path)
    rate = FloatDistribution(0.001, 1, log=True)
    (distributions,) = {str(trial.distributions) for trial in trials(tmp_path, "mul")}
    beta = FloatDistribution(0, 1)
    assert distributions == str({"learning_rate": rate, "beta": beta}) or distributions == str(
        {"beta": beta, "learning_rate": rate}
    )
    assert {trial.user_attrs["fixed"]["alpha"] for trial in trials(tmp_path, "mul")} == {2}
    entries = [entry for entry in outcome.entries if entry.method == "add"]
    for entry, trial in zip(entries, trials(tmp_path, "add"), strict=True):
        assert trial.params["merge"] == entry.proposal["merge"]
        assert trial.params["hidden"] == json.dumps(entry.proposal["hidden"])
        assert trial.distributions["hidden"] == CategoricalDistribution(["[]", "[8]"])
        assert ("project" in trial.params) is (trial.params["merge"] == "sum")
        if "project" in trial.params:
            assert trial.distributions["project"] == IntDistribution(4, 8)
            assert trial.params["project"] == entry.proposal["project"]


def test_two_objectives(tmp_path: Path) -> None:
    study(tmp_path, objective="[val/auc, val/nll]")
    copy(tmp_path)
    url = Home(tmp_path / "runs").optuna_url
    found = optuna.load_study(study_name="small/search/mul", storage=url)
    assert [direction.name for direction in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    done = [trial for trial in found.trials if trial.state is TrialState.COMPLETE]
    assert done
    for trial in done:
        expected = trial.params["learning_rate"] + 0.5
        assert trial.values == [pytest.approx(expected), pytest.approx(expected)]


def test_new_results_are_added_to_those_there(tmp_path: Path) -> None:
    study(tmp_path, stop_after=2)
    first = copy(tmp_path)
    assert 0 < first < 16
    before = trials(tmp_path, "mul")
    study(tmp_path)
    assert copy(tmp_path) == 16 - first
    assert trials(tmp_path, "mul")[: len(before)] == before
    study(tmp_path, count=12)
    assert copy(tmp_path) == 8
    numbers = [trial.user_attrs["number"] for trial in trials(tmp_path, "mul")]
    assert numbers == list(range(12))


def test_a_search_that_began_again_is_copied_again(tmp_path: Path) -> None:
    study(tmp_path)
    copy(tmp_path)
    outcome = study(tmp_path, seed=1)
    assert copy(tmp_path) == 16
    entries = [
        entry for entry in outcome.entries if (entry.part, entry.method) == ("search", "mul")
    ]
    assert [trial.params["beta"] for trial in trials(tmp_path, "mul")] == [
        entry.proposal["beta"] for entry in entries
    ]


# ---------------------------------------------------------------- the server


def test_a_second_objective_copies_the_search_again(tmp_path: Path) -> None:
    study(tmp_path, objective="val/auc")
    assert copy(tmp_path) == 16
    study(tmp_path, objective="[val/auc, val/nll]")
    assert copy(tmp_path) == 16
    assert {len(trial.values) for trial in trials(tmp_path, "mul") if trial.values} == {2}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def port() -> int:
    pytest.importorskip("optuna_dashboard")
    return free_port()


def get(url: str) -> Any:
    """The JSON at an address, within a minute of the server's start."""
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.loads(answer.read())
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_the_dashboard_shows_searches(tmp_path: Path, port: int) -> None:
    outcome = study(tmp_path)
    command = [sys.executable, "-m", "modmix", "ui", "--optuna", "--port", str(port)]
    environment = {**os.environ, "MODMIX_HOME": str(tmp_path / "runs")}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}/api/studies"
        found = {one["study_name"]: one for one in get(base)["study_summaries"]}
        assert sorted(found) == ["small/search/add", "small/search/mul"]
        number = found["small/search/mul"]["study_id"]
        shown = get(f"{base}/{number}?after=0")["trials"]
        entries = [
            entry for entry in outcome.entries if (entry.part, entry.method) == ("search", "mul")
        ]
        expected = {"done": "Complete", "pruned": "Pruned", "failed": "Fail"}
        assert [trial["state"] for trial in shown] == [expected[entry.state] for entry in entries]
        for trial, entry in zip(shown, entries, strict=True):
            if entry.state == "done":
                assert entry.values is not None
                assert trial["values"] == [pytest.approx(entry.values[0])]
            params = {one["name"]: one["param_internal_value"] for one in trial["params"]}
            assert params["beta"] == pytest.approx(entry.proposal["beta"])
        study(tmp_path, count=12)  # while the dashboard is open
        end = time.monotonic() + 60
        while len(get(f"{base}/{number}?after=0")["trials"]) < 12:
            assert time.monotonic() < end
            time.sleep(0.5)
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(base, timeout=5)


def test_without_optuna_dashboard_it_says_how_to_install_it(tmp_path: Path) -> None:
    study(tmp_path, stop_after=2)
    code = (
        "import sys; sys.modules['optuna_dashboard'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'optuna_dashboard' else find(name, *a)\n"
        "sys.argv = ['modmix', 'ui', '--optuna']\n"
        "from modmix.cli.main import command; command()"
    )
    environment = {**os.environ, "MODMIX_HOME": str(tmp_path / "runs")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "optuna-dashboard is not installed: run pip install 'modmix[optuna]'" in run.stderr
    assert "configurations added to sqlite:///" in run.stdout


def test_a_port_in_use_is_refused(tmp_path: Path, port: int) -> None:
    study(tmp_path, stop_after=2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        command = [sys.executable, "-m", "modmix", "ui", "--optuna", "--port", str(port)]
        environment = {**os.environ, "MODMIX_HOME": str(tmp_path / "runs")}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use: choose another one with --port" in run.stderr
