"""Table entries of methods that balance how fast the modalities learn."""

from __future__ import annotations

from modmix.methods.entry import MethodEntry

BALANCED: dict[str, MethodEntry] = {}
