"""Studies of invented packs on clusters of several nodes, some of which are bad or lost."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from modmix.execution.trials import WITHDRAWN  # a module that does not import Ray
from tests.faults.nodes import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]

# Each scenario is a program of its own: a process has one connection to one cluster.
BEGINNING = """
import json, sys
from tests.fakework import FakeWork
from tests.faults.nodes import Nodes
from modmix.execution.tune_runner import TuneRunner

nodes, said = Nodes(), []

def train(work, **how):
    runner = TuneRunner(address=nodes.address, log=said.append, **how)
    runner.start()
    runner.run(work)
    runner.close()

def tell(work, **more):
    done = len(work.finished_models)
    print(json.dumps({"done": done, "failures": work.failures, "said": said, **more}))
    nodes.stop()
"""


def scenario(program: str) -> dict[str, Any]:
    told = subprocess.run(
        [sys.executable, "-c", BEGINNING + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(),
        cwd=ROOT,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    # Ray may print what workers logged after the result.
    results = [line for line in told.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(results[-1])
    return found


def test_one_bad_node_among_three(tmp_path: Path) -> None:
    """Its workers die. The good ones wait until the bad one is known."""
    found = scenario(f"""
        import pathlib
        from modmix.execution import trials
        trials.SILENT_SECONDS = 2.0

        def changed(work):
            if said:
                pathlib.Path({str(tmp_path / "gate")!r}).touch()

        for does in ("waits", "dies", "waits"):
            nodes.add(does=does, gate={str(tmp_path / "gate")!r})
        work = FakeWork(12, changed)
        train(work)
        tell(work)
    """)
    assert found["done"] == 12
    assert len(found["failures"]) == 2
    assert {counted for _, _, counted in found["failures"]} == {True}
    assert len(found["said"]) == 1
    assert "is avoided from now on: " in found["said"][0]


def test_the_good_node_is_lost_while_packs_wait_for_it(tmp_path: Path) -> None:
    """The bad node, whose fault has been mended, gets packs that were to avoid it."""
    found = scenario(f"""
        import pathlib
        from modmix.execution import trials, tune_scheduler
        trials.SILENT_SECONDS = tune_scheduler.REPLACING_SECONDS = 2.0

        mended = pathlib.Path({str(tmp_path / "mended")!r})
        nodes.add(does="dies", gate=str(mended))
        good = [nodes.add(does="waits", gate={str(tmp_path / "never")!r})]

        def changed(work):
            if said and good:
                mended.touch()
                nodes.kill(good.pop())

        work = FakeWork(6, changed)
        train(work)
        tell(work)
    """)
    assert found["done"] == 6
    assert "is avoided from now on: " in found["said"][0]
    assert "warning: only avoided nodes are left: they are tried again" in found["said"]
    assert [WITHDRAWN, True, False] in found["failures"]


def test_a_node_is_killed(tmp_path: Path) -> None:
    """In the middle of a pack. The other node waits until then, so it cannot take all packs."""
    found = scenario(f"""
        import pathlib

        never = pathlib.Path({str(tmp_path / "never")!r})
        killed = pathlib.Path({str(tmp_path / "killed")!r})
        nodes.add(does="waits", gate=str(killed))
        lost = [nodes.add(does="waits", gate=str(never))]

        def changed(work):
            if lost and never.with_name("never-reached").exists():
                nodes.kill(lost.pop())
                killed.touch()

        work = FakeWork(8, changed)
        train(work)
        tell(work, lost=not lost)
    """)
    assert found["lost"]
    assert found["done"] == 8
    assert len(found["failures"]) >= 1
    assert {tuple(failure[1:]) for failure in found["failures"]} == {(True, False)}
    assert found["said"] == []


def test_a_cluster_without_nodes_is_waited_for_and_grows(tmp_path: Path) -> None:
    """The worker of the first node waits until that of the second one has trained a pack."""
    found = scenario(f"""
        import pathlib

        gate = pathlib.Path({str(tmp_path / "gate")!r})
        nodes.add(0)
        ticks, joined = [], []

        def changed(work):
            ticks.append(None)
            if len(ticks) == 5:
                nodes.add(does="waits", gate=str(gate))
            if not joined and gate.with_name("gate-reached").exists():
                joined.append(nodes.add())
            if work.finished_models:
                gate.touch()

        work = FakeWork(6, changed)
        train(work)
        tell(work, joined=len(joined))
    """)
    assert (found["done"], found["failures"], found["joined"]) == (6, [], 1)
    assert len(found["said"]) == 1
    assert "a pack asks for 1 CPU, and no node of the Ray cluster is that large" in found["said"][0]


def test_workers_that_cannot_start_end_the_study_with_a_sentence() -> None:
    found = scenario("""
        from modmix.base.errors import Incomplete

        nodes.add(2, does="alien")
        work, told = FakeWork(3), ""
        try:
            train(work)
        except Incomplete as error:
            told = str(error)
        tell(work, told=told)
    """)
    assert found["done"] == 0
    assert found["told"].startswith("5 attempts in a row to start a worker failed (")
    assert "tune_trial" in found["told"]
    assert found["told"].endswith("fix this and run the same command again")
    assert {counted for _, _, counted in found["failures"]} == {False}


SECOND = """
import json, sys
from tests.fakework import FakeWork
from modmix.execution.tune_runner import TuneRunner
work = FakeWork(3)
runner = TuneRunner(address=sys.argv[1])
runner.start()
runner.run(work)
runner.close()
print(json.dumps(len(work.finished_models)))
"""


def test_two_studies_share_a_cluster() -> None:
    """The second one comes when the first one has all of the cluster, which has always more."""
    found = scenario(f"""
        import itertools, subprocess
        from tests.fakework import pack
        nodes.add(2, does="slow")
        second, numbers = [], itertools.count(8)

        def changed(work):
            if work.finished_models and not second:
                command = [sys.executable, "-c", {SECOND!r}, nodes.address]
                second.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            if len(work.waiting) < 4 and not (second and second[0].poll() is not None):
                work.waiting.insert(0, pack(next(numbers)))

        work = FakeWork(8, changed)
        train(work)
        told = json.loads(second[0].communicate(timeout=60)[0].splitlines()[-1])
        tell(work, second=told)
    """)
    assert found["second"] == 3
    assert found["done"] >= 8
    assert found["failures"] == []


def test_a_program_that_runs_on_ray_itself() -> None:
    """Its cluster is used, all of it, and left as it was."""
    found = scenario("""
        import ray
        nodes.add(2)
        ray.init(address=nodes.address)
        work = FakeWork(5)
        runner = TuneRunner()
        runner.start()
        slots = runner.slots
        runner.run(work)
        runner.close()
        tell(work, slots=slots, still=ray.is_initialized())
    """)
    assert (found["done"], found["slots"], found["still"]) == (5, 2, True)
