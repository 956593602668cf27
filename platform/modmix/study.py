"""Run a study: ask, pack, run, record, tell; continue; extend.

`StudyRun` is what a runner works for. It holds the study's points and replicates in memory, the
ledger holds the truth: every method that changes something writes there first. Order of things:

    a sampler proposes        -> entries and points in the ledger   -> packs wait in a queue
    a runner takes a pack     -> its replicates are claimed         -> a worker trains
    a replicate finishes      -> its result in the ledger           -> counts, display, mirror
    a batch of points is done -> what will be told, in the ledger   -> the sampler is told

Started again after any interruption, all four queues are rebuilt from the ledger: what was asked is
not asked again, what was finished is not trained again, a pack that was out is formed again of the
same members so that its checkpoint fits.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from modmix.checker import PartPlan
from modmix.errors import Incomplete, LeaseError, LedgerError
from modmix.home import Home, write_bytes
from modmix.ledger import (
    ENDED,
    HEARTBEAT_SECONDS,
    Entry,
    Lease,
    Ledger,
    NewPoint,
    ReplicateRecord,
    Result,
)
from modmix.packing import (
    Event,
    Finished,
    Pack,
    PackStarted,
    Progress,
    Replicate,
    TaskRef,
    digest,
    group,
    pack_id,
)
from modmix.plan import Plan, Point
from modmix.search import Proposer

MAX_FAILURES = 5  # of the machine, per pack and start of the driver, before it is left interrupted


@dataclass
class _PointState:
    """A point while the study runs."""

    point: Point
    waiting: set[str]  # replicate keys without a result
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)  # objectives by replicate
    lost: bool = False  # a replicate failed, diverged or was pruned

    def means(self, objectives: int) -> tuple[float, ...] | None:
        """The objectives' means over replicates, or None when they cannot be told."""
        if self.lost or not self.values:
            return None
        means = tuple(fmean(v[i] for v in self.values.values()) for i in range(objectives))
        return means if all(math.isfinite(m) for m in means) else None


@dataclass
class _Search:
    """One method's search in one part."""

    part: PartPlan
    method: str
    proposer: Proposer
    entries: dict[int, Entry]
    best: float | None = None
    exhausted: bool = False

    def batches_out(self) -> dict[int, list[Entry]]:
        out: dict[int, list[Entry]] = {}
        for entry in self.entries.values():
            if entry.state == "pending":
                out.setdefault(entry.batch, []).append(entry)
        return out


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a study stands: what displays and `modmix status` show."""

    points: Mapping[str, int]
    replicates: Mapping[str, int]
    trained: int
    reused: int
    best: Mapping[str, tuple[float, Mapping[str, object]]]  # method -> mean objective, parameters
    running: Mapping[str, Progress | None]
    failed: Sequence[str]
    seconds: float


class StudyRun:
    """One start of one study; implements `runners.Work`.

    Args:
        plan: the checked study file.
        ledger: where everything is kept.
        lease: the right to write this study.
        home: for checkpoints and weights.
        slots: how many packs the runner trains at a time.
        changed: called (in the driver's thread) after something was recorded.
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
    ) -> None:
        self.plan = plan
        self._ledger = ledger
        self._lease = lease
        self._home = home
        self._slots = slots
        self._changed = changed
        self._points: dict[str, _PointState] = {}
        self._replicates: dict[str, Replicate] = {}
        self._tasks: dict[str, TaskRef] = {}  # by structure
        self._states: dict[str, str] = {}
        self._queue: deque[tuple[str, ...]] = deque()  # members of packs that wait
        self._out: dict[str, Pack] = {}
        self._progress: dict[str, Progress | None] = {}
        self._elsewhere: set[str] = set()  # replicates that another driver trains
        self._failures: dict[str, int] = {}
        self._given_up: dict[str, str] = {}  # pack -> last failure
        self._searches: list[_Search] = []
        self._best: dict[str, tuple[float, Mapping[str, object]]] = {}
        self._reasons: list[str] = []
        self._stop = threading.Event()
        self._lost_lease = threading.Event()
        self._began = time.monotonic()
        self._looked = time.monotonic()
        self.trained = 0
        self.reused = 0

    # ------------------------------------------------------------ preparing

    def prepare(self) -> None:
        """Bring the ledger and the plan together: what is there, what is missing."""
        ledger, name = self._ledger, self.plan.name
        signatures = self._signatures()
        grids = [p for p in self.plan.parts if p.search is None]
        wanted = {
            (part.name, method): [self.plan.point(method, a) for a in part.assignments(method)]
            for part in grids
            for method in part.domains
        }
        ledger.keep_only_entries(name, signatures)
        ledger.recover(name)
        known = ledger.entries(name)
        present = {(e.part, e.method, e.number) for e in known}
        points: dict[str, Point] = {p.key: p for ps in wanted.values() for p in ps}
        entries = [
            Entry(part=part, method=method, number=i, point=point.key)
            for (part, method), ps in wanted.items()
            for i, point in enumerate(ps)
            if (part, method, i) not in present
        ]
        for entry in known:
            if entry.proposal:
                point = self.plan.point(entry.method, entry.proposal)
                points[point.key] = point
        self._add(list(points.values()), entries)
        ledger.keep_only_points(name, self._points, self._replicates)
        self.reused += ledger.adopt(name) if self.plan.spec.reuse else 0
        self._read_results()
        self._make_searches(known)
        self._fill_queue()

    def _signatures(self) -> dict[tuple[str, str], str]:
        """Per part and method, what its entries depend on: changed, they are asked anew."""
        found = {}
        for part in self.plan.parts:
            for method, domains in part.domains.items():
                what: list[object] = [[name, repr(domain)] for name, domain in domains.items()]
                # The method's plain point stands for all that its other points share: training,
                # encoders, data, and which values are shown.
                what += [self.plan.point(method, {}).key]
                if part.search is not None:
                    what += [part.search.sampler, part.search.seed]
                    what += [list(self.plan.spec.objective)]
                found[part.name, method] = digest(what)
        return found

    def _add(self, points: Sequence[Point], entries: Sequence[Entry]) -> None:
        self._ledger.add(
            self.plan.name,
            [
                NewPoint(
                    key=point.key,
                    method=point.method,
                    params=point.params,
                    replicates=[(r.key, r.seed) for r in point.replicates],
                )
                for point in points
            ],
            entries,
        )
        for point in points:
            if point.key in self._points:
                continue
            waiting = {r.key for r in point.replicates}
            self._points[point.key] = _PointState(point=point, waiting=waiting)
            for replicate in point.replicates:
                self._replicates[replicate.key] = replicate
                self._states.setdefault(replicate.key, "pending")
                self._tasks[replicate.structure] = point.task

    def _read_results(self) -> None:
        for record in self._ledger.replicates(self.plan.name):
            if record.key not in self._replicates:
                continue
            self._states[record.key] = record.state
            if record.state in ENDED:
                self._take_result(record.key, record.state, record.metrics, record.reason)
            elif record.state == "running":
                self._elsewhere.add(record.key)

    def _make_searches(self, known: Sequence[Entry]) -> None:
        for part in self.plan.parts:
            if part.search is None:
                continue
            for method, domains in part.domains.items():
                proposer = Proposer(
                    domains,
                    sampler=part.search.sampler,
                    seed=part.search.seed,
                    label=f"{part.name}/{method}",
                    directions=self.plan.directions,
                )
                mine = [e for e in known if (e.part, e.method) == (part.name, method)]
                proposer.rebuild(mine)
                search = _Search(part, method, proposer, {e.number: e for e in mine})
                for entry in mine:
                    if entry.values is not None:
                        self._improve(search, entry.values[0])
                self._searches.append(search)

    def _fill_queue(self) -> None:
        """Queue packs of everything without a result: interrupted packs first, as they were."""
        rest = {key for key in self._replicates if self._is_open(key)}
        for pack in self._ledger.packs(self.plan.name):
            if pack.state != "interrupted":
                continue
            members = tuple(key for key in pack.replicates if key in self._replicates)
            if members == pack.replicates and rest & set(members):
                self._queue.append(members)
                rest -= set(members)
        searched = {
            replicate.key
            for search in self._searches
            for entry in search.entries.values()
            if entry.state == "pending"
            for replicate in self._points[entry.point].point.replicates
        }
        ordered = [key for key in self._replicates if key in rest]
        self._queue_packs([key for key in ordered if key not in searched])
        for search in self._searches:
            for batch in search.batches_out().values():
                keys = self._keys_of(batch)
                self._queue_packs([key for key in keys if key in rest], slots=1)
        self._tell_finished()

    def _is_open(self, key: str) -> bool:
        return self._states[key] in ("pending", "interrupted") and key not in self._elsewhere

    def _keys_of(self, entries: Sequence[Entry]) -> list[str]:
        points = dict.fromkeys(entry.point for entry in entries)
        return [r.key for p in points for r in self._points[p].point.replicates]

    def _queue_packs(self, keys: Sequence[str], *, slots: int | None = None) -> None:
        packs = group(
            [self._replicates[key] for key in keys],
            slots=slots or self._slots,
            max_models=self.plan.spec.resources.max_models,
        )
        self._queue.extend(tuple(r.key for r in members) for members in packs)

    # ------------------------------------------------------------ what a runner calls

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() or self._lost_lease.is_set()

    def stop(self) -> None:
        """Ask to stop; safe from a signal handler."""
        self._stop.set()

    @property
    def finished(self) -> bool:
        return not (self._queue or self._out or self._elsewhere or self._wants_more())

    def next_pack(self) -> Pack | None:
        if self._lost_lease.is_set():
            raise LeaseError(
                f"study {self.plan.name!r} was taken over by another driver after this one gave no "
                "sign of life for a minute: let that one finish"
            )
        while not self.stopping:
            if not self._queue:
                self._ask()
            if not self._queue:
                return None
            pack = self._claim(self._queue.popleft())
            if pack is not None:
                return pack
        return None

    def _claim(self, members: tuple[str, ...]) -> Pack | None:
        """Claim a pack's members; what another driver has taken meanwhile is left to it."""
        replicates = [self._replicates[key] for key in members]
        # A pack formed again after an interruption keeps its name although some of its members
        # have ended: its checkpoint is for all of them, and it sends the ended ones' results again.
        name = pack_id(replicates)
        free = [key for key in members if self._states[key] not in ENDED]
        claimed = self._ledger.claim(self._lease, name, members)
        if missing := [key for key in free if key not in claimed]:
            self._elsewhere |= set(missing)
            self._ledger.let_go(self._lease, claimed, state="pending")
            self._ledger.update_pack(self.plan.name, name, state="done")
            if claimed:
                self._queue.appendleft(tuple(claimed))
            return None
        if not claimed:
            return None
        pack = Pack(
            id=name,
            study=self.plan.name,
            task=self._tasks[replicates[0].structure],
            replicates=tuple(replicates),
            checkpoint=str(self._home.checkpoints / name),
            keep_weights=self.plan.spec.final is not None,
        )
        for key in claimed:
            self._states[key] = "running"
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
                        "resumed_epoch": event.resumed_epoch,
                    }
                    self._ledger.update_pack(self.plan.name, pack, note=note)
                case Progress(pack=pack):
                    self._progress[pack] = event
                case Finished():
                    pass
        if finished:
            self._finish(finished)
        self._changed(self)

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
                if e.replicate in self._replicates
            ],
        )
        for event in finished:
            if event.replicate in new:
                self.trained += 1
                self._states[event.replicate] = event.state
                self._take_result(event.replicate, event.state, event.metrics, event.reason)
        self._tell_finished()

    def ended(self, pack: str, failure: str = "", *, of_machine: bool = True) -> None:
        gone = self._out.pop(pack, None)
        self._progress.pop(pack, None)
        if gone is None:
            return
        left = [r.key for r in gone.replicates if self._states[r.key] not in ENDED]
        if not left:
            self._ledger.update_pack(self.plan.name, pack, state="done")
        elif failure and not of_machine:
            self._finish(
                [Finished(pack=pack, replicate=k, state="failed", reason=failure) for k in left]
            )
            self._ledger.update_pack(self.plan.name, pack, state="done", failed=True)
        else:
            self._interrupt(gone, left, failure)
        self._changed(self)

    def _interrupt(self, pack: Pack, left: Sequence[str], failure: str) -> None:
        self._ledger.let_go(self._lease, left)
        self._ledger.update_pack(self.plan.name, pack.id, state="interrupted", failed=bool(failure))
        for key in left:
            self._states[key] = "interrupted"
        if self.stopping:
            return
        self._failures[pack.id] = self._failures.get(pack.id, 0) + 1
        if self._failures[pack.id] > MAX_FAILURES:
            self._given_up[pack.id] = failure
        else:
            self._queue.append(tuple(r.key for r in pack.replicates))

    def tick(self) -> None:
        """Look, now and then, at what other drivers have finished or dropped."""
        if self._elsewhere and time.monotonic() - self._looked > 2.0:
            self._looked = time.monotonic()
            self._ledger.recover(self.plan.name)
            self.reused += self._ledger.adopt(self.plan.name)
            freed = []
            for record in self._ledger.replicates(self.plan.name):
                if record.key in self._elsewhere and record.state != "running":
                    self._elsewhere.discard(record.key)
                    self._states[record.key] = record.state
                    if record.state in ENDED:
                        self._take_result(record.key, record.state, record.metrics, record.reason)
                    else:
                        freed.append(record.key)
            self._queue_packs(freed)
            self._tell_finished()
        self._changed(self)

    # ------------------------------------------------------------ results and searches

    def _take_result(self, key: str, state: str, metrics: Mapping[str, float], reason: str) -> None:
        owner = self._points[self._replicates[key].point]
        owner.waiting.discard(key)
        if state == "done":
            objectives = self.plan.spec.objective
            owner.values[key] = tuple(metrics.get(name, math.nan) for name in objectives)
        else:
            owner.lost = True
            if state == "failed":
                self._reasons.append(reason)
        if not owner.waiting:
            self._show_best(owner)

    def _show_best(self, state: _PointState) -> None:
        means = state.means(len(self.plan.spec.objective))
        if means is None:
            return
        known = self._best.get(state.point.method)
        sign = -1 if self.plan.directions[0] else 1
        if known is None or sign * means[0] < sign * known[0]:
            self._best[state.point.method] = (means[0], state.point.params)

    def _tell_finished(self) -> None:
        """Tell the samplers what is complete: whole batches, in the order they were asked.

        A batch as a whole, so that what a sampler knows at its next proposal does not depend on
        which of its packs happened to end first.
        """
        for search in self._searches:
            for batch in search.batches_out().values():
                if all(not self._points[e.point].waiting for e in batch):
                    for entry in batch:
                        self._tell(search, entry)

    def _tell(self, search: _Search, entry: Entry) -> None:
        point = self._points[entry.point]
        values = point.means(len(self.plan.spec.objective))
        states = {self._states[r.key] for r in point.point.replicates}
        state = next((s for s in ("failed", "pruned") if s in states), "done")
        told = search.proposer.tell(entry.number, values)
        self._ledger.tell(self.plan.name, entry, state=state, values=values, told=told)
        search.entries[entry.number] = Entry(
            part=entry.part,
            method=entry.method,
            number=entry.number,
            point=entry.point,
            batch=entry.batch,
            proposal=entry.proposal,
            state=state,
            values=values,
            told=told,
        )
        if values is not None:
            self._improve(search, values[0])

    def _improve(self, search: _Search, value: float) -> None:
        sign = -1 if self.plan.directions[0] else 1
        if search.best is None or sign * value < sign * search.best:
            search.best = value

    def _wants_more(self) -> bool:
        return any(self._missing(search) > 0 for search in self._searches)

    def _missing(self, search: _Search) -> int:
        """Points this search may still ask for; 0 when its number or its budget is reached."""
        budget, settings = self.plan.spec.budget, search.part.search
        assert settings is not None
        if search.exhausted:
            return 0
        minutes = (time.monotonic() - self._began) / 60
        if budget.wall_minutes is not None and minutes >= budget.wall_minutes:
            return 0
        if budget.device_hours is not None:
            used = self._ledger.study(self.plan.name).device_seconds / 3600
            if used >= budget.device_hours:
                return 0
        if budget.target is not None and search.best is not None:
            higher = self.plan.directions[0]
            if search.best >= budget.target if higher else search.best <= budget.target:
                return 0
        return max(0, settings.points - len(search.entries))

    def _ask(self) -> None:
        """Ask for batches until the workers have enough to do."""
        for search in self._searches:
            settings = search.part.search
            assert settings is not None
            while len(search.batches_out()) < self._parallel(settings.parallel):
                count = min(self._missing(search), settings.batch)
                if count == 0:
                    break
                self._ask_batch(search, count)

    def _parallel(self, setting: int | str) -> int:
        if setting != "auto":
            return int(setting)
        # Not by how many searches still run: what is asked must not depend on which ends first.
        return max(1, math.ceil(self._slots / len(self._searches)))

    def _ask_batch(self, search: _Search, count: int) -> None:
        asked = search.proposer.ask(count)
        if len(asked) < count:
            search.exhausted = True
        points = [self.plan.point(search.method, a.values) for a in asked]
        entries = [
            Entry(
                part=search.part.name,
                method=search.method,
                number=a.number,
                point=point.key,
                batch=a.batch,
                proposal=a.values,
            )
            for a, point in zip(asked, points, strict=True)
        ]
        fresh = [p for p in {p.key: p for p in points}.values() if p.key not in self._points]
        self._add(fresh, entries)
        search.entries.update({e.number: e for e in entries})
        if fresh and self.plan.spec.reuse:
            found = self._ledger.adopt(self.plan.name)
            self.reused += found
            if found:
                self._read_some({r.key for p in fresh for r in p.replicates})
        keys = [k for k in self._keys_of(entries) if self._is_open(k)]
        queued = {key for members in self._queue for key in members}
        # A pack per structure: the batch is one, unless what it varies changes shapes.
        self._queue_packs([k for k in keys if k not in queued], slots=1)
        self._tell_finished()

    def _read_some(self, keys: set[str]) -> None:
        records: list[ReplicateRecord] = self._ledger.replicates(self.plan.name)
        for record in records:
            if record.key in keys:
                self._states[record.key] = record.state
                if record.state in ENDED:
                    self._take_result(record.key, record.state, record.metrics, record.reason)

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
            left = sum(state not in ENDED for state in self._states.values())
            failure = next(iter(self._given_up.values()))
            raise Incomplete(
                f"{left} replicates have no result: their pack failed {MAX_FAILURES + 1} times "
                f"({failure}); mend that, then type the same command again"
            )

    def status(self) -> Status:
        replicates = dict.fromkeys(
            ("pending", "running", "done", "pruned", "failed", "interrupted"), 0
        )
        for state in self._states.values():
            replicates[state] += 1
        points = {"done": 0, "pruned": 0, "failed": 0, "running": 0, "pending": 0}
        for owner in self._points.values():
            points[point_state([self._states[r.key] for r in owner.point.replicates])] += 1
        missing = sum(self._missing(search) for search in self._searches)
        return Status(
            points={"total": len(self._points) + missing, **points},
            replicates={
                "total": len(self._states) + missing * len(self.plan.spec.seeds),
                **replicates,
            },
            trained=self.trained,
            reused=self.reused,
            best=dict(self._best),
            running=dict(self._progress),
            failed=list(self._reasons),
            seconds=time.monotonic() - self._began,
        )


def point_state(replicates: Sequence[str]) -> str:
    """A point's state from those of its replicates: done, pruned, failed, running or pending."""
    states = set(replicates)
    for state in ("failed", "pruned"):
        if state in states and states <= set(ENDED):
            return state
    if states == {"done"}:
        return "done"
    return "running" if "running" in states or "done" in states else "pending"


class Heartbeat:
    """Keeps a lease alive while a study runs."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modmix-heartbeat", daemon=True)

    def _run(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            self._beat()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
