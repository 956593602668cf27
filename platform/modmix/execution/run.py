"""`StudyRun`: proposes, packs, records and promotes while a runner trains.

`StudyRun` implements `local.Work`. It keeps the study's configurations and replicates in memory and
writes every change to the ledger first:

    a sampler proposes a batch  -> entries and configurations in the ledger -> replicates are queued
    the runner takes a pack     -> its replicates are claimed               -> a worker trains them
    a replicate ends            -> its result in the ledger                 -> display, mirror
    a batch is complete         -> its values in the ledger                 -> the sampler is told

After any interruption all of this is rebuilt from the ledger: nothing is proposed or trained twice,
and an interrupted pack is queued with the same members, so that its checkpoint fits, unless its
machines have failed too often (see `failures`).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from modmix.base.errors import GivenUp, LedgerError
from modmix.base.home import Home, write_bytes
from modmix.base.messages import (
    Event,
    Finished,
    Pack,
    PackStarted,
    Progress,
    Replicate,
    pack_id,
)
from modmix.base.settings import compares
from modmix.base.wording import counted
from modmix.execution.costs import Costs
from modmix.execution.failures import FailureLog
from modmix.execution.keeping import Keeping
from modmix.execution.local import Verdict
from modmix.execution.queue import Members, PackQueue
from modmix.execution.reconciling import reconcile
from modmix.execution.running import RunningPack
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ENDED, Entry, Lease, NewConfiguration, Result
from modmix.search.confirmation import Confirmations
from modmix.search.run_state import RunState, Status
from modmix.search.rungs import Rungs
from modmix.search.searches import Search, Searches
from modmix.study.configurations import Configuration, sources_of
from modmix.study.tasks_plan import StudyPlan


class StudyRun:
    """One run of one study; implements `local.Work`.

    Args:
        plan: of the study file.
        ledger: holds all results.
        lease: the right to write this study.
        home: folder of checkpoints and weights.
        slots: how many packs the runner trains at a time.
        changed: called in the driver's thread after every change.
    """

    def __init__(
        self,
        plan: StudyPlan,
        ledger: Ledger,
        lease: Lease,
        home: Home,
        *,
        slots: int,
        changed: Callable[[StudyRun], None] = lambda _: None,
    ) -> None:
        self.plan = plan
        self._ledger = ledger
        self._lease = lease
        self._home = home
        self._changed = changed
        higher = plan.directions[0]
        self._state = RunState(
            plan.spec.objective, higher_is_better=higher, fingerprints=plan.fingerprints
        )
        self._entries: dict[tuple[str, str], list[Entry]] = {}  # by part and method
        self._slots = slots
        self._searches = Searches(plan, ledger, self._state, slots=slots)
        self._confirmations = Confirmations(plan, self._state, self._searches)
        self._rungs = Rungs(self._state, partial(ledger.histories, plan.name))
        self._verdicts: dict[str, Verdict] = {}  # by pack, until it has ended
        self._costs = Costs(plan, self._state.tasks)
        self._keeping = Keeping(plan, ledger)
        most = plan.spec.resources.largest_pack
        self._queue = PackQueue(slots=slots, max_models=most, cost=self._costs.of)
        self._may_propose = True  # a search was told something since the last proposals
        self._running: dict[str, RunningPack] = {}
        self._elsewhere: set[str] = set()  # replicates claimed by another driver
        self._failures = FailureLog()
        self._stop = threading.Event()
        self._lost_lease = threading.Event()
        self._began = time.monotonic()
        self._looked = time.monotonic()
        self.trained = 0
        self.reused = 0
        self.dropped = 0  # models removed because the study file has changed

    # ------------------------------------------------------------ preparing

    def prepare(self) -> None:
        """Reconcile the plan with the ledger and queue what is missing."""
        ledger, name = self._ledger, self.plan.name
        found = reconcile(self.plan, ledger)
        self._keeping.add(found.kept)
        self._add(found.configurations, found.new)
        ledger.move_entries(name, found.moved)
        self._note_entries([*found.known, *found.new])
        self._confirmations.begin(found.known)
        self.dropped = ledger.keep_only_configurations(
            name, self._state.configurations, self._state.replicates
        ) - len([key for key in found.chosen_anew if key not in self._state.replicates])
        self._adopt_results()
        self._searches.rebuild(found.known)
        self._fill_queue([e for e in (*found.known, *found.new) if not e.proposal])

    def _note_entries(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._entries.setdefault((entry.part, entry.method), []).append(entry)
        self._rungs.enter(entries)

    def _add(self, configurations: Sequence[Configuration], entries: Sequence[Entry]) -> None:
        self._ledger.add(
            self.plan.name,
            [
                NewConfiguration(
                    key=configuration.key,
                    method=configuration.method,
                    params=configuration.params,
                    task=configuration.task_name,
                    fingerprint=configuration.task.fingerprint,
                    options=configuration.options,
                    replicates=[(r.key, r.seed) for r in configuration.replicates],
                )
                for configuration in configurations
            ],
            entries,
        )
        self._state.add(configurations)

    def _take_up(
        self, configurations: Sequence[Configuration], entries: Sequence[Entry]
    ) -> list[str]:
        """Add what a search found, with the results that it has already; return the replicates."""
        self._add(configurations, entries)
        self._note_entries(entries)
        keys = [r.key for configuration in configurations for r in configuration.replicates]
        self._adopt_results(frozenset(keys))
        return keys

    def _adopt_results(self, only: frozenset[str] | None = None) -> None:
        """Take over results of these replicates from the ledger (of all if None)."""
        found = self._ledger.adopt(self.plan.name, only)
        self.reused += found
        if only is None or found:
            self._read_results(only)
        if spare := self._state.drop_unneeded():
            self._queue.remove(spare)
            self._ledger.keep_only_configurations(
                self.plan.name, self._state.configurations, self._state.replicates
            )

    def _read_results(self, only: frozenset[str] | None) -> None:
        known = self._state.replicates
        theirs = None
        if only is not None:
            theirs = sorted({known[key].configuration for key in only if key in known})
        for record in self._ledger.replicates(self.plan.name, configurations=theirs):
            if record.key not in known or (only and record.key not in only):
                continue
            self._state.states[record.key] = record.state
            if record.state in ENDED:
                self._state.record_result(record.key, record)
            elif record.state == "running" and not self._is_running(record.key):
                self._elsewhere.add(record.key)

    def _is_running(self, key: str) -> bool:
        return any(key == r.key for one in self._running.values() for r in one.pack.replicates)

    def _fill_queue(self, of_grids: Sequence[Entry]) -> None:
        """Queue everything without a result: interrupted packs first, unchanged."""
        rest = {key for key in self._state.replicates if self._is_open(key)}
        for pack in self._ledger.packs(self.plan.name):
            if pack.state != "interrupted":
                self._remove_checkpoint(pack.id)  # left by a kill
                continue
            members = [key for key in pack.replicates if key in self._state.replicates]
            if len(members) == len(pack.replicates) and rest & set(members):
                replicates = tuple(self._state.replicates[key] for key in members)
                self._failures.read(pack)
                self._put_back(pack.id, replicates)
                rest -= set(members)
        for part in dict.fromkeys(entry.part for entry in of_grids):
            self._enqueue(self._state.keys_of([e for e in of_grids if e.part == part]))
        for search, batch in self._searches.pending_batches():
            self._enqueue_batch(search, batch)
        self._enqueue(list(self._state.replicates))  # further seeds of promoted configurations
        self._advance()

    def _enqueue_batch(self, search: Search, batch: Sequence[Entry]) -> None:
        keys = self._state.keys_of(batch)
        work = sum(self._costs.of(self._state.replicates[key]).each for key in keys)
        after = work / len(batch) * self._searches.queued_after(search)
        self._enqueue(keys, after=after, apart=search.is_repeatable)

    def _enqueue(self, keys: Sequence[str], *, after: float = 0.0, apart: bool = False) -> None:
        """Queue those without a result; the arguments are those of `PackQueue.add`."""
        racing: list[Replicate] = []
        rest: list[Replicate] = []
        for key in keys:
            replicate = self._state.replicates[key]
            if not self._is_open(key):
                continue
            # A rung compares configurations of one pack; those with results were compared before.
            races = compares(replicate.training) and not self._state.has_results(
                replicate.configuration, ()
            )
            (racing if races else rest).append(replicate)
        self._queue.add(racing, after=after, apart=True)
        self._queue.add(rest, after=after, apart=apart)

    def _advance(self) -> None:
        """Act on new results: promote configurations to all seeds, tell the samplers."""
        if configurations := self._searches.promoted():
            self._enqueue(self._take_up(configurations, []))
        self._may_propose = self._searches.tell_finished() or self._may_propose
        self._confirm()

    def _confirm(self) -> None:
        """Train the best configurations of parts that are over, where other parts wait for them."""
        for configuration, entry in self._confirmations.due(self._entries):
            self._keeping.add([configuration])
            self._enqueue(self._take_up([configuration], [entry]))

    def _is_open(self, key: str) -> bool:
        waits = self._state.states[key] in ("pending", "interrupted")
        return waits and key not in self._elsewhere and key not in self._failures.untrainable

    def _put_back(self, pack: str, replicates: Members) -> None:
        """Queue an interrupted pack again, or give it up."""
        if not self._failures.gives_up(pack, replicates):
            self._queue.put_back(replicates)

    # ------------------------------------------------------------ what a runner calls

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() or self.taken_over

    @property
    def taken_over(self) -> bool:
        """Whether another driver has taken over: nothing more may be written."""
        return self._lost_lease.is_set()

    def lose(self) -> None:
        """Note that another driver has taken over."""
        self._lost_lease.set()

    def stop(self) -> None:
        """Request a stop; safe in a signal handler."""
        self._stop.set()

    @property
    def finished(self) -> bool:
        if self._queue or self._running or self._elsewhere or self._searches.wants_more():
            return False
        self._confirm()  # a search may have ended for lack of time since the last result
        return not (self._queue or self._elsewhere)

    @property
    def queued(self) -> int:
        """How many packs could be claimed right now, including new proposals."""
        if not self.stopping:
            self._propose()
        return self._queue.count(self._busy())

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """By running pack: which of its models must stop, and why."""
        return self._verdicts

    def resize(self, slots: int) -> None:
        """From now on so many packs can run at a time."""
        if slots != self._slots:
            self._slots = slots
            self._searches.resize(slots)
            self._queue.resize(slots)
            self._may_propose = True

    def next_pack(self) -> Pack | None:
        while not self.stopping:
            self._propose()
            members = self._queue.take(self._busy())
            if members is None:
                return None
            pack = self._claim(members)
            if pack is not None:
                return pack
        return None

    def _busy(self) -> list[float]:
        """The remaining cost of each running pack."""
        return [
            one.left * self._costs.of(one.pack.replicates[0]).of(len(one.pack.replicates))
            for one in self._running.values()
        ]

    def _claim(self, replicates: Members) -> Pack | None:
        """Claim a pack's members; None if another driver has claimed some of them."""
        members = [replicate.key for replicate in replicates]
        # An interrupted pack keeps its name if members have ended: its checkpoint has them all.
        # Its checkpoint has verdicts of halving: it is this study's alone.
        name = pack_id(replicates, study=f"{self._ledger.owner}/{self.plan.name}")
        free = [key for key in members if self._state.states[key] not in ENDED]
        claimed = self._ledger.claim(self._lease, name, members)
        if missing := [key for key in free if key not in claimed]:
            self._elsewhere |= set(missing)
            self._ledger.unclaim(self._lease, claimed, state="pending")
            self._ledger.update_pack(self.plan.name, name, state="done")
            if claimed:
                self._queue.put_back(tuple(self._state.replicates[k] for k in claimed), first=True)
            return None
        if not claimed:
            return None
        task = self._state.tasks[replicates[0].structure]
        pack = Pack(
            id=name,
            study=self.plan.name,
            task=task,
            replicates=replicates,
            checkpoint=str(self._home.checkpoints / name),
            keep_weights=self.plan.spec.final is not None,
            keep_predictions=self._keeping.chosen(replicates, task),
            halving=not any(
                self._state.has_results(r.configuration, replicates) for r in replicates
            ),
            domains=self._searches.domains_of(replicates[0]),
            ended=self._state.ended_of(replicates),
            sources=sources_of(task, replicates[0]),
        )
        for key in claimed:
            self._state.states[key] = "running"
        self._running[name] = RunningPack(pack)
        self._changed(self)
        return pack

    def record(self, events: Sequence[Event]) -> None:
        finished = [e for e in events if isinstance(e, Finished)]
        for event in events:
            match event:
                case PackStarted():
                    self._start(event)
                case Progress():
                    self._progress(event)
                case Finished():
                    pass
        if finished:
            self._finish(finished)
        self._changed(self)

    def _start(self, event: PackStarted) -> None:
        if running := self._running.get(event.pack):
            running.started = event
        note = {
            "models": event.models,
            "device": event.device,
            "stacked": event.stacked,
            "why": event.why,
            "measured": dict(event.measured),
            "resumed_epoch": event.resumed_epoch,
        }
        self._ledger.update_pack(self.plan.name, event.pack, note=note)

    def _progress(self, event: Progress) -> None:
        """Note it; at a rung, stop a configuration that is worse than those of other packs."""
        running = self._running.get(event.pack)
        if running is None:
            return
        running.progress = event
        why = self._rungs.judge(running.pack, event)
        if why is not None:
            self._verdicts[event.pack] = {r.key: why for r in running.pack.replicates}

    def _finish(self, finished: Sequence[Finished]) -> None:
        for event in finished:
            if event.weights is not None and event.state == "done":
                # Before the result, which implies that the weights exist.
                path = self._home.weights / f"{event.replicate}.safetensors"
                write_bytes(path, event.weights)
        new = self._ledger.finish(
            self._lease,
            [
                Result(
                    replicate=e.replicate,
                    state=e.state,
                    reason=e.reason,
                    epochs=e.epochs,
                    best_epoch=e.best_epoch,
                    metrics=e.metrics,
                    history=e.history,
                    seconds=e.seconds,
                    predictions=e.predictions,
                    environment=self._environment_of(e.pack),
                )
                for e in finished
                if e.replicate in self._state.replicates
            ],
        )
        for event in finished:
            if event.replicate in new:
                self.trained += 1
                self._state.states[event.replicate] = event.state
                self._state.record_result(event.replicate, event)
        self._advance()

    def _environment_of(self, pack: str) -> Mapping[str, str]:
        running = self._running.get(pack)
        return {} if running is None or running.started is None else running.started.environment

    def ended(
        self, pack: str, failure: str = "", *, of_machine: bool = True, counted: bool = True
    ) -> None:
        running = self._running.get(pack)
        if running is None:
            return
        members = running.pack.replicates
        left = [r.key for r in members if self._state.states[r.key] not in ENDED]
        failed = bool(left and failure and not of_machine)
        if failed:
            self._finish(
                [Finished(pack=pack, replicate=k, state="failed", reason=failure) for k in left]
            )
        del self._running[pack]
        if failed or not left:
            self._close(pack)
        else:
            self._interrupt(running, left, failure, counted=counted)
        self._changed(self)

    def _close(self, pack: str) -> None:
        self._ledger.update_pack(self.plan.name, pack, state="done")
        self._remove_checkpoint(pack)
        self._verdicts.pop(pack, None)

    def _interrupt(
        self, running: RunningPack, left: Sequence[str], failure: str, *, counted: bool
    ) -> None:
        pack = running.pack
        failures = None
        if counted and not self.stopping:
            failures = self._failures.count(pack.id, running.epoch, failure)
        self._ledger.update_pack(
            self.plan.name,
            pack.id,
            state="interrupted",
            note=None if failures is None else failures.note,
            failures=None if failures is None else failures.count,
        )
        self._ledger.unclaim(self._lease, left)
        for key in left:
            self._state.states[key] = "interrupted"
        self._put_back(pack.id, pack.replicates)

    def _close_superseded(self) -> None:
        """Close interrupted packs of which every replicate has a result, or is needed no more."""
        for pack in self._ledger.packs(self.plan.name):
            known = [key for key in pack.replicates if key in self._state.replicates]
            if pack.state == "interrupted" and not any(self._is_open(key) for key in known):
                self._close(pack.id)

    def _remove_checkpoint(self, pack: str) -> None:
        """Remove a pack's checkpoint, once all its results are in the ledger."""
        shutil.rmtree(self._home.checkpoints / pack, ignore_errors=True)

    def tick(self) -> None:
        """Every two seconds, look for results and interruptions of other drivers."""
        if self._elsewhere and time.monotonic() - self._looked > 2.0:
            self._looked = time.monotonic()
            self._ledger.recover(self.plan.name, packs=False)
            waiting, self._elsewhere = frozenset(self._elsewhere), set()
            self.reused += self._ledger.adopt(self.plan.name, waiting)
            self._read_results(waiting)  # notes again those that are still elsewhere
            self._enqueue([key for key in self._state.replicates if key in waiting])
            self._advance()
        self._changed(self)

    def _propose(self) -> None:
        """Let the searches propose as many batches as they may have pending."""
        while self._may_propose and (proposals := self._searches.ask()):
            configurations = [configuration for _, new, _ in proposals for configuration in new]
            entries = [entry for *_, new in proposals for entry in new]
            self._take_up(configurations, entries)
            for search, _, batch in proposals:
                self._enqueue_batch(search, batch)
            self._advance()
        self._may_propose = False
        self._confirm()

    # ------------------------------------------------------------ lease, end, status

    def beat(self) -> None:
        """Renew the lease; called in the heartbeat thread."""
        try:
            if not self._ledger.heartbeat(self._lease):
                self.lose()
        except LedgerError:
            pass  # the next write in the main thread raises it

    def release_packs(self) -> None:
        """Interrupt running packs; the next run resumes them."""
        for pack in list(self._running):
            self.ended(pack, counted=False)

    def check_complete(self) -> None:
        """Raise if machines failed too often for some packs, in this run or before.

        A study that was stopped says so instead; the next run will raise. Of a finished study,
        nothing is left in the folder of checkpoints.

        Raises:
            GivenUp: with the number of missing results and the last failure.
        """
        failures = self._failures.given_up
        if self.finished and failures is None:
            self._close_superseded()
        if failures is not None and not self.stopping:
            left = self._state.remaining()
            raise GivenUp(
                f"{counted(left, 'model')} without a result: a pack failed {failures.count} times "
                f"without progress ({failures.why}); fix the cause and rerun the command with "
                "--retry-failed"
            )

    def without_predictions(self) -> int:
        """With ``predictions: true``, how many finished replicates have none."""
        if self.plan.spec.predictions is not True:
            return 0
        done = [key for key, state in self._state.states.items() if state == "done"]
        return len(done) - len(self._ledger.with_predictions(done))

    def status(self) -> Status:
        """The current status, from memory."""
        configurations = self._state.count_configurations()
        replicates = self._state.count_replicates()
        total = len(self._state.configurations) + self._searches.missing()
        total += self._confirmations.configurations_to_come
        models = len(self._state.states) + self._searches.replicates_to_come()
        models += self._confirmations.replicates_to_come
        return Status(
            configurations={"total": total, **configurations},
            replicates={"total": models, **replicates},
            trained=self.trained,
            reused=self.reused,
            best=dict(self._state.best),
            running={name: running.progress for name, running in self._running.items()},
            failed=list(self._state.reasons),
            seconds=time.monotonic() - self._began,
        )
