"""What a person sees while a study runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
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

from modmix.book import Status
from modmix.study import StudyRun

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_SECONDS = 10.0


class Display:
    """Follows one study; used as a context manager around the run."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live: Live | None = None
        self._last = 0.0
        self._first: tuple[float, int] | None = None
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
        """Show where the run stands, at most a few times a second."""
        if self._quiet:
            return
        now = time.monotonic()
        if now - self._last < (0.25 if self._live is not None else LINE_SECONDS):
            return
        self._last = now
        status = run.status()
        ended = _ended(status.replicates)
        if self._first is None:
            self._first = (now, ended)
        if self._live is not None:
            self._live.update(self._table(run.plan.name, status))
        else:
            line = self._line(status)
            if line != self._shown:
                self._console.print(line, highlight=False)
                self._shown = line

    def _pace(self, status: Status) -> tuple[float, float | None]:
        """Models a minute since the first look, and the seconds left, where they can be told."""
        assert self._first is not None
        since, before = self._first
        passed = time.monotonic() - since
        gained = _ended(status.replicates) - before
        if passed < 1 or gained <= 0:
            return 0.0, None
        left = status.replicates["total"] - _ended(status.replicates)
        return 60 * gained / passed, left * passed / gained

    def _line(self, status: Status) -> str:
        rate, left = self._pace(status)
        points = status.points
        ended = sum(points[s] for s in ("done", "pruned", "failed"))
        models = f"{_ended(status.replicates)}/{status.replicates['total']} models"
        text = f"{ended}/{points['total']} points, {models}"
        if rate:
            text += f", {rate:.0f} models/min"
        if left is not None:
            text += f", about {_duration(left)} left"
        best = ", ".join(f"{method} {value:.2f}" for method, (value, _) in status.best.items())
        return text + (f"; best so far: {best}" if best else "")

    def _table(self, name: str, status: Status) -> RenderableType:
        table = Table(title=f"study {name}", title_justify="left", expand=False)
        for column in ("method", "best so far", "with"):
            table.add_column(column, overflow="fold")
        for method, (value, params) in sorted(status.best.items(), key=lambda item: item[1][0]):
            table.add_row(method, f"{value:.3f}", _short(params))
        total = max(1, status.replicates["total"])
        bar = ProgressBar(total=total, completed=_ended(status.replicates), width=40)
        rows: list[RenderableType] = [table, bar, Text(self._line(status).split(";")[0])]
        for progress in status.running.values():
            if progress is not None:
                epoch = f"epoch {progress.epoch:g}/{progress.epochs}"
                rows.append(Text(f"  pack: {epoch}, {progress.active} models", style="dim"))
        return Group(*rows)


def _ended(replicates: Mapping[str, int]) -> int:
    return sum(replicates[state] for state in ("done", "pruned", "failed"))


def _short(params: Mapping[str, object]) -> str:
    words = [
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in params.items()
        if value is not None
    ]
    return ", ".join(words[:6])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class DataProgress:
    """Shows the preparation of data on a terminal, once it takes long enough to be noticed."""

    _WORDS: ClassVar[dict[str, str]] = {
        "download": "downloading",
        "read": "reading",
        "write": "preparing",
        "check": "checking",
        "wait": "waiting for another process that prepares the data",
    }

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
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
            self._tasks[stage] = self._bars.add_task(self._WORDS.get(stage, stage), total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)
