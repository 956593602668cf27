"""The searcher, scheduler, callback and stopper that Ray Tune calls, with an invented study."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.fakework import FakeWork

from modmix.base.errors import Incomplete, LedgerError
from modmix.base.messages import Event, Finished, Pack, Progress
from modmix.execution import trials as trials_module
from modmix.execution import tune_scheduler
from modmix.execution.local import Reply
from modmix.execution.nodes import Nodes
from modmix.execution.trials import WITHDRAWN, Trials
from modmix.execution.tune_callback import DIED, LOST, StudyCallback, StudyStopper
from modmix.execution.tune_cluster import Needs
from modmix.execution.tune_scheduler import RungScheduler
from modmix.execution.tune_search import PackSearcher, placement


@dataclass
class FakeCluster:
    """Nodes by id with room for so many packs each."""

    rooms: dict[str, int] = field(default_factory=lambda: {"a": 1, "b": 1})
    too_small: dict[str, set[str]] = field(default_factory=dict)  # nodes, by method
    is_local: bool = False
    dead: set[str] = field(default_factory=set)
    taken: int = 0  # places, by this study or others

    def nodes(self, method: str = "") -> dict[str, int]:
        gone = self.dead | self.too_small.get(method, set())
        return {node: room for node, room in self.rooms.items() if node not in gone}

    def is_alive(self, node: str) -> bool:
        return node in self.nodes()

    def node_name(self, node: str) -> str:
        return f"node-{node}"

    def capacity(self) -> int:
        return sum(self.nodes().values())

    def free(self) -> int:
        return self.capacity() - self.taken


@dataclass
class FakeStore:
    packs: dict[str, Pack] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    told: dict[str, Reply] = field(default_factory=dict)
    stopped: bool = False
    demands: list[float] = field(default_factory=list)

    def put(self, pack: Pack) -> None:
        self.packs[pack.id] = pack

    def node(self, pack: str) -> str | None:
        return self.nodes.get(pack)

    def tell(self, pack: str, reply: Reply) -> None:
        self.told[pack] = reply

    def stop(self) -> None:
        self.stopped = True

    def remove(self, pack: str) -> None:
        del self.packs[pack]

    def others(self, demand: float) -> list[float]:
        return self.demands


@dataclass
class FakeTrial:
    trial_id: str
    error_file: str | None = None
    status: str = "PENDING"
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class FakeController:
    stopped: list[Any] = field(default_factory=list)

    def stop_trial(self, trial: Any) -> None:
        self.stopped.append(trial)


class Study:
    """A study's hooks, called as Tune calls them."""

    def __init__(self, packs: int, cluster: FakeCluster | None = None) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.work = FakeWork(packs)
        self.cluster: Any = cluster or FakeCluster()
        self.store = FakeStore()
        self.trials = Trials(self.work, clock=lambda: self.now)
        self.nodes = Nodes(self.said.append)
        shared = (self.trials, self.cluster, self.nodes, self.store)
        self.searcher, self.callback = PackSearcher(*shared), StudyCallback(*shared)
        self.scheduler = RungScheduler(self.trials, self.cluster, self.nodes, self.store)
        self.stopper = StudyStopper(self.trials)

    def suggest(self, trial: str) -> Any:
        return self.searcher.suggest(trial)

    def start(self, trial: str, node: str = "a") -> Any:
        """A trial is suggested and its worker starts."""
        config = self.suggest(trial)
        self.store.nodes[config["pack"]] = node
        self.callback.on_trial_start(0, [], FakeTrial(trial))  # type: ignore[arg-type]
        return config

    def result(self, trial: str, *events: Event, **more: Any) -> None:
        result = {"events": events, **more}
        one: Any = FakeTrial(trial)
        assert self.scheduler.on_trial_result(None, one, result) == "CONTINUE"
        self.callback.on_trial_result(0, [], one, result)
        assert "events" not in result  # Tune keeps results

    def complete(self, trial: str) -> None:
        one: Any = FakeTrial(trial)
        self.scheduler.on_trial_complete(None, one, {})
        self.callback.on_trial_complete(0, [], one)

    def fail(self, trial: str, error_file: str | None = None) -> None:
        one: Any = FakeTrial(trial, error_file)
        self.scheduler.on_trial_error(None, one)
        self.callback.on_trial_error(0, [], one)

    def turn(self) -> bool:
        """A turn of Tune's loop; whether everything is to be stopped."""
        self.now += 1.0
        stop = self.stopper.stop_all()
        self.callback.on_step_end(0, [])
        return stop


def test_packs_become_trials_and_few_of_them_wait() -> None:
    study = Study(9, FakeCluster({"a": 2, "b": 2}, is_local=True))
    configs = [study.suggest(str(i)) for i in range(7)]
    assert [c["pack"] if c else None for c in configs[:6]] == list(study.work.out)
    assert configs[6] is None  # four run, two wait
    assert configs[0]["method"] == "mul"
    assert configs[1]["beta"] == 0.001
    assert study.store.packs == study.work.out
    assert study.work.slots == 4
    study.callback.on_trial_start(0, [], FakeTrial("0"))  # type: ignore[arg-type]
    study.complete("0")
    assert study.suggest("8") is not None


def test_a_study_without_nodes_shows_that_it_waits_for_one() -> None:
    study = Study(9, FakeCluster({}))
    suggested = [study.suggest(str(i)) is not None for i in range(5)]
    assert suggested == [*[True] * 4, False]  # an autoscaler sees them
    assert study.work.slots == 1


@pytest.mark.parametrize(("nodes", "expected"), [(1, 5), (4, 8), (20, 40)])
def test_as_many_wait_on_a_cluster_as_run_there(nodes: int, expected: int) -> None:
    study = Study(60, FakeCluster({str(i): 1 for i in range(nodes)}))
    suggested = [study.suggest(str(i)) is not None for i in range(50)]
    assert sum(suggested) == expected


def test_a_study_with_others_has_its_share() -> None:
    study = Study(30, FakeCluster({"a": 8}))
    study.store.demands = [1.0]
    assert [study.suggest(str(i)) is not None for i in range(5)] == [*[True] * 4, False]


def test_places_of_workers_that_start_are_this_study_s() -> None:
    study = Study(30, FakeCluster({"a": 12}, taken=4))  # by somebody else
    waiting = [str(i) for i in range(16)]
    for trial in waiting:
        assert study.suggest(trial) is not None
    assert study.suggest("too many") is None
    assert study.work.slots == 8
    study.cluster.taken = 12  # the first eight have their places
    study.now += 2.0
    assert study.suggest("too many") is None
    assert study.work.slots == 8
    for trial in waiting[:8]:
        study.callback.on_trial_start(0, [], FakeTrial(trial))  # type: ignore[arg-type]
    study.now += 2.0
    assert study.suggest("too many") is None
    study.now += 60.0
    assert study.suggest("too many") is None
    assert study.work.slots == 8
    study.cluster.taken = 8  # the other has ended
    study.now += 2.0
    assert study.suggest("more") is not None
    assert study.work.slots == 12


def test_a_cluster_of_its_own_is_not_shared() -> None:
    study = Study(30, FakeCluster({"a": 8}, is_local=True))
    study.store.demands = [1.0]
    assert all(study.suggest(str(i)) for i in range(12))


def test_the_end() -> None:
    study = Study(1)
    study.start("0")
    assert study.suggest("1") is None
    study.result("0", Finished(pack="p", replicate="r", state="done"))
    study.complete("0")
    assert study.suggest("1") == "FINISHED"
    assert study.work.finished_models == {"r"}
    assert study.work.failures == []
    assert study.store.packs == {}
    assert not study.turn()


def test_a_verdict_is_told_before_the_trial_goes_on() -> None:
    study = Study(2)
    name = study.start("0")["pack"]
    at = Progress(pack=name, epoch=1, epochs=3, active=1, metrics={}, rung=1, at_rung={"c": 9.0})
    study.result("0", at)
    assert study.store.told == {}
    study.work.verdicts = {name: {"r": "worse"}}
    study.result("0", at)
    assert study.store.told == {name: Reply(drop={"r": "worse"})}


def test_the_trial_that_waits_longest_takes_over_a_free_worker() -> None:
    study = Study(packs=9)  # two slots
    scheduler: Any = study.scheduler
    added = {name: FakeTrial(name) for name in "abcde"}

    def add(name: str) -> None:
        assert study.suggest(name)
        scheduler.on_trial_add(None, added[name])

    def start(name: str) -> None:
        added[name].status = "RUNNING"
        study.callback.on_trial_start(0, [], added[name])  # type: ignore[arg-type]

    def end(name: str) -> None:
        added[name].status = "TERMINATED"
        scheduler.on_trial_complete(None, added[name], {})
        study.callback.on_trial_complete(0, [], added[name])  # type: ignore[arg-type]

    for name in "abc":
        add(name)
    assert study.trials.slots == 2
    assert scheduler.choose_trial_to_run(None) is None  # no worker is free
    start("a")
    end("a")
    add("d")
    # The worker of b is starting, and would be ended if b took over this one.
    assert scheduler.choose_trial_to_run(None) is added["c"]
    start("c")
    start("b")
    end("b")
    add("e")
    assert scheduler.choose_trial_to_run(None) is added["d"]
    assert scheduler.choose_trial_to_run(None) is None  # that worker is promised
    end("c")
    assert scheduler.choose_trial_to_run(None) is added["e"]
    study.now += 6.0
    assert scheduler.choose_trial_to_run(None) is None  # these workers have ended by now
    start("d")
    study.callback.on_trial_error(0, [], added["d"])  # type: ignore[arg-type]
    assert scheduler.choose_trial_to_run(None) is None  # and so has that of a failure


def test_a_stop_gives_trials_time_to_save() -> None:
    study = Study(9)
    for trial in "ab":
        study.start(trial)
    study.suggest("waits")
    assert not study.turn()
    study.work.stopping = True
    assert study.suggest("c") == "FINISHED"
    assert not study.turn()
    assert study.store.stopped
    study.complete("a")
    assert not study.turn()
    study.complete("b")
    assert study.turn()  # nothing is lost with the one that waits


def test_a_trial_that_does_not_stop_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "STOP_SECONDS", 5.0)
    study = Study(9)
    study.start("a")
    study.work.stopping = True
    assert [study.turn() for _ in range(7)] == [*[False] * 6, True]


def test_a_failure_of_the_configuration() -> None:
    study = Study(2)
    study.start("0")
    study.result("0", failure="Traceback …\nValueError: no", of_machine=False, unfit=False)
    study.fail("0")
    assert study.work.failures == [("Traceback …\nValueError: no", False, True)]
    assert "avoided_nodes" not in study.suggest("1")
    assert study.said == []


def test_a_failure_of_the_machine() -> None:
    study = Study(1)
    name = study.start("0", "a")["pack"]
    study.result("0", failure="OSError: disk", of_machine=True, unfit=False)
    study.fail("0")
    assert study.work.failures == [("OSError: disk", True, True)]
    again = study.suggest("1")
    assert (again["pack"], again["avoided_nodes"]) == (name, "a")


def avoiding(*, unfit: bool = True, packs: int = 1) -> tuple[Study, Any]:
    """A pack that failed on node a waits for node b as trial 1; a is bad if it was unfit."""
    study = Study(packs)
    study.start("0", "a")
    study.result("0", failure="OSError: no disk", of_machine=True, unfit=unfit)
    study.fail("0")
    study.said.clear()
    return study, waits(study, "1")


def waits(study: Study, trial: str) -> Any:
    config = study.suggest(trial)
    assert config["avoided_nodes"] == "a"
    waiting: Any = FakeTrial(trial, config=config)
    study.scheduler.on_trial_add(None, waiting)
    return waiting


def test_a_pack_does_not_wait_for_another_node_where_none_is_bad() -> None:
    study, waiting = avoiding(unfit=False)
    study.cluster.dead.add("b")
    tune = FakeController()
    study.scheduler.choose_trial_to_run(tune)
    assert tune.stopped == [waiting]
    assert study.said == []
    study.callback.on_trial_complete(0, [], waiting)
    assert "avoided_nodes" not in study.suggest("2")


def test_each_pack_waits_its_own_time_for_another_node() -> None:
    study, first = avoiding(packs=2)
    tune = FakeController()
    study.cluster.dead.add("b")
    study.scheduler.choose_trial_to_run(tune)
    study.now += tune_scheduler.REPLACING_SECONDS - 1
    study.cluster.dead.clear()
    second = waits(study, "2")
    study.cluster.too_small["mul"] = {"b"}
    study.scheduler.choose_trial_to_run(tune)
    study.now += 1
    study.scheduler.choose_trial_to_run(tune)
    assert tune.stopped == [first]
    study.now += tune_scheduler.REPLACING_SECONDS
    study.scheduler.choose_trial_to_run(tune)
    assert tune.stopped == [first, second]
    assert study.said == ["warning: only avoided nodes are left: they are tried again"]


def test_a_pack_whose_last_node_is_lost_is_handed_out_anew() -> None:
    study, waiting = avoiding()
    tune = FakeController()
    assert study.scheduler.choose_trial_to_run(tune) is None
    assert tune.stopped == []
    study.cluster.dead.add("b")
    study.scheduler.choose_trial_to_run(tune)
    study.now += tune_scheduler.REPLACING_SECONDS - 1
    study.scheduler.choose_trial_to_run(tune)
    assert tune.stopped == []  # another node may be on its way
    study.now += 1
    study.scheduler.choose_trial_to_run(tune)
    assert tune.stopped == [waiting]
    assert study.said == ["warning: only avoided nodes are left: they are tried again"]
    assert study.work.failures[1:] == [(WITHDRAWN, True, False)]
    study.callback.on_trial_complete(0, [], waiting)  # as `stop_trial` does
    again = study.suggest("2")
    assert again["pack"] == waiting.config["pack"]
    assert "avoided_nodes" not in again


def test_a_node_that_joins_in_time_gets_the_pack() -> None:
    study, _ = avoiding()
    tune = FakeController()
    study.cluster.dead.add("b")
    study.scheduler.choose_trial_to_run(tune)
    study.cluster.rooms["c"] = 1
    study.now += tune_scheduler.REPLACING_SECONDS
    study.scheduler.choose_trial_to_run(tune)
    study.cluster.dead.add("c")
    study.scheduler.choose_trial_to_run(tune)  # the time begins anew
    assert tune.stopped == []


@pytest.mark.parametrize("status", ["RUNNING", "PENDING"])
def test_a_pack_that_may_still_run_is_not_taken_back(status: str) -> None:
    """It runs, or there is no node at all: whatever joins is none of those that it avoids."""
    study, waiting = avoiding()
    waiting.status = status
    study.cluster.dead |= {"b"} if status == "RUNNING" else {"a", "b"}
    tune = FakeController()
    study.scheduler.choose_trial_to_run(tune)
    study.now += tune_scheduler.REPLACING_SECONDS
    study.scheduler.choose_trial_to_run(tune)
    assert tune.stopped == []


def test_nodes_that_are_too_small_for_the_method_are_no_alternative() -> None:
    """The pack would wait for ever: node b has no GPU, say."""
    study = Study(2, FakeCluster(too_small={"mul": {"b"}}))
    study.start("0", "a")
    study.result("0", failure="OSError: no data", of_machine=True, unfit=True)
    study.fail("0")
    assert study.work.failures == [("OSError: no data", True, True)]  # counted
    assert "avoided_nodes" not in study.suggest("1")


def test_failures_of_a_node_with_successes_between_do_not_make_it_bad() -> None:
    study = Study(9, FakeCluster({"a": 1, "b": 1}))
    for i in range(0, 6, 2):
        study.start(str(i), "a")
        study.result(str(i), failure="OSError: disk", of_machine=True, unfit=False)
        study.fail(str(i))
        study.start(str(i + 1), "a")
        study.complete(str(i + 1))
    assert study.said == []


def test_a_worker_that_dies() -> None:
    study = Study(1)
    study.start("0", "a")
    study.fail("0")
    for _ in range(int(trials_module.SILENT_SECONDS)):
        study.turn()  # its node may be dead as well, which takes a cluster some time to see
        assert study.work.failures == []
    study.turn()
    study.turn()
    assert study.work.failures == [(DIED, True, True)]
    assert study.suggest("1")["avoided_nodes"] == "a"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The actor died unexpectedly before finishing this task.\n\tactor_id: 1", DIED),
        (
            "ray.exceptions.OutOfMemoryError: Task was killed",
            "the worker process was killed because its node ran out of memory",
        ),
        (
            (
                "The actor died because of an error raised in its creation task, ray::A\n"
                "Traceback …\nModuleNotFoundError: No module named 'modmix'\n"
            ),
            "the worker could not start: ModuleNotFoundError: No module named 'modmix'",
        ),
        ("ray::A.train()\nTraceback …\nOSError: gone", "the worker failed: OSError: gone"),
    ],
)
def test_what_ray_knows_of_a_death_is_said(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "error.txt").write_text(f"Failure # 1\n{text}\n")
    study = Study(1, FakeCluster({"a": 1}, is_local=True))
    study.start("0", "a")
    study.fail("0", str(tmp_path / "error.txt"))
    assert study.work.failures == [(expected, True, True)]


def test_a_worker_that_dies_on_this_machine_is_known_to() -> None:
    study = Study(1, FakeCluster({"a": 1}, is_local=True))
    study.start("0", "a")
    study.fail("0")
    assert study.work.failures == [(DIED, True, True)]


def test_a_worker_that_was_not_ready_counts_for_no_pack() -> None:
    """On the only node, too: the pack may be trained as soon as the cause is gone."""
    study = Study(1, FakeCluster({"a": 1}, is_local=True))
    for i in range(trials_module.MAX_FAILED_STARTS):
        study.store.nodes[study.suggest(str(i))["pack"]] = "a"
        study.fail(str(i))
    assert {failure[2] for failure in study.work.failures} == {False}
    assert isinstance(study.trials.error, Incomplete)


def test_a_lost_node_counts_for_nothing() -> None:
    study = Study(1)
    study.start("0", "a")
    study.fail("0")
    study.turn()
    study.cluster.dead.add("a")
    study.turn()
    assert study.work.failures == [(LOST, True, False)]
    assert study.said == []
    assert "avoided_nodes" not in study.suggest("1")


def test_one_bad_node_uses_up_no_pack() -> None:
    study = Study(3, FakeCluster({"a": 3, "b": 3}))
    for i in range(3):
        study.start(str(i), "a")
    for i in range(3):
        study.result(str(i), failure="DataError: no data", of_machine=True, unfit=True)
        study.fail(str(i))
    assert study.work.failures == [("DataError: no data", True, False)] * 3
    assert study.said == ["warning: node node-a is avoided from now on: DataError: no data"]
    assert study.suggest("3")["avoided_nodes"] == "a"
    # With no good node left it counts: somebody must look after this.
    for trial in "45":
        study.start(trial, "b")
        study.result(trial, failure="DataError: no data", of_machine=True, unfit=True)
        study.fail(trial)
    assert study.work.failures[-1] == ("DataError: no data", True, True)


def test_workers_that_cannot_start_end_the_study() -> None:
    study = Study(20, FakeCluster({"a": 1, "b": 1}))
    for i in range(trials_module.MAX_FAILED_STARTS):
        assert study.suggest(str(i)) is not None
        assert study.trials.error is None
        study.fail(str(i))
    assert isinstance(study.trials.error, Incomplete)
    assert "5 attempts in a row to start a worker failed" in str(study.trials.error)
    assert study.turn()
    assert {failure[2] for failure in study.work.failures} == {False}


def test_workers_that_cannot_start_beside_others_do_not() -> None:
    study = Study(20, FakeCluster({"a": 8}))
    study.start("lives")
    for i in range(trials_module.MAX_FAILED_STARTS + 1):
        study.suggest(str(i))
        study.fail(str(i))
    assert study.trials.error is None


def test_workers_that_cannot_start_do_not_end_a_study_whose_worker_is_about_to_go_on() -> None:
    study = Study(20, FakeCluster({"a": 8}))
    study.start("lives")
    for i in range(trials_module.MAX_FAILED_STARTS):
        study.suggest(str(i))
        study.fail(str(i))
    study.complete("lives")  # its worker takes over the next trial in a moment
    study.suggest("more")
    study.fail("more")
    assert study.trials.error is None


def test_an_exception_of_the_study_is_kept_and_ends_it() -> None:
    study = Study(2)
    study.start("0")
    broken = LedgerError("the disk is full")

    def record(events: Any) -> None:
        raise broken

    study.work.record = record  # type: ignore[method-assign]
    study.result("0", Finished(pack="p", replicate="r", state="done"))
    study.result("0", Finished(pack="p", replicate="q", state="done"))
    assert study.trials.error is broken
    assert study.suggest("1") == "FINISHED"


def test_an_interruption_passes() -> None:
    study = Study(2)
    study.start("0")

    def record(events: Any) -> None:
        raise KeyboardInterrupt

    study.work.record = record  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        study.result("0", Finished(pack="p", replicate="r", state="done"))


def test_where_a_trial_may_run() -> None:
    needs = {"": Needs(cpus=2), "late": Needs(cpus=1, gpus=0.5, memory=1e9, accelerator_type="L4")}
    assert placement({"method": "mul"}, needs).bundles == [{"CPU": 2.0}]
    expected = {"CPU": 1.0, "GPU": 0.5, "memory": 1e9, "accelerator_type:L4": 0.001}
    assert placement({"method": "late"}, needs).bundles == [expected]
    avoiding = placement({"method": "mul", "avoided_nodes": "a,b"}, needs)
    assert avoiding != placement({"method": "mul"}, needs)
    assert avoiding == placement({"method": "mul", "avoided_nodes": "a,b"}, needs)
    assert "!in(a,b)" in repr(avoiding)
