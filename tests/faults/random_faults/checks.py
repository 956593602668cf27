"""What must hold for a study after all its faults."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from modmix.analysis.best import best_configurations
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ENDED
from tests.faults.random_faults.scene import MODELS, Scene
from tests.faults.random_faults.watch import Evaluation, trace

Key = tuple[str, int]  # configuration and seed
TOLERANCE = 1e-6  # of models that were trained in packs with other members

_one_at_a_time = threading.Lock()  # MLflow's client is not made for threads


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a study has ended: all that is compared with the undisturbed one."""

    states: Mapping[Key, str]
    values: Mapping[Key, tuple[float, ...]]  # metrics and histories
    best: tuple[tuple[str, str], ...]  # method and configuration, best first
    runs: Mapping[str, str]  # status in MLflow by configuration


@dataclass(kw_only=True)
class Verdict:
    """Counts over one study; see the columns of `table`."""

    expected: int = MODELS
    once: int = 0
    twice: int = 0
    by_continued: int = 0
    at_once: int = 0
    runs_finished: int = 0
    runs_running: int = 0
    differing: int = 0
    rounded: int = 0
    largest: float = 0.0  # difference
    problems: list[str] = field(default_factory=list)


def ending(scene: Scene, problems: list[str]) -> Ending:
    """Read a study's results; what is wrong with their number is added to ``problems``."""
    ledger = Ledger(scene.place.ledger_url)
    try:
        records = ledger.replicates("fragile")
        seconds = sum(r.seconds for r in records)
        recorded = ledger.study("fragile").device_seconds
        best = best_configurations(ledger, "fragile")
    finally:
        ledger.close()
    # Every result adds its seconds once.
    if not math.isclose(seconds, recorded, rel_tol=1e-9):
        problems.append(
            f"results of {recorded:.3f} s were recorded, those in the ledger took {seconds:.3f} s"
        )
    states = {(r.configuration, r.seed): r.state for r in records}
    if len(states) != len(records):
        problems.append(f"{len(records) - len(states)} replicates are in the ledger twice")
    with _one_at_a_time:
        runs = _runs(scene.tracking_uri, problems)
    return Ending(
        states=states,
        values=scene.place.results(),
        best=tuple((b.method, b.configuration) for b in best),
        runs=runs,
    )


def _runs(uri: str, problems: list[str]) -> dict[str, str]:
    """The status of each configuration's run in MLflow."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("fragile")
    if experiment is None:
        problems.append("MLflow has no experiment of the study")
        return {}
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [(run.data.tags.get("modmix.configuration"), run.info.status) for run in found]
    parents = [status for configuration, status in children if configuration is None]
    if parents != ["FINISHED"]:
        problems.append(f"MLflow's runs of the study itself are {parents or 'missing'}")
    counted = Counter(configuration for configuration, _ in children if configuration is not None)
    if twice := sum(number > 1 for number in counted.values()):
        problems.append(f"{twice} configurations have several runs in MLflow")
    return {key: status for key, status in children if key is not None}


def check(scene: Scene, reference: Ending) -> Verdict:
    """Compare a study with the undisturbed one."""
    verdict = Verdict()
    found = ending(scene, verdict.problems)
    verdict.once = sum(state in ENDED for state in found.states.values())
    if found.states.keys() != reference.states.keys():
        missing = len(reference.states.keys() - found.states.keys())
        more = len(found.states.keys() - reference.states.keys())
        verdict.problems.append(f"{missing} replicates are missing, {more} are not expected")
    _compare_results(found, reference, verdict)
    if found.best != reference.best:
        verdict.problems.append("other configurations are best than in the undisturbed study")
    _compare_runs(found, reference, verdict)
    _count_trainings(scene, verdict)
    _check_files(scene, verdict)
    return verdict


def _compare_results(found: Ending, reference: Ending, verdict: Verdict) -> None:
    for key in found.states.keys() & reference.states.keys():
        here, there = found.values[key], reference.values[key]
        if found.states[key] != reference.states[key] or len(here) != len(there):
            verdict.differing += 1
            verdict.problems.append(
                f"a replicate is {found.states[key]} with {len(here)} values, "
                f"{reference.states[key]} with {len(there)} in the undisturbed study"
            )
            continue
        difference = max(map(_difference, here, there))
        verdict.largest = max(verdict.largest, difference)
        verdict.rounded += 0 < difference <= TOLERANCE
        if difference > TOLERANCE:
            verdict.differing += 1
            verdict.problems.append(f"a result differs by {difference:.3g}")


def _difference(one: float, other: float) -> float:
    """Absolute below 1, else relative."""
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    difference = abs(one - other) / max(1.0, abs(other))
    return math.inf if math.isnan(difference) else difference


def _compare_runs(found: Ending, reference: Ending, verdict: Verdict) -> None:
    verdict.runs_finished = sum(status == "FINISHED" for status in found.runs.values())
    verdict.runs_running = sum(status == "RUNNING" for status in found.runs.values())
    if found.runs != reference.runs:
        wrong = dict(set(found.runs.items()) ^ set(reference.runs.items()))
        verdict.problems.append(
            f"the runs of {len(wrong)} configurations in MLflow are not those of the undisturbed "
            f"study: {Counter(found.runs.values())}"
        )


def _count_trainings(scene: Scene, verdict: Verdict) -> None:
    """Evaluations of replicates that had a result by then, or that another process trains."""
    finished = scene.place.finished()
    lines = sorted(trace(scene.folder), key=lambda line: line.time)
    verdict.at_once = overlaps(line for line in lines if line.process not in scene.continued)
    if verdict.at_once:
        verdict.problems.append(f"{verdict.at_once} replicates were trained by two at once")
    for line in lines:
        late = sum(line.time > finished.get(key, math.inf) for key in line.replicates)
        if line.process in scene.continued:
            verdict.by_continued += late
        else:
            verdict.twice += late
    if verdict.twice:
        verdict.problems.append(f"{verdict.twice} evaluations of replicates that had a result")


def overlaps(lines: Iterable[Evaluation]) -> int:
    """Replicates that a process went on with after another one had evaluated them.

    ``lines`` in the order of time.
    """
    last: dict[str, int] = {}
    before: dict[str, set[int]] = {}
    found = set()
    for line in lines:
        for key in line.replicates:
            if last.get(key, line.process) != line.process:
                before.setdefault(key, set()).add(last[key])
            if line.process in before.get(key, ()):
                found.add(key)
            last[key] = line.process
    return len(found)


def _check_files(scene: Scene, verdict: Verdict) -> None:
    home = scene.place.home
    if left := list(home.checkpoints.glob("*")):
        verdict.problems.append(f"{len(left)} checkpoints are left")
    if not (home.study("fragile") / "report.html").exists():
        verdict.problems.append("the study has no report")
