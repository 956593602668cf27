"""Table entries of jointly trained fusion architectures."""

from __future__ import annotations

from modmix.methods.entry import MethodEntry

JOINT: dict[str, MethodEntry] = {}
