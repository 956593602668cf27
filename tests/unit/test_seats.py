"""Mailbox, seats and bridge together, without Ray: the mailbox in a thread, seats in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import pytest

from modmix.base.errors import Incomplete
from modmix.base.messages import Event, Finished, Pack, PackStarted, Progress, TaskRef
from modmix.execution import bridge as bridge_module
from modmix.execution import seat as seat_module
from modmix.execution.bridge import DIED, Bridge
from modmix.execution.local import Reply, Verdict
from modmix.execution.mailbox import Asks, Ended, Mailbox
from modmix.execution.seat import serve

PATIENCE = 20.0  # seconds; nothing here takes one


class LoopLine:
    """A line to a mailbox that lives in another thread of this process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.mailbox = Mailbox()
        self.broken = False

    def call(self, method: str, *arguments: Any) -> Any:
        if self.broken:
            raise OSError("the line is cut")
        return asyncio.run_coroutine_threadsafe(
            getattr(self.mailbox, method)(*arguments), self.loop
        )

    def ready(self, call: Any) -> bool:
        return bool(call.done())

    def result(self, call: Any) -> Any:
        return call.result(PATIENCE)

    def close(self) -> None:
        """End what still waits, as the end of an actor does."""

        async def cancel() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self.loop).result(PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Study:
    """A work of some packs, which notes everything it is told."""

    def __init__(self, packs: int) -> None:
        self.queue = [f"pack-{i}" for i in range(packs)]
        self.out: set[str] = set()
        self.told: list[Any] = []
        self.stopping = False
        self.verdicts: Mapping[str, Verdict] = {}
        self.more = 0  # packs that a search asks for once all others have ended
        self.on_record: Callable[[Event], None] = lambda _: None

    @property
    def finished(self) -> bool:
        return not self.queue and not self.out and not self.more

    @property
    def queued(self) -> int:
        return len(self.queue)

    def next_pack(self) -> Pack | None:
        if not self.queue or self.stopping:
            return None
        name = self.queue.pop(0)
        self.out.add(name)
        return pack(name)

    def record(self, events: Sequence[Event]) -> None:
        self.told += events
        for event in events:
            self.on_record(event)

    def ended(self, pack: str, failure: str = "", *, of_machine: bool = True) -> None:
        assert pack in self.out
        self.out.remove(pack)
        self.told.append((pack, failure, of_machine))
        if failure and of_machine:
            self.queue.append(pack)
        elif not self.out and not self.queue and self.more:
            self.queue = [f"more-{self.more}"]
            self.more -= 1

    def tick(self) -> None:
        pass

    def of(self, pack: str) -> list[Any]:
        """What was told of one pack, in order: epochs, finished replicates, its end."""
        found: list[Any] = []
        for item in self.told:
            if isinstance(item, tuple):
                if item[0] == pack:
                    found.append(item[1:])
            elif item.pack == pack:
                found.append(getattr(item, "epoch", getattr(item, "replicate", "started")))
        return found


def pack(name: str) -> Pack:
    return Pack(
        id=name,
        study="s",
        task=TaskRef(name="toy", options={}, fingerprint="f"),
        replicates=(),
    )


class Trainer:
    """Stands for training: three evaluations, then one result. ``at`` is called before each."""

    def __init__(self) -> None:
        self.at: Callable[[str, int], None] = lambda pack, epoch: None
        self.closed: list[str] = []
        self.dropped: list[tuple[str, Verdict]] = []
        self.epochs = 3

    def __call__(
        self, pack: Pack, *, gpus: float, threads: int, dropped: Callable[[], Verdict]
    ) -> Generator[Event, None, None]:
        try:
            yield PackStarted(pack=pack.id, models=1, device="cpu", stacked=False, why="")
            for epoch in range(1, self.epochs + 1):
                self.at(pack.id, epoch)
                if told := dropped():
                    self.dropped.append((pack.id, told))
                yield Progress(pack=pack.id, epoch=epoch, epochs=3, active=1, metrics={})
            yield Finished(pack=pack.id, replicate=f"{pack.id}-0", state="done")
        except GeneratorExit:
            self.closed.append(pack.id)
            raise


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(seat_module, "train", made)
    monkeypatch.setattr(seat_module, "FAILED_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(bridge_module, "RESTART_SECONDS", 0.0)
    return made


@pytest.fixture
def line() -> Iterator[LoopLine]:
    made = LoopLine()
    yield made
    made.close()


class Cluster:
    """Does Tune's part: starts seats where the bridge wants them, and reports their end."""

    def __init__(self, study: Study, line: LoopLine, slots: int, idle: float = 1e9) -> None:
        self.study, self.line, self.slots = study, line, slots
        self.bridge = Bridge(study, line, idle_seconds=idle)
        self.threads: dict[str, threading.Thread] = {}
        self.started = 0
        self.most = 0

    def turn(self) -> None:
        while self.bridge.wants_seat(self.slots):
            name = f"seat-{self.started}"
            self.started += 1
            self.bridge.seat_added(name)
            self.threads[name] = threading.Thread(target=self._seat, args=(name,), daemon=True)
            self.threads[name].start()
        self.most = max(self.most, len(self.threads))
        self.bridge.serve(0.02)
        for name, thread in list(self.threads.items()):
            if not thread.is_alive():
                del self.threads[name]
                self.bridge.seat_ended(name)

    def _seat(self, name: str) -> None:
        serve(self.line, name, gpus=0, threads=1)

    def run(self) -> None:
        until(lambda: self.bridge.over and not self.threads, self.turn)


def until(holds: Callable[[], bool], turn: Callable[[], None]) -> None:
    for _ in range(int(PATIENCE / 0.02)):
        turn()
        if holds():
            return
    raise AssertionError("it never did")


WHOLE = ["started", 1, 2, 3, "{}-0", ("", True)]


def whole(pack: str) -> list[Any]:
    return [word.format(pack) if isinstance(word, str) else word for word in WHOLE]


def test_two_seats_train_all_packs_and_every_event_arrives_in_order(
    trainer: Trainer, line: LoopLine
) -> None:
    study = Study(7)
    cluster = Cluster(study, line, slots=2)
    cluster.run()
    for i in range(7):
        assert study.of(f"pack-{i}") == whole(f"pack-{i}")
    assert cluster.started == 2  # the same two processes trained all seven


def test_no_more_seats_than_packs(trainer: Trainer, line: LoopLine) -> None:
    cluster = Cluster(Study(3), line, slots=64)
    cluster.run()
    assert cluster.started == 3


def test_machines_that_join_get_seats(trainer: Trainer, line: LoopLine) -> None:
    study = Study(6)
    cluster = Cluster(study, line, slots=1)
    gate = threading.Event()
    trainer.at = lambda *_: (gate.wait(PATIENCE), None)[1]
    until(lambda: cluster.bridge.is_settled, cluster.turn)
    assert cluster.most == 1
    cluster.slots = 3
    until(lambda: cluster.most == 3, cluster.turn)
    gate.set()
    cluster.run()
    assert study.finished


def test_a_seat_waits_for_a_search_and_goes_on(trainer: Trainer, line: LoopLine) -> None:
    study = Study(1)
    study.more = 2
    cluster = Cluster(study, line, slots=2)
    cluster.run()
    assert [study.of(p)[-1] for p in ("pack-0", "more-2", "more-1")] == [("", True)] * 3
    assert cluster.started == 1


def test_seats_without_work_leave_a_shared_cluster(trainer: Trainer, line: LoopLine) -> None:
    study = Study(2)
    gate = threading.Event()
    trainer.at = lambda pack, _: (pack == "pack-0" and gate.wait(PATIENCE), None)[1]
    cluster = Cluster(study, line, slots=2, idle=0.0)
    until(lambda: study.of("pack-1") == whole("pack-1"), cluster.turn)
    until(lambda: len(cluster.threads) == 1, cluster.turn)
    study.queue.append("late")  # and there is work again
    until(lambda: study.of("late") == whole("late"), cluster.turn)
    gate.set()
    cluster.run()
    assert cluster.started == 3


def test_a_request_to_stop_reaches_every_seat_at_its_next_event(
    trainer: Trainer, line: LoopLine
) -> None:
    study = Study(5)
    cluster = Cluster(study, line, slots=2)
    go_on = threading.Event()
    trainer.at = lambda _, epoch: (epoch == 2 and go_on.wait(PATIENCE), None)[1]
    until(lambda: study.of("pack-0") + study.of("pack-1") == ["started", 1] * 2, cluster.turn)
    study.stopping = True
    cluster.turn()  # says it, and waits until the mailbox has it
    until(lambda: said(line, "seat-0") == said(line, "seat-1") == Reply(stop=True), cluster.turn)
    go_on.set()
    cluster.run()
    assert sorted(trainer.closed) == ["pack-0", "pack-1"]
    for name in ("pack-0", "pack-1"):
        assert study.of(name) == ["started", 1, 2, ("", True)]
    assert study.queue == ["pack-2", "pack-3", "pack-4"]
    assert cluster.bridge.overdue  # nothing is left to wait for


def said(line: LoopLine, seat: str) -> Reply:
    """What a worker hears now."""
    return line.mailbox._reply(seat)


def test_verdicts_reach_the_pack_in_training(trainer: Trainer, line: LoopLine) -> None:
    study = Study(1)
    verdict = {"pack-0-0": "enough"}
    heard = threading.Event()

    def decide(event: Event) -> None:
        if isinstance(event, Progress) and event.epoch == 1:
            study.verdicts = {"pack-0": verdict}

    study.on_record = decide
    trainer.at = lambda _, epoch: (epoch == 2 and heard.wait(PATIENCE), None)[1]
    cluster = Cluster(study, line, slots=1)
    until(lambda: said(line, "seat-0").drop == verdict, cluster.turn)
    # The word is on its way to the seat, whose ear is ready once its call has returned.
    ear_is_ready = lambda: not line.mailbox._news["seat-0"]._waiters  # noqa: E731
    until(ear_is_ready, cluster.turn)
    heard.set()
    cluster.run()
    assert trainer.dropped[-1] == ("pack-0", verdict)


def test_a_dead_worker_s_last_events_count_and_its_pack_is_handed_out_again(
    trainer: Trainer, line: LoopLine
) -> None:
    study = Study(1)
    bridge = Bridge(study, line, idle_seconds=1e9)
    bridge.seat_added("dies")
    asked = line.call("next", "dies")
    until(asked.done, bridge.serve)
    assert Pack.from_json(asked.result()).id == "pack-0"
    line.result(
        line.call(
            "put",
            "dies",
            [[PackStarted(pack="pack-0", models=1, device="cpu", stacked=False, why="")]],
        )
    )
    bridge.seat_ended("dies")
    assert study.of("pack-0") == ["started", (DIED, True)]
    # Should it live after all, it is told to stop, and nothing of it counts any more.
    again = [[Progress(pack="pack-0", epoch=9, epochs=9, active=1, metrics={})]]
    assert line.result(line.call("put", "dies", again)) == Reply(stop=True)
    assert line.result(line.call("listen", "dies", Reply())) == Reply(stop=True)
    assert line.result(line.call("next", "dies")) is None
    cluster = Cluster(study, line, slots=1)
    cluster.run()
    assert study.of("pack-0")[2:] == whole("pack-0")


def test_a_worker_that_dies_while_it_asks_loses_no_pack(trainer: Trainer, line: LoopLine) -> None:
    study = Study(1)
    bridge = Bridge(study, line, idle_seconds=1e9)
    bridge.seat_added("dies")
    line.call("next", "dies")
    until(lambda: study.out == {"pack-0"}, bridge.serve)
    bridge.seat_ended("dies")
    assert study.queue == ["pack-0"]


@pytest.mark.parametrize(
    ("error", "of_machine"), [(ValueError("no"), False), (OSError("no disk"), True)]
)
def test_failures_of_code_and_of_machines(
    trainer: Trainer, line: LoopLine, error: Exception, of_machine: bool
) -> None:
    study = Study(2)
    failures = [error]

    def fail(pack: str, epoch: int) -> None:
        if pack == "pack-0" and epoch == 2 and failures:
            raise failures.pop()

    trainer.at = fail
    cluster = Cluster(study, line, slots=1)
    cluster.run()
    first = study.of("pack-0")[:3]
    assert first[:2] == ["started", 1]
    assert str(error) in first[2][0]
    assert first[2][1] == of_machine
    assert study.of("pack-0")[3:] == (whole("pack-0") if of_machine else [])
    assert study.of("pack-1") == whole("pack-1")
    # The process whose machine failed is not trusted with another pack.
    assert cluster.started == (2 if of_machine else 1)


def test_training_does_not_wait_for_the_driver(
    trainer: Trainer, line: LoopLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mailbox answers to nothing that a worker puts until the pack is trained."""
    study = Study(1)
    trained = threading.Event()
    trainer.at = lambda _, epoch: (epoch == 3 and trained.set(), None)[1]
    put = line.mailbox.put

    async def put_late(*arguments: Any) -> Reply:
        while not trained.is_set():
            await asyncio.sleep(0.001)
        return await put(*arguments)

    monkeypatch.setattr(line.mailbox, "put", put_late)
    Cluster(study, line, slots=1).run()
    assert study.of("pack-0") == whole("pack-0")


def test_a_line_that_is_cut_ends_the_seat(trainer: Trainer, line: LoopLine) -> None:
    study = Study(1)
    cluster = Cluster(study, line, slots=1)

    def cut(_: str, epoch: int) -> None:
        line.broken = epoch >= 2

    trainer.at = cut
    ended: list[BaseException] = []

    def seat() -> None:
        try:
            serve(line, "seat-0", gpus=0, threads=1)
        except OSError as error:
            ended.append(error)

    cluster.bridge.seat_added("seat-0")
    thread = threading.Thread(target=seat, daemon=True)
    thread.start()
    until(lambda: study.out == {"pack-0"}, cluster.bridge.serve)
    thread.join(PATIENCE)
    assert [str(error) for error in ended] == ["the line is cut"]
    cluster.bridge.serve()
    assert str(cluster.bridge.error) == "the line is cut"
    assert cluster.bridge.stopping


def test_an_error_of_the_study_stops_everything_and_is_kept(
    trainer: Trainer, line: LoopLine
) -> None:
    study = Study(4)
    full = OSError("no space left on device")

    def refuse(event: Event) -> None:
        if isinstance(event, Finished):
            raise full

    study.on_record = refuse
    cluster = Cluster(study, line, slots=1)
    cluster.run()
    assert cluster.bridge.error is full
    assert len(study.queue) == 3


def test_a_worker_that_asks_together_with_what_cannot_be_recorded_is_let_go(
    line: LoopLine,
) -> None:
    study = Study(1)

    def refuse(_event: Event) -> None:
        raise OSError("no space left on device")

    study.on_record = refuse
    bridge = Bridge(study, line, idle_seconds=1e9)
    bridge.seat_added("seat-0")
    first = line.call("next", "seat-0")
    until(first.done, lambda: bridge.serve(0.02))
    assert line.result(first) is not None
    event = Finished(pack="pack-0", replicate="r", state="done")
    line.result(line.call("put", "seat-0", [[event], Ended()]))
    second = line.call("next", "seat-0")  # all three are there when the driver looks
    until(lambda: len(line.mailbox._items) == 3, lambda: time.sleep(0.02))
    until(second.done, lambda: (bridge.serve(), time.sleep(0.02))[0])
    assert line.result(second) is None
    assert isinstance(bridge.error, OSError)


def test_workers_that_cannot_start_end_the_study_with_the_reason(
    trainer: Trainer, line: LoopLine
) -> None:
    study = Study(4)
    bridge = Bridge(study, line, idle_seconds=1e9)
    starts = 0
    while bridge.wants_seat(2):
        bridge.seat_added(f"seat-{starts}")
        starts += 1
        bridge.seat_ended(f"seat-{starts - 1}", "the worker failed: no module named modmix")
        assert starts < 100
    assert starts == 6
    assert isinstance(bridge.error, Incomplete)
    assert "no module named modmix" in str(bridge.error)
    assert len(study.queue) == 4  # no pack was claimed for them


def test_one_bad_machine_does_not_end_the_study(trainer: Trainer, line: LoopLine) -> None:
    study = Study(3)
    bridge = Bridge(study, line, idle_seconds=1e9)
    bridge.seat_added("good")
    line.call("next", "good")
    until(lambda: study.out == {"pack-0"}, bridge.serve)
    for i in range(20):
        assert bridge.wants_seat(2)
        bridge.seat_added(f"bad-{i}")
        bridge.seat_ended(f"bad-{i}")
    assert bridge.error is None


def test_waiting_for_items_returns_as_soon_as_there_is_one(line: LoopLine) -> None:
    taken = line.call("take", PATIENCE)
    line.call("next", "seat")
    assert line.result(taken) == [("seat", Asks())]
    assert line.result(line.call("take", 0.0)) == []
