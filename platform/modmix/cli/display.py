"""Progress of a running study: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modmix.analysis.labels import higher_is_better, metric_label, metric_text
from modmix.base import ties

if TYPE_CHECKING:
    from rich.console import RenderableType

    from modmix.base.messages import Progress as Evaluation
    from modmix.execution.run import StudyRun
    from modmix.search.run_state import Status

LINE_SECONDS = 10.0
_MAX_PACKS = 6  # shown individually
_MAX_METHODS = 12  # in the table; of several tasks, at least the best of each
_MAX_METHODS_IN_LINE = 6
_MAX_BAR_WIDTH = 40


class Display:
    """Shows the progress of one study; a context manager around the run."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live: Live | None = None
        self._last = 0.0
        self._speed = Speed()
        self._shown = ""

    def __enter__(self) -> Display:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, run: StudyRun) -> None:
        """Update the display, at most four times a second."""
        if self._quiet:
            return
        now = time.monotonic()
        if now - self._last < (0.25 if self._live is not None else LINE_SECONDS):
            return
        self._last = now
        status, objective = run.status(), run.plan.spec.objective[0]
        self._speed.update(now, status)
        if self._live is not None:
            self._live.update(self.table(run.plan.name, objective, status))
        else:
            line = self.line(objective, status)
            if line != self._shown:
                self._console.print(line, highlight=False)
                self._shown = line

    def line(self, objective: str, status: Status) -> str:
        """Progress and the best configuration of each method, in one line."""
        found = _leading(_sorted(status, objective), _MAX_METHODS_IN_LINE)
        best = ", ".join(
            f"{method} {metric_text(value, objective)}" for method, (value, _) in found
        )
        if len(found) < len(status.best):
            best += ", …"
        text = ", ".join(self._counts(status))
        return text + (f"; best {metric_label(objective)} so far: {best}" if best else "")

    def _counts(self, status: Status) -> list[str]:
        configurations = status.configurations
        ended = sum(configurations[s] for s in ("done", "pruned", "failed"))
        counts = [f"{ended}/{configurations['total']} configurations"]
        counts.append(f"{_ended(status.replicates)}/{status.replicates['total']} models")
        if rate := self._speed.models_per_minute:
            counts.append(f"{rate:.0f} models/min" if rate >= 10 else f"{rate:.1f} models/min")
        if (left := self._speed.left(status)) is not None:
            counts.append(f"about {_duration(left)} left")
        return counts

    def table(self, name: str, objective: str, status: Status) -> RenderableType:
        """The same as a table, with the packs in training."""
        table = Table(title=f"study {name}", title_justify="left", expand=False)
        table.add_column("method", overflow="fold")
        table.add_column(f"best {metric_label(objective)} so far", overflow="fold")
        table.add_column("with", overflow="fold")
        found = _leading(_sorted(status, objective), _MAX_METHODS)
        for method, (value, params) in found:
            table.add_row(method, metric_text(value, objective), _short(params))
        if len(found) < len(status.best):
            table.add_row(f"and {len(status.best) - len(found)} more", "", "", style="dim")
        total = max(1, status.replicates["total"])
        width = max(1, min(_MAX_BAR_WIDTH, self._console.width - 1))
        bar = Table.grid()  # a bare ProgressBar does not end its line
        bar.add_row(ProgressBar(total=total, completed=_ended(status.replicates), width=width))
        rows: list[RenderableType] = [table, bar, Text(", ".join(self._counts(status)))]
        running = [progress for progress in status.running.values() if progress is not None]
        for progress in running[:_MAX_PACKS]:
            epoch = f"epoch {progress.epoch:g}/{progress.epochs}"
            rows.append(Text(f"  pack: {epoch}, {progress.active} models", style="dim"))
        if len(running) > _MAX_PACKS:
            rows.append(Text(f"  and {len(running) - _MAX_PACKS} more packs", style="dim"))
        return Group(*rows)


class Speed:
    """Training speed and remaining time of a study.

    Counts the progress of packs in training, since all models of a pack finish together. The
    remaining time is at least that of the slowest pack.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float, int] | None = (
            None  # time, models' worth of work, models ended
        )
        self._now = 0.0
        self._done = 0.0
        self._ended = 0
        self._packs: dict[str, tuple[float, float]] = {}  # time and epoch at first sight

    def update(self, now: float, status: Status) -> None:
        """Record the current status; ``now`` is in seconds of a monotonic clock."""
        running = _running(status)
        self._packs = {
            pack: self._packs.get(pack, (now, progress.epoch)) for pack, progress in running.items()
        }
        self._now, self._ended = now, _ended(status.replicates)
        self._done = self._ended + sum(
            p.active * p.epoch / max(1, p.epochs) for p in running.values()
        )
        if self._first is None:
            self._first = (now, self._done, self._ended)

    @property
    def models_per_minute(self) -> float:
        """Models' worth of training per minute since the first update; 0 while unknown."""
        if self._first is None or self._now - self._first[0] < 1:
            return 0.0
        return max(0.0, 60 * (self._done - self._first[1]) / (self._now - self._first[0]))

    def left(self, status: Status) -> float | None:
        """Remaining seconds, or None while unknown."""
        if not (rate := self.models_per_minute / 60):
            return None
        average = max(0.0, status.replicates["total"] - self._done) / rate
        return max([average, *self._of_packs(_running(status))])

    def _of_packs(self, running: Mapping[str, Evaluation]) -> Iterator[float]:
        """Remaining seconds of each pack in training at its own speed."""
        for pack, progress in running.items():
            since, epoch = self._packs.get(pack, (self._now, progress.epoch))
            if progress.epoch > epoch:
                each = (self._now - since) / (progress.epoch - epoch)
                yield each * (progress.epochs - progress.epoch)


def _running(status: Status) -> dict[str, Evaluation]:
    return {pack: p for pack, p in status.running.items() if p is not None}


def _sorted(status: Status, objective: str) -> list[tuple[str, tuple[float, Mapping[str, object]]]]:
    """Methods with their best configurations, best first."""
    items = list(status.best.items())
    means = [mean for _, (mean, _) in items]
    places = ties.places(means, higher_is_better=higher_is_better(objective))
    return [items[i] for i in sorted(range(len(items)), key=lambda i: places[i] or 0)]


def _leading(
    found: Sequence[tuple[str, tuple[float, Mapping[str, object]]]], most: int
) -> list[tuple[str, tuple[float, Mapping[str, object]]]]:
    """The first of these; of several tasks ("mul (digits)"), at least the first of each task."""
    if len(found) <= most:
        return list(found)
    tasks = [name.partition(" (")[2] for name, _ in found]
    firsts = [tasks.index(task) for task in dict.fromkeys(tasks)]
    others = [i for i in range(len(found)) if i not in firsts]
    chosen = sorted([*firsts, *others[: max(0, most - len(firsts))]])
    return [found[i] for i in chosen]


def _ended(replicates: Mapping[str, int]) -> int:
    return sum(replicates[state] for state in ("done", "pruned", "failed"))


def _short(params: Mapping[str, object]) -> str:
    values = [
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in params.items()
        if value is not None
    ]
    return ", ".join(values[:6])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class DataProgress:
    """Progress of data preparation, shown on a terminal if it takes over half a second."""

    _LABELS: ClassVar[dict[str, str]] = {
        "download": "downloading",
        "read": "reading",
        "decode": "decoding",
        "write": "preparing",
        "check": "checking",
        "wait": "waiting for another process to prepare the data",
    }

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._on = console.is_terminal and not quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._began = time.monotonic()

    def __enter__(self) -> DataProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage == "space":
            self._show_space(done, total)
            return
        if not self._on or time.monotonic() - self._began < 0.5:
            return
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(self._LABELS.get(stage, stage), total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def _show_space(self, needed: int, free: int | None) -> None:
        """Print the disk space that the preparation needs, on a terminal or not."""
        if not self._quiet:
            room = "" if free is None else f", {free / 1e9:.1f} GB are free"
            self._console.print(
                f"needs {max(0.1, needed / 1e9):.1f} GB of disk{room}", highlight=False
            )
