"""Table entries of tasks with sound, images and video."""

from __future__ import annotations

from modmix.tasks.entry import TaskEntry

VIDEO: dict[str, TaskEntry] = {}
