"""Table entries of tasks with text."""

from __future__ import annotations

from modmix.tasks.entry import TaskEntry

TEXT: dict[str, TaskEntry] = {}
