"""A study in one call, for Python and the command line.

>>> import modmix                                              # doctest: +SKIP
>>> study = modmix.run("studies/quickstart.yaml")              # doctest: +SKIP
>>> study.frame()[["method", "beta", "n", "test/error/mean"]]  # doctest: +SKIP
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modmix.base.errors import (
    InputError,
    Interrupted,
    LeaseError,
    LeaseLostError,
    LedgerError,
    ModmixError,
)
from modmix.base.home import Home
from modmix.base.wording import counted
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ENDED, Lease, ReplicateRecord, StudyRecord
from modmix.study import files, tasks_plan

if TYPE_CHECKING:
    import pandas as pd

    from modmix.analysis.best import BestConfiguration
    from modmix.execution.local import Runner
    from modmix.execution.run import StudyRun
    from modmix.execution.tune_cluster import Needs
    from modmix.study.tasks_plan import StudyPlan
    from modmix.tracking.mirror import Mirror


class Study:
    """A study in a ledger, and its results as frames and files."""

    def __init__(self, name: str, home: Home) -> None:
        self.name = name
        self.home = home
        self._ledger = Ledger(home.ledger_url)
        self.record  # noqa: B018  (raises now when there is no such study)

    @property
    def record(self) -> StudyRecord:
        """The study's record, read from the ledger now."""
        return self._ledger.study(self.name)

    @property
    def folder(self) -> Path:
        """The folder with its figures, tables and report."""
        return self.home.study(self.name)

    def frame(self) -> pd.DataFrame:
        """One row per configuration; see `analysis.frames.configurations_frame`."""
        from modmix.analysis.frames import configurations_frame

        return configurations_frame(self._ledger, self.name)

    def replicates(self) -> pd.DataFrame:
        """One row per replicate; see `analysis.frames.replicates_frame`."""
        from modmix.analysis.frames import replicates_frame

        return replicates_frame(self._ledger, self.name)

    def histories(self, configurations: Iterable[str] | None = None) -> pd.DataFrame:
        """Learning curves, one row per configuration and evaluation, with mean and standard
        deviation over replicates; see `analysis.frames.histories_frame`.
        """
        from modmix.analysis.frames import histories_frame

        return histories_frame(self._ledger, self.name, configurations)

    def best(self) -> list[BestConfiguration]:
        """The best complete configuration of each method, selected on validation."""
        from modmix.analysis.best import best_configurations

        return best_configurations(self._ledger, self.name)

    def status(self) -> dict[str, Any]:
        """What ``modmix status --json`` prints."""
        return status(self._ledger, self.name)

    def write_outputs(self) -> list[Path]:
        """Draw all figures, write all tables and the report; return their paths."""
        from modmix.analysis.report import write_all

        return list(write_all(self._ledger, self.home, self.name).paths)


def open_study(name: str, home: str | Path | None = None) -> Study:
    """Open a study by name.

    Raises:
        InputError: there is no such study.
    """
    return Study(name, _home(home))


def run(
    file: str | Path,
    *,
    runner: str = "ray",
    address: str | None = None,
    workers: int | None = None,
    home: str | Path | None = None,
    data_path: str | Path | None = None,
    mlflow: bool = True,
    retry_failed: bool = False,
    changed: Callable[[StudyRun], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> Study:
    """Start or resume a study; return it when it has finished.

    Args:
        file: the study file.
        runner: "ray" (this machine, or the cluster at ``address``) or "local" (this process).
        address: of a Ray cluster; default: RAY_ADDRESS, else Ray is started on this machine.
        workers: CPUs to use on this machine; default: all.
        home: folder of results; default: MODMIX_HOME, else ./modmix_runs.
        data_path: overrides the task's ``path``.
        mlflow: mirror the study to MLflow.
        retry_failed: retrain failed replicates, including those of abandoned packs.
        changed: called after every change, for displays.
        log: called with messages for the user.

    Raises:
        InputError: invalid study file, data, cluster or server; nothing was started.
        Interrupted: stopped by Ctrl-C or SIGTERM; the same call resumes.
        GivenUp: packs were abandoned after repeated machine failures; ``retry_failed`` resumes.
        Incomplete, LedgerError: a machine or the database failed; the same call resumes.
    """
    plan = make_plan(file, data_path=data_path)
    return run_plan(
        plan,
        runner=runner,
        address=address,
        workers=workers,
        home=home,
        mlflow=mlflow,
        retry_failed=retry_failed,
        changed=changed,
        log=log,
    )


def make_plan(
    file: str | Path,
    *,
    data_path: str | Path | None = None,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
) -> StudyPlan:
    """Validate a study file and prepare its data; nothing is started.

    Raises:
        InputError: lists every problem of the file.
    """
    source = files.read(Path(file))
    path = None if data_path is None else str(data_path)
    return tasks_plan.make(source, data_path=path, progress=progress)


def run_plan(
    plan: StudyPlan,
    *,
    runner: str = "ray",
    address: str | None = None,
    workers: int | None = None,
    home: str | Path | None = None,
    mlflow: bool = True,
    retry_failed: bool = False,
    changed: Callable[[StudyRun], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> Study:
    """Run a plan; the arguments are those of `run`."""
    chosen = _make_runner(runner, plan, address=address, workers=workers, log=log)
    where = _home(home)
    where.make()
    _check_ledger(where, plan)
    for warning in plan.warnings:
        log(f"warning: {warning}")
    mirror = _mirror(where, plan) if mlflow else None
    with closing(chosen), ExitStack() as stack:
        if mirror is not None:
            stack.callback(mirror.discard)
        if retry_failed or not _looks_finished(where, plan):
            if mirror is not None:
                mirror.prepare()
            chosen.start()
        with closing(Ledger(where.ledger_url)) as ledger, _lease(ledger, plan) as lease:
            if retry_failed:
                ledger.reset_failures(plan.name)
            _run(plan, ledger, lease, where, chosen, mirror, changed, log)
    return Study(plan.name, where)


def _check_ledger(home: Home, plan: StudyPlan) -> None:
    """Raise if the study is being run, or starts from a study that is not there."""
    searches = [part.search for part in plan.parts if part.search is not None]
    starts = any(search.start_from is not None for search in searches)
    if not home.has_ledger and not starts:
        return
    from modmix.search import warm_start

    if not home.has_ledger:
        warm_start.check(plan, None)
        return
    with closing(Ledger(home.ledger_url)) as ledger:
        _refuse_second_driver(ledger, plan)
        if starts:
            warm_start.check(plan, ledger)


def _make_runner(
    kind: str,
    plan: StudyPlan,
    *,
    address: str | None,
    workers: int | None,
    log: Callable[[str], None],
) -> Runner:
    if address is not None and (kind == "local" or workers is not None):
        raise InputError(
            f"{'--local' if kind == 'local' else '--workers'} is about this machine, and --address "
            f"names the cluster {address}: leave out one of them"
        )
    if kind == "local":
        from modmix.execution.local import LocalRunner

        return LocalRunner(gpus={method: one.gpus for method, one in _needs(plan).items()})
    if kind != "ray":
        raise InputError(f"runner must be ray or local, got {kind!r}")
    from modmix.execution.tune_runner import TuneRunner

    address = address or os.environ.get("RAY_ADDRESS") or None
    return TuneRunner(_needs(plan), address=address, workers=workers, study=plan.name, log=log)


def _needs(plan: StudyPlan) -> dict[str, Needs]:
    """What packs occupy, by method as packs name it; "": of any other method."""
    from modmix.execution.tune_cluster import Needs

    plans = plan.of.values() if isinstance(plan, tasks_plan.TasksPlan) else (plan,)
    named = {name: method for one in plans for name, method in one.methods.items()}
    resources, found = plan.spec.resources, {}
    for name in ("", *resources.methods):
        own = resources.of(name)
        found[named.get(name, "")] = Needs(
            cpus=own.cpus or 1,
            gpus=own.gpus or 0,
            memory=(own.memory or 0) * 1e9,
            accelerator_type=own.accelerator_type,
        )
    return found


def _looks_finished(home: Home, plan: StudyPlan) -> bool:
    """Whether this study file has already finished, so that no runner is needed."""
    if not home.has_ledger:
        return False
    with closing(Ledger(home.ledger_url)) as ledger:
        if not ledger.has_study(plan.name):
            return False
        record = ledger.study(plan.name)
    same = record.spec == plan.spec.model_dump(mode="json")
    return same and record.state == "finished"


def _refuse_second_driver(ledger: Ledger, plan: StudyPlan) -> None:
    if (holder := ledger.holder(plan.name)) is not None:
        raise LeaseError(
            f"study {plan.name!r} is being run by process {holder[1]} on {holder[0]}: wait until "
            "it ends, or stop it with Ctrl-C there"
        )


def _home(home: str | Path | None) -> Home:
    return Home.from_environment() if home is None else Home(Path(home).absolute())


def _mirror(home: Home, plan: StudyPlan) -> Mirror:
    from modmix.tracking.mirror import Mirror

    mirror = Mirror(home.ledger_url, plan.name, home.tracking_uri, home)
    try:
        mirror.check()
    except InputError:
        raise
    except ModmixError as error:
        # Here a wrong address; during a study the mirror would retry.
        raise InputError(str(error)) from error
    return mirror


@contextmanager
def _lease(ledger: Ledger, plan: StudyPlan) -> Iterator[Lease]:
    file: dict[str, Any] = {
        "spec": plan.spec.model_dump(mode="json"),
        "text": plan.source.text,
        "source": plan.source.name,
        "details": plan.details(),
    }
    if not ledger.has_study(plan.name):
        ledger.start_study(plan.name, **file)
    lease = ledger.acquire(plan.name)
    try:
        ledger.start_study(plan.name, **file)
        yield lease
    finally:
        ledger.release(lease)


def _run(
    plan: StudyPlan,
    ledger: Ledger,
    lease: Lease,
    home: Home,
    runner: Runner,
    mirror: Mirror | None,
    changed: Callable[[StudyRun], None],
    log: Callable[[str], None],
) -> None:
    from modmix.execution.run import StudyRun
    from modmix.execution.stopping import stops_on_signals
    from modmix.ledger.heartbeat import Heartbeat

    work = StudyRun(
        plan,
        ledger,
        lease,
        home,
        slots=runner.slots,
        changed=changed,
    )
    state, patient, lost = "failed", True, threading.Event()
    with Heartbeat(work.beat):
        try:
            with stops_on_signals(work, runner, lost, log):
                _train(work, runner, mirror, lease, log)
                state = "stopped"
                work.check_complete()
                if work.finished:
                    state = "finished"
        except KeyboardInterrupt:  # the second Ctrl-C, or no cluster: stop immediately
            state, patient = "stopped", lost.is_set()
            work.stop()
            work.release_packs()
        except LeaseLostError:
            work.lose()
            raise
        except BaseException:  # possibly raised by the caller's `changed` or `log`
            with suppress(LedgerError):
                work.release_packs()  # so that no model stays in state running
            raise
        finally:
            work.beat()  # so that the report has the time up to now
            if not work.taken_over:
                with _closing_meanwhile(runner):
                    _end(plan, ledger, home, mirror, state, log, patient=patient)
    if work.taken_over:
        raise LeaseLostError(
            f"study {plan.name!r} was taken over by another driver because this one sent no "
            "heartbeat for a minute: let the other one finish"
        )
    if state == "finished":
        _refuse_only_failures(work)
    if state == "stopped":
        counts = work.status().replicates  # includes those not proposed yet
        left = counts["total"] - sum(counts[state] for state in ENDED)
        raise Interrupted(
            f"study {plan.name} was stopped with {counted(left, 'model')} left; finished "
            f"ones are kept: 'modmix run {plan.source.name}' resumes"
        )


@contextmanager
def _closing_meanwhile(runner: Runner) -> Iterator[None]:
    """Close the runner in the background: a Ray cluster takes two seconds to end."""
    thread = threading.Thread(target=runner.close, name="modmix-close")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _train(
    work: StudyRun,
    runner: Runner,
    mirror: Mirror | None,
    lease: Lease,
    log: Callable[[str], None],
) -> None:
    """Train what has no result yet."""
    work.prepare()
    if work.dropped:
        log(
            f"warning: {work.dropped} models are no longer part of this study, because its data, "
            "settings or configurations have changed (their results stay in the ledger; "
            "rename the study to keep both versions)"
        )
    found = work.reused
    if found:
        log(f"{counted(found, 'model')} reused from the ledger")
    if mirror is not None:
        mirror.start(lease)
    if not work.finished:
        runner.start()
        runner.run(work)
    if lacking := work.without_predictions():
        log(
            f"{lacking} models have no stored test predictions, because they were trained "
            "without (with reuse: false they are trained again)"
        )
    if work.reused > found:  # by configurations that searches proposed later
        log(f"{counted(work.reused, 'model')} reused from the ledger in total")
    work.release_packs()


def _refuse_only_failures(work: StudyRun) -> None:
    """Raise if configurations failed and none is done: a study without a result."""
    status = work.status()
    counts = status.configurations
    if counts["failed"] and not counts["done"]:
        why = (status.failed or ["no reason recorded"])[0].strip().splitlines()[-1]
        pruned = f"that was not pruned ({counts['pruned']} were) " if counts["pruned"] else ""
        raise ModmixError(
            f"every configuration of study {work.plan.name} {pruned}failed ({why}): fix this and "
            "run the same command with --retry-failed"
        )


def _end(
    plan: StudyPlan,
    ledger: Ledger,
    home: Home,
    mirror: Mirror | None,
    state: str,
    log: Callable[[str], None],
    *,
    patient: bool,
) -> None:
    """Record the final state, write figures and tables, wait for the mirror."""
    ledger.set_state(plan.name, state)
    if state == "finished":
        log("writing figures and tables")
        from modmix.analysis.report import write_all

        write_all(ledger, home, plan.name)
    if mirror is not None and mirror.is_started:
        seconds = 120.0 if state == "finished" else 15.0 if patient else 0.0

        def progress(left: int) -> None:
            log(f"logging to MLflow: {counted(left, 'run')} left")

        if not mirror.close(state, timeout=seconds, progress=progress):
            log(f"warning: MLflow is not up to date: {mirror.problem}")


def status(ledger: Ledger, name: str) -> dict[str, Any]:
    """Counts and times of a study, from the ledger."""
    from modmix.search.run_state import configuration_state

    record = ledger.study(name)
    replicates = ledger.replicates(name)
    by_configuration: dict[str, list[ReplicateRecord]] = {}
    for replicate in replicates:
        by_configuration.setdefault(replicate.configuration, []).append(replicate)
    configurations = dict.fromkeys(("done", "pruned", "failed", "running", "pending"), 0)
    for members in by_configuration.values():
        configurations[configuration_state([r.state for r in members])] += 1
    states = dict.fromkeys(("done", "running", "pending", "interrupted", "pruned", "failed"), 0)
    for replicate in replicates:
        states[replicate.state] += 1
    state = record.state
    if state == "running" and ledger.holder(name) is None:
        state = "stopped"  # its driver was killed
        states["interrupted"] += states.pop("running")
        states["running"] = 0
    return {
        "study": name,
        "state": state,
        "configurations": {"total": len(by_configuration), **configurations},
        "replicates": {"total": len(replicates), **states},
        "trained": sum(r.origin == "trained" for r in replicates),
        "reused": sum(r.origin == "reused" for r in replicates),
        "device_seconds": round(record.device_seconds, 3),
        "wall_seconds": round(record.wall_seconds, 3),
    }
