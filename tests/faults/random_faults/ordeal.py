"""One study with its faults; the same command is repeated until it is finished."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil

from tests.faults.random_faults.plan import Fault
from tests.faults.random_faults.processes import Patience, below, command_line
from tests.faults.random_faults.scene import MODELS, Command, Scene
from tests.faults.random_faults.victims import find, hit
from tests.faults.random_faults.watch import Watch, trace

STARTS = 30  # of the command at most
VICTIM_SECONDS = 30.0  # how long to look for a victim
ENDING_SECONDS = 120.0  # within which a stopped command must end
GRACE_SECONDS = 45.0  # within which everything that a command has started must end
SERVERS = ("database", "mlflow", "node")  # without which a command cannot start


@dataclass
class Blow:
    """A fault that has hit."""

    fault: Fault
    phase: str
    at: float  # seconds since 1970
    command: Command
    hit: frozenset[int]  # processes
    note: str = ""
    code: int | None = None  # of the command, and its last sentence
    said: str = ""
    went_on: float | None = None  # seconds until something was trained again, or the study ended


@dataclass
class Ordeal:
    """Puts faults on a study and finishes it.

    ``blows``: the faults that have hit. ``left``: those that the study was too short for.
    ``problems``: what the commands did wrong. ``tell``: called with a line at each fault.
    """

    scene: Scene
    faults: Sequence[Fault]
    patience: Patience
    tell: Callable[[str], None] = lambda _: None
    blows: list[Blow] = field(default_factory=list)
    left: list[Fault] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._watch = Watch(self.scene.place)
        self._command: Command | None = None
        self._killed: set[int] = set()  # commands that were killed or terminated
        self._judged: set[int] = set()
        self._is_finished = False

    def run(self) -> None:
        self.left = list(self.faults)
        try:
            while self.left and not self._is_finished:
                self._one_fault()
            self._finish()
        finally:
            self._watch.close()
            self._complete_blows()

    def _one_fault(self) -> None:
        command = self._running()
        fault = self.left[0]
        found = self._victims(fault, command) if self._await(fault, command) else []
        if found:
            self.left.pop(0)
            self._inflict(fault, command, found)
        self._note_end()

    def _running(self) -> Command:
        """The command; started again if it has ended."""
        if self._command is None:
            if len(self.scene.commands) >= STARTS:
                raise AssertionError(f"the study is not finished after {STARTS} commands")
            self._command = self.scene.start()
        return self._command

    # ------------------------------------------------------------ the moment and the fault

    def _await(self, fault: Fault, command: Command) -> bool:
        """Wait for the fault's moment; False if the command ends before."""
        if fault.moment == "start":
            delay = command.began + fault.delay - time.time()
        else:
            wanted = MODELS
            if fault.moment == "result":
                wanted = min(self._watch.results() + fault.results, MODELS - 1)
            self.patience.until(lambda: command.code is not None or self._watch.results() >= wanted)
            delay = fault.delay
        self.patience.until(lambda: command.code is not None, max(0.0, delay))
        return command.code is None

    def _victims(self, fault: Fault, command: Command) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        self._watch.close()  # its connection must not be the victim

        def there() -> bool:
            found[:] = [] if command.code is not None else find(fault, self.scene, command)
            return bool(found) or command.code is not None

        self.patience.until(there, VICTIM_SECONDS)
        return found

    def _inflict(self, fault: Fault, command: Command, found: list[psutil.Process]) -> None:
        self.scene.note_processes(command)
        whole = {p.pid for p in found}
        if fault.victim == "driver":
            whole |= {p.pid for p in below(command.pid)}
        phase = self._watch.phase(command)
        blow = Blow(fault, phase, time.time(), command, frozenset(whole))
        self.blows.append(blow)
        self.tell(f"{fault.victim} {fault.signal} while {phase}")
        if fault.victim != "driver":
            hit(fault, self.scene, found, self.patience)
        elif fault.signal == "SIGSTOP":
            self.scene.continued |= whole
            self._stop_driver(blow)
        else:
            self._killed.add(command.pid)
            command.process.send_signal(signal.Signals[fault.signal])
            self._await_end(command)

    def _await_any_end(self, command: Command) -> None:
        self.patience.until(lambda: command.code is not None)

    def _await_end(self, command: Command) -> None:
        """Wait for the end of a command that cannot go on for long."""
        if not self.patience.until(lambda: command.code is not None, ENDING_SECONDS):
            self.problems.append(f"a command still ran {ENDING_SECONDS:.0f} s after it had to end")
            command.process.kill()
            command.process.wait()

    # ------------------------------------------------------------ a driver that is suspended

    def _stop_driver(self, blow: Blow) -> None:
        """Stop the driver for longer than its lease; meanwhile its user starts another one."""
        first, chance = blow.command, random.Random(blow.fault.seed)
        first.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        shortest = self.scene.lease + chance.uniform(0.5, 4.0)
        # Mostly the other driver has taken over by the time that the first one continues.
        longest = 90.0 if chance.random() < 0.75 else shortest
        try:
            self.patience.sleep(chance.uniform(0.0, self.scene.lease))
            second, refused = self._take_over(begun + longest)
            self.patience.sleep(max(0.0, begun + shortest - time.monotonic()))
            self.patience.sleep(chance.uniform(0.0, 3.0))
        finally:
            first.process.send_signal(signal.SIGCONT)
        blow.note = f"the second driver was refused {refused} times" if refused else ""
        self._settle(first, second)

    def _take_over(self, end: float) -> tuple[Command, int]:
        """Start another driver until it is not refused; how often it was."""
        refused = 0
        while True:
            second = self.scene.start()
            self._await_hold(second, max(1.0, end - time.monotonic()))
            if second.code != 2 or time.monotonic() > end:
                return second, refused
            self._judge(second)
            refused += 1
            self.patience.sleep(1.0)

    def _await_hold(self, command: Command, seconds: float) -> None:
        """Wait until a command has the study's lease, or has ended."""

        def holds() -> bool:
            return command.code is not None or self._watch.holder() == command.pid

        self.patience.until(holds, seconds)

    def _settle(self, first: Command, second: Command) -> None:
        """Wait until one of two drivers has ended; the other one goes on."""
        self.patience.until(
            lambda: first.code is not None or second.code is not None, ENDING_SECONDS
        )
        if second.code == 0 or self._watch.holder() != first.pid:
            self._await_end(first)
        elif first.code is None:
            self._await_end(second)
        for command in (first, second):
            if command.code is not None:
                self._judge(command)
        running = [command for command in (second, first) if command.code is None]
        self._command = running[0] if running else None
        self._is_finished = self._is_finished or 0 in (first.code, second.code)

    # ------------------------------------------------------------ ends of commands

    def _note_end(self) -> None:
        command = self._command
        if command is not None and command.code is not None:
            self._judge(command)
            self._is_finished = command.code == 0
            self._command = None

    def _judge(self, command: Command) -> None:
        """Note what is wrong with how a command ended."""
        if command.pid in self._judged:
            return
        self._judged.add(command.pid)
        code, text = command.code, command.text
        allowed = {0, 3}
        if command.pid in self._killed:
            allowed |= {-signal.SIGKILL, -signal.SIGTERM}
        server_was_away = any(
            blow.fault.victim in SERVERS and blow.at < (command.ended or 0.0) for blow in self.blows
        )
        # The last one is Ray's, on a machine that has too much to do.
        refusals = ("is being run by process", "node timed out during startup")
        if server_was_away or any(refusal in text for refusal in refusals):
            allowed.add(2)
        if code not in allowed:
            self.problems.append(f"a command ended with {code}: {command.said}")
        if "Traceback" in text:
            self.problems.append(f"a command printed a traceback, the last line is {command.said}")

    def _finish(self) -> None:
        while not self._is_finished:
            self._await_any_end(self._running())
            self._note_end()
        last = self.scene.commands[-1]
        if "not up to date" in last.text:
            sync = self.scene.start("sync", "fragile")
            self._await_end(sync)
            self._judge(sync)
        if not self.patience.until(lambda: not self.scene.left_behind(), GRACE_SECONDS):
            lines = sorted(command_line(p)[:80] for p in self.scene.left_behind())
            self.problems.append(f"processes are left behind: {'; '.join(lines)}")

    def _complete_blows(self) -> None:
        """Note how each command ended, and when something was trained again or it ended well."""
        lines = list(trace(self.scene.folder))
        ends = [c.ended for c in self.scene.commands if c.code == 0 and c.ended is not None]
        for blow in self.blows:
            later = [e.time for e in lines if e.time > blow.at and e.process not in blow.hit]
            later += [end for end in ends if end > blow.at]
            blow.went_on = min(later) - blow.at if later else None
            blow.code = blow.command.code
            if blow.code is not None and blow.code >= 0:  # a killed command has no last words
                blow.said = blow.command.said
