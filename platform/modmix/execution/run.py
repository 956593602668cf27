"""Run a study: ask, pack, run, record, tell; continue; extend.

`StudyRun` is what a runner works for. It holds the study's configurations and replicates in memory,
the ledger holds the truth: every method that changes something writes there first. Order of things:

    a sampler proposes        -> entries and configurations in the ledger   -> packs wait in a queue
    a runner takes a pack     -> its replicates are claimed         -> a worker trains
    a replicate finishes      -> its result in the ledger           -> counts, display, mirror
    a batch of configurations is done -> what will be told, in the ledger   -> the sampler is told

Started again after any interruption, all four queues are rebuilt from the ledger: what was asked is
not asked again, what was finished is not trained again, a pack that was out is formed again of the
same members so that its checkpoint fits.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from modmix.base.errors import Incomplete, LedgerError
from modmix.base.home import Home, write_bytes
from modmix.base.messages import Event, Finished, Pack, PackStarted, Progress, Replicate, pack_id
from modmix.execution.costs import Costs
from modmix.execution.local import Verdict
from modmix.execution.queue import Members, PackQueue
from modmix.ledger.ledger import Ledger
from modmix.ledger.records import ENDED, Entry, Lease, NewConfiguration, Result
from modmix.search.run_state import RunState, Status
from modmix.search.rungs import Rungs
from modmix.search.searches import Search, Searches
from modmix.study.plan import Configuration, Plan

MAX_FAILURES = 5  # of the machine, per pack and start of the driver, before it is left interrupted


class StudyRun:
    """One start of one study; implements `runners.Work`.

    Args:
        plan: the checked study file.
        ledger: where everything is kept.
        lease: the right to write this study.
        home: for checkpoints and weights.
        slots: how many packs the runner trains at a time.
        changed: called (in the driver's thread) after something was recorded.
        observed: called with every evaluation of a pack in training.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        lease: Lease,
        home: Home,
        *,
        slots: int,
        changed: Callable[[StudyRun], None] = lambda _: None,
        observed: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._observed = observed
        self.plan = plan
        self._ledger = ledger
        self._lease = lease
        self._home = home
        self._changed = changed
        higher = plan.directions[0]
        self._state = RunState(
            plan.spec.objective, higher_is_better=higher, fingerprint=plan.data.fingerprint
        )
        self._searches = Searches(plan, ledger, self._state, slots=slots)
        self._rungs = Rungs(self._state, ledger.histories)
        self._verdicts: dict[str, Verdict] = {}  # by pack, until it ends for good
        self._costs = Costs(plan, self._state.tasks)
        most = plan.spec.resources.largest_pack
        self._waiting = PackQueue(slots=slots, max_models=most, cost=self._costs.of)
        self._may_ask = True  # since the searches were asked, one of them was told something
        self._out: dict[str, Pack] = {}
        self._progress: dict[str, Progress | None] = {}
        self._elsewhere: set[str] = set()  # replicates that another driver trains
        self._failures: dict[str, int] = {}
        self._reached: dict[str, float] = {}  # pack -> epoch it had come to when its worker died
        self._given_up: dict[str, str] = {}  # pack -> last failure
        self._stop = threading.Event()
        self._lost_lease = threading.Event()
        self._began = time.monotonic()
        self._looked = time.monotonic()
        self.trained = 0
        self.reused = 0
        self.dropped = 0  # models of the file as it was before

    # ------------------------------------------------------------ preparing

    def prepare(self) -> None:
        """Bring the ledger and the plan together: what is there, what is missing."""
        ledger, name = self._ledger, self.plan.name
        grids = [p for p in self.plan.parts if p.search is None]
        wanted = {
            (part.name, method): [
                self.plan.configuration(method, a) for a in part.assignments(method)
            ]
            for part in grids
            for method in part.domains
        }
        ledger.keep_only_entries(name, self.plan.signatures())
        ledger.recover(name)
        known = ledger.entries(name)
        present = {(e.part, e.method, e.number) for e in known}
        configurations: dict[str, Configuration] = {p.key: p for ps in wanted.values() for p in ps}
        entries = [
            Entry(part=part, method=method, number=i, configuration=configuration.key)
            for (part, method), ps in wanted.items()
            for i, configuration in enumerate(ps)
            if (part, method, i) not in present
        ]
        whole, begun = set(configurations), ledger.replicate_states(name)
        for entry in known:
            if entry.proposal:
                configuration = self.plan.configuration(entry.method, entry.proposal)
                first = self.plan.first(configuration)
                # One that was promoted before has more than its first seeds.
                more = configuration.replicates[len(first.replicates) :]
                if configuration.key not in whole and not any(r.key in begun for r in more):
                    configuration = first
                configurations[configuration.key] = configuration
        self._add(list(configurations.values()), entries)
        self._rungs.enter([*known, *entries])
        self.dropped = ledger.keep_only_configurations(
            name, self._state.configurations, self._state.replicates
        )
        self._adopt()
        self._searches.rebuild(known)
        self._fill_queue([e for e in (*known, *entries) if not e.proposal])

    def _add(self, configurations: Sequence[Configuration], entries: Sequence[Entry]) -> None:
        self._ledger.add(
            self.plan.name,
            [
                NewConfiguration(
                    key=configuration.key,
                    method=configuration.method,
                    params=configuration.params,
                    replicates=[(r.key, r.seed) for r in configuration.replicates],
                )
                for configuration in configurations
            ],
            entries,
        )
        self._state.add(configurations)

    def _adopt(self, only: frozenset[str] | None = None) -> None:
        """Take over what the ledger knows of these replicates (of all when None)."""
        found = self._ledger.adopt(self.plan.name)
        self.reused += found
        if only is None or found:
            self._read_results(only)
        if spare := self._state.leave_out_spare():
            self._waiting.forget(spare)
            self._ledger.keep_only_configurations(
                self.plan.name, self._state.configurations, self._state.replicates
            )

    def _read_results(self, only: frozenset[str] | None) -> None:
        for record in self._ledger.replicates(self.plan.name):
            if record.key not in self._state.replicates or (only and record.key not in only):
                continue
            self._state.states[record.key] = record.state
            if record.state in ENDED:
                self._state.take_result(record.key, record)
            elif record.state == "running" and not self._is_out(record.key):
                self._elsewhere.add(record.key)

    def _is_out(self, key: str) -> bool:
        return any(key == r.key for pack in self._out.values() for r in pack.replicates)

    def _fill_queue(self, of_grids: Sequence[Entry]) -> None:
        """Let everything without a result wait: interrupted packs first, as they were."""
        rest = {key for key in self._state.replicates if self._is_open(key)}
        for pack in self._ledger.packs(self.plan.name):
            if pack.state != "interrupted":
                self._remove_checkpoint(pack.id)  # a kill may have come between both
                continue
            members = [key for key in pack.replicates if key in self._state.replicates]
            if len(members) == len(pack.replicates) and rest & set(members):
                self._waiting.hold(tuple(self._state.replicates[key] for key in members))
                rest -= set(members)
        for part in dict.fromkeys(entry.part for entry in of_grids):
            self._let_wait(self._state.keys_of([e for e in of_grids if e.part == part]))
        for search, batch in self._searches.batches_out():
            self._let_wait_batch(search, batch)
        self._let_wait(
            list(self._state.replicates)
        )  # further seeds of configurations that were told
        self._advance()

    def _let_wait_batch(self, search: Search, batch: Sequence[Entry]) -> None:
        keys = self._state.keys_of(batch)
        work = sum(self._costs.of(self._state.replicates[key]).each for key in keys)
        after = work / len(batch) * self._searches.behind(search)
        self._let_wait(keys, after=after, apart=search.is_repeatable)

    def _let_wait(self, keys: Sequence[str], *, after: float = 0.0, apart: bool = False) -> None:
        """Let models without a result wait; see `PackQueue.add`."""
        racing: list[Replicate] = []
        rest: list[Replicate] = []
        for key in keys:
            replicate = self._state.replicates[key]
            if not self._is_open(key):
                continue
            # A rung compares the configurations of a pack; one that has results is judged already.
            halves = replicate.training.get("halving")
            races = halves and not self._state.has_results(replicate.configuration, ())
            (racing if races else rest).append(replicate)
        self._waiting.add(racing, after=after, apart=True)
        self._waiting.add(rest, after=after, apart=apart)

    def _advance(self) -> None:
        """What follows from results: further seeds for better configurations; samplers are told."""
        if configurations := self._searches.promoted():
            self._add(configurations, [])
            keys = [r.key for configuration in configurations for r in configuration.replicates]
            self._adopt(frozenset(keys))
            self._let_wait(keys)
        self._may_ask = self._searches.tell_finished() or self._may_ask

    def _is_open(self, key: str) -> bool:
        return self._state.states[key] in ("pending", "interrupted") and key not in self._elsewhere

    # ------------------------------------------------------------ what a runner calls

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() or self.taken_over

    @property
    def taken_over(self) -> bool:
        """Another driver has this study: nothing more may be written for it."""
        return self._lost_lease.is_set()

    def stop(self) -> None:
        """Ask to stop; safe from a signal handler."""
        self._stop.set()

    @property
    def finished(self) -> bool:
        busy = self._waiting or self._out or self._elsewhere
        return not busy and not self._searches.wants_more()

    @property
    def waiting(self) -> int:
        """How many packs could be claimed right now; searches are asked first."""
        if not self.stopping:
            self._ask()
        return self._waiting.count(self._busy())

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """By pack that is out: which of its models are to train no further, and why."""
        return self._verdicts

    def next_pack(self) -> Pack | None:
        while not self.stopping:
            self._ask()
            members = self._waiting.take(self._busy())
            if members is None:
                return None
            pack = self._claim(members)
            if pack is not None:
                return pack
        return None

    def _busy(self) -> list[float]:
        """The work that is left in each pack that is out."""
        left = []
        for pack in self._out.values():
            at = self._progress.get(pack.id)
            share = 1.0 if at is None else 1 - at.epoch / at.epochs
            left.append(share * self._costs.of(pack.replicates[0]).of(len(pack.replicates)))
        return left

    def _claim(self, replicates: Members) -> Pack | None:
        """Claim a pack's members; what another driver has taken meanwhile is left to it."""
        members = [replicate.key for replicate in replicates]
        # A pack formed again after an interruption keeps its name although some of its members
        # have ended, because its checkpoint is for all of them.
        name = pack_id(replicates)
        free = [key for key in members if self._state.states[key] not in ENDED]
        claimed = self._ledger.claim(self._lease, name, members)
        if missing := [key for key in free if key not in claimed]:
            self._elsewhere |= set(missing)
            self._ledger.let_go(self._lease, claimed, state="pending")
            self._ledger.update_pack(self.plan.name, name, state="done")
            if claimed:
                self._waiting.hold(tuple(self._state.replicates[k] for k in claimed), first=True)
            return None
        if not claimed:
            return None
        pack = Pack(
            id=name,
            study=self.plan.name,
            task=self._state.tasks[replicates[0].structure],
            replicates=replicates,
            checkpoint=str(self._home.checkpoints / name),
            keep_weights=self.plan.spec.final is not None,
            halving=not any(
                self._state.has_results(r.configuration, replicates) for r in replicates
            ),
            ended=self._state.ended_of(replicates),
        )
        for key in claimed:
            self._state.states[key] = "running"
        self._out[name] = pack
        self._progress[name] = None
        self._changed(self)
        return pack

    def record(self, events: Sequence[Event]) -> None:
        finished = [e for e in events if isinstance(e, Finished)]
        for event in events:
            match event:
                case PackStarted(pack=pack):
                    note = {
                        "models": event.models,
                        "device": event.device,
                        "stacked": event.stacked,
                        "why": event.why,
                        "measured": dict(event.measured),
                        "products": dict(event.products),
                        "resumed_epoch": event.resumed_epoch,
                    }
                    self._ledger.update_pack(self.plan.name, pack, note=note)
                case Progress(pack=pack):
                    self._progress[pack] = event
                    self._judge(event)
                    self._observed(event)
                case Finished():
                    pass
        if finished:
            self._finish(finished)
        self._changed(self)

    def _judge(self, event: Progress) -> None:
        """At a rung, let the models of a configuration go that is behind those of other packs."""
        pack = self._out.get(event.pack)
        why = None if pack is None else self._rungs.judge(pack, event)
        if pack is not None and why is not None:
            self._verdicts[pack.id] = {r.key: why for r in pack.replicates}

    def _finish(self, finished: Sequence[Finished]) -> None:
        for event in finished:
            if event.weights is not None and event.state == "done":
                # Before the result: a result in the ledger promises the weights.
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
                )
                for e in finished
                if e.replicate in self._state.replicates
            ],
        )
        for event in finished:
            if event.replicate in new:
                self.trained += 1
                self._state.states[event.replicate] = event.state
                self._state.take_result(event.replicate, event)
        self._advance()

    def ended(self, pack: str, failure: str = "", *, of_machine: bool = True) -> None:
        gone = self._out.pop(pack, None)
        if gone is None:
            return
        left = [r.key for r in gone.replicates if self._state.states[r.key] not in ENDED]
        if not left:
            self._close(pack)
        elif failure and not of_machine:
            self._finish(
                [Finished(pack=pack, replicate=k, state="failed", reason=failure) for k in left]
            )
            self._close(pack, failed=True)
        else:
            self._interrupt(gone, left, failure)
        self._progress.pop(pack, None)
        self._changed(self)

    def _close(self, pack: str, *, failed: bool = False) -> None:
        self._ledger.update_pack(self.plan.name, pack, state="done", failed=failed)
        self._remove_checkpoint(pack)
        self._verdicts.pop(pack, None)

    def _interrupt(self, pack: Pack, left: Sequence[str], failure: str) -> None:
        self._ledger.let_go(self._lease, left)
        self._ledger.update_pack(self.plan.name, pack.id, state="interrupted", failed=bool(failure))
        for key in left:
            self._state.states[key] = "interrupted"
        if self.stopping:
            self._waiting.hold(pack.replicates)  # for the next start: it is not finished
            return
        # Machines that die now and then are no reason to give up a pack that gets further each
        # time; a pack that ends its worker at the same place every time would never end.
        progress = self._progress.get(pack.id)
        epoch = 0.0 if progress is None else progress.epoch
        advanced = epoch > self._reached.get(pack.id, 0.0)
        self._reached[pack.id] = max(epoch, self._reached.get(pack.id, 0.0))
        self._failures[pack.id] = 1 if advanced else self._failures.get(pack.id, 0) + 1
        if self._failures[pack.id] > MAX_FAILURES:
            self._given_up[pack.id] = failure
        else:
            self._waiting.hold(pack.replicates)

    def _remove_checkpoint(self, pack: str) -> None:
        """Only now: the checkpoint protects the pack's results until the ledger has them all."""
        shutil.rmtree(self._home.checkpoints / pack, ignore_errors=True)

    def tick(self) -> None:
        """Look, now and then, at what other drivers have finished or dropped."""
        if self._elsewhere and time.monotonic() - self._looked > 2.0:
            self._looked = time.monotonic()
            self._ledger.recover(self.plan.name, packs=False)
            self.reused += self._ledger.adopt(self.plan.name)
            freed = []
            for record in self._ledger.replicates(self.plan.name):
                if record.key in self._elsewhere and record.state != "running":
                    self._elsewhere.discard(record.key)
                    self._state.states[record.key] = record.state
                    if record.state in ENDED:
                        self._state.take_result(record.key, record)
                    else:
                        freed.append(record.key)
            self._let_wait(freed)
            self._advance()
        self._changed(self)

    def _ask(self) -> None:
        """Let the searches propose as much as they may have out."""
        while self._may_ask and (asked := self._searches.ask()):
            configurations = [configuration for _, new, _ in asked for configuration in new]
            entries = [entry for *_, new in asked for entry in new]
            self._add(configurations, entries)
            self._rungs.enter(entries)
            self._adopt(
                frozenset(
                    r.key for configuration in configurations for r in configuration.replicates
                )
            )
            for search, _, batch in asked:
                self._let_wait_batch(search, batch)
            self._advance()
        self._may_ask = False

    # ------------------------------------------------------------ life and status

    def beat(self) -> None:
        """Keep the lease alive; called from a thread of its own."""
        try:
            if not self._ledger.heartbeat(self._lease):
                self._lost_lease.set()
        except LedgerError:
            pass  # the next write in the main thread says what is wrong

    def let_go(self) -> None:
        """Give back what is still out; the next start continues it."""
        for pack in list(self._out.values()):
            self.ended(pack.id)

    def check_complete(self) -> None:
        """Raise when machines failed too often for some packs.

        Raises:
            Incomplete: how many replicates are left, and the last failure.
        """
        if self._given_up:
            left = self._state.left()
            failure = next(iter(self._given_up.values()))
            raise Incomplete(
                f"{left} replicates have no result: their pack failed {MAX_FAILURES + 1} times "
                f"({failure}); mend that, then type the same command again"
            )

    def status(self) -> Status:
        """Where the study stands now, from memory."""
        configurations, replicates = (
            self._state.count_configurations(),
            self._state.count_replicates(),
        )
        total = len(self._state.configurations) + self._searches.missing()
        models = len(self._state.states) + self._searches.replicates_to_come()
        return Status(
            configurations={"total": total, **configurations},
            replicates={"total": models, **replicates},
            trained=self.trained,
            reused=self.reused,
            best=dict(self._state.best),
            running=dict(self._progress),
            failed=list(self._state.reasons),
            seconds=time.monotonic() - self._began,
        )
