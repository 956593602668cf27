"""One study with its Ray cluster, MLflow server and database, and the commands that run it."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests import postgres
from tests.faults.conftest import Place
from tests.faults.nodes import ROOT
from tests.faults.random_faults.plan import Runner
from tests.faults.random_faults.processes import TAG, below, kill, lives, tagged
from tests.faults.test_cluster import Cluster
from tests.mlflow_bench import Server, copy_database

# Searches with `parallel: 1` have the same configurations however often they are interrupted.
STUDY = """
study: fragile
task: {name: digits, train_rows: 200}
seeds: 2
training: {epochs: 20, batch_size: 16, learning_rate: 0.003, stack: always}
resources: {max_models: 4}
parts:
  curve:
    x: beta
    methods:
      mul: {beta: {grid: [0, 0.3, 0.6, 1]}}
      mulmix: {beta: {grid: [0, 1]}}
  depth:
    x: depth
    methods: {add: {depth: {grid: [0, 1]}}}
  tuned:
    search: {configurations: 6, batch: 2, parallel: 1, sampler: tpe}
    shared: {learning_rate: {low: 0.001, high: 0.1, log: true}}
    methods: {mul: {beta: {low: 0, high: 1}}}
  halved:
    search: {configurations: 6, batch: 2, parallel: 1, sampler: tpe}
    shared:
      halving: {eta: 2, min_epochs: 5}
      learning_rate: {low: 0.001, high: 0.1, log: true}
    methods: {mulmix: {beta: {low: 0, high: 1}}}
"""
MODELS = 2 * (4 + 2 + 2 + 6 + 6)

# Ray then takes a node that does not answer for some 10 seconds for lost.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "5",
}


@dataclass
class Command:
    """One run of the command."""

    process: subprocess.Popen[str]
    output: Path
    began: float  # seconds since 1970
    ended: float | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        code = self.process.poll()
        if code is not None and self.ended is None:
            self.ended = time.time()
        return code

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def said(self) -> str:
        """The sentence it ended with."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        words = [line for line in lines if line.startswith(("modmix: ", "study fragile is "))]
        last = (words or lines or [""])[-1]
        return re.sub(r"^modmix: ", "", last)


class Scene:
    """One study and everything around it; a context manager.

    Args:
        folder: of the study; empty.
        runner: what trains it.
        lease: seconds.
        ray_folder: of the files of clusters that drivers start; with a short name.
        server: whether there is an MLflow server; else MLflow's database is in the folder.
        database: "sqlite" or "postgresql".
        empty_mlflow: a database of MLflow without runs.
        chance: draws how often checkpoints are written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        runner: Runner,
        lease: float,
        ray_folder: Path,
        server: bool,
        database: str,
        empty_mlflow: Path,
        chance: random.Random,
    ) -> None:
        self.folder, self.runner, self.lease, self.chance = folder, runner, lease, chance
        self.tag = uuid.uuid4().hex
        self.place = Place(folder)
        self.commands: list[Command] = []
        self.seen: set[psutil.Process] = set()  # descendants of commands
        self.continued: set[int] = set()  # processes that were stopped and then continued
        self.cluster: Cluster | None = None
        self.server: Server | None = None
        self.database: postgres.Server | None = None
        self._wants = (server, database)
        self._empty_mlflow = empty_mlflow
        self._stack = ExitStack()
        self.place.environment |= {
            TAG: self.tag,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
            "MODMIX_TEST_LEASE": str(lease),
            "RAY_TMPDIR": str(ray_folder),
        }

    def __enter__(self) -> Scene:
        with ExitStack() as stack:
            stack.callback(self._kill_all)
            self._prepare(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _prepare(self, stack: ExitStack) -> None:
        server, database = self._wants
        self.folder.mkdir(parents=True)
        self.place.file.write_text(STUDY)
        self.place.home.make()
        copy_database(self._empty_mlflow, self.folder / "server.db")
        copy_database(self._empty_mlflow, self.place.home.path / "mlflow.db")
        if database == "postgresql":
            self.database = stack.enter_context(postgres.controlled())
            self.place.environment["MODMIX_LEDGER"] = self.database.url
        if server:
            self.server = Server(self.folder)
            stack.callback(self.server.stop)
            self.server.start()
            self.place.environment["MLFLOW_TRACKING_URI"] = self.server.uri
        if self.runner == "cluster":
            nodes = {TAG: self.tag, "MODMIX_TRACE": str(self.folder / "trace"), **HEALTH}
            nodes["PYTHONPATH"] = self.place.environment["PYTHONPATH"]
            self.cluster = Cluster(self.folder, nodes)
            stack.callback(self.cluster.stop)
            self.cluster.add_node()
            self.cluster.add_node()
            self.place.environment |= self.cluster.environment

    @property
    def tracking_uri(self) -> str:
        return self.place.home.tracking_uri if self.server is None else self.server.uri

    def start(self, *arguments: str) -> Command:
        """Start a command, by default the one that runs the study."""
        how = {"local": ["--local"], "ray": ["--workers", "2"]}.get(self.runner, [])
        if self.cluster is not None:
            how = ["--address", self.cluster.address]
        arguments = arguments or ("run", str(self.place.file), "--quiet", *how)
        # With a checkpoint after every evaluation, or practically none.
        self.place.environment["MODMIX_CHECKPOINT_SECONDS"] = self.chance.choice(["0", "30"])
        output = self.folder / f"output-{len(self.commands)}.txt"
        with output.open("w") as file:
            process = self.place.start(*arguments, module="tests.faults.short_lease", output=file)
        self.commands.append(Command(process, output, time.time()))
        return self.commands[-1]

    def note_processes(self, command: Command) -> None:
        """Remember what a command has started, to see later that nothing of it is left."""
        self.seen |= set(below(command.pid))

    def left_behind(self) -> list[psutil.Process]:
        """Processes of ended commands; those of servers and nodes are not."""
        servers = [] if self.server is None else [self.server.process]
        keepers = [*servers, *(self.cluster.nodes if self.cluster is not None else ())]
        kept = {p.pid for keeper in keepers if keeper for p in below(keeper.pid)}
        kept |= {keeper.pid for keeper in keepers if keeper}
        return [p for p in {*tagged(self.tag), *self.seen} if p.pid not in kept and lives(p)]

    def _kill_all(self) -> None:
        for command in self.commands:
            self.note_processes(command)
            if command.code is None:
                command.process.send_signal(signal.SIGKILL)
                command.process.wait()
        kill({*tagged(self.tag), *self.seen})

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
