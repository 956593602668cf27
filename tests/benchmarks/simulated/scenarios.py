"""Scenarios on simulated clusters; each is a process, because a process has one cluster.

    python -m tests.benchmarks.simulated.scenarios NAME FOLDER

Writes FOLDER/told.json, whose numbers `tests.benchmarks.cluster` judges and shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modmix.base.home import Home
from modmix.ledger.ledger import Ledger
from tests.benchmarks.harness import PYTHON, ROOT, BenchmarkError, Options, say
from tests.benchmarks.simulated import trace
from tests.benchmarks.simulated.invented import bowl, grid_text, search_text
from tests.benchmarks.simulated.nodes import Nodes, ScalingCluster
from tests.fakecluster import simulate

CAPPED, ALONE, AT_ONCE = "batch: 1", "batch: 1, parallel: 1", "batch: 1, parallel: 64"
STUDY_SECONDS = 900.0  # a minute on an idle machine
QUICK = Options.from_environment().quick


@dataclass(frozen=True)
class Driven:
    """A study whose driver has been started."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    begun: float

    def wait(self) -> dict[str, Any]:
        """What the driver told, and what the ledger holds; BenchmarkError if it failed."""
        code = self.process.wait(STUDY_SECONDS)
        if code != 0:
            log = (self.folder / "log").read_text()
            raise BenchmarkError(f"the driver of {self.name} ended with {code}:\n{log[-3000:]}")
        told: dict[str, Any] = json.loads((self.folder / "told.json").read_text())
        ledger = Ledger(Home(self.folder / "runs").ledger_url)
        records = ledger.replicates(self.name)
        ledger.close()
        return {
            **told,
            "seconds": told["ended"] - self.begun,
            "states": [record.state for record in records],
            "keys": len({record.key for record in records}),
            "best": min(record.metrics["val/error"] for record in records),
        }

    @property
    def runs(self) -> bool:
        return self.process.poll() is None


class Scene:
    """The files of a scenario, and its studies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trace = Path(os.environ["MODMIX_BENCH_TRACE"])
        self._driven: list[Driven] = []

    def start(self, name: str, text: str, address: str) -> Driven:
        """Start a study's driver in a process of its own, which trains nothing itself."""
        folder = self.folder / name
        folder.mkdir()
        study = folder / f"{name}.yaml"
        study.write_text(text)
        words = [PYTHON, "-m", "tests.benchmarks.simulated.driver"]
        words += [str(study), address, str(folder / "told.json")]
        paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}", "MODMIX_HOME": str(folder / "runs")}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                words, env={**os.environ, **paths}, cwd=ROOT, stdout=log, stderr=log
            )
        self._driven.append(Driven(name, folder, process, time.time()))
        return self._driven[-1]

    def ended(self) -> int:
        """How many packs were trained to their end so far."""
        return sum(one.what == "ends" for one in trace.read(self.trace))

    def until(self, holds: Callable[[], bool], driven: Driven) -> None:
        """Wait for something to come true while a study runs."""
        while not holds():
            if not driven.runs:
                driven.wait()
                raise BenchmarkError(f"{driven.name} has ended before its nodes changed")
            time.sleep(0.1)

    def stays(self, lost: dict[str, float] | None = None) -> list[trace.Stay]:
        return trace.stays(trace.read(self.trace), lost or {})

    def stop(self) -> None:
        for driven in self._driven:
            if driven.runs:
                driven.process.kill()
                driven.process.wait()


@contextmanager
def on_nodes(folder: Path, *, seconds: float) -> Iterator[tuple[Scene, Nodes]]:
    scene, nodes = Scene(folder), Nodes(seconds=seconds)
    try:
        yield scene, nodes
    finally:
        scene.stop()
        nodes.stop()


def large(folder: Path) -> dict[str, Any]:
    """A search on 64 slots, the same one after another, and many trials on 16 invented GPUs."""
    with on_nodes(folder, seconds=0.1) as (scene, nodes):
        begun = time.time()
        nodes.add(8, 8, gpus=2)
        say(f"cluster: 8 nodes of 8 processors in {time.time() - begun:.0f} s")
        found = {}
        for name, how in (("capped", CAPPED), ("alone", ALONE)):
            found[name] = scene.start(name, search_text(name, 60, how), nodes.address).wait()
        text = grid_text("trials", 100 if QUICK else 1000, resources="gpus: 1")
        found["trials"] = scene.start("trials", text, nodes.address).wait()
        stays = [stay for stay in scene.stays() if stay.study == "trials"]
        most = max(trace.held(stays, stay.begins) for stay in stays)
        return {**found, "workers": most, "ended": dict(trace.ended(stays))}


def regret(folder: Path) -> dict[str, Any]:
    """The same search on 64 slots that take turns at random in this process, for several seeds."""
    found: dict[str, Any] = {}
    for seed in range(2 if QUICK else 5):
        for name, how in (("alone", ALONE), ("capped", CAPPED), ("all at once", AT_ONCE)):
            text = search_text("regret", 60, how, seed=seed)
            place = folder / f"{name}-{seed}"
            outcome = simulate(text, place, bowl, slots=64, seed=seed)
            told = found.setdefault(name, {"best": [], "in_flight": []})
            told["best"].append(min(outcome.values))
            told["in_flight"].append(max(outcome.in_flight))
    return found


def together(folder: Path) -> dict[str, Any]:
    """Two studies, the second of which comes while the first has all of the cluster."""
    with on_nodes(folder, seconds=1.0) as (scene, nodes):
        nodes.add(2, 4)
        first = scene.start("first", grid_text("first", 200), nodes.address)
        scene.until(lambda: scene.ended() >= 1, first)
        second = scene.start("second", grid_text("second", 80), nodes.address)
        found = {driven.name: driven.wait() for driven in (first, second)}
        stays = scene.stays()
        return {
            **found,
            "times": _seconds(stays),
            "held": {
                name: [trace.held(stays, at, name) for at in _seconds(stays)] for name in found
            },
            "last_begins": {
                name: max(stay.begins for stay in stays if stay.study == name) for name in found
            },
        }


def scaling(folder: Path) -> dict[str, Any]:
    """A study on a cluster without nodes, which come and go."""
    import ray

    scene = Scene(folder)
    cluster = ScalingCluster(folder, cpus=2, most=4, seconds=1.0)
    counts = list[tuple[float, int]]()
    try:
        cluster.wait_until_up()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        driven = scene.start("scaling", grid_text("scaling", 60), cluster.address)
        waited = time.time() + STUDY_SECONDS
        while (driven.runs or counts[-1][1]) and time.time() < waited:
            cluster.check()
            nodes = sum(node["Alive"] for node in ray.nodes()) - 1
            counts.append((time.time(), nodes))
            time.sleep(0.5)
        found = driven.wait()
        stays = scene.stays()
        held = [(at, nodes, trace.held(stays, at)) for at, nodes in counts]
        last = max(stay.ends for stay in stays)
        return {"scaling": found, "counts": held, "begun": driven.begun, "ended": last}
    finally:
        scene.stop()
        ray.shutdown()
        cluster.stop()


def changing(folder: Path) -> dict[str, Any]:
    """Nodes join a study, one of them is lost with its packs, and another one joins."""
    with on_nodes(folder, seconds=1.5) as (scene, nodes):
        (first,) = nodes.add(1, 2)
        driven = scene.start("changing", grid_text("changing", 100), nodes.address)
        marks = [(driven.begun, f"begins on {first}")]

        def join(count: int) -> list[str]:
            names = nodes.add(count, 2)
            marks.append((time.time(), f"{' and '.join(names)} joined"))
            return names

        scene.until(lambda: scene.ended() >= 6, driven)
        joined = join(2)
        scene.until(lambda: {stay.node for stay in scene.stays()} >= set(joined), driven)
        packs = scene.ended() + 10
        scene.until(lambda: scene.ended() >= packs and bool(_busiest(scene, joined)), driven)
        busy = _busiest(scene, joined) or joined[0]
        nodes.kill(busy)
        marks.append((time.time(), f"{busy} was killed"))
        packs = scene.ended() + 10
        scene.until(lambda: scene.ended() >= packs, driven)
        join(1)
        found = driven.wait()
        stays = scene.stays(nodes.lost)
        return {
            "changing": found,
            "marks": marks,
            "times": _seconds(stays),
            "held": [trace.held(stays, at) for at in _seconds(stays)],
            "lost": sum(stay.what == "lost" for stay in stays),
            "again": trace.again(stays),
            "ended": dict(trace.ended(stays)),
            "by_node": {s.node: sum(s.node == t.node for t in stays) for s in stays},
        }


def bad(folder: Path) -> dict[str, Any]:
    """One bad node among four, for each way to be bad."""
    found: dict[str, Any] = {}
    for does in ("no data", "breaks"):
        with on_nodes(folder, seconds=0.5) as (scene, nodes):
            name = f"bad-{does.replace(' ', '-')}"
            (worst,) = nodes.add(1, 2, does=does)
            nodes.add(3, 2)
            told = scene.start(name, grid_text(name, 60), nodes.address).wait()
            stays = [stay for stay in scene.stays(nodes.lost) if stay.study == name]
            found[does] = {
                **told,
                "id": nodes.id_of(worst),
                "failed": [stay.ends for stay in stays if stay.node == worst],
                "begun": [stay.begins for stay in stays if stay.node == worst],
                "again": trace.again(stays),
                "ended": dict(trace.ended(stays)),
            }
    return found


def _busiest(scene: Scene, names: list[str]) -> str:
    """The node among these with the most packs right now; "" if none has any."""
    notes = trace.read(scene.trace)
    packs = {
        name: sum({"begins": 1}.get(one.what, -1) for one in notes if one.node == name)
        for name in names
    }
    most = max(packs, key=packs.__getitem__)
    return most if packs[most] else ""


def _seconds(stays: list[trace.Stay]) -> list[float]:
    """Every second from the first pack's beginning to the last one's end."""
    first, last = stays[0].begins, max(stay.ends for stay in stays)
    return [first + i for i in range(int(last - first) + 1)]


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    scenario.__name__: scenario for scenario in (large, regret, together, scaling, changing, bad)
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    told = SCENARIOS[name](folder)
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
